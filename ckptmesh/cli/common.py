"""What commands share: options, the way to a store, questions before something is lost."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ckptmesh.cli.output import Output
from ckptmesh.config import duration
from ckptmesh.errors import Error, Misuse, OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from ckptmesh.client import Client

TIMEOUT = 10.0  # seconds; a person waits, and a script should hear soon that nobody answers

Function = Callable[..., Any]
Result = TypeVar("Result")


class NotFound(Error):
    """What was asked for is not there: a key, a version, a snapshot. Look with `state list`."""

    exit_code = 3


class Declined(Error):
    """The question whether to go on was answered with no; nothing was changed."""


# --- options ----------------------------------------------------------------------------------


class Read(click.ParamType):  # type: ignore[type-arg]  # generic in later click only
    """An option whose text a function reads; its `Error` becomes a usage error."""

    def __init__(self, read: Callable[[str], Any], name: str) -> None:
        self.name = name
        self._read = read

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except Error as error:
            self.fail(str(error), param, ctx)


def positive_duration(text: str) -> float:
    """Seconds, more than none, from `30s`, `1h`, `3600`. Raises `Misuse`."""
    seconds = duration(text)
    if seconds <= 0:
        raise Misuse(f"{text!r} is no time at all")
    return seconds


DURATION = Read(positive_duration, "duration")
URL = click.option("--url", envvar="CKPTMESH_URL", show_envvar=True, metavar="URL",
                   help="The store: tcp://host:7701, ipc://path, or a directory, file:./state; "
                        "default: the broker on this machine.")


def json_option(function: Function) -> Function:
    """Adds `--json`; the command is given `out`, where it says what it has found."""

    @functools.wraps(function)
    def with_output(*args: Any, as_json: bool, **options: Any) -> Any:
        return function(*args, out=Output(as_json), **options)

    return click.option("--json", "as_json", is_flag=True,
                        help="Write JSON; a line for each item of a list.")(with_output)


def client_options(function: Function) -> Function:
    """Adds `--url`, `--timeout` and `--json`; the command is given `use`, a `Use`."""

    @functools.wraps(function)
    def with_use(*args: Any, url: str | None, timeout: float, as_json: bool,
                 **options: Any) -> Any:
        return function(*args, use=Use(url, timeout, Output(as_json)), **options)

    for option in (
        click.option("--json", "as_json", is_flag=True,
                     help="Write JSON; a line for each item of a list."),
        click.option("--timeout", type=DURATION, default=TIMEOUT, envvar="CKPTMESH_TIMEOUT",
                     show_envvar=True, metavar="DURATION",
                     help=f"Give up after this long; default {TIMEOUT:.0f}s."),
        URL,
    ):
        with_use = option(with_use)
    return with_use


def yes_option(function: Function) -> Function:
    """Adds `--yes`, for `confirm`."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(function)


def dry_run_option(function: Function) -> Function:
    """Adds `--dry-run`."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(
        function
    )


# --- the way to a store -----------------------------------------------------------------------


class Use:
    """How this call of the command line reaches its store, and where it speaks."""

    def __init__(self, url: str | None, timeout: float, out: Output) -> None:
        self.url = url
        self.timeout = timeout
        self.out = out

    @contextlib.contextmanager
    def connect(self, *, reading: bool = False, existing: bool = False) -> Iterator[Client]:
        """A client for the block. A directory is held only so long, so that others can have it.

        `reading`: where there is no store yet, none is made; an empty one stands for it.
        `existing`: then `NotFound` is raised instead.
        """
        import ckptmesh

        if existing and self._unmade(told=False):
            raise NotFound(f"there is no store at {self.url}", hint="see --url, and CKPTMESH_URL")

        mesh = ckptmesh.connect("memory://" if reading and self._unmade() else self.url,
                                timeout=self.timeout)
        with contextlib.closing(mesh):
            yield mesh

    def _unmade(self, told: bool = True) -> bool:
        """Whether the URL names a directory that holds no store; then says so, if `told`."""
        if not (self.url or "").startswith("file:"):
            return False
        from ckptmesh.urls import directory_of

        directory = directory_of(self.url or "")
        if os.path.exists(os.path.join(directory, "MANIFEST")):
            return False
        if told:
            self.out.note(f"there is no store in {directory} yet; the first `state set` makes one")
        return True

    def settled(self, call: Callable[[], Result]) -> Result:
        """The result of a call that changes something; where no answer came, what became of it. For
        what is one request to the store; features of more (`flows.settled`) ask by themselves.

        Raises `Unavailable` when it is known not to have happened, `OutcomeUnknown` when even
        that could not be learned.
        """
        try:
            return call()
        except OutcomeUnknown as error:
            self.out.note(f"no answer within {self.timeout:g} s; asking what became of it …")
            found: Result | None = error.resolve(self.timeout)
            if found is None:
                raise Unavailable("nothing was changed: the store did not get it in time",
                                  hint="try again") from error
            return found


def confirm(question: str, yes: bool) -> None:
    """Go on only when the user agrees. Raises `Declined`; `Misuse` where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Misuse("this needs a yes, and there is no terminal to ask at", hint="add --yes")
    if not click.confirm(question, err=True):
        raise Declined("nothing was changed", hint="")
