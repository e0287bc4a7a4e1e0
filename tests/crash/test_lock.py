"""One process on a directory, and only on one that can hold a store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptmesh import lock
from ckptmesh.errors import DirectoryInUse, InvalidDirectory
from ckptmesh.lock import LOCK, acquire, file_system, mount_of
from ckptmesh.wal import Wal

_HOLDER = """
import sys
from ckptmesh.lock import acquire
held = acquire(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.mark.fault(9)
def test_a_second_process_is_refused_at_once_with_the_holders_pid(place: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, place], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        started = time.monotonic()
        with pytest.raises(DirectoryInUse, match=f"process {holder.pid}") as caught:
            acquire(place)
        assert time.monotonic() - started < 1
        assert caught.value.details == {"pid": holder.pid, "directory": place}
        assert "ckptmesh up --data" in str(caught.value)
    finally:
        holder.kill()
        holder.communicate()
    acquire(place).release()  # the system gives it back, however the holder ended


@pytest.mark.fault(9)
def test_a_second_log_of_the_same_process_is_refused_too(place: str) -> None:
    wal = Wal.open(place)
    with pytest.raises(DirectoryInUse, match=str(os.getpid())):
        Wal.open(place)
    wal.close()
    Wal.open(place).close()


def test_a_lock_may_be_given_back_twice(place: str) -> None:
    held = acquire(place)
    held.release()
    held.release()
    acquire(place).release()


def test_closing_another_descriptor_of_the_file_keeps_the_lock(place: str) -> None:
    held = acquire(place)
    with open(f"{place}/{LOCK}") as file:  # with lockf, this would release it
        file.read()
    with pytest.raises(DirectoryInUse):
        acquire(place)
    held.release()


def test_who_waits_long_enough_gets_the_lock(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = acquire(place)
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            held.release()

    monkeypatch.setattr(lock.time, "sleep", sleep)
    acquire(place, timeout=60).release()
    assert len(naps) == 3


@pytest.mark.fault(10)
@pytest.mark.parametrize("replace", [False, True])
def test_the_holder_notices_that_the_lock_was_removed_or_replaced(
    place: str, replace: bool
) -> None:
    wal = Wal.open(place)
    assert wal.holds_lock()
    os.unlink(f"{place}/{LOCK}")
    if replace:
        acquire(place).release()  # another process may now believe that it is alone
    assert not wal.holds_lock()
    wal.close()


def test_a_lock_replaced_between_open_and_flock_is_not_taken(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire(place).release()
    real, done = lock.fcntl.flock, []

    def flock(handle: int, flags: int) -> None:
        if not done:
            done.append(True)
            os.unlink(f"{place}/{LOCK}")
        real(handle, flags)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    held = acquire(place, timeout=10)
    assert held.still_ours()
    held.release()


# --- directories ------------------------------------------------------------------------------


def test_a_missing_directory_is_made_but_not_its_parents(tmp_path: Path) -> None:
    acquire(str(tmp_path / "new")).release()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    with pytest.raises(InvalidDirectory, match="mkdir -p"):
        acquire(str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


def test_a_directory_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(InvalidDirectory, match=r"photo\.jpg"):
        acquire(str(tmp_path))
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_a_store_may_have_other_files_beside_it(tmp_path: Path) -> None:
    Wal.open(tmp_path).close()
    (tmp_path / "notes.txt").write_text("x")
    Wal.open(tmp_path).close()
    assert (tmp_path / "notes.txt").exists()


def test_a_folder_for_sockets_does_not_make_a_directory_something_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    Wal.open(tmp_path).close()


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidDirectory, match="not a directory"):
        acquire(str(tmp_path / "file"))


def test_a_directory_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.os, "access", lambda path, mode: False)
    with pytest.raises(InvalidDirectory, match="ls -ld"):
        acquire(str(tmp_path))


_MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 0:20 / /mnt/with\\040space rw - nfs4 server:/export rw
24 22 0:21 / /mnt/data rw - ext4 /dev/sdb1 rw
25 24 0:22 / /mnt/data rw - cifs //server/share rw
26 22 0:23 / /mnt/data2 rw shared:5 - xfs /dev/sdc1 rw
""".splitlines()


@pytest.mark.parametrize(("path", "kind"), [
    ("/home/x", "ext4"), ("/mnt/with space/a", "nfs4"), ("/mnt/data/store", "cifs"),
    ("/mnt/data2/store", "xfs"), ("/mnt/dat", "ext4"),
])
def test_the_file_system_of_a_path_is_that_of_its_latest_mount(path: str, kind: str) -> None:
    assert file_system(path, _MOUNTS) == kind


def test_the_options_of_a_mount_are_those_of_the_mount_and_of_its_file_system() -> None:
    line = "22 1 8:1 / / rw,noatime shared:1 - ext4 /dev/sda1 rw,nobarrier\n"
    assert mount_of("/home", [line]) == ("ext4", {"rw", "noatime", "nobarrier"})
    assert mount_of("/home", []) == ("", set())


def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "file_system", lambda path: "nfs4")
    with pytest.raises(InvalidDirectory, match=r"network file system \(nfs4\)"):
        acquire(str(tmp_path))
    assert os.listdir(tmp_path) == []
