"""The queue of locks from outside, and children whose signals and stderr are handled."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh.features.children import Interrupted, Signals, run
from ckptmesh.features.tickets import tickets
from ckptmesh.limits import EXEC_TAIL


def test_tickets_tell_who_is_ahead_of_whom() -> None:
    with ckptmesh.connect("memory://") as mesh:
        def draw(name: str, shared: bool, tag: str) -> None:
            folder = "a/_lock" + name.removeprefix("a")
            mesh.commit(f"{folder}/_ticket/{tag}", {"name": name, "shared": shared, "holder": tag},
                        ttl=30, lease=True)

        for number, (name, shared) in enumerate(
                [("a/b", True), ("a", True), ("a/c", False), ("a/b/d", False), ("a/cc", True)]):
            draw(name, shared, f"t{number}")
        mesh.commit("a/_lock/_ticket/mine", "no ticket of a lock")
        mesh.commit("b/_lock/_ticket/mine", {"name": "b"}, ttl=30, lease=True)
        found = tickets(mesh)
        assert [each.number for each in found] == ["t0", "t1", "t2", "t3", "t4"]
        assert [each.ahead for each in found] == [0, 0, 1, 2, 0]
        assert tickets(mesh, "a") == found
        assert tickets(mesh, "b") == []


def sh(script: str, signals: Signals, onto: int, **options: object) -> object:
    return run(["sh", "-c", script], signals, lost=threading.Event(), stderr=onto,
               **options)  # type: ignore[arg-type]


def wait_for(number: int) -> None:
    """A wait that the signal ends."""
    os.kill(os.getpid(), number)
    time.sleep(10)


def test_a_signal_interrupts_before_and_is_kept_for_the_command_once_held(tmp_path: Path) -> None:
    me, before = os.getpid(), signal.getsignal(signal.SIGTERM)
    with (tmp_path / "err").open("wb") as err, Signals() as signals:
        with pytest.raises(Interrupted) as caught:
            wait_for(signal.SIGTERM)
        assert caught.value.code == 128 + signal.SIGTERM
        signals.hold()
        os.kill(me, signal.SIGTERM)
        ended = sh("sleep 100", signals, err.fileno())
        assert ended == ("ended", 128 + signal.SIGTERM, "")
        os.kill(me, signal.SIGTERM)  # nobody is there to get it: what follows goes on
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_was_ignored_stays_so_for_the_command(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with (tmp_path / "err").open("wb") as err, Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            signals.hold()
            assert sh("kill -HUP $$; exit 3", signals, err.fileno()) == ("ended", 3, "")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_all_of_stderr_is_passed_on_and_the_end_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "err"
    with file.open("wb") as err, Signals() as signals:
        ended = run([sys.executable, "-c", "import sys; sys.stderr.write('é' * 500_000)"], signals,
                    lost=threading.Event(), stderr=err.fileno())
    assert file.read_text() == "é" * 500_000
    assert ended.tail == "é" * (EXEC_TAIL // 2)


def test_who_is_left_behind_with_stderr_holds_nobody_up(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with (tmp_path / "err").open("wb") as err, Signals() as signals:
        ended = sh(f"sleep 60 & echo $! > {file}; echo bye >&2", signals, err.fileno())
        child = int(file.read_text())
        os.kill(child, 0)  # it is alive: nobody asked for its end
        os.kill(child, signal.SIGKILL)
    assert ended == ("ended", 0, "bye")


def test_who_does_not_end_when_told_is_killed_with_all_it_has_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = f"trap '' TERM; sleep 60 & echo $! > {file}; while :; do sleep 0.05; done"
    with (tmp_path / "err").open("wb") as err, Signals() as signals:
        ended = sh(script, signals, err.fileno(), timeout=0.5, grace=0.5)
    assert ended == ("timeout", 128 + signal.SIGKILL, "")
    stat = Path(f"/proc/{file.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
