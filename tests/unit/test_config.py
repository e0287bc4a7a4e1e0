"""Settings: how they are read, what wins, what is refused, and where broker and store meet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptmesh import config
from ckptmesh.config import BrokerConfig, StoreConfig
from ckptmesh.errors import InvalidDirectory, Misuse


@pytest.mark.parametrize(
    ("text", "expected"),
    [("64MiB", 64 * 1024**2), ("1.5GiB", 3 * 1024**3 // 2), ("500MB", 500_000_000), ("17", 17),
     ("4 kib", 4096)],
)
def test_a_size_is_read_with_its_unit(text: str, expected: int) -> None:
    assert config.size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("7d", 604_800), ("12h", 43_200), ("250ms", 0.25), ("90", 90)]
)
def test_a_duration_is_read_with_its_unit(text: str, expected: float) -> None:
    assert config.duration(text) == expected


@pytest.mark.parametrize("text", ["", "d", "-1d", "7y", "1e3s", "nan", "9" * 400])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(Misuse):
        config.duration(text)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "9" * 5_000, "٣"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(Misuse):
        config.count(text)


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"CKPTMESH_BIND": "tcp://127.0.0.1:1", "CKPTMESH_PUBLISH": "tcp://127.0.0.1:2"}
    got = config.load(BrokerConfig, {"bind": "tcp://127.0.0.1:9", "publish": None}, environ)
    assert (got.bind, got.publish) == ("tcp://127.0.0.1:9", "tcp://127.0.0.1:2")
    assert config.load(BrokerConfig, {}, {}).bind == config.DEFAULT_URL


def test_an_unreadable_setting_is_refused_by_its_own_name() -> None:
    with pytest.raises(Misuse, match="CKPTMESH_RETAIN: '7y'"):
        config.load(StoreConfig, {}, {"CKPTMESH_RETAIN": "7y"})
    with pytest.raises(Misuse, match="--segment-bytes is 10;"):
        config.load(StoreConfig, {"segment_bytes": "10"}, {})


def test_arguments_carry_every_setting_to_another_process() -> None:
    given = StoreConfig(data="d", direct="tcp://127.0.0.1:3", retain=60.5, accept_clock=True)
    words = config.arguments(given)
    assert "--accept-clock" in words
    words.remove("--accept-clock")
    flags = {k[2:].replace("-", "_"): v for k, v in zip(words[::2], words[1::2], strict=True)}
    assert config.load(StoreConfig, {**flags, "accept_clock": True}, {}) == given


def test_broker_and_store_of_one_directory_meet_at_the_same_addresses(tmp_path: Path) -> None:
    broker = BrokerConfig(data=str(tmp_path))
    store = StoreConfig(data=f"{tmp_path}/../{tmp_path.name}")
    assert (broker.backend, broker.backend_publish) == (store.backend, store.backend_publish)
    assert broker.backend == f"ipc://{os.path.realpath(tmp_path)}/run/requests.ipc"


def test_a_deep_data_directory_meets_in_the_temporary_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    folder = config.make_run_folder(str(deep))
    assert folder != config.run_folder(str(tmp_path))
    assert len(os.fsencode(folder / "publications.ipc")) <= config.IPC_PATH_BYTES
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()


def test_the_run_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    data = tmp_path / "d"
    folder = config.make_run_folder(str(data))
    assert (folder, folder.stat().st_mode & 0o777) == (data / "run", 0o700)
    assert config.make_run_folder(str(data)) == folder
    folder.chmod(0o770)
    with pytest.raises(InvalidDirectory, match="0700"):
        config.make_run_folder(str(data))
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(InvalidDirectory):
        config.make_run_folder(str(data))


def test_a_missing_parent_of_the_data_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidDirectory, match="No such file"):
        config.make_run_folder(str(tmp_path / "a" / "b"))
