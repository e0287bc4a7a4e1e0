"""`ckptmesh worker`: run one of the workers that share a pipeline; see and end them."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ckptmesh.cli.common import DURATION, NotFound, Read, Use, client_options, confirm, yes_option
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.execute import forms
from ckptmesh.cli.output import Rows
from ckptmesh.cli.text import many, span_text
from ckptmesh.clock import from_datetime, iso, to_datetime
from ckptmesh.config import duration
from ckptmesh.errors import Misuse
from ckptmesh.features.workers import WorkerInfo

if TYPE_CHECKING:
    from ckptmesh.features.worker import Part, Worker

NOT_STARTED = (126, 127)  # exit codes of a command that cannot be started, or is not found


def _partitions(text: str) -> int | list[str]:
    """`32`, or names: `eu,us`. Raises `Misuse`."""
    if text.isdecimal():
        return int(text)
    names = text.split(",")
    if not all(names):
        raise Misuse(f"{text!r} is neither a number nor names with commas between them")
    return names


@click.group("worker")
def worker() -> None:
    """Run workers that share the partitions of a pipeline; see them, end them.

    \b
    Examples:
      ckptmesh worker start orders --partitions 32 --app shop.load:partition
      ckptmesh worker start orders --partitions 32 -- ./load.sh
      ckptmesh worker list orders
      ckptmesh worker drain orders --all
    """


@worker.command("start", short_help="Work on a fair share of a pipeline's partitions.",
                context_settings={"allow_interspersed_args": True})
@click.argument("pipeline")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--partitions", required=True, type=Read(_partitions, "partitions"),
              metavar="N|NAMES", help="How many, or what they are called: eu,us. All workers "
                                       "say the same.")
@click.option("--app", metavar="MODULE:FUNCTION", help="A function to call with each partition.")
@click.option("--name", metavar="NAME", help="What this worker is called; default: made up.")
@click.option("--ttl", type=DURATION, default="30s", show_default=True, metavar="DURATION",
              help="How long others wait for its partitions when this process is gone.")
@click.option("--idle", type=Read(duration, "duration"), default="1s", show_default=True,
              metavar="DURATION", help="Rest after each had a turn and none committed.")
@click.option("--limit", type=DURATION, metavar="DURATION",
              help="End a command after this: SIGTERM, ten seconds, SIGKILL.")
@click.option("--turns", type=click.IntRange(1), metavar="N", help="End after so many turns.")
@client_options
@click.pass_context
def start(ctx: click.Context, use: Use, pipeline: str, command: tuple[str, ...],
          partitions: int | list[str], app: str | None, name: str | None, ttl: float, idle: float,
          limit: float | None, turns: int | None) -> None:
    """Work on a fair share of the partitions of PIPELINE, until drained or SIGTERM. Start as many
    as you like, here and on other machines.

    With --app the function gets each partition in its turn: `part.name`, `part.value()`,
    `part.commit(…)`. What it raises ends the worker, with exit code 1.

    With -- COMMAND the command is run in each turn, as `ckptmesh exec` runs it: it finds the
    partition in CKPTMESH_PARTITION and its checkpoint in CKPTMESH_CHECKPOINT, writes the next one
    to the file CKPTMESH_NEXT_FILE, and that is committed if it ends with 0. If it fails, its
    failure is recorded, and it is tried again later.

    The first SIGTERM or Ctrl-C lets the turn end; the second goes to the command.

    \b
    Examples:
      ckptmesh worker start orders --partitions 32 --app shop.load:partition
      ckptmesh worker start orders --partitions eu,us --idle 1m -- ./load.sh
    """
    if bool(app) == bool(command):
        raise Misuse("a worker runs either --app module:function or -- COMMAND",
                     hint="ckptmesh worker start --help")
    function = _function(app) if app else None
    with use.connect() as mesh, mesh.worker(
            pipeline, partitions=partitions, name=name, ttl=ttl, idle=idle
            ) as found, _Ending(found) as ending:
        use.out.note(f"worker {found.name} on {pipeline}; Ctrl-C drains it")
        if function is not None:
            turn: Callable[[Part], int] = _Calls(function, ctx)
        else:
            turn = _Commands(use, mesh, command, limit, ending)
        code = _work(found, turn, turns)
    ctx.exit(code)


def _work(found: Worker, turn: Callable[[Part], int], turns: int | None) -> int:
    """Turn after turn. The exit code: of a command that cannot be started; where turns are
    counted, of the last that failed."""
    failed = done = 0

    def one(part: Part) -> None:
        nonlocal failed, done
        done += 1
        code = turn(part)
        if code in NOT_STARTED or (turns is not None and code):
            failed = code
        if code in NOT_STARTED or done == turns:
            found.drain()

    found.run(one)
    return failed


class _Ending:
    """What SIGTERM and Ctrl-C do: the first drains, the next is passed to the command that runs;
    without one, Ctrl-C interrupts."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._group: int | None = None
        self._before: dict[int, Any] = {}

    def pass_to(self, group: int | None) -> None:
        """As `children.Passes`."""
        self._group = group

    def _take(self, number: int, frame: FrameType | None) -> None:
        from ckptmesh.features.children import send

        if not self._worker.draining:
            self._worker.drain()
        elif self._group is not None:
            send(self._group, number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def __enter__(self) -> _Ending:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class _Calls:
    """Turns of a function."""

    def __init__(self, function: Callable[[Part], object], ctx: click.Context) -> None:
        self._function, self._ctx = function, ctx

    def __call__(self, part: Part) -> int:
        from ckptmesh.errors import Error

        try:
            self._function(part)
        except Error:
            raise
        except Exception:  # it is the user's, not a fault in ckptmesh
            traceback.print_exc()
            self._ctx.exit(1)
        return 0


class _Commands:
    """Turns of a command."""

    def __init__(self, use: Use, mesh: Any, command: tuple[str, ...], limit: float | None,
                 ending: _Ending) -> None:
        self._use, self._mesh, self._command = use, mesh, command
        self._limit, self._ending = limit, ending

    def __call__(self, part: Part) -> int:
        from ckptmesh.features.executing import Execution
        from ckptmesh.features.holding import Served, ServedLock

        environ = {"CKPTMESH_PARTITION": part.name}
        if self._use.url:
            environ["CKPTMESH_URL"] = self._use.url
        execution = Execution(
            Served(self._mesh), part.key, self._command, forms(),
            lambda line: self._use.out.note(f"ckptmesh: {part.name}: {line}"),
            timeout=self._limit, environ=environ, lock=ServedLock(part))
        code = execution.under_lock(self._ending)
        if execution.committed:
            part.moved()
        if self._use.out.as_json:
            self._use.out.line({"partition": part.name, "key": part.key, "code": code,
                                "committed": execution.committed})
        return code


def _function(app: str) -> Callable[[Part], object]:
    module, _, name = app.partition(":")
    if not (module and name):
        raise Misuse(f"{app!r} is not of the form module:function")
    if os.getcwd() not in sys.path:  # as `python -m` does
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Misuse(f"{app!r} cannot be imported: {error}",
                     hint="it is looked for in this folder and where Python finds modules"
                     ) from None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise Misuse(f"{module!r} has no function {name!r}")
    function: Callable[[Part], object] = found
    return function


# --- looking and ending -----------------------------------------------------------------------


@worker.command("list", short_help="Who works on what, and who is stale.")
@click.argument("pipeline", default="", shell_complete=complete_keys)
@client_options
def list_(use: Use, pipeline: str) -> None:
    """List the workers of PIPELINE: their state, how many partitions they have, and when they were
    last heard of. Without PIPELINE: of all pipelines at which somebody is at work.

    A stale worker has not been heard of for its ttl, or has ended without a good-bye. Others have
    its partitions by then, or as soon as its lease ends; its traces go after a day.

    \b
    Examples:
      ckptmesh worker list
      ckptmesh worker list orders --json | jq -r 'select(.state == "stale") | .name'
    """
    with use.connect(reading=True) as mesh:
        names = [pipeline] if pipeline else [each.name for each in mesh.pipelines()]
        found = [(name, each) for name in names for each in mesh.workers(name)]
        now = to_datetime(mesh.hello().time)
    count = use.out.table(("pipeline", "worker", "state", ">partitions", ">heard", ">age"),
                          _rows(found, now))
    if use.out.as_json:
        return
    if not count:
        use.out.note(f"nobody works on {pipeline}" if pipeline else "nobody is at work")
    stale = sum(each.state == "stale" for _, each in found)
    if stale:
        use.out.note(f"{many(stale, 'stale worker')}: `ckptmesh state cleanup "
                     f"{pipeline or 'PIPELINE'} --stale-workers` frees what is left of them")


def _rows(found: list[tuple[str, WorkerInfo]], now: datetime) -> Rows:
    for pipeline, each in found:
        yield _document(pipeline, each), (
            pipeline, each.name, each.state, str(len(each.partitions)),
            span_text((now - each.heartbeat).total_seconds()),
            span_text((now - each.started).total_seconds()))


def _document(pipeline: str, each: WorkerInfo) -> dict[str, Any]:
    return {"pipeline": pipeline, "name": each.name, "state": each.state,
            "partitions": list(each.partitions), "heartbeat": iso(from_datetime(each.heartbeat)),
            "started": iso(from_datetime(each.started)), "host": each.host, "pid": each.pid,
            "version": each.version, "ttl": each.ttl, "key": each.key}


ALL = click.option("--all", "everyone", is_flag=True, help="All workers of the pipeline.")


@worker.command("drain", short_help="Let a worker finish its turn and end.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.argument("name", required=False)
@ALL
@client_options
def drain(use: Use, pipeline: str, name: str | None, everyone: bool) -> None:
    """Let the worker NAME of PIPELINE end in order: it finishes its turn, gives its partitions
    back, and takes no more. Exit code 3 when there is no such worker.

    \b
    Examples:
      ckptmesh worker drain orders host:4711:9f3a
      ckptmesh worker drain orders --all
    """
    _end(use, pipeline, name, everyone, stop=False)


@worker.command("stop", short_help="Take a worker's partitions from it, and let it end.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.argument("name", required=False)
@ALL
@yes_option
@client_options
def stop(use: Use, pipeline: str, name: str | None, everyone: bool, yes: bool) -> None:
    """Take its partitions from the worker NAME of PIPELINE at once. Asks first.

    Others may have them from then on: what it has not committed is refused, and done again. It
    learns that at its next commit or renewal, and ends; its command gets SIGTERM. Exit code 3 when
    there is no such worker.

    \b
    Examples:
      ckptmesh worker stop orders host:4711:9f3a
      ckptmesh worker stop orders --all --yes
    """
    whom = name or f"all workers of {pipeline}"
    confirm(f"take from {whom} what is being worked on?", yes)
    _end(use, pipeline, name, everyone, stop=True)


def _end(use: Use, pipeline: str, name: str | None, everyone: bool, *, stop: bool) -> None:
    if bool(name) == everyone:
        raise Misuse("which worker? Name it, or say --all", hint=f"ckptmesh worker list {pipeline}")
    with use.connect(reading=True) as mesh:
        team = mesh.workers(pipeline)
        names = [name] if name else [each.name for each in team if each.state != "stale"]
        act = team.stop if stop else team.drain
        told = [each for each in map(act, names) if each is not None]
    if not told:
        raise NotFound(f"{pipeline} has no worker {name}" if name else
                       f"nobody works on {pipeline}", hint=f"ckptmesh worker list {pipeline}")
    for each in told:
        use.out.text(f"{'stopped' if stop else 'draining'} {each.name}", _document(pipeline, each))
