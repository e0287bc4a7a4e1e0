"""Servers of the bench: started, waited for, ended whatever happens; with servers of our own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.servers import SERVERS, NotStarted, Server, started
from tests.integration.test_supervisor import alive

LISTEN = ("import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
          "[s.accept() for _ in iter(int, 1)]")


class Listening(Server):
    name, title, library = "listening", "Listening", "socket"
    code = LISTEN

    def command(self, port: int, other: int) -> list[str]:
        return [sys.executable, "-c", self.code, str(port)]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


class Failing(Listening):
    name, title = "failing", "Failing"
    code = "raise SystemExit('no room for me')"


class Deaf(Listening):
    """Does not hear SIGTERM."""

    name, title = "deaf", "Deaf"
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + LISTEN


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Listening, Failing, Deaf):
        monkeypatch.setitem(SERVERS, each.name, each)


def interrupted(folder: Path) -> None:
    """A run that a Ctrl-C ends while its server serves; raises that and the server's pid."""
    with started(["listening"], folder) as servers:
        server = servers["listening"]
        assert isinstance(server, Listening)
        assert server.where.startswith("127.0.0.1:")
        assert alive(server.pid)
        raise KeyboardInterrupt(server.pid)


def test_a_server_is_there_in_the_block_and_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted(tmp_path)
    assert not alive(caught.value.args[0])


def test_one_that_does_not_start_is_told_with_its_last_words_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = []
    begin = Listening.prepare

    def prepare(self: Listening, port: int) -> None:
        pids.append(self.pid)
        begin(self, port)

    monkeypatch.setattr(Listening, "prepare", prepare)
    with (
        pytest.raises(NotStarted, match="Failing did not start: no room for me"),
        started(["listening", "failing"], tmp_path),
    ):
        pass
    assert len(pids) == 1
    assert not alive(pids[0])


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.servers.STOP", 0.2)
    with started(["deaf"], tmp_path) as servers:
        server = servers["deaf"]
        assert isinstance(server, Deaf)
        pid = server.pid
    assert not alive(pid)
