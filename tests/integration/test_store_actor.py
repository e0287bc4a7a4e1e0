"""The store's sockets around an engine: what it takes it gives back, however it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptmesh import limits, sockets
from ckptmesh.config import StoreConfig
from ckptmesh.errors import InvalidUrl
from ckptmesh.opening import open_engine
from ckptmesh.store_actor import StoreActor
from tests.integration.peers import WAIT, Client, hello, reply_of, short_folder, until


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as found:
        yield found


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_an_actor_that_cannot_be_made_gives_everything_back(folder: Path) -> None:
    engine = open_engine(None)
    direct = f"ipc://{folder}/direct"
    wrong = StoreConfig(data=str(folder), direct=direct, backend="tcp://127.0.0.1:*")
    before = open_files()
    for _ in range(3):
        with pytest.raises(InvalidUrl, match="wildcard"):
            StoreActor(engine, wrong)
    assert open_files() == before
    assert not (folder / "direct").exists()

    actor = StoreActor(engine, StoreConfig(data=str(folder), direct=direct))
    assert actor.direct == direct
    actor.close()
    assert open_files() == before
    engine.close()


def test_what_waits_beyond_the_bounds_of_a_batch_is_answered_by_the_next(folder: Path) -> None:
    """Asked by hand: a client would ask again, and hide a request that was received and dropped."""
    direct, asked = f"ipc://{folder}/direct", 2 * limits.BATCH_REQUESTS + 1
    engine = open_engine(None)
    actor = StoreActor(engine, StoreConfig(data=str(folder), direct=direct))
    with Client(direct) as client:
        for number in range(asked):
            client.send(hello(number))
        until(lambda: sockets.poll([actor._router], 0), "requests wait")
        store = threading.Thread(target=actor.run, daemon=True)
        store.start()
        answers = [reply_of(client.answer()).number for _ in range(asked)]
        actor.stop()
        store.join(WAIT)
    actor.close()
    engine.close()
    assert answers == list(range(asked))
