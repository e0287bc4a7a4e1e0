"""All campaigns, turn by turn, for so many minutes; goes on where it stopped.

    make prove MINUTES=60

What was counted and found so far is in `prove/progress.json`, for people in `prove/summary.md`.
Both are written after each share, so that it can be stopped at any time. Exit 1 when anything was
found, now or before: remove the folder to begin anew.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from ckptmesh.cli.text import many

CAMPAIGNS = {
    "simulation": (2, "whole systems by seed, in one thread"),
    "crash_images": (3, "every disk that a power failure may leave"),
    "fuzz": (3, "hostile bytes, guided by coverage"),
    "kill_rounds": (4, "kill -9 of real stores under load"),
    "syscalls": (2, "system calls of an embedded store that fail or kill"),
    "store_syscalls": (2, "system calls of a store process that fail or kill"),
    "linearizability": (1, "histories of real clients, judged from outside"),
    "state_machines": (1, "rule-based machines against a model"),
    "worker_chaos": (1, "workers that share partitions, killed and frozen at random"),
    "network": (1, "real connections cut, held and split"),
    "planted_bugs": (2, "bugs put in on purpose, which the tests must catch"),
}
"""Name of the module → (share of the time, what it is)."""

_SHARE = 60.0  # seconds of one share, where that many are left
_SILENT = 3  # shares in a row without a result: the campaign cannot run here, the others go on
_LATE = 300.0  # seconds that a share may take longer than it was told; then it hangs


@dataclass
class Progress:
    """How far one campaign has come."""

    next: int = 0
    seconds: float = 0.0
    shares: int = 0
    finished: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def take(self, output: str, errors: str, code: int, seconds: float) -> bool:
        """Add a share, as it came from its process; whether it had a result."""
        self.seconds += seconds
        self.shares += 1
        lines = output.strip().splitlines()
        try:
            share = json.loads(lines[-1]) if lines else {}
            self.finished = share["next"] == self.next
            self.next = share["next"]
        except (ValueError, KeyError, TypeError):
            self.findings.append(f"the share from {self.next} on ended with {code} and no result: "
                                 f"{errors.strip()[-500:]}")
            self.next += 1
            return False
        for what, count in share["counts"].items():
            self.counts[what] = self.counts.get(what, 0) + count
        self.findings += share["findings"]
        return True


class Prover:
    """The campaigns of a folder."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder = folder
        self._names = names
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "progress.json"
        self._lock = (folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two would undo each other's counts
        self._silent: Counter[str] = Counter()  # shares in a row that had no result
        self.progress: dict[str, Progress] = {}
        if self._file.exists():
            self.progress = {name: Progress(**kept)
                             for name, kept in json.loads(self._file.read_text()).items()}
        for name in names:
            self.progress.setdefault(name, Progress())

    def run(self, seconds: float, jobs: int) -> None:
        """Shares, `jobs` at a time, for about so long."""
        end = time.monotonic() + seconds
        running: dict[str, tuple[subprocess.Popen[str], float]] = {}
        try:
            while True:
                self._gather(running)
                left = end - time.monotonic()
                while left > 1 and len(running) < jobs and (name := self._pick(running)):
                    running[name] = (self._start(name, min(_SHARE, left)), time.monotonic())
                if not running:
                    return
                time.sleep(0.1)
        finally:
            for process, _ in running.values():
                process.send_signal(signal.SIGINT)  # it ends what it has started
            for process, _ in running.values():
                _end(process)

    def _pick(self, running: dict[str, tuple[subprocess.Popen[str], float]]) -> str | None:
        """The campaign that has had the least of its part."""
        waiting = [name for name in self._names
                   if name not in running and not self.progress[name].finished
                   and self._silent[name] < _SILENT]
        return min(waiting, default=None,
                   key=lambda name: self.progress[name].seconds / CAMPAIGNS[name][0])

    def _start(self, name: str, seconds: float) -> subprocess.Popen[str]:
        output, errors = self._output(name, "out", "w"), self._output(name, "err", "w")
        with output, errors:
            return subprocess.Popen(
                [sys.executable, "-m", f"tests.campaign.{name}", "--start",
                 str(self.progress[name].next), "--seconds", f"{seconds:.1f}"],
                stdout=output, stderr=errors, stdin=subprocess.DEVNULL, text=True,
                process_group=0)

    def _gather(self, running: dict[str, tuple[subprocess.Popen[str], float]]) -> None:
        for name, (process, started) in list(running.items()):
            took = time.monotonic() - started
            if process.poll() is None:
                if took < _SHARE + _LATE:
                    continue
                _end(process, patience=0.0)
            del running[name]
            with self._output(name, "out", "r") as output, self._output(name, "err", "r") as errors:
                told = self.progress[name].take(output.read(), errors.read(), process.returncode,
                                                took)
            self._silent[name] = 0 if told else self._silent[name] + 1
            self._write()
            print(f"{name}: {_told(self.progress[name])}, next {self.progress[name].next}",
                  file=sys.stderr, flush=True)

    def _output(self, name: str, kind: str, mode: str) -> IO[str]:
        return (self._folder / f"{name}.{kind}").open(mode)

    def _write(self) -> None:
        kept = {name: asdict(progress) for name, progress in self.progress.items()}
        for file, text in ((self._file, json.dumps(kept, indent=1)),
                           (self._folder / "summary.md", self.summary())):
            temporary = file.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.rename(file)

    def summary(self) -> str:
        """What was counted and found, for people."""
        lines = ["# What the campaigns have counted", ""]
        for name, progress in self.progress.items():
            lines += [f"## {name}: {CAMPAIGNS[name][1]}", "", f"{_told(progress)}.", ""]
            lines += [f"- {count:,} {what.replace('_', ' ')}"
                      for what, count in sorted(progress.counts.items())]
            lines += [f"- **found**: {finding}" for finding in progress.findings] + [""]
        return "\n".join(lines)


def _end(process: subprocess.Popen[str], patience: float = 20.0) -> None:
    """End a share with all that it has started."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _told(progress: Progress) -> str:
    """`12.5 minutes in 13 shares; 0 findings`"""
    if not progress.shares and not progress.findings:
        return "not run yet"
    return (f"{progress.seconds / 60:.1f} minutes in {many(progress.shares, 'share')}; "
            f"{many(len(progress.findings), 'finding')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0,
                        help="about how long to go on, in all (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("prove"),
                        help="where progress and summary are kept (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1,
                        help="how many at a time (as many as there are processors)")
    parser.add_argument("--only", action="append", choices=CAMPAIGNS, metavar="CAMPAIGN",
                        help="this one alone; may be given again, for several: "
                             + ", ".join(CAMPAIGNS))
    args = parser.parse_args()
    for stop in (signal.SIGINT, signal.SIGTERM):  # a job in the background inherits them ignored
        signal.signal(stop, signal.default_int_handler)
    try:
        prover = Prover(args.folder, args.only or list(CAMPAIGNS))
    except BlockingIOError:
        parser.error(f"another run goes on in {args.folder}; wait for it, or give another --folder")
    try:
        prover.run(args.minutes * 60, args.jobs)
    except KeyboardInterrupt:
        sys.exit(130)  # what was counted is written; the shares under way are not counted
    print(prover.summary())
    sys.exit(any(progress.findings for progress in prover.progress.values()))


if __name__ == "__main__":
    main()
