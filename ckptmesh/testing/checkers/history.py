"""What clients asked of a store and what they were told, and what the store says it committed.

Rule 1: nothing here reads a clock or opens anything but a file that was named. Times are integers
        that never run backwards, of whatever unit: a count of events, microseconds.
Rule 2: values are what JSON can carry; two of them are equal when their JSON is. Revisions are the
        store's compare-and-set tokens: 0 stands for "nothing is there".
Rule 3: a step names a key at most once in an operation, and an operation either reads or writes.

    recorder = Recorder()
    asked = recorder.invoke("client 1", Put("orders", 10), expect={"orders": 7})
    receipt = mesh.commit("orders", 10, expect=7)
    recorder.ok(asked, revision=receipt.revision)
    recorder.history()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

ANYTHING = -1
"""An expectation: something stands there, whatever it is."""


class Found(NamedTuple):
    """What stands under a key. `revision` None: the client was not told."""

    value: Any
    revision: int | None = None


class Get(NamedTuple):
    """Read a key. Its result is a `Found`, or None where nothing is."""

    key: str


class Put(NamedTuple):
    """Write a value. It has no result."""

    key: str
    value: Any


class Delete(NamedTuple):
    """Remove a key. Its result tells whether it existed; None: not told."""

    key: str


class Increment(NamedTuple):
    """Add to an integer, 0 where nothing is. Its result is the new integer; None: not told."""

    key: str
    by: int = 1


class Touch(NamedTuple):
    """Give a key another expiry; value and revision stay. Result as of `Delete`."""

    key: str


Step = Get | Put | Delete | Increment | Touch
_STEPS: dict[str, type[Step]] = {kind.__name__.lower(): kind
                                 for kind in (Get, Put, Delete, Increment, Touch)}


class Ok(NamedTuple):
    """It was acknowledged. `revision`: of a write the one it took (the head where nothing had to
    change), of a read the cut that was read; None: not told. `results`: one for each step."""

    revision: int | None = None
    results: tuple[Any, ...] = ()


class Refused(NamedTuple):
    """It was refused, and never takes effect. `reason`: "Conflict" or "LeaseLost" where a condition
    did not hold, "InvalidValue" where no integer stood; any other word says nothing about the
    state. `stands`: pairs of a key and what the refusal said stands there, None for nothing."""

    reason: str = "Conflict"
    stands: tuple[tuple[str, Found | None], ...] = ()


class Unknown(NamedTuple):
    """No answer ever came: it takes effect at any time after its invocation, or never."""


Outcome = Ok | Refused | Unknown
UNKNOWN = Unknown()


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of one client: its steps take effect together or not at all.

    `expect`: pairs of a key and the revision at which it must stand (0: it must not exist,
    `ANYTHING`: it must). `returned_at` is None where no answer came. `request` is whatever names
    it in the commits (see `Commit.request`), where something does.

    Raises `ValueError` when it contradicts itself, and for a part that is no such thing.
    """

    client: str
    steps: tuple[Step, ...]
    invoked_at: int
    returned_at: int | None = None
    outcome: Outcome = UNKNOWN
    expect: tuple[tuple[str, int], ...] = ()
    request: str | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("an operation has at least one step")
        for step in self.steps:
            if type(step) not in _STEPS.values():
                raise ValueError(f"a step is a {', '.join(map(str.title, _STEPS))} of "
                                 f"ckptmesh.testing.checkers, not {step!r}")
        if len(set(self.keys)) < len(self.steps):
            raise ValueError(f"one step a key, not {self.keys}")
        if len({type(step) is Get for step in self.steps}) > 1:
            raise ValueError("an operation reads or writes, not both")
        if isinstance(self.outcome, Unknown) != (self.returned_at is None):
            raise ValueError("an operation returned at some time with an outcome, or has neither")
        if self.returned_at is not None and self.returned_at < self.invoked_at:
            raise ValueError(f"returned at {self.returned_at}, before {self.invoked_at}")
        for key, revision in self.expect:
            if type(revision) is not int or revision < ANYTHING:
                raise ValueError(f"{key!r} is expected at a revision, 0 where nothing is to be "
                                 f"there, not at {revision!r}")
        self._check_results(self.outcome.results if isinstance(self.outcome, Ok) else ())

    def _check_results(self, told: tuple[Any, ...]) -> None:
        if told and len(told) != len(self.steps):
            raise ValueError(f"{len(told)} results for {len(self.steps)} steps")
        for result in told if self.reads else ():
            if not (result is None or isinstance(result, Found)):
                raise ValueError(f"a Get is told Found(value, revision) or None, not {result!r}")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its steps, in order."""
        return tuple(step.key for step in self.steps)

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, whatever its outcome."""
        return type(self.steps[0]) is Get

    @property
    def kind(self) -> str:
        """"get", "put", "delete", "increment", "touch", or "transaction" for several steps."""
        return "transaction" if len(self.steps) > 1 else type(self.steps[0]).__name__.lower()

    @property
    def results(self) -> tuple[Any, ...]:
        """What each step was answered; None for what was not told."""
        told = self.outcome.results if isinstance(self.outcome, Ok) else ()
        return told or (None,) * len(self.steps)

    @property
    def name(self) -> str:
        """What to call it in a sentence: "client 1's put of orders"."""
        return f"{self.client}'s {self.kind} of {' and '.join(self.keys)}"

    def __str__(self) -> str:
        end = "…" if self.returned_at is None else self.returned_at
        return (f"{self.client} [{self.invoked_at}, {end}] "
                f"{', '.join(map(_step_text, self.steps))}{_expect_text(self.expect)}"
                f" → {_outcome_text(self)}")


def _step_text(step: Step) -> str:
    arguments = ", ".join(json.dumps(part) for part in step)
    return f"{type(step).__name__.lower()}({arguments})"


def _expect_text(expect: tuple[tuple[str, int], ...]) -> str:
    parts = []
    for key, revision in expect:
        what = {0: "nothing", ANYTHING: "something"}.get(revision, f"revision {revision}")
        parts.append(f"{key} at {what}")
    return f" expecting {', '.join(parts)}" if parts else ""


def found_text(found: Found | None) -> str:
    """What stands somewhere, for people."""
    if found is None:
        return "nothing"
    place = "" if found.revision is None else f" at revision {found.revision}"
    return f"{json.dumps(found.value)}{place}"


def _outcome_text(operation: Operation) -> str:
    outcome = operation.outcome
    if isinstance(outcome, Unknown):
        return "no answer"
    if isinstance(outcome, Refused):
        told = ", ".join(f"{key} holds {found_text(found)}" for key, found in outcome.stands)
        return f"refused, {outcome.reason}{': ' if told else ''}{told}"
    place = "" if outcome.revision is None else f" at revision {outcome.revision}"
    if operation.reads:
        return f"found {', '.join(map(found_text, operation.results))}{place}"
    told = ", ".join(json.dumps(result) for result in outcome.results if result is not None)
    return f"ok{place}{': ' if told else ''}{told}"


# --- what the store committed --------------------------------------------------------------------


class Change(NamedTuple):
    """What a commit did to a key. `kind`: "put" (an increment is the put of its sum), "delete",
    "expire" or "touch"; `value` is that of a put."""

    key: str
    kind: str = "put"
    value: Any = None


class Commit(NamedTuple):
    """One committed revision. `request` equals that of the operation which made it, where the
    store tells it (a session and its request number, say)."""

    revision: int
    changes: tuple[Change, ...]
    request: str | None = None


def change_of(event: Any) -> Change:
    """What a `ckptmesh.Event` shows."""
    return Change(event.key, event.kind, event.checkpoint.value if event.kind == "put" else None)


def commits_of(events: Iterable[Any]) -> list[Commit]:
    """The commits that the `ckptmesh.Event`s of a whole watch show, in the order given."""
    gathered: list[Commit] = []
    for event in events:
        change = change_of(event)
        if gathered and gathered[-1].revision == event.revision:
            gathered[-1] = gathered[-1]._replace(changes=(*gathered[-1].changes, change))
        else:
            gathered.append(Commit(event.revision, (change,)))
    return gathered


# --- recording -----------------------------------------------------------------------------------


class Recorder:
    """Notes operations as they are asked and answered, from any number of threads.

    `clock` gives the time of each event; left out, events are counted. Take one that processes
    share (`time.monotonic_ns`) where their histories are to be put together.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock or count(1).__next__
        self._asked: list[Asked] = []

    def invoke(self, client: str, *steps: Step, expect: Mapping[str, int] | None = None,
               request: str | None = None) -> Asked:
        """Note what is about to be asked. Give what comes back to `ok` or `refused`; where nothing
        ever does, to neither. Raises as `Operation`, and so do these two."""
        asked = Asked(Operation(client, steps, self._clock(), request=request,
                                expect=tuple((expect or {}).items())))
        self._asked.append(asked)
        return asked

    def ok(self, asked: Asked, *results: Any, revision: int | None = None) -> None:
        """It was acknowledged: now, with these results, one for each step or none at all."""
        self._returned(asked, Ok(revision, results))

    def refused(self, asked: Asked, reason: str = "Conflict",
                stands: Mapping[str, Found | None] | None = None) -> None:
        """It was refused: now. See `Refused`."""
        self._returned(asked, Refused(reason, tuple((stands or {}).items())))

    def _returned(self, asked: Asked, outcome: Outcome) -> None:
        if asked.operation.returned_at is not None:
            raise ValueError("this operation has returned before")
        asked.operation = replace(asked.operation, outcome=outcome, returned_at=self._clock())

    def history(self) -> list[Operation]:
        """All operations in the order asked. Those without an answer so far are `Unknown`."""
        return [asked.operation for asked in list(self._asked)]


@dataclass(slots=True)
class Asked:
    """An operation as far as it is known: what `Recorder.invoke` gives."""

    operation: Operation


# --- files ---------------------------------------------------------------------------------------


def dumps(operation: Operation) -> str:
    """An operation as one line of JSON."""
    line: dict[str, Any] = {
        "client": operation.client, "invoked_at": operation.invoked_at,
        "steps": [[type(step).__name__.lower(), *step] for step in operation.steps],
    }
    if operation.expect:
        line["expect"] = dict(operation.expect)
    if operation.request is not None:
        line["request"] = operation.request
    outcome = operation.outcome
    if not isinstance(outcome, Unknown):
        line["returned_at"] = operation.returned_at
    if isinstance(outcome, Ok):
        results = [_told(result) if operation.reads else result for result in outcome.results]
        line["ok"] = {"revision": outcome.revision, "results": results}
    elif isinstance(outcome, Refused):
        line["refused"] = {"reason": outcome.reason,
                           "stands": {key: _told(found) for key, found in outcome.stands}}
    return json.dumps(line)


def loads(text: str) -> Operation:
    """An operation from its line. Raises `ValueError` or `KeyError` for anything else."""
    line = json.loads(text)
    steps = tuple(_STEPS[kind](*arguments) for kind, *arguments in line["steps"])
    outcome: Outcome = UNKNOWN
    if "ok" in line:
        results = line["ok"]["results"]
        if isinstance(steps[0], Get):
            results = map(_found, results)
        outcome = Ok(line["ok"]["revision"], tuple(results))
    elif "refused" in line:
        stands = line["refused"]["stands"].items()
        outcome = Refused(line["refused"]["reason"],
                          tuple((key, _found(told)) for key, told in stands))
    return Operation(line["client"], steps, line["invoked_at"], line.get("returned_at"), outcome,
                     tuple(line.get("expect", {}).items()), line.get("request"))


def _told(found: Found | None) -> list[Any] | None:
    return None if found is None else list(found)


def _found(told: list[Any] | None) -> Found | None:
    return None if told is None else Found(*told)


def dump(history: Iterable[Operation], path: str | Path) -> None:
    """Write a history as JSON lines, one operation each, over whatever is there."""
    with open(path, "w", encoding="utf-8") as lines:
        lines.writelines(dumps(operation) + "\n" for operation in history)


def load(*paths: str | Path) -> list[Operation]:
    """The operations of one or several files, in the order asked. Raises as `loads`, `OSError`."""
    found: list[Operation] = []
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            found += map(loads, lines)
    return in_order(found)


def in_order(history: Sequence[Operation]) -> list[Operation]:
    """By the time at which they were asked; where that is equal, as given."""
    return sorted(history, key=lambda operation: operation.invoked_at)
