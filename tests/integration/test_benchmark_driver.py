"""The load driver: real processes, counted; nothing here depends on how fast they are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ckptmesh.benchmark.driver import Crew, Worker, WorkerFailed
from tests.integration.test_supervisor import alive


class Napping:
    """Each step takes so long, is three operations, and is written down where told."""

    def __init__(self, folder: Path, nap: float, number: int) -> None:
        self.trace = (folder / f"steps.{number}").open("a", buffering=1)
        self.closed = folder / f"closed.{number}"
        self.nap = nap

    def step(self) -> int:
        began = time.monotonic()
        time.sleep(self.nap)
        self.trace.write(f"{began} {time.monotonic()}\n")
        return 3

    def close(self) -> None:
        self.trace.close()
        self.closed.touch()


class Failing(Napping):
    """The step with this number fails, in the process with the highest number."""

    def __init__(self, folder: Path, at: int, number: int) -> None:
        super().__init__(folder, 0.001, number)
        self.left = at if number == 1 else 1_000_000

    def step(self) -> int:
        self.left -= 1
        if self.left < 0:
            raise ValueError("the disk is on fire")
        return super().step()


class Dying(Napping):
    def step(self) -> int:
        if self.trace.tell():
            os._exit(7)
        return super().step()


def refused(number: int) -> Worker:
    raise ConnectionRefusedError(f"no broker for {number}")


def steps(folder: Path, number: int) -> list[tuple[float, float]]:
    lines = (folder / f"steps.{number}").read_text().splitlines()
    found = [tuple(map(float, line.split())) for line in lines]
    return [(began, ended) for began, ended in found]


def test_each_step_counts_with_the_share_of_it_that_lies_in_the_window(tmp_path: Path) -> None:
    with Crew(partial(Napping, tmp_path, 0.03), 2) as crew:
        sample = crew.run(0.2)
    expected = taken = 0.0
    begins = []
    for number in range(2):
        in_window = steps(tmp_path, number)[1:]  # the first one warms up
        begins.append(in_window[0][0])
        taken += len(in_window)
    end = min(begins) + 0.2
    for number in range(2):
        for began, ended in steps(tmp_path, number)[1:]:
            expected += 3 * min(1.0, (end - began) / (ended - began))
    # A worker reads the clock a moment before and after its step does.
    assert abs(sample.operations - expected) <= 3
    assert sample.latency.count == taken
    assert sample.latency.percentile(1) >= 30_000 * 0.9
    assert sample.seconds == 0.2
    assert sample.rate == sample.operations / 0.2


def test_all_workers_begin_together_and_none_steps_between_two_rounds(tmp_path: Path) -> None:
    with Crew(partial(Napping, tmp_path, 0.005), 3) as crew:
        crew.run(0.05)
        between = time.monotonic()
        pids = crew.pids
        time.sleep(0.05)
        after = time.monotonic()
        second = crew.run(0.05)
        assert crew.pids == pids
    assert second.operations > 0
    for number in range(3):
        assert not [s for s in steps(tmp_path, number) if between < s[0] < after]
        assert [s for s in steps(tmp_path, number) if s[0] > after]


def test_processor_time_of_the_workers_is_that_of_the_round(tmp_path: Path) -> None:
    with Crew(partial(Napping, tmp_path, 0.02), 2) as crew:
        assert 0 <= crew.run(0.1).cpu < 0.1


@pytest.mark.parametrize("make", [
    lambda folder: partial(Failing, folder, 0), lambda folder: refused,
], ids=["in its first step", "when it is made"])
def test_a_worker_that_never_works_is_told_with_its_text(
    tmp_path: Path, make: Callable[[Path], Callable[[int], Worker]]
) -> None:
    with pytest.raises(WorkerFailed, match=r"worker \d: .*(on fire|no broker for \d)") as caught:
        Crew(make(tmp_path), 2)
    assert "Traceback" in caught.value.__notes__[0]


def test_an_error_in_a_round_surfaces_with_its_text_and_the_processes_go(tmp_path: Path) -> None:
    with Crew(partial(Failing, tmp_path, 3), 2) as crew:
        pids = crew.pids
        with pytest.raises(WorkerFailed, match="worker 1: ValueError: the disk is on fire"):
            crew.run(0.1)
    assert not any(map(alive, pids))


def test_a_worker_that_is_killed_is_told_with_its_exit_code(tmp_path: Path) -> None:
    with (
        Crew(partial(Dying, tmp_path, 0.001), 1) as crew,
        pytest.raises(WorkerFailed, match="worker 0 ended with exit code 7"),
    ):
        crew.run(0.1)


def test_after_close_every_worker_is_closed_and_its_process_gone(tmp_path: Path) -> None:
    crew = Crew(partial(Napping, tmp_path, 0.001), 3)
    pids = crew.pids
    assert len(set(pids)) == 3
    assert all(map(alive, pids))
    crew.close()
    crew.close()
    assert not any(map(alive, pids))
    assert sorted(p.name for p in tmp_path.glob("closed.*")) == ["closed.0", "closed.1", "closed.2"]


def test_a_worker_stuck_in_a_step_is_killed_by_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptmesh.benchmark.driver.CLOSE_TIMEOUT", 0.2)
    (tmp_path / "stuck").mkdir()
    with Crew(partial(Stuck, tmp_path), 1) as crew:
        pids = crew.pids
        monkeypatch.setattr("ckptmesh.benchmark.driver.START_TIMEOUT", 0.5)  # it has started
        with pytest.raises(WorkerFailed, match="no answer from worker 0 within"):
            crew.run(0.05)
    assert not any(map(alive, pids))


class Stuck(Napping):
    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, 0.0, number)

    def step(self) -> int:
        done = super().step()
        self.nap = 3_600
        return done


def test_a_crew_that_is_closed_within_a_window_ends_it(tmp_path: Path) -> None:
    """As Ctrl-C does: nobody waits for the rest of a window of an hour."""
    crew = Crew(partial(Napping, tmp_path, 0.005), 2)
    begin = time.monotonic()
    for pipe in crew._pipes:
        pipe.send((begin, begin + 3_600))
    until = time.monotonic() + 20
    while not all(len(path.read_text().splitlines()) > 3 for path in tmp_path.glob("steps.*")):
        assert time.monotonic() < until, "the window has begun"
        time.sleep(0.01)
    pids = crew.pids
    crew.close()
    assert not any(map(alive, pids))
    assert len(list(tmp_path.glob("closed.*"))) == 2, "they ended by themselves, not by a kill"
