"""Stages in columns: each right of all that it needs, lines around other stages.

Few lines cross: this is the layered drawing of K. Sugiyama, S. Tagawa and M. Toda, "Methods for
visual understanding of hierarchical system structures", 1981. A line that passes a column has a
place of its own there, and places are ordered by the mean of their neighbours, both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ckptmesh.features.pipeline.records import StageRecord

_LINE = 0.4  # of a row, that a line which passes takes
_SWEEPS = 4  # forwards and backwards; more of them change nothing that is seen

_Node = tuple[str, int]  # a stage, and a column: its own, or one that lines from it pass


class Place(NamedTuple):
    """Where a stage stands, or a line passes: the column from the left, and from the top the row,
    whole or not: columns with fewer places are centred."""

    column: int
    row: float


class Layout(NamedTuple):
    """`places` of stages; `routes`: the places that a line passes, its ends not counted; `width`
    in columns, `height` in rows."""

    places: dict[str, Place]
    routes: dict[tuple[str, str], list[Place]]
    width: int
    height: float


def laid_out(stages: Sequence[StageRecord]) -> Layout:
    """The layout of stages, each of which needs only such as stand before it."""
    depth: dict[str, int] = {}
    for each in stages:
        depth[each.name] = max((depth[need] + 1 for need in each.needs), default=0)
    width = 1 + max(depth.values(), default=0)
    columns: list[list[_Node]] = [[] for _ in range(width)]
    for each in stages:
        columns[depth[each.name]].append((each.name, depth[each.name]))
    before: dict[_Node, set[_Node]] = {}
    for each in stages:
        for need in each.needs:
            last = (need, depth[need])
            for column in range(depth[need] + 1, depth[each.name]):
                node = (need, column)
                if node not in before:
                    columns[column].append(node)
                before.setdefault(node, set()).add(last)
                last = node
            before.setdefault((each.name, depth[each.name]), set()).add(last)
    after: dict[_Node, set[_Node]] = {}
    for node, needed in before.items():
        for each_needed in needed:
            after.setdefault(each_needed, set()).add(node)
    rows, height = _rows(columns, before, after)
    places = {name: Place(at, rows[name, at]) for name, at in depth.items()}
    routes = {(need, each.name): [Place(column, rows[need, column]) for column in
                                  range(depth[need] + 1, depth[each.name])]
              for each in stages for need in each.needs}
    return Layout(places, routes, width, height)


def _rows(columns: list[list[_Node]], before: dict[_Node, set[_Node]],
          after: dict[_Node, set[_Node]]) -> tuple[dict[_Node, float], float]:
    """The row of each place, and how many rows there are: columns are ordered, and centred."""
    first: dict[str, int] = {}
    for column in columns:
        for name, at in column:
            first[name] = min(at, first.get(name, at))

    def size(node: _Node) -> float:
        return 1.0 if node[1] == first[node[0]] else _LINE

    height = max((sum(map(size, column)) for column in columns), default=1.0)
    rows: dict[_Node, float] = {}

    def settle(column: list[_Node], beside: dict[_Node, set[_Node]]) -> None:
        def mean(node: _Node) -> float:
            known = [rows[each] for each in beside.get(node, ()) if each in rows]
            return sum(known) / len(known) if known else rows.get(node, 0.0)

        column.sort(key=mean)
        top = (height - sum(map(size, column))) / 2
        for node in column:
            rows[node] = top + (size(node) - 1) / 2  # as if it had a whole row, from its middle
            top += size(node)

    for _ in range(_SWEEPS):
        for column in columns:
            settle(column, before)
        for column in reversed(columns[:-1]):
            settle(column, after)
    return rows, height
