"""Real processes whose wall clock is wrong or moves: libfaketime answers in the system's place.

Only the wall clock is moved; CLOCK_MONOTONIC and CLOCK_BOOTTIME, which nobody can set, stay true.
libfaketime breaks `time.sleep` then, so the scripts here wait by `select`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh.errors import ClockSuspect, LeaseLost
from tests.cluster import Cluster, NotStarted, wait_until
from tests.tools import tool

YEAR = 365 * 86_400  # seconds, as libfaketime counts it
ROOT = Path(__file__).parents[2]


class WallClock:
    """The wall clock of the processes started with `env`; `move` moves it while they run."""

    def __init__(self, folder: Path, offset: str = "+0") -> None:
        shown = subprocess.run([tool("faketime"), "-f", "+0", "printenv", "LD_PRELOAD"],
                               capture_output=True, text=True, check=True)
        self.file = folder / f"clock{offset}"
        self.env = {"LD_PRELOAD": shown.stdout.strip(), "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                    "FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_NO_CACHE": "1"}
        self.wrap = ["env", *(f"{name}={value}" for name, value in self.env.items())]
        self.move(offset)

    def move(self, offset: str) -> None:
        """So far from the true time: "+1y", "-1d", "+0"."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(offset)
        fresh.rename(self.file)

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """A Python script under this clock; it prints one line of JSON."""
        return subprocess.Popen([*self.wrap, sys.executable, "-c", script, *arguments], cwd=ROOT,
                                stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> Any:
    """What a script has printed, once it has ended well."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output)


def seconds_apart(one: datetime, other: datetime) -> float:
    return abs((one - other).total_seconds())


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """libfaketime removes its shared memory only where a process ends by itself."""
    before = set(_shared())
    yield
    for left in set(_shared()) - before:
        left.unlink(missing_ok=True)


def _shared() -> Iterator[Path]:
    return chain(Path("/dev/shm").glob("faketime_shm_*"), Path("/dev/shm").glob("sem.faketime*"))


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


# --- the store's clock ------------------------------------------------------------------------


@pytest.mark.fault(40)
@pytest.mark.fault(41)
def test_a_wall_clock_that_jumps_moves_nothing_in_a_running_store(
        tmp_path: Path, clock: WallClock) -> None:
    cluster = Cluster(tmp_path, direct=True)
    cluster.wrap = clock.wrap
    try:
        cluster.start_store()
        with ckptmesh.connect(cluster.direct) as mesh:
            receipts = [mesh.commit("job", 0, ttl=3_600)]
            lease = mesh.create("lock", "me", ttl=10, lease=True)
            born = time.monotonic()
            brief = mesh.commit("brief", 1, ttl=1)
            for count, offset in enumerate(("+1y", "-1d", "-1y", "+0"), 1):
                clock.move(offset)
                assert mesh.keepalive(lease) == 10
                receipts.append(mesh.commit("job", count, guard=lease, ttl=3_600))
            wait_until(lambda: mesh.get("brief") is None, 20, "the end of a TTL of a second")
            assert 1 <= time.monotonic() - born < 10
            first, last = receipts[0].time, receipts[-1].time
            assert [r.time for r in receipts] == sorted(r.time for r in receipts)
            assert [r.token for r in receipts] == sorted({r.token for r in receipts})
            assert seconds_apart(first, last) < 60
            assert mesh.get("job", at=brief.time).value == 0
    finally:
        cluster.kill(cluster.store)


@pytest.mark.fault(40)
def test_a_store_does_not_start_a_year_ahead_of_its_log_unless_told_to(
        tmp_path: Path, clock: WallClock) -> None:
    cluster = Cluster(tmp_path, direct=True)
    try:
        cluster.start_store()
        with ckptmesh.connect(cluster.direct) as mesh:
            mesh.commit("job", 1, ttl=3_600)
            kept = mesh.commit("kept", 1)
        assert cluster.stop(cluster.store) == 0
        clock.move("+1y")
        cluster.wrap = clock.wrap
        with pytest.raises(NotStarted, match="the clock says") as refused:
            cluster.start_store()
        assert refused.value.code == ClockSuspect.exit_code
        cluster.flags.append("--accept-clock")
        cluster.start_store()
        with ckptmesh.connect(cluster.direct) as mesh:
            wait_until(lambda: mesh.get("job") is None, 20, "the end of what is long over")
            assert mesh.value("kept") == 1
            assert seconds_apart(mesh.commit("kept", 2).time, kept.time) > YEAR - 60
    finally:
        cluster.kill(cluster.store)


@pytest.mark.fault(41)
def test_a_store_that_starts_with_its_clock_behind_goes_on_from_its_log(
        tmp_path: Path, clock: WallClock) -> None:
    cluster = Cluster(tmp_path, direct=True)
    cluster.wrap = clock.wrap
    receipts = []
    try:
        for offset in ("+0", "-1d", "-1y"):
            clock.move(offset)
            cluster.start_store()
            with ckptmesh.connect(cluster.direct) as mesh:
                receipts.append(mesh.commit("job", offset))
                with pytest.raises(LeaseLost):  # the token of another start, not of a lease
                    mesh.commit("job", "late", guard=receipts[0])
            cluster.kill(cluster.store)
    finally:
        cluster.kill(cluster.store)
    assert [r.time for r in receipts] == sorted({r.time for r in receipts})
    assert [r.token for r in receipts] == sorted({r.token for r in receipts})
    assert seconds_apart(receipts[0].time, datetime.now(UTC)) < 60


EMBEDDED = """
import json, sys, time
import ckptmesh
directory, file, *offsets = sys.argv[1:]
found = []
try:
    with ckptmesh.connect(f"file:{directory}") as mesh:
        for offset in offsets:
            with open(file, "w") as clock:
                clock.write(offset)
            receipt = mesh.commit("job", offset, ttl=3_600)
            found.append([time.time(), receipt.time.timestamp(), *receipt.token])
        assert mesh.value("job") == offsets[-1]
except ckptmesh.ClockSuspect as error:
    found = error.code
print(json.dumps(found))
"""


@pytest.mark.fault(40)
@pytest.mark.fault(41)
def test_an_embedded_store_bears_the_same(tmp_path: Path, clock: WallClock) -> None:
    arguments = (EMBEDDED, str(tmp_path / "store"), str(clock.file))
    running = said(clock.start(*arguments, "+0", "+1y", "-1y", "+0"))
    clock.move("+1y")
    assert said(clock.start(*arguments, "+1y")) == ClockSuspect.code
    clock.move("-1y")
    running += said(clock.start(*arguments, "-1y"))
    walls = [round((row[0] - running[0][0]) / YEAR) for row in running]
    assert walls == [0, 1, -1, 0, -1]  # as the process sees it, so it was moved
    times = [row[1] for row in running]
    assert times == sorted(set(times))
    assert times[-1] - times[0] < 60
    assert [row[2:] for row in running] == sorted(row[2:] for row in running)


# --- a client's clock -------------------------------------------------------------------------


CLIENT = """
import json, select, sys, time
import ckptmesh
url, nobody, name = sys.argv[1:]
wait = lambda seconds: select.select([], [], [], seconds)
found = {"wall": time.time()}
with ckptmesh.connect(url) as mesh:
    born = time.monotonic()
    first = mesh.commit(f"{name}/brief", 1, ttl=1)
    second = mesh.commit(f"{name}/brief", 2, ttl=1)
    lease = mesh.create(f"{name}/lock", "me", ttl=1.5, lease=True)
    found["time"] = first.time.timestamp()
    found["at"] = [mesh.value(f"{name}/brief", at=moment.time) for moment in (first, second)]
    found["renewed"] = []
    for _ in range(4):
        wait(0.4)
        kept = time.monotonic()
        found["renewed"].append(mesh.keepalive(lease))
    mesh.commit(f"{name}/work", 1, guard=lease)
    while mesh.get(f"{name}/brief") is not None:
        wait(0.01)
    found["brief"] = time.monotonic() - born
    while mesh.get(f"{name}/lock") is not None:
        wait(0.01)
    found["lease"] = time.monotonic() - kept
    try:
        mesh.commit(f"{name}/work", 2, guard=lease)
    except ckptmesh.LeaseLost:
        found["fenced"] = mesh.value(f"{name}/work")
asked = time.monotonic()
try:
    ckptmesh.connect(nobody, timeout=0.5)
except ckptmesh.Unavailable:
    found["deadline"] = time.monotonic() - asked
print(json.dumps(found))
"""


@pytest.mark.fault(42)
def test_a_clients_wrong_clock_changes_nothing(tmp_path: Path) -> None:
    offsets = {"true": "+0", "ahead": "+1y", "behind": "-1y"}
    with Cluster(tmp_path) as cluster:
        silent = cluster.url.rpartition(":")[0] + ":1"  # nobody listens there
        clients = {name: WallClock(tmp_path, offset).start(CLIENT, cluster.url, silent, name)
                   for name, offset in offsets.items()}
        found = {name: said(client) for name, client in clients.items()}
    walls = {name: round((row["wall"] - time.time()) / YEAR) for name, row in found.items()}
    assert walls == {"true": 0, "ahead": 1, "behind": -1}  # as the clients see it
    for row in found.values():
        assert abs(row["time"] - time.time()) < 60  # the store's
        assert row["at"] == [1, 2]
        assert row["renewed"] == [1.5] * 4
        assert 1 <= row["brief"] < 10
        assert 1.5 <= row["lease"] < 10
        assert row["fenced"] == 1
        assert 0.4 < row["deadline"] < 10
