"""A picture as PNG. Needs the extra `ckptmesh[debug]`, matplotlib, which is imported when it draws.

Lengths are inches; y grows downwards. Each lane is a band: who and when to the left, its stages to
the right. A line between two lanes shows where the later went on.

Rule: no line passes behind text: lines between stages have places of their own in each column
      (`layout.py`), those between lanes run beside the columns.
"""

from __future__ import annotations

import io
import warnings
from datetime import datetime
from textwrap import wrap
from typing import Any

from ckptmesh.errors import MissingExtra
from ckptmesh.features.debugging.attempts import (
    INTERRUPTED,
    SKIPPED,
    STATES,
    Box,
    Lane,
    Picture,
)
from ckptmesh.features.debugging.layout import Place
from ckptmesh.features.debugging.texts import (
    COLOURS,
    MARKS,
    cut,
    facts_of,
    handovers,
    lane_title,
    lines_of,
    span,
    title_of,
)
from ckptmesh.features.pipeline.records import FAILED, PENDING, RUNNING

_BOX, _ROW, _GUTTER = 0.92, 0.26, 0.62  # height of a box; between rows; between columns
_PANEL, _EDGE, _PAD, _BETWEEN = 2.35, 0.35, 0.24, 0.42  # left part; margin; in and between bands
_HEAD, _FOOT, _FOLD = 0.95, 0.62, 0.34  # above and below all; between two parts of one lane
_ACROSS = 7  # columns side by side; more of them go on below
_STRIP = 0.30  # the coloured part of a box, with its mark
_INK, _PALE, _LINE, _BAND = "#1D2733", "#66737F", "#9AA7B2", "#F5F7F9"
_DOTS, _DOTS_MOST = 100, 16_000  # per inch, and of a whole side: more is no use to anybody


def png(picture: Picture) -> bytes:
    """The picture as a PNG file. Raises `MissingExtra`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("a PNG needs matplotlib",
                           hint="pip install 'ckptmesh[debug]'; --format mermaid and dot need "
                                "nothing") from error
    drawing = _Drawing(picture)
    figure = Figure(figsize=(drawing.width, drawing.height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    axes.axis("off")
    drawing.draw(axes)
    found = io.BytesIO()
    dots = min(_DOTS, _DOTS_MOST / max(drawing.width, drawing.height))
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(found, format="png", dpi=dots,
                       pil_kwargs={"optimize": True})
    return found.getvalue()


class _Drawing:
    """One picture, measured and drawn."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        longest = max((len(each.name) for each in picture.record.stages), default=8)
        self._wide = min(2.6, max(1.75, _STRIP + 0.25 + 0.092 * longest))
        layout = picture.columns
        self._part = layout.height * _BOX + (layout.height - 1) * _ROW
        parts = -(-layout.width // _ACROSS)
        self._across = -(-layout.width // parts)
        self._band = parts * self._part + (parts - 1) * _FOLD + 2 * _PAD
        self.width = max(2 * _EDGE + _PANEL + self._across * (self._wide + _GUTTER), 9.4)
        lanes = len(picture.lanes)
        self.height = _HEAD + lanes * self._band + (lanes - 1) * _BETWEEN + _FOOT
        self._axes: Any = None

    def draw(self, axes: Any) -> None:
        """Everything, from back to front."""
        self._axes = axes
        self._heading()
        for at, lane in enumerate(self._picture.lanes):
            self._lane(at, lane)
        for at, stage, why in handovers(self._picture):
            self._handover(at, stage, why)
        self._legend()

    # --- where things are -----------------------------------------------------------------------

    def _top(self, lane: int) -> float:
        return _HEAD + lane * (self._band + _BETWEEN)

    def _corner(self, lane: int, place: Place) -> tuple[float, float]:
        """The upper left corner of a box."""
        part, column = divmod(place.column, self._across)
        return (_EDGE + _PANEL + _GUTTER / 2 + column * (self._wide + _GUTTER),
                self._top(lane) + _PAD + part * (self._part + _FOLD) + place.row * (_BOX + _ROW))

    # --- parts --------------------------------------------------------------------------------

    def _text(self, x: float, y: float, text: str, size: float = 8.5, color: str = _INK,
              room: float | None = None, **options: Any) -> Any:
        """Text from its upper left corner, cut to the inches that there are."""
        if room is not None:  # a character of this font is 0.6 of its size wide, bold ones 0.68
            share = 0.68 if options.get("weight") == "bold" else 0.6
            text = cut(text, max(4, int(room * 72 / size / share)))
        options = {"ha": "left", "va": "top", **options}
        return self._axes.text(x, y, text.replace("$", r"\$"), fontsize=size, color=color,
                               **options)

    def _heading(self) -> None:
        record, room = self._picture.record, self.width - 2 * _EDGE
        self._text(_EDGE, 0.20, MARKS[record.status], 15, COLOURS[record.status], weight="bold")
        self._text(_EDGE + 0.32, 0.20, title_of(self._picture), 14, weight="bold",
                   room=room - 0.32)
        left = [] if not self._picture.hidden else [
            f"{self._picture.hidden} earlier attempts are not shown"]
        left += [] if self._picture.whole else ["events before the first are not kept"]
        self._text(_EDGE + 0.32, 0.54, " · ".join([facts_of(self._picture), *left]), 8.5, _PALE,
                   room=room - 0.32)

    def _lane(self, at: int, lane: Lane) -> None:
        from matplotlib.patches import FancyBboxPatch

        top, layout = self._top(at), self._picture.columns
        self._axes.add_patch(FancyBboxPatch(
            (_EDGE, top), self.width - 2 * _EDGE, self._band, linewidth=0, facecolor=_BAND,
            boxstyle="round,pad=0,rounding_size=0.10"))
        self._panel(top, at, lane)
        for edge, route in layout.routes.items():
            self._edge(at, edge, route, lane)
        for name, place in layout.places.items():
            self._box(*self._corner(at, place), name, lane.boxes[name])

    def _panel(self, top: float, at: int, lane: Lane) -> None:
        middle, x, room = top + self._band / 2, _EDGE + 0.16, _PANEL - 0.2
        first = self._picture.record.created
        began = _clock(lane.began, first)
        ended = _clock(lane.ended, lane.began) if lane.ended else ""
        lines = [f"{began} to {ended}" if ended else f"since {began}"
                 if at == len(self._picture.lanes) - 1 and not self._picture.record.finished
                 else began]
        if lane.ended:
            lines[0] += f"  ({span((lane.ended - lane.began).total_seconds())})"
        lines.append(f"by {lane.worker}" if lane.worker else "")
        if lane.parent:
            lines.append(f"from record @{lane.parent.rpartition('@')[2]}")
        y = middle - 0.38
        self._text(x, y, lane_title(lane, self._picture.hidden + at + 1), 9.5, room=room,
                   weight="bold")
        for number, line in enumerate(filter(None, lines)):
            self._text(x, y + 0.24 + 0.19 * number, line, 8, _PALE, room=room)

    def _edge(self, at: int, edge: tuple[str, str], route: list[Place], lane: Lane) -> None:
        """A line from a stage to one that needs it, past all others."""
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path

        places, wide, half = self._picture.columns.places, self._wide, _BOX / 2
        x, y = self._corner(at, places[edge[0]])
        steps, codes = [(x + wide, y + half)], [Path.MOVETO]
        for place in [*route, places[edge[1]]]:
            goal_x, goal_y = self._corner(at, place)
            goal_y += half
            bend, before = _GUTTER * 0.55, steps[-1]
            if goal_x > before[0]:
                steps += [(before[0] + bend, before[1]), (goal_x - bend, goal_y), (goal_x, goal_y)]
                codes += [Path.CURVE4] * 3
            else:  # it goes on below, between the two parts of the lane
                steps += self._around(at, place, before, (goal_x, goal_y))
                codes += [Path.LINETO] * 5
            if place is not places[edge[1]]:
                steps.append((goal_x + wide, goal_y))
                codes.append(Path.LINETO)
        waits = lane.boxes[edge[1]].status == PENDING
        self._axes.add_patch(FancyArrowPatch(
            path=Path(steps, codes), arrowstyle="-|>", mutation_scale=9, linewidth=1.3,
            color=_LINE, linestyle=(0, (3, 2)) if waits else "solid", shrinkA=0, shrinkB=0))

    def _around(self, at: int, place: Place, before: tuple[float, float],
                goal: tuple[float, float]) -> list[tuple[float, float]]:
        """From the end of one part of a lane to the beginning of the next."""
        part = place.column // self._across
        between = self._top(at) + _PAD + part * (self._part + _FOLD) - _FOLD / 2
        right, left = before[0] + _GUTTER / 4, goal[0] - _GUTTER / 2
        return [(right, before[1]), (right, between), (left, between), (left, goal[1]), goal]

    def _box(self, x: float, y: float, name: str, box: Box) -> None:
        from matplotlib.patches import FancyBboxPatch, Rectangle

        color, quiet = COLOURS[box.status], box.status in (PENDING, SKIPPED)
        frame = FancyBboxPatch(
            (x, y), self._wide, _BOX, boxstyle="round,pad=0,rounding_size=0.07", linewidth=1.4,
            facecolor="white" if quiet else _tint(color), edgecolor=color,
            linestyle=(0, (3, 2)) if quiet else "solid")
        self._axes.add_patch(frame)
        strip = Rectangle((x, y), _STRIP, _BOX, linewidth=0, facecolor=color,
                          alpha=0.55 if quiet else 1)
        self._axes.add_patch(strip)
        strip.set_clip_path(frame)
        self._text(x + _STRIP / 2, y + _BOX / 2, MARKS[box.status], 13, "white", ha="center",
                   va="center", weight="bold")
        inner, room = x + _STRIP + 0.09, self._wide - _STRIP - 0.16
        ink = _PALE if quiet else _INK
        self._text(inner, y + 0.09, name, 9, ink, room=room, weight="bold").set_clip_path(frame)
        for number, line in enumerate(self._lines(box, room)):
            self._text(inner, y + 0.34 + 0.175 * number, line, 7.5, _PALE if quiet else _INK,
                       room=room).set_clip_path(frame)

    def _lines(self, box: Box, room: float) -> list[str]:
        """What stands under the name, three lines at most."""
        if box.status == PENDING:
            return [box.status]
        lines = lines_of(box)
        if box.seconds is None:
            lines = [box.status, *lines]
        if box.error and box.status in (FAILED, INTERRUPTED, RUNNING):
            lines = [*lines[:1], *wrap(box.error, int(room * 72 / 7.5 / 0.6), max_lines=2,
                                      placeholder="…")]
        return lines[:3]

    def _handover(self, at: int, stage: str, why: str) -> None:
        """From where a lane stopped to where the next went on, beside the column."""
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path

        place = self._picture.columns.places[stage]
        (x, y), (_, goal) = self._corner(at, place), self._corner(at + 1, place)
        beside, low, high = x - 0.17, y + _BOX - 0.18, goal + 0.18
        color = COLOURS[self._picture.lanes[at].boxes[stage].status]
        path = Path([(x, low), (beside, low), (beside, high), (x, high)],
                    [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO])
        self._axes.add_patch(FancyArrowPatch(
            path=path, arrowstyle="-|>", mutation_scale=9, linewidth=1.4, color=color,
            linestyle=(0, (4, 2)), shrinkA=0, shrinkB=0, joinstyle="round"))
        self._text(beside + 0.1, self._top(at) + self._band + _BETWEEN / 2, why, 8, color,
                   va="center")

    def _legend(self) -> None:
        """Every mark that the picture may have, so that all pictures read alike."""
        from matplotlib.patches import Rectangle

        y, x = self.height - 0.40, _EDGE
        step = (self.width - 2 * _EDGE) / len(STATES)
        for state in STATES:
            self._axes.add_patch(Rectangle((x, y), 0.2, 0.2, linewidth=0,
                                           facecolor=COLOURS[state],
                                           alpha=0.55 if state in (PENDING, SKIPPED) else 1))
            self._text(x + 0.1, y + 0.1, MARKS[state], 9, "white", ha="center", va="center",
                       weight="bold")
            self._text(x + 0.28, y + 0.1, state, 8, _PALE, va="center")
            x += step


def _tint(color: str) -> tuple[float, float, float]:
    """A little of a colour on white."""
    red, green, blue = (int(color[at:at + 2], 16) / 255 for at in (1, 3, 5))
    return (1 - 0.10 * (1 - red), 1 - 0.10 * (1 - green), 1 - 0.10 * (1 - blue))


def _clock(time: datetime, before: datetime) -> str:
    """A time of day; with its date where that is another than before."""
    return time.strftime("%H:%M:%S" if time.date() == before.date() else "%Y-%m-%d %H:%M:%S")
