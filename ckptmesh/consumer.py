"""Write, then acknowledge: a batch is acknowledged only once its offset is known to be stored.

    def acknowledge(ids, receipt): queue.ack(ids)

    consumer = mesh.consumer("orders/0", ack=acknowledge)
    for batch in queue:                                  # [(offset, record), …]
        if not consumer.process(batch, handle_records):
            …                                            # not stored: nothing was acknowledged

Rule 1: nothing is acknowledged before the store has confirmed the offset that covers it.
Rule 2: False means that the write is known to be absent. An unknown outcome is raised.
Rule 3: what was committed is never processed again: a record that comes again at or below the
        committed offset is acknowledged without being processed.

What each ending leaves behind:

  the handler raises            offset as before, nothing acknowledged, the error goes on
  Conflict, another refusal,    offset as before, nothing acknowledged, False; `refusal` says why
  or put() → False
  OutcomeUnknown                nothing acknowledged, the error goes on; the next batch reads anew
  `ack` raises                  the offset stays committed, the error goes on; what is delivered
                                again is acknowledged then

Offsets are integers that count from 1 and grow along the source; 0 means "nothing yet". For a
source that counts from 0, as Kafka does, use offset + 1. Records have to come in that order: the
offset says "all up to here".

The flow stands here once (`flows.py`); `Consumer` and `AsyncConsumer` are its two shells.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ckptmesh.errors import Error, InvalidPayload, Misuse, Unavailable
from ckptmesh.flows import Flow, run, run_async
from ckptmesh.limits import POSITION_MAX, check_key
from ckptmesh.views import Checkpoint, Receipt


class Delivery(NamedTuple):
    """One record as the source delivered it. `id` is what the source wants back to acknowledge
    it, where that is not the offset (a delivery tag, a receipt handle)."""

    offset: int
    record: Any
    id: Any = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What stands for a receipt with a storage that can only say True: `put` under this key, with
    this offset, returned True."""

    key: str
    offset: int


Proof = Receipt | Stored
Batch = Iterable[Delivery | tuple[int, Any] | tuple[int, Any, Any]]


class _Offsets(Protocol):
    """How one kind of storage keeps an offset. `read` and `write` call; the other two interpret."""

    def read(self) -> Any: ...

    def found(self, answer: Any) -> tuple[int, int, Proof | None]:
        """(offset, revision to expect, proof that it is stored)."""
        ...

    def write(self, offset: int, expect: int) -> Any: ...

    def written(self, answer: Any, offset: int) -> Proof | None:
        """The proof; None when the storage says that it did not write."""
        ...


class _StoreOffsets:
    """In a checkpoint store (a client, or any `StateBackend`): an integer, with its position,
    under compare-and-set."""

    def __init__(self, store: Any, key: str) -> None:
        self._store, self._key = store, key

    def read(self) -> Any:
        return self._store.get(self._key)

    def found(self, answer: Checkpoint | None) -> tuple[int, int, Proof | None]:
        if answer is None:
            return 0, 0, None
        offset = _checked(answer.value, self._key)
        # Whatever can be read is on disk, so this reply proves the commit as the first one did.
        proof = Receipt(self._key, answer.revision, answer.epoch, answer.version, answer.micros)
        return offset, answer.revision, proof

    def write(self, offset: int, expect: int) -> Any:
        return self._store.put(self._key, offset, position=offset, expect=expect)

    def written(self, answer: Any, offset: int) -> Proof | None:
        if not isinstance(answer, Receipt) or answer.key != self._key:
            raise Misuse(f"put returned {type(answer).__name__}, not the receipt for "
                         f"{self._key!r}: nothing is acknowledged")
        return answer


class _PlainOffsets:
    """In anything with `put(key, value) -> bool` and `get(key) -> bytes | str | None`: a line of
    JSON with a checksum, so that damage is told from an offset."""

    def __init__(self, storage: Any, key: str) -> None:
        self._storage, self._key = storage, key

    def read(self) -> Any:
        return self._storage.get(self._key)

    def found(self, answer: Any) -> tuple[int, int, Proof | None]:
        if answer is None:
            return 0, 0, None
        if not isinstance(answer, bytes | bytearray | str):
            raise _damaged(self._key, f"{type(answer).__name__} instead of bytes")
        text = answer if isinstance(answer, str) else answer.decode("latin-1")
        parts = _FORM.fullmatch(text)
        if parts is None:
            raise _damaged(self._key, "not of the form that is written")
        offset = _checked(int(parts[1]), self._key)
        if text != _form(offset):
            raise _damaged(self._key, "the checksum does not match")
        return offset, 0, Stored(self._key, offset)

    def write(self, offset: int, expect: int) -> Any:
        return self._storage.put(self._key, _form(offset).encode())

    def written(self, answer: Any, offset: int) -> Proof | None:
        if answer is True:
            return Stored(self._key, offset)
        if answer is False:
            return None
        raise Misuse(
            f"put returned {type(answer).__name__}: it has to say True or False",
            hint="return True once the value is stored for good; nothing was acknowledged",
        )


_FORM = re.compile(r'\{"offset": ([0-9]{1,19}), "crc32": [0-9]{1,10}\}')


def _form(offset: int) -> str:
    return f'{{"offset": {offset}, "crc32": {zlib.crc32(str(offset).encode())}}}'


def _damaged(key: str, reason: str) -> InvalidPayload:
    return InvalidPayload(f"what is stored under {key!r} is not an offset: {reason}", key=key)


def _checked(offset: Any, key: str) -> int:
    if type(offset) is not int or not 0 <= offset <= POSITION_MAX:
        raise _damaged(key, f"{type(offset).__name__} instead of an integer from 0 up")
    return offset


# --- the flow, once for both kinds of caller --------------------------------------------------


class _Core:
    """The decisions. `proof` is of the newest commit known to be stored, `proven` its offset."""

    def __init__(self, storage: Any, key: str, ack: Callable[[list[Any], Any], Any]) -> None:
        check_key(key)
        declares = hasattr(storage, "capabilities")  # as every StateBackend does
        self.offsets: _Offsets = (_StoreOffsets if declares else _PlainOffsets)(storage, key)
        self.key = key
        self.ack = ack
        self.proof: Proof | None = None
        self.proven = 0
        self.refusal: Error | None = None

    def read(self) -> Flow[Any]:
        """Returns (offset, revision to expect)."""
        try:
            answer = yield self.offsets.read
        except InvalidPayload as damage:
            raise _damaged(self.key, damage.message) from damage
        offset, revision, proof = self.offsets.found(answer)
        self.proof, self.proven = proof, offset
        return offset, revision

    def process(self, batch: Batch, handler: Callable[[list[Any]], Any]) -> Flow[Any]:
        deliveries = _ordered(batch)
        self.refusal = None
        if not deliveries:
            return True
        offset, revision = yield from self.read()
        fresh = {delivery.offset: delivery.record
                 for delivery in reversed(deliveries) if delivery.offset > offset}
        if fresh:
            records = list(reversed(fresh.values()))
            yield lambda: handler(records)
            if not (yield from self.commit(deliveries[-1].offset, revision)):
                return False
        yield from self.acknowledge(deliveries, self.proof)
        return True

    def commit(self, offset: int, revision: int) -> Flow[Any]:
        """Returns whether it is stored."""
        try:
            answer = yield lambda: self.offsets.write(offset, revision)
        except Error as error:
            if not _known_absent(error):
                raise
            self.refusal = error
            return False
        proof = self.offsets.written(answer, offset)
        if proof is not None:
            self.proof, self.proven = proof, offset
        return proof is not None

    def acknowledge(self, deliveries: Sequence[Delivery], proof: Any) -> Flow[Any]:
        """The only way to `ack`."""
        if not isinstance(proof, Receipt | Stored):
            raise Misuse(f"acknowledging needs the receipt of a commit, not {proof!r:.80}")
        if proof != self.proof:
            raise Misuse(f"this receipt is not of the newest commit of {self.key!r}")
        last = max(delivery.offset for delivery in deliveries)
        if last > self.proven:
            raise Misuse(f"offset {last} is not covered: {self.key!r} stands at {self.proven}")
        ids = [delivery.offset if delivery.id is None else delivery.id for delivery in deliveries]
        yield lambda: self.ack(ids, proof)


def _known_absent(error: Error) -> bool:
    """Whether the store itself said, or could not have been told, so that nothing was written."""
    return 10 <= error.code < 30 or isinstance(error, Unavailable)


def _ordered(batch: Batch) -> list[Delivery]:
    deliveries = [Delivery(*item) for item in batch]
    before = 0
    for delivery in deliveries:
        offset = delivery.offset
        if type(offset) is not int or not 1 <= offset <= POSITION_MAX:
            raise Misuse(f"an offset is an integer from 1 up, not {offset!r:.80}",
                         hint="for a source that counts from 0, use offset + 1")
        if offset < before:
            raise Misuse(f"offset {offset} comes after {before}: a batch is in order of offsets")
        before = offset
    return deliveries


# --- the two shells ---------------------------------------------------------------------------


class _Shell:
    """What both kinds know without waiting."""

    def __init__(self, storage: Any, key: str, *, ack: Callable[[list[Any], Any], object]) -> None:
        self._core = _Core(storage, key, ack)

    @property
    def key(self) -> str:
        """Where the offset is kept."""
        return self._core.key

    @property
    def refusal(self) -> Error | None:
        """Why the last `process` returned False; None when `put` just said so, or it did not."""
        return self._core.refusal


class Consumer(_Shell):
    """Reads, processes, commits and acknowledges batches under one key. One worker uses it at a
    time; several workers on one key are safe (compare-and-set) but all but one get False.

    `storage`: a client or another `StateBackend`; or any object with `put(key, value) -> bool`
    and `get(key)`. `ack(ids, receipt)` tells the source. Raises `InvalidKey`.
    """

    @property
    def offset(self) -> int:
        """The committed offset, read anew; 0 when there is none. Writes nothing.

        Raises `InvalidPayload` when what is stored there is not an offset.
        """
        return int(run(self._core.read())[0])

    def process(self, batch: Batch, handler: Callable[[list[Any]], object]) -> bool:
        """Give the new records to `handler`, commit, then acknowledge the whole batch.

        True when the batch is acknowledged. False when the offset is known not to be stored, and
        nothing is acknowledged. Raises what the handler, the storage and `ack` raise;
        `OutcomeUnknown` when nobody knows; `InvalidPayload`; `Misuse` for a batch out of order.
        """
        return bool(run(self._core.process(batch, handler)))

    def acknowledge(self, batch: Batch, receipt: Proof) -> None:
        """Acknowledge again what an `ack` that raised left behind, under the receipt it was given.

        Raises `Misuse` unless the receipt is of the newest commit and covers the batch.
        """
        deliveries = _ordered(batch)
        if deliveries:
            run(self._core.acknowledge(deliveries, receipt))


class AsyncConsumer(_Shell):
    """`Consumer` for asyncio: the same names, awaited. `handler` and `ack` may be plain functions
    or coroutine functions; so may `put` and `get` of the storage."""

    @property
    def offset(self) -> Awaitable[int]:
        """As `Consumer.offset`: `await consumer.offset`."""
        return self._offset()

    async def _offset(self) -> int:
        return int((await run_async(self._core.read()))[0])

    async def process(self, batch: Batch, handler: Callable[[list[Any]], object]) -> bool:
        """As `Consumer.process`."""
        return bool(await run_async(self._core.process(batch, handler)))

    async def acknowledge(self, batch: Batch, receipt: Proof) -> None:
        """As `Consumer.acknowledge`."""
        deliveries = _ordered(batch)
        if deliveries:
            await run_async(self._core.acknowledge(deliveries, receipt))
