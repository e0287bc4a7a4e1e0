"""`ckptmesh state cleanup`: checkpoints go by age and by number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from ckptmesh.cli.common import (
    DURATION,
    Use,
    client_options,
    confirm,
    dry_run_option,
    yes_option,
)
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.output import Rows, progress
from ckptmesh.cli.text import many, size_text, span_text
from ckptmesh.clock import iso
from ckptmesh.errors import Misuse
from ckptmesh.features.cleaning import CleanupPlan, CleanupReport, clean, plan
from ckptmesh.features.workers import WorkerInfo, free_stale
from ckptmesh.flows import run

_SHOWN = 20  # candidates shown before the question; all of them with --dry-run


@click.command("cleanup", short_help="Delete checkpoints by age and number.")
@click.argument("prefix", shell_complete=complete_keys)
@click.option("--older-than", type=DURATION, metavar="DURATION",
              help="Those that were committed longer ago than this: 30d.")
@click.option("--keep", type=click.IntRange(0), metavar="N",
              help="But never the newest N; alone: all but those.")
@click.option("--stale-workers", is_flag=True,
              help="What workers of the pipeline PREFIX have left who are gone.")
@yes_option
@dry_run_option
@client_options
def cleanup(use: Use, prefix: str, older_than: float | None, keep: int | None,
            stale_workers: bool, yes: bool, dry_run: bool) -> None:
    """Delete checkpoints under PREFIX that are old, or too many. Shows what will go, and asks.

    A checkpoint that is committed again meanwhile stays. Leases stay, and so do keys with a segment
    that begins with `_`, which are ckptmesh's own. With --json: a line for each that went, or with
    --dry-run would go.

    \b
    Examples:
      ckptmesh state cleanup orders/daily --older-than 30d --keep 10 --dry-run
      ckptmesh state cleanup orders/daily --keep 10 --yes
      ckptmesh state cleanup orders --stale-workers
    """
    if older_than is None and keep is None and not stale_workers:
        raise Misuse("what is to go?", hint="--older-than 30d, --keep 10, --stale-workers")
    found, workers = _planned(use, prefix, older_than, keep, stale_workers)
    candidates = found.candidates if found else ()
    shown = candidates if dry_run or use.out.as_json else candidates[:_SHOWN]
    if dry_run or not use.out.as_json:
        _show(use, found, shown, workers)
    if dry_run or not (candidates or workers):
        use.out.note(_would(candidates, workers, found))
        return
    confirm(f"Delete {_what(candidates, workers)}?", yes)
    report = None
    with use.connect() as mesh, progress() as show:  # not held while the user thinks
        if found is not None:
            report = run(clean(mesh, found, show))
        freed = free_stale(mesh, prefix) if workers else []
    if use.out.as_json:
        _show(use, found, shown, freed)
    _tell(use, report, freed)


def _planned(use: Use, prefix: str, older_than: float | None, keep: int | None, stale: bool
             ) -> tuple[CleanupPlan | None, list[WorkerInfo]]:
    with use.connect(reading=True) as mesh, progress() as show:
        found = (None if older_than is None and keep is None
                 else run(plan(mesh, prefix, older_than, keep, show)))
        return found, free_stale(mesh, prefix, dry_run=True) if stale else []


def _show(use: Use, found: CleanupPlan | None, shown: Iterable[Any], workers: list[WorkerInfo]
          ) -> None:
    use.out.table(("key", ">revision", ">size", ">age"), _rows(found, shown, workers))


def _rows(found: CleanupPlan | None, shown: Iterable[Any], workers: list[WorkerInfo]) -> Rows:
    for each in shown:
        assert found is not None
        yield ({"key": each.key, "revision": each.revision, "size": each.size,
                "time": iso(each.micros)},
               (each.key, str(each.revision), size_text(each.size),
                span_text((found.now - each.micros) / 1e6)))
    for worker in workers:
        yield {"worker": worker.name, "state": worker.state}, (worker.name, "", "", worker.state)


def _what(candidates: tuple[Any, ...], workers: list[WorkerInfo]) -> str:
    parts = [many(len(candidates), "checkpoint")] if candidates else []
    parts += [f"what {many(len(workers), 'stale worker')} left"] if workers else []
    return " and ".join(parts)


def _would(candidates: tuple[Any, ...], workers: list[WorkerInfo], found: CleanupPlan | None
           ) -> str:
    if not candidates and not workers:
        return "nothing to delete" + (
            f" among {many(found.seen, 'checkpoint')}" if found else "")
    more = ", and there are more" if found and found.more else ""
    return f"would delete {_what(candidates, workers)}{more}"


def _tell(use: Use, report: CleanupReport | None, freed: list[WorkerInfo]) -> None:
    if report is not None:
        kept = f"; {report.kept:,} changed meanwhile and stay" if report.kept else ""
        more = "; there are more: run it again" if report.plan.more else ""
        use.out.note(f"deleted {many(report.deleted, 'checkpoint')}{kept}{more}")
    if freed:
        use.out.note(f"freed {', '.join(each.name for each in freed)}")
