"""What `ckptmesh debug` prints: documents for programs, tables and sentences for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ckptmesh.cli.diff import shown
from ckptmesh.cli.forms import compact, indented
from ckptmesh.cli.output import Output
from ckptmesh.cli.text import many, preview, size_text, span_text
from ckptmesh.clock import iso
from ckptmesh.features.debugging.analysing import Analysis, Spread
from ckptmesh.features.debugging.reading import moment
from ckptmesh.features.debugging.texts import MARKS, span
from ckptmesh.limits import SECOND

if TYPE_CHECKING:
    from ckptmesh.features.debugging.attempts import Picture
    from ckptmesh.features.debugging.inspecting import Inspection
    from ckptmesh.features.debugging.reporting import Plan, Report

_SIGNS = {"good": "✓", "unknown": "?", "missing": "✗", "changed": "✗", "unreadable": "✗"}
_COLOURS = {"error": "red", "warning": "yellow", "note": ""}


def _table(out: Output, title: str, columns: tuple[str, ...],
           rows: Iterable[tuple[str, ...]]) -> None:
    found: list[tuple[dict[str, Any], tuple[str, ...]]] = [({}, row) for row in rows]
    if found:
        out.text(f"\n{title}:")
        out.table(columns, found)


# --- inspect ----------------------------------------------------------------------------------


def print_inspection(out: Output, found: Inspection, now: int) -> None:
    """A checkpoint in full. `now`: the store's time, microseconds."""
    one = found.found
    out.facts(_inspection(found), [(name, str(fact)) for name, fact in (
        ("key", one.key), ("revision", f"{one.revision}, epoch {one.epoch}"),
        ("stands", "now" if found.newest == one.revision else "deleted since" if
         found.newest is None else f"no more: replaced by revision {found.newest}"),
        ("version", f"{one.version} of this key, created at revision {one.create_revision}"),
        ("time", f"{iso(one.micros)}, {span_text((now - one.micros) / SECOND)} ago"),
        ("expires", moment(one.expires_at)), ("position", one.position), ("head", one.head),
        ("lag", _lag(found)), ("lease", "yes" if one.is_lease else None),
        ("size", size_text(found.size)), ("sha256", found.sha256)) if fact is not None])
    if out.as_json:
        return
    out.text("\nvalue:")
    out.text(preview(indented(shown(one)), 4_000))
    _table(out, "verified", (" ", "what", "state", "in detail"), (
        (_SIGNS[each.state], each.what, each.state, each.text) for each in found.every_verdict))
    if found.run is not None:
        _table(out, "stages", ("stage", "status", ">took", ">executions", "needs", "sha256",
                               "error"), (
            (each.name, each.status, span(each.milliseconds / 1_000), str(each.executions),
             ", ".join(each.needs), each.sha256[:12], each.error.partition("\n")[0])
            for each in found.run.record.stages))
    _table(out, "history", (">revision", "time", ">size", ">position", "value"), (
        (str(each.revision), iso(each.micros), size_text(len(each.value.data)),
         "" if each.position is None else str(each.position), preview(compact(shown(each))))
        for each in found.history))
    _table(out, "made from", ("key", ">revision", "state"), (
        (each.key, str(each.revision), each.state) for each in found.sources))
    _table(out, "used by", ("key", ">revision", ">of revision"), (
        (each.key, str(each.revision), str(each.used)) for each in found.consumers))
    _table(out, "contracts", ("prefix", "rules"), (
        (each.prefix or "(everything)", compact(rules_of(each))) for each in found.contracts))
    _table(out, "locks", ("name", "holder", "mode", ">ahead", "ticket"), (
        (each.name, each.holder, "shared" if each.shared else "exclusive", str(each.ahead),
         each.number) for each in found.locks))
    if not found.all_looked_at:
        out.note(f"only the first {found.looked_at:,} keys were looked at for who uses it; "
                 "--all looks at all")


def _lag(found: Inspection) -> int | None:
    one = found.found
    return None if one.head is None or one.position is None else one.head - one.position


def rules_of(contract: Any) -> dict[str, Any]:
    """The rules of a contract that ask for something."""
    names = ("monotonic", "required", "max_step", "max_bytes", "ttl", "history", "schema")
    return {name: rule for name in names if (rule := getattr(contract, name))}


def _inspection(found: Inspection) -> dict[str, Any]:
    from ckptmesh.features.pipeline.records import document

    one = found.found
    return {
        "key": one.key, "revision": one.revision, "epoch": one.epoch, "version": one.version,
        "create_revision": one.create_revision, "newest": found.newest, "time": iso(one.micros),
        "expires_at": moment(one.expires_at), "position": one.position, "head": one.head,
        "lag": _lag(found), "is_lease": one.is_lease, "size": found.size, "sha256": found.sha256,
        "value": shown(one), "good": found.good,
        "verified": [each._asdict() for each in found.every_verdict],
        "history": [{"revision": each.revision, "time": iso(each.micros),
                     "size": len(each.value.data), "position": each.position, "head": each.head}
                    for each in found.history],
        "sources": [{"key": each.key, "revision": each.revision, "state": each.state,
                     "now": each.now} for each in found.sources],
        "consumers": [{"key": each.key, "revision": each.revision, "used": each.used}
                      for each in found.consumers],
        "looked_at": found.looked_at, "all_looked_at": found.all_looked_at,
        "contracts": [{"prefix": each.prefix, **rules_of(each)} for each in found.contracts],
        "locks": [{"name": each.name, "holder": each.holder, "shared": each.shared,
                   "ahead": each.ahead, "ticket": each.number} for each in found.locks],
        "run": document(found.run.record) if found.run else None}


# --- analyze ----------------------------------------------------------------------------------


def print_analysis(out: Output, found: Analysis) -> None:
    """The figures of a pipeline."""
    out.facts(_analysis(found), _figures(found))
    if out.as_json:
        return
    _table(out, "stages, the slowest first", (
        "stage", ">runs", ">executions", ">failed", ">p50", ">p95", ">max", ">of the time"), (
        (each.name, str(each.runs), str(each.executions), str(each.failed),
         *_cells(each.spread), f"{each.share:.0%}") for each in found.stages))
    _table(out, "errors", (">times", ">runs", "stage", "error", "last in run"), (
        (str(each.number), str(each.runs), each.stage, each.error, each.last)
        for each in found.failures))
    for what, trend in (("durations", found.slower), ("failures", found.worse)):
        out.text(f"\n{what}: {trend.verdict}")
        out.text(f"  {trend.text}")
    for each in found.unread:
        out.note(f"{each.key} cannot be read: {each.text}")


def _figures(found: Analysis) -> list[tuple[str, str]]:
    rate, spread = found.resume_rate, found.durations
    lines = [("pipeline", found.pipeline), ("runs", f"{found.runs:,}: " + ", ".join(
        f"{number} {status}" for status, number in sorted(found.by_status.items())))]
    if found.passed_over:
        lines.append(("passed over", f"{found.passed_over:,} older"))
    if spread:
        p50, p95, longest = _cells(spread)
        lines.append(("duration", f"p50 {p50}, p95 {p95}, max {longest}, "
                                  f"of {many(spread.number, 'completed run')}"))
    lines.append(("resumes", f"{found.resumes:,} of {many(found.resumed, 'run')}" + (
        "" if rate is None else f"; {found.resumed_completed:,} ({rate:.0%}) came to their end")))
    for name, total, speed in (
            ("records", f"{found.records:,}", found.records_per_second),
            ("bytes", size_text(found.bytes), found.bytes_per_second)):
        if speed is not None:
            each = size_text(round(speed)) if name == "bytes" else f"{speed:,.1f}"
            lines.append((name, f"{total}, {each}/s of the time in stages"))
        else:
            lines.append((name, total))
    return lines + [("lag", f"{lag:,} ({where})") for where, lag in found.lags.items()]


def _cells(spread: Spread | None) -> tuple[str, str, str]:
    return ("", "", "") if spread is None else (
        span(spread.p50), span(spread.p95), span(spread.longest))


def _analysis(found: Analysis) -> dict[str, Any]:
    return {
        "pipeline": found.pipeline, "runs": found.runs, "passed_over": found.passed_over,
        "by_status": found.by_status, "by_kind": found.by_kind,
        "durations": found.durations._asdict() if found.durations else None,
        "resumes": found.resumes, "resumed": found.resumed,
        "resumed_completed": found.resumed_completed, "resume_rate": found.resume_rate,
        "failures": [each._asdict() for each in found.failures],
        "stages": [{**each._asdict(), "spread": each.spread._asdict() if each.spread else None}
                   for each in found.stages],
        "records": found.records, "bytes": found.bytes,
        "records_per_second": found.records_per_second,
        "bytes_per_second": found.bytes_per_second, "lags": found.lags,
        "trends": {"durations": found.slower._asdict(), "failures": found.worse._asdict()},
        "unread": [{"key": each.key, "revision": each.revision, "newer": each.newer,
                    "text": each.text} for each in found.unread]}


# --- visualize --------------------------------------------------------------------------------


def drawn(picture: Picture, form: str) -> bytes:
    """A picture in one of its forms. Raises `MissingExtra`."""
    if form == "png":
        from ckptmesh.features.debugging.drawing import png

        return png(picture)
    from ckptmesh.features.debugging.texts import dot, mermaid

    if form == "json":
        return (compact(_described(picture)) + "\n").encode()
    return (dot if form == "dot" else mermaid)(picture).encode()


def _described(picture: Picture) -> dict[str, Any]:
    record = picture.record
    return {
        "pipeline": record.pipeline, "key": record.key, "run_id": record.run_id,
        "status": record.status, "edges": [list(each) for each in picture.edges],
        "hidden": picture.hidden, "whole": picture.whole,
        "lanes": [{
            "kind": lane.kind, "began": moment(lane.began), "ended": moment(lane.ended),
            "worker": lane.worker, "parent": lane.parent,
            "stages": [{"name": name, "status": box.status, "seconds": box.seconds,
                        "executions": box.executions, "revision": box.revision,
                        "batches": box.batches, "error": box.error}
                       for name, box in lane.boxes.items()]} for lane in picture.lanes]}


# --- report -----------------------------------------------------------------------------------


def print_report(out: Output, found: Report) -> None:
    """The recovery report."""
    if out.as_json:
        out.document(_report(found))
        return
    _heading(out, found)
    for plan in found.plans:
        _plan(out, plan)
    _table(out, "intervals", ("key", ">done up to", ">holes", ">missing", ">claims", "first"), (
        (each.key, f"{each.low_mark:,}", f"{each.number:,}", f"{each.missing:,}",
         str(each.claims), ", ".join(f"[{a}, {b})" for a, b in each.holes))
        for each in found.holes))
    for each in found.findings:
        out.text("")
        out.styled((each.severity, _COLOURS[each.severity]), (each.fault, ""), (each.key, ""))
        out.text(f"  {each.evidence}")
        out.text(f"  → {each.next}")
    if found.more:
        out.note(f"{found.more:,} more findings are not told")
    if not found.all_keys:
        out.note(f"only the first {found.keys:,} keys were looked at; --all looks at all")
    suspicious = sum(each.severity != "note" for each in found.findings) + found.more
    out.text("\n" + (f"{suspicious:,} suspicious" if suspicious else "nothing suspicious"))


def _heading(out: Output, found: Report) -> None:
    what = f"run {found.run} of {found.pipeline}" if found.run else found.pipeline
    looked = many(found.runs, "run") + ("" if found.run else f", {many(found.keys, 'key')}")
    out.text(f"{what}: {looked}, {len(found.plans)} unfinished")
    if found.free is not None:
        out.text(f"{many(found.workers, 'worker')}, {many(found.partitions, 'partition')}, "
                 f"{found.free} without owner")


def _plan(out: Output, plan: Plan) -> None:
    at_work = f", {plan.at_work} is at it" if plan.at_work else ""
    out.text(f"\n{MARKS.get(plan.status, '')} run {plan.key} is {plan.status}{at_work}")
    out.text(f"  done      {', '.join(plan.done) or 'nothing'}")
    out.text(f"  goes on   {plan.stage or 'with nothing: all stages stand'}"
             + (f", from {plan.inside}" if plan.inside else ""))
    out.text(f"  executes  {', '.join(plan.redo) or 'nothing'}")
    if plan.waits:
        out.text(f"  first     {plan.waits}")
    if plan.call:
        out.text(f"  by        {plan.call}")


def _report(found: Report) -> dict[str, Any]:
    return {
        "pipeline": found.pipeline, "run": found.run, "time": moment(found.time),
        "suspicious": found.suspicious, "findings": [each._asdict() for each in found.findings],
        "more": found.more, "plans": [each._asdict() for each in found.plans],
        "intervals": [each._asdict() for each in found.holes], "workers": found.workers,
        "partitions": found.partitions, "free": found.free, "runs": found.runs,
        "keys": found.keys, "all_keys": found.all_keys}
