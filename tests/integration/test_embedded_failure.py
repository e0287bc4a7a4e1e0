"""An embedded store whose disk fails: what its client is told, and what is there afterwards."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import ckptmesh


@pytest.mark.fault(15)
def test_only_the_commit_under_way_is_in_doubt_when_a_sync_fails(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file:{tmp_path / 'state'}"
    mesh = ckptmesh.connect(url)
    mesh.commit("orders", 1)

    def fails(handle: int) -> None:
        raise OSError(errno.EIO, "EIO")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(ckptmesh.OutcomeUnknown):
        mesh.commit("orders", 2)
    monkeypatch.undo()
    for _ in range(2):  # it never reached the log, and says so
        with pytest.raises(ckptmesh.errors.Poisoned):
            mesh.commit("orders", 3)
    with pytest.raises(ckptmesh.errors.Poisoned):
        mesh.get("orders")
    mesh.close()
    with ckptmesh.connect(url) as again:
        assert again.value("orders") in (1, 2)


def test_an_asyncio_client_is_told_the_same(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def fail_twice() -> None:
        mesh = await ckptmesh.connect_async(f"file:{tmp_path / 'state'}")
        await mesh.commit("orders", 1)
        monkeypatch.setattr(os, "fdatasync", lambda handle: os.close(-1))
        with pytest.raises(ckptmesh.OutcomeUnknown):
            await mesh.commit("orders", 2)
        monkeypatch.undo()
        with pytest.raises(ckptmesh.errors.Poisoned):
            await mesh.commit("orders", 3)
        await mesh.close()

    asyncio.run(fail_twice())
