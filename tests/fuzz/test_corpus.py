"""The corpus of the fuzzer, replayed: every input keeps every promise, in bounded memory and time.

Needs no atheris. What a campaign finds is committed to tests/fuzz/corpus once it is mended.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from random import Random

import pytest

from ckptmesh.commands import OPS
from ckptmesh.engine import Engine
from ckptmesh.messages import Compact, Pin, Pins, Reply, Request, Unpin
from ckptmesh.savepoints import Savepoints
from tests.fuzz.coverage import MODULES
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import CORPUS, TARGETS, corpus, name_of

MIB = 1 << 20
SECONDS = 2.0  # of processor time for one small input; most take some microseconds

_MANY = MIB // 32


def _announcing(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


BOMBS = {
    "empty maps": _announcing(_MANY) + b"\x80" * _MANY,
    "empty arrays": _announcing(_MANY) + b"\x90" * _MANY,
    "arrays of one": _announcing(_MANY // 2) + b"\x91\xc0" * (_MANY // 2),
    "short strings": _announcing(_MANY // 3) + b"\xa2ab" * (_MANY // 3),
    "extensions": _announcing(_MANY // 3) + b"\xd4\x05\x00" * (_MANY // 3),
    "wide arrays at every depth": _announcing(_MANY // 2) * 1_020 + b"\xc0" * _MANY,
    "a nest": b"\x91" * _MANY,
    "a nest of JSON": b'{"kind": "ckptmesh manifest", "x": ' + b"[" * _MANY,
    "maps of JSON": b'{"kind": "ckptmesh manifest", "x": [' + b"{}," * (_MANY // 3) + b"1]",
}


def run(target: str, data: bytes, most: float = SECONDS) -> None:
    """Give a target an input; broken promises and slowness fail."""
    began = time.thread_time()
    TARGETS[target].run(data)
    took = time.thread_time() - began
    assert took < most, f"{took:.1f} s for an input of {len(data):,} bytes"


def hoarded(target: str) -> list[str]:
    """The bombs for which a target takes more memory than its bound."""
    run(target, b"")  # what is made once is made now
    found = []
    for name, payload in BOMBS.items():
        data = TARGETS[target].carrying(payload)
        tracemalloc.start()
        try:
            run(target, data, most=5 * SECONDS)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        if peak > MIB + TARGETS[target].memory * len(data):
            found.append(f"{name}: {peak:,} bytes for {len(data):,}")
    return found


@pytest.mark.fault(45)
@pytest.mark.parametrize("target", TARGETS)
def test_every_input_of_the_corpus_keeps_every_promise(target: str) -> None:
    inputs = corpus(target)
    assert len(inputs) > 2
    for data in inputs:
        run(target, data)


@pytest.mark.fault(45)
@pytest.mark.parametrize("target", TARGETS)
def test_so_do_random_changes_of_them(target: str) -> None:
    chance, inputs = Random(f"{target} 1"), corpus(target)
    for _ in range(2_000 if target == "session" else 8_000):
        run(target, mutated(chance, inputs))


@pytest.mark.fault(46)
@pytest.mark.fault(47)
@pytest.mark.parametrize("target", TARGETS)
def test_many_small_things_take_bounded_memory_and_time(target: str) -> None:
    assert hoarded(target) == []


def test_the_corpus_reaches_every_command_and_most_refusals(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the fuzzing of a session would be one of its door."""
    reached: set[tuple[str, str]] = set()
    honest = Engine._decide

    def watched(engine: Engine[int], requests: Sequence[tuple[int, Request]]
                ) -> list[tuple[int, Request, Reply]]:
        decided = honest(engine, requests)
        for _, request, reply in decided:
            outcome = type(reply.error).__name__ if reply.error else "accepted"
            reached.add((type(request.command).__name__, outcome))
        return decided

    pinned: set[type] = set()
    pinning = Savepoints.execute

    def watched_pins(savepoints: Savepoints, request: Request, now: int) -> object:
        result = pinning(savepoints, request, now)
        pinned.add(type(request.command))
        return result

    monkeypatch.setattr(Engine, "_decide", watched)
    monkeypatch.setattr(Savepoints, "execute", watched_pins)
    for data in corpus("session"):
        run("session", data)
    assert {name for name, outcome in reached if outcome == "accepted"} == {
        op.__name__ for op in OPS if op not in (Compact, Pin, Unpin, Pins)}
    assert pinned == {Pin, Unpin, Pins}  # these are answered after their batch
    assert {outcome for _, outcome in reached} >= {
        "Conflict", "LeaseLost", "InvalidValue", "SessionExpired", "Superseded", "EpochChanged",
        "TooManyInFlight", "RequestReused", "DataLoss", "Compacted", "FutureRevision"}


def test_the_corpus_is_small_and_named_by_its_content() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS) == set(MODULES)
    total = 0
    for target in TARGETS:
        for path in (CORPUS / target).iterdir():
            data = path.read_bytes()
            assert path.name == name_of(data)
            total += len(data)
    assert total < MIB
