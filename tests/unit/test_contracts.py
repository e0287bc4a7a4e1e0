"""Contracts: what the store refuses, what it gives, and that a refusal leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from machines import Store, digest_of

import ckptmesh
from ckptmesh import Client, ContractBroken, InvalidValue, Misuse, Schema, commands, limits
from ckptmesh.errors import DataLoss, InvalidKey, InvalidRequest, OutOfSpace, QuotaExceeded
from ckptmesh.facts import ContractChanged, EpochBegun, SettingChanged, Transaction, Write
from ckptmesh.messages import (
    AcceptLoss,
    ListContracts,
    Open,
    Put,
    Request,
    Rules,
    SetContract,
    Setting,
    Transact,
)
from ckptmesh.records import decode_records, encode_records
from ckptmesh.state import State
from ckptmesh.testing.simulation.model import details


@pytest.fixture
def mesh() -> Iterator[Client]:
    with ckptmesh.connect("memory://") as client:
        yield client


def _refused(rule: str, call: Any, mesh: Client) -> ContractBroken:
    head = mesh.status()["revision"]
    with pytest.raises(ContractBroken) as caught:
        call()
    assert caught.value.details["rule"] == rule
    assert mesh.status()["revision"] == head
    return caught.value


def test_a_position_never_falls_nor_goes_missing_again(mesh: Client) -> None:
    mesh.contract("orders", monotonic=True)
    mesh.commit("orders", "a", position=10)
    mesh.commit("orders", "b", position=10)
    _refused("monotonic", lambda: mesh.commit("orders", "c", position=9), mesh)
    _refused("monotonic", lambda: mesh.commit("orders", "c"), mesh)
    assert mesh.value("orders") == "b"
    mesh.delete("orders")
    mesh.commit("orders", "c", position=1)


def test_what_never_had_a_position_may_stay_without(mesh: Client) -> None:
    mesh.contract("orders", monotonic=True)
    mesh.commit("orders", 1)
    mesh.increment("orders", 1)
    mesh.commit("orders", 3, position=1)
    _refused("monotonic", lambda: mesh.increment("orders", 1), mesh)


def test_each_commit_has_a_position_where_one_is_required(mesh: Client) -> None:
    mesh.contract("orders", required=True)
    _refused("required", lambda: mesh.commit("orders/eu", 1), mesh)
    _refused("required", lambda: mesh.increment("orders/eu", 1), mesh)
    mesh.commit("orders/eu", 1, position=0)


def test_a_position_grows_by_at_most_a_step(mesh: Client) -> None:
    mesh.contract("orders", max_step=10)
    mesh.commit("orders", 1, position=1_000)
    _refused("max_step", lambda: mesh.commit("orders", 1, position=1_011), mesh)
    mesh.commit("orders", 1, position=1_010)
    mesh.commit("orders", 1, position=3)


def test_a_value_has_at_most_so_many_bytes(mesh: Client) -> None:
    mesh.contract("orders", max_bytes=4)
    mesh.commit("orders", "abc")
    _refused("max_bytes", lambda: mesh.commit("orders", "abcd"), mesh)


def test_a_ttl_is_given_to_what_has_none(mesh: Client) -> None:
    mesh.contract("orders", ttl=3600)
    mesh.commit("orders/1", 1)
    mesh.commit("orders/2", 1, ttl=60)
    mesh.commit_many({f"orders/many/{n}": n for n in range(20)})
    mesh.increment("orders/count", 1)
    found = {each.key: each for each in mesh.list("orders")}
    for key in ("orders/1", "orders/many/7", "orders/count"):
        expires = found[key].expires_at
        assert expires is not None
        assert (expires - found[key].time).total_seconds() == 3600
    short = found["orders/2"].expires_at
    assert short is not None
    assert (short - found["orders/2"].time).total_seconds() == 60
    mesh.increment("orders/count", 1)
    assert mesh.get("orders/count").expires_at == found["orders/count"].expires_at  # type: ignore[union-attr]


def test_history_is_as_deep_as_the_nearest_contract_says() -> None:
    state = State(b"u" * 16)
    state.apply(EpochBegun(1, 1))
    state.apply(SettingChanged("history_revisions", 1))
    state.apply(ContractChanged(1, "a", Rules(history=2)))
    state.apply(ContractChanged(1, "a/deep", Rules(history=5)))
    for time in range(2, 22):
        for key in ("a/shallow", "a/deep", "b"):
            state.apply(Transaction(b"", 0, 0, 0, time, (Write(0, key, b"\x01"),), (1,)))
    kept = {key: len(past) for key, past in state.older.items()}
    assert kept["a/shallow"] < kept["a/deep"] < kept["b"]
    assert kept["a/deep"] - kept["a/shallow"] == 3


def test_all_contracts_over_a_key_hold(mesh: Client) -> None:
    mesh.contract("", max_bytes=100)
    mesh.contract("orders", required=True)
    mesh.contract("orders/eu", max_step=5)
    _refused("max_bytes", lambda: mesh.commit("orders/eu", "x" * 200, position=1), mesh)
    _refused("required", lambda: mesh.commit("orders/eu", 1), mesh)
    mesh.commit("orders/eu", 1, position=1)
    _refused("max_step", lambda: mesh.commit("orders/eu", 1, position=9), mesh)
    mesh.commit("orders2", 1)


def test_ckptmeshs_own_keys_are_not_covered(mesh: Client) -> None:
    mesh.contract("orders", required=True, max_bytes=1)
    mesh.commit("orders/_runs/1", "anything", position=None)
    with mesh.lock("orders/eu", ttl=30) as lock:
        mesh.commit("orders/eu", 1, position=1, guard=lock)


def test_a_transaction_that_breaks_one_rule_writes_nothing(mesh: Client) -> None:
    mesh.contract("orders", monotonic=True)
    mesh.commit("orders", 1, position=5)

    def several() -> None:
        with mesh.transaction() as tx:
            tx.put("other", 1)
            tx.put("orders", 2, position=4)

    _refused("monotonic", several, mesh)
    assert mesh.get("other") is None


def test_many_commits_at_once_are_all_held_to_it(mesh: Client) -> None:
    mesh.contract("orders", max_bytes=3)
    _refused("max_bytes", lambda: mesh.commit_many(
        {f"orders/{n}": "abc" if n == 17 else "a" for n in range(30)}), mesh)
    assert not list(mesh.list("orders"))
    mesh.contract("orders", required=True)
    _refused("required", lambda: mesh.commit_many([("orders/1", 1)]), mesh)


def test_a_put_that_follows_in_the_same_request_is_held_to_the_one_before(mesh: Client) -> None:
    mesh.contract("orders", max_step=3)
    puts = tuple(Put("orders", b"\x01", None, False, position) for position in (1, 4, 8))
    with pytest.raises(ContractBroken, match="from position 4 to 8"):
        mesh._run(_asking(Transact((), puts, True)), None)
    assert mesh.get("orders") is None


def _asking(command: Any) -> Any:
    return (yield command)


def test_a_contract_is_versioned_listed_and_taken_away(mesh: Client) -> None:
    first = mesh.contract("orders", monotonic=True, ttl=90)
    assert (first.prefix, first.version, first.ttl) == ("orders", 1, 90.0)
    assert mesh.contract("orders", monotonic=True, ttl=90).version == 1
    assert mesh.contract("orders", max_step=7).version == 2
    assert mesh.contract("a", required=True).version == 1
    assert [each.prefix for each in mesh.contracts()] == ["a", "orders"]
    assert mesh.drop_contract("orders")
    assert not mesh.drop_contract("orders")
    mesh.commit("orders", 1, position=5)
    mesh.commit("orders", 1, position=500)


def test_a_contract_of_a_client_with_a_prefix_is_on_its_own_keys() -> None:
    with ckptmesh.connect("memory://", prefix="team-a") as mesh:
        assert mesh.contract("", required=True).prefix == ""
        error = _refused("required", lambda: mesh.commit("orders", 1), mesh)
        assert error.details["key"] == "orders"
        assert [each.prefix for each in mesh.contracts()] == [""]


@pytest.mark.parametrize("rules", [
    {}, {"max_step": -1}, {"max_bytes": True}, {"history": 1.5}, {"ttl": -1}, {"max_step": 2**70}])
def test_a_contract_that_cannot_be_is_refused(mesh: Client, rules: dict[str, Any]) -> None:
    with pytest.raises(Misuse):
        mesh.contract("orders", **rules)
    assert not mesh.contracts()


def test_a_contract_on_no_prefix_is_refused(mesh: Client) -> None:
    with pytest.raises(InvalidKey):
        mesh.contract("orders/", required=True)


def test_values_are_checked_and_the_schema_is_named_in_the_commit(mesh: Client) -> None:
    schema = Schema({"type": "object", "required": ["offset"],
                     "properties": {"offset": {"type": "integer"}}})
    mesh.contract("orders", schema=schema)
    mesh.contract("orders", schema=schema)
    _refused("schema", lambda: mesh.commit("orders", {"offset": 1}), mesh)
    with pytest.raises(InvalidValue, match=r"\$\.offset"):
        mesh.commit("orders", {"offset": "x"}, schema=schema)
    receipt = mesh.commit("orders", {"offset": 1}, schema=schema)
    with mesh.transaction() as tx:
        tx.put("orders", {"offset": 2}, expect=receipt, schema=schema)
    found = mesh.get("orders")
    assert found is not None
    assert found.sources == ((f"orders/_schemas/{schema.digest}", 0),)
    assert mesh.value(found.sources[0][0]) == schema.document
    other = Schema({"type": "object"})
    assert other.digest != schema.digest
    _refused("schema", lambda: mesh.commit("orders", {}, schema=other), mesh)


def test_the_digest_of_a_schema_does_not_depend_on_the_order_of_its_keys() -> None:
    one = Schema({"type": "object", "required": ["a"]})
    assert one.digest == Schema({"required": ["a"], "type": "object"}).digest


@pytest.mark.parametrize("document", [{"type": "nothing"}, {"type": object()}, {"minimum": "x"}])
def test_what_is_no_schema_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(Misuse, match="no JSON Schema"):
        Schema(document)


def test_contracts_outlive_a_restart_and_a_snapshot(tmp_path: Any) -> None:
    for _ in range(2):
        with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
            mesh.contract("orders", monotonic=True, ttl=100)
            mesh.contract("events", schema=Schema({"type": "integer"}))
    with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
        mesh.compact()
    with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
        assert [(each.prefix, each.version) for each in mesh.contracts()] == [
            ("events", 1), ("orders", 1)]
        mesh.commit("orders", 1, position=5)
        _refused("monotonic", lambda: mesh.commit("orders", 1, position=4), mesh)


def test_a_state_with_contracts_is_loaded_as_it_was_dumped() -> None:
    state = State(b"u" * 16)
    plain = [*state.dump()]
    state.apply(ContractChanged(7, "orders", Rules(True, False, 1, 2, 3, 4, "a" * 64)))
    assert details(State.load(state.dump())) == details(state)
    state.apply(ContractChanged(8, "orders", Rules()))
    assert next(state.dump())[1][0][3] == 8
    assert len(next(state.dump())[1][0]) == len(plain[0][1][0])


def test_a_contract_in_the_log_is_read_as_it_was_written() -> None:
    record = ContractChanged(7, "orders", Rules(True, False, 1, None, 3, None, ""))
    assert decode_records(encode_records([record])) == [record]


@pytest.mark.parametrize("fields", [
    (True, False), (1, False, None, None, None, None, ""), (True, False, "x", None, None, None, ""),
    (True, False, None, None, None, None, b""), (True, False, True, None, None, None, "")])
def test_a_contract_of_another_form_is_no_record(fields: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="record 0"):
        decode_records(encode_records([ContractChanged(7, "orders", fields)]))  # type: ignore[arg-type]


def test_a_rewind_is_not_held_to_contracts_but_has_to_leave_its_record(mesh: Client) -> None:
    mesh.contract("orders", monotonic=True)
    mesh.commit("orders", "a", position=1)
    mesh.commit("orders", "b", position=2)
    record = "orders/_rewinds/1"
    _refused("monotonic", lambda: mesh.commit("orders", "a", position=1, sources=[(record, 0)]),
             mesh)
    with mesh.transaction() as tx:
        tx.put("orders", "a", position=1, sources=[(record, 0)])
        tx.put(record, "bad feed")
    assert mesh.value("orders") == "a"


def test_the_same_request_again_has_its_first_outcome_whatever_the_contract_is_by_then() -> None:
    store = Store()
    user = store.user()
    first = user.ask(Transact((), (Put("orders", b"\x01"),)), number=1)
    store.ask(SetContract("orders", Rules(required=True)))
    again = user.ask(Transact((), (Put("orders", b"\x01"),)), number=1)
    assert again == first
    with pytest.raises(ContractBroken):
        user.ask(Transact((), (Put("orders", b"\x01"),)), number=2)
    store.ask(SetContract("orders", Rules()))
    with pytest.raises(ContractBroken):
        user.ask(Transact((), (Put("orders", b"\x01"),)), number=2)


def test_a_contract_that_is_there_is_not_recorded_again() -> None:
    store = Store()
    for _ in range(2):
        assert store.ask(SetContract("orders", Rules(required=True))) == 1
    changes = [record for record in store.log if isinstance(record, ContractChanged)]
    assert len(changes) == 1


def test_a_late_copy_of_a_change_gets_its_first_answer_and_undoes_nothing() -> None:
    store = Store()
    rules = SetContract("orders", Rules(required=True))
    first = Request(b"", 7, 0, b"", 0, rules, digest_of(rules))
    assert store.batch(first)[0].result == 1
    store.ask(SetContract("orders", Rules()))
    assert store.batch(first)[0].result == 1
    assert not store.state.contracts, "what came later stands"
    setting = Setting("history_versions", 3)
    copy = Request(b"", 8, 0, b"", 0, setting, digest_of(setting))
    store.batch(copy)
    store.ask(Setting("history_versions", 5))
    assert store.batch(copy)[0].error is None
    assert store.state.settings["history_versions"] == 5


def test_a_refused_change_may_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTRACTS", 1)
    store = Store()
    store.ask(SetContract("a", Rules(required=True)))
    rules = SetContract("b", Rules(required=True))
    request = Request(b"", 99, 0, b"", 0, rules, digest_of(rules))
    assert isinstance(store.batch(request)[0].error, QuotaExceeded)
    store.ask(SetContract("a", Rules()))
    assert store.batch(request)[0].result == 1


def test_a_read_only_store_takes_no_contract_and_takes_none_away() -> None:
    store = Store()
    store.ask(SetContract("a", Rules(required=True)))
    store.machine.out_of_space = OutOfSpace("no room")
    for rules in (Rules(), Rules(max_bytes=3)):
        with pytest.raises(OutOfSpace):
            store.ask(SetContract("a", rules))
        assert not store.machine.records
    assert not store.machine.frees(Request(b"", 1, 0, b"", 0, SetContract("a", Rules())))
    store.machine.out_of_space = None
    with pytest.raises(DataLoss):
        store.ask(Open("x", store.state.uuid, store.state.epoch + 1, 0))
    with pytest.raises(DataLoss):
        store.ask(SetContract("a", Rules()))
    store.ask(AcceptLoss())
    store.ask(SetContract("a", Rules()))
    assert not store.state.contracts


@pytest.mark.parametrize("fields", [
    (), (True,) * 7, (1, False, None, None, None, None, ""),
    (False, False, -1, None, None, None, ""),
    (False, False, None, 2**40, None, None, ""), (False, False, None, None, 0, None, ""),
    (False, False, None, None, None, 2**40, ""), (False, False, None, None, None, None, "abc"),
    (False, False, None, None, None, None, "G" * 64)])
def test_a_contract_of_another_form_is_no_request(fields: tuple[Any, ...]) -> None:
    op = commands.op_of(ListContracts()) - 1
    with pytest.raises(InvalidRequest):
        commands.command_of(op, b"", msgpack.packb(("orders", fields)), False)


def test_a_contract_is_read_as_it_was_sent() -> None:
    command = SetContract("orders", Rules(True, False, 1, 2, 3, 4, "a" * 64))
    op, body = commands.pack_command(command)
    assert commands.command_of(op, b"", body, False) == command
