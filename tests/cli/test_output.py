"""What every command owes its caller: help, clean stdout, JSON that parses, plain text in pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ckptmesh.cli import _SECTIONS, program
from ckptmesh.cli.text import many, preview, size_text, span_text
from tests.cli.conftest import PROGRAM, CommandLine, environment, process


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of all commands, groups too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield (*path, name)
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))


COMMANDS = list(commands(program))
CTRL_C = b"\x03"
# These print no data that JSON could carry.
RUNNING = (("up",), ("broker",), ("store",), ("completion",), ("exec",), ("lock", "acquire"))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_teaches_by_example(command: tuple[str, ...]) -> None:
    done = CommandLine()(*command, "--help")
    text = done.stdout
    assert done.stderr == ""
    name = "watch" if command == ("state", "watch") else command[0]  # the same command
    assert re.search(rf"^ +(.*)ckptmesh {name}\b", text, re.M), "no example"
    assert "default: None" not in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_json_where_it_prints_data(command: tuple[str, ...]) -> None:
    context = click.Context(program)
    found: click.Command | None = program
    for name in command:
        assert isinstance(found, click.Group)
        found = found.get_command(context, name)
    assert found is not None
    if not isinstance(found, click.Group) and command not in RUNNING:
        assert "--json" in [name for param in found.params for name in param.opts]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_examples_in_help_can_be_parsed(command: tuple[str, ...]) -> None:
    # Each example's first command must name commands and options that exist.
    text = CommandLine()(*command, "--help").stdout
    for line in re.findall(r"^ +ckptmesh ([a-z].*)$", text, re.M):
        words = re.split(r" [|&]|;|  +|\)| -- ", line)[0].replace("'", "").split()
        found: click.Command = program
        for word in words:
            if not isinstance(found, click.Group):
                break
            inner = found.get_command(click.Context(found), word)
            assert inner is not None, line
            found = inner
        known = [name for param in found.params for name in (*param.opts, *param.secondary_opts)]
        for word in words:
            if re.fullmatch(r"--?[a-z][a-z-]*", word):
                assert word in known, line


def test_the_first_screen_says_the_same_of_each_command_as_its_own_help() -> None:
    context = click.Context(program)
    for part in _SECTIONS.values():
        for name in part:
            found = program.get_command(context, name)
            assert found is not None
            assert found.help
    screen = CommandLine()("--help").stdout
    for name in program.list_commands(context):
        assert re.search(rf"^  {name} ", screen, re.M)


def test_version_and_help_import_nothing_heavy() -> None:
    code = (
        "import sys; from ckptmesh.cli import program\n"
        "try: program(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('zmq', 'msgpack', 'rich', 'asyncio', 'ckptmesh.engine', "
        "'ckptmesh.cli.state') if m in sys.modules], file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60,
                          capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert process("--version").stdout.startswith("ckptmesh ")


def test_reading_a_value_imports_no_tables() -> None:
    code = ("import sys; from ckptmesh.cli import program\n"
            "try: program(['state', 'get', 'k', '--default', '0', '--url', 'memory://'])\n"
            "except SystemExit: pass\n"
            "print([m for m in ('rich', 'subprocess_never') if m in sys.modules], "
            "file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60,
                          capture_output=True, text=True)
    assert (done.stdout, done.stderr.strip()) == ("0\n", "[]")


def test_a_group_without_a_command_shows_its_help_and_is_a_usage_error() -> None:
    for args in ([], ["state"], ["wal"]):
        done = CommandLine()(*args, code=2)
        assert done.stdout == ""
        assert done.stderr.startswith("Usage: ckptmesh")


# --- pipes and terminals ----------------------------------------------------------------------


def test_a_closed_pipe_is_quiet(directory: CommandLine) -> None:
    for number in range(3):
        directory("state", "set", f"k/{number}", json.dumps("x" * 200_000))
    for args in (["state", "list", "--json"], ["state", "get", "k/0"]):
        child = subprocess.Popen([*PROGRAM, *args], env=environment(**directory.environ),
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == ""
        assert child.wait(30) == 141


def on_terminal(
    environ: dict[str, str], *args: str, typed: bytes = b""
) -> tuple[int, str]:
    """Run `ckptmesh` with a terminal on all three; its exit code and what it showed."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*PROGRAM, *args], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=environment(**{"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", **environ}))
    os.close(theirs)
    shown, again, deadline = b"", 0.0, time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    found = os.read(ours, 65_536)
                except OSError:
                    break
                if not found:
                    break
                shown += found
            if typed and b"?" in shown and time.monotonic() >= again:
                if typed == CTRL_C:  # what the terminal would send, were it the child's own
                    child.send_signal(signal.SIGINT)
                    again = time.monotonic() + 1  # it is lost just before Python begins to read
                else:
                    os.write(ours, typed)
                    typed = b""
        return child.wait(10), shown.decode().replace("\r\n", "\n")
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def test_a_terminal_gets_a_table_and_no_color_takes_the_colours_away(
    directory: CommandLine
) -> None:
    directory("state", "set", "orders", '"[bold]x[/bold] \\u001b[31m"')
    _, shown = on_terminal(directory.environ, "state", "list")
    assert "\x1b[" in shown
    assert "─" in shown
    assert "[bold]x[/bold] \\u001b[31m" in shown, "shown as it is stored, and harmless"
    _, shown = on_terminal({**directory.environ, "NO_COLOR": "1"}, "state", "list")
    assert "orders" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)
    _, shown = on_terminal({**directory.environ, "NO_COLOR": "1"}, "state", "get", "nope")
    assert "error: there is no nope" in shown
    assert "\x1b" not in shown
    _, shown = on_terminal(directory.environ, "state", "get", "nope")
    assert "\x1b[31m" in shown


def test_a_value_cannot_command_a_terminal(directory: CommandLine) -> None:
    directory("state", "set", "evil", '"\\u001b]0;owned\\u0007"')
    for args in (["state", "get", "evil"], ["state", "show", "evil"], ["state", "list"],
                 ["state", "history", "evil"], ["watch", "--since", "0", "--count", "1"]):
        _, shown = on_terminal(directory.environ, *args)
        assert "\x1b]0;" not in shown
        assert "\x07" not in shown
        assert "owned" in shown
    assert directory("state", "get", "evil").stdout == "\x1b]0;owned\x07\n", "a pipe gets all"


def test_without_rich_a_terminal_gets_plain_columns(
    directory: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('not installed')\n")
    directory("state", "set", "orders", "42")
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    code, shown = on_terminal({**directory.environ, "PYTHONPATH": path}, "state", "list")
    assert code == 0
    assert shown.splitlines()[0].split()[:2] == ["KEY", "REVISION"]
    code, shown = on_terminal({**directory.environ, "PYTHONPATH": path}, "compact")
    assert code == 0
    assert "compacting …" in shown


@pytest.mark.parametrize(("typed", "code", "left"), [(b"y\n", 0, 3), (b"n\n", 1, 0)])
def test_delete_is_asked_on_a_terminal(
    directory: CommandLine, typed: bytes, code: int, left: int
) -> None:
    directory("state", "set", "orders", "42")
    ended, shown = on_terminal(directory.environ, "state", "delete", "orders", typed=typed)
    assert "Delete orders@1 (integer: 42)?" in shown
    assert ended == code
    directory("state", "get", "orders", code=left)


def test_ctrl_c_at_a_question_changes_nothing_and_is_130(directory: CommandLine) -> None:
    directory("state", "set", "orders", "42")
    ended, shown = on_terminal(directory.environ, "state", "delete", "orders", typed=CTRL_C)
    assert ended == 130, shown
    assert "error" not in shown
    assert directory.out("state", "get", "orders") == "42"


# --- words and numbers ------------------------------------------------------------------------


def test_sizes_and_spans_are_short() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 4 * 2**30, 2**50)] == [
        "0 B", "1023 B", "1.5 KiB", "4.0 GiB", "1024.0 TiB"]
    assert [span_text(seconds) for seconds in (-5, 0.4, 59, 200, 3_600, 93_600, 864_000)] == [
        "0s", "0s", "59s", "3m 20s", "1h", "1d 2h", "10d"]
    assert many(1, "key") == "1 key"
    assert many(2_000, "key") == "2,000 keys"
    assert preview("x" * 100) == "x" * 59 + "…"
    assert preview("short") == "short"
