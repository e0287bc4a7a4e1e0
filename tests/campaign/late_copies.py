"""A scripted peer that keeps copies of its requests and sends them late, twice and out of order,
over restarts of the store.

Half of the requests are refused when they are first decided (their condition names a revision that
does not stand). Whatever copies arrive later, in whatever epoch: an accepted request has exactly
one effect, a refused one none, and every answer to a request is the first one again or says that
it is not executed.

    python -m tests.campaign.late_copies --requests 5000 --restarts 10
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgpack

from ckptmesh import commands, protocol, sockets
from ckptmesh.errors import Conflict, EpochChanged, OtherStore, Superseded, Unavailable
from ckptmesh.messages import (
    Get,
    Hello,
    Increment,
    Open,
    Opened,
    Outcome,
    Put,
    Reply,
    RevisionIs,
    Transact,
    Welcome,
)
from tests.cluster import Cluster

_WINDOW = 50  # numbers kept unsettled, so that copies of them are not all superseded


class Peer:
    """A raw DEALER that speaks the protocol by hand."""

    def __init__(self, url: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.context = sockets.context()
        self.socket = sockets.client_requests(self.context)
        sockets.connect(self.socket, url)
        self.number = 0
        self.plain = 0
        self.bodies: dict[int, tuple[int, bytes]] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.refused: set[int] = set()
        self.late: list[bytes] = []
        self.answers: Counter[str] = Counter()

    def ask(self, command: object) -> object:
        """A request without a session, asked until it is answered."""
        op, body = commands.pack_command(command)
        while True:
            self.plain += 1
            sockets.send(self.socket, [protocol.encode_request(op, body, number=self.plain)])
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                for reply in self.receive(0.1):
                    if reply.session == b"" and reply.number == self.plain:
                        if reply.error is None:
                            return reply.result
                        time.sleep(0.05)

    def receive(self, timeout: float) -> list[Reply]:
        """What has come; answers to transactions are checked and noted."""
        found = []
        if sockets.poll((self.socket,), timeout):
            while (frames := sockets.receive(self.socket, 1)) is not None:
                _, reply = protocol.decode_reply(frames[0])
                found.append(reply)
                if reply.session:
                    self.note(reply)
        return found

    def note(self, reply: Reply) -> None:
        """Hold an answer against those that came before."""
        number, error = reply.number, reply.error
        self.answers[type(error).__name__ if error else "Outcome"] += 1
        if error is None:
            assert number not in self.refused, f"request {number} was refused, then accepted"
            first = self.outcomes.setdefault(number, reply.result)
            assert first == reply.result, f"request {number}: {first}, then {reply.result}"
        elif isinstance(error, Conflict):
            assert number not in self.outcomes, f"request {number} was accepted, then refused"
            self.refused.add(number)
        else:
            assert isinstance(error, EpochChanged | Superseded | Unavailable | OtherStore), error

    def copy(self, number: int, opened: Opened, epoch: int, uuid: bytes) -> bytes:
        """One copy of a request, stamped now."""
        op, body = self.bodies[number]
        low = max(1, self.number - _WINDOW)
        return protocol.encode_request(op, body, session=opened.session, number=number, low=low,
                                       uuid=uuid, epoch=epoch)

    def new(self) -> int:
        """The next request: half of them can never be accepted."""
        self.number += 1
        key = f"peer/{self.number}"
        conditions = (RevisionIs("peer/never", 7),) if self.chance.random() < 0.5 else ()
        self.bodies[self.number] = commands.pack_command(Transact(
            conditions, (Increment("peer/count", 1), Put(key, msgpack.packb(self.number)))))
        return self.number


def run(folder: Path, requests: int, restarts: int, seed: int = 1) -> dict[str, object]:
    """Run the campaign; its figures. Raises `AssertionError` when a promise is broken."""
    every = max(1, requests // (restarts + 1))
    with Cluster(folder) as cluster:
        peer = Peer(cluster.url, seed)
        welcome = peer.ask(Hello())
        assert isinstance(welcome, Welcome)
        opened = peer.ask(Open("late"))
        assert isinstance(opened, Opened)
        chance, epoch, copies = peer.chance, opened.epoch, 0
        for i in range(1, requests + 1):
            number = peer.new()
            burst = [peer.copy(number, opened, epoch, welcome.uuid)
                     for _ in range(chance.choice((0, 1, 1, 2)))]
            peer.late.append(peer.copy(number, opened, epoch, welcome.uuid))
            if chance.random() < 0.5:  # copies of the past, as they were stamped then
                burst += chance.sample(peer.late, min(3, len(peer.late)))
            if chance.random() < 0.3:  # and requests of the past, stamped anew
                again = chance.randint(max(1, number - 60), number)
                burst.append(peer.copy(again, opened, epoch, welcome.uuid))
            chance.shuffle(burst)
            for payload in burst:
                copies += sockets.send(peer.socket, [payload])
            peer.receive(0.003 if chance.random() < 0.7 else 0)
            if i % every == 0 and i < requests:
                cluster.kill(cluster.store)
                cluster.start_store()
                again_welcome = peer.ask(Hello())
                assert isinstance(again_welcome, Welcome)
                epoch = again_welcome.epoch
        while peer.receive(1.0):
            pass
        return {"requests": requests, "copies": copies, "restarts": restarts,
                **_judge(peer, requests), "answers": dict(peer.answers)}


def _judge(peer: Peer, requests: int) -> dict[str, object]:
    effects: Counter[int] = Counter()
    for first in range(1, requests + 1, 1_000):
        keys = tuple(f"peer/{n}" for n in range(first, min(first + 1_000, requests + 1)))
        for row in peer.ask(Get(keys)).found:  # type: ignore[attr-defined]
            if row is not None:
                number = int(row.key.rpartition("/")[2])
                effects[number] = row.version.version
                assert number not in peer.refused, f"request {number} was refused and is there"
    assert all(count == 1 for count in effects.values()), "a request had two effects"
    assert set(peer.outcomes) <= set(effects), "an acknowledged request is not there"
    (count,) = peer.ask(Get(("peer/count",))).found  # type: ignore[attr-defined]
    total = msgpack.unpackb(count.version.value)
    assert total == len(effects), f"{len(effects)} requests took effect, counted {total} times"
    return {"accepted": len(effects), "refused": len(peer.refused), "twice": 0,
            "accepted_after_refusal": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), args.requests, args.restarts, args.seed)))


if __name__ == "__main__":
    main()
