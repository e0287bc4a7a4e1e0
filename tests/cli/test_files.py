"""`compact`, `snapshot` and `wal`: care for the files, and what damage is called."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import google_crc32c
import pytest

import ckptmesh
from ckptmesh import limits
from ckptmesh.disk import RealDisk
from ckptmesh.facts import LossSuspected
from ckptmesh.wal import EMBEDDED, Wal
from tests.cli.conftest import CommandLine, process
from tests.cluster import Cluster


@pytest.fixture
def state(directory: CommandLine, tmp_path: Path) -> Path:
    """A directory with ten revisions of `k`, in a segment each."""
    for number in range(1, 11):
        directory("state", "set", "k", str(number), "--position", str(number))
    return tmp_path / "state"


def segments(state: Path) -> list[Path]:
    return sorted((state / "wal").glob("*.seg"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def kept_values(line: CommandLine) -> list[int]:
    text = line("state", "history", "k", "--json").stdout
    return [json.loads(each)["value"] for each in text.splitlines()]


# --- compaction and snapshots -----------------------------------------------------------------


def test_compact_tells_what_it_kept_and_why(state: Path, directory: CommandLine) -> None:
    text = directory("compact").stdout
    for word in ("snapshot ", "size ", "removed ", "restorable ", "KEPT", "WHY",
                 "recovery begins with the newest snapshot"):
        assert word in text
    assert directory.out("state", "get", "k") == "10"


def test_compact_over_the_wire(cluster: Cluster, served: CommandLine) -> None:
    named = served.out("state", "set", "compacted", "1")
    report = json.loads(served("compact", "--json").stdout)
    assert report["made"] is True
    assert report["revision"] >= int(named.rpartition("@")[2])
    assert (Path(cluster.data) / report["snapshot"]).exists()
    assert report["bytes_after"] > 0
    assert report["oldest_time"].endswith("Z")
    assert served.out("state", "get", "compacted") == "1"


@pytest.mark.parametrize("command", [["compact"], ["wal", "compact", "DIR"]])
def test_dropping_old_cuts_is_asked(
    state: Path, directory: CommandLine, command: list[str]
) -> None:
    command = [str(state) if word == "DIR" else word for word in command]
    before = len(segments(state))
    assert "add --yes" in directory(*command, "--retain", "0", code=2).stderr
    assert len(segments(state)) == before
    for _ in range(3):  # the last two snapshots stay, so that one of them may be damaged
        directory("state", "set", "k", "11")
        directory(*command, "--retain", "0", "--yes")
    assert len(segments(state)) < before
    assert directory.out("state", "get", "k") == "11"


def test_snapshots_are_made_listed_and_verified(state: Path, directory: CommandLine) -> None:
    assert directory("snapshot", "list", str(state)).stderr.startswith("no snapshots yet")
    file = directory.out("snapshot", "create")
    assert (state / file).exists()
    (found,) = map(json.loads, directory("snapshot", "list", str(state), "--json"
                                         ).stdout.splitlines())
    assert (found["file"], found["revision"]) == (file, 10)
    (verified,) = map(json.loads, directory("snapshot", "verify", str(state), "--json"
                                            ).stdout.splitlines())
    assert verified["verdict"] == "OK"
    directory("snapshot", "verify", str(state / file))
    flip(state / file, 200)
    done = directory("snapshot", "verify", str(state), code=6)
    assert "CORRUPT" in done.stdout
    assert file in done.stderr


def test_a_snapshot_of_a_later_release_is_no_damage_and_no_success(
    state: Path, directory: CommandLine
) -> None:
    path = state / directory.out("snapshot", "create")
    data = bytearray(path.read_bytes())
    data[8:12] = (99).to_bytes(4, "little")
    data[124:128] = google_crc32c.value(bytes(data[:124])).to_bytes(4, "little")
    path.write_bytes(data)
    done = directory("snapshot", "verify", str(path), code=1)
    assert "UNSUPPORTED" in done.stdout
    assert "format version 99" in done.stderr


@pytest.mark.parametrize("at", ["4", "time", None])
def test_a_restored_store_holds_what_was_then(
    state: Path, directory: CommandLine, tmp_path: Path, at: str | None
) -> None:
    moment = json.loads(directory("state", "show", "k@4", "--json").stdout)["time"]
    args = [] if at is None else ["--at", moment if at == "time" else at]
    new = str(tmp_path / "restored")
    report = json.loads(directory("snapshot", "restore", str(state), new, *args, "--json").stdout)
    expected = 10 if at is None else 4
    assert report["revision"] == expected
    restored = CommandLine(f"file:{new}")
    assert restored.out("state", "get", "k") == str(expected)
    assert restored("state", "set", "k", "new").stdout == f"k@{expected + 1}\n"
    assert directory.out("state", "get", "k") == "10", "the old one is as it was"


def test_a_restore_refuses_what_it_cannot_do(
    state: Path, directory: CommandLine, tmp_path: Path
) -> None:
    directory("snapshot", "restore", str(state), str(tmp_path / "new"), "--at", "99", code=1)
    ahead = datetime.now(UTC).replace(year=2999).isoformat()
    directory("snapshot", "restore", str(state), str(tmp_path / "new"), "--at", ahead, code=1)
    directory("snapshot", "restore", str(state), str(state), code=2)
    directory("snapshot", "restore", str(tmp_path / "nowhere"), str(tmp_path / "new"), code=2)
    (tmp_path / "empty").mkdir()
    directory("snapshot", "restore", str(tmp_path / "empty"), str(tmp_path / "new"), code=2)
    assert not (tmp_path / "new").exists()


# --- verify -----------------------------------------------------------------------------------


def test_a_whole_log_is_clean(state: Path, directory: CommandLine) -> None:
    done = directory("wal", "verify", str(state))
    assert done.stdout.splitlines()[0].split() == ["verdict", "CLEAN"]
    found = json.loads(directory("wal", "verify", str(state), "--json").stdout)
    assert (found["verdict"], found["revision"], found["serves"]) == ("CLEAN", 10, True)
    assert {each["verdict"] for each in found["files"]} == {"CLEAN"}


def test_a_torn_tail_is_told_and_is_no_failure(directory: CommandLine, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        line = CommandLine(cluster.url)
        line("state", "set", "k", "1")
        cluster.kill(cluster.store)
    segment = segments(cluster.data)[-1]
    data = bytearray(segment.read_bytes())
    end = len(bytes(data).rstrip(b"\0"))
    start = (end + limits.SECTOR - 1) // limits.SECTOR * limits.SECTOR
    data[start:start + 100] = b"CkFr" + b"\x55" * 96  # a frame of which only this much was written
    segment.write_bytes(data)
    done = directory("wal", "verify", str(cluster.data))
    assert done.stdout.splitlines()[0].split() == ["verdict", "TORN"]
    assert "torn" in done.stdout
    assert CommandLine(f"file:{cluster.data}").out("state", "get", "k") == "1"


def test_damage_is_told_with_file_offset_and_loss(state: Path, directory: CommandLine) -> None:
    bad = segments(state)[3]
    flip(bad, 1_600)
    done = directory("wal", "verify", str(state), code=6)
    assert done.stdout.splitlines()[0].split() == ["verdict", "CORRUPT"]
    assert f"{bad.name} is damaged at byte " in done.stderr
    assert "lost: revision 4" in done.stderr
    assert f"ckptmesh wal repair {state} NEW_DIRECTORY" in done.stderr
    found = json.loads(directory("wal", "verify", str(state), "--json", code=6).stdout)
    assert found["serves"] is False
    (damaged,) = [each for each in found["files"] if each["verdict"] == "CORRUPT"]
    assert (damaged["first_lost"], damaged["last_lost"]) == (4, 4)


def test_repair_makes_a_new_store_of_what_is_left(
    state: Path, directory: CommandLine, tmp_path: Path
) -> None:
    flip(segments(state)[6], 1_600)
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    new = tmp_path / "repaired"
    report = json.loads(directory("wal", "repair", str(state), str(new), "--json").stdout)
    assert report["revision"] == 6
    assert report["first_lost"] == 7
    assert report["verdict"] == "CLEAN"
    assert CommandLine(f"file:{new}").out("state", "get", "k") == "6"
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before
    directory("wal", "repair", str(state), str(new), code=2)
    assert "lossy" in CommandLine(f"file:{new}")("status").stdout


def test_a_directory_without_a_store_is_a_usage_error(
    directory: CommandLine, tmp_path: Path
) -> None:
    for command in (["wal", "verify"], ["wal", "dump"], ["snapshot", "list"]):
        directory(*command, str(tmp_path), code=2)
        directory(*command, str(tmp_path / "nowhere"), code=2)


# --- dump -------------------------------------------------------------------------------------


def test_dump_prints_every_record(state: Path, directory: CommandLine) -> None:
    rows = [json.loads(line) for line in
            directory("wal", "dump", str(state), "--json", "--values").stdout.splitlines()]
    records = [record for row in rows for record in row.get("records", ())]
    writes = [record for record in records if record["record"] == "Transaction"]
    assert [record["revision"] for record in writes] == list(range(1, 11))
    assert [record["writes"][0]["value"] for record in writes] == list(range(1, 11))
    assert all(record["time"].endswith("Z") for record in writes)
    text = directory("wal", "dump", str(state)).stdout
    assert text.count("Transaction revision=") == 10
    assert '"value":' not in text, "values are shown only when asked for"
    later = directory("wal", "dump", str(state), "--after", "8").stdout
    assert later.count("Transaction revision=") == 2


def test_dump_tells_damage_and_goes_on(state: Path, directory: CommandLine) -> None:
    flip(segments(state)[3], 1_600)
    text = directory("wal", "dump", str(state)).stdout
    assert "  damage " in text
    assert text.count("Transaction revision=") == 9


# --- many commits in one request ------------------------------------------------------------------


@pytest.fixture
def many(directory: CommandLine, tmp_path: Path) -> Path:
    """A directory with two requests of twelve commits each, and one alone between them."""
    with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
        mesh.commit_many([(f"k{n % 5}", n) for n in range(12)])
        mesh.commit("alone", 0)
        mesh.commit_many([*((f"k{n % 5}", n) for n in range(11)), ("large", "x" * 2_000)])
    return tmp_path / "state"


def test_many_commits_are_a_record_each_in_the_log(many: Path, directory: CommandLine) -> None:
    assert json.loads(directory("wal", "verify", str(many), "--json").stdout)["verdict"] == "CLEAN"
    rows = [json.loads(line) for line in
            directory("wal", "dump", str(many), "--json", "--values").stdout.splitlines()]
    found = [record for row in rows for record in row.get("records", ())
             if record["record"] == "Transaction"]
    assert [record["revision"] for record in found] == [*range(1, 26)]
    assert [len(record["writes"]) for record in found] == [1] * 25
    assert [record["writes"][0]["value"] for record in found[:13]] == [*range(12), 0]
    assert len({(record["session"], record["number"]) for record in found}) == 3
    frames = [[each["revision"] for each in row["records"] if each["record"] == "Transaction"]
              for row in rows if row.get("records")]
    assert [*range(1, 13)] in frames, "one frame: all of them or none"


@pytest.mark.parametrize(("after", "shown"), [(7, 25), (11, 25), (12, 13), (13, 12), (24, 12)])
def test_a_dump_after_a_revision_of_many_shows_all_of_them(
        many: Path, directory: CommandLine, after: int, shown: int) -> None:
    later = directory("wal", "dump", str(many), "--after", str(after)).stdout
    assert later.count("Transaction revision=") == shown, "frames are whole"


@pytest.mark.parametrize("at", [1, 5, 11, 12, 13, 20, 24, 25])
def test_a_store_is_restored_to_any_revision_of_many(
        many: Path, directory: CommandLine, tmp_path: Path, at: int) -> None:
    new = str(tmp_path / "restored")
    directory("snapshot", "restore", str(many), new, "--at", str(at))
    with ckptmesh.connect(f"file:{tmp_path}/state") as old, ckptmesh.connect(f"file:{new}") as mesh:
        assert [(each.key, each.value, each.revision, each.version) for each in mesh.list()] == [
            (each.key, each.value, each.revision, each.version) for each in old.list(at=at)]
        receipts = mesh.commit_many([("k0", n) for n in range(9)])
        assert [each.revision for each in receipts] == [*range(at + 1, at + 10)]


# --- a suspected loss -------------------------------------------------------------------------


def suspect(state: Path) -> None:
    """Leave a log in which a client has seen more than there is."""
    wal = Wal.open(str(state), EMBEDDED, RealDisk())
    wal.begin()
    wal.ensure_room(4_096)
    wal.append([LossSuspected(wal.state.epoch, 99)], wal.state.revision + 1)
    wal.sync()
    wal.close()


def test_a_suspected_loss_is_accepted_only_when_it_is_said(
    state: Path, directory: CommandLine
) -> None:
    assert "nothing to accept" in directory("wal", "accept-loss", str(state)).stdout
    suspect(state)
    directory("state", "set", "k", "11", code=6)
    assert directory("status", code=6).stdout.splitlines()[0].split() == ["verdict", "read-only"]
    told = directory("wal", "accept-loss", str(state), "--dry-run")
    assert "revision 99 of epoch" in told.stderr
    assert told.stdout == "it would be accepted\n"
    directory("wal", "accept-loss", str(state), code=2)
    directory("state", "set", "k", "11", code=6)
    directory("wal", "accept-loss", str(state), "--yes")
    directory("state", "set", "k", "11")


def test_a_suspected_loss_is_accepted_in_a_running_store(
    state: Path, tmp_path: Path
) -> None:
    suspect(state)
    cluster = Cluster(tmp_path)
    cluster.data = state
    with cluster:
        line = CommandLine(cluster.url)
        line("state", "set", "k", "11", code=6)
        busy = line("wal", "accept-loss", str(state), "--yes", code=4)
        assert "--url" in busy.stderr
        report = json.loads(line("wal", "accept-loss", "--yes", "--json").stdout)
        assert report["accepted"] is True
        line("state", "set", "k", "11")


# --- completion -------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(shell: str) -> None:
    done = process("completion", shell)
    assert done.returncode == 0
    assert f"_CKPTMESH_COMPLETE={shell}_complete" in done.stdout


def complete(line: str, url: str = "") -> list[str]:
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    done = process(CKPTMESH_URL=url, _CKPTMESH_COMPLETE="bash_complete", COMP_WORDS=line,
                   COMP_CWORD=str(len(words) - 1))
    assert done.stderr == ""
    return [each.partition(",")[2] for each in done.stdout.splitlines() if each]


def test_commands_options_and_keys_are_completed(state: Path, directory: CommandLine) -> None:
    url = directory.environ["CKPTMESH_URL"]
    directory("state", "set", "orders/a", "1")
    directory("state", "set", "orders/b", "1")
    assert complete("ckptmesh sta") == ["state", "status"]
    assert complete("ckptmesh state ge") == ["get"]
    assert "--default" in complete("ckptmesh state get --d")
    assert complete("ckptmesh state get or", url) == ["orders/a", "orders/b"]
    assert complete("ckptmesh state get orders/b", url) == ["orders/b"]
    assert complete("ckptmesh state get or", "tcp://127.0.0.1:1") == []


# --- savepoints -------------------------------------------------------------------------------


def test_a_savepoint_is_pinned_listed_read_restored_and_dropped(
    state: Path, directory: CommandLine, tmp_path: Path
) -> None:
    assert directory("snapshot", "pins").stderr.startswith("no savepoints")
    assert directory.out("snapshot", "pin", "before", "--reason", "a new key") == (
        "before is revision 10")
    made = json.loads(directory("snapshot", "pin", "early", "--revision", "4", "--json").stdout)
    assert (made["name"], made["revision"], made["reason"]) == ("early", 4, "")
    directory("snapshot", "pin", "same", "--at", "early")
    assert directory("state", "set", "k", "11").exit_code == 0
    found = [json.loads(line) for line in directory("snapshot", "pins", "--json"
                                                    ).stdout.splitlines()]
    assert [(each["name"], each["revision"]) for each in found] == [
        ("early", 4), ("same", 4), ("before", 10)]
    assert directory.out("state", "get", "k", "--at", "early") == "4"
    assert directory.out("state", "get", "k", "--at", "before") == "10"
    listed = [json.loads(line) for line in directory("snapshot", "list", str(state), "--json"
                                                     ).stdout.splitlines()]
    assert {name: each["revision"] for each in listed for name in each["savepoints"]} == {
        "early": 4, "same": 4, "before": 10}
    new = str(tmp_path / "restored")
    directory("snapshot", "restore", str(state), new, "--at", "before")
    assert CommandLine(f"file:{new}").out("state", "get", "k") == "10"
    assert directory.out("snapshot", "unpin", "same") == "same is dropped"
    assert "same" not in directory.out("snapshot", "pins")


def test_what_a_savepoint_cannot_be_has_its_exit_code(
    state: Path, directory: CommandLine, tmp_path: Path
) -> None:
    directory("snapshot", "pin", "taken")
    directory("snapshot", "pin", "taken", code=4)
    directory("snapshot", "pin", "7days", code=2)
    directory("snapshot", "pin", "both", "--at", "3", "--revision", "3", code=2)
    directory("snapshot", "pin", "ahead", "--revision", "999", code=1)
    directory("snapshot", "unpin", "nobody", code=3)
    directory("state", "get", "k", "--at", "nobody", code=3)
    directory("snapshot", "restore", str(state), str(tmp_path / "new"), "--at", "nobody", code=3)
    assert directory.out("snapshot", "pins").count("\n") == 1
