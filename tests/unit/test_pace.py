"""Publications leave at once while there are few, and together while there are many."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from ckptmesh.limits import PUBLICATION_FEW as FEW
from ckptmesh.limits import PUBLICATION_GAP as GAP
from ckptmesh.store_actor import Pace


def left(batches: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """When how many publications leave, given when how many come; as the store's loop does it."""
    pace, held = Pace(), 0
    found: list[tuple[float, int]] = []
    for at, count in [*batches, (1e9, 0)]:
        if held and at >= pace.until:
            pace.turn(pace.until)
            found.append((pace.until - GAP, held))
            held = 0
        if not count:
            continue
        held += count
        if pace.now(at, count):
            found.append((at, held))
            held = 0
    assert not held
    return found


def test_turns_are_never_held_back() -> None:
    turns = [(1 + 1.001 * i * GAP / FEW, 1) for i in range(200)]
    assert left(turns) == turns


def test_the_first_after_a_quiet_time_leaves_at_once_however_many_it_holds() -> None:
    batches = [(1.0, 1_000), (1 + 3 * GAP, 1_000), (1 + 6 * GAP, 1)]
    assert left(batches) == batches


def test_under_load_there_is_one_frame_in_each_time_and_none_waits_longer() -> None:
    load = [(1 + i * GAP / 50, 2) for i in range(1_000)]  # 20 times
    found = left(load)
    assert sum(count for _, count in found) == 2_000
    settled = [at for at, _ in found if at > 1 + 2 * GAP]
    assert len(settled) <= 20
    waits = [after - before for before, after in itertools.pairwise(settled)]
    assert max(waits) < 1.01 * GAP


def test_load_that_ends_ends_the_gathering() -> None:
    load = [(1 + i * GAP / 50, 2) for i in range(200)]
    alone = [(2.0, 1), (2 + GAP / 3, 1), (2 + GAP / 2, 1)]
    assert left([*load, *alone])[-3:] == alone
