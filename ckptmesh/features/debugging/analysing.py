"""The figures of a pipeline over its last runs: durations, failures, resumes, stages, trends."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptmesh.features.debugging.reading import Unread, each_run
from ckptmesh.features.debugging.trends import Trend, slower, worse
from ckptmesh.features.pipeline.places import RUNS
from ckptmesh.features.pipeline.records import COMPLETED, FAILED, RunRecord
from ckptmesh.limits import DEBUG_GROUPS, check_key

_NAME = 80  # characters of what a kind of error is called
_KEYS = 10  # whose lag is told


class Spread(NamedTuple):
    """How durations are spread, in seconds: of `number` of them; exact."""

    number: int
    p50: float
    p95: float
    longest: float
    total: float


class Failure(NamedTuple):
    """Errors of one kind in one stage. `runs`: in how many runs; `last`: the key of the newest."""

    stage: str
    error: str
    number: int
    runs: int
    last: str


class StageFigures(NamedTuple):
    """One stage over all runs. `spread` of its last execution in each, None where it was never
    completed; `share` of the time of all stages; `executions` beyond `runs` are repetitions."""

    name: str
    spread: Spread | None
    share: float
    runs: int
    executions: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Figures over the newest `runs` of a pipeline; `passed_over` are older, `unread` cannot be
    read. `durations`: of completed runs, from creation to end, waiting between attempts too.
    Records and bytes `per_second` of the time in stages. `lags`: head less position of the
    keys that are behind most, and of the last run, where both are known."""

    pipeline: str
    runs: int
    passed_over: int
    unread: tuple[Unread, ...]
    by_status: dict[str, int]
    by_kind: dict[str, int]
    durations: Spread | None
    resumes: int
    resumed: int
    resumed_completed: int
    failures: tuple[Failure, ...]
    stages: tuple[StageFigures, ...]
    records: int
    bytes: int
    records_per_second: float | None
    bytes_per_second: float | None
    lags: dict[str, int]
    slower: Trend
    worse: Trend

    @property
    def resume_rate(self) -> float | None:
        """The share of resumed runs that came to their end; None where there are none."""
        return self.resumed_completed / self.resumed if self.resumed else None


class _Stage(NamedTuple):
    name: str
    status: str
    milliseconds: int
    executions: int


class _Summary(NamedTuple):
    """What is kept in memory of a run. Ordered by creation."""

    created: float
    run_id: str
    key: str
    kind: str
    status: str
    seconds: float | None
    resumes: int
    records: int
    bytes: int
    lag: int | None
    stages: tuple[_Stage, ...]
    errors: tuple[tuple[str, str], ...]

    @property
    def troubled(self) -> bool:
        """Whether it failed, or had to be taken up again."""
        return self.status == FAILED or self.resumes > 0


def _summary(record: RunRecord) -> _Summary:
    return _Summary(
        record.created.timestamp(), record.run_id, record.key, record.kind, record.status,
        record.took.total_seconds() if record.took and record.status == COMPLETED else None,
        record.resumes, record.records, record.bytes, record.lag,
        tuple(_Stage(each.name, each.status, each.milliseconds, each.executions)
              for each in record.stages),
        tuple((each.stage, kind_of(each.message)) for each in record.errors))


def kind_of(message: str) -> str:
    """What an error is called: its class, or the beginning of its message."""
    return message.partition("\n")[0].partition(":")[0][:_NAME]


def analyze(mesh: Any, pipeline: str, last: int = 1_000) -> Analysis:
    """The figures over the newest `last` runs. Raises `InvalidKey`."""
    check_key(pipeline)
    newest: list[_Summary] = []
    unread: list[Unread] = []
    seen = 0
    for each in each_run(mesh, pipeline):
        if isinstance(each, Unread):
            unread = [*unread, each][:DEBUG_GROUPS]
            continue
        seen += 1
        add = heapq.heappush if len(newest) < last else heapq.heappushpop
        add(newest, _summary(each.record))
    found = sorted(newest)
    seconds = sum(stage.milliseconds for each in found for stage in each.stages) / 1_000
    records, size = sum(each.records for each in found), sum(each.bytes for each in found)
    resumed = [each for each in found if each.resumes]
    return Analysis(
        pipeline=pipeline, runs=len(found), passed_over=seen - len(found), unread=tuple(unread),
        by_status=dict(Counter(each.status for each in found)),
        by_kind=dict(Counter(each.kind for each in found)),
        durations=spread_of(each.seconds for each in found if each.seconds is not None),
        resumes=sum(each.resumes for each in found), resumed=len(resumed),
        resumed_completed=sum(each.status == COMPLETED for each in resumed),
        failures=_failures(found), stages=_stages(found, seconds), records=records, bytes=size,
        records_per_second=records / seconds if seconds else None,
        bytes_per_second=size / seconds if seconds else None, lags=_lags(mesh, pipeline, found),
        slower=slower([each.seconds for each in found if each.seconds is not None]),
        worse=worse([each.troubled for each in found]))


def spread_of(seconds: Iterable[float]) -> Spread | None:
    """Percentiles as the value that so many of a hundred do not exceed; None of nothing."""
    found = sorted(seconds)
    if not found:
        return None

    def percentile(percent: int) -> float:
        return found[max(0, -(-len(found) * percent // 100) - 1)]

    return Spread(len(found), percentile(50), percentile(95), found[-1], sum(found))


def _failures(found: Sequence[_Summary]) -> tuple[Failure, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    runs: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], str] = {}
    for each in found:
        here = [pair for pair in each.errors if pair in counts or len(counts) < DEBUG_GROUPS]
        counts.update(here)
        runs.update(set(here))
        last.update(dict.fromkeys(here, each.key))
    return tuple(Failure(*pair, count, runs[pair], last[pair])
                 for pair, count in counts.most_common())


def _stages(found: Sequence[_Summary], seconds: float) -> tuple[StageFigures, ...]:
    """The slowest first, by the time in all."""
    by_name: dict[str, list[_Stage]] = {}
    for each in found:
        for stage in each.stages:
            if stage.name in by_name or len(by_name) < DEBUG_GROUPS:
                by_name.setdefault(stage.name, []).append(stage)
    told = []
    for name, each_run_of_it in by_name.items():
        spread = spread_of(each.milliseconds / 1_000 for each in each_run_of_it
                           if each.status == COMPLETED)
        told.append(StageFigures(
            name, spread, spread.total / seconds if spread and seconds else 0.0,
            sum(each.executions > 0 for each in each_run_of_it),
            sum(each.executions for each in each_run_of_it),
            sum(each.status == FAILED for each in each_run_of_it)))
    return tuple(sorted(told, key=lambda each: -(each.spread.total if each.spread else 0.0)))


def _lags(mesh: Any, pipeline: str, found: Sequence[_Summary]) -> dict[str, int]:
    """Of the keys of the pipeline that are behind most, and of the last run that knows it: that of
    a run before says nothing about today."""
    keys = [(each.records, each.key) for each in mesh.lag(pipeline)
            if each.records is not None and f"/{RUNS}/" not in each.key]
    lags = {key: records for records, key in heapq.nlargest(_KEYS, keys)}
    for each in [each for each in found if each.lag is not None][-1:]:
        lags[f"run {each.key}"] = each.lag or 0
    return lags
