"""From a URL to a client: what is known, what is shared, what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh import errors, urls


@pytest.mark.parametrize("url", [
    "http://host", "tcp", "./state", "/abs/path", "orders", "redis://localhost", "memory",
    "FILE:./x", "inproc://x",
])
def test_an_unknown_url_is_refused_with_a_list_of_what_is_known(url: str) -> None:
    with pytest.raises(errors.InvalidUrl) as caught:
        ckptmesh.connect(url)
    for known in ("tcp://HOST:PORT", "ipc://PATH", "file:./RELATIVE", "memory://"):
        assert known in str(caught.value)


@pytest.mark.parametrize(("slip", "meant"), [
    ("./state", "file:./state"), ("/abs/path", "file:/abs/path"), ("host:7701", "tcp://host:7701"),
])
def test_a_forgotten_scheme_is_named(slip: str, meant: str) -> None:
    with pytest.raises(errors.InvalidUrl, match=f"did you mean {meant}[?]"):
        ckptmesh.connect(slip)


@pytest.mark.parametrize("url", [
    "tcp://", "tcp://host", "tcp://host:99999", "tcp://*:7701", "ipc://", "file:", "file://",
    "file:///", "file://host/path", "file:./x?mode=ro", "memory:x",
])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidUrl):
        ckptmesh.connect(url)


def test_the_url_comes_from_the_environment_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTMESH_URL", "memory://from-the-environment")
    with ckptmesh.connect() as one, ckptmesh.connect("memory://from-the-environment") as other:
        one.commit("a", 1)
        assert other.value("a") == 1


def test_each_nameless_memory_is_its_own() -> None:
    with ckptmesh.connect("memory://") as one, ckptmesh.connect("memory:") as other:
        one.commit("a", 1)
        assert other.get("a") is None


def test_a_named_memory_goes_with_its_last_client() -> None:
    with ckptmesh.connect("memory://shared") as one:
        with ckptmesh.connect("memory://shared") as other:
            other.commit("a", 1)
        assert one.value("a") == 1
    with ckptmesh.connect("memory://shared") as again:
        assert again.get("a") is None
    assert not urls._registry


def test_a_directory_keeps_what_was_committed(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/state"
    with ckptmesh.connect(url) as mesh:
        receipt = mesh.commit("orders", {"offset": 1})
    with ckptmesh.connect(url) as mesh:
        assert mesh.get("orders").revision == receipt.revision
        mesh.commit("orders", {"offset": 2}, expect=receipt)


def test_clients_of_one_process_share_a_directory_by_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with (
        ckptmesh.connect(f"file://{tmp_path}/a%20b") as one,
        ckptmesh.connect("file:./a b") as two,
        ckptmesh.connect("file://./link/a b") as three,
    ):
        one.commit("k", 1)
        assert two.value("k") == three.value("k") == 1
        assert len(urls._registry) == 1
    assert (tmp_path / "a b").is_dir()
    assert not urls._registry


def test_a_directory_that_cannot_be_opened_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(errors.InvalidDirectory):
        ckptmesh.connect(f"file://{tmp_path}/file")
    with pytest.raises(errors.InvalidDirectory):
        asyncio.run(ckptmesh.connect_async(f"file://{tmp_path}/file"))
    assert not urls._registry


def test_a_wrong_prefix_or_timeout_is_told_before_anything_is_opened(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/state"
    with pytest.raises(errors.InvalidKey):
        ckptmesh.connect(url, prefix="a//b")
    with pytest.raises(errors.Misuse):
        ckptmesh.connect(url, timeout=-1)
    assert not (tmp_path / "state").exists()
