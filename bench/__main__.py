"""`python -m bench`: measure, tell, write."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from bench import mesh, report
from bench.context import Context
from bench.report import Report
from bench.servers import SERVERS, started
from bench.workloads import BY_NAME, WORKLOADS
from ckptmesh.lock import FORGETFUL, file_system
from ckptmesh.process import uninterrupted

RESULTS = Path(__file__).parent / "results"
KEYS, QUICK_KEYS = 1_000_000, 100_000
LIBRARIES = ("pyzmq", "msgpack", "redis", "psycopg", "etcd3gw", "nats-py")
# What workers import, once for all of them.
PRELOAD = ["bench.fanout", "bench.mesh", "bench.peers", "redis", "psycopg", "etcd3gw", "nats",
           "sqlite3", "ckptmesh.transport"]

EPILOG = "\b\nWorkloads:\n" + "\n".join(f"  {each.name:12} {each.about}" for each in WORKLOADS)


@click.command(epilog=EPILOG)
@click.option("--only", multiple=True, type=click.Choice(list(BY_NAME)), metavar="NAME",
              help="Only this workload; may be given several times.")
@click.option("--peers", default=",".join(SERVERS), show_default=True,
              help="Whom to compare with; 'none' for nobody.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each workload.  [default: 5]")
@click.option("--seconds", type=click.FloatRange(0.05),
              help="Length of one round of one crew.  [default: 1]")
@click.option("--quick", is_flag=True,
              help="Three short rounds and a tenth of the keys: to see that all works.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True),
              help="Where all data is kept meanwhile.  [default: the system's temporary folder]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=RESULTS,
              help="Where results.json and performance.png go.  [default: bench/results]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, not the table.")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              metavar="PAGE", help="Put the results into this page, and the plot beside it.")
@click.option("--from", "source", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              metavar="FILE", help="Measure nothing: take the results of this results.json.")
def main(only: Sequence[str], peers: str, rounds: int | None, seconds: float | None, quick: bool,
         folder: Path | None, out: Path, as_json: bool, write: Path | None,
         source: Path | None) -> None:
    """Measure ckptmesh and what one would take instead, side by side, in interleaved rounds.

    Every ratio is made of two figures of the same round; its median is told, with the least and
    the most. Compare ratios, and only within one run.
    """
    if source is not None:
        found = report.from_json(source.read_text())
    else:
        rounds = rounds or (3 if quick else 5)
        seconds = seconds or (0.3 if quick else 1.0)
        # Both end the run by an exception, so that all is stopped and removed; a job in the
        # background of a shell would ignore the first.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        out.mkdir(parents=True, exist_ok=True)
        found = measure(only or tuple(BY_NAME), _peers(peers), rounds, seconds,
                        QUICK_KEYS if quick else KEYS, folder or _folder(out), out)
    if find_spec("matplotlib") is None:
        _tell("no plot: matplotlib is missing, of the extra ckptmesh[bench]")
    else:
        report.plot(found, out / "performance.png")
    if write is not None:
        picture = write.with_suffix(".png")
        shutil.copyfile(out / "performance.png", picture)
        report.write_page(write, report.section(found, picture.name))
    click.echo(report.to_json(found) if as_json else report.table(found))
    sys.exit(1 if found.failed else 0)


def _peers(text: str) -> list[str]:
    names = [] if text == "none" else [each.strip() for each in text.split(",")]
    for name in names:
        if name not in SERVERS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(SERVERS)}",
                                     param_hint="--peers")
    return names


def _folder(out: Path) -> Path:
    """A place on a disk: the temporary folder, unless that forgets."""
    folder = Path(tempfile.gettempdir())
    return out if file_system(str(folder)) in FORGETFUL else folder


# --- measuring --------------------------------------------------------------------------------


def measure(only: Sequence[str], peers: Sequence[str], rounds: int, seconds: float, keys: int,
            where: Path, out: Path) -> Report:
    """Start everything, run the workloads, end everything. What was found so far is in
    `results.json` after each; one that fails is told, and the next one follows."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    there, left_out = choose(peers)
    began = time.monotonic()
    found = Report([], left_out, {}, {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit(),
        "machine": machine(where), "versions": versions(there), "took": 0.0,
        "settings": {"rounds": rounds, "seconds": seconds, "keys": keys},
    })
    with (
        temporary_folder(where) as folder,
        started(there, folder) as servers,
        mesh.cluster(folder / "ckptmesh") as cluster,
    ):
        context = Context(folder, servers, cluster, rounds, seconds, keys, _tell)
        for name in only:
            at = time.monotonic()
            try:
                found.results.extend(BY_NAME[name].run(context))
                _tell(f"{name}: {time.monotonic() - at:.1f} s")
            except Exception as error:
                found.failed[name] = f"{type(error).__name__}: {error}"
                traceback.print_exc()
            found.facts["took"] = time.monotonic() - began
            (out / "results.json").write_text(report.to_json(found))
    return found


def choose(peers: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those that can be measured here; why not, by name of the others."""
    left_out = {name: why for name in peers if (why := SERVERS[name].missing())}
    return [name for name in peers if name not in left_out], left_out


def _tell(line: str) -> None:
    click.echo(line, err=True)


@contextlib.contextmanager
def temporary_folder(where: Path) -> Iterator[Path]:
    """A folder for all data; others may pass through it, since PostgreSQL runs as somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="ckptmesh-bench-", dir=where))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)


def machine(where: Path) -> dict[str, Any]:
    """What the figures depend on."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo")
              if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": models[0] if models else platform.processor(),
        "processors": os.cpu_count(), "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "file_system": file_system(str(where)), "load_before": os.getloadavg(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def versions(names: Sequence[str]) -> dict[str, str]:
    """Of Python, the servers that are measured, and the libraries."""
    found = {"Python": platform.python_version()}
    found |= {SERVERS[name].title: SERVERS[name].version() for name in names}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                          cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
