"""`ckptmesh watch`, as real processes: what scripts see, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ckptmesh
from tests.cli.conftest import PROGRAM, CommandLine, environment, process
from tests.cluster import Cluster


@contextmanager
def watching(url: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A watch that has begun; it is killed at the end if it still runs."""
    child = subprocess.Popen(
        [*PROGRAM, "watch", *args], env=environment(CKPTMESH_URL=url), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stderr is not None
        assert child.stderr.readline().startswith("watching ")
        yield child
    finally:
        child.kill()
        child.communicate()


def test_every_commit_is_printed_as_it_happens(cluster: Cluster, served: CommandLine) -> None:
    with watching(cluster.url, "watched") as child:
        named = served.out("state", "set", "watched", "42")
        served("state", "set", "unwatched", "1")
        served("state", "set", "watched/b", "two\nlines")
        served("state", "delete", "watched", "--yes")
        assert child.stdout is not None
        lines = [child.stdout.readline().split(maxsplit=4) for _ in range(3)]
    revision = int(named.rpartition("@")[2])
    assert [line[1:3] for line in lines] == [
        [str(revision), "put"], [str(revision + 2), "put"], [str(revision + 3), "delete"]]
    assert lines[0][3:] == ["watched", "42\n"]
    assert lines[1][3:] == ["watched/b", '"two\\nlines"\n'], "one event, one line"
    assert all(line[0].endswith("Z") for line in lines)


def test_a_watch_goes_on_where_a_script_stopped(cluster: Cluster, served: CommandLine) -> None:
    before = served.out("state", "set", "resumed", "0")
    for number in range(1, 6):
        served("state", "set", "resumed", str(number))
    seen = []
    since = before
    for count in ("2", "3"):
        done = process("watch", "resumed", "--since", since, "--count", count, "--json",
                       CKPTMESH_URL=cluster.url)
        assert done.returncode == 0
        events = [json.loads(line) for line in done.stdout.splitlines()]
        seen += [event["value"] for event in events]
        since = events[-1]["resume"]
    assert seen == [1, 2, 3, 4, 5]


def test_a_watch_goes_on_over_a_restart_of_the_store(cluster: Cluster, served: CommandLine) -> None:
    with watching(cluster.url, "restarted", "--count", "2", "--json") as child:
        served("state", "set", "restarted", "1")
        cluster.kill(cluster.store)
        cluster.start_store()
        served("state", "set", "restarted", "2")
        out, _ = child.communicate(timeout=60)
        assert [json.loads(line)["value"] for line in out.splitlines()] == [1, 2]
        assert child.returncode == 0


def test_a_store_that_is_away_is_told_once(tmp_path: Path) -> None:
    with Cluster(tmp_path) as own, watching(own.url, "away", "--count", "1", "--json") as child:
        own.kill(own.store)
        assert child.stderr is not None
        assert child.stderr.readline().startswith("the store is away; waiting")
        own.start_store()
        CommandLine(own.url)("state", "set", "away", "1")
        out, err = child.communicate(timeout=60)
    assert json.loads(out)["value"] == 1
    assert err in ("", "the store is back\n")
    assert child.returncode == 0


def test_an_expiry_is_an_event(cluster: Cluster, served: CommandLine) -> None:
    with watching(cluster.url, "expiring", "--count", "2", "--json") as child:
        served("state", "set", "expiring", "1", "--ttl", "200ms")
        out, _ = child.communicate(timeout=60)
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert kinds == ["put", "expire"]


def test_nothing_for_too_long_is_exit_code_5(cluster: Cluster) -> None:
    done = process("watch", "quiet", "--idle", "0.2s", CKPTMESH_URL=cluster.url)
    assert done.returncode == 5
    assert done.stdout == ""
    assert "nothing came for 0.2 s" in done.stderr


def test_ctrl_c_is_quiet_and_130(cluster: Cluster, served: CommandLine) -> None:
    with watching(cluster.url, "interrupted") as child:
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, "", "")


def test_a_reader_that_leaves_ends_it_quietly(cluster: Cluster, served: CommandLine) -> None:
    with watching(cluster.url, "piped") as child:
        assert child.stdout is not None
        child.stdout.close()
        for number in range(50):
            served("state", "set", "piped", str(number))
            if child.poll() is not None:
                break
        assert child.wait(30) == 141
        assert child.stderr is not None
        assert child.stderr.read() == ""


def test_a_place_that_is_gone_tells_the_oldest_that_is_left(tmp_path_factory: pytest.TempPathFactory
                                                            ) -> None:
    with Cluster(tmp_path_factory.mktemp("short"), "--history-revisions", "5") as short:
        line = CommandLine(short.url)
        for number in range(40):
            line("state", "set", "k", str(number))
        done = process("watch", "k", "--since", "1", CKPTMESH_URL=short.url)
        assert done.returncode == 1
        hint = done.stderr.splitlines()[-1]
        command, resume = hint.partition(": ckptmesh ")[2].rsplit(" ", 1)
        assert command == "watch k --since"
        left = 40 - int(resume)
        again = process(*command.split(), resume, "--count", str(left), "--json",
                        CKPTMESH_URL=short.url)
        assert [json.loads(each)["value"] for each in again.stdout.splitlines()] \
            == list(range(40 - left, 40))


def test_a_directory_is_watched_without_being_held(directory: CommandLine) -> None:
    url = directory.environ["CKPTMESH_URL"]
    directory("state", "set", "orders", "0")
    with watching(url, "orders", "--json") as child:
        for number in range(1, 4):
            directory("state", "set", "orders", str(number))
        directory("state", "set", "other", "1")
        directory("state", "delete", "orders", "--yes")
        assert child.stdout is not None
        events = [json.loads(child.stdout.readline()) for _ in range(4)]
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert [event["kind"] for event in events] == ["put", "put", "put", "delete"]
    assert [event.get("value") for event in events] == [1, 2, 3, None]
    assert (child.returncode, out, err) == (130, "", "")


def test_a_directory_in_use_is_waited_for(directory: CommandLine) -> None:
    import ckptmesh

    url = directory.environ["CKPTMESH_URL"]
    with ckptmesh.connect(url) as mesh:
        mesh.commit("k", 1)
        child = subprocess.Popen(
            [*PROGRAM, "watch", "--since", "0", "--count", "1", "--json", "--timeout", "0.1"],
            env=environment(CKPTMESH_URL=url), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        assert child.stderr is not None
        assert "in use by process" in child.stderr.readline()
    out, _ = child.communicate(timeout=30)
    assert json.loads(out)["value"] == 1
    assert child.returncode == 0


def test_a_watch_of_nobody_there_is_exit_code_5() -> None:
    done = process("watch", "--timeout", "0.3", CKPTMESH_URL="tcp://127.0.0.1:1")
    assert done.returncode == 5
    assert done.stdout == ""


def test_stdout_that_cannot_be_written_is_an_error(directory: CommandLine) -> None:
    directory("state", "set", "k", "1")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "state", "get", "k"], check=False,
            env=environment(**directory.environ) | {"PYTHONUNBUFFERED": ""},
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 7
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_name_goes_on_where_it_stopped(cluster: Cluster, served: CommandLine) -> None:
    with watching(cluster.url, "named", "--name", "billing", "--count", "2", "--json") as child:
        for number in range(1, 6):
            served("state", "set", "named/a", str(number))
        out, _ = child.communicate(timeout=60)
    assert [json.loads(line)["value"] for line in out.splitlines()] == [1, 2]
    (line,) = served.out("watch", "--list", "named", "--json").splitlines()
    told = json.loads(line)
    assert (told["name"], told["prefix"], told["holder"]) == ("billing", "named", None)
    assert told["behind"] >= 3
    named = ("watch", "named", "--name", "billing")
    assert served.out(*named, "--count", "3", "--json").count("\n") == 2
    assert "no named watch" in served("watch", "--list", "unknown").stderr
    served(*named, "--drop", "--yes")
    served(*named, "--drop", "--yes", code=3)
    served("watch", "named", "--drop", code=2)


def test_a_name_in_a_directory_holds_it_for_moments_only(directory: CommandLine) -> None:
    directory("watch", "orders", "--name", "billing", "--idle", "1ms", code=5)
    for number in range(3):
        directory("state", "set", "orders/a", str(number))
    for expected in ("0", "1", "2"):
        line = directory.out("watch", "orders", "--name", "billing", "--count", "1")
        assert line.rpartition(" ")[2] == expected
    assert "billing" in directory.out("watch", "--list")


def test_lag_is_shown_in_records_and_time(directory: CommandLine) -> None:
    with ckptmesh.connect(directory.environ["CKPTMESH_URL"]) as mesh:
        mesh.commit("orders/a", 1, position=7_000, head=10_000)
        mesh.commit("orders/b", 1, position=7)
    table = directory.out("state", "lag", "orders").splitlines()
    assert table[0].split() == ["KEY", "POSITION", "HEAD", "RECORDS", "AGE"]
    assert table[1].split()[:4] == ["orders/a", "7,000", "10,000", "3,000"]
    first, second = map(json.loads, directory.out("state", "lag", "--json").splitlines())
    assert (first["records"], second["records"], second["head"]) == (3_000, None, None)
    assert "nothing under x has a position" in directory("state", "lag", "x").stderr
