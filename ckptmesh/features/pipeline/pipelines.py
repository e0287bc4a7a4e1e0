"""Pipelines: what users declare, and run.

    nightly = ckptmesh.pipeline("nightly", version=1)

    @nightly.stage(retries=3)
    def extract(run): return pull(run.inputs["day"])

    @nightly.stage                                  # needs the stage before
    def store(run, rows): write(rows)

    nightly.run(mesh, key="2026-11-21", inputs={"day": "2026-11-21"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds
from ckptmesh.errors import Misuse
from ckptmesh.features.locks import holder_name
from ckptmesh.features.pipeline.definition import Definition, Errors, Stage
from ckptmesh.features.pipeline.digests import digest_of
from ckptmesh.features.pipeline.executing import Execution, RunResult
from ckptmesh.features.pipeline.places import check_segment
from ckptmesh.features.pipeline.plan import AS_RECORDED, AUTO, RESUME, AsRecorded, Options, Plan
from ckptmesh.features.pipeline.ways import Tasks, Threads
from ckptmesh.flows import run, run_async
from ckptmesh.limits import RUN_OUTPUT, VALUE_BYTES

P = ParamSpec("P")
R = TypeVar("R")
_GRACE = 1.0  # seconds beyond a lock's ttl after which a dead holder's is gone for certain
_KEY_DIGITS = 32  # of a digest that is a key: 128 bits


class _GraceOfADeadHolder:
    """Stands for `wait=` left out."""

    def __repr__(self) -> str:
        return "a little longer than ttl"


_DEFAULT_WAIT = _GraceOfADeadHolder()


class Pipeline:
    """A pipeline of named stages; made by `ckptmesh.pipeline`. `run` takes a store."""

    def __init__(self, name: str, *, version: int | str = 1,
                 stages: Sequence[Stage | Mapping[str, Any]] = (), checkpoint: bool = True,
                 resume: str = AUTO, storage: str | Path | None = None,
                 max_output: int = RUN_OUTPUT) -> None:
        if resume not in RESUME:
            raise _no_such_resume(resume)
        if type(max_output) is not int or not 0 < max_output <= VALUE_BYTES:
            raise Misuse(f"max_output is a number of bytes up to {VALUE_BYTES:,}")
        self._definition = Definition(name, version, checkpoint)
        self._definition.of_data(stages)
        self._resume, self._storage, self._max_output = resume, storage, max_output

    @property
    def name(self) -> str:
        """Its name, the first segment of all its keys."""
        return self._definition.name

    @property
    def version(self) -> int | str:
        """Its version, as declared."""
        return self._definition.version

    @property
    def stages(self) -> dict[str, Stage]:
        """Its stages by name, in order, with what they need."""
        return dict(self._definition.stages)

    @overload
    def stage(self, function: Callable[P, R], /) -> Callable[P, R]: ...

    @overload
    def stage(self, function: None = None, /, *, name: str | None = None,
              needs: Sequence[str | Callable[..., Any]] | None = None, version: int | str = 1,
              checkpoint: bool | None = None, retries: int = 0, delay: Seconds = 1.0,
              backoff: float = 2.0, retry_on: Errors = Exception, timeout: Seconds | None = None,
              ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...

    def stage(self, function: Callable[P, R] | None = None, /, *, name: str | None = None,
              **options: Any) -> Any:
        """Declare a function as the next stage; it stays what it is. The options are those of
        `Stage`; its name is the function's, unless `name` says another."""
        def declare(function: Callable[P, R]) -> Callable[P, R]:
            self._definition.add(Stage(
                name or str(getattr(function, "__name__", "")), function, **options))
            return function

        return declare if function is None else declare(function)

    def run(self, mesh: Any, *, key: str | None = None, inputs: Any = AS_RECORDED,
            config: Any = AS_RECORDED, resume: str | None = None, only: Any = None,
            at_most: int | None = None, storage: str | Path | None = None, ttl: Seconds = 30,
            wait: Seconds | _GraceOfADeadHolder | None = _DEFAULT_WAIT) -> RunResult:
        """Run what is left of the run under a key: all of it, the rest of one that was interrupted,
        or nothing of one that is completed, whose outputs are returned.

        `key`: which run; without one the digest of the inputs. `inputs`, `config`: what its stages
        see as `run.inputs` and `run.config`, values that the store can hold; left out: those that
        the run was begun with. `resume`: "auto"; "never": begin anew, whatever stands there;
        "required": raise `RunNotFound` where there is none. `only`: a stage or several, by name or
        function, which are run here while others are done elsewhere; `at_most`: how many stages
        are run here. `storage`: the folder for outputs by reference, shared by all processes of the
        run. `ttl`: seconds after which a run whose process is gone can be taken up; `wait`: how
        long to wait for one that is being done, and for the stages that those of `only` need;
        left out: until a dead process's lock has surely ended; None: as long as it takes.

        Raises what a stage raises; `RunStopped` where the run was paused or cancelled,
        `PipelineChanged`, `LockTimeout`, `StageNotReady`, `InvalidValue` or `TooLarge` for an
        output, inputs or configuration that cannot be kept, `OutputLost`, `LeaseLost`.
        """
        asynchronous = [stage.name for stage in self._definition.stages.values() if stage.is_async]
        if asynchronous:
            raise Misuse(f"stage {asynchronous[0]!r} is a coroutine function",
                         hint="await pipeline.run_async(async_client, …)")
        return run(self._execution(mesh, Threads(), key, inputs, config, resume, only, at_most,
                                   storage, ttl, wait).run())

    async def run_async(
        self, mesh: Any, *, key: str | None = None, inputs: Any = AS_RECORDED,
        config: Any = AS_RECORDED, resume: str | None = None, only: Any = None,
        at_most: int | None = None, storage: str | Path | None = None, ttl: Seconds = 30,
        wait: Seconds | _GraceOfADeadHolder | None = _DEFAULT_WAIT,
    ) -> RunResult:
        """`run` with an `AsyncClient`. Stages that are coroutine functions are awaited, plain ones
        called in a thread."""
        return await run_async(self._execution(mesh, Tasks(), key, inputs, config, resume, only,
                                               at_most, storage, ttl, wait).run())

    def _execution(self, mesh: Any, ways: Threads | Tasks, key: str | None, inputs: Any,
                   config: Any, resume: str | None, only: Any, at_most: int | None,
                   storage: str | Path | None, ttl: Seconds,
                   wait: Seconds | _GraceOfADeadHolder | None) -> Execution:
        if not self._definition.stages:
            raise Misuse(f"pipeline {self.name!r} has no stages", hint="@pipeline.stage")
        if resume is not None and resume not in RESUME:
            raise _no_such_resume(resume)
        if at_most is not None and (type(at_most) is not int or at_most < 1):
            raise Misuse(f"at_most is a number of stages from 1 up, not {at_most!r:.80}")
        if key is None:
            key = digest_of(None if isinstance(inputs, AsRecorded) else inputs, "the inputs"
                            )[:_KEY_DIGITS]
        granted = seconds(ttl, 30.0, "a run's ttl")
        patience = (granted + _GRACE if isinstance(wait, _GraceOfADeadHolder)
                    else seconds(wait, None, "wait"))
        return Execution(mesh, Plan(self._definition, Options(
            key=check_segment(key, "a run's key"), inputs=inputs, config=config,
            resume=resume or self._resume, only=self._definition.selected(only), at_most=at_most,
            storage=self._storage if storage is None else storage, max_output=self._max_output,
            ttl=granted, wait=patience, worker=holder_name())), ways)


def pipeline(name: str, *, version: int | str = 1,
             stages: Sequence[Stage | Mapping[str, Any]] = (), checkpoint: bool = True,
             resume: str = AUTO, storage: str | Path | None = None, max_output: int = RUN_OUTPUT
             ) -> Pipeline:
    """A pipeline of named stages.

    `version`: another one says that a changed set of stages is meant. `stages`: as data, instead
    of by decorators. `checkpoint=False`: outputs are not kept, unless a stage says so. `resume`:
    what `run` does where it is not told. `storage`: the folder for outputs by reference.
    `max_output`: bytes of an output, packed, above which it has to be one. Raises `Misuse`.
    """
    return Pipeline(name, version=version, stages=stages, checkpoint=checkpoint, resume=resume,
                    storage=storage, max_output=max_output)


def _no_such_resume(resume: Any) -> Misuse:
    return Misuse(f"resume is one of {', '.join(RESUME)}; not {resume!r:.80}")
