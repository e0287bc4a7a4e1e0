"""The command line: `ckptmesh`.

Rule 1: a command's file is imported when it is called; `--help` and `--version` import none.
Rule 2: data goes to stdout, everything else to stderr; `--json` makes data JSON.
Rule 3: an error of the catalogue ends as two lines and an exit code, mapped here and only here.

Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict, lease lost or directory in use,
5 unreachable, timed out or outcome unknown, 6 corruption or data loss, 7 out of space; 130 after
Ctrl-C, 141 when whoever read the output has gone.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from ckptmesh.cli.text import plain
from ckptmesh.errors import Error, OutcomeUnknown
from ckptmesh.release import RELEASE

__all__ = ["LazyGroup", "main", "program"]

_NO_COMMAND: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())  # of click 8.2 and later
INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell tells of a program that SIGINT, SIGPIPE ended

# name: (file under cli/, one line for `ckptmesh --help`); the function has the name of the command.
_SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Look and change": {
        "state": ("state", "Read and write checkpoints."),
        "watch": ("watch", "Print every commit as it happens, none missed."),
    },
    "Run": {
        "exec": ("execute", "Run a command under a pipeline's lock, with its checkpoint."),
        "worker": ("worker", "Run workers that share a pipeline, see them, end them."),
        "run": ("run", "See the runs of pipelines; pause, resume, cancel them."),
        "lock": ("lock", "See locks, hold one for a command, end a dead holder's."),
    },
    "Serve": {
        "up": ("up", "Run broker and store until Ctrl-C or SIGTERM."),
        "broker": ("broker", "Run the broker alone: it holds the public addresses."),
        "store": ("store", "Run the store alone: it owns the data directory."),
        "demo": ("demo", "Kill a real cluster at random and show that nothing is lost."),
    },
    "Find out": {
        "status": ("status", "Tell whether broker and store are there and well."),
        "info": ("info", "Print every figure that store and client keep."),
        "debug": ("debug", "Look into checkpoints and runs: figures, pictures, what is wrong."),
        "doctor": ("doctor", "Tell what is wrong here, and what to do about it."),
        "certify": ("certify", "Kill and damage a store on this disk, and judge it."),
        "bench": ("bench", "Measure this mesh and this disk, and tell the limit."),
    },
    "Care for the data": {
        "migrate": ("migrate", "Copy a store into another, and verify it."),
        "contract": ("contract", "Rules that the store holds commits to, by prefix."),
        "compact": ("compact", "Make a snapshot now and drop what it covers."),
        "snapshot": ("snapshot", "List, check and restore snapshots."),
        "wal": ("wal", "Look into, check and repair the log of a directory."),
    },
    "Shell": {
        "completion": ("completion", "Print the completion script for a shell."),
    },
}
_FILES = {name: file for part in _SECTIONS.values() for name, (file, _) in part.items()}

_SETTINGS: Mapping[str, Any] = {
    "help_option_names": ["-h", "--help"], "max_content_width": 100,
}


class LazyGroup(click.Group):
    """The root: knows its commands by name, and imports each when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_FILES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        file = _FILES.get(cmd_name)
        if file is None:
            return None
        found = getattr(importlib.import_module(f"ckptmesh.cli.{file}"), cmd_name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _FILES and not name.startswith("-"):
            near = " or ".join(difflib.get_close_matches(name, _FILES, 3))
            ctx.fail(f"there is no command {name!r}" + (f"; did you mean {near}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, part in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in part.items()],
                                   col_max=12)

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None,
        complete_var: str | None = None, standalone_mode: bool = True, **extra: Any,
    ) -> Any:
        """Run and exit. Not standalone: click's own way, in which errors are raised."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        name = "ckptmesh"
        self._main_shell_completion(extra, name, complete_var)
        code = _run(self, list(sys.argv[1:] if args is None else args), name, extra)
        sys.exit(code)


def _run(command: click.Group, args: list[str], name: str, extra: dict[str, Any]) -> int:
    """The exit code. Whatever a command raises is told here."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal cannot show must not end a command
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("NO_COLOR"):
        extra = {"color": False, **extra}
    try:
        try:
            with command.make_context(name, args, **extra) as ctx:
                command.invoke(ctx)
        finally:
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort as end:
        return 1 if isinstance(end.__cause__ or end.__context__, EOFError) else INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except click.ClickException as error:
        return _usage(error)
    except Error as error:
        return _refused(error)
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:  # it was stdout; at its end the interpreter would try, and fail, once more
            _leave_stdout()
        return _system(error)
    except Exception:
        traceback.print_exc()
        _tell("this is a fault in ckptmesh itself", "please report the lines above")
        return 1
    return 0


def _reader_gone() -> int:
    """`ckptmesh watch | head -1`: end quietly, also while the interpreter flushes at its end."""
    _leave_stdout()
    return PIPE_CLOSED


def _leave_stdout() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _usage(error: click.ClickException) -> int:
    if isinstance(error, _NO_COMMAND):
        click.echo(error.format_message(), err=True)
        return 2
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"see {error.ctx.command_path} --help"
        if isinstance(error, click.NoSuchOption) and isinstance(error.ctx.command, click.Group):
            hint = f"options go after the command; {hint}"
    message = error.format_message().rstrip(".")
    _tell(message[:1].lower() + message[1:], hint)
    return error.exit_code


def _refused(error: Error) -> int:
    hint = error.hint
    if isinstance(error, OutcomeUnknown):
        hint = "look at the key (`ckptmesh state history KEY`) before trying again"
    _tell(error.message, hint.replace("connect('file:./state')", "--url file:./state"))
    return error.exit_code


def _system(error: OSError) -> int:
    what = f"{error.filename}: " if error.filename else ""
    _tell(f"{what}{error.strerror or error}", "")
    return 7 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1


def _tell(message: str, hint: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be gone as well
        click.echo(click.style("error:", fg="red", bold=True) + f" {plain(message)}", err=True,
                   color=False if os.environ.get("NO_COLOR") else None)
        if hint:
            click.echo(f"hint: {plain(hint)}", err=True)


@click.group("ckptmesh", cls=LazyGroup, context_settings=_SETTINGS)
@click.version_option(RELEASE, prog_name="ckptmesh", message="%(prog)s %(version)s")
def program() -> None:
    """Keeps your pipeline's place: a durable checkpoint store.

    \b
    Start here, without a server:
      export CKPTMESH_URL=file:./state
      ckptmesh state set orders 42
      ckptmesh state get orders

    \b
    Or serve it to many:
      ckptmesh up
      ckptmesh watch orders

    Data goes to stdout, everything else to stderr; --json makes data JSON, a line each for streams.
    """


def main() -> NoReturn:
    """The entry point of the command line. Never returns."""
    program.main()
    raise SystemExit(0)  # not reached: `main` exits
