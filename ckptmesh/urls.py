"""From a URL to a transport: a broker's address, a directory, or memory.

    tcp://HOST:PORT   ipc://PATH      a broker, or a store's direct address
    file:///abs/dir   file:./dir      an embedded store in a directory
    memory://                         an embedded store without a disk, this client's own
    memory://NAME                     likewise, shared by name within the process

Embedded stores are shared: several clients of one process on one directory use one engine, which
is closed with the last of them.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

from ckptmesh.answers import Caller
from ckptmesh.engine import Engine
from ckptmesh.errors import InvalidUrl
from ckptmesh.opening import open_engine
from ckptmesh.stream import StreamTransport
from ckptmesh.transport import EngineTransport, Late, Transport

KNOWN = ("tcp://HOST:PORT or ipc://PATH (a broker), file:///ABSOLUTE or file:./RELATIVE "
         "(a directory), memory:// or memory://NAME")
SCHEMES = ("tcp", "ipc", "file", "memory")


def open_transport(url: str, timeout: float) -> Transport:
    """A transport for any URL that ckptmesh knows. `timeout`: seconds to wait for a directory that
    another process holds.

    Raises `InvalidUrl`, and for a directory all that `opening.open_engine` raises.
    """
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in SCHEMES:
        raise InvalidUrl(f"{url!r} is no URL that ckptmesh knows", hint=_meant(url), url=url)
    if scheme == "file":
        directory = os.path.realpath(_directory(url, rest))
        return _embedded(url, directory, directory, timeout)
    if scheme == "memory":
        return _embedded(url, _memory_name(url, rest), None, timeout)
    return StreamTransport(url)


def _meant(url: str) -> str:
    """The next step after a URL of no known scheme, with what was probably meant."""
    if url.startswith(("/", "./", "../")):
        return f"did you mean file:{url}? Else write {KNOWN}"
    host, _, port = url.rpartition(":")
    if host and "/" not in url and ":" not in host and port.isascii() and port.isdigit():
        return f"did you mean tcp://{url}? Else write {KNOWN}"
    return f"write {KNOWN}"


def directory_of(url: str) -> str:
    """The directory that a file: URL names. Raises `InvalidUrl`."""
    return _directory(url, url.partition(":")[2])


def _directory(url: str, rest: str) -> str:
    path = rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host == ".":  # file://./dir, a common slip
            path = f"./{path}"
        elif host:
            raise InvalidUrl(f"{url!r} names a host", url=url,
                             hint=f"write file:///{host}{slash}{path} or file:./{host}{slash}{path}"
                             .rstrip("/"))
        else:
            path = slash + path
    if not path.strip("/") or "?" in path or "#" in path or "\0" in path:
        raise InvalidUrl(f"{url!r} names no directory", url=url,
                         hint="write file:///ABSOLUTE or file:./RELATIVE")
    return unquote(path)


def _memory_name(url: str, rest: str) -> str | None:
    if rest in ("", "//"):
        return None
    if not rest.startswith("//"):
        raise InvalidUrl(f"{url!r} is not understood", hint="write memory:// or memory://NAME",
                         url=url)
    return f"memory:{rest[2:]}"


class _Shared:
    """One engine and how many clients of this process use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.engine: Engine[Any] | None = None


_registry: dict[str, _Shared] = {}
_registry_lock = threading.Lock()


def _forget_after_fork() -> None:
    global _registry_lock  # noqa: PLW0603  # the parent may have held it at the fork
    _registry.clear()
    _registry_lock = threading.Lock()


@atexit.register
def _close_at_exit() -> None:
    """A script that ends without close() leaves a sealed directory behind all the same."""
    for shared in list(_registry.values()):
        if shared.engine is not None:
            shared.engine.close()


os.register_at_fork(after_in_child=_forget_after_fork)


def _embedded(url: str, key: str | None, directory: str | None, timeout: float) -> Transport:
    if key is None:
        engine = open_engine(None)
        return _transport(url, engine, engine.close)
    with _registry_lock:
        shared = _registry.setdefault(key, _Shared())
        shared.users += 1
    try:
        with shared.lock:
            if shared.engine is None:
                shared.engine = open_engine(directory, timeout)
            engine = shared.engine
    except BaseException:
        _leave(key, shared)
        raise
    return _transport(url, engine, lambda: _leave(key, shared))


def _transport(url: str, engine: Engine[Any], release: Callable[[], None]) -> Transport:
    me = Caller()  # several clients share an engine; each gets its own answers

    def leave() -> None:
        engine.leave(me)
        release()

    return EngineTransport(url, partial(engine.handle, owner=me), leave, engine,
                           Late(partial(engine.expects, me), partial(engine.late, me)))


def _leave(key: str, shared: _Shared) -> None:
    with _registry_lock:
        shared.users -= 1
        if shared.users:
            return
        if _registry.get(key) is shared:
            del _registry[key]
    if shared.engine is not None:
        shared.engine.close()
