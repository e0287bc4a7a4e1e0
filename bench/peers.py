"""What one worker process does to each of the peers: the library's own best way, nothing beside.

Rule 1: a worker has one persistent connection and its own keys; statements are prepared.
Rule 2: a step returns when the peer has acknowledged; a read that finds nothing is an error.
Rule 3: libraries are imported by the worker that needs them, so that this module needs none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, ClassVar, NamedTuple

from bench.servers import BUCKET

PIPELINES = 4  # in one step of `pipeline`, each of `Job.many`
AWAITED = 10  # operations, one after the other, in one run of NATS's event loop: to start the loop
# for each would cost it up to half its rate


class Job(NamedTuple):
    """What a worker does: `kind` is a method of `Peer`; `many` keys for batches and pipelines;
    values of `size` bytes; `prefix` keeps workloads apart."""

    kind: str
    prefix: str
    size: int = 100
    many: int = 1


class Peer:
    """A worker of `ckptmesh.benchmark.driver`. What a peer cannot do, it has no method for."""

    server: ClassVar[str] = ""  # its name, where it is not that of the peer
    remark: ClassVar[str] = ""

    def __init__(self, where: str, job: Job, number: int) -> None:
        self.key = f"{job.prefix}/{number}"
        self._values = cycle([os.urandom(job.size) for _ in range(2)])
        self.keys = [f"{self.key}/{each}" for each in range(job.many)]
        self.connect(where)
        if job.kind == "read":
            self.commit()
        self.step: Callable[[], int] = getattr(self, job.kind)

    @property
    def value(self) -> bytes:
        """Another one than the last: SQLite writes nothing for a value that is there already."""
        return next(self._values)

    @classmethod
    def can(cls, kind: str) -> bool:
        """Whether there is such a job for this peer."""
        return hasattr(cls, kind)

    def connect(self, where: str) -> None:
        """Called once, in the worker's process."""
        raise NotImplementedError

    def commit(self) -> int:
        """Write one key."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection."""
        raise NotImplementedError

    @staticmethod
    def found(value: object) -> int:
        """A read that found something is one operation."""
        if value is None:
            raise LookupError("the key that was written is not there")
        return 1


class Redis(Peer):
    """redis-py as its manual begins: `redis.Redis(host, port)`, which threads may share, as they
    may a client of ckptmesh."""

    alone = False

    def connect(self, where: str) -> None:
        import redis

        host, _, port = where.partition(":")
        self.client = redis.Redis(host, int(port), single_connection_client=self.alone)

    def commit(self) -> int:
        self.client.set(self.key, self.value)
        return 1

    def batch(self) -> int:
        """MULTI … EXEC in one round trip."""
        return self._piped(transaction=True)

    def pipeline(self) -> int:
        """So many commands sent at once, then so many answers, a few times over."""
        return sum(self._piped(transaction=False) for _ in range(PIPELINES))

    def _piped(self, transaction: bool) -> int:
        pipe = self.client.pipeline(transaction=transaction)
        value = self.value
        for key in self.keys:
            pipe.set(key, value)
        return sum(pipe.execute())

    def read(self) -> int:
        return self.found(self.client.get(self.key))

    def close(self) -> None:
        self.client.close()


class RedisTuned(Redis):
    """One connection instead of a pool of them, which redis-py looks into before each command."""

    server = "redis"
    remark = "single_connection_client"
    alone = True


class Sql(Peer):
    """What both SQL stores have in common; `marks` are how each names its parameters."""

    marks = ("", "")

    def connect(self, where: str) -> None:
        key, value = self.marks
        self._write = (f"INSERT INTO checkpoints VALUES ({key}, {value}) "
                       "ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        self._read = f"SELECT value FROM checkpoints WHERE key = {key}"
        self.connection: Any = self.connected(where)
        self.cursor = self.cursor_of(self.connection)

    def connected(self, where: str) -> object:
        """A connection in autocommit."""
        raise NotImplementedError

    def cursor_of(self, connection: Any) -> Any:
        """The one cursor that is used."""
        return connection.cursor()

    def commit(self) -> int:
        """A statement of its own is a transaction. SQLite's begins with the lock for writing, as
        BEGIN IMMEDIATE would, without two more statements."""
        self.cursor.execute(self._write, (self.key, self.value))
        return 1

    def _write_all(self) -> int:
        value = self.value
        self.cursor.executemany(self._write, [(key, value) for key in self.keys])
        return len(self.keys)

    def read(self) -> int:
        return self.found(self.cursor.execute(self._read, (self.key,)).fetchone())

    def close(self) -> None:
        self.connection.close()


class PostgreSQL(Sql):
    marks = ("%s", "%b")  # the value goes over in binary

    def connected(self, where: str) -> object:
        import psycopg

        return psycopg.connect(where, autocommit=True, prepare_threshold=0)

    def cursor_of(self, connection: Any) -> Any:
        """One that gets values in binary as well."""
        return connection.cursor(binary=True)

    def batch(self) -> int:
        """One transaction; psycopg sends what `executemany` does in one go."""
        with self.connection.transaction():
            return self._write_all()


class SQLite(Sql):
    marks = ("?", "?")

    def connected(self, where: str) -> object:
        import sqlite3

        connection = sqlite3.connect(where, timeout=60.0, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def batch(self) -> int:
        """One transaction, which waits for the lock before it begins."""
        self.cursor.execute("BEGIN IMMEDIATE")
        written = self._write_all()
        self.cursor.execute("COMMIT")
        return written


class Etcd(Peer):
    def connect(self, where: str) -> None:
        import etcd3gw
        import requests

        host, _, port = where.partition(":")
        session = requests.Session()
        session.trust_env = False  # else every request looks for proxies and .netrc
        self.client = etcd3gw.Etcd3Client(host, int(port), session=session)

    def commit(self) -> int:
        self.client.put(self.key, self.value)
        return 1

    def read(self) -> int:
        found: Sequence[bytes] = self.client.get(self.key)
        return self.found(found[0] if found else None)

    def close(self) -> None:
        self.client.session.close()


class Nats(Peer):
    def connect(self, where: str) -> None:
        import asyncio

        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._connect(where))

    async def _connect(self, where: str) -> None:
        import nats

        self.connection = await nats.connect(where)
        self.bucket: Any = await self.connection.jetstream().key_value(BUCKET)

    def commit(self) -> int:
        self.loop.run_until_complete(self._commit())
        return AWAITED

    async def _commit(self) -> None:
        for _ in range(AWAITED):
            await self.bucket.put(self.key, self.value)

    def read(self) -> int:
        return self.loop.run_until_complete(self._read())

    async def _read(self) -> int:
        return sum([self.found((await self.bucket.get(self.key)).value) for _ in range(AWAITED)])

    def close(self) -> None:
        self.loop.run_until_complete(self.connection.close())
        self.loop.close()


PEERS: dict[str, type[Peer]] = {
    "redis": Redis, "redis, tuned": RedisTuned, "postgres": PostgreSQL, "sqlite": SQLite,
    "etcd": Etcd, "nats": Nats,
}
