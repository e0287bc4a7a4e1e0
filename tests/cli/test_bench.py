"""`bench` over real stores: its counts are the store's, and nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh.benchmark import machine
from ckptmesh.benchmark.run import BATCHES, NAMES, ONE, PIPELINED, READS, WORKERS
from ckptmesh.benchmark.workloads import Batches, Commits, Pipelined, Place, Reads, remove
from tests.cli.conftest import PROGRAM, CommandLine, environment
from tests.cli.test_certify import descendants
from tests.cluster import Cluster, wait_until

SHORT = ("--seconds", "100ms", "--workers", "2", "--in-flight", "32", "--batch", "10")
UNITS = ("_ms", "_us", "_seconds", "_second", "_bytes", "_share", "seconds")


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """Every workload's figures, after what holds for each of them."""
    for name, each in found["workloads"].items():
        assert each["operations"] > 0
        assert each["operations_per_second"] == pytest.approx(
            each["operations"] / each["seconds"], rel=0.01)
        assert 0 < each["step_p50_ms"] <= each["step_p99_ms"] <= each["step_max_ms"]
        assert each["client_cpu_us_per_operation"] > 0
        assert (each["commits_per_sync"] is None) is (name == READS)
    return dict(found["workloads"])


def check_counts(found: dict[str, Any], depth: int, batch: int) -> None:
    """What the clients counted is what the store did, but for what was under way at the ends."""
    for name, each in numbers(found).items():
        atom, slack = {BATCHES: (batch, 1), PIPELINED: (1, depth)}.get(name, (1, 1))
        own = 0 if name == READS else each["operations"] / atom
        assert abs(each["store_commits"] - own) <= slack * each["processes"], name
        assert each["foreign_commits"] == 0
        if name != READS:
            assert 0 < each["store_syncs"] <= each["store_commits"] + slack
            assert each["commits_per_sync"] == pytest.approx(
                each["store_commits"] / each["store_syncs"], abs=0.01)


# --- a served mesh ----------------------------------------------------------------------------


def test_a_served_mesh_is_measured_and_left_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    with ckptmesh.connect(cluster.url) as mesh:
        kept = mesh.commit("orders", 42)
        before = list(mesh.list())
        found = json.loads(CommandLine(cluster.url)("bench", *SHORT, "--json", "--data",
                                                    str(tmp_path)).stdout)
        assert list(mesh.list()) == before
        assert mesh.get("orders", at=kept) == mesh.get("orders")
    assert list(found["workloads"]) == list(NAMES)
    assert found["workloads"][WORKERS]["processes"] == 2
    check_counts(found, depth=32, batch=10)
    assert found["embedded"] is False
    assert found["value_bytes"] == 100
    assert found["meaning"]
    assert found["round_trip"]["count"] > 0
    assert found["disk"]["syncs"] > 0
    assert found["disk"]["syncs_per_second"] > 0
    assert 0 < found["disk"]["p50_ms"] <= found["disk"]["p99_ms"] <= found["disk"]["max_ms"]
    assert not list(tmp_path.iterdir())
    assert not multiprocessing.active_children()
    store = found["workloads"][PIPELINED]["store_thread_share"]
    assert 0 < store <= 1, "the store is on this machine, so its thread can be seen"


def test_the_report_for_people_is_a_table_and_sentences() -> None:
    done = CommandLine("memory://")("bench", *SHORT, "--only", "one", "--only", "reads")
    assert done.stderr == "", "no bar where there is no terminal"
    lines = done.stdout.splitlines()
    for word in ("mesh ", "round trip ", "WORKLOAD ", "one worker ", "reads ", "At most "):
        assert any(line.startswith(word) for line in lines), word
    assert "8 workers" not in done.stdout
    assert max(map(len, lines)) <= 110


def test_ctrl_c_leaves_no_process_and_no_key(cluster: Cluster) -> None:
    command = subprocess.Popen(
        [*PROGRAM, "bench", "--only", "workers", "--workers", "2", "--seconds", "1"],
        env=environment(CKPTMESH_URL=cluster.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True)
    with ckptmesh.connect(cluster.url) as mesh:
        try:
            wait_until(lambda: len(bench_keys(mesh)) == 2, what="both workers to commit")
            workers = descendants(command.pid)
            assert len(workers) >= 2
            os.killpg(command.pid, signal.SIGINT)  # to all of them, as a terminal does
            out, err = command.communicate(timeout=20)
        finally:
            command.kill()
            command.wait()
        assert command.returncode == 130
        assert (out, err) == (b"", b"")
        assert not bench_keys(mesh)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers),
               what="the workers to be gone")


def bench_keys(mesh: ckptmesh.Client) -> list[str]:
    return [each.key for each in mesh.list() if each.key.startswith("bench-")]


def test_a_store_that_dies_meanwhile_is_told_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cluster(tmp_path) as own:
        def show(part: float, what: str) -> None:
            if what == "reads":  # the workload after the one that has committed
                own.kill(own.store)

        monkeypatch.setattr("ckptmesh.cli.bench.shown", lambda: contextlib.nullcontext(show))
        done = CommandLine(own.url)("bench", *SHORT, "--only", "one", "--only", "reads",
                                    "--timeout", "200ms", code=5)
    left, error, hint = done.stderr.splitlines()
    assert left.startswith("keys of this run may be left: ckptmesh state list bench-")
    assert "no store is connected" in error
    assert hint.startswith("hint: start the store")
    assert done.stdout == ""
    assert not multiprocessing.active_children()


def test_commits_of_others_show_as_such(cluster: Cluster) -> None:
    committed, over = 0, threading.Event()

    def commit() -> None:
        nonlocal committed
        with ckptmesh.connect(cluster.url) as mesh:
            while not over.is_set():
                mesh.commit("others", committed)
                committed += 1

    other = threading.Thread(target=commit)
    other.start()
    try:
        found = json.loads(CommandLine(cluster.url)(
            "bench", "--only", "one", "--seconds", "300ms", "--json").stdout)
    finally:
        over.set()
        other.join()
    (one,) = numbers(found).values()
    assert 1 < one["foreign_commits"] < committed
    assert any(each.startswith("Others committed ") for each in found["meaning"])


# --- an embedded store ------------------------------------------------------------------------


def test_a_directory_is_measured_by_one_process_and_left_as_it_was(
    directory: CommandLine, tmp_path: Path
) -> None:
    directory("state", "set", "orders", "42")
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    found = json.loads(directory("bench", *SHORT, "--json").stdout)
    assert list(found["workloads"]) == [name for name in NAMES if name != WORKERS]
    check_counts(found, depth=32, batch=10)
    assert found["embedded"] is True
    assert found["disk"]["directory"] == f"{tmp_path}/state"
    assert found["disk"]["syncs"] > 0
    assert json.loads(directory.out("state", "list", "--json"))["key"] == "orders"
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == names


def test_memory_is_measured_without_a_disk_and_every_number_names_its_unit_or_counts() -> None:
    found = json.loads(CommandLine("memory://")("bench", *SHORT, "--json").stdout)
    check_counts(found, depth=32, batch=10)
    assert found["disk"] is None
    counts = {"operations", "steps", "step_operations", "processes", "count", "store_commits",
              "store_syncs", "foreign_commits", "commits_per_sync"}
    for part in (found, found["round_trip"], found["workloads"][ONE]):
        for name, value in part.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert name in counts or name.endswith(UNITS) or "_us_per_" in name, name


@pytest.mark.parametrize(("number", "after"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.3)])
def test_an_interrupted_directory_is_left_without_its_keys(
    directory: CommandLine, tmp_path: Path, number: signal.Signals, after: float
) -> None:
    directory("state", "set", "orders", "42")
    state = tmp_path / "state"
    command = subprocess.Popen(
        [*PROGRAM, "bench", "--only", "pipelined", "--seconds", "400ms"], text=True,
        env=environment(CKPTMESH_URL=f"file:{state}"), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    try:
        wait_until(lambda: list(state.glob(f"{machine.PREFIX}*")), what="the disk to be tried")
        wait_until(lambda: after == 0 or not list(state.glob(f"{machine.PREFIX}*")),
                   what="the workload to begin")
        time.sleep(after)
        command.send_signal(number)
        out, err = command.communicate(timeout=20)
    finally:
        command.kill()
        command.wait()
    assert (command.returncode, out, err) == (130, "", "")
    assert not list(state.glob(f"{machine.PREFIX}*"))
    assert json.loads(directory.out("state", "list", "--json"))["key"] == "orders"


# --- what is refused --------------------------------------------------------------------------


def test_where_there_is_no_store_none_is_made(tmp_path: Path) -> None:
    done = CommandLine(f"file:{tmp_path}/none")("bench", code=3)
    assert "there is no store in" in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_mesh_the_error_says_what_to_do() -> None:
    done = CommandLine("tcp://127.0.0.1:9")("bench", "--timeout", "300ms", code=5)
    assert "ckptmesh up" in done.stderr


@pytest.mark.parametrize(("why", "code"), [
    ("data loss suspected: see `ckptmesh wal accept-loss`", 6), ("the disk is nearly full", 7)])
def test_a_store_that_is_read_only_is_not_measured(
    directory: CommandLine, monkeypatch: pytest.MonkeyPatch, why: str, code: int
) -> None:
    directory("state", "set", "orders", "42")
    monkeypatch.setattr("ckptmesh.engine.Engine._read_only", lambda self: why)
    done = directory("bench", *SHORT, code=code)
    assert "the store is read-only, so nothing can be measured" in done.stderr
    assert directory.out("status", "--json", code=code)


@pytest.mark.parametrize(("args", "says"), [
    (("--size", "9MiB"), "more than a value can have"),
    (("--size", "1MiB"), "add --batch 15"),
    (("--only", "workers"), "an embedded store has one process"),
    (("--only", "nothing"), "is not one of"),
    (("--in-flight", "2000"), "not in the range"),
    (("--data", "/no/such/place"), "does not exist"),
])
def test_what_cannot_be_measured_is_a_usage_error(args: tuple[str, ...], says: str) -> None:
    assert says in CommandLine("memory://")("bench", *args, code=2).stderr


# --- the machine ------------------------------------------------------------------------------


@pytest.mark.parametrize(("program", "ours"), [
    ("ckptmesh = 1\nwhile True: pass", True), ("while True: pass", False)])
def test_the_thread_of_a_process_is_seen_only_if_the_process_is_ours(
    program: str, ours: bool
) -> None:
    busy = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(Path(f"/proc/{busy.pid}/cmdline").read_bytes, what="the program to be there")
        used = machine.Processors(busy.pid)
        wait_until(lambda: used.thread() != 0.0, what="the thread to be seen")
        share = used.thread()
        assert (share is not None and 0 < share <= 1) is ours
    finally:
        busy.kill()
        busy.wait()
    assert used.thread() is None, "it has ended"


def test_what_the_system_does_not_tell_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.Processors()
    assert before.thread() is None
    monkeypatch.setattr(machine, "Path", lambda path: Path("/proc/none"))
    assert before.busy() is None
    assert machine.Processors(os.getpid()).thread() is None


# --- the workers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "keys", "count"), [
    (Commits, 1, 1), (partial(Pipelined, in_flight=8), 8, 2), (partial(Batches, batch=5), 5, 5),
    (partial(Pipelined, in_flight=1), 1, 1), (Reads, 1, 1)])
def test_what_a_step_counts_is_durable_and_goes_again(
    tmp_path: Path, make: Any, keys: int, count: int
) -> None:
    place = Place(f"file:{tmp_path}", "bench-1/x", size=50)
    with ckptmesh.connect(place.url) as mesh:
        mesh.commit("bench-1x", 1)
        worker = make(place, number=7)
        done = [worker.step() for _ in range(8)]
        assert set(done) == {count}
        written = list(mesh.list("bench-1/x/7"))
        # Versions count the writes of a key, and so every single put.
        puts = sum(each.version for each in written)
        worker.close()
        assert len(written) == keys
        assert {len(each.value) for each in written} == {50}
        assert puts >= (1 if make is Reads else sum(done))
        assert remove(mesh, "bench-1") == keys
        assert [each.key for each in mesh.list()] == ["bench-1x"]


def test_a_read_of_a_key_that_somebody_removed_is_no_read() -> None:
    with ckptmesh.connect("memory://removed") as mesh:
        worker = Reads(Place("memory://removed", "bench-1"), number=0)
        remove(mesh, "bench-1")
        with pytest.raises(LookupError, match="removed by somebody else"):
            worker.step()
        worker.close()
