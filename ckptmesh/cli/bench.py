"""`ckptmesh bench`: what this mesh, disk and machine do, and which of them is the limit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

import click

from ckptmesh import limits
from ckptmesh.benchmark import run
from ckptmesh.benchmark.driver import WorkerFailed
from ckptmesh.benchmark.findings import findings, ms
from ckptmesh.benchmark.run import Figures, Options, Result
from ckptmesh.benchmark.workloads import SIZE
from ckptmesh.cli.certify import WIDTH, shown
from ckptmesh.cli.common import DURATION, NotFound, Read, Use, client_options
from ckptmesh.cli.text import size_text
from ckptmesh.config import size as read_size
from ckptmesh.errors import Misuse
from ckptmesh.link import url_or_default
from ckptmesh.stats import Histogram
from ckptmesh.urls import directory_of

MOST_WORKERS = 256  # processes: some hundred KB of sockets and 20 MB of Python each
OVERHEAD = limits.KIB  # bytes of a key with all that travels beside it, at most
COLUMNS = ("workload", ">per s", ">p50 ms", ">p99 ms", ">max ms", ">step", ">per sync", ">cpu")


def value_size(text: str) -> int:
    """Bytes of a value. Raises `Misuse` for more than a store takes."""
    size = read_size(text)
    if size > limits.VALUE_BYTES - OVERHEAD:
        raise Misuse(f"{text} is more than a value can have: {size_text(limits.VALUE_BYTES)}")
    return size


@click.command("bench", epilog="Exit code 0: measured, whatever the figures. 5: no mesh there. "
                               "6 or 7: the store is read-only.")
@click.option("--data", metavar="DIR", default=None,
              type=click.Path(exists=True, file_okay=False, path_type=str),
              help="Try the disk of this directory, too: the store's, if it is on this machine.  "
                   "[default: that of a file: URL]")
@click.option("--workers", type=click.IntRange(1, MOST_WORKERS), default=8, show_default=True,
              help="How many processes commit at once.")
@click.option("--seconds", type=DURATION, default=run.SECONDS, metavar="SECONDS",
              help=f"How long each workload is measured.  [default: {run.SECONDS:.0f}]")
@click.option("--size", type=Read(value_size, "size"), default=SIZE, metavar="BYTES",
              help=f"Bytes of each value, as in 10KiB.  [default: {SIZE}]")
@click.option("--in-flight", type=click.IntRange(1, limits.IN_FLIGHT_REQUESTS), default=256,
              show_default=True, help="Commits on their way at once, of a worker that does not "
                                      "wait for each.")
@click.option("--batch", type=click.IntRange(1, limits.TRANSACTION_MUTATIONS), default=100,
              show_default=True, help="Keys of one atomic commit.")
@click.option("--only", type=click.Choice(run.NAMES), multiple=True,
              help="Only this workload; may be given again.")
@client_options
def bench(use: Use, data: str | None, workers: int, seconds: float, size: int, in_flight: int,
          batch: int, only: tuple[str, ...]) -> None:
    """Measure this mesh, this disk, this machine, and tell which is the limit.

    THIS LOADS THE MESH, as much as it can take, for about 15 seconds: five workloads of --seconds
    each. Its keys stand under a prefix of their own and are deleted again; but its commits go
    through the log as all do, so they take room there, and what is oldest of the history in memory
    makes place for them.

    \b
      one        a worker that commits one checkpoint after the other
      workers    --workers of them, in processes of their own
      pipelined  one that keeps --in-flight commits on their way (client.submit)
      batches    one that commits --batch keys at once (client.transaction)
      reads      one that reads a key

    What is counted per second are commits, keys or reads; times are those of a step, which has so
    many of them. `per sync`: commits that shared one. `cpu`: processor time of clients for each. A
    directory as --url is opened by this process alone: so `workers` is left out, and that time has
    the store in it.

    \b
    Examples:
      ckptmesh bench
      ckptmesh bench --data /var/lib/ckptmesh         also: what its disk does alone
      ckptmesh bench --workers 50 --only workers --seconds 10
      ckptmesh bench --url file:./state --size 10KiB
      ckptmesh bench --json | jq .workloads.one.operations_per_second
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    names = only or run.NAMES
    if run.BATCHES in names and batch * (size + OVERHEAD) > limits.REQUEST_BYTES:
        raise Misuse(f"{batch:,} values of {size_text(size)} do not fit one transaction, "
                     f"{size_text(limits.REQUEST_BYTES)}",
                     hint=f"add --batch {limits.REQUEST_BYTES // (size + OVERHEAD)}")
    url = url_or_default(use.url)
    options = Options(url, data or directory_with_store(url), workers, seconds, size, in_flight,
                      batch, use.timeout, names)
    if not list(run.workloads(options, run.is_embedded(url))):
        raise Misuse("an embedded store has one process, so there are no workers to measure",
                     hint="serve it with `ckptmesh up --data DIR`, and measure that")
    try:
        with shown() as show:
            result = run.bench(options, show, use.out.note)
    except WorkerFailed as failure:
        raise click.ClickException(str(failure)) from None
    report(use, result)


def directory_with_store(url: str) -> str:
    """The directory of a file: URL, "" for other URLs. Raises `NotFound` where it holds no store,
    since opening one would leave it behind."""
    if not url.startswith("file:"):
        return ""
    directory = directory_of(url)
    if not os.path.exists(os.path.join(directory, "MANIFEST")):
        raise NotFound(f"there is no store in {directory} yet",
                       hint="the first `state set` makes one; what a disk is worth without a "
                            "store, `ckptmesh certify DIR` tells")
    return directory


# --- the report -------------------------------------------------------------------------------


def report(use: Use, result: Result) -> None:
    """The limits, the workloads, and what they mean."""
    meaning = findings(result)
    if use.out.as_json:
        use.out.document(document(result) | {"meaning": meaning})
        return
    use.out.facts({}, limit_lines(result))
    use.out.text("")
    use.out.table(COLUMNS, (({}, cells(each)) for each in result.workloads.values()))
    use.out.text("")
    for sentence in meaning:
        for line in wrap(sentence, WIDTH, break_on_hyphens=False, break_long_words=False):
            use.out.text(line)


def document(result: Result) -> dict[str, Any]:
    """All of it, for programs; units are in the names."""
    disk, options = result.disk, result.options
    return {
        "url": options.url, "embedded": result.embedded, "prefix": result.prefix,
        "value_bytes": options.size, "took_seconds": round(result.seconds, 1),
        "disk": None if disk is None else {
            "directory": disk.directory, "file_system": disk.kind or None,
            "syncs": disk.latency.count, "syncs_per_second": round(disk.rate, 1),
            **run.latency_document(disk.latency)},
        "round_trip": {"count": result.round_trip.count,
                       **run.latency_document(result.round_trip)},
        "workloads": {name: each.document() for name, each in result.workloads.items()},
    }


def limit_lines(result: Result) -> Iterator[tuple[str, str]]:
    """What the place can do at most, for people."""
    yield "mesh", f"{result.options.url}, values of {size_text(result.options.size)}"
    disk = result.disk
    if disk is not None:
        kind = f" ({disk.kind})" if disk.kind else ""
        yield "disk", f"{disk.directory}{kind}: {disk.rate:,.0f} syncs a second"
        yield "a sync", spread(disk.latency)
    yield "round trip", spread(result.round_trip)


def spread(latency: Histogram) -> str:
    """`0.21 ms median, 0.60 ms p99, 4.10 ms at most`"""
    return (f"{ms(latency.percentile(50))} median, {ms(latency.percentile(99))} p99, "
            f"{ms(latency.maximum)} at most")


def cells(figures: Figures) -> tuple[str, ...]:
    """A workload's row of the table."""
    sample, sharing = figures.sample, figures.commits_per_sync
    times = (sample.latency.percentile(50), sample.latency.percentile(99), sample.latency.maximum)
    cpu = run.client_cpu(sample)
    return (figures.workload.text, f"{sample.rate:,.0f}",
            *(f"{time / 1e3:,.2f}" for time in times), f"{figures.workload.step:,}",
            "" if sharing is None else f"{sharing:.1f}", "" if cpu is None else f"{cpu:,.0f} µs")
