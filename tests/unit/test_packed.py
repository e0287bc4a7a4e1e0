"""Values that are passed on as their bytes, by both clients."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
import test_client
from test_client import Way

from ckptmesh import InvalidPayload, InvalidValue, values
from ckptmesh.messages import Put, Transact
from ckptmesh.values import Packed

way = test_client.way  # fixtures
client = test_client.client
Make = Callable[..., Any]


class Hue(Enum):  # not registered: a reader gets its name alone
    RED = 1


def test_a_value_read_packed_is_committed_as_it_was_whatever_its_class(client: Make) -> None:
    mesh = client()
    mesh.commit("orders", {"colour": Hue.RED}, position=3)
    found = mesh.get("orders", packed=True)
    assert found.value == Packed(values.pack({"colour": Hue.RED}))
    assert found.position == 3
    assert mesh.value("orders") == {"colour": "RED"}, "read without the class it is bent"
    mesh.commit("copy", found.value)
    mesh.commit_many({"many": found.value})
    with mesh.transaction() as tx:
        tx.put("in/one", found.value)
    for key in ("copy", "many", "in/one"):
        assert mesh.get_many([key], packed=True)[key].value == found.value
        assert [each.value for each in mesh.history(key, packed=True)] == [found.value]
    assert {each.value for each in mesh.scan("", packed=True)} == {found.value}


def test_what_cannot_be_read_is_read_packed_and_never_committed(client: Make, way: Way) -> None:
    mesh = client()
    write_raw(mesh, "orders", b"\xc1")
    with pytest.raises(InvalidPayload):
        mesh.get("orders")
    found = mesh.get("orders", packed=True)
    assert found.value == Packed(b"\xc1")
    before = way.revision
    with pytest.raises(InvalidValue, match="not a value"):
        mesh.commit("copy", found.value)
    assert way.revision == before


def test_packed_bytes_inside_a_value_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"value\['a'\]: .*Packed cannot be stored"):
        values.pack({"a": Packed(b"\x01")})


def write_raw(mesh: Any, key: str, data: bytes) -> None:
    """What a client in another language may do: bytes that are no value of ours."""
    steps = iter([Transact((), (Put(key, data),), False)])

    def operation() -> Any:
        yield next(steps)

    mesh._run(operation(), None)
