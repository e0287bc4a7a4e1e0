"""`certify`: an honest disk passes, one that lies does not, and nothing else is touched.

The disks that lie are in `lying_disks.py`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ckptmesh
from ckptmesh.certification import damage, place, run
from ckptmesh.certification.damage import CORRUPT, Case, Damage, FrameAt, LogFile, try_damage
from ckptmesh.certification.kills import Killing
from ckptmesh.certification.model import Model, content, key_of, value_of
from ckptmesh.certification.nursery import Nursery
from ckptmesh.certification.worker import disk_layer
from ckptmesh.cli.certify import lines
from ckptmesh.disk import RealDisk
from ckptmesh.facts import Transaction, Write
from ckptmesh.framing import HEADER_BYTES
from ckptmesh.lock import Mount
from ckptmesh.messages import PUT
from ckptmesh.recovery import CLEAN, TORN, Recovered
from ckptmesh.state import State
from ckptmesh.values import pack
from tests.cli.conftest import PROGRAM, CommandLine, environment, process
from tests.cluster import wait_until

LYING = "tests.cli.lying_disks"
LINE = CommandLine()


def certified(path: Path, *args: str, code: int = 0) -> dict[str, Any]:
    """What `certify --json` says, in about a second of its own."""
    found = json.loads(LINE("certify", str(path), "--json", "--seconds", "1", *args,
                            code=code).stdout)
    assert isinstance(found, dict)
    return found


def image(path: Path) -> dict[str, tuple[int, float, str]]:
    """Every file below a directory: mode, time of its last change, digest."""
    found = {}
    for each in sorted(path.rglob("*")):
        about = each.lstat()
        data = each.read_bytes() if each.is_file() else b""
        found[str(each.relative_to(path))] = (
            about.st_mode, about.st_mtime_ns, hashlib.sha256(data).hexdigest())
    return found


# --- a disk that keeps its word ---------------------------------------------------------------


@pytest.mark.fault(6)
@pytest.mark.fault(20)
@pytest.mark.fault(23)
def test_a_real_disk_passes_and_a_store_beside_stays_as_it_was(tmp_path: Path) -> None:
    with ckptmesh.connect(f"file:{tmp_path}") as mesh:  # and is in use
        mesh.commit("orders", 42)
        (tmp_path / f"{place.PREFIX}old").mkdir()
        before = image(tmp_path)
        found = certified(tmp_path)
        assert image(tmp_path) == before
        assert mesh.commit("orders", 43).revision == 2
    assert found["failures"] == []
    assert found["verdict"] == ("WARN" if found["warnings"] else "PASS")
    assert found["folder"] is None
    sync = found["sync"]
    assert sync["count"] > 0
    assert 0 < sync["p50_ms"] <= sync["p99_ms"] <= sync["max_ms"]
    kills, damages = found["kills"], found["damage"]
    assert kills["kills"] >= 5
    assert kills["kills"] == kills["clean"] + kills["torn"]
    assert kills["acknowledged"] > 0
    assert kills["lost"] == kills["twice"] == kills["wrong"] == 0
    assert damages["cuts"] > 3 * damages["frames"] > 0
    assert damages["flips"] > 2 * damages["frames"]
    assert damages["cuts"] + damages["flips"] == sum(
        damages[name] for name in ("corrupt", "torn", "shorter", "harmless"))
    assert min(damages[name] for name in ("corrupt", "torn", "shorter")) > 0
    assert found["proves_power_loss"] is False
    assert "do not prove power loss" in found["not_proven"]


def test_the_report_for_people_is_short_and_says_what_is_not_proven(tmp_path: Path) -> None:
    done = process("certify", str(tmp_path), "--seconds", "1", "--keep", "--seed", "7")
    assert done.returncode == 0, done.stderr
    for word in ("verdict ", "syncs ", "damage ", "kills ", "commits ", "seed 7",
                 "Killed processes do not prove power loss", "Pull the plug"):
        assert word in done.stdout
    assert len(done.stdout.splitlines()) <= 20
    assert max(map(len, done.stdout.splitlines())) <= 110
    (folder,) = tmp_path.iterdir()
    assert done.stderr == f"kept: {folder}\n", "no bar where there is no terminal"
    assert folder.stat().st_mode & 0o777 == 0o700


# --- disks that lie ---------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["Keeping", "Late", "Losing"])
def test_a_disk_that_lies_fails_and_what_was_found_is_kept(tmp_path: Path, layer: str) -> None:
    found = certified(tmp_path, "--disk", f"{LYING}:{layer}", code=6)
    assert found["verdict"] == "FAIL"
    assert found["failures"]
    assert found["disk"] == f"{LYING}:{layer}"
    assert list(tmp_path.iterdir()) == [Path(found["folder"])]
    assert "do not prove power loss" in found["not_proven"]


@pytest.mark.parametrize(("layer", "says"), [
    ("Keeping", "cannot be recovered|did not go on|are gone"),
    ("Flipping", "cannot be recovered|did not go on|are gone|nobody committed"),
    ("Losing", "cannot be recovered|did not go on|are gone|nobody committed"),
    ("Late", "are gone"),
    ("Broken", "failed: Input/output error"),
])
def test_the_kills_alone_tell_a_disk_that_lies(tmp_path: Path, layer: str, says: str) -> None:
    nursery = Nursery(tmp_path / "workers.txt", f"{LYING}:{layer}")
    try:
        killing = Killing(tmp_path, nursery, disk_layer(f"{LYING}:{layer}"), seed=1)
        found = killing.run(time.monotonic() + 20, lambda: None)
    finally:
        nursery.close()
    assert any(re.search(says, failure) for failure in found.failures)
    assert found.lost <= found.acknowledged


def test_syncs_that_do_nothing_are_what_kills_cannot_tell(tmp_path: Path) -> None:
    found = certified(tmp_path, "--disk", f"{LYING}:Sleeping")
    assert found["failures"] == []
    assert found["kills"]["lost"] == 0
    if found["file_system"] not in ("tmpfs", "overlay"):
        assert found["verdict"] == "WARN"
        assert any("which no disk can do" in warning for warning in found["warnings"])


# --- the judges can fail ----------------------------------------------------------------------


def committed(*numbers: int) -> State:
    """A state whose revisions hold these commits of a run with seed 3."""
    state = State(b"u" * 16)
    for revision, number in enumerate(numbers, 1):
        state.apply(Transaction(b"", 0, 0, 0, revision, (
            Write(PUT, key_of(number), pack(value_of(3, number))),), (1,)))
    return state


def test_the_model_knows_every_state_of_its_run() -> None:
    model = Model(3)
    for count in (0, 1, 7, 8, 30):
        state = committed(*range(1, count + 1))
        assert model.problems(state) == []
        assert content(state) == model.digest(count)


def test_the_model_tells_a_commit_that_is_doubled_missing_or_changed() -> None:
    model = Model(3)
    assert model.problems(committed(1, 2, 2)) == [
        ("commit 2 took effect again, as revision 3", True)]
    assert model.problems(committed(1, 2, 4)) == [
        ("revision 3 holds something that nobody committed there", False)]
    assert Model(4).problems(committed(1)), "the values of another run"
    changed = committed(*range(1, 9))
    changed.entries[key_of(8)] = changed.entries[key_of(8)]._replace(version=5)
    assert model.problems(changed) == [
        ("the state at revision 8 is not what its commits make", False)]


def a_log(sealed: bool) -> LogFile:
    """Two frames with a commit each, and, unsealed, zeroes."""
    frames = [FrameAt(512, 700, 1_024, 1), FrameAt(1_024, 2_048, 2_048, 2)]
    return LogFile(Path("x.seg"), bytes(2_048 if sealed else 4_096), sealed, 512, 0, frames)


def test_damage_is_planned_at_and_around_every_frame() -> None:
    cases = list(damage.plan(a_log(sealed=False), random.Random(1)))
    cuts = {case.at: (case.verdict, case.revision) for case in cases if case.bit is None}
    assert cuts == {
        511: (CLEAN, 0), 512: (CLEAN, 0), 513: (TORN, 0), 768: (TORN, 0), 1_023: (TORN, 0),
        1_024: (CLEAN, 1), 1_025: (TORN, 1), 1_536: (TORN, 1), 2_047: (TORN, 1),
        2_048: (CLEAN, 2), 2_049: (CLEAN, 2)}
    assert HEADER_BYTES < 511
    flips = [(case.at, case.verdict, case.revision) for case in cases if case.bit is not None]
    assert [verdict for _, verdict, _ in flips] == [CORRUPT] * 4 + [TORN] * 3
    assert [revision for *_, revision in flips] == [0] * 4 + [1, 1, 2]
    whole = damage.plan(a_log(sealed=True), random.Random(1))
    assert {case.verdict for case in whole} == {CORRUPT}


@pytest.mark.parametrize("hidden", [
    lambda model: Recovered(committed(1, 2), None, CLEAN),  # as if nothing had happened
    lambda model: Recovered(committed(1), None, CLEAN),  # a shorter log, without a word
    lambda model: Recovered(committed(1, 1), None, TORN),  # told, but a wrong state
])
def test_damage_that_is_hidden_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: Callable[[Model], Recovered]
) -> None:
    log = a_log(sealed=False)._replace(path=tmp_path / "x.seg")
    monkeypatch.setattr(damage, "recover", lambda disk, folder: hidden(Model(3)))
    found = Damage()
    damage._try(Case(log, 600, 1, CORRUPT, 0), tmp_path, RealDisk(), Model(3), found)
    assert len(found.failures) == 1
    assert found.failures[0].startswith("x.seg bit 1 flipped at byte 600: called ")
    assert log.path.read_bytes() == log.data, "the damage is undone"


def test_a_log_that_is_not_what_was_committed_is_a_failure(tmp_path: Path) -> None:
    class Silent(SimpleNamespace):
        """Says that all is done, and does nothing."""

        acknowledged, done, error = 99, True, ""
        begin = start = kill = look = lambda self, *args, **options: None

    found = try_damage(tmp_path, Silent(), RealDisk, 3, 12, 0.0, lambda part: None)  # type: ignore[arg-type]
    assert found.frames == 0
    assert len(found.failures) == 1
    assert "it ends at revision 0" in found.failures[0]


def test_damages_that_there_was_no_time_for_are_told(tmp_path: Path) -> None:
    made = place.Place(str(tmp_path), "ext4", "", "", 1)
    result = run.Result(run.Options(str(tmp_path)), tmp_path, made, damage=Damage(left_out=3))
    assert result.verdict == "WARN"
    assert ("warning", "3 damages were left out, there was no time; give it more --seconds") in (
        list(lines(result)))


def test_locks_and_renames_that_do_not_hold_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.look("d", tmp_path, RealDisk()).failures == []
    monkeypatch.setattr(place.fcntl, "flock", lambda file, flags: None)
    found = place.look("d", tmp_path / ".", disk_layer(f"{LYING}:Late")())
    assert [failure.partition(":")[0] for failure in found.failures] == ["flock", "rename"]


@pytest.mark.parametrize(("kind", "options", "says"), [
    ("tmpfs", "rw", "tmpfs is memory"), ("overlay", "rw", "all is gone with the container"),
    ("ext4", "rw,nobarrier", "without barriers"), ("ext4", "rw,barrier=0", "without barriers"),
    ("ext4", "rw,barrier", ""),
])
def test_a_place_that_cannot_keep_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, says: str
) -> None:
    mount = Mount(kind, frozenset(options.split(",")))
    monkeypatch.setattr(place, "mount_of", lambda path: mount)
    found = place.look("d", tmp_path, RealDisk())
    assert len(found.warnings) == bool(says)
    assert says in "".join(found.warnings)
    assert found.failures == []


# --- places that cannot be tried --------------------------------------------------------------


def test_a_directory_that_is_missing_or_a_file_is_refused(tmp_path: Path) -> None:
    done = LINE("certify", str(tmp_path / "none"), code=2)
    assert "does not exist" in done.stderr
    assert "mkdir -p" in done.stderr
    (tmp_path / "file").write_text("x")
    assert "is not a directory" in LINE("certify", str(tmp_path / "file"), code=2).stderr


def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "mount_of", lambda path: SimpleNamespace(kind="nfs4"))
    assert "network file system (nfs4)" in LINE("certify", str(tmp_path), code=2).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code", "says"), [
    (errno.EROFS, 2, "Read-only file system"), (errno.EACCES, 2, "ls -ld"),
    (errno.ENOSPC, 7, "make room"),
])
def test_a_directory_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, says: str
) -> None:
    def refuse(**options: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place.tempfile, "mkdtemp", refuse)
    assert says in LINE("certify", str(tmp_path), code=code).stderr


def test_too_little_room_is_told_before_and_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = LINE("certify", str(tmp_path), "--seconds", "1", "--disk", f"{LYING}:Full", code=7)
    assert "became full meanwhile" in done.stderr
    monkeypatch.setattr(place.RealDisk, "free_bytes", lambda self, path: 1 << 20)
    assert "32 MiB are needed" in LINE("certify", str(tmp_path), code=7).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["nothing", f"{LYING}:Nothing", "no.such:Thing", ":"])
def test_an_unknown_disk_layer_is_a_usage_error(tmp_path: Path, name: str) -> None:
    assert "MODULE:CLASS" in LINE("certify", str(tmp_path), "--disk", name, code=2).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "says"), [
    ("json:JSONDecoder", "it has no open, "),
    ("ckptmesh.testing.disks:FaultyDisk", "missing 1 required positional argument"),
])
def test_a_class_that_makes_no_disk_is_a_usage_error(
    tmp_path: Path, name: str, says: str
) -> None:
    assert says in LINE("certify", str(tmp_path), "--disk", name, code=2).stderr
    assert not list(tmp_path.iterdir())


# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    command = subprocess.Popen([*PROGRAM, "certify", str(tmp_path), "--seconds", "20"],
                               env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: list(tmp_path.glob(f"{place.PREFIX}*/damaged/wal/*.seg")),
                   what="a log to be damaged")
        workers = descendants(command.pid)
        assert workers
        command.send_signal(number)
        out, _ = command.communicate(timeout=20)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 130
    assert out == b""
    assert not list(tmp_path.iterdir())
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers),
               what="the workers to be gone")


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    listing = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, listing) for each in (child, *descendants(child))]
