"""Fuzzing by coverage: atheris on one target of tests/fuzz after the other, a slot of time each.

    python -m tests.campaign.fuzz --start 0 --seconds 60

Needs atheris: `pip install -e '.[prove]'`. Slot number n takes target n in their order, with n + 1
as libFuzzer's seed. Inputs that reach new branches are kept in the folder that the environment
variable CKPTMESH_FUZZ_CORPUS names (one folder a target), else only while a share lasts.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.campaign.shares import Share, main
from tests.fuzz.targets import CORPUS, TARGETS

SLOT = 20  # seconds for one target before the next one has its turn
TIMEOUT = 10  # seconds for one input: longer is a hang
MEMORY = 512  # MiB for a whole process, of which about 50 are Python and the package
_START = 2.0  # seconds until a fuzzer runs: imports and instrumentation
_EXECUTED = re.compile(r"(?:^Done |stat::number_of_executed_units: |^#)(\d+)", re.MULTILINE)
_INPUT_BYTES = 4_096  # a larger input is told by its file alone


class Slot(NamedTuple):
    """What one run of a fuzzer came to."""

    executions: int
    findings: list[str]


def fuzz(target: str, seconds: int, seed: int, kept: Path, longest: int = 512,
         corpus: Path | None = None) -> Slot:
    """Fuzz one target in a process of its own, for this long (and the time that it needs to
    start). New inputs go to `kept`; `corpus` is read."""
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as found:
        command = [
            sys.executable, "-m", "tests.fuzz", target,
            *(str(folder) for folder in (kept, corpus) if folder),
            f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={longest}",
            f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={found}/",
            "-print_final_stats=1",
        ]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=seconds + 60 + 2 * TIMEOUT, text=True, errors="replace")
            text, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as late:
            text, code = (late.stdout or b"").decode(errors="replace"), -1
        findings = [_finding(target, path, text) for path in sorted(Path(found).iterdir())]
    if code and not findings:
        findings.append(f"{target}: the fuzzer ended with {code} and left no input: "
                        f"{' | '.join(text.splitlines()[-5:])}; again: {' '.join(command[1:])}")
    return Slot(max(map(int, _EXECUTED.findall(text)), default=0), findings)


def _finding(target: str, path: Path, text: str) -> str:
    """The input, why it is one, and the command that shows the same again."""
    data = path.read_bytes()
    reason = re.search(r"=== Uncaught Python exception: ===\n(.*)", text)
    kind = reason[1] if reason else path.name.partition("-")[0]  # crash, timeout or oom
    if len(data) > _INPUT_BYTES:
        keep = Path(tempfile.gettempdir()) / f"ckptmesh-fuzz-{target.replace(':', '.')}-{path.name}"
        keep.write_bytes(data)
        return f"{target}: {kind} by {keep}"
    return (f"{target}: {kind}; again: python -m tests.fuzz {target} "
            f"--input {base64.b64encode(data).decode()}")


def share(start: int, seconds: float) -> Share:
    """Slots from number `start` on, as long as there is time. Counts executions by target."""
    if importlib.util.find_spec("atheris") is None:
        print("this campaign needs atheris: pip install -e '.[prove]'", file=sys.stderr)
        raise SystemExit(2)
    counts: Counter[str] = Counter({f"executions_{target}": 0 for target in TARGETS})
    findings: list[str] = []
    names = list(TARGETS)
    end = time.monotonic() + seconds
    number = start
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(os.environ.get("CKPTMESH_FUZZ_CORPUS") or folder)
        while number == start or end - time.monotonic() > _START + 1:
            target = names[number % len(names)]
            left = int(end - time.monotonic() - _START)
            slot = fuzz(target, max(1, min(SLOT, left)), number + 1, kept / target,
                        TARGETS[target].longest, CORPUS / target)
            counts[f"executions_{target}"] += slot.executions
            findings += slot.findings
            number += 1
    return Share(number, {**counts, "executions": counts.total()}, findings)


if __name__ == "__main__":
    main(share, __doc__)
