"""Runs to be drawn, made by the library, and the picture of the guide:

    python -m tests.pictures                   # writes docs/debugging.png
    python -m tests.pictures --all FOLDER      # all of them, to be looked at
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ckptmesh
from ckptmesh import Stage
from ckptmesh.features.debugging.attempts import Picture, picture_of
from ckptmesh.features.debugging.reading import newest_run

GUIDE = Path(__file__).parent.parent / "docs" / "debugging.png"
PACE = 0.4  # seconds that a stage takes, times a number


def linear(mesh: Any, pace: float = 0.0) -> str:
    """A run that fails, is resumed, is interrupted as by a kill, and comes to its end."""
    ends: list[BaseException] = [ConnectionError("the warehouse is gone"), _Killed()]

    def rest(factor: float) -> None:
        time.sleep(pace * factor)

    def load(run: Any, rows: list[int]) -> int:
        for batch in range(run.value(default=0), 6):
            run.commit(batch + 1, batch=batch, records=250)
            rest(0.5)
            if batch in (1, 3) and ends:
                raise ends.pop(0)
        return len(rows)

    nightly = ckptmesh.pipeline("nightly", stages=[
        Stage("extract", lambda run: rest(2) or [1, 2, 3]),
        Stage("transform", lambda run, rows: rest(1) or rows),
        Stage("load", load), Stage("report", lambda run, rows: rest(1.5) or f"{rows} rows")])
    for _ in range(3):
        with suppress(ConnectionError, _Killed):
            nightly.run(mesh, key="2026-11-21")
        rest(1)
    return "nightly"


class _Killed(BaseException):
    """Ends a stage so that nothing is recorded, as SIGKILL does."""


def diamond(mesh: Any, pace: float = 0.0) -> str:
    """Fan-out, fan-in, and a line past a column; one branch fails, with retries, and is resumed."""
    fail = [True]

    def score(run: Any, rows: Any) -> int:
        time.sleep(pace)
        if fail:
            raise TimeoutError("the scoring service did not answer within 30 s, three times over")
        return 1

    def work(run: Any, *needs: Any) -> int:
        time.sleep(pace)
        return len(needs)

    pipeline = ckptmesh.pipeline("customers", stages=[
        Stage("read-accounts", work), Stage("clean", work, needs=["read-accounts"]),
        Stage("deduplicate-by-mail-and-phone-number", work, needs=["read-accounts"]),
        Stage("score", score, needs=["read-accounts"], retries=1, delay=0),
        Stage("enrich", work, needs=["clean"]),
        Stage("join", work, needs=["enrich", "deduplicate-by-mail-and-phone-number", "score"]),
        Stage("publish", work, needs=["join", "read-accounts"])])
    with suppress(TimeoutError):
        pipeline.run(mesh, key="week 47")
    fail.clear()
    pipeline.run(mesh, key="week 47")
    return "customers"


def twelve(mesh: Any, pace: float = 0.0) -> str:
    """Twelve stages in a row; paused in the seventh."""
    names = ["fetch", "unpack", "validate", "normalise", "deduplicate", "geocode", "aggregate",
             "rank", "render", "upload", "invalidate-caches", "notify"]

    def work(run: Any, *needs: Any) -> int:
        time.sleep(pace / 2)
        if run.stage == "aggregate":
            mesh.runs("catalogue").pause(run.key, reason="the feed is late")
            while not run.should_stop:
                time.sleep(0.05)
            run.check()
        return 1

    pipeline = ckptmesh.pipeline("catalogue", stages=[Stage(name, work) for name in names])
    with suppress(ckptmesh.RunStopped):
        pipeline.run(mesh, key="2026-11-22")
    return "catalogue"


def under_way(mesh: Any, pace: float, look: Callable[[str], None]) -> None:
    """A run that is looked at while its third stage works."""
    def load(run: Any, rows: Any) -> int:
        for batch in range(3):
            run.commit(batch + 1, batch=batch, records=1_000)
            time.sleep(pace)
        look("hourly")
        return 3

    ckptmesh.pipeline("hourly", stages=[
        Stage("extract", lambda run: 1), Stage("transform", lambda run, rows: 2),
        Stage("load", load), Stage("report", lambda run, rows: 3)]).run(mesh, key="13:00")


MADE = {"linear": linear, "diamond": diamond, "twelve": twelve}


def picture(mesh: Any, pipeline: str) -> Picture:
    """Of the newest run."""
    return picture_of(mesh, newest_run(mesh, pipeline))


def main() -> None:
    from ckptmesh.features.debugging.drawing import png

    parser = argparse.ArgumentParser()
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    folder: Path | None = parser.parse_args().all
    with ckptmesh.connect("memory://") as mesh:
        if folder is None:
            GUIDE.write_bytes(png(picture(mesh, linear(mesh, PACE))))
            return
        for name, make in MADE.items():
            (folder / f"{name}.png").write_bytes(png(picture(mesh, make(mesh, PACE))))
        under_way(mesh, PACE, lambda pipeline: (folder / "under_way.png").write_bytes(
            png(picture(mesh, pipeline))) and None)


if __name__ == "__main__":
    main()
