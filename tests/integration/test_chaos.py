"""The proxy that breaks connections: what each fault does to plain sockets on both sides of it."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ckptmesh.errors import InvalidUrl
from ckptmesh.testing.chaos import HELD, ChaosProxy, pieces
from tests.cluster import free_port
from tests.integration.peers import WAIT, short_folder, until


class Echo:
    """Sends back what it reads, and ends a connection whose peer has ended."""

    def __init__(self, family: socket.AddressFamily, where: object) -> None:
        self.listener = socket.socket(family)
        self.listener.bind(where)  # type: ignore[arg-type]
        self.listener.listen()
        self.pieces: list[bytes] = []
        self.ends: list[str] = []
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.open.append(self.listener.accept()[0])
                threading.Thread(target=self._echo, args=(self.open[-1],), daemon=True).start()

    def _echo(self, peer: socket.socket) -> None:
        try:
            while data := peer.recv(65_536):
                self.pieces.append(data)
                peer.sendall(data)
            self.ends.append("closed")
        except OSError as error:
            self.ends.append(type(error).__name__)
        peer.close()

    @property
    def got(self) -> bytes:
        return b"".join(self.pieces)

    def close(self) -> None:
        self.listener.close()
        for peer in self.open:
            peer.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    found = Echo(socket.AF_INET, ("127.0.0.1", 0))
    yield found
    found.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[ChaosProxy]:
    with ChaosProxy(f"tcp://127.0.0.1:{echo.listener.getsockname()[1]}", seed=3) as running:
        yield running


def dial(proxy: ChaosProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])), WAIT)


def read(peer: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := peer.recv(size - len(found))):
        found += data
    return found


def silent(peer: socket.socket, seconds: float = 0.15) -> bool:
    peer.settimeout(seconds)
    try:
        return not peer.recv(1)
    except TimeoutError:
        return True
    finally:
        peer.settimeout(WAIT)


def drain(peer: socket.socket) -> None:
    while peer.recv(100):
        pass


def flood(peer: socket.socket) -> None:
    peer.settimeout(0.2)
    while True:
        peer.sendall(bytes(HELD))


def dial_and_read(proxy: ChaosProxy) -> None:
    with dial(proxy) as peer:
        drain(peer)


def test_without_a_fault_everything_passes_both_ways_and_ends_are_told(
    echo: Echo, proxy: ChaosProxy
) -> None:
    sent = bytes(range(256)) * 8_000
    with dial(proxy) as peer:
        threading.Thread(target=peer.sendall, args=(sent,), daemon=True).start()
        assert read(peer, len(sent)) == sent
        assert proxy.connections == 1
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
    until(lambda: echo.ends == ["closed"] and not proxy.connections, "both ends have closed")
    assert proxy.counts["up"] == proxy.counts["down"] == len(sent)


def test_a_unix_socket_can_be_the_target() -> None:
    with short_folder() as folder:
        echo = Echo(socket.AF_UNIX, f"{folder}/x")
        with ChaosProxy(f"ipc://{folder}/x") as proxy, dial(proxy) as peer:
            peer.sendall(b"hello")
            assert read(peer, 5) == b"hello"
        echo.close()
    with pytest.raises(InvalidUrl):
        ChaosProxy("http://127.0.0.1:1")


def test_before_and_after_its_block_a_proxy_refuses_at_once() -> None:
    with ChaosProxy("tcp://127.0.0.1:1") as proxy:
        proxy.partition()
    for outside in (proxy, ChaosProxy("tcp://127.0.0.1:1")):
        with pytest.raises(RuntimeError, match="inside its `with` block"):
            outside.heal()


def test_where_nobody_listens_a_connection_is_reset() -> None:
    with ChaosProxy(f"tcp://127.0.0.1:{free_port()}") as proxy, pytest.raises(ConnectionError):
        dial_and_read(proxy)


def test_a_partition_loses_nothing_and_neither_end_hears_of_the_other(
    echo: Echo, proxy: ChaosProxy
) -> None:
    with dial(proxy) as peer, dial(proxy) as leaving:
        for each in (peer, leaving):
            each.sendall(b"1")
            assert read(each, 1) == b"1"
        proxy.partition()
        peer.sendall(b"23")
        leaving.close()
        with dial(proxy) as late:
            late.sendall(b"x")
            assert silent(peer)
            assert silent(late)
            assert echo.got == b"11"
            assert not echo.ends
            assert len(echo.open) == 2, "a new connection reaches nobody"
            proxy.heal()
            assert read(peer, 2) == b"23"
            assert read(late, 1) == b"x"
        until(lambda: "closed" in echo.ends, "the end of the other is told now")


def test_a_partition_of_one_way_lets_the_other_pass(echo: Echo, proxy: ChaosProxy) -> None:
    with dial(proxy) as peer:
        proxy.partition("down")
        peer.sendall(b"question")
        until(lambda: echo.got == b"question", "it arrived")
        assert silent(peer)
        proxy.heal()
        assert read(peer, 8) == b"question"


def test_a_sender_into_a_partition_is_held_back(proxy: ChaosProxy) -> None:
    proxy.partition("up")
    with dial(proxy) as peer:
        with pytest.raises(TimeoutError):
            flood(peer)
        assert proxy.counts["up"] == 0
        assert HELD <= proxy.waiting <= 4 * HELD


def test_a_black_hole_takes_everything_and_its_victims_are_cut_when_it_heals(
    echo: Echo, proxy: ChaosProxy
) -> None:
    with dial(proxy) as peer, dial(proxy) as quiet:
        for each in (peer, quiet):
            each.sendall(b"1")
            assert read(each, 1) == b"1"
        proxy.black_hole()
        peer.sendall(bytes(50 * HELD))  # and never waits
        assert silent(peer)
        assert echo.got == b"11"
        proxy.heal()
        with pytest.raises(ConnectionError):
            peer.recv(1)
        assert proxy.counts["cut"] == 1
        quiet.sendall(b"2")
        assert read(quiet, 1) == b"2", "one that lost nothing goes on"


def test_forgotten_connections_are_a_black_hole_and_new_ones_pass(
    echo: Echo, proxy: ChaosProxy
) -> None:
    with dial(proxy) as old:
        old.sendall(b"1")
        assert read(old, 1) == b"1"
        proxy.forget()
        with dial(proxy) as new:
            old.sendall(b"2")
            new.sendall(b"3")
            assert read(new, 1) == b"3"
            assert silent(old)
            assert echo.got == b"13"
            assert not echo.ends


def test_delays_hold_each_piece_and_keep_the_order(proxy: ChaosProxy) -> None:
    with dial(proxy) as peer:
        peer.sendall(b"0")
        assert read(peer, 1) == b"0"
        proxy.delay(0.1, jitter=0.1)
        began = time.monotonic()
        for n in range(20):
            peer.sendall(b"%02d" % n)
            time.sleep(0.002)
        assert read(peer, 40) == b"".join(b"%02d" % n for n in range(20))
        assert time.monotonic() - began >= 0.2, "0.1 s each way"


def test_what_is_delayed_when_a_proxy_heals_waits_no_longer(proxy: ChaosProxy) -> None:
    with dial(proxy) as peer:
        proxy.delay(3_600)
        peer.sendall(b"1")
        assert silent(peer)
        proxy.heal()
        assert read(peer, 1) == b"1"


def test_a_throttle_bounds_the_rate(proxy: ChaosProxy) -> None:
    with dial(proxy) as peer:
        proxy.throttle(100_000, "up")
        began = time.monotonic()
        peer.sendall(bytes(20_000))
        assert len(read(peer, 20_000)) == 20_000
        assert time.monotonic() - began >= 0.19


def test_splitting_makes_small_pieces_of_everything(echo: Echo, proxy: ChaosProxy) -> None:
    proxy.split(3, "up")
    with dial(proxy) as peer:
        peer.sendall(bytes(range(200)))
        assert read(peer, 200) == bytes(range(200))
    assert len(echo.pieces) > 30


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_connection_is_cut_after_so_many_bytes(
    echo: Echo, proxy: ChaosProxy, count: int
) -> None:
    proxy.cut_after(count, "up")
    for turn in (1, 2):  # a new connection counts from its beginning
        with dial(proxy) as peer:
            peer.sendall(b"a frame of 20 bytes.")
            with pytest.raises(ConnectionError):
                drain(peer)
        until(lambda n=turn: len(echo.ends) == n, "the other end is told too")
    assert echo.got == b"a frame of 20 bytes."[:count] * 2
    assert set(echo.ends) == {"ConnectionResetError"}
    assert proxy.counts["cut"] == 2


def test_refused_connections_end_and_others_stay(proxy: ChaosProxy) -> None:
    with dial(proxy) as old:
        old.sendall(b"0")
        assert read(old, 1) == b"0"
        proxy.refuse()
        with pytest.raises(ConnectionError):
            dial_and_read(proxy)
        old.sendall(b"1")
        assert read(old, 1) == b"1"
        proxy.heal()
        with dial(proxy) as again:
            again.sendall(b"2")
            assert read(again, 1) == b"2"
    assert proxy.counts["refused"] == 1


def test_a_reset_ends_every_connection_at_both_ends(echo: Echo, proxy: ChaosProxy) -> None:
    with dial(proxy) as one, dial(proxy) as two:
        for peer in (one, two):
            peer.sendall(b"1")
            assert read(peer, 1) == b"1"
        assert proxy.reset_all() == 2
        for peer in (one, two):
            with pytest.raises(ConnectionError):
                peer.recv(1)
        until(lambda: echo.ends == ["ConnectionResetError"] * 2, "the target hears it")
        assert proxy.reset_all() == proxy.connections == 0


def test_pieces_come_from_the_seed_and_are_all_of_it() -> None:
    data = bytes(range(256))
    cuts = [pieces(data, 7, random.Random(seed)) for seed in (1, 1, 2)]
    assert cuts[0] == cuts[1] != cuts[2]
    assert {b"".join(cut) for cut in cuts} == {data}
    assert {len(piece) for piece in cuts[0][:-1]} == set(range(1, 8))
    assert pieces(data, 0, random.Random(1)) == [data]


def test_a_way_that_is_none_is_refused(proxy: ChaosProxy) -> None:
    with pytest.raises(ValueError, match="'up', 'down' or 'both'"):
        proxy.partition("sideways")  # type: ignore[arg-type]
