"""A picture as text: Mermaid, DOT. What draws it is elsewhere: a page of Markdown, `dot -Tsvg`."""

from __future__ import annotations

from ckptmesh.features.debugging.attempts import (
    INTERRUPTED,
    SKIPPED,
    STATES,
    Box,
    Lane,
    Picture,
)
from ckptmesh.features.debugging.reading import moment
from ckptmesh.features.pipeline.records import (
    CANCELLED,
    COMPLETED,
    FAILED,
    PAUSED,
    PENDING,
    RUNNING,
)

# Colours that people with any kind of colour vision tell apart: M. Okabe, K. Ito, "Color universal
# design", 2008. A mark goes with each, for paper and for those who see none.
COLOURS = {COMPLETED: "#009E73", SKIPPED: "#8FA3AD", RUNNING: "#0072B2", PENDING: "#A9A9A9",
           FAILED: "#D55E00", INTERRUPTED: "#7A3B00", PAUSED: "#E69F00", CANCELLED: "#CC79A7"}
MARKS = {COMPLETED: "✓", SKIPPED: "↷", RUNNING: "▶", PENDING: "○", FAILED: "✗",
         INTERRUPTED: "⚡", PAUSED: "‖", CANCELLED: "⊘"}
_NAME, _ERROR = 28, 40  # characters that are shown


def cut(text: str, most: int) -> str:
    """A long name without its middle: beginnings and ends tell names apart."""
    if len(text) <= most:
        return text
    front = (most - 1 + 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front):]}"


def span(seconds: float) -> str:
    """A duration: 12 ms, 3.4 s, 2m 05s, 3h 07m."""
    if seconds < 1:
        return f"{1_000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return (f"{whole // 60}m {whole % 60:02d}s" if whole < 3_600
            else f"{whole // 3_600}h {whole % 3_600 // 60:02d}m")


def title_of(picture: Picture) -> str:
    """What is drawn: pipeline, key, status."""
    record = picture.record
    return f"{record.pipeline} · {record.key} · {record.status}"


def facts_of(picture: Picture) -> str:
    """And when: run, times, resumes."""
    record = picture.record
    end = (f"finished {_short(record.finished)}" if record.finished
           else f"updated {_short(record.updated)}")
    took = f" · took {span(record.took.total_seconds())}" if record.took else ""
    resumed = f" · {record.resumes} resume" + ("" if record.resumes == 1 else "s")
    asked = f" · {record.asked} asked for" if record.asked else ""
    return (f"run {record.run_id[:16]} · begun {_short(record.created)} · {end}{took}"
            f"{resumed if record.resumes else ''}{asked}")


def _short(time: object) -> str:
    return (moment(time) or "")[:19].replace("T", " ") + "Z"  # type: ignore[arg-type]


def lane_title(lane: Lane, number: int) -> str:
    """What a lane is called. `number` from 1."""
    return {"begun": "begun", "resumed": "resumed", "handed over": "taken over",
            "earlier": "…"}[lane.kind] + f" · attempt {number}"


def lines_of(box: Box) -> list[str]:
    """What stands in a box under the name."""
    parts = [] if box.seconds is None else [span(box.seconds)]
    if box.executions > 1:
        parts.append(f"{box.executions} attempts")
    if box.batches:
        parts.append(f"{box.batches:,} batches" if box.batches > 1 else "1 batch")
    second = "" if box.revision is None else f"checkpoint @{box.revision}"
    return [line for line in (" · ".join(parts), second) if line]


# --- Mermaid ----------------------------------------------------------------------------------


def mermaid(picture: Picture) -> str:
    """A flowchart, as many pages of Markdown draw it."""
    lines = ["---", f"title: {_yaml(title_of(picture))}", "---", "flowchart LR"]
    for at, lane in enumerate(picture.lanes):
        title = f"{lane_title(lane, picture.hidden + at + 1)} · {_short(lane.began)}"
        lines.append(f'  subgraph L{at}["{_html(title)}"]')
        lines.append("    direction LR")
        for name, number in _numbers(picture).items():
            lines.append(f'    S{at}_{number}["{_label(picture, lane, name, "<br/>", _html)}"]'
                         f":::{lane.boxes[name].status}")
        lines += [f"    S{at}_{_numbers(picture)[need]} --> S{at}_{_numbers(picture)[name]}"
                  for need, name in picture.edges]
        lines.append("  end")
    lines += [f"  S{at}_{_numbers(picture)[stage]} -. {_html(why)} .-> "
              f"S{at + 1}_{_numbers(picture)[stage]}" for at, stage, why in handovers(picture)]
    for state in STATES:
        dashed = ",stroke-dasharray:4 3" if state in (PENDING, SKIPPED) else ""
        lines.append(f"  classDef {state} fill:#ffffff,color:#222222,stroke:{COLOURS[state]},"
                     f"stroke-width:3px{dashed}")
    return "\n".join(lines) + "\n"


def handovers(picture: Picture) -> list[tuple[int, str, str]]:
    """(lane, stage, why): where a lane stopped, and the next went on."""
    found = []
    for at, (lane, after) in enumerate(zip(picture.lanes, picture.lanes[1:], strict=False)):
        stage = lane.stopped_at
        if stage:
            found.append((at, stage, "resumed from @" + after.parent.rpartition("@")[2]
                          if after.parent else "resumed"))
    return found


def _numbers(picture: Picture) -> dict[str, int]:
    return {each.name: at for at, each in enumerate(picture.record.stages)}


def _label(picture: Picture, lane: Lane, name: str, end: str, safe: object) -> str:
    box = lane.boxes[name]
    lines = [f"{MARKS[box.status]} {cut(name, _NAME)}", box.status, *lines_of(box)]
    if box.error:
        lines.append(cut(box.error, _ERROR))
    return end.join(safe(line) for line in lines)  # type: ignore[operator]


def _html(text: str) -> str:
    """Text that ends no label and is no markup: numbers of characters, as Mermaid reads them."""
    return "".join(each if each.isalnum() or each in " .,:·@-_…✓↷▶○✗⚡‖⊘/" else f"#{ord(each)};"
                   for each in text)


def _yaml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- DOT --------------------------------------------------------------------------------------


def dot(picture: Picture) -> str:
    """A graph, as Graphviz draws it."""
    title = f"{_quoted(title_of(picture))}\\n{_quoted(facts_of(picture))}"
    lines = ["digraph run {", "  rankdir=LR; newrank=true; compound=true;",
             f'  labelloc=t; fontname="Helvetica"; label="{title}";',
             '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="Helvetica", '
             'penwidth=2];', '  edge [color="#777777"];']
    numbers = _numbers(picture)
    for at, lane in enumerate(picture.lanes):
        heading = _quoted(f"{lane_title(lane, picture.hidden + at + 1)} · {_short(lane.began)} · "
                          f"{lane.worker}")
        lines.append(f'  subgraph cluster_{at} {{ label="{heading}"; color="#cccccc";')
        for name, number in numbers.items():
            status = lane.boxes[name].status
            dashed = ', style="rounded,dashed"' if status in (PENDING, SKIPPED) else ""
            lines.append(f'    S{at}_{number} [label="'
                         f'{_label(picture, lane, name, chr(92) + "n", _quoted)}", '
                         f'color="{COLOURS[status]}"{dashed}];')
        lines += [f"    S{at}_{numbers[need]} -> S{at}_{numbers[name]};"
                  for need, name in picture.edges]
        lines.append("  }")
    lines += [f'  S{at}_{numbers[stage]} -> S{at + 1}_{numbers[stage]} '
              f'[style=dashed, constraint=false, label="{_quoted(why)}"];'
              for at, stage, why in handovers(picture)]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
