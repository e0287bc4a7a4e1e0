"""The envelope of a request, taken apart without trusting it.

Rule 1: whatever the bytes are, the outcome is a value of the shape asked for, or an error of the
        catalogue.
Rule 2: memory spent on a refused payload is bounded before it is spent.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgpack

from ckptmesh import limits
from ckptmesh.errors import Error, InvalidRequest, TooLarge
from ckptmesh.limits import INTEGER_MAX

_SMALL = 4 * limits.KIB  # payloads up to this announce too little to be worth a walk
TINY = 1 * limits.KIB  # payloads up to this may be unpacked with lists as long as they are
_UNCOUNTED = limits.REQUEST_ITEMS // 2  # payloads up to this hold fewer elements than are allowed
_NARROW = 16  # elements of an ordinary array
_ROW = 2 * limits.SOURCES  # elements of an array inside a long list
_LIST = 2 * limits.TRANSACTION_MUTATIONS  # elements of a long list, beyond its limit, to say so


def _no_map(_: object) -> NoReturn:
    raise InvalidRequest("a request holds no maps")


def _no_ext(code: int, _: bytes) -> NoReturn:
    raise InvalidRequest(f"a request holds no extension types (found code {code})")


_OPTIONS: dict[str, Any] = {
    "raw": False, "use_list": False, "object_hook": _no_map, "ext_hook": _no_ext,
    "max_map_len": 0, "max_ext_len": 0,
}


class _Counter:
    """Refuses an envelope while it is being unpacked, at the first element too many.

    Without it 16 MiB of small arrays would take gigabytes before their shape is looked at.
    """

    def __init__(self) -> None:
        self.left = limits.REQUEST_ITEMS

    def __call__(self, array: tuple[Any, ...]) -> tuple[Any, ...]:
        self.left -= 1 + len(array)
        if self.left < 0:
            raise TooLarge(
                f"the request has more than {limits.REQUEST_ITEMS:,} elements in its arrays",
                hint="commit in several transactions, or with fewer sources",
                limit=limits.REQUEST_ITEMS)
        return array


def unpack(data: bytes, long_lists: int = 0) -> tuple[Any, ...]:
    """One msgpack array of arrays and scalars, of which the first `long_lists` elements may be
    long lists. Raises `InvalidRequest` or `TooLarge` for anything else.

    msgpack makes room for an array as soon as it has read its length, at every depth (1,024 of
    them): 3 KB that announce 8,191 elements at each depth would take 64 MiB. So nothing is made
    before it is known that what is announced is there. Where even that could be too much, only the
    outermost lists may be long, and are read element by element.
    """
    size = len(data)
    try:
        if size > _UNCOUNTED:
            found = _unpack_slowly(data, long_lists, _Counter())
        elif size <= TINY:  # that is 341 depths of 1,024 elements: 2.8 MB, were they all announced
            found = msgpack.unpackb(data, max_array_len=size, **_OPTIONS)
        else:
            _skip(data)
            try:
                found = msgpack.unpackb(data, max_array_len=_LIST if long_lists else _ROW,
                                        **_OPTIONS)
            except ValueError:
                found = _unpack_slowly(data, long_lists, None)  # which says what is too long
    except Error:
        raise
    except Exception as exc:  # msgpack raises a dozen kinds; all mean the same here
        raise InvalidRequest(f"not a msgpack request: {type(exc).__name__}") from None
    if type(found) is not tuple:
        raise InvalidRequest("a request is an array, and so is its body")
    return found


def _unpack_slowly(data: bytes, long_lists: int, counter: _Counter | None) -> Any:
    options = _OPTIONS | {"list_hook": counter, "max_array_len": _ROW}
    if long_lists:
        return _unpack_lists(data, long_lists, options)
    return msgpack.unpackb(data, **options)


def _unpack_lists(data: bytes, long_lists: int, options: dict[str, Any]) -> tuple[Any, ...]:
    unpacker = msgpack.Unpacker(None, max_buffer_size=len(data) or 1, **options)  # 0: 1 MiB
    unpacker.feed(data)
    count = unpacker.read_array_header()
    if not long_lists <= count <= _NARROW:
        raise InvalidRequest(f"a body has {long_lists} elements or more, not {count:,}")
    found: list[Any] = []
    for _ in range(long_lists):
        length = unpacker.read_array_header()
        if length > _LIST:
            raise TooLarge(f"a list of {length:,} elements is more than any request holds",
                           size=length, limit=limits.TRANSACTION_MUTATIONS)
        found.append(tuple([unpacker.unpack() for _ in range(length)]))
    found += [unpacker.unpack() for _ in range(count - long_lists)]
    if unpacker.tell() != len(data):
        raise InvalidRequest("bytes follow the end of the body")
    return tuple(found)


def walk(data: bytes | memoryview) -> None:
    """Find out, making nothing, whether msgpack announces more than it holds. Raises `ValueError`.

    To come before unpacking where no shape is known: msgpack may make room for an array as soon as
    it has read its length, at each of 1,024 depths. Small payloads can announce too little.
    """
    if len(data) > _SMALL:
        _skip(data)


def _skip(data: bytes | memoryview) -> None:
    walker = msgpack.Unpacker(None, max_buffer_size=len(data))
    walker.feed(data)
    try:
        walker.skip()
    except msgpack.UnpackException as error:
        raise ValueError(f"not whole: {type(error).__name__}") from None


def integer(value: object, what: str, least: int = 0, most: int = INTEGER_MAX) -> int:
    """The value, if it is an integer (no bool) within the bounds."""
    if type(value) is not int or not least <= value <= most:
        raise InvalidRequest(f"{what} is an integer from {least} to {most}")
    return value


def optional(value: object, what: str, least: int, most: int) -> int | None:
    """The value, if it is None or such an integer."""
    return None if value is None else integer(value, what, least, most)


def text(value: object, what: str, most: int) -> str:
    """The value, if it is text of at most so many bytes."""
    if type(value) is not str or len(value.encode()) > most:
        raise InvalidRequest(f"{what} is text of at most {most} bytes")
    return value


def binary(value: object, what: str, *sizes: int) -> bytes:
    """The value, if it is binary of one of these sizes."""
    if type(value) is not bytes or len(value) not in sizes:
        raise InvalidRequest(f"{what} is binary of {' or '.join(map(str, sizes))} bytes")
    return value


def array(value: object, what: str, least: int, most: int) -> tuple[Any, ...]:
    """The value, if it is an array of so many elements."""
    if type(value) is not tuple or not least <= len(value) <= most:
        raise InvalidRequest(f"{what} is an array of {least} to {most} elements")
    return value


def key_of(value: object) -> str:
    """The value, if it is a key. Raises `InvalidKey`, `TooLarge`."""
    limits.check_key(value)  # type: ignore[arg-type]  # it checks the type first
    return value  # type: ignore[return-value]
