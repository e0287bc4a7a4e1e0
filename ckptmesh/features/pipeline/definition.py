"""What a pipeline is made of: stages, declared by decorators or as data.

Rule 1: a stage is a function that stays what it is: it can be called and tested by itself.
Rule 2: a stage needs only stages that are declared before it, so their order is an order to run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds
from ckptmesh.errors import LeaseLost, Misuse, RunStopped
from ckptmesh.features.pipeline.places import check_segment
from ckptmesh.features.pipeline.records import PENDING, RunRecord, StageRecord
from ckptmesh.limits import RUN_DELAY, RUN_STAGES

Errors = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
_NEVER_AGAIN = (LeaseLost, RunStopped, Misuse)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, as data.

    `call`: the function, or where it is, "module:function"; it takes the run and the outputs of
    what it needs. `needs`: names or functions; None: the stage before, () none. `version`: another
    one makes it run again. `checkpoint`: whether its output is kept (None: as the pipeline says).
    `retries`: how often it is tried again, `delay` seconds later, each time `backoff` times as
    long, for errors that are `retry_on`, a class, several, or a function of the error. `timeout`:
    seconds for one attempt; a coroutine is cancelled then, a plain function is told by
    `run.check()`.
    """

    name: str
    call: Callable[..., Any] | str
    needs: Sequence[str | Callable[..., Any]] | None = None
    version: int | str = 1
    checkpoint: bool | None = None
    retries: int = 0
    delay: Seconds = 1.0
    backoff: float = 2.0
    retry_on: Errors = Exception
    timeout: Seconds | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """The function, imported where it is given by name. Raises `Misuse`."""
        if not isinstance(self.call, str):
            return self.call
        module, _, name = self.call.partition(":")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise Misuse(f"stage {self.name!r}: there is no function {self.call!r}: {error}",
                         hint="write it as module:function") from None
        if not callable(found):
            raise Misuse(f"stage {self.name!r}: {self.call!r} is no function")
        return found  # type: ignore[no-any-return]

    @property
    def is_async(self) -> bool:
        """Whether its function is one of asyncio."""
        function = self.function
        return (inspect.iscoroutinefunction(function)
                or inspect.iscoroutinefunction(getattr(function, "__call__", None)))  # noqa: B004

    def may_retry(self, error: BaseException) -> bool:
        """Whether the same again may succeed, as declared."""
        if isinstance(error, _NEVER_AGAIN):
            return False
        declared = self.retry_on
        if isinstance(declared, type | tuple):
            return isinstance(error, declared)
        return bool(declared(error))

    def pause(self, attempt: int) -> float:
        """Seconds before the next attempt, after so many."""
        return min(seconds(self.delay, 0.0) * self.backoff ** (attempt - 1), RUN_DELAY)


class Definition:
    """The stages of a pipeline, checked, in order."""

    def __init__(self, name: str, version: int | str, checkpoint: bool) -> None:
        self.name = check_segment(name, "a pipeline's name")
        if type(version) not in (int, str):
            raise Misuse(f"a version is a number or a text, not {version!r:.80}")
        self.version, self.checkpoint = version, checkpoint
        self.stages: dict[str, Stage] = {}
        self._names: dict[Any, str] = {}  # of functions

    def add(self, stage: Stage) -> None:
        """One more stage. Raises `Misuse`."""
        check_segment(stage.name, "a stage's name")
        if stage.name in self.stages:
            raise Misuse(f"pipeline {self.name!r} has two stages named {stage.name!r}",
                         hint='@pipeline.stage(name="…")')
        if len(self.stages) >= RUN_STAGES:
            raise Misuse(f"a pipeline has at most {RUN_STAGES} stages")
        if type(stage.retries) is not int or stage.retries < 0 or not stage.backoff >= 0:
            raise Misuse(f"stage {stage.name!r}: retries and backoff are numbers from 0 up")
        if type(stage.version) not in (int, str):
            raise Misuse(f"stage {stage.name!r}: a version is a number or a text")
        seconds(stage.delay, 0.0, "delay")
        seconds(stage.timeout, None, "timeout")
        checkpoint = self.checkpoint if stage.checkpoint is None else stage.checkpoint
        self.stages[stage.name] = replace(stage, needs=self._needs(stage), checkpoint=checkpoint)
        if not isinstance(stage.call, str):
            self._names[stage.call] = stage.name

    def _needs(self, stage: Stage) -> tuple[str, ...]:
        if stage.needs is None:
            return (next(reversed(self.stages)),) if self.stages else ()
        if isinstance(stage.needs, str) or callable(stage.needs):
            raise Misuse(f"stage {stage.name!r}: needs= is a list", hint="needs=[extract]")
        found = tuple(each if isinstance(each, str) else self._names.get(each, "")
                      for each in stage.needs)
        for name, each in zip(found, stage.needs, strict=True):
            if name not in self.stages:
                raise Misuse(f"stage {stage.name!r} needs {each!r:.80}, no stage before it",
                             hint="declare it first")
        if len(set(found)) < len(found):
            raise Misuse(f"stage {stage.name!r} needs the same stage twice")
        return found

    def of_data(self, stages: Sequence[Stage | Mapping[str, Any]]) -> None:
        """Stages as data: `Stage`, or a map with the same fields. Raises `Misuse`."""
        known = {each.name for each in fields(Stage)}
        for each in stages:
            if isinstance(each, Stage):
                self.add(each)
            elif {"name", "call"} <= set(each) <= known:
                self.add(Stage(**each))
            else:
                raise Misuse(f"a stage as data has a name and a call, and may have "
                             f"{', '.join(sorted(known - {'name', 'call'}))}; not "
                             f"{sorted(map(str, each))}")

    def selected(self, only: Any) -> tuple[str, ...] | None:
        """The names of the stages that `only=` means. Raises `Misuse`."""
        if only is None:
            return None
        several = [only] if isinstance(only, str) or callable(only) else list(only)
        found = tuple(each if isinstance(each, str) else self._names.get(each, "")
                      for each in several)
        for name, each in zip(found, several, strict=True):
            if name not in self.stages:
                raise Misuse(f"pipeline {self.name!r} has no stage {each!r:.80}",
                             hint=f"it has {', '.join(self.stages)}")
        return found

    def entries(self) -> tuple[StageRecord, ...]:
        """The stages in a new record."""
        return tuple(self.entry(stage) for stage in self.stages.values())

    def entry(self, stage: Stage) -> StageRecord:
        """A stage that was not begun."""
        return StageRecord(name=stage.name, needs=_names(stage), version=stage.version,
                           checkpoint=bool(stage.checkpoint), status=PENDING)

    def changes(self, record: RunRecord) -> list[str]:
        """What differs from the stages that a run was begun with, a line each."""
        then = {each.name: each.needs for each in record.stages}
        now = {stage.name: _names(stage) for stage in self.stages.values()}
        found = [f"stage {name!r} was added" for name in now if name not in then]
        found += [f"stage {name!r} was removed" for name in then if name not in now]
        before = [name for name in then if name in now]
        after = [name for name in now if name in then]
        if before != after:
            found.append(f"the order was {', '.join(before)} and is {', '.join(after)}")
        found += [f"stage {name!r} needed {_list(then[name])} and needs {_list(now[name])}"
                  for name in after if then[name] != now[name]]
        return found


def _names(stage: Stage) -> tuple[str, ...]:
    return tuple(map(str, stage.needs or ()))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
