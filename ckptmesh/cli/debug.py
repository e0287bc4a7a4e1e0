"""`ckptmesh debug`: a checkpoint in full, figures of a pipeline, a picture, what is suspicious."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptmesh.cli.common import DURATION, NotFound, Use, client_options
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.forms import key_and_revision
from ckptmesh.errors import InvalidPayload, Misuse

if TYPE_CHECKING:
    from ckptmesh.features.debugging.reading import Run

SUSPICIOUS = 1
STORAGE = click.option("--storage", metavar="DIR", help="Where the files of outputs are; default: "
                       "where they were written.")
RUN = click.option("--run", "key", metavar="KEY", help="Which run; default: the newest.")


@click.group("debug")
def debug() -> None:
    """Look into checkpoints and runs. Nothing is changed. A store that is stopped is looked at in
    its directory: --url file:DIR.

    \b
    Examples:
      ckptmesh debug report nightly
      ckptmesh debug inspect orders@120
      ckptmesh debug analyze nightly --json | jq .stages
      ckptmesh debug visualize nightly --output run.png
    """


@debug.command("inspect", short_help="One checkpoint in full, verified.")
@click.argument("key", shell_complete=complete_keys)
@STORAGE
@click.option("--all", "everywhere", is_flag=True,
              help="Look for consumers among all keys, however many.")
@client_options
def inspect(use: Use, key: str, storage: str | None, everywhere: bool) -> None:
    """Show KEY, or its version KEY@REVISION, with all that is known about it: its fields, SHA-256,
    history, what it was made from and who was made from it, contracts, locks; and verify it. Of the
    record of a run (PIPELINE/_runs/run/KEY) also every stage and its output.

    Verified: the value can be unpacked; files that it names are what was written; the output of a
    stage has the digest that its run has recorded; digests of a completed run agree. Exit code 0
    when nothing is wrong, 3 when there is no such key, 6 when something is.

    \b
    Examples:
      ckptmesh debug inspect orders
      ckptmesh debug inspect orders@120 --json | jq .sources
      ckptmesh debug inspect nightly/_runs/run/2026-11-21 --storage /shared/nightly
    """
    from ckptmesh.cli.debugging import print_inspection
    from ckptmesh.features.debugging.inspecting import inspect as look

    name, revision = key_and_revision(key)
    with use.connect(existing=True) as mesh:
        found = look(mesh, name, revision, storage=storage, everywhere=everywhere)
        now = mesh.hello().time
    if found is None:
        raise NotFound(f"there is no {key}", hint="ckptmesh state list PREFIX")
    print_inspection(use.out, found, now)
    if not found.good:
        wrong = [each for each in found.every_verdict if each.state not in ("good", "unknown")]
        raise InvalidPayload(f"{wrong[0].what}: {wrong[0].text}",
                             hint=f"ckptmesh state history {name}")


@debug.command("analyze", short_help="Durations, failures, resumes, trends of a pipeline.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.option("--last", type=click.IntRange(1, 10_000), default=1_000, show_default=True,
              metavar="N", help="Over the newest so many runs.")
@client_options
def analyze(use: Use, pipeline: str, last: int) -> None:
    """Tell the figures of the runs of PIPELINE, and of its commands under `exec`: how long they
    took, where and with what they failed, how often resuming helped, which stages are slow, and
    whether it is getting slower or failing more.

    A trend is told from 8 runs on, over the last 30, and only where chance makes as much less often
    than once in twenty. Exit code 3 when there is no run.

    \b
    Examples:
      ckptmesh debug analyze nightly
      ckptmesh debug analyze nightly --last 50 --json | jq .trends
    """
    from ckptmesh.cli.debugging import print_analysis
    from ckptmesh.features.debugging.analysing import analyze as look

    with use.connect(existing=True) as mesh:
        found = look(mesh, pipeline, last)
    if not found.runs and not found.unread:
        raise NotFound(f"there is no run of {pipeline}", hint="ckptmesh run list")
    print_analysis(use.out, found)


@debug.command("visualize", short_help="A picture of a run.")
@click.argument("pipeline", shell_complete=complete_keys)
@RUN
@click.option("--format", "form", type=click.Choice(("png", "mermaid", "dot", "json")),
              help="Default: by the ending of --output; else mermaid.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to write it; default: stdout.")
@client_options
def visualize(use: Use, pipeline: str, key: str | None, form: str | None, output: Path | None
              ) -> None:
    """Draw a run of PIPELINE: its stages by what they need, a lane for each attempt, with
    durations, checkpoints, failures and resumes. --json describes the picture.

    A PNG needs the extra `debug` (pip install 'ckptmesh[debug]'); Mermaid, for Markdown, and DOT,
    for Graphviz, need nothing. Exit code 3 when there is no such run.

    \b
    Examples:
      ckptmesh debug visualize nightly --output nightly.png
      ckptmesh debug visualize nightly --run 2026-11-21 --format mermaid
      ckptmesh debug visualize nightly --format dot | dot -Tsvg > nightly.svg
    """
    from ckptmesh.cli.debugging import drawn
    from ckptmesh.features.debugging.attempts import picture_of

    ending = output.suffix[1:] if output else ""
    form = "json" if use.out.as_json else form or {"png": "png", "dot": "dot", "gv": "dot",
                                                   "json": "json"}.get(ending, "mermaid")
    with use.connect(existing=True) as mesh:
        picture = picture_of(mesh, _run(mesh, pipeline, key))
    if form == "png" and output is None and sys.stdout.isatty():
        raise Misuse("a PNG is not for a terminal", hint="--output run.png, or --format mermaid")
    data = drawn(picture, form)
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    output.write_bytes(data)
    use.out.note(f"{output}: run {picture.record.key} of {pipeline}, {len(data):,} bytes")


def _run(mesh: Any, pipeline: str, key: str | None) -> Run:
    from ckptmesh.features.debugging.reading import Unread, newest_run, one_run

    if key is None:
        return newest_run(mesh, pipeline)
    found = one_run(mesh, pipeline, key)
    if isinstance(found, Unread):
        raise InvalidPayload(found.text, hint=f"ckptmesh debug report {pipeline} --run {key}")
    return found


@debug.command("report", short_help="Where a pipeline goes on, and what is suspicious.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.option("--run", "key", metavar="KEY", help="Only this run.")
@STORAGE
@click.option("--quick", is_flag=True, help="Do not read the files of outputs.")
@click.option("--stale", type=DURATION, default="1h", show_default=True, metavar="DURATION",
              help="A run that has reported nothing for so long is suspicious.")
@click.option("--all", "everything", is_flag=True, help="Look at all keys, however many.")
@client_options
@click.pass_context
def report(ctx: click.Context, use: Use, pipeline: str, key: str | None, storage: str | None,
           quick: bool, stale: float, everything: bool) -> None:
    """Tell where the unfinished runs of PIPELINE would go on and what they would do again, which
    intervals and partitions are left, and what is suspicious: each with what was seen and what to
    do next.

    An error means that something is lost, damaged or stands still; a warning, that somebody should
    look; a note is to be known. Exit code 0 when there is neither error nor warning, 1 when there
    is.

    \b
    Examples:
      ckptmesh debug report nightly
      ckptmesh debug report nightly --run 2026-11-21 --storage /shared/nightly
      ckptmesh debug report nightly --url file:/var/lib/ckptmesh     # of a store that is stopped
      ckptmesh debug report nightly --json | jq -r '.findings[] | [.fault, .key] | @tsv'
    """
    from ckptmesh.cli.debugging import print_report
    from ckptmesh.features.debugging.reporting import Look, dead_in
    from ckptmesh.features.debugging.reporting import report as look
    from ckptmesh.urls import directory_of

    directory = directory_of(use.url or "") if (use.url or "").startswith("file:") else None
    with use.connect(existing=True) as mesh:
        found = look(mesh, pipeline, key, Look(
            dead=dead_in(directory, mesh), storage=storage, files=not quick, stale=stale,
            everything=everything))
    print_report(use.out, found)
    if found.suspicious:
        ctx.exit(SUSPICIOUS)
