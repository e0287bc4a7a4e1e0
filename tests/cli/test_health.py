"""`status`, `info` and `doctor`: telling what is wrong from what is well."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckptmesh.cli import checks, program
from ckptmesh.cli.checks import FAIL, OK, WARN, Finding
from ckptmesh.clock import wall_micros
from ckptmesh.limits import CLOCK_JUMP
from tests.cli.conftest import CommandLine
from tests.cluster import Cluster, free_port, wait_until


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of the test's own, to be taken apart; nothing runs yet."""
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        for child in (made.store, made.broker):
            made.kill(child)


# --- status -----------------------------------------------------------------------------------


def test_a_healthy_cluster(cluster: Cluster, served: CommandLine) -> None:
    served("state", "set", "healthy", "1")
    found = json.loads(served("status", "--json").stdout)
    assert found["verdict"] == "healthy"
    assert found["publish"] == cluster.publish
    assert found["broker"]["stores"] == 1
    assert cluster.broker is not None
    assert found["broker"]["pid"] == cluster.broker.pid
    assert cluster.store is not None
    assert found["store"]["pid"] == cluster.store.pid
    assert found["store"]["revision"] >= 1
    assert 0 < found["round_trip_ms"] < 5_000
    lines = served("status").stdout.splitlines()
    assert lines[0].split() == ["verdict", "healthy"]
    shown = {line.split()[0] for line in lines}
    assert {"broker", "store", "revision", "log", "sync"} <= shown


def test_no_broker(own: Cluster) -> None:
    done = CommandLine(own.url)("status", "--timeout", "0.5", code=5)
    assert done.stdout.splitlines()[0].split(maxsplit=1) == ["verdict", "no broker"]
    assert "ckptmesh up" in done.stdout


def test_no_address_is_guessed_beyond_the_last_port() -> None:
    CommandLine("tcp://127.0.0.1:65535")("status", "--timeout", "0.2", code=5)


@pytest.mark.parametrize("publish", ["guessed", "given"])
def test_a_broker_without_a_store(own: Cluster, publish: str) -> None:
    own.start_broker()
    args = ["--publish", own.publish] if publish == "given" else []
    found = json.loads(CommandLine(own.url)("status", "--json", *args, code=5).stdout)
    assert found["verdict"] == "broker without store"
    assert found["store"] is None
    if publish == "given":
        assert found["broker"]["stores"] == 0


def test_two_stores_at_one_broker(own: Cluster, tmp_path: Path) -> None:
    with own:
        # Another directory, the same meeting place: what a wrong --backend makes.
        other = Cluster(tmp_path / "other", "--backend", f"ipc://{own.data}/run/requests.ipc",
                        "--backend-publish", f"ipc://{own.data}/run/publications.ipc")
        (tmp_path / "other").mkdir()
        try:
            other.start_store()
            wait_until(lambda: verdict(own) == "several stores", what="the verdict")
            CommandLine(own.url)("status", code=4)
        finally:
            other.kill(other.store)


def verdict(own: Cluster) -> str:
    """What `status` says just now, whatever its exit code."""
    done = CliRunner().invoke(program, ["status", "--json", "--publish", own.publish],
                              env={"CKPTMESH_URL": own.url})
    return str(json.loads(done.stdout)["verdict"])


def test_something_else_at_the_address() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        found = json.loads(CommandLine(url)("status", "--json", code=5).stdout)
    assert found["verdict"] in ("no broker", "no answer")


def test_a_stopped_store_is_no_answer(own: Cluster) -> None:
    with own:
        wait_until(lambda: verdict(own) == "healthy", what="the store")
        assert own.store is not None
        own.store.send_signal(signal.SIGSTOP)
        assert verdict(own) == "no answer"
        own.store.send_signal(signal.SIGCONT)
        assert verdict(own) == "healthy"


def test_a_directory_has_a_status_too(directory: CommandLine) -> None:
    directory("state", "set", "k", "1")
    found = json.loads(directory("status", "--json").stdout)
    assert found["verdict"] == "healthy"
    assert found["broker"] is None
    assert found["store"]["keys"] == 1
    assert "in this process" in directory("status").stdout


# --- info -------------------------------------------------------------------------------------


def test_info_has_sections(served: CommandLine) -> None:
    text = served("info").stdout
    assert [line for line in text.splitlines() if line.startswith("# ")][:2] == [
        "# store", "# counts"]
    found = json.loads(served("info", "--json").stdout)
    assert found["log"]["verdict"] == "CLEAN"
    assert "url" in found["client"]
    assert list(json.loads(served("info", "log", "--json").stdout)) == ["log"]
    assert served("info", "log").stdout.startswith("# log\n")
    gone = served("info", "logs", code=3)
    assert "sections: store, counts" in gone.stderr


# --- doctor -----------------------------------------------------------------------------------


def levels(text: str) -> dict[str, str]:
    return {found["subject"]: found["level"] for found in map(json.loads, text.splitlines())}


def test_the_doctor_finds_a_healthy_cluster_well(cluster: Cluster, served: CommandLine) -> None:
    args = ["--data", str(cluster.data), "--bind", cluster.url, "--publish", cluster.publish]
    found = levels(served("doctor", "--json", *args).stdout)
    assert found["store answers"] == found["addresses"] == found["store"] == OK
    assert FAIL not in found.values()
    text = served("doctor", *args).stdout
    assert text.startswith("ok   python")


def test_the_doctor_changes_nothing(tmp_path: Path) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    line = CommandLine()
    line("doctor", "--data", str(tmp_path / "new"), "--bind", url,
         "--publish", f"tcp://127.0.0.1:{free_port()}")
    line("doctor", "--url", f"file:{tmp_path}/other")
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_fails_where_a_store_could_not_work(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("something else")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        done = CommandLine()("doctor", "--json", "--data", str(tmp_path), "--bind", taken,
                             "--publish", f"tcp://127.0.0.1:{free_port()}", "--timeout", "0.3",
                             code=1)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    failed = {each["subject"]: each for each in found if each["level"] == FAIL}
    assert set(failed) == {"store", "addresses"}
    assert "notes.txt" in failed["store"]["text"]
    assert failed["addresses"]["text"].startswith(f"{taken} is taken")
    assert all(each["advice"] for each in failed.values())


def test_an_expected_store_that_does_not_answer_fails(tmp_path: Path) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    args = ["doctor", "--json", "--data", str(tmp_path / "d"), "--timeout", "0.2",
            "--publish", f"tcp://127.0.0.1:{free_port()}"]
    asked = CommandLine()(*args, "--url", url, "--bind", url, code=1)
    assert levels(asked.stdout)["store answers"] == FAIL
    unasked = CommandLine()(*args, "--bind", url)
    assert levels(unasked.stdout)["store answers"] == WARN


def only(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    return found


def test_what_is_wrong_with_a_directory(tmp_path: Path) -> None:
    assert only(checks.directory(str(tmp_path / "new"))).level == OK
    missing = only(checks.directory(str(tmp_path / "no" / "where")))
    assert (missing.level, "mkdir -p" in missing.advice) == (FAIL, True)
    (tmp_path / "file").write_text("")
    assert only(checks.directory(str(tmp_path / "file"))).level == FAIL
    os.chmod(tmp_path, 0o777)
    assert next(each.level for each in checks.directory(str(tmp_path))) == WARN
    (tmp_path / "run").mkdir(mode=0o755)
    assert [each.subject for each in checks.directory(str(tmp_path)) if each.level == FAIL] == [
        "store", "sockets"]


def test_a_damaged_manifest_fails(directory: CommandLine, tmp_path: Path) -> None:
    directory("state", "set", "k", "1")
    (tmp_path / "state" / "MANIFEST").write_text("{}")
    found = {each.subject: each.level for each in checks.directory(str(tmp_path / "state"))}
    assert found["store"] == FAIL


def test_a_store_that_cannot_be_looked_into_is_a_finding(
    directory: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory("state", "set", "k", "1")
    place = str(tmp_path / "state")
    shutil.rmtree(tmp_path / "state" / "wal")
    assert "store" in {each.subject for each in checks.directory(place)}

    def refuse(disk: object, path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checks, "read_manifest", refuse)
    found = {each.subject: each for each in checks.directory(place)}
    assert found["store"].level == FAIL
    assert "Permission denied" in found["store"].text
    assert only(checks.clock(place, None)).level == OK


@pytest.mark.parametrize(("kind", "level"), [
    ("ext4", OK), ("xfs", OK), ("", OK), ("btrfs", WARN), ("zfs", WARN), ("tmpfs", WARN),
    ("overlay", WARN), ("nfs4", FAIL), ("fuse.sshfs", FAIL),
])
def test_file_systems_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, kind: str, level: str
) -> None:
    monkeypatch.setattr(checks, "file_system", lambda path: kind)
    found = only(checks.file_systems("/"))
    assert found.level == level
    assert bool(found.advice) == (level != OK)


def test_a_nearly_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1_000_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert only(checks.free_space(str(tmp_path), 100_000_000)).level == OK
    assert only(checks.free_space(str(tmp_path), 600_000_000)).level == WARN
    assert only(checks.free_space(str(tmp_path), 2_000_000_000)).level == FAIL


def test_syncs_are_measured_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = checks.measure_syncs(str(tmp_path))
    assert len(took) == checks.SYNCS
    assert all(each > 0 for each in took)
    assert list(tmp_path.iterdir()) == []
    for seconds, level in ((0.001, OK), (0.1, WARN), (0.000_001, WARN)):
        monkeypatch.setattr(checks, "measure_syncs", lambda place, each=seconds: [each] * 5)
        monkeypatch.setattr(checks, "file_system", lambda path: "ext4")
        assert only(checks.sync_latency(str(tmp_path))).level == level


def test_a_slip_in_a_variable_is_told() -> None:
    found = only(checks.variables({"CKPTMESH_BNID": "x", "CKPTMESH_URL": "y", "HOME": "z"}))
    assert found.level == WARN
    assert found.advice == "did you mean CKPTMESH_BIND?"


def test_a_clock_far_ahead_of_the_log_is_told(
    directory: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory("state", "set", "k", "1")
    path = str(tmp_path / "state")
    assert only(checks.clock(path, None)).level == OK
    now = wall_micros()
    for moment, level in ((now + 2 * CLOCK_JUMP, WARN), (now - CLOCK_JUMP, WARN), (0, FAIL)):
        monkeypatch.setattr(checks, "wall_micros", lambda at=moment: at)
        assert only(checks.clock(path, None)).level == level
