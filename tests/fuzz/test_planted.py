"""The fuzzing itself, tested: a planted bug in each reader is told by its target, and whatever a
fuzzer meets (an exception, a hang, a hoard) becomes a finding that can be replayed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptmesh import commands, framing, limits, manifest, protocol, records, snapshots, values, zmtp
from ckptmesh.errors import InvalidRequest
from ckptmesh.machine import Machine
from ckptmesh.state import State
from tests.campaign import fuzz
from tests.fuzz import serving
from tests.fuzz.targets import TARGETS, corpus
from tests.fuzz.test_corpus import hoarded


def forgets(module: Any, name: str) -> Callable[[Any], None]:
    """Plants a function that raises what no page promises and nobody expects."""
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    return lambda patch: patch.setattr(module, name, broken)


def _refuses_late(patch: Any) -> None:
    honest = Machine.set

    def broken(machine: Machine, name: str, value: int) -> None:
        if value > 2**40:
            machine.state.settings[name] = value
        honest(machine, name, value)

    patch.setattr(Machine, "set", broken)


def _logs_a_refusal(patch: Any) -> None:
    def broken(machine: Machine, request: Any, command: Any) -> None:
        machine.seal()
        raise InvalidRequest("no")

    patch.setattr(Machine, "_commit", broken)


def _changes_beside_the_log(patch: Any) -> None:
    honest = Machine._commit

    def broken(machine: Machine, request: Any, command: Any) -> Any:
        outcome = honest(machine, request, command)
        machine.state.entries.pop("a", None)
        return outcome

    patch.setattr(Machine, "_commit", broken)


def _forgets_what_it_did(patch: Any) -> None:
    patch.setattr(Machine, "_known", lambda machine, request: None)


def _changes_the_number(patch: Any) -> None:
    honest = protocol.decode_request
    patch.setattr(protocol, "decode_request",
                  lambda data: honest(data)._replace(number=honest(data).number ^ 1))


def _skips_the_rest(patch: Any) -> None:
    patch.setattr(framing.SegmentScan, "_zero_tail", lambda scan: True)


def _errors_cannot_be_shown(patch: Any) -> None:
    patch.setattr(protocol, "_error", lambda status, content: InvalidRequest(content))


def _packs_another(patch: Any) -> None:
    honest = values._Lowering._integer
    patch.setattr(values._Lowering, "_integer", lambda self, value: honest(self, value) // 2)


def _forgets_at_a_cut(patch: Any) -> None:
    honest = zmtp.Wire.feed

    def broken(wire: zmtp.Wire, data: bytes) -> list[bytes]:
        wire._dropping = False
        return honest(wire, data)

    patch.setattr(zmtp.Wire, "feed", broken)


PLANTED: list[tuple[str, Callable[[Any], None]]] = [
    ("envelope", forgets(commands, "optional")), ("envelope", _changes_the_number),
    ("body", forgets(commands, "_condition")), ("replies", _errors_cannot_be_shown),
    ("handshake", forgets(Machine, "_welcome")), ("session", _refuses_late),
    ("session", _logs_a_refusal), ("session", _changes_beside_the_log),
    ("session", _forgets_what_it_did), ("segment", forgets(framing.SegmentScan, "_find_later")),
    ("segment", _skips_the_rest), ("records", forgets(State, "_begin")),
    ("snapshot", forgets(snapshots.Reader, "_footer")), ("manifest", forgets(manifest, "_row")),
    ("names", forgets(limits, "check_key")), ("values", forgets(values, "check_shape")),
    ("values", _packs_another), ("peer", forgets(zmtp.Wire, "_meet")), ("peer", _forgets_at_a_cut),
]


@pytest.mark.parametrize(("target", "plant"), PLANTED)
def test_a_planted_bug_is_told_by_a_target(target: str, plant: Callable[[Any], None],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    assert _told(target) is None
    plant(monkeypatch)
    assert _told(target) is not None


def _told(target: str) -> BaseException | None:
    serving._kept.clear()
    for data in corpus(target):
        try:
            TARGETS[target].run(data)
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize(("target", "room", "check"), [
    ("records", records, "walk"), ("snapshot", records, "walk"), ("segment", records, "_no_map"),
    ("replies", protocol, "walk")])
def test_a_reader_that_makes_what_is_announced_is_told_by_its_memory(
        target: str, room: Any, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, check, lambda found: found)
    assert hoarded(target) != []


# --- the campaign -----------------------------------------------------------------------------


def _replayed(finding: str) -> int:
    """The exit code of the command that a finding names."""
    command = shlex.split(finding.partition("again: ")[2])
    assert command[:1] == ["python"]
    return subprocess.run([sys.executable, *command[1:]], capture_output=True).returncode


def test_an_exception_becomes_a_finding_that_can_be_replayed(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    slot = fuzz.fuzz("tests.fuzz.planted:crashes", 20, 1, tmp_path / "kept")
    assert slot.executions > 0
    [finding] = slot.findings
    assert "KeyError" in finding
    assert _replayed(finding) == 1
    assert _replayed(finding.replace("crashes", "hoards")) == 0


def test_a_hang_becomes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("atheris")
    monkeypatch.setattr(fuzz, "TIMEOUT", 1)
    [finding] = fuzz.fuzz("tests.fuzz.planted:hangs", 20, 1, tmp_path / "kept").findings
    assert "timeout" in finding


def test_so_does_a_hoard_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("atheris")
    monkeypatch.setattr(fuzz, "MEMORY", 200)
    [finding] = fuzz.fuzz("tests.fuzz.planted:hoards", 20, 1, tmp_path / "kept").findings
    assert "oom" in finding


def test_so_does_a_fuzzer_that_cannot_run(tmp_path: Path) -> None:
    [finding] = fuzz.fuzz("no such target", 1, 1, tmp_path / "kept").findings
    assert "ended with" in finding


def test_a_share_counts_executions_and_keeps_what_it_found(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("atheris")
    monkeypatch.setenv("CKPTMESH_FUZZ_CORPUS", str(tmp_path))
    first = list(TARGETS).index("manifest")
    done = fuzz.share(first, 1.0)
    assert done.findings == []
    assert done.next == first + 1
    assert done.counts["executions_manifest"] == done.counts["executions"] > 100
    assert done.counts["executions_values"] == 0
    assert list((tmp_path / "manifest").iterdir())


def test_without_atheris_the_campaign_says_what_to_install(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        fuzz.share(0, 1.0)
    assert ended.value.code == 2
    assert "pip install" in capsys.readouterr().err
