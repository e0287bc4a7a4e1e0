"""Both clients over an engine in memory, with faults between them where a test says so.

Every test runs on `Client` and, through `blocking`, on `AsyncClient`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import ckptmesh
from ckptmesh import bundles, commands, errors, flows, protocol, session
from ckptmesh.aio import AsyncClient
from ckptmesh.client import Client
from ckptmesh.messages import Transact
from ckptmesh.opening import open_engine
from ckptmesh.testing.blocking import blocking
from ckptmesh.transport import EngineTransport

TRANSACT = commands.OPS.index(Transact)

Handle = Callable[[Sequence[bytes]], list[bytes]]


class Way:
    """An engine in memory and the way to it, which loses what a test wants it to lose."""

    def __init__(self) -> None:
        self.engine = open_engine(None)
        self.lose_requests = False
        self.lose_replies = False
        self.lose_outcomes = False  # replies to transactions only
        self.lost = 0
        self.fault: BaseException | None = None

    def handle(self, payloads: Sequence[bytes]) -> list[bytes]:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if self.lose_requests:
            self.lost += len(payloads)
            return []
        replies = self.engine.handle(payloads)
        if self.lose_replies:
            self.lost += len(replies)
            return []
        if self.lose_outcomes:
            return [r for r in replies if protocol.decode_reply(r)[0] != TRANSACT]
        return replies

    def transport(self) -> EngineTransport:
        return EngineTransport("memory://test", self.handle, lambda: None, self.engine)

    @property
    def revision(self) -> int:
        return self.engine.revision


@pytest.fixture
def way() -> Way:
    return Way()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, way: Way, monkeypatch: pytest.MonkeyPatch
           ) -> Iterator[Callable[..., Any]]:
    """Makes clients of `way`. What is lost is sent again within milliseconds."""
    monkeypatch.setattr(session, "RESEND_FIRST", 0.005)
    monkeypatch.setattr(session, "RESEND_MAX", 0.02)
    with contextlib.ExitStack() as stack:
        def make(**options: Any) -> Any:
            if request.param == "sync":
                return stack.enter_context(Client(way.transport(), **options))

            async def there() -> AsyncClient:
                return AsyncClient(way.transport(), **options)

            found = blocking(there)
            stack.callback(found.__exit__, None, None, None)
            return found
        yield make


# --- once, and honest about it ----------------------------------------------------------------


@pytest.mark.fault(31)
def test_a_commit_whose_reply_is_lost_takes_effect_once(
    client: Callable[..., Any], way: Way
) -> None:
    mesh = client()
    mesh.commit("other", 0)
    before = way.revision
    way.lose_replies = True
    future = mesh.submit("orders", 1, timeout=20)
    with pytest.raises(TimeoutError):
        future.result(0.1)
    assert way.lost > 1
    way.lose_replies = False
    assert future.result(10).revision == before + 1
    assert way.revision == before + 1
    assert mesh.stats()["retries"] > 0


def unknown(mesh: Any, way: Way, fault: str, ask: Callable[[], Any]) -> errors.OutcomeUnknown:
    """Provoke an unknown outcome: the session is open, then everything is lost."""
    mesh.commit("other", 0)
    setattr(way, fault, True)
    with pytest.raises(errors.OutcomeUnknown) as caught:
        ask()
    setattr(way, fault, False)
    return caught.value


@pytest.mark.parametrize("wait", ["result", "flush", "another call"])
def test_a_submitted_commit_that_nobody_answers_ends_at_its_deadline(
    client: Callable[..., Any], way: Way, wait: str
) -> None:
    mesh = client()
    mesh.commit("other", 0)
    way.lose_requests = True
    futures = [mesh.submit("orders", count, timeout=0.05) for count in range(3)]
    if wait == "flush":
        with pytest.raises(errors.OutcomeUnknown):
            mesh.flush()
    elif wait == "another call":
        with pytest.raises(errors.Unavailable):
            mesh.get("orders", timeout=0.2)
    for future in futures:
        with pytest.raises(errors.OutcomeUnknown):
            future.result(10)
    way.lose_requests = False


def resolved(mesh: Any, error: errors.OutcomeUnknown) -> Any:
    """`resolve()`, awaited where the client is an asyncio one."""
    loop = getattr(mesh, "_loop", None)
    return loop.run(error.resolve) if loop else error.resolve()


def test_an_unknown_outcome_that_took_effect_resolves_to_what_the_call_would_have_returned(
    client: Callable[..., Any], way: Way
) -> None:
    mesh = client()
    error = unknown(mesh, way, "lose_replies", lambda: mesh.commit("orders", 7, timeout=0.05))
    receipt = resolved(mesh, error)
    standing = mesh.get("orders")
    assert (receipt.key, receipt.revision) == ("orders", standing.revision)
    assert resolved(mesh, error) == receipt


def test_an_unknown_outcome_that_never_arrived_resolves_to_none(
    client: Callable[..., Any], way: Way
) -> None:
    mesh = client()
    error = unknown(mesh, way, "lose_requests", lambda: mesh.commit("orders", 7, timeout=0.05))
    assert resolved(mesh, error) is None
    assert mesh.get("orders") is None
    assert resolved(mesh, error) is None


@pytest.mark.parametrize(("call", "expected"), [
    (lambda mesh: mesh.increment("count", 5, timeout=0.05), 5),
    (lambda mesh: mesh.delete("other", timeout=0.05), True),
    (lambda mesh: mesh.update("n", lambda n: n + 1, 1, timeout=0.05).revision, None),
])
def test_every_kind_of_commit_resolves_in_its_own_words(
    client: Callable[..., Any], way: Way, call: Callable[[Any], Any], expected: Any
) -> None:
    mesh = client()
    mesh.commit("n", 1)
    mesh.commit("other", 0)
    error = unknown(mesh, way, "lose_outcomes", lambda: call(mesh))
    found = resolved(mesh, error)
    assert found == expected if expected is not None else found.key == "n"


def test_a_transaction_resolves_to_its_revision(client: Callable[..., Any], way: Way) -> None:
    mesh = client()
    tx = mesh.transaction(timeout=0.05)
    tx.put("a", 1)
    tx.delete("b")
    error = unknown(mesh, way, "lose_replies", tx.commit)
    assert resolved(mesh, error) == way.revision
    assert tx.receipts["a"].revision == way.revision
    assert tx.results == {"b": False}


def test_a_read_that_is_lost_is_unavailable_and_the_client_goes_on(
    client: Callable[..., Any], way: Way
) -> None:
    mesh = client()
    way.lose_requests = True
    with pytest.raises(errors.Unavailable):
        mesh.get("orders", timeout=0.05)
    way.lose_requests = False
    assert mesh.get("orders") is None


def test_a_store_that_breaks_tells_readers_so_and_writers_that_nobody_knows(
    client: Callable[..., Any], way: Way
) -> None:
    mesh = client()
    mesh.commit("a", 1)
    way.fault = errors.Poisoned("the disk failed")
    with pytest.raises(errors.Poisoned):
        mesh.get("a")
    way.fault = errors.Poisoned("the disk failed")
    with pytest.raises(errors.OutcomeUnknown) as caught:
        mesh.commit("a", 2)
    assert "the disk failed" in str(caught.value)


# --- expectations -----------------------------------------------------------------------------


def test_a_conflict_carries_what_stands_there(client: Callable[..., Any]) -> None:
    mesh = client()
    first = mesh.commit("orders", {"n": 1})
    second = mesh.commit("orders", {"n": 2}, expect=first)
    with pytest.raises(errors.Conflict) as caught:
        mesh.commit("orders", {"n": 3}, expect=first)
    assert caught.value.current == mesh.get("orders")
    assert caught.value.current.revision == second.revision
    with pytest.raises(errors.Conflict) as caught:
        mesh.commit("nothing", 1, expect=5)
    assert caught.value.current is None
    assert caught.value.details["key"] == "nothing"


@pytest.mark.parametrize("expect", [True, -1, 1.5, "1", {"revision": 1}])
def test_an_expectation_that_cannot_be_one_is_refused(
    client: Callable[..., Any], expect: Any, way: Way
) -> None:
    mesh = client()
    with pytest.raises(errors.Misuse, match="expect="):
        mesh.commit("orders", 1, expect=expect)
    assert way.revision == 0


def test_a_receipt_of_another_key_is_no_expectation(client: Callable[..., Any]) -> None:
    mesh = client()
    receipt = mesh.commit("orders/1", 1)
    with pytest.raises(errors.Misuse, match="'orders/1'"):
        mesh.commit("orders/2", 1, expect=receipt)


def test_update_goes_on_from_what_somebody_else_committed_meanwhile(
    client: Callable[..., Any]
) -> None:
    mesh, other = client(), client()
    mesh.commit("n", 1)
    meddle = iter([True, True])

    def change(value: int) -> int:
        if next(meddle, False):
            other.increment("n", 10)
        return value + 1

    mesh.update("n", change)
    assert mesh.value("n") == 22


def test_update_gives_a_fresh_copy_of_the_default_to_each_attempt(
    client: Callable[..., Any]
) -> None:
    mesh, other = client(), client()
    seen: list[list[int]] = []

    def change(value: list[int]) -> list[int]:
        seen.append(list(value))
        value.append(1)
        if len(seen) == 1:
            other.commit("k", [7])
            other.delete("k")
            other.commit("k", [8])
            other.delete("k")
        return value

    default: list[int] = []
    mesh.update("k", change, default)
    assert default == []
    assert all(value == [] for value in seen)


@pytest.mark.parametrize("operation", ["update", "pop"])
def test_a_worker_may_lose_to_others_hundreds_of_times(
    client: Callable[..., Any], way: Way, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "PAUSE_MAX", 0.001)
    mesh, other = client(), Client(way.transport())
    mesh.commit("n", 0)
    lost = []

    def handle(payloads: Sequence[bytes]) -> list[bytes]:
        if len(lost) < 300 and TRANSACT in map(op_of, payloads):
            lost.append(other.increment("n"))
        return way.handle(payloads)

    slow = Client(EngineTransport("memory://slow", handle, lambda: None))
    if operation == "update":
        slow.update("n", lambda n: n + 1)
        assert mesh.value("n") == 301
    else:
        assert slow.pop("n").value == 300  # type: ignore[union-attr]
    assert slow.stats()["errors"] == {"Conflict": 300}
    slow.close()
    other.close()


def op_of(payload: bytes) -> int:
    return bundles.peek(payload)[0]


def test_update_does_not_try_for_ever(
    client: Callable[..., Any]
) -> None:
    mesh, other = client(), client()
    mesh.commit("n", 0)
    tried = 0

    def change(value: int) -> int:
        nonlocal tried
        tried += 1
        other.increment("n")
        return value

    began = time.monotonic()
    with pytest.raises(errors.Conflict):
        mesh.update("n", change, timeout=0.5)
    assert time.monotonic() - began < 5
    assert mesh.value("n") == tried > 1, "and what others wrote stands"


def test_who_loses_an_update_waits_longer_each_time_and_never_beyond_the_bound() -> None:
    store, paused, losses = Losing(), [], 30
    receipt = flows.run(flows.update(store, "n", lambda n: n, 0, time.monotonic() + 1_000,
                                     paused.append))
    assert receipt == "stored"
    assert len(paused) == losses
    assert max(paused[:3]) < 0.5, "an attempt takes next to no time here"
    assert max(paused[-10:]) > 0.01
    assert max(paused) <= flows.PAUSE_MAX


class Losing:
    """A store in which somebody else is faster 30 times."""

    def __init__(self) -> None:
        self.left = 30

    def get(self, key: str, timeout: float) -> None: ...

    def commit(self, key: str, value: Any, *, expect: Any, timeout: float) -> str:
        self.left -= 1
        if self.left >= 0:
            raise errors.Conflict("somebody else was faster")
        return "stored"


# --- slips that Python would let pass, or punish with an error of its own ---------------------


@pytest.mark.parametrize("slip", [
    lambda mesh: mesh.get_many("abc"),
    lambda mesh: mesh.transact(delete="abc"),
    lambda mesh: mesh.commit("a", 1, sources="orders"),
    lambda mesh: mesh.commit("a", 1, sources=["orders"]),
    lambda mesh: mesh.commit("a", 1, sources=mesh.commit("b", 1)),
    lambda mesh: mesh.scan("a", limit="3"),
    lambda mesh: mesh.transaction().unchanged("a", "3"),
])
def test_a_slip_is_told_before_anything_travels(
    client: Callable[..., Any], way: Way, slip: Callable[[Any], Any]
) -> None:
    mesh = client()
    before = mesh.stats()["operations"].get("transaction"), way.engine.counts["malformed"]
    with pytest.raises(errors.Misuse) as caught:
        slip(mesh)
    assert "not" in str(caught.value)
    assert (mesh.stats()["operations"].get("transaction"), way.engine.counts["malformed"]) == before
    assert mesh.get("a") is None


@pytest.mark.parametrize("name", ["x" * 257, "é" * 129, 5])
def test_a_name_that_cannot_be_is_told_by_connect(name: Any) -> None:
    with pytest.raises(errors.Misuse, match="256 bytes"):
        ckptmesh.connect("memory://", name=name)
    with pytest.raises(errors.Misuse, match="256 bytes"):
        asyncio.run(ckptmesh.connect_async("memory://", name=name))


def test_a_timeout_of_nothing_says_so(client: Callable[..., Any]) -> None:
    mesh = client()
    with pytest.raises(errors.Unavailable, match=r"no time was left .* waited 0 s .*timeout="):
        mesh.commit("a", 1, timeout=0)
    assert mesh.get("a") is None


# --- keys, values, times ----------------------------------------------------------------------


def test_a_prefix_stands_before_every_key_and_is_never_seen(client: Callable[..., Any]) -> None:
    team, whole = client(prefix="team-a"), client()
    receipt = team.commit("orders", 1)
    whole.commit("team-ab/orders", 2)
    team.commit("made", 2, sources=[receipt, ("orders", 1)])
    assert receipt.key == "orders"
    assert [c.key for c in team.list()] == ["made", "orders"]
    assert [c.key for c in team.scan("orders")] == ["orders"]
    assert list(team.get_many(["orders", "none"])) == ["orders", "none"]
    assert team.get("made").sources == (("orders", receipt.revision), ("orders", 1))
    assert [c.key for c in team.history("orders")] == ["orders"]
    assert whole.get("team-a/orders").value == 1
    with pytest.raises(errors.Conflict) as caught:
        team.create("orders", 1)
    assert caught.value.details["key"] == "orders"
    assert caught.value.current.key == "orders"
    assert "team-a" not in str(caught.value)


def test_a_key_that_is_too_long_with_its_prefix_is_refused(client: Callable[..., Any]) -> None:
    mesh = client(prefix="p" * 100)
    with pytest.raises(errors.TooLarge):
        mesh.get("k" * 500)


def test_a_naive_datetime_is_refused_with_a_tip(client: Callable[..., Any]) -> None:
    with pytest.raises(errors.Misuse, match=r"timezone\.utc"):
        client().get("orders", at=datetime(2026, 1, 1))


def test_time_travel_takes_a_revision_a_receipt_or_a_moment(client: Callable[..., Any]) -> None:
    mesh = client()
    first = mesh.commit("orders", 1)
    mesh.commit("orders", 2)
    assert mesh.value("orders", at=first) == 1
    assert mesh.value("orders", at=first.revision) == 1
    assert mesh.value("orders", at=first.time) == 1
    with pytest.raises(errors.FutureRevision):
        mesh.get("orders", at=99)
    with pytest.raises(errors.FutureRevision):
        mesh.get("orders", at=datetime.now(UTC) + timedelta(days=1))


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True, timedelta(seconds=-1)])
def test_a_timeout_that_cannot_be_one_is_refused(
    client: Callable[..., Any], timeout: Any
) -> None:
    with pytest.raises(errors.Misuse, match="timeout"):
        client().get("orders", timeout=timeout)


def test_a_timeout_may_be_a_timedelta(client: Callable[..., Any], way: Way) -> None:
    mesh = client(timeout=timedelta(milliseconds=50))
    way.lose_requests = True
    with pytest.raises(errors.Unavailable, match=r"0\.05 s"):
        mesh.get("orders")
    way.lose_requests = False


@pytest.mark.parametrize("options", [
    {"lease": True}, {"position": 1.5}, {"position": 2**63}, {"head": True}, {"ttl": 0},
    {"sources": [("k", "1")]}, {"sources": [("k",)]},
])
def test_an_argument_that_cannot_be_right_is_refused_before_anything_travels(
    client: Callable[..., Any], way: Way, options: dict[str, Any]
) -> None:
    mesh = client()
    with pytest.raises(errors.Misuse):
        mesh.commit("orders", 1, **options)
    assert mesh.stats()["bytes_out"] == 0


def test_a_lease_guards_commits_under_it(client: Callable[..., Any]) -> None:
    mesh = client()
    lease = mesh.create("orders/_lock/main", "worker-1", ttl=30, lease=True)
    assert mesh.get("orders/_lock/main").is_lease
    assert mesh.keepalive(lease) == 30.0
    mesh.commit("orders", 1, guard=lease)
    mesh.delete("orders/_lock/main", guard=lease)
    with pytest.raises(errors.LeaseLost) as caught:
        mesh.commit("orders", 2, guard=lease)
    assert caught.value.details["key"] == "orders/_lock/main"
    with pytest.raises(errors.LeaseLost):
        mesh.keepalive(lease)
    assert mesh.value("orders") == 1


# --- lists ------------------------------------------------------------------------------------


def test_a_list_is_one_cut_over_all_its_pages(
    client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptmesh.api.LIST_PAGE", 3)
    mesh = client()
    for n in range(10):
        mesh.commit(f"a/{n}", n)
    pages = iter(mesh.list("a"))
    found = [next(pages)]
    mesh.delete("a/5")
    mesh.commit("a/55", 1)
    mesh.commit("a/7", "changed")
    found += pages
    assert [c.value for c in found] == list(range(10))


def test_history_is_newest_first_and_limited(
    client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptmesh.api.LIST_PAGE", 2)
    mesh = client()
    for n in range(7):
        mesh.commit("a", n)
    assert [c.value for c in mesh.history("a")] == [6, 5, 4, 3, 2, 1, 0]
    assert [c.value for c in mesh.history("a", limit=5)] == [6, 5, 4, 3, 2]


def test_many_keys_come_as_of_one_revision(
    client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptmesh.api.GET_KEYS", 4)
    mesh = client()
    for n in range(10):
        mesh.commit(f"k{n}", n)
    keys = [f"k{n}" for n in (3, 9, 1, 10, 0, 2, 4, 3)]
    found = mesh.get_many(keys)
    assert list(found) == ["k3", "k9", "k1", "k10", "k0", "k2", "k4"]
    assert found["k10"] is None
    assert [c.value for c in found.values() if c] == [3, 9, 1, 0, 2, 4]


# --- submitting -------------------------------------------------------------------------------


def test_submitted_commits_come_in_order(client: Callable[..., Any]) -> None:
    mesh = client()
    futures = [mesh.submit("n", n) for n in range(100)]
    mesh.flush()
    revisions = [future.result().revision for future in futures]
    assert revisions == sorted(revisions)
    assert mesh.value("n") == 99


def syncs(way: Way) -> int:
    return int(way.engine.status()["counts"]["syncs"])


def test_commits_submitted_by_one_thread_share_syncs(way: Way) -> None:
    with Client(way.transport()) as mesh:
        for n in range(1_000):
            mesh.submit(f"k/{n}", n)
        mesh.flush()
        assert way.revision == 1_000
        assert syncs(way) < 10


def test_commits_of_many_tasks_share_syncs(way: Way) -> None:
    async def work() -> None:
        async with AsyncClient(way.transport()) as mesh:
            receipts = await asyncio.gather(*(mesh.commit(f"k/{n}", n) for n in range(1_000)))
            assert len({receipt.revision for receipt in receipts}) == 1_000

    asyncio.run(work())
    assert syncs(way) < 10


def test_flush_raises_an_error_that_nobody_asked_for(client: Callable[..., Any]) -> None:
    mesh = client()
    mesh.commit("a", 1)
    mesh.submit("a", 2, expect=None)
    with pytest.raises(errors.Conflict):
        mesh.flush()
    mesh.flush()


def test_an_error_that_was_asked_for_is_not_raised_again(client: Callable[..., Any]) -> None:
    mesh = client()
    mesh.commit("a", 1)
    future = mesh.submit("a", 2, expect=None)
    with pytest.raises(errors.Conflict):
        future.result(5)
    mesh.flush()


def test_more_submitted_commits_than_the_window_wait_their_turn(
    client: Callable[..., Any], way: Way
) -> None:
    mesh = client()
    futures = [mesh.submit(f"k/{n}", n) for n in range(2_500)]
    mesh.flush()
    assert len({future.result().revision for future in futures}) == 2_500


# --- the end ----------------------------------------------------------------------------------


def test_closing_waits_for_what_was_submitted_and_ends_the_session(
    client: Callable[..., Any], way: Way
) -> None:
    mesh = client()
    future = mesh.submit("a", 1)
    mesh.close()
    assert future.result(1).revision == 1
    assert not way.engine.state.sessions
    mesh.close()
    with pytest.raises(errors.Closed):
        mesh.get("a")


def test_reading_alone_opens_no_session(client: Callable[..., Any], way: Way) -> None:
    mesh = client()
    mesh.get("a")
    mesh.close()
    assert way.engine.status()["counts"]["syncs"] == 0


def test_stats_tell_what_was_done(client: Callable[..., Any]) -> None:
    mesh = client()
    mesh.commit("a", 1)
    mesh.get("a")
    mesh.get_many(["a", "b"])
    with pytest.raises(errors.Conflict):
        mesh.create("a", 1)
    found = mesh.stats()
    assert (found["hits"], found["misses"]) == (2, 1)
    assert found["operations"]["put"]["count"] == 2
    assert found["errors"] == {"Conflict": 1}
    assert found["bytes_out"] > 0
    assert found["bytes_in"] > 0
    assert found["memory_bytes"] > 2**20
    assert found["in_flight"] == 0


# --- one interface ----------------------------------------------------------------------------


def public(cls: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(cls)
            if not name.startswith("_") and callable(member)}


def test_both_clients_have_the_same_names_arguments_and_defaults() -> None:
    sync, other = public(Client), public(AsyncClient)
    assert sync.keys() == other.keys()
    for name, method in sync.items():
        assert (inspect.signature(method).parameters.keys()
                == inspect.signature(other[name]).parameters.keys()), name
        for parameter in inspect.signature(method).parameters.values():
            twin = inspect.signature(other[name]).parameters[parameter.name]
            assert (parameter.default, parameter.kind, parameter.annotation) == (
                twin.default, twin.kind, twin.annotation), f"{name}({parameter.name})"


def test_every_public_name_of_both_clients_is_described() -> None:
    for cls in (Client, AsyncClient):
        for name, member in vars(cls).items():
            assert name.startswith("_") or inspect.getdoc(member), f"{cls.__name__}.{name}"


def test_the_client_meets_the_backend_protocol() -> None:
    assert issubclass(Client, object)
    with ckptmesh.connect("memory://") as mesh:
        assert isinstance(mesh, ckptmesh.StateBackend)
        assert mesh.transact(put={"a": 1}, expect={"a": None}) == mesh.put("b", 2).revision - 1


def test_everything_that_is_promised_can_be_imported() -> None:
    for name in ckptmesh.__all__:
        assert getattr(ckptmesh, name) is not None
    with pytest.raises(AttributeError):
        _ = ckptmesh.nothing
