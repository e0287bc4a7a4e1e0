"""`ckptmesh run`: the runs of staged pipelines and of commands, seen and stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

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
from ckptmesh.cli.forms import bare
from ckptmesh.cli.output import Rows
from ckptmesh.cli.text import many, size_text, span_text
from ckptmesh.errors import Misuse, RunNotFound

if TYPE_CHECKING:
    from ckptmesh.features.pipeline.records import RunRecord
    from ckptmesh.features.pipeline.runs import Runs

_STATUSES = ("pending", "running", "completed", "failed", "paused", "cancelled", "interrupted")
_EVENTS = 20  # of a run that are shown to people; --json has all that are kept
REASON = click.option("--reason", default="", metavar="TEXT", help="Why; kept with the run.")


@click.group("run")
def run() -> None:
    """See the runs of staged pipelines and of commands under exec; pause, resume, cancel them;
    count them, and clean up.

    \b
    Examples:
      ckptmesh run list nightly --status failed
      ckptmesh run show nightly 2026-11-21
      ckptmesh run pause nightly 2026-11-21 --reason "the feed is late"
    """


@run.command("list", short_help="The runs of a pipeline, or of all.")
@click.argument("pipeline", default="", shell_complete=complete_keys)
@click.option("--status", type=click.Choice(_STATUSES), help="Only such.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the newest so many.")
@click.option("--past", is_flag=True, help="Those before the last of each key too.")
@client_options
def list_(use: Use, pipeline: str, status: str | None, limit: int | None, past: bool) -> None:
    """List the runs of PIPELINE, in the order of their beginning: the last one under each key, and
    the commands of `ckptmesh exec`. Without PIPELINE: of all, for which every key of the store is
    read (and none is past). "interrupted": its process is gone, and the next run goes on with it.

    \b
    Examples:
      ckptmesh run list nightly --limit 10
      ckptmesh run list --status failed --json | jq -r '[.pipeline, .key, .error] | @tsv'
    """
    from ckptmesh.features.pipeline.runs import chosen, every_run

    with use.connect(reading=True) as mesh:
        found = (chosen(mesh.runs(pipeline).list(past=past), status, limit) if pipeline
                 else chosen(every_run(mesh, lambda error: use.out.note(f"left out: {error}")),
                             status, limit))
    if not _show_runs(use, found) and not use.out.as_json:
        use.out.note(f"there is no such run of {pipeline}" if pipeline else "there is no such run")


@run.command("show", short_help="All that is known about one run.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.argument("key")
@client_options
def show(use: Use, pipeline: str, key: str) -> None:
    """Show the run of PIPELINE under KEY: where it stands, its stages, errors, and what has
    happened. Exit code 3 when there is none.

    \b
    Examples:
      ckptmesh run show nightly 2026-11-21
      ckptmesh run show nightly 2026-11-21 --json | jq '.stages[] | {name, status, milliseconds}'
    """
    from ckptmesh.features.pipeline.records import document

    with use.connect(reading=True) as mesh:
        found = mesh.runs(pipeline).get(key)
    if found is None:
        raise RunNotFound(f"there is no run {key!r} of {pipeline!r}",
                          hint=f"ckptmesh run list {pipeline}")
    use.out.facts(document(found), _facts(found))
    if use.out.as_json:
        return
    use.out.text("")
    use.out.table(("stage", "status", ">took", ">records", ">failed", ">output", ">executions",
                   "needs", "sha256"), _stages(found))
    for title, lines in (("errors", _errors(found)), ("events", _events(found))):
        if lines:
            use.out.text(f"\n{title}:")
            for line in lines:
                use.out.text(f"  {line}")


@run.command("pause", short_help="Let it stop before its next stage.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.argument("key")
@REASON
@client_options
def pause(use: Use, pipeline: str, key: str, reason: str) -> None:
    """Ask the run of PIPELINE under KEY to stop before its next stage, or within one that looks.
    It does not go on until `run resume`. Exit code 3 when there is none.

    \b
    Example:
      ckptmesh run pause nightly 2026-11-21 --reason "the feed is late"
    """
    _ask(use, pipeline, lambda runs: runs.pause(key, reason=reason))


@run.command("resume", short_help="Take a pause back.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.argument("key")
@client_options
def resume(use: Use, pipeline: str, key: str) -> None:
    """Take a pause back: whoever runs the pipeline next under KEY goes on with it. This starts
    nothing.

    \b
    Example:
      ckptmesh run resume nightly 2026-11-21
    """
    _ask(use, pipeline, lambda runs: runs.resume(key))


@run.command("cancel", short_help="End it for good.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.argument("key")
@REASON
@yes_option
@client_options
def cancel(use: Use, pipeline: str, key: str, reason: str, yes: bool) -> None:
    """Ask the run of PIPELINE under KEY to end for good, as `run pause` does. Asks first. What it
    has left stays in the store; only resume="never" begins anew.

    \b
    Example:
      ckptmesh run cancel nightly 2026-11-21 --reason "wrong feed" --yes
    """
    confirm(f"end the run {key} of {pipeline} for good?", yes)
    _ask(use, pipeline, lambda runs: runs.cancel(key, reason=reason))


@run.command("statistics", short_help="How many, how they ended, how long they took.")
@click.argument("pipeline", shell_complete=complete_keys)
@client_options
def statistics(use: Use, pipeline: str) -> None:
    """Figures over all runs of PIPELINE that the store keeps, earlier ones too: how many in each
    status, how often one was taken up again, how many of those came to their end, durations of
    completed ones.

    \b
    Examples:
      ckptmesh run statistics nightly
      ckptmesh run statistics nightly --json | jq .resume_rate
    """
    with use.connect(reading=True) as mesh:
        found = mesh.runs(pipeline).statistics()
    rate = "" if found.resume_rate is None else f", {found.resume_rate:.0%} of them completed"
    facts = [("runs", f"{found.total:,}")]
    facts += [(status, f"{count:,}") for status, count in sorted(found.by_status.items())]
    facts += [("resumes", f"{found.resumes:,}, of {many(found.resumed, 'run')}{rate}")]
    facts += [(name, span_text(span)) for name, span in (
        ("mean", found.mean), ("shortest", found.shortest), ("longest", found.longest))
        if span is not None]
    use.out.facts({"pipeline": pipeline, **asdict(found)}, facts)


@run.command("clean", short_help="Remove old runs, with their outputs.")
@click.argument("pipeline", shell_complete=complete_keys)
@click.option("--older-than", type=DURATION, metavar="DURATION",
              help="Those that were changed last longer ago than this: 30d.")
@click.option("--keep", type=click.IntRange(0), metavar="N",
              help="But never the newest N; alone: all but those.")
@click.option("--unfinished", is_flag=True, help="Those too that could still go on.")
@click.option("--storage", type=click.Path(exists=True, file_okay=False), metavar="DIR",
              help="The folder of their files, which go as well.")
@yes_option
@dry_run_option
@client_options
def clean(use: Use, pipeline: str, older_than: float | None, keep: int | None, unfinished: bool,
          storage: str | None, yes: bool, dry_run: bool) -> None:
    """Remove runs of PIPELINE that are old, or too many, with their outputs. Shows them, and asks.
    Unfinished runs stay unless told; so do those that change meanwhile.

    \b
    Examples:
      ckptmesh run clean nightly --older-than 30d --keep 100 --dry-run
      ckptmesh run clean nightly --keep 100 --storage /shared/nightly --yes
    """
    if older_than is None and keep is None:
        raise Misuse("which runs are to go?", hint="--older-than 30d, --keep 100")
    chosen: dict[str, Any] = {"older_than": older_than, "keep": keep, "unfinished": unfinished}
    with use.connect(reading=True) as mesh:
        found = mesh.runs(pipeline).clean(dry_run=True, **chosen)
    if dry_run or not found:
        _show_runs(use, found)
        use.out.note(f"would remove {many(len(found), 'run')}" if found else "nothing to remove")
        return
    if not use.out.as_json:
        _show_runs(use, found)
    confirm(f"Remove {many(len(found), 'run')}?", yes)
    with use.connect() as mesh:  # not held while the user thinks
        gone = mesh.runs(pipeline).clean(storage=storage, only=found, **chosen)
    if use.out.as_json:
        _show_runs(use, gone)
    changed = len(found) - len(gone)
    use.out.note(f"removed {many(len(gone), 'run')}"
                 + (f"; {changed:,} changed meanwhile and stay" if changed else ""))


def _show_runs(use: Use, found: list[RunRecord]) -> int:
    return use.out.table(("pipeline", "key", "status", "stage", ">resumes", ">records", ">age",
                          ">took", "why"), _rows(found))


def _ask(use: Use, pipeline: str, ask: Callable[[Runs], RunRecord]) -> None:
    from ckptmesh.features.pipeline.records import document

    with use.connect() as mesh:
        found = ask(mesh.runs(pipeline))
    use.out.text(_status(found), document(found))
    if found.interrupted:
        use.out.note(f"{found.worker}, who did it, is gone; the next run obeys")
    elif found.asked and found.status == "running":
        use.out.note(f"{found.worker} is at it, and is asked to {found.asked} it")
    elif found.status == "pending":
        use.out.note("it goes on with the next run of the pipeline under this key")


# --- what people see ------------------------------------------------------------------------------


def _status(found: RunRecord) -> str:
    asked = found.asked if not found.status.startswith(found.asked) else ""
    return f"{found.shown} ({asked} asked)" if asked else found.shown


def _stage(found: RunRecord) -> str:
    """Where it is: `transform 2/3`; how many are done, between stages."""
    of, at = len(found.stages), found.stage_index
    if at is None:
        return f"{len(found.completed)}/{of}"
    return f"{found.stage} {at + 1}/{of}"


def _rows(found: list[RunRecord]) -> Rows:
    from ckptmesh.features.pipeline.records import document

    now = datetime.now(UTC)
    for each in found:
        took = "" if each.took is None else span_text(each.took.total_seconds())
        yield document(each), (
            each.pipeline, each.key, _status(each), _stage(each), str(each.resumes),
            f"{each.records:,}", span_text((now - each.created).total_seconds()), took,
            _first_line(each.error))


def _facts(found: RunRecord) -> list[tuple[str, str]]:
    now = datetime.now(UTC)
    behind = found.behind(now)
    facts: list[tuple[str, Any]] = [
        ("pipeline", found.pipeline), ("key", found.key), ("run", found.run_id),
        ("kind", found.kind), ("version", found.version), ("status", _status(found)),
        ("stage", _stage(found)), ("created", _time(found.created)),
        ("updated", _time(found.updated)), ("finished", _time(found.finished)),
        ("worker", found.worker), ("resumes", found.resumes), ("parent", found.parent),
        ("stored at", found.stored_at), ("error", _first_line(found.error)),
        ("inputs", bare(found.inputs)), ("configuration", bare(found.config)),
        ("records", f"{found.records:,}, {found.failed:,} failed"),
        ("bytes", size_text(found.bytes)), ("last id", _known(found.last_id)),
        ("batch", _known(found.batch)), ("lag", _known(found.lag)),
        ("last success", "" if behind is None else f"{span_text(behind.total_seconds())} ago")]
    return [(name, str(fact)) for name, fact in facts if fact not in ("", None)]


def _stages(found: RunRecord) -> Rows:
    for each in found.stages:
        yield {}, (each.name, each.status, f"{each.milliseconds / 1_000:.3f} s",
                   f"{each.records:,}", f"{each.failed:,}", size_text(each.size + each.file_bytes),
                   str(each.executions), ", ".join(each.needs), each.sha256[:12])


def _errors(found: RunRecord) -> list[str]:
    lines = [f"{_time(each.time)} {each.stage}"
             + ("" if each.id is None else f" {bare(each.id)[:60]}")
             + f": {_first_line(each.message)}" + (" (may succeed again)" if each.retryable else "")
             for each in found.errors]
    more = found.errors_total - len(found.errors)
    return [f"{many(more, 'earlier error')}", *lines] if more else lines


def _events(found: RunRecord) -> list[str]:
    return [f"{_time(each.time)} {each.kind}" + (f" {each.stage}" if each.stage else "")
            + (f": {_first_line(each.detail)}" if each.detail else "")
            + (f" ({each.count} times)" if each.count > 1 else "")
            for each in found.events[-_EVENTS:]]




def _known(value: Any) -> str:
    return "" if value is None else bare(value)


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
