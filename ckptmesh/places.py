"""Where a URL leads: the places to connect to, one after the other, without ever waiting.

A name is looked up in a thread that ends with the look-up: it may take half a minute, and neither
an event loop nor a call with a timeout can wait for that. Numbers and Unix sockets need none.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from ckptmesh.sockets import Address

Place = tuple[int, Any]  # address family, and what `connect` takes


class Places:
    """The places of one address. Of those that a name has, IPv4 comes first; each is tried once,
    then the name is looked up again, since the broker may have moved."""

    def __init__(self, where: Address) -> None:
        self._host = "127.0.0.1" if where.host == "localhost" else where.host.strip("[]")
        self._port = where.port
        self._fixed: Place | None = None
        self._left: list[Place] = []
        self._asking: threading.Thread | None = None
        self._failed: OSError | None = None
        if where.scheme == "ipc":
            name = "\0" + where.host[1:] if where.host[0] == "@" else where.host
            self._fixed = (socket.AF_UNIX, name)
        else:
            with contextlib.suppress(socket.gaierror):  # else it is a name
                self._fixed = self._resolve(socket.AI_NUMERICHOST)[0]

    def next(self) -> Place | None:
        """Where to connect now; None while that is being looked up. Raises `OSError`."""
        if self._fixed is not None:
            return self._fixed
        if not self._left:
            if self._asking is None:
                self._asking = threading.Thread(target=self._look_up, daemon=True)
                self._asking.start()
            if self._asking.is_alive():
                return None
            self._asking = None
            if self._failed is not None:
                raise self._failed
        return self._left.pop(0)

    def found(self) -> None:
        """The last one was right: when it is lost, look the name up again."""
        self._left.clear()

    def _look_up(self) -> None:
        self._failed = None
        try:
            self._left = self._resolve(0)
        except (OSError, UnicodeError) as error:
            self._failed = error if isinstance(error, OSError) else OSError(str(error))

    def _resolve(self, flags: int) -> list[Place]:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        places = [(family, address) for family, _, _, _, address in found]
        return sorted(places, key=lambda place: place[0] != socket.AF_INET)
