"""Stores with one planted fault each, made by the library itself in a directory of their own, and
healthy ones, in which nothing is to be found:

    python -m tests.broken FOLDER      # makes FOLDER/NAME for each; then
    ckptmesh debug report nightly --url file:FOLDER/NAME
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ckptmesh
from ckptmesh import Stage
from ckptmesh.messages import Put, Transact

ROOT = Path(__file__).parent.parent
DAY = "2026-11-21"
RECORD, KEPT = f"nightly/_runs/run/{DAY}", f"nightly/_runs/kept/{DAY}"


class Broken(NamedTuple):
    """How a store is made, what is wrong in it, and what the report has to name: the fault, and
    the key, or how it begins; `also`: other faults that follow from it."""

    make: Callable[[Path], None]
    fault: str
    key: str
    also: frozenset[str] = frozenset()


def url_of(folder: Path) -> str:
    """The URL of a store in a folder."""
    return f"file:{folder}/state"


def _store(folder: Path) -> Any:
    return ckptmesh.connect(url_of(folder))


def pipeline(work: Callable[..., Any] = lambda run, rows: len(rows)) -> ckptmesh.Pipeline:
    """Three stages, of which the first leaves a file."""
    def extract(run: Any) -> Any:
        run.report(records=3, position=30, head=40)
        return run.save(b"1\n2\n3\n", "rows.csv")

    return ckptmesh.pipeline("nightly", stages=[
        Stage("extract", extract),
        Stage("transform", lambda run, file: file.open().read().split()), Stage("load", work)])


def healthy(folder: Path) -> None:
    """Runs that failed and were resumed, retried and paused; workers, intervals and cursors that
    have ended; positions that only grow; commands; locks that were given back."""
    storage = folder / "storage"
    errors = [ConnectionError("gone"), ConnectionError("gone again")]

    def work(run: Any, rows: Any) -> int:
        if errors:
            raise errors.pop()
        return len(rows)

    with _store(folder) as mesh:
        for _ in range(2):
            with suppress(ConnectionError):
                pipeline(work).run(mesh, key="2026-11-20", storage=storage)
        pipeline(work).run(mesh, key="2026-11-20", storage=storage)
        pipeline().run(mesh, key=DAY, storage=storage)
        pipeline().run(mesh, key=DAY, storage=storage, inputs={"again": 1})
        pipeline().run(mesh, key=DAY, storage=storage, resume="never", at_most=2)
        for position in (10, 20, 30):
            mesh.commit("nightly", {"at": position}, position=position, head=30)
        with mesh.intervals("nightly/rows", end=100) as todo:
            todo.done(todo.claim(50))
        with mesh.cursor("nightly/feed", by="at", id="id") as cursor:
            list(cursor.new([{"at": 1, "id": 1}]))
        with mesh.lock("nightly/step"):
            mesh.increment("nightly/count")
        with mesh.worker("nightly", partitions=2, idle=0) as worker:
            for part in worker:
                part.commit(1)
                worker.drain()


def _file_changed(folder: Path) -> None:
    with _store(folder) as mesh:
        found = pipeline().run(mesh, key=DAY, storage=folder / "storage")
        found.outputs["extract"].path.write_bytes(b"1\n2\n4\n")


def _file_gone(folder: Path) -> None:
    with _store(folder) as mesh:
        found = pipeline().run(mesh, key=DAY, storage=folder / "storage", at_most=1)
        found.outputs["extract"].path.unlink()


def _output_replaced(folder: Path) -> None:
    with _store(folder) as mesh:
        pipeline().run(mesh, key=DAY, storage=folder / "storage")
        mesh.commit(f"nightly/_runs/kept/{DAY}/transform", ["somebody's hand"])


def _output_deleted(folder: Path) -> None:
    with _store(folder) as mesh:
        pipeline().run(mesh, key=DAY, storage=folder / "storage", at_most=2)
        mesh.delete(f"nightly/_runs/kept/{DAY}/transform")


def _dies(folder: Path, what: str) -> None:
    """Let a process of its own do something until it kills itself."""
    done = subprocess.run([sys.executable, "-m", "tests.broken", str(folder), "--die", what],
                          cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == -signal.SIGKILL


def _kill_me(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _worker_died(folder: Path) -> None:
    _dies(folder, "run")


def _holder_died(folder: Path) -> None:
    _dies(folder, "lock")


def _die(folder: Path, what: str) -> None:
    with _store(folder) as mesh:
        if what == "lock":
            with mesh.lock("nightly/step"):
                _kill_me()
        pipeline(_kill_me).run(mesh, key=DAY, storage=folder / "storage")


def _newer_record(folder: Path) -> None:
    with _store(folder) as mesh:
        pipeline().run(mesh, key=DAY, storage=folder / "storage")
        mesh.update(RECORD, lambda record: {**record, "schema": 99, "colour": "blue"})


def _no_record(folder: Path) -> None:
    with _store(folder) as mesh:
        pipeline().run(mesh, key=DAY, storage=folder / "storage")
        mesh.update(RECORD, lambda record: {**record, "status": "blue"})


def _stepped_back(folder: Path) -> None:
    with _store(folder) as mesh:
        for position in (10, 20, 5):
            mesh.commit("nightly/rows", position, position=position)


def _head_behind(folder: Path) -> None:
    with _store(folder) as mesh:
        mesh.commit("nightly", 100, position=100, head=90)


def _damaged_value(folder: Path) -> None:
    def steps() -> Any:  # as a client in another language might
        return (yield Transact((), (Put("nightly/rows", b"\xc1"),)))

    with _store(folder) as mesh:
        mesh.commit("nightly/rows", 1)
        mesh._run(steps(), None)


def _out_of_order(folder: Path) -> None:
    with _store(folder) as mesh:
        pipeline().run(mesh, key=DAY, storage=folder / "storage", at_most=1)

        def forged(record: Any) -> Any:
            record["stages"][2]["status"] = "completed"
            return record

        mesh.update(RECORD, forged)


def _always_fails(folder: Path) -> None:
    def work(run: Any, rows: Any) -> None:
        raise PermissionError("no rights on the warehouse")

    with _store(folder) as mesh:
        for _ in range(3):
            with suppress(PermissionError):
                pipeline(work).run(mesh, key=DAY, storage=folder / "storage")


BROKEN = {
    "file-changed": Broken(_file_changed, "changed-output", f"{KEPT}/extract"),
    "file-gone": Broken(_file_gone, "missing-output", f"{KEPT}/extract"),
    "output-replaced": Broken(_output_replaced, "changed-output", f"{KEPT}/transform"),
    "output-deleted": Broken(_output_deleted, "missing-output", f"{KEPT}/transform"),
    "worker-died": Broken(_worker_died, "nobody-at-it", RECORD, frozenset({"dead-holder"})),
    "holder-died": Broken(_holder_died, "dead-holder", "nightly/_lock/step/_ticket/"),
    "newer-record": Broken(_newer_record, "newer-record", RECORD),
    "no-record": Broken(_no_record, "unreadable-record", RECORD),
    "stepped-back": Broken(_stepped_back, "stepped-back", "nightly/rows"),
    "head-behind": Broken(_head_behind, "head-behind", "nightly"),
    "damaged-value": Broken(_damaged_value, "unreadable-value", "nightly/rows"),
    "out-of-order": Broken(_out_of_order, "completed-before-need", RECORD,
                           frozenset({"missing-output"})),
    "always-fails": Broken(_always_fails, "repeated-errors", RECORD),
}


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    if sys.argv[2:3] == ["--die"]:
        _die(folder, sys.argv[3])
    for name, make in {"healthy": healthy, **{name: each.make for name, each in BROKEN.items()},
                       }.items():
        (folder / name).mkdir(parents=True)
        make(folder / name)
        print(name, url_of(folder / name))


if __name__ == "__main__":
    main()
