"""The demo: its pipelines survive a crash at every step, and its judge sees when one does not."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptmesh
from ckptmesh.cli.demo import take_input
from ckptmesh.demonstration import judge
from ckptmesh.demonstration.run import KINDS, plan
from demo import downstream, naive, pipeline, producer
from tests.cluster import Cluster, wait_until

ROOT = Path(__file__).parent.parent.parent
ENV = {name: value for name, value in os.environ.items() if not name.startswith("CKPTMESH_")}
ENV |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
DEMO = [sys.executable, "-m", "ckptmesh", "demo"]
RECORDS = 200


class Crash(BaseException):
    """Stands for SIGKILL: nothing in the pipeline catches it."""


@pytest.fixture
def mesh() -> Iterator[ckptmesh.Client]:
    with ckptmesh.connect("memory://") as client:
        yield client


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder whose name leaves room for sockets in it, as pytest's own does not always."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An input of some hundred lines, and the log that the producer makes of it."""
    path = tmp_path / "input.txt"
    path.write_text("".join(f"2025-01-{n % 28 + 1:02} {'abc'[n % 3] * (n % 7 + 1)} {n}\n"
                            for n in range(RECORDS)))
    producer.append(tmp_path / "orders.log", producer.lines_of(path), rate=1e9)
    return path


def crash_at(step: str, sink: pipeline.Sink, mesh: ckptmesh.Client,
             monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let one step of the pipeline crash when it has been passed `after` times."""
    owner, name, done_first = {
        "reading": (pipeline, "read_after", False),
        "writing, the results in, the place not": (sink, "count", True),
        "between transaction and commit": (mesh, "commit", False),
        "after the commit, its answer lost": (mesh, "commit", True),
    }[step]
    step_itself: Callable[..., Any] = getattr(owner, name)
    passed = 0

    def crash(*args: Any, **options: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed <= after:
            return step_itself(*args, **options)
        if done_first:
            step_itself(*args, **options)
        raise Crash

    monkeypatch.setattr(owner, name, crash)


STEPS = ("reading", "writing, the results in, the place not", "between transaction and commit",
         "after the commit, its answer lost")


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_loses_and_doubles_nothing(
    step: str, tmp_path: Path, source: Path, mesh: ckptmesh.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crashes = 0
    chance = random.Random(step)
    for _ in range(100):
        sink = pipeline.Sink(tmp_path / "totals.db")

        def more(sink: pipeline.Sink = sink) -> bool:
            return sink.place().seq < RECORDS

        with monkeypatch.context() as patch:
            crash_at(step, sink, mesh, patch, after=chance.randint(1, 3))
            try:
                pipeline.run(mesh, "orders", tmp_path / "orders.log", sink, 10, more)
            except Crash:
                crashes += 1
                continue
            finally:
                sink.close()
        break
    assert crashes >= 3
    lines = judge.read_lines(source)
    assert judge.check_sink(tmp_path / "totals.db", lines, judge.word_of) == judge.Found(0, 0, 0)
    found = mesh.get("orders")
    assert found is not None
    assert found.position == RECORDS


def test_the_naive_pipeline_doubles_records_after_a_crash_between_its_two_writes(
    tmp_path: Path, source: Path, mesh: ckptmesh.Client, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        sink = pipeline.Sink(tmp_path / "totals.db")
        patch.setattr(naive, "POLL", 0.0)
        patch.setattr(naive.time, "sleep", lambda seconds: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):  # at the crash, or, at last, when there is nothing more to read
            naive.run(mesh, "orders", tmp_path / "orders.log", sink, 10)
        sink.close()

    with monkeypatch.context() as patch:
        crash_at("between transaction and commit", pipeline.Sink(tmp_path / "unused.db"), mesh,
                 patch, after=3)
        run(patch)
    with monkeypatch.context() as patch:
        run(patch)
    lines = judge.read_lines(source)
    assert judge.check_sink(tmp_path / "totals.db", lines, judge.word_of) == judge.Found(0, 10, 0)


def test_a_worker_that_was_replaced_while_it_slept_changes_neither_sink_nor_checkpoint(
    tmp_path: Path, source: Path, mesh: ckptmesh.Client,
) -> None:
    sleeper, log = pipeline.Sink(tmp_path / "totals.db"), tmp_path / "orders.log"
    place, checkpoint = pipeline.resume(mesh, "orders", sleeper)
    records, after = pipeline.read_after(log, place, 10)

    successor = pipeline.Sink(tmp_path / "totals.db")
    pipeline.run(mesh, "orders", log, successor, 10, lambda: successor.place().seq < RECORDS)
    rows = [pipeline.Row(r["seq"], "a", 1) for r in records]
    with pytest.raises(pipeline.Overtaken):
        sleeper.add(rows, place, after)
    with pytest.raises(ckptmesh.Conflict):
        pipeline.commit(mesh, "orders", after, checkpoint)
    lines = judge.read_lines(source)
    assert judge.check_sink(tmp_path / "totals.db", lines, judge.word_of).clean
    sleeper.close()
    successor.close()


def test_a_sink_that_lacks_what_was_committed_is_refused(
    tmp_path: Path, source: Path, mesh: ckptmesh.Client,
) -> None:
    sink = pipeline.Sink(tmp_path / "totals.db")
    pipeline.run(mesh, "orders", tmp_path / "orders.log", sink, 10,
                 lambda: sink.place().seq < RECORDS)
    other = pipeline.Sink(tmp_path / "new.db")
    with pytest.raises(SystemExit, match="record 0, but checkpoint 'orders' at 200"):
        pipeline.resume(mesh, "orders", other)
    sink.close()
    other.close()


def test_the_downstream_pipeline_takes_what_stands_there_and_then_each_commit(
    tmp_path: Path, source: Path, mesh: ckptmesh.Client,
) -> None:
    sink, own = pipeline.Sink(tmp_path / "totals.db"), pipeline.Sink(tmp_path / "sizes.db")
    log, done = tmp_path / "orders.log", 50

    def more() -> bool:
        return sink.place().seq < done

    pipeline.run(mesh, "orders", log, sink, 10, more)
    upstream = sqlite3.connect(tmp_path / "totals.db")
    reached: list[int] = []

    class Watched(Exception):
        """All is through."""

    class Mesh:
        """The client; once the downstream has caught up, the pipeline goes on."""

        get, watch = mesh.get, mesh.watch

        def commit(self, *args: Any, **options: Any) -> ckptmesh.Receipt:
            nonlocal done
            receipt = mesh.commit(*args, **options)
            reached.append(options["position"])
            if options["position"] == RECORDS:
                raise Watched
            if options["position"] == done:
                done = RECORDS
                pipeline.run(mesh, "orders", log, sink, 10, more)
            return receipt

    with pytest.raises(Watched):
        downstream.run(Mesh(), "orders", "sizes", upstream, own, 20)  # type: ignore[arg-type]
    assert reached[:3] == [20, 40, 50], "up to what was committed, in batches"
    lines = judge.read_lines(source)
    assert judge.check_sink(tmp_path / "sizes.db", lines, judge.size_of).clean
    found = mesh.get("sizes")
    assert found is not None
    assert found.sources[0][0] == "orders"
    for db in (sink, own, upstream):
        db.close()


# --- the producer -----------------------------------------------------------------------------


def test_a_producer_goes_on_after_its_last_whole_record(tmp_path: Path, source: Path) -> None:
    log = tmp_path / "orders.log"
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])  # a crash in the middle of the last line
    assert pipeline.read_after(log, pipeline.Place(), 1_000)[1].seq == RECORDS - 1
    assert producer.append(log, producer.lines_of(source), rate=1e9) == RECORDS
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["seq"] for record in found] == list(range(1, RECORDS + 1))
    assert [record["line"] for record in found] == judge.read_lines(source)


def test_updated_at_never_goes_back_when_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([5_000, 9_000, 2_000, 3_000, 12_000])
    monkeypatch.setattr(producer.time, "time_ns", lambda: next(clock))
    for some in (["a", "b", "c"], ["a", "b", "c", "d", "e"]):  # a restart in between
        producer.append(tmp_path / "log", some, rate=1e9)
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [record["updated_at"] for record in records] == [5, 9, 9, 9, 12]


# --- the judge --------------------------------------------------------------------------------


@given(st.text())
def test_judge_and_pipeline_agree_on_words_and_sizes_of_any_line(line: str) -> None:
    assert judge.word_of(line) == pipeline.first_word(line)
    assert judge.size_of(line) == downstream.size_class(len(line))


@given(st.binary())
def test_judge_and_producer_read_the_same_lines_from_any_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "input")
        path.write_bytes(content)
        assert judge.read_lines(path) == list(producer.lines_of(path))


@pytest.mark.parametrize(("damage", "found"), [
    ("DELETE FROM ledger WHERE seq = 7", judge.Found(1, 0, 1)),
    ("INSERT INTO ledger SELECT * FROM ledger WHERE seq = 7", judge.Found(0, 1, 1)),
    ("UPDATE ledger SET seq = 8 WHERE seq = 7", judge.Found(1, 1, 1)),
    ("UPDATE totals SET records = records + 5 WHERE name = 'a'", judge.Found(0, 5, 1)),
    ("UPDATE totals SET records = records - 5 WHERE name = 'a'", judge.Found(5, 0, 1)),
    ("UPDATE totals SET characters = characters + 1 WHERE name = 'a'", judge.Found(0, 0, 1)),
    ("DROP TABLE totals", judge.Found(RECORDS, 0, 0)),
])
def test_the_judge_sees_each_kind_of_damage(
    damage: str, found: judge.Found, tmp_path: Path, source: Path, mesh: ckptmesh.Client,
) -> None:
    sink = pipeline.Sink(tmp_path / "totals.db")
    pipeline.run(mesh, "orders", tmp_path / "orders.log", sink, 50,
                 lambda: sink.place().seq < RECORDS)
    sink.db.execute(damage)
    sink.close()
    lines = judge.read_lines(source)
    assert judge.check_sink(tmp_path / "totals.db", lines, judge.word_of) == found


def test_the_judge_sees_what_the_monitor_missed_and_saw_twice(tmp_path: Path) -> None:
    said = tmp_path / "monitor.txt"
    said.write_text("watching everything\n" + "".join(
        f'{{"revision": {revision}}}\n' for revision in (1, 2, 2, 4)) + '{"revision": 5')
    assert judge.check_monitor(said, 4) == judge.Seen(missed=1, twice=1)
    assert judge.check_monitor(said, 5) == judge.Seen(missed=2, twice=1)
    assert judge.check_monitor(tmp_path / "never written", 5) == judge.Seen(missed=5, twice=0)


@given(st.integers(0, 60), st.integers(0, 10**6), st.integers(1, 10**5))
def test_a_plan_has_the_kills_asked_for_and_every_kind_among_six(
    kills: int, seed: int, records: int,
) -> None:
    strikes = plan(random.Random(seed), kills, records)
    targets = [target for strike in strikes for target in strike.targets]
    assert len(targets) == kills
    assert kills < 6 or set(targets) == set(KINDS)
    assert all(strike.record < records for strike in strikes)
    assert strikes == plan(random.Random(seed), kills, records)


def test_without_a_file_orders_are_invented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ckptmesh.cli.demo.PACKAGE_LOG", tmp_path / "not there")
    count, what = take_input(None, tmp_path / "input.txt", 30)
    assert (count, what) == (30, "30 invented orders")
    assert len(judge.read_lines(tmp_path / "input.txt")) == 30


# --- for real ---------------------------------------------------------------------------------


def processes_with(text: str) -> list[str]:
    """Command lines and environments of running processes that contain a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue  # it has ended
        if text.encode() in command and folder.name != str(os.getpid()):
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def orders(path: Path, count: int) -> Path:
    path.write_text("".join(f"2025-01-01 {['apples', 'pears', 'plums'][n % 3]} {n}\n"
                            for n in range(count)))
    return path


def test_a_real_cluster_killed_at_random_loses_and_doubles_nothing(tmp_path: Path) -> None:
    env = {**ENV, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*DEMO, "--json", "--keep", "--seconds", "5", "--kills", "7", "--seed", "11",
         "--input", orders(tmp_path / "input.txt", 1_500)],
        env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert [result[name] for name in ("records", "lost", "doubled", "wrong")] == [1500, 0, 0, 0]
    assert result["kills"]["total"] == 7
    assert all(result["kills"][kind] >= 1 for kind in KINDS)
    assert result["resumes"] >= 3
    assert result["revisions"] >= 2 * 15
    assert result["monitor"] == {"missed": 0, "twice": 0}

    # And once more, without the demo's own judge.
    for name in ("totals.db", "sizes.db"):
        with sqlite3.connect(Path(result["directory"], name)) as db:
            assert [seq for seq, in db.execute("SELECT seq FROM ledger ORDER BY seq")] == list(
                range(1, 1501))
            assert db.execute("SELECT sum(records) FROM totals").fetchone() == (1500,)
    assert processes_with(str(tmp_path)) == []


def test_the_naive_way_is_seen_to_fail(tmp_path: Path) -> None:
    env = {**ENV, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*DEMO, "--naive", "--seconds", "6", "--kills", "3", "--seed", "5",
         "--input", orders(tmp_path / "input.txt", 1_500)],
        env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "That is what the naive way does." in done.stdout
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["input.txt"], "nothing is left behind"
    assert processes_with(str(tmp_path)) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_stop_signal_ends_everything(tmp_path: Path, number: int, code: int) -> None:
    with (tmp_path / "said").open("w+") as said:
        running = subprocess.Popen(
            [*DEMO, "--seconds", "60", "--kills", "0"], env={**ENV, "TMPDIR": str(tmp_path)},
            stdout=said, stderr=said)
        try:
            wait_until(lambda: "are at work" in (tmp_path / "said").read_text(), 60)
            assert len(processes_with(str(tmp_path))) >= 7
            running.send_signal(number)
            assert running.wait(30) == code
        finally:
            running.kill()
            running.wait()
    assert processes_with(str(tmp_path)) == []
    assert [p.name for p in tmp_path.iterdir()] == ["said"]
    assert "Traceback" not in (tmp_path / "said").read_text()


def test_no_process_outlives_a_demo_that_is_killed(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w+") as said:
        running = subprocess.Popen(
            [*DEMO, "--seconds", "60", "--kills", "0"], env={**ENV, "TMPDIR": str(tmp_path)},
            stdout=said, stderr=said)
        wait_until(lambda: "are at work" in (tmp_path / "said").read_text(), 60)
        running.kill()
        running.wait()
    wait_until(lambda: processes_with(str(tmp_path)) == [], 30, "the end of all processes")


def test_each_program_runs_by_itself_against_a_served_store(tmp_path: Path) -> None:
    source = orders(tmp_path / "input.txt", 300)
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{arguments[0]}.txt").open("wb") as said:
            running.append(subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=tmp_path, stdout=said, stderr=said,
                env={**ENV, "CKPTMESH_URL": cluster.url}))
        return running[-1]

    with Cluster(tmp_path) as cluster, ckptmesh.connect(cluster.url) as mesh:
        try:
            start("demo.monitor", "--since", "0")
            start("demo.downstream")
            start("demo.pipeline", "--batch", "20")
            assert start("demo.producer", "--input", str(source), "--rate", "1000").wait(60) == 0
            wait_until(lambda: mesh.get("sizes") and mesh.get("sizes").position == 300, 60)
            head = mesh.status()["revision"]
            wait_until(lambda: f"revision {head:6}" in (tmp_path / "demo.monitor.txt").read_text())
            for process in running[:3]:
                process.terminate()
            assert [process.wait(20) for process in running[:3]] == [0, 0, 0]
        finally:
            for process in running:
                process.kill()
                process.wait()
    lines = judge.read_lines(source)
    assert judge.check_sink(tmp_path / "totals.db", lines, judge.word_of).clean
    assert judge.check_sink(tmp_path / "sizes.db", lines, judge.size_of).clean


@pytest.mark.parametrize("module", ["producer", "pipeline", "downstream", "monitor", "naive"])
def test_each_program_explains_itself(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"demo.{module}", "--help"], env=ENV,
                          capture_output=True, text=True, timeout=60, check=True)
    assert "usage: " in done.stdout
