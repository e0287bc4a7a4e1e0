"""Records as bytes: the payload of a log frame.

Rule 1: nothing here reads a clock, a file or a random number.
Rule 2: what is decoded has the types of `facts.py`, or a `ValueError` says which record has not.
Rule 3: a payload is unpacked at once, with every limit set; a stream of msgpack is never iterated,
        since the unpacker stops silently at damage.
Rule 4: memory is bounded by the size of what is unpacked, whatever it announces.

A payload is one msgpack array of records. A record is an array `[tag, *fields]`: the tag is its
index in `facts.RECORD_TYPES`, the fields follow in the order of `facts.py`. A `Write` is the
array of its fields without the trailing ones that have their default, but always kind and key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NoReturn

import msgpack

from ckptmesh.contracts import contract_of
from ckptmesh.entries import MANY, SMALL, are_all
from ckptmesh.envelope import walk
from ckptmesh.facts import (
    RECORD_TYPES,
    TAKES_REVISION,
    ContractChanged,
    EpochBegun,
    Expiry,
    LossAccepted,
    LossSuspected,
    PlainWrites,
    Puts,
    Record,
    Sealed,
    SessionEnded,
    SessionOpened,
    SettingChanged,
    TimeReserved,
    Transaction,
    Write,
)
from ckptmesh.messages import PUT, TOUCH, tuple_of

_TAG = {kind: tag for tag, kind in enumerate(RECORD_TYPES)}
_WRITE_DEFAULTS = tuple(Write._field_defaults.get(name) for name in Write._fields)
_WRITE_FIELDS = len(Write._fields)
_KINDS = (*range(PUT, TOUCH + 1),)

_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack


def encode_records(records: Sequence[Record | Puts]) -> bytes:
    """The payload of a frame that holds these records, in this order.

    Raises `ValueError` or `OverflowError` for an integer beyond 64 bits.
    """
    rows: list[Any] = []
    for record in records:
        if isinstance(record, Transaction):
            rows.append((0, *record[:5], _rows_of(record.writes), record.results))
        elif isinstance(record, Puts):
            writes = zip(zip(repeat(PUT), record.keys, record.values, strict=False), strict=True)
            rows += zip(repeat(0), *record[:5], writes, record.results, strict=False)
        else:
            rows.append((_TAG[type(record)], *record))
    return _pack(rows)


def count_of(records: Sequence[Record | Puts]) -> int:
    """How many records these are in the log."""
    return sum([len(record.keys) if type(record) is Puts else 1 for record in records])


def taken_by(records: Sequence[Record | Puts]) -> int:
    """How many revisions these take."""
    return sum([len(record.keys) if type(record) is Puts else type(record) in TAKES_REVISION
                for record in records])


def _rows_of(writes: Sequence[Write]) -> list[Any]:
    if type(writes) is PlainWrites:
        return [*zip(repeat(PUT), writes.keys, writes.values, strict=False)]
    return [_trim(write) for write in writes]


def _trim(write: Write) -> tuple[Any, ...]:
    if write[3:] == _WRITE_DEFAULTS[3:] and write[2]:
        return write[:3]
    count = _WRITE_FIELDS
    while count > 2 and write[count - 1] == _WRITE_DEFAULTS[count - 1]:
        count -= 1
    return write[:count]


def decode_records(payload: bytes) -> list[Record]:
    """The records of a payload, as `encode_records` was given them.

    Raises `ValueError` for whatever is not such a payload: broken msgpack, an unknown tag, a wrong
    count or type of fields. The message names the record by its index.
    """
    records = []
    for row in unpack_rows(payload):
        try:
            records.append(_DECODERS[row[0]](row))
        except (TypeError, IndexError, KeyError, ValueError) as error:
            raise ValueError(f"record {len(records)} of the frame: {error}") from None
    return records


def puts_of(rows: Sequence[Any]) -> Puts | None:
    """The records of these rows, if all of them are plain puts and as well formed as
    `decode_records` demands; otherwise None."""
    try:
        tags, sessions, numbers, lows, digests, times, groups, results = zip(*rows, strict=True)
        if not (are_all(tuple, rows) and are_all(tuple, groups) and are_all(tuple, results)):
            return None
        writes = [write for (write,) in groups]
        kinds, keys, values = zip(*writes, strict=True)
    except (TypeError, ValueError):  # rows of other lengths, or no rows
        return None
    integers = chain(tags, numbers, lows, digests, times, kinds, chain.from_iterable(results))
    if not (are_all(tuple, writes) and are_all(int, integers) and are_all(bytes, sessions)
            and are_all(str, keys) and are_all(bytes, values)
            and tags.count(_TAG[Transaction]) == kinds.count(PUT) == len(rows)
            and max(map(len, values)) <= SMALL):
        return None
    return Puts(sessions, numbers, lows, digests, times, keys, values, results)


def one_by_one(records: Sequence[Record | Puts]) -> list[Record]:
    """The records as the log holds them."""
    return [each for record in records
            for each in (records_of(record) if isinstance(record, Puts) else (record,))]


def records_of(puts: Puts) -> Iterator[Record]:
    """The same one by one."""
    for session, number, low, digest, time, key, value, results in zip(*puts, strict=True):
        yield Transaction(session, number, low, digest, time, (Write(PUT, key, value),), results)


def steps_of(rows: Sequence[Any]) -> list[Puts | Record]:
    """The records of these rows in their order, longer runs of plain puts by columns.

    Raises `ValueError` where one is malformed.
    """
    puts = puts_of(rows)
    if puts is not None:
        return [puts]
    steps: list[Puts | Record] = []
    begin = 0
    try:
        for end in [*(at for at, row in enumerate(rows) if _stands_out(row)), len(rows)]:
            run = puts_of(rows[begin:end]) if end - begin >= MANY else None
            if run is not None:
                steps.append(run)
            else:
                steps += (_DECODERS[row[0]](row) for row in rows[begin:end])
            steps += (_DECODERS[row[0]](row) for row in rows[end : end + 1])
            begin = end + 1
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError(f"a malformed record: {error}") from None
    return steps


def _stands_out(row: tuple[Any, ...]) -> bool:
    """Whether a row cannot be that of a plain put."""
    return (len(row) != 8 or len(row[6]) != 1 or len(row[6][0]) != 3
            or len(row[6][0][2]) > SMALL)


def unpack_rows(data: bytes | memoryview) -> tuple[Any, ...]:
    """The elements of one msgpack array of arrays and scalars. Raises `ValueError`.

    Takes at most about 40 bytes of memory a byte: what is announced and not there is found first,
    and empty maps, 64 bytes each, are no part of any row.
    """
    try:
        walk(data)
        # What is not limited here is limited by the size of the data.
        rows = msgpack.unpackb(data, use_list=False, max_map_len=0, max_ext_len=0,
                               object_hook=_no_map, ext_hook=_no_ext)
    except ValueError as error:  # the root of all of msgpack's errors; some have no message
        raise ValueError(f"it is not msgpack: {error or type(error).__name__}") from None
    if type(rows) is not tuple:
        raise ValueError("it is not an array of rows")
    return rows


def _no_map(_: object) -> NoReturn:
    raise ValueError("a row holds no maps")


def _no_ext(code: int, _: bytes) -> NoReturn:
    raise ValueError(f"a row holds no extension types (found code {code})")


def _transaction(row: tuple[Any, ...]) -> Record:
    _, session, number, low, digest, time, writes, results = row
    if not (
        type(session) is bytes and type(number) is int and type(low) is int
        and type(digest) is int and type(time) is int and type(writes) is tuple
        and type(results) is tuple
    ):
        raise ValueError("a field of a transaction has a wrong type")
    for result in results:
        if type(result) is not int:
            raise ValueError("a result is not an integer")
    settled = tuple([_write(write) for write in writes])
    record: Record = tuple_of(
        Transaction, (session, number, low, digest, time, settled, results)
    )
    return record


def _write(row: tuple[Any, ...]) -> Write:
    count = len(row)
    if type(row) is not tuple or not 2 <= count <= _WRITE_FIELDS:
        raise ValueError("a write has a wrong form")
    if type(row[0]) is not int or row[0] not in _KINDS or type(row[1]) is not str:
        raise ValueError("a write has a wrong kind or key")
    if count > 2:
        if type(row[2]) is not bytes:
            raise ValueError("a value is not bytes")
        if count > 3:
            _check_rare_fields(row)
    write: Write = tuple_of(Write, row + _WRITE_DEFAULTS[count:])
    return write


def _check_rare_fields(row: tuple[Any, ...]) -> None:
    for field in row[3:7]:
        if field is not None and type(field) is not int:
            raise ValueError("a field of a write is neither an integer nor absent")
    if len(row) > 7:
        if type(row[7]) is not tuple:
            raise ValueError("sources are not an array")
        for source in row[7]:
            if type(source) is not tuple or tuple(map(type, source)) != (str, int):
                raise ValueError("a source is not a pair of key and revision")


def _plain(kind: Any, *types: type) -> Callable[[tuple[Any, ...]], Record]:
    """The decoder of a record whose fields are all plain values of these types."""
    expected = (int, *types)

    def decode(row: tuple[Any, ...]) -> Record:
        if tuple(map(type, row)) != expected:
            raise ValueError(f"the fields of {kind.__name__} have wrong types or a wrong count")
        record: Record = tuple_of(kind, row[1:])
        return record

    return decode


def _contract(row: tuple[Any, ...]) -> Record:
    _, time, prefix, fields = row
    if type(time) is not int or type(prefix) is not str or type(fields) is not tuple:
        raise ValueError("the fields of ContractChanged have wrong types")
    return ContractChanged(time, prefix, contract_of(fields))


_BY_TYPE: dict[Any, Callable[[tuple[Any, ...]], Record]] = {
    Transaction: _transaction,
    Expiry: _plain(Expiry, int, str),
    SessionOpened: _plain(SessionOpened, bytes, int, str),
    SessionEnded: _plain(SessionEnded, bytes, int),
    EpochBegun: _plain(EpochBegun, int, int),
    Sealed: _plain(Sealed, int),
    TimeReserved: _plain(TimeReserved, int),
    SettingChanged: _plain(SettingChanged, str, int),
    LossSuspected: _plain(LossSuspected, int, int),
    LossAccepted: _plain(LossAccepted),
    ContractChanged: _contract,
}
# A mapping, not a list: a tag of -1 must not find the last decoder, nor True the second.
_DECODERS = {_TAG[kind]: decoder for kind, decoder in _BY_TYPE.items()}
