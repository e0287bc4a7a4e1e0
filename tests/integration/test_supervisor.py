"""The supervisor with small programs as children, and `ckptmesh up` with the real ones."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptmesh import sockets
from ckptmesh.config import BrokerConfig, arguments
from tests.integration.peers import WAIT, Client, hello, reply_of, settings, short_folder, until

STEADY = """
    import os, signal, sys, time
    from ckptmesh.process import die_with_parent, notify_ready
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    open(sys.argv[1], "a").write("%d\\n" % os.getpid())
    notify_ready()
    time.sleep(60)
"""
DYING = """
    import os, sys, time
    open(sys.argv[1], "a").write("%d\\n" % os.getpid())
    time.sleep(0.05)
    sys.exit(int(sys.argv[2]))
"""
STUBBORN = STEADY.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")

SUPERVISE = """
    import json, sys
    from ckptmesh import supervisor
    from ckptmesh.process import teller
    supervisor.STOP_WAIT = float(sys.argv[1])
    children = [supervisor.Child(name, argv) for name, argv in json.loads(sys.argv[2])]
    sys.exit(supervisor.Supervisor(children, greeting="all are ready",
                                   tell=teller("up")).run())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


class Supervised:
    """A supervisor process over small programs; each writes its pid when it starts."""

    def __init__(self, folder: Path, *programs: tuple[str, str, str], stop_wait: float = 5.0,
                 **environ: str) -> None:
        self.folder = folder
        children = [
            (name, [sys.executable, "-c", textwrap.dedent(code), str(folder / name), extra])
            for name, code, extra in programs
        ]
        self._log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SUPERVISE), str(stop_wait),
             json.dumps(children)],
            stderr=self._log, stdin=subprocess.DEVNULL, env={**os.environ, **environ},
        )

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def pids(self, name: str) -> list[int]:
        path = self.folder / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(WAIT)
        self._log.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_child_is_started_again_and_the_other_left_alone(folder: Path) -> None:
    with Supervised(folder, ("one", STEADY, ""), ("two", STEADY, "")) as up:
        until(lambda: "all are ready" in up.log(), "both are ready")
        os.kill(up.pids("two")[0], signal.SIGKILL)
        until(lambda: len(up.pids("two")) == 2, "it was started again")
        assert "the two was ended by SIGKILL; starting it again in 0.1 s" in up.log()
        assert len(up.pids("one")) == 1
        assert up.log().count("all are ready") == 1


def test_a_child_that_keeps_dying_is_started_ever_more_slowly(folder: Path) -> None:
    with Supervised(folder, ("one", STEADY, ""), ("two", DYING, "1")) as up:
        until(lambda: len(up.pids("two")) >= 4, "it was started four times")
        said = [f"the two ended with exit code 1; starting it again in {pause} s"
                for pause in ("0.1", "0.2", "0.4")]
        places = [up.log().find(line) for line in said]
        assert -1 not in places
        assert places == sorted(places)


@pytest.mark.parametrize("code", [2, 4, 6])
def test_an_exit_code_that_is_final_ends_everything_with_it(folder: Path, code: int) -> None:
    with Supervised(folder, ("one", STEADY, ""), ("two", DYING, str(code))) as up:
        assert up.process.wait(WAIT) == code
        assert f"the two ended with exit code {code}: starting it again cannot help" in up.log()
        assert len(up.pids("two")) == 1
        assert not any(alive(pid) for pid in up.pids("one"))


def test_sigterm_stops_the_last_child_first_and_ends_with_0(folder: Path) -> None:
    slow = STEADY.replace("sys.exit(0)", "(time.sleep(0.3), sys.exit(0))")
    with Supervised(folder, ("one", STEADY, ""), ("two", slow, "")) as up:
        until(lambda: "all are ready" in up.log(), "both are ready")
        (one,), (two,) = up.pids("one"), up.pids("two")
        up.process.terminate()
        time.sleep(0.15)
        assert alive(one), "the first goes on while the second ends"
        assert up.process.wait(WAIT) == 0
        assert not alive(one)
        assert not alive(two)


def test_a_child_that_does_not_end_is_killed_after_a_bounded_wait(folder: Path) -> None:
    with Supervised(folder, ("one", STEADY, ""), ("two", STUBBORN, ""), stop_wait=0.3) as up:
        until(lambda: "all are ready" in up.log(), "both are ready")
        began = time.monotonic()
        up.process.terminate()
        assert up.process.wait(WAIT) == 0
        assert 0.2 < time.monotonic() - began < 3.0
        assert "the two did not end; killing it" in up.log()
        assert not alive(up.pids("two")[0])


def test_a_second_stop_signal_does_not_wait(folder: Path) -> None:
    with Supervised(folder, ("one", STUBBORN, ""), stop_wait=30.0) as up:
        until(lambda: "all are ready" in up.log(), "it is ready")
        up.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert up.process.poll() is None
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(3.0) == 0


def test_children_do_not_outlive_a_killed_supervisor(folder: Path) -> None:
    with Supervised(folder, ("one", STEADY, ""), ("two", STEADY, "")) as up:
        until(lambda: "all are ready" in up.log(), "both are ready")
        up.process.kill()
        up.process.wait(WAIT)
        until(lambda: not any(alive(p) for p in up.pids("one") + up.pids("two")),
              "both have ended", 3.0)


def test_systemd_is_told_once_everything_is_ready(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify"))
        notify.settimeout(WAIT)
        with Supervised(folder, ("one", STEADY, ""), ("two", STEADY, ""),
                        NOTIFY_SOCKET=str(folder / "notify")) as up:
            assert notify.recv(100) == b"READY=1\n"
            assert (len(up.pids("one")), len(up.pids("two"))) == (1, 1)
            os.kill(up.pids("one")[0], signal.SIGKILL)
            until(lambda: len(up.pids("one")) == 2, "it was started again")
            notify.settimeout(0.2)
            with pytest.raises(TimeoutError):  # no child talks to systemd itself
                notify.recv(100)


# --- the real thing ---------------------------------------------------------------------------


class Up:
    """`ckptmesh up` on a folder."""

    def __init__(self, config: BrokerConfig, folder: Path) -> None:
        self._path = folder / "up.log"
        self._log = self._path.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ckptmesh", "up", *arguments(config),
             "--segment-bytes", "4MiB", "--space-watermark", "0"],
            stderr=self._log, stdin=subprocess.DEVNULL,
        )

    def log(self) -> str:
        return self._path.read_text()

    def child(self, name: str) -> int:
        """The pid of the running child."""
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"
                        ).read_text().split():
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return int(pid)
        raise AssertionError(f"no {name} runs: {self.log()}")

    def __enter__(self) -> Up:
        until(lambda: "ready: clients connect to" in self.log() or self.process.poll() is not None,
              "it is ready", 30.0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(WAIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(WAIT)
        self._log.close()


def answered_by_store(client: Client) -> bool:
    """Whether the store answers (or else the broker does). What a kill swallows is asked again."""
    for number in itertools.count(time.monotonic_ns()):
        client.send(hello(number))
        while sockets.poll([client.socket], 1.0):
            reply = reply_of(client.answer())
            if reply.number == number:
                return reply.error is None
    raise AssertionError("unreachable")


def published_at(client: Client) -> str:
    return str(reply_of(client.ask(hello(time.monotonic_ns()))).result.publish)


@pytest.mark.fault(1)
@pytest.mark.fault(7)
def test_up_serves_and_survives_the_kill_of_either_child(folder: Path) -> None:
    config = settings(folder)
    with Up(config, folder) as up, Client(config.bind) as client:
        until(lambda: answered_by_store(client), "the store answers")
        os.kill(up.child("store"), signal.SIGKILL)
        until(lambda: "the store was ended by SIGKILL" in up.log(), "it is told")
        until(lambda: answered_by_store(client), "the store is back")
        until(lambda: published_at(client) == config.publish, "it learned the address again")
        os.kill(up.child("broker"), signal.SIGKILL)
        until(lambda: "the broker was ended by SIGKILL" in up.log(), "it is told")
        with Client(config.bind) as late:
            until(lambda: answered_by_store(late), "both are back")
        up.process.terminate()
        assert up.process.wait(WAIT) == 0
        assert up.log().rstrip().endswith("ckptmesh up: stopped")


@pytest.mark.fault(9)
def test_a_second_up_on_the_same_directory_ends_with_4_and_the_first_goes_on(
    folder: Path,
) -> None:
    config = settings(folder)
    with Up(config, folder), Client(config.bind) as client:
        until(lambda: answered_by_store(client), "the store answers")
        second = subprocess.run(
            [sys.executable, "-m", "ckptmesh", "up", "--data", config.data,
             "--bind", f"ipc://{folder}/other", "--publish", f"ipc://{folder}/other2"],
            capture_output=True, text=True, timeout=30.0, check=False,
        )
        assert second.returncode == 4, second.stderr
        assert answered_by_store(client)
