"""Every disk that may be found after a power failure: the crash images of a `MemoryDisk`.

    for image in Images(disk):
        store = open_a_store_on(image)

The model. Whatever was synced is there. Of everything else each part is decided by itself:

    names     any subset of the changes (create, rename, unlink, mkdir) whose directory was not
              synced since, in their order. Journaling file systems keep a prefix for each
              directory; any subset is weaker, and so asks more of a store. One change is never
              half done: a rename shows the old name or the new one. What is in a directory that
              is lost is lost with it
    sectors   each sector that was written since its file's last sync holds what it held then, or
              after any write since, or zeroes, or garbage, or is torn: the first half of its
              newest bytes before the rest of its oldest. Sectors not written keep what they held;
              those that were cut off may be zeroes
    sizes     the size at the last sync, or after any write or cut since; where the file grew, any
              whole number of sectors in between; and the newest bytes up to any byte of the last
              sector, unless that is all zeroes

Not in the model: disks whose sync lies, a write that damages a sector which it does not touch, more
than one kind of garbage in a sector of an image. The first two break what a log can promise at all.

The product of all this is listed in full where it is within a bound; else a sample of it, by a seed
(see `Images.exhaustive`). Equal images are given once.

Sources of the model: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), for what
file systems reorder; the SQLite project's "Atomic Commit" for what a disk does to sectors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations, islice, product
from typing import NamedTuple

from ckptmesh.testing.disks import File, MemoryDisk, Tree

BOUND = 20_000
"""Images of one crash point that are listed in full, unless told otherwise."""

_SECTOR = MemoryDisk.SECTOR
_NAME_CHANGES = 12  # up to so many, all subsets are taken


class Contents(NamedTuple):
    """What a file may hold, first as processes saw it; `durable` is what it held at its last sync.
    `complete`: these are all that the model allows."""

    found: list[bytes]
    durable: bytes
    complete: bool


class _Choice(NamedTuple):
    """One tree of names: what is certain in it, and the files of which it is not."""

    certain: dict[str, bytes | None]
    uncertain: dict[str, Contents]

    def images(self) -> int:
        return math.prod(len(each.found) for each in self.uncertain.values())

    def every(self) -> Iterator[Sequence[bytes]]:
        return product(*(each.found for each in self.uncertain.values()))

    def ends(self) -> tuple[list[bytes], list[bytes]]:
        """Everything kept; everything lost."""
        every = self.uncertain.values()
        return [each.found[0] for each in every], [each.durable for each in every]

    def deviations(self) -> Iterator[Sequence[bytes]]:
        """For each file all that it may hold beside either of these."""
        for base in self.ends():
            for at, each in enumerate(self.uncertain.values()):
                for other in each.found:
                    yield [*base[:at], other, *base[at + 1 :]]


class Images:
    """The crash images of a disk as it is now; what happens to that disk later changes nothing.
    To be iterated once. It looks into the `MemoryDisk` itself: where a `FaultyDisk` stands in front
    of it, give its `inner`.

    `bound`: most images to list; `seed`: of the sample beyond that, and of the garbage, unless
    `garbage` gives 512 bytes for a sector's number. `exhaustive` tells whether all are listed;
    `combinations` how many choices the model has here. After the iteration, `distinct` counts the
    images that were given, `equal` those left out because they had been given already.
    """

    def __init__(self, disk: MemoryDisk, *, bound: int = BOUND, seed: int = 0,
                 garbage: Callable[[int], bytes] | None = None) -> None:
        self._source = random.Random(seed)
        self._bound = bound
        salt = self._source.getrandbits(32) << 32
        garbage = garbage or (lambda sector: random.Random(salt + sector).randbytes(_SECTOR))
        trees, complete = _trees(disk, self._source, bound)
        files = {id(file): file for tree in trees for file in tree.values() if file is not None}
        contents = {key: contents_of(file, garbage, self._source, bound)
                    for key, file in files.items()}
        self._choices = [_choice(tree, contents) for tree in trees]
        self.combinations = sum(choice.images() for choice in self._choices)
        self.exhaustive = (complete and self.combinations <= bound
                           and all(each.complete for each in contents.values()))
        self.distinct = 0
        self.equal = 0

    def __iter__(self) -> Iterator[MemoryDisk]:
        every = self.combinations <= self._bound
        picks = self._all() if every else islice(self._some(), self._bound)
        seen: set[frozenset[tuple[str, bytes | None]]] = set()
        for choice, picked in picks:
            image = {**choice.certain, **dict(zip(choice.uncertain, picked, strict=True))}
            key = frozenset(image.items())
            if key in seen:
                self.equal += 1
                continue
            seen.add(key)
            self.distinct += 1
            yield MemoryDisk.holding(image)

    def _all(self) -> Iterator[tuple[_Choice, Sequence[bytes]]]:
        for choice in self._choices:
            for picked in choice.every():
                yield choice, picked

    def _some(self) -> Iterator[tuple[_Choice, Sequence[bytes]]]:
        """Of every tree both ends, then the deviations, up to half of the bound; then some drawn at
        random. Endless."""
        ends = ((choice, picked) for choice in self._choices for picked in choice.ends())
        rest = ((choice, picked) for choice in self._choices for picked in choice.deviations())
        yield from islice(chain(ends, rest), self._bound // 2)
        weights = [choice.images() for choice in self._choices]
        while True:
            choice = self._source.choices(self._choices, weights)[0]
            yield choice, [self._source.choice(each.found) for each in choice.uncertain.values()]


def _choice(tree: Tree, contents: Mapping[int, Contents]) -> _Choice:
    certain: dict[str, bytes | None] = {}
    uncertain = {}
    for path, file in tree.items():
        if file is None:
            certain[path] = None
        elif len((each := contents[id(file)]).found) > 1:
            uncertain[path] = each
        else:
            certain[path] = each.durable
    return _Choice(certain, uncertain)


# --- names ------------------------------------------------------------------------------------


def _trees(disk: MemoryDisk, source: random.Random, bound: int) -> tuple[list[Tree], bool]:
    """The trees that subsets of the changes lead to, each once, the newest first; whether these are
    all."""
    free = [at for at, change in enumerate(disk.pending) if not change.synced]
    complete = len(free) <= _NAME_CHANGES
    found: dict[frozenset[tuple[str, int]], Tree] = {}
    for kept in _subsets(free) if complete else _some_subsets(free, source, bound):
        tree = dict(disk.durable)
        for at, change in enumerate(disk.pending):
            if change.synced or at in kept:
                change.redo(tree)
        tree = {path: file for path, file in tree.items() if _reachable(tree, path)}
        found.setdefault(frozenset((path, id(file)) for path, file in tree.items()), tree)
    return list(found.values()), complete


def _reachable(tree: Tree, path: str) -> bool:
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        if path not in tree:
            return False
    return True


def _subsets(free: Sequence[int]) -> Iterator[frozenset[int]]:
    for size in range(len(free), -1, -1):
        yield from map(frozenset, combinations(free, size))


def _some_subsets(
    free: Sequence[int], source: random.Random, bound: int
) -> Iterator[frozenset[int]]:
    """All, none, each prefix, all but one or two, and some at random."""
    every = frozenset(free)
    yield every
    for size in range(len(free)):
        yield frozenset(free[:size])
    for size in (1, 2):
        for lost in combinations(free, size):
            yield every.difference(lost)
    for _ in range(bound // 20):
        yield frozenset(at for at in free if source.random() < 0.5)


# --- bytes ------------------------------------------------------------------------------------


def contents_of(
    file: File, garbage: Callable[[int], bytes], source: random.Random, bound: int = BOUND
) -> Contents:
    """What a file may hold after a power failure; of more than `bound` choices a sample."""
    states = _states(file)
    newest, oldest = states[-1], states[0]
    if not file.unsynced:
        return Contents([oldest], oldest, True)
    written = {sector for offset, data in file.unsynced if data
               for sector in range(offset // _SECTOR, -(-(offset + len(data)) // _SECTOR))}
    sectors = [_options(states, at, at in written, garbage)
               for at in range(-(-max(map(len, states)) // _SECTOR))]
    sizes = _sizes(states)
    count = sum(math.prod(map(len, sectors[: -(-size // _SECTOR)])) for size in sizes)
    tails = _tails(newest, oldest)
    if count <= bound:
        rest: Iterable[bytes] = (b"".join(picked)[:size] for size in sizes
                                 for picked in product(*sectors[: -(-size // _SECTOR)]))
    else:
        rest = islice(_some_bytes(sizes, sectors, source), bound)
    return Contents(list(dict.fromkeys((newest, oldest, *rest, *tails))), oldest, count <= bound)


def _states(file: File) -> list[bytes]:
    """Its bytes at its last sync and after each write and cut since."""
    data = bytearray(file.durable)
    states = [file.durable]
    for offset, piece in file.unsynced:
        if piece is None:
            del data[offset:]
        else:
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(piece)] = piece
        states.append(bytes(data))
    return states


def _options(
    states: Sequence[bytes], sector: int, written: bool, garbage: Callable[[int], bytes]
) -> list[bytes]:
    """What one sector may hold, the newest first."""
    at = sector * _SECTOR
    found = [state[at : at + _SECTOR].ljust(_SECTOR, b"\0") for state in reversed(states)]
    if written:
        half = _SECTOR // 2
        found += [bytes(_SECTOR), found[0][:half] + found[-1][half:], garbage(sector)]
    return list(dict.fromkeys(found))


def _sizes(states: Sequence[bytes]) -> list[int]:
    """Its possible sizes, whole sectors where it grew, the newest first."""
    known = [len(state) for state in reversed(states)]
    first = known[-1] - known[-1] % _SECTOR + _SECTOR
    return list(dict.fromkeys((*known, *range(first, max(known), _SECTOR))))


def _tails(newest: bytes, oldest: bytes) -> Iterator[bytes]:
    """The newest bytes up to each byte of the last sector, where the file grew by it."""
    last = max((len(newest) - 1) // _SECTOR * _SECTOR, len(oldest))
    if newest[last:].strip(b"\0"):
        for size in range(last + 1, len(newest)):
            yield newest[:size]


def _some_bytes(
    sizes: Sequence[int], sectors: Sequence[list[bytes]], source: random.Random
) -> Iterator[bytes]:
    """For each size everything newest, then all that differ in one or two sectors; mixed with as
    many drawn at random. Endless."""

    def differing() -> Iterator[bytes]:
        for size in sizes:
            options = sectors[: -(-size // _SECTOR)]
            base = [each[0] for each in options]
            yield b"".join(base)[:size]
            for count in (1, 2):
                for places in combinations(range(len(options)), count):
                    for others in product(*(options[at][1:] for at in places)):
                        changed = list(base)
                        for at, other in zip(places, others, strict=True):
                            changed[at] = other
                        yield b"".join(changed)[:size]

    listed = differing()
    while True:
        yield from islice(listed, 1)
        size = source.choice(sizes)
        yield b"".join(source.choice(each) for each in sectors[: -(-size // _SECTOR)])[:size]
