"""Simulate seeds, or look at one.

    python -m ckptmesh.testing.simulation 0 1000          seeds 0 to 999
    python -m ckptmesh.testing.simulation 4711            one seed, with its story
    python -m ckptmesh.testing.simulation 4711 --shrink   as short a story as breaks the promise
"""

from __future__ import annotations

import sys
from collections import Counter

import click

from ckptmesh.testing.simulation.plan import make
from ckptmesh.testing.simulation.run import simulate
from ckptmesh.testing.simulation.shrink import shrink
from ckptmesh.testing.simulation.sites import never_fired

_HELP = (__doc__ or "").replace("\n\n", "\n\n\b\n") + """
Exit code 0: all promises were kept. 1: one was broken. 2: wrong arguments.
"""


@click.command(help=_HELP)
@click.argument("first", type=click.IntRange(min=0))
@click.argument("end", type=click.IntRange(min=1), required=False)
@click.option("--shrink", "shorter", is_flag=True, help="Shorten the story of one failing seed.")
@click.option("--sites", is_flag=True,
              help="List the faults that were injected, how often, and which never were; not "
                   "every one can be: a stop renames nothing.")
def main(first: int, end: int | None, shorter: bool, sites: bool) -> None:
    """See the module."""
    if end is not None and end <= first:
        raise click.UsageError(f"no seeds: END ({end}) is not beyond FIRST ({first})")
    if end is not None and shorter:
        raise click.UsageError("--shrink takes one seed")
    fired: Counter[str] = Counter()
    failed = _one(first, shorter, fired) if end is None else _many(first, end, fired)
    if sites:
        for site, count in sorted(fired.items()):
            click.echo(f"{count:9,}  {site}")
        for site in never_fired(fired):
            click.echo(f"    never  {site}")
    sys.exit(1 if failed else 0)


def _one(seed: int, shorter: bool, fired: Counter[str]) -> int:
    """Tell a seed's plan, its story and how it ended; 1 when it broke a promise."""
    report = simulate(make(seed), keep=True)
    if shorter and report.violation:
        report = shrink(make(seed))
    if report.violation or not shorter:
        for step in report.plan.steps:
            click.echo(f"plan  {step}")
        for line in report.story:
            click.echo(line)
    click.echo(f"seed {seed}: {report.violation or 'all promises were kept'}\n"
               f"trace {report.trace}, {report.events:,} events, {report.seconds:.1f} s of the "
               f"world, {report.revisions:,} revisions")
    fired.update(report.sites)
    return 1 if report.violation else 0


def _many(first: int, end: int, fired: Counter[str]) -> int:
    """Tell which seeds broke a promise; how many."""
    failed = 0
    with click.progressbar(range(first, end), label="seeds", file=sys.stderr) as seeds:
        for seed in seeds:
            report = simulate(make(seed))
            fired.update(report.sites)
            if report.violation:
                failed += 1
                click.echo(f"seed {seed}: {report.violation}")
    click.echo(f"{end - first:,} seeds, {failed:,} of them broke a promise")
    return failed


if __name__ == "__main__":
    main()
