"""What tests of the client's own connection stand on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from ckptmesh.stream import StreamTransport
from tests.integration.peers import WAIT
from tests.integration.streams import Dial, Echo


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Makes transports, closed in the end."""
    with contextlib.ExitStack() as stack:
        def make(url: str) -> StreamTransport:
            made = StreamTransport(url)
            stack.callback(made.close)
            return made
        yield make


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as running:
        yield running


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Something at an address that is no broker."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(WAIT)
        yield listening
