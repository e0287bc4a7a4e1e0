"""Load: some processes that do one thing over and over, all in the same stretch of time.

    with Crew(functools.partial(Committer, url), 16) as crew:
        sample = crew.run(1.0)
    print(sample.rate, sample.latency.percentile(99))

Rule 1: a worker is made, and has done its first step, in its own process before anything is
        measured; between rounds it waits for the next and does nothing.
Rule 2: all workers measure the same window of the machine's monotonic clock. Nothing before it
        counts; of a step that is not done at its end, that share counts which lies inside.
Rule 3: processes come from a fork server, which never had a socket: whoever uses a crew may have
        ZeroMQ contexts and threads. `multiprocessing.set_forkserver_preload`, called before the
        first crew, saves every worker its imports.
Rule 4: no process outlives `close`, nor whoever uses it, for longer than its current step.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from array import array
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from ckptmesh.stats import Histogram

LEAD = 0.05  # seconds between telling the workers and the beginning of a window: all have heard
START_TIMEOUT = 60.0  # seconds for all workers to be ready, or to end the step they are in
LOOK = 0.1  # seconds between two looks of a worker whether anybody still wants its window
CLOSE_TIMEOUT = 5.0  # seconds that workers may take to end before they are killed


class Worker(Protocol):
    """What one process does over and over."""

    def step(self) -> int:
        """One piece of work, durable when this returns. How many operations that was."""
        ...

    def close(self) -> None:
        """Give everything back. Called once, in the process that used it."""
        ...


Make = Callable[[int], Worker]
"""Makes the worker with this number, from 0 up. It travels to the process: a class of a module, or
a `functools.partial` of one."""


class Sample(NamedTuple):
    """What a crew did in one window: of `seconds`; `latency` of its steps in microseconds; `cpu`:
    seconds of processor time, of all threads of all workers."""

    operations: int
    seconds: float
    latency: Histogram
    cpu: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


class WorkerFailed(Exception):
    """A worker could not be made, raised, or ended; the message says which and how. Where there is
    a traceback, it is in the notes."""


class Done(NamedTuple):
    """What one worker did in a window."""

    operations: float
    latencies: array[int]
    cpu: float


class _Failure(NamedTuple):
    text: str
    trace: str


class Crew:
    """So many processes, each with its worker. A context manager; `run` as often as wanted.

    Making it takes until all workers are ready. Raises `WorkerFailed`; then no process is left.
    """

    def __init__(self, make: Make, processes: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipes: list[Connection] = []
        self._processes: list[ForkServerProcess] = []
        try:
            for number in range(processes):
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                process = context.Process(target=_work, args=(make, number, theirs), daemon=True)
                self._processes.append(process)
                process.start()
                theirs.close()
            self._answers(START_TIMEOUT)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The workers' processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def run(self, seconds: float) -> Sample:
        """One window: all workers step from its beginning until it is over.

        Raises `WorkerFailed` when one of them did; close the crew then.
        """
        begin = time.monotonic() + LEAD
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # it has ended; _answers tells how
                pipe.send((begin, begin + seconds))
        latency = Histogram()
        operations = cpu = 0.0
        for done in self._answers(LEAD + seconds + START_TIMEOUT):
            operations += done.operations
            cpu += done.cpu
            for value in done.latencies:
                latency.add(value)
        return Sample(round(operations), seconds, latency, cpu)

    def _answers(self, timeout: float) -> list[Any]:
        """What each worker answers to the last order, in no order. Raises `WorkerFailed`."""
        deadline = time.monotonic() + timeout
        missing = {pipe: number for number, pipe in enumerate(self._pipes)}
        found = []
        while missing:
            ready = wait(list(missing), max(0.0, deadline - time.monotonic()))
            if not ready:
                late = ", ".join(map(str, missing.values()))
                raise WorkerFailed(f"no answer from worker {late} within {timeout:.0f} s")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                found.append(self._answer(pipe, missing.pop(pipe)))
        return found

    def _answer(self, pipe: Connection, number: int) -> Any:
        try:
            answer = pipe.recv()
        except (EOFError, OSError):
            process = self._processes[number]
            process.join(CLOSE_TIMEOUT)
            raise WorkerFailed(f"worker {number} ended with exit code {process.exitcode}") from None
        if isinstance(answer, _Failure):
            failed = WorkerFailed(f"worker {number}: {answer.text}")
            failed.add_note(answer.trace)
            raise failed
        return answer

    def close(self) -> None:
        """End the processes: those that do not within a few seconds are killed. Never raises."""
        for pipe in self._pipes:
            pipe.close()  # a worker that waits, or is done with its step, ends
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for process in self._processes:
            if process.pid is None:  # interrupted before it was started
                continue
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _work(make: Make, number: int, pipe: Connection) -> None:
    """A worker's process: make it, then a window whenever one is ordered, until nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever closes the crew
    try:
        with contextlib.closing(make(number)) as worker:
            worker.step()
            done: Done | None = None
            while (order := _next(pipe, done)) is not None:
                done = window(worker, *order, over=pipe.poll)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            pipe.send(_Failure(text, traceback.format_exc()))


def _next(pipe: Connection, done: Done | None) -> tuple[float, float] | None:
    """Tell what was done; the beginning and end of the next window, None when nobody listens."""
    try:
        pipe.send(done)
        begin, end = pipe.recv()
    except (EOFError, OSError):
        return None
    return begin, end


def window(worker: Worker, begin: float, end: float,
           over: Callable[[], bool] = lambda: False) -> Done:
    """Step from `begin` until `end`, both on the clock that all processes of a machine share; or
    until `over`, asked now and then, says that nobody wants to know any more."""
    clock, look = time.monotonic, begin
    latencies, operations = array("Q"), 0.0
    time.sleep(max(0.0, begin - clock()))
    cpu = time.process_time()
    now = clock()
    while now < end:
        done = worker.step()
        began, now = now, clock()
        operations += done if now <= end else done * (end - began) / (now - began)
        latencies.append(round((now - began) * 1e6))
        if now >= look:
            look = now + LOOK
            if over():
                break
    return Done(operations, latencies, time.process_time() - cpu)
