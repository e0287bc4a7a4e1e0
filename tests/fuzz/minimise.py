"""Add to the committed corpus what reaches new branches, smallest first.

    python -m tests.fuzz.minimise FOLDER [TARGET …]     (FOLDER holds one folder a target)

Needs no atheris: branches are seen by tracing. What the corpus holds already stays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import ckptmesh
from tests.fuzz.targets import CORPUS, TARGETS, corpus, name_of

_PACKAGE = str(Path(ckptmesh.__file__).parent)

Step = tuple[CodeType, int, int]
"""From one line to the next, in one function."""


def steps(run: Callable[[bytes], None], data: bytes) -> set[Step]:
    """The steps that an input takes through the package."""
    found: set[Step] = set()

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        code, last = frame.f_code, 0
        if not code.co_filename.startswith(_PACKAGE):
            return None

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            found.add((code, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        run(data)
    finally:
        sys.settrace(before)
    return found


def minimise(target: str, folder: Path) -> int:
    """Add what is new; the number of inputs added."""
    run = TARGETS[target].run
    run(b"")  # what is made once is made now
    seen: set[Step] = set()
    for data in corpus(target):
        seen |= steps(run, data)
    added = 0
    for path in sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        data = path.read_bytes()
        new = steps(run, data) - seen
        if new:
            seen |= new
            (CORPUS / target / name_of(data)).write_bytes(data)
            added += 1
    return added


def main(arguments: list[str]) -> None:
    """As the page of this module says."""
    folder, *targets = arguments
    for target in targets or TARGETS:
        if (Path(folder) / target).is_dir():
            print(target, minimise(target, Path(folder) / target), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
