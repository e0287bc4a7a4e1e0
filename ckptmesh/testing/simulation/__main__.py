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
from ckptmesh.testing.simulation.run import Report, simulate
from ckptmesh.testing.simulation.shrink import shrink
from ckptmesh.testing.simulation.sites import never_fired


@click.command(help=__doc__)
@click.argument("first", type=click.IntRange(min=0))
@click.argument("end", type=click.IntRange(min=1), required=False)
@click.option("--shrink", "shorter", is_flag=True, help="Shorten the story of a failing seed.")
@click.option("--sites", is_flag=True, help="List the faults that were injected, and how often.")
def main(first: int, end: int | None, shorter: bool, sites: bool) -> None:
    """See the module."""
    if end is None:
        report = shrink(make(first)) if shorter else simulate(make(first), keep=True)
        _tell(report)
        sys.exit(1 if report.violation else 0)
    failed = 0
    fired: Counter[str] = Counter()
    with click.progressbar(range(first, end), label="seeds", file=sys.stderr) as seeds:
        for seed in seeds:
            report = simulate(make(seed))
            fired += report.sites
            if report.violation:
                failed += 1
                click.echo(f"seed {seed}: {report.violation}")
    click.echo(f"{end - first:,} seeds, {failed:,} of them broke a promise")
    if sites:
        for site, count in sorted(fired.items()):
            click.echo(f"{count:9,}  {site}")
        for site in never_fired(fired):
            click.echo(f"    never  {site}")
    sys.exit(1 if failed else 0)


def _tell(report: Report) -> None:
    for step in report.plan.steps:
        click.echo(f"plan  {step}")
    for line in report.story:
        click.echo(line)
    click.echo(f"seed {report.plan.seed}: {report.violation or 'all promises were kept'}\n"
               f"trace {report.trace}, {report.events:,} events, {report.seconds:.1f} s of the "
               f"world, {report.revisions:,} revisions")


if __name__ == "__main__":
    main()
