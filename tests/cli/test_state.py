"""`ckptmesh state`, against a directory and against a running store."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh import values
from ckptmesh.messages import Transact
from tests.cli.conftest import PROGRAM, CommandLine, environment
from tests.cluster import Cluster


@pytest.fixture(params=["directory", "served"])
def mesh(request: pytest.FixtureRequest) -> CommandLine:
    line = request.getfixturevalue(request.param)
    assert isinstance(line, CommandLine)
    return line


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A pipeline of the test's own: the running store is shared."""
    return f"t{zlib.crc32(request.node.nodeid.encode())}"


def documents(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_value_is_set_and_printed_bare(mesh: CommandLine, key: str) -> None:
    done = mesh("state", "set", key, "42")
    assert done.stdout.startswith(f"{key}@")
    assert done.stderr == "stored: integer, 1 B, version 1\n"
    assert mesh("state", "get", key).stdout == "42\n"
    assert mesh("state", "get", key).stderr == ""


def test_what_set_prints_names_the_version_for_get_and_for_expect(
    mesh: CommandLine, key: str
) -> None:
    first = mesh.out("state", "set", key, "one")
    second = mesh.out("state", "set", key, "two", "--expect", first)
    assert mesh.out("state", "get", first) == "one"
    assert mesh.out("state", "get", second) == "two"
    lost = mesh("state", "set", key, "three", "--expect", first, code=4)
    assert lost.stdout == ""
    assert lost.stderr.startswith("error: ")
    assert "\nhint: " in lost.stderr
    assert mesh.out("state", "get", key) == "two"


def test_expect_0_creates_and_never_overwrites(mesh: CommandLine, key: str) -> None:
    mesh("state", "set", key, "1", "--expect", "0")
    mesh("state", "set", key, "2", "--expect", "0", code=4)
    assert mesh.out("state", "get", key) == "1"


@pytest.mark.parametrize(("args", "stdin", "printed", "kind"), [
    (["-1.5"], None, "-1.5", "float"),
    (["42", "--string"], None, "42", "string"),
    (['{"a": [1, null]}'], None, '{"a": [1, null]}', "map"),
    (['{"$bytes": "aGk="}'], None, '{"$bytes": "aGk="}', "bytes"),
    (["-"], "7\n", "7", "integer"),
    (["-", "--string"], "two\nlines\n", "two\nlines", "string"),
    (["-", "--raw"], b"\x00\xff\n", '{"$bytes": "AP8K"}', "bytes"),
    (["Überschall"], None, "Überschall", "string"),
])
def test_the_type_of_a_value_is_told(
    directory: CommandLine, args: list[str], stdin: str | bytes | None, printed: str, kind: str
) -> None:
    done = directory("state", "set", "k", *args, stdin=stdin)
    assert done.stderr.startswith(f"stored: {kind}, ")
    assert directory.out("state", "get", "k") == printed
    (found,) = documents(directory("state", "get", "k", "--json").stdout)
    assert found["type"] == kind


def test_bytes_go_in_and_out_untouched(directory: CommandLine) -> None:
    data = bytes(range(256))
    directory("state", "set", "k", "-", "--raw", stdin=data)
    assert directory("state", "get", "k", "--raw").stdout_bytes == data
    directory("state", "set", "k", "1")
    directory("state", "get", "k", "--raw", code=2)


def test_what_a_program_stores_is_printed_and_can_be_stored_again(
    directory: CommandLine, tmp_path: Path
) -> None:
    value = {"when": {1, 2}, "raw": b"\0", "pair": (1, "two"), "$set": 1}
    with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
        mesh.commit("k", value)
    printed = directory.out("state", "get", "k")
    directory("state", "set", "copy", printed)
    with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
        assert mesh.value("copy") == value
        assert values.pack(mesh.value("copy")) == values.pack(value)


def test_a_missing_key_is_exit_code_3_unless_there_is_a_default(
    mesh: CommandLine, key: str
) -> None:
    gone = mesh("state", "get", key, code=3)
    assert gone.stdout == ""
    assert gone.stderr.endswith(
        f"error: there is no {key}\nhint: list what there is: ckptmesh state list\n")
    assert mesh("state", "get", key, "--default", "0").stdout == "0\n"
    assert json.loads(mesh.out("state", "get", key, "--default", "0", "--json"))["value"] == 0
    mesh("state", "show", key, code=3)
    mesh("state", "history", key, code=3)
    mesh("state", "delete", key, "--yes", code=3)


def test_time_travel_by_revision(mesh: CommandLine, key: str) -> None:
    first = mesh.out("state", "set", key, "1").rpartition("@")[2]
    mesh("state", "set", key, "2")
    assert mesh.out("state", "get", key, "--at", first) == "1"
    mesh("state", "get", key, "--at", str(int(first) - 1), code=3)
    mesh("state", "get", key, "--at", "999999999", code=1)
    (found,) = documents(mesh("state", "list", key, "--at", first, "--json").stdout)
    assert found["value"] == 1


def test_a_key_that_ends_like_a_version_can_be_named(directory: CommandLine) -> None:
    directory("state", "set", "user@7", "1")
    assert directory.out("state", "get", "user@7@") == "1"
    assert directory.out("state", "get", "user@7@1") == "1"
    directory("state", "get", "user@7", code=1)  # key `user` at revision 7, which is not there yet


def test_list_selects_whole_segments_and_streams_json(mesh: CommandLine, key: str) -> None:
    for name in (f"{key}/a", f"{key}/b", f"{key}2"):
        mesh("state", "set", name, json.dumps({"name": name}), "--position", "5")
    found = documents(mesh("state", "list", key, "--json").stdout)
    assert [each["key"] for each in found] == [f"{key}/a", f"{key}/b"]
    assert {each["position"] for each in found} == {5}
    assert all(str(each["time"]).endswith("Z") for each in found)
    table = mesh("state", "list", key).stdout.splitlines()
    assert table[0].split()[:4] == ["KEY", "REVISION", "VERSION", "SIZE"]
    assert len(table) == 3
    assert len(mesh("state", "list", key, "--limit", "1").stdout.splitlines()) == 2


def test_an_empty_list_is_empty_on_stdout(mesh: CommandLine, key: str) -> None:
    done = mesh("state", "list", key)
    assert done.stdout == ""
    assert done.stderr.endswith(f"no keys under {key}\n")
    assert mesh("state", "list", key, "--json").stdout == ""


def test_history_is_newest_first(mesh: CommandLine, key: str) -> None:
    for number in range(3):
        mesh("state", "set", key, str(number))
    found = documents(mesh("state", "history", key, "--json").stdout)
    assert [each["value"] for each in found] == [2, 1, 0]
    assert [each["version"] for each in found] == [3, 2, 1]
    assert len(documents(mesh("state", "history", key, "--limit", "2", "--json").stdout)) == 2
    assert mesh("state", "history", key).stdout.splitlines()[0].split()[0] == "REVISION"


def test_show_tells_all_that_is_known(mesh: CommandLine, key: str) -> None:
    mesh("state", "set", key, '{"a": 1}', "--ttl", "1h", "--position", "7")
    text = mesh("state", "show", key).stdout
    for word in ("value", '"a": 1', "map, ", "position  7", "expires", "in 1h"):
        assert word in text
    (found,) = documents(mesh("state", "show", key, "--json").stdout)
    assert found["value"] == {"a": 1}
    assert found["position"] == 7
    assert found["expires_at"] is not None


def test_delete_asks_and_tells_what_it_removed(mesh: CommandLine, key: str) -> None:
    named = mesh.out("state", "set", key, "42")
    unasked = mesh("state", "delete", key, code=2)
    assert "add --yes" in unasked.stderr
    planned = mesh("state", "delete", key, "--dry-run")
    assert planned.stdout == f"would delete {named}\n"
    mesh("state", "delete", key, "--yes", "--expect", "1000000", code=4)
    assert mesh.out("state", "get", key) == "42"
    done = mesh("state", "delete", key, "--yes", "--expect", named)
    assert done.stdout == f"{named}\n"
    assert done.stderr == f"deleted {named} (integer: 42)\n"
    mesh("state", "get", key, code=3)


@pytest.mark.parametrize(("args", "says"), [
    (["state", "set", "a//b", "1"], "empty segment"),
    (["state", "set", "_a", "1"], "reserved"),
    (["state", "set", "k", '{"$bytes": 1}'], "does not hold a bytes"),
    (["state", "set", "k", "18446744073709551616"], "64 bits"),
    (["state", "set", "k", "1", "--ttl", "0"], "no time at all"),
    (["state", "set", "k", "1", "--ttl", "soon"], "not a duration"),
    (["state", "set", "k", "1", "--expect", "x"], "not a revision"),
    (["state", "set", "k", "1", "--position", "x"], "not a valid integer"),
    (["state", "set", "k"], "missing argument 'value'"),
    (["state", "get", "k", "--at", "2024-05-01T10:30"], "no time zone"),
    (["state", "get", "k", "--url", "http://x"], "no URL that ckptmesh knows"),
    (["state", "sett", "k"], "did you mean"),
    (["stats"], "did you mean"),
    (["state", "get", "k", "--jason"], "did you mean"),
    (["--url", "file:./x", "state", "get", "k"], "options go after the command"),
    (["watch", "--since", "soon"], "no place to start from"),
])
def test_a_usage_error_is_exit_code_2_and_says_why(
    directory: CommandLine, args: list[str], says: str
) -> None:
    done = directory(*args, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert says.lower() in done.stderr.lower()


def test_nobody_there_is_exit_code_5_and_says_what_to_do() -> None:
    done = CommandLine("tcp://127.0.0.1:1")("state", "get", "k", "--timeout", "0.3", code=5)
    assert done.stderr == (
        "error: no broker at tcp://127.0.0.1:1\n"
        "hint: run `ckptmesh up`, or --url file:./state\n")


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Cluster]:
    """A store that has been reached once and is stopped now (SIGSTOP)."""
    with Cluster(tmp_path) as cluster:
        CommandLine(cluster.url)("state", "set", "k", "0")
        assert cluster.store is not None
        cluster.store.send_signal(signal.SIGSTOP)
        yield cluster


def test_nothing_is_sent_to_a_store_that_does_not_answer(stopped: Cluster) -> None:
    done = CommandLine(stopped.url)("state", "set", "k", "1", "--timeout", "0.5", code=5)
    assert done.stdout == ""
    assert "no store answers" in done.stderr


def test_a_commit_without_an_answer_is_asked_about_until_it_is_known(stopped: Cluster) -> None:
    # The commit is on its way when the store stops: the command line asks what became of it.
    assert stopped.store is not None
    url = stopped.url
    script = ("import os, signal\n"
              "from ckptmesh.client import Client\n"
              "from ckptmesh.cli import program\n"
              "commit = Client.commit\n"
              "def late(self, *args, **options):\n"
              "    commit(self, 'other', 0)  # opens the session\n"
              f"    os.kill({stopped.store.pid}, signal.SIGSTOP)\n"
              "    return commit(self, *args, **options)\n"
              "Client.commit = late\n"
              "program(['state', 'set', 'k', '1', '--timeout', '2'])\n")
    stopped.store.send_signal(signal.SIGCONT)
    child = subprocess.Popen([sys.executable, "-c", script], env=environment(CKPTMESH_URL=url),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    told = child.stderr.readline()
    stopped.store.send_signal(signal.SIGCONT)
    out, err = child.communicate(timeout=30)
    assert "asking what became of it" in told
    found = documents(CommandLine(url)("state", "history", "k", "--json").stdout)
    assert (child.returncode, out) == (0, f"k@{found[0]['revision']}\n"), err
    assert [each["value"] for each in found] == [1, 0], "once"


def test_a_directory_in_use_is_exit_code_4(directory: CommandLine, tmp_path: Path) -> None:
    script = ("import sys, ckptmesh; m = ckptmesh.connect(sys.argv[1]); m.commit('k', 1); "
              "print('held', flush=True); sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", script, f"file:{tmp_path}/state"], env=environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = directory("state", "get", "k", "--timeout", "0.2", code=4)
        assert f"process {holder.pid}" in done.stderr
        assert "ckptmesh up --data" in done.stderr
        holder.communicate("")
    assert directory.out("state", "get", "k") == "1"


def test_a_damaged_directory_is_exit_code_6(directory: CommandLine, tmp_path: Path) -> None:
    for number in range(3):
        directory("state", "set", "k", str(number))
    segment = sorted((tmp_path / "state" / "wal").glob("*.seg"))[0]
    data = bytearray(segment.read_bytes())
    data[600] ^= 1
    segment.write_bytes(data)
    done = directory("state", "get", "k", code=6)
    assert segment.name in done.stderr
    assert "ckptmesh wal verify" in done.stderr


def test_a_directory_is_held_only_for_the_operation(directory: CommandLine) -> None:
    url = directory.environ["CKPTMESH_URL"]
    command = [*PROGRAM, "state", "set"]
    at_once = [subprocess.Popen([*command, f"k/{number}", "1"],
                                env=environment(CKPTMESH_URL=url), stderr=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, text=True) for number in range(4)]
    printed = [child.communicate(timeout=60)[0] for child in at_once]
    assert [child.returncode for child in at_once] == [0] * 4
    assert sorted(line.partition("@")[2] for line in printed) == [f"{n}\n" for n in range(1, 5)]


@pytest.mark.parametrize(("command", "code"), [
    (["state", "get", "x"], 3), (["state", "list"], 0), (["state", "history", "x"], 3),
    (["state", "show", "x"], 3), (["state", "get", "x", "--default", "0"], 0),
])
def test_reading_where_there_is_no_store_makes_none(
        tmp_path: Path, command: list[str], code: int) -> None:
    typo = tmp_path / "typo"
    done = subprocess.run([sys.executable, "-m", "ckptmesh", *command, "--url", f"file:{typo}"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert "there is no store in" in done.stderr
    assert not typo.exists()


def test_the_pipelines_at_which_somebody_is_at_work_are_listed(served: CommandLine,
                                                               key: str) -> None:
    with ckptmesh.connect(served.environ["CKPTMESH_URL"]) as client:
        client.commit(key, 1)
        assert "nobody is at work" in served("state", "list", key, "--active").stderr
        with client.lock(f"{key}/eu", ttl=30):
            assert served.out("state", "list", key, "--active").split() == [
                "PIPELINE", "WORKERS", "LOCKS", key, "0", "1"]
            assert json.loads(served.out("state", "list", key, "--active", "--json")) == {
                "pipeline": key, "workers": 0, "locks": 1}


def test_one_value_that_nobody_can_read_hides_no_other(served: CommandLine, key: str) -> None:
    with ckptmesh.connect(served.environ["CKPTMESH_URL"]) as client:
        client.commit(f"{key}/a", 1)
        good = client.commit(f"{key}/b", 2)
        client.commit(f"{key}/c", 3)
        mutation = client._api.put(f"{key}/b", 0)._replace(value=b"\xc1")
        client._run(_asking(Transact((), (mutation,))), None)
    listed = documents(served.out("state", "list", key, "--json"))
    assert [each["value"] for each in listed] == [1, {"$packed": "wQ=="}, 3]
    assert [each["type"] for each in listed] == ["integer", "unreadable", "integer"]
    assert [each["size"] for each in listed] == [1, 1, 1]
    assert len(served.out("state", "list", key).splitlines()) == 4
    history = documents(served.out("state", "history", f"{key}/b", "--json"))
    assert [each["value"] for each in history] == [{"$packed": "wQ=="}, 2]
    assert history[1]["revision"] == good.revision
    served("run", "list")
    served("state", "delete", f"{key}/b", "--yes", code=6)
    with ckptmesh.connect(served.environ["CKPTMESH_URL"]) as client:
        client.delete(f"{key}/b")


def _asking(command: Any) -> Any:
    return (yield command)
