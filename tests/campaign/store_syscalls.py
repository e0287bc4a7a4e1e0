"""The sweep of `syscalls.py` over a store process, while a client works with it.

The store serves at a direct address, under `strace -f`, so that its helper thread and its compactor
are disturbed as well: in each thread and process the N-th call of one name has the fault. The
client commits, fills a segment and asks for compactions. Whenever the store ends, by the fault or
because of it, it is started again without one, as its supervisor would. It must hold: the exit code
is one of the documented; the client's requests are all answered, each took effect once, those that
were refused never; the directory is CLEAN or TORN, and an ordinary start finds what was
acknowledged, no more and no less.

    python -m tests.campaign.store_syscalls --start 0 --seconds 600
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ckptmesh
from ckptmesh import errors
from ckptmesh.errors import Error, InvalidDirectory, OutOfSpace, Poisoned
from ckptmesh.recovery import CLEAN, TORN
from ckptmesh.survey import verify
from tests.campaign.shares import Share, main, numbers
from tests.campaign.subject import applied, operate
from tests.campaign.syscalls import (
    CALLS,
    FAULTS,
    Call,
    disturbing,
    judge_start,
    settled,
    traced,
    was_met,
)
from tests.cluster import Cluster, NotStarted

FLAGS = ("--segment-bytes", "1MiB", "--space-watermark", "0")
LARGE = 300_000  # bytes of a value; three of them fill a segment
PATIENCE = 30.0  # seconds for any one answer; a store is started again within one
# How a store that met a failing disk may end; 0: it went on, and was asked to stop.
CODES = {0, -signal.SIGKILL, Poisoned.exit_code, OutOfSpace.exit_code, InvalidDirectory.exit_code}


class Client(threading.Thread):
    """Works with the store: `revision` and `state` are what it was told stands there."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.revision = 0
        self.state: dict[str, Any] = {}
        self.refused = 0
        self.compactions: list[str] = []
        self.trouble: BaseException | None = None

    def run(self) -> None:
        try:
            with ckptmesh.connect(self.url, timeout=PATIENCE) as store:
                for number in range(3):
                    self._operate(store, number)
                for number in range(3, 7):
                    self._operate(store, number, LARGE)
                for number in range(7, 9):
                    self._compact(store)
                    self._operate(store, number)
        except BaseException as error:
            self.trouble = error

    def _operate(self, store: Any, number: int, size: int = 0) -> None:
        try:
            revision = operate(store, number, size)
        except OutOfSpace:
            self.refused += 1
            return
        self.state = applied(self.state, number)
        self.revision += 1
        assert revision == self.revision, f"{number} became {revision}, not {self.revision}"

    def _compact(self, store: Any) -> None:
        try:
            store.compact(retain=0, timeout=PATIENCE)
            self.compactions.append("made")
        except Error as error:
            self.compactions.append(type(error).__name__)


def run(box: Path, wrap: list[str]) -> tuple[list[int], Client, Path]:
    """A store under `wrap`, a client until it is through, an ordinary stop. Returns the exit codes
    of the store processes, the client, the directory."""
    shutil.rmtree(box / "case", ignore_errors=True)
    (box / "case").mkdir()
    codes: list[int] = []
    cluster = Cluster(box / "case", *FLAGS, direct=True)
    cluster.wrap = wrap
    client = Client(cluster.direct)
    try:
        try:
            cluster.start_store()
        except NotStarted as error:
            codes.append(error.code)
        cluster.wrap = []
        if cluster.store is None:
            cluster.start_store()
        client.start()
        until = time.monotonic() + 3 * PATIENCE
        while client.is_alive() and time.monotonic() < until:
            assert cluster.store is not None
            if cluster.store.poll() is not None:
                codes.append(cluster.store.returncode)
                assert len(codes) < 2, f"it ended without a fault: {cluster.log.read_text()}"
                cluster.start_store()
            client.join(0.01)
        assert not client.is_alive(), "the client waits in vain"
        codes.append(cluster.stop(cluster.store) or 0)
    finally:
        cluster.kill(cluster.store)
    return codes, client, cluster.data


def calls(box: Path) -> list[Call]:
    """What an undisturbed run of the store calls, in each of its threads and processes; what has
    the same name and number stands there once."""
    trace = box / "trace"
    codes, client, data = run(box, ["strace", "-D", "-f", "-y", "-o", str(trace), "-e",
                                    "trace=" + ",".join(CALLS)])
    assert codes == [0], codes
    assert client.compactions == ["made", "made"], client.compactions
    assert client.trouble is None, client.trouble
    counts: Counter[tuple[str, str]] = Counter()
    targets = {}
    settled(trace)
    for pid, name, paths, _ in traced(trace):
        counts[pid, name] += 1
        targets.setdefault((name, counts[pid, name]), paths[0].removeprefix(f"{data}/"))
    found = []
    for name in CALLS:
        most = max((index for other, index in targets if other == name), default=0)
        # Seals of idle moments come and go; rounded up, sweeps have the same cases all the same.
        found += [Call("served", name, index, targets.get((name, index), "none here"), True)
                  for index in range(1, -(-most // 4) * 4 + 1)]
    return found


def attempt(box: Path, call: Call, fault: str) -> bool:
    """One run with its fault; whether it was met (threads are not the same in every run). Raises
    `AssertionError` where a promise was broken."""
    trace = box / "trace"
    trace.unlink(missing_ok=True)
    wrap = [*disturbing(trace, call.name, call.index, fault), "-D"]
    codes, client, data = run(box, wrap)
    assert client.trouble is None, f"the client: {client.trouble!r}"
    assert set(codes) <= CODES, f"exit codes {codes}"
    assert client.refused == 0 or fault.startswith("enospc"), "refused for space that there was"
    verdict = verify(str(data)).verdict
    assert verdict in (CLEAN, TORN), verdict
    judge_start(data, [(client.revision, client.state)])
    return was_met(trace, fault)


def share(start: int, seconds: float) -> Share:
    """Cases `start` and on, of sweeps one after the other."""
    counts: Counter[str] = Counter()
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        cases = [(call, fault) for call in calls(box) for fault in FAULTS]
        random.Random(1).shuffle(cases)
        for at in numbers(start, seconds):
            call, fault = cases[at % len(cases)]
            try:
                met = attempt(box, call, fault)
                counts[f"syscall_faults_served_{fault}" if met else "not_met"] += 1
                counts["syscall_faults"] += met
            except (AssertionError, errors.Error, RuntimeError) as error:
                findings.append(f"{fault} in {call.name} {call.index} ({call.target}): "
                                f"{type(error).__name__}: {error}"[:1_000] + " — python -m "
                                f"tests.campaign.store_syscalls --start {at} --seconds 0")
    end = at + 1
    counts["sweep_cases_run"] = end - start
    counts["sweep_complete"] = end // len(cases) - start // len(cases)
    return Share(end, dict(counts), findings)


if __name__ == "__main__":
    main(share, __doc__)
