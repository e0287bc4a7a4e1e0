"""How a run waits, looks around and calls stages: with threads, and with tasks.

Rule: a plain stage function never stands in the way of an event loop: there it is called in a
      thread of its own, and its handle reaches the store through the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

from ckptmesh.api import seconds
from ckptmesh.errors import Closed, Error
from ckptmesh.features.pipeline.definition import Stage
from ckptmesh.features.pipeline.handles import AsyncStageRun, StageRun, Work
from ckptmesh.features.pipeline.ledger import Ledger
from ckptmesh.flows import Flow, run, run_async
from ckptmesh.limits import RUN_LOOK


class Lookout:
    """Looks every second for what is asked of a run, in a thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="ckptmesh-run")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End. A look that is under way and gets no answer is not waited for."""
        self._over.set()
        self._thread.join(RUN_LOOK)

    def _look(self) -> None:
        while not self._over.wait(RUN_LOOK):
            try:
                run(self._ledger.look())
            except Closed:
                return
            except Error:  # it looks again; what stands in the way of commits, the run will hear
                continue


class Threads:
    """The ways of a plain client."""

    def sleep(self, wait: float) -> None:
        """Wait so many seconds."""
        time.sleep(wait)

    def mutex(self) -> threading.Lock:
        """A lock of threads."""
        return threading.Lock()

    def lookout(self, ledger: Ledger) -> Lookout:
        """A thread that looks around."""
        return Lookout(ledger)

    def call(self, stage: Stage, work: Work, arguments: list[Any]) -> Any:
        """Call the function of a stage."""
        return stage.function(StageRun(work, run), *arguments)


class AsyncLookout:
    """The same in a task."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._look(), name="ckptmesh-run")

    async def close(self) -> None:
        """End, after a look that is under way: a commit that is cut off would be in doubt."""
        self._over.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=RUN_LOOK)
            self._task.cancel()

    async def _look(self) -> None:
        while not self._over.is_set():
            try:
                await run_async(self._ledger.look())
            except Closed:
                return
            except Error:
                pass
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), RUN_LOOK)


class Tasks:
    """The ways of a client of asyncio."""

    async def sleep(self, wait: float) -> None:
        """Wait so many seconds."""
        await asyncio.sleep(wait)

    def mutex(self) -> asyncio.Lock:
        """A lock of tasks."""
        return asyncio.Lock()

    def lookout(self, ledger: Ledger) -> AsyncLookout:
        """A task that looks around."""
        return AsyncLookout(ledger)

    async def call(self, stage: Stage, work: Work, arguments: list[Any]) -> Any:
        """Await the function of a stage, as long as its timeout; or call it in a thread."""
        if stage.is_async:
            async with asyncio.timeout(seconds(stage.timeout, None)):
                return await stage.function(AsyncStageRun(work, run_async), *arguments)
        loop = asyncio.get_running_loop()

        def drive(flow: Flow[Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(run_async(flow), loop).result()

        return await asyncio.to_thread(stage.function, StageRun(work, drive), *arguments)
