"""What was found: one table of ratios with the figures beside, all of it raw as JSON, a plot, and
the section of a page.

Rule 1: all of these are made of the same results, which JSON keeps whole: `--from` makes the others
        anew without measuring again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from bench.figures import Result, Row, Spread, rows
from bench.targets import TARGETS, Target, target_of

BEGIN = "<!-- results: begin; made by `python -m bench --write`, not by hand -->"
END = "<!-- results: end -->"
HEAD = ("workload", "ckptmesh", "figure", "against", "its figure", "ratio", "target", "")


class Report(NamedTuple):
    """A whole run. `left_out`: why, by peer; `failed`: how, by workload. `facts`: machine,
    versions, settings."""

    results: list[Result]
    left_out: dict[str, str]
    failed: dict[str, str]
    facts: dict[str, Any]

    def rows(self) -> list[Row]:
        """Every line of the table."""
        return [row for result in self.results for row in rows(result)]


# --- text -------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits that matter, at least."""
    if not isfinite(value):
        return "\N{INFINITY}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def spread(found: Spread | None, unit: str = "") -> str:
    """The median and, where rounds differ, the least and the most."""
    if found is None:
        return ""
    text = number(found.median) + (unit if unit.startswith("/") else f" {unit}" if unit else "")
    return text if found.low == found.high else (
        f"{text} ({number(found.low)}\N{EN DASH}{number(found.high)})")


def goal(target: Target | None) -> str:
    """What is to be reached, and what is hoped for."""
    if target is None:
        return ""
    sign = "\N{LESS-THAN OR EQUAL TO}" if target.most else "\N{GREATER-THAN OR EQUAL TO}"
    both = target.least != target.reach
    return f"{sign} {target.least:,.9g}" + (f", reach {target.reach:,.9g}" if both else "")


def verdict(row: Row) -> str:
    """How a row stands to its target, "" without one."""
    target = target_of(row)
    judged = row.ratio or row.own
    return target.verdict(judged.median) if target else ""


def cells(row: Row) -> tuple[str, ...]:
    """One line, as `HEAD` names them."""
    remarks = [each for each in (verdict(row), row.remark) if each]
    return (row.workload, row.subject, spread(row.own, row.unit), row.peer,
            spread(row.their, row.unit), spread(row.ratio), goal(target_of(row)),
            "; ".join(remarks))


def table(report: Report) -> str:
    """For a terminal; what was left out below it."""
    lines = [HEAD, *map(cells, report.rows())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*text, *left_out(report)])


def left_out(report: Report) -> list[str]:
    """One line for each peer that was not measured, each workload that failed, and each target
    that no row concerns although its workload was run."""
    found = report.rows()
    judged, run = {target_of(row) for row in found}, {row.workload for row in found}
    return [
        *(f"left out: {name} ({why})" for name, why in report.left_out.items()),
        *(f"failed: {name} ({how})" for name, how in report.failed.items()),
        *(f"not judged: {' '.join(filter(None, each[:3]))}" for each in TARGETS
          if each.workload in run and each not in judged),
    ]


def summary(report: Report) -> str:
    """How many targets were reached, met, missed."""
    found = [verdict(row) for row in report.rows()]
    return ", ".join(f"{found.count(word)} {text}" for word, text in (
        ("reach", "beyond what was hoped for"), ("met", "met"), ("missed", "missed")))


# --- JSON -------------------------------------------------------------------------------------


def to_json(report: Report) -> str:
    """Everything, raw; and the rows, for whoever only wants to look."""
    return json.dumps({
        **report.facts, "left_out": report.left_out, "failed": report.failed,
        "results": [each._asdict() for each in report.results],
        "rows": [{**_plain(row), "verdict": verdict(row)} for row in report.rows()],
    }, indent=1)


def _plain(row: Row) -> dict[str, Any]:
    return {name: _finite(value) if isinstance(value, Spread) else value
            for name, value in row._asdict().items()}


def _finite(found: Spread) -> dict[str, float | None]:
    """JSON has no word for infinite."""
    return {name: value if isfinite(value) else None for name, value in found._asdict().items()}


def from_json(text: str) -> Report:
    """What `to_json` has written."""
    found = json.loads(text)
    results = [Result(**{**each, "ours": tuple(each["ours"]), "against": tuple(each["against"])})
               for each in found.pop("results")]
    found.pop("rows")
    return Report(results, found.pop("left_out"), found.pop("failed"), found)


# --- the page ---------------------------------------------------------------------------------


def section(report: Report, plot: str) -> str:
    """Markdown: the machine, the plot, the table."""
    facts = report.facts
    lines = [HEAD, tuple("-" * 3 for _ in HEAD), *map(cells, report.rows())]
    return "\n".join([
        f"Measured on {facts['date']}, commit {facts['commit']}: {facts['machine']['processor']}, "
        f"{facts['machine']['processors']} processors, {facts['machine']['memory_gib']} GiB, "
        f"{facts['machine']['system']}, {facts['machine']['file_system']}; "
        f"load average {facts['machine']['load_before'][0]:.1f} before it began; "
        f"{facts['settings']['rounds']} rounds of {facts['settings']['seconds']:g} s; "
        f"{facts['took']:.0f} s in all.", "",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + ".", "",
        f"![ratios to the peers, and commits a second by the number of workers]({plot})", "",
        *("| " + " | ".join(line) + " |" for line in lines), "",
        f"Targets: {summary(report)}.", "", *(f"- {line}" for line in left_out(report)),
    ]).rstrip()


def write_page(page: Path, text: str) -> None:
    """Put a new section between the two marks of a page. Raises `ValueError` where these are not
    there."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no two lines {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


# --- the plot ---------------------------------------------------------------------------------


def plot(report: Report, path: Path) -> None:
    """Ratios of all comparisons with their spreads, and commits a second by workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    compared = [row for row in report.rows()
                if row.ratio is not None and row.ratio.low > 0 and isfinite(row.ratio.high)]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(15, 2.5 + 0.17 * len(compared)), width_ratios=(3, 2))
    _plot_ratios(left, compared)
    _plot_workers(right, report.results)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _plot_ratios(axes: Any, compared: Sequence[Row]) -> None:
    for place, row in enumerate(reversed(compared)):
        assert row.ratio is not None
        target = target_of(row)
        colour = {"missed": "tab:red", "": "tab:gray"}.get(verdict(row), "tab:green")
        axes.plot((row.ratio.low, row.ratio.high), (place, place), color=colour, linewidth=1)
        axes.plot(row.ratio.median, place, "o", color=colour, markersize=4)
        if target is not None and target.least > 0:
            axes.plot(target.least, place, "|", color="black", markersize=9)
    labels = [f"{row.workload}: {row.subject} / {row.peer}" for row in reversed(compared)]
    axes.set_yticks(range(len(compared)), labels, fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.5)
    axes.margins(y=0.01)
    axes.set_xscale("log")
    axes.set_title("ckptmesh / the other (median, least to most; | is the target)", fontsize=9)


def _plot_workers(axes: Any, results: Sequence[Result]) -> None:
    by_workers = {int(each.workload.removeprefix("workers-")): each for each in results
                  if each.workload.startswith("workers-")}
    subjects = dict.fromkeys(name for each in by_workers.values() for name in each.series)
    for subject in subjects:
        points = [(workers, rows_median(each, subject)) for workers, each in by_workers.items()
                  if subject in each.series]
        name = f"ckptmesh, {subject}" if subject in ("broker", "direct") else subject
        axes.plot(*zip(*points, strict=True), marker="o", label=name,
                  linewidth=2 if name != subject else 1)
    axes.set_xlabel("worker processes, one commit at a time")
    axes.set_title("commits a second", fontsize=9)
    axes.set_ylim(bottom=0)
    if subjects:
        axes.legend(fontsize=8)


def rows_median(result: Result, subject: str) -> float:
    """The median of the rounds of one subject."""
    found = sorted(result.series[subject])
    return found[len(found) // 2]
