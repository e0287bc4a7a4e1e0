"""Real servers on loopback, each with its data in one folder, all ended by their own pid.

Rule 1: each is set up to acknowledge what is on disk, as far as it can; where it cannot, its
        `remark` says so beside its figures.
Rule 2: nothing rewrites a log in the background while others are measured: neither Redis its file,
        nor PostgreSQL at short checkpoints, nor ckptmesh (see `mesh.py`).
Rule 3: what is missing on this machine is told by name and reason, before anything is started.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptmesh.demonstration.cluster import free_ports

READY = 30.0  # seconds until a server must answer
STOP = 10.0  # seconds that it may take to end before it is killed
BUCKET = "bench"  # of NATS
_UNPRIVILEGED = ("postgres", "nobody")  # users that PostgreSQL may run as


class NotStarted(Exception):
    """A server did not come to serve; the message has its last words."""


class Server:
    """One kind of server. `where`: what its workers connect to, once it has been started."""

    name = ""
    title = ""
    program = ""
    library = ""
    remark = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.log = folder / f"{self.name}.log"
        self.user: str | None = None  # whom it runs as, when not as this process
        self.where = ""
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def path(cls) -> str:
        """The server's program; "" when it is not installed."""
        return shutil.which(cls.program) or ""

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be measured here, "" when it can."""
        if cls.program and not cls.path():
            return f"no {cls.program} on this machine"
        if importlib.util.find_spec(cls.library) is None:
            return f"no Python module {cls.library}: install the extra ckptmesh[bench]"
        return ""

    @classmethod
    def version(cls) -> str:
        """The release of the server's program, as it tells it."""
        done = subprocess.run([cls.path(), "--version"], capture_output=True, text=True,
                              check=False)
        found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
        return found[0] if found else "of unknown release"

    def start(self) -> None:
        """Start it, wait until it answers, prepare what workers need. Raises `NotStarted`."""
        self.folder.mkdir()
        self.initialise()
        port, other = free_ports(2)
        self._process = self.spawn(self.command(port, other))
        deadline = time.monotonic() + READY
        while not self.answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(f"{self.title} did not start: {self.last_words()}")
            time.sleep(0.02)
        self.prepare(port)

    def initialise(self) -> None:
        """Called before the server is started."""

    def command(self, port: int, other: int) -> list[str]:
        """The command line of a server at a port; `other` is free as well."""
        raise NotImplementedError

    def answers(self, port: int) -> bool:
        """Whether it serves."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def prepare(self, port: int) -> None:
        """Called when it answers: set `where`, make tables."""
        self.where = f"127.0.0.1:{port}"

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a program in the server's folder; what it says goes to its log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                user=self.user, group=pwd.getpwnam(self.user).pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
                process_group=0,  # Ctrl-C at the terminal reaches the command alone
            )

    def last_words(self) -> str:
        """The last line that it printed."""
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def stop(self) -> None:
        """End it. Harmless when it never started."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Redis(Server):
    """Redis, every command synced before its answer."""

    name, title, program, library = "redis", "Redis", "redis-server", "redis"

    def command(self, port: int, other: int) -> list[str]:
        return [self.path(), "--port", str(port), "--bind", "127.0.0.1",
                "--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always",
                "--save", "", "--auto-aof-rewrite-percentage", "0"]


class PostgreSQL(Server):
    """PostgreSQL as it comes (fsync and synchronous_commit on), with checkpoints far apart."""

    name, title, program, library = "postgres", "PostgreSQL", "postgres", "psycopg"

    @classmethod
    def path(cls) -> str:
        """Debian keeps it out of PATH, one directory a release; its tools are beside it."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        return os.path.realpath(super().path() or found[-1]) if super().path() or found else ""

    def initialise(self) -> None:
        """Make a cluster; under another user where this is root, which PostgreSQL refuses."""
        if os.getuid() == 0:
            self.user = next(user for user in _UNPRIVILEGED if _exists(user))
            shutil.chown(self.folder, self.user)
        initdb = str(Path(self.path()).with_name("initdb"))
        if self.spawn([initdb, "-A", "trust", "-U", "bench", str(self.folder / "data")]).wait():
            raise NotStarted(f"initdb failed: {self.last_words()}")

    def command(self, port: int, other: int) -> list[str]:
        settings = {"listen_addresses": "127.0.0.1", "port": port, "fsync": "on",
                    "synchronous_commit": "on", "unix_socket_directories": self.folder,
                    "max_connections": 200, "shared_buffers": "256MB", "max_wal_size": "8GB",
                    "checkpoint_timeout": "1h"}
        return [self.path(), "-D", str(self.folder / "data"),
                *(f"--{name}={value}" for name, value in settings.items())]

    def answers(self, port: int) -> bool:
        """It listens before it serves."""
        ready = str(Path(self.path()).with_name("pg_isready"))
        asked = [ready, "-q", "-h", "127.0.0.1", "-p", str(port)]
        return subprocess.run(asked, check=False).returncode == 0

    def prepare(self, port: int) -> None:
        """The table; values are kept as they are, without an attempt to compress them."""
        import psycopg

        self.where = f"host=127.0.0.1 port={port} user=bench dbname=postgres"
        with psycopg.connect(self.where, autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE checkpoints (key text PRIMARY KEY, value bytea NOT NULL)")
            connection.execute("ALTER TABLE checkpoints ALTER value SET STORAGE external")


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


class SQLite(Server):
    """SQLite in a file, no server: WAL mode, every commit synced."""

    name, title, library = "sqlite", "SQLite", "sqlite3"

    @classmethod
    def version(cls) -> str:
        import sqlite3

        return sqlite3.sqlite_version

    def start(self) -> None:
        """Make the file and its table."""
        import sqlite3

        self.folder.mkdir()
        self.where = str(self.folder / "checkpoints.db")
        connection = sqlite3.connect(self.where)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE checkpoints "
                           "(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        connection.close()


class Etcd(Server):
    """etcd, one member."""

    name, title, program, library = "etcd", "etcd", "etcd", "etcd3gw"

    def command(self, port: int, other: int) -> list[str]:
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{other}"
        return [self.path(), "--data-dir", str(self.folder / "data"),
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", f"default={peer}", "--quota-backend-bytes", str(8 << 30),
                "--max-request-bytes", str(8 << 20), "--log-level", "error"]

    def answers(self, port: int) -> bool:
        """It listens before it has elected itself."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False


class Nats(Server):
    """NATS JetStream's key-value buckets, in files."""

    name, title, program, library = "nats", "NATS", "nats-server", "nats"
    remark = "acknowledges before it syncs"

    def initialise(self) -> None:
        """Larger values than 1 MiB come by the configuration file only."""
        (self.folder / "nats.conf").write_text("max_payload: 8MB\n")

    def command(self, port: int, other: int) -> list[str]:
        return [self.path(), "-c", str(self.folder / "nats.conf"), "-a", "127.0.0.1",
                "-p", str(port), "-js", "-sd", str(self.folder)]

    def prepare(self, port: int) -> None:
        """The bucket, which its members read directly."""
        self.where = f"nats://127.0.0.1:{port}"
        asyncio.run(self._make_bucket())

    async def _make_bucket(self) -> None:
        import nats
        from nats.js.api import KeyValueConfig, StorageType

        connection = await nats.connect(self.where)
        await connection.jetstream().create_key_value(KeyValueConfig(
            BUCKET, history=1, storage=StorageType.FILE, direct=True))
        await connection.close()


SERVERS: dict[str, type[Server]] = {
    each.name: each for each in (Redis, PostgreSQL, SQLite, Etcd, Nats)
}


@contextmanager
def started(names: Iterable[str], folder: Path) -> Iterator[dict[str, Server]]:
    """Servers by name, running while the block does. Raises `NotStarted`."""
    found: dict[str, Server] = {}
    try:
        for name in names:
            found[name] = SERVERS[name](folder)
            found[name].start()
        yield found
    finally:
        for server in found.values():
            server.stop()
