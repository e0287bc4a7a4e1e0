"""ckptmesh: a durable checkpoint store for data pipelines.

    import ckptmesh
    mesh = ckptmesh.connect("file:./state")     # or a broker: connect("tcp://host:7701")
    place = mesh.get("orders")
    mesh.commit("orders", {"offset": 42}, expect=place)

Errors and plain facts are here at once; the clients, which need ZeroMQ and the engine, are imported
when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckptmesh.errors import (
    AddressInUse,
    ArchiveUnavailable,
    ClockSuspect,
    Closed,
    Compacted,
    CompactionFailed,
    Conflict,
    ContractBroken,
    Corrupt,
    DataLoss,
    DirectoryInUse,
    Error,
    ExportDamaged,
    ExportTruncated,
    FutureRevision,
    InvalidDirectory,
    InvalidKey,
    InvalidPayload,
    InvalidRequest,
    InvalidUrl,
    InvalidValue,
    LeaseLost,
    LockTimeout,
    MissingExtra,
    Misuse,
    OtherStore,
    OutcomeUnknown,
    OutOfSpace,
    OutputLost,
    PipelineChanged,
    Poisoned,
    QuotaExceeded,
    RewindRefused,
    RunNotFound,
    RunStopped,
    SavepointNotFound,
    StageNotReady,
    TooLarge,
    Unavailable,
    Unsupported,
)
from ckptmesh.release import RELEASE as __version__
from ckptmesh.views import Checkpoint, Contract, Event, Mark, Receipt, Receipts, Savepoint

if TYPE_CHECKING:
    from ckptmesh.aio import AsyncClient, AsyncTransaction, connect_async
    from ckptmesh.api import BLIND
    from ckptmesh.backends.base import Capability, StateBackend
    from ckptmesh.client import Client, Transaction, connect
    from ckptmesh.consumer import AsyncConsumer, Consumer, Delivery
    from ckptmesh.features import merge, partitions
    from ckptmesh.features.cleaning import CleanupPlan, CleanupReport
    from ckptmesh.features.cursors import AsyncCursor, Cursor
    from ckptmesh.features.holes import Interval
    from ckptmesh.features.intervals import AsyncIntervals, Intervals
    from ckptmesh.features.lagging import Lag
    from ckptmesh.features.locks import AsyncLock, Lock
    from ckptmesh.features.merging import MergeReceipt
    from ckptmesh.features.named import AsyncNamedWatch, NamedWatch
    from ckptmesh.features.pages import StateDigest
    from ckptmesh.features.pipeline.definition import Stage
    from ckptmesh.features.pipeline.executing import RunResult
    from ckptmesh.features.pipeline.handles import AsyncStageRun, StageRun
    from ckptmesh.features.pipeline.pipelines import Pipeline, pipeline
    from ckptmesh.features.pipeline.records import RunError, RunEvent, RunRecord, StageRecord
    from ckptmesh.features.pipeline.runs import AsyncRuns, Runs, runs
    from ckptmesh.features.pipeline.storage import FileRef
    from ckptmesh.features.rewinding import AsyncRewindPlan, RewindPlan, Rewound
    from ckptmesh.features.schemas import Schema
    from ckptmesh.features.transfer import ExportReport, ImportReport
    from ckptmesh.features.validating import Repair, Validation
    from ckptmesh.features.watches import WatchInfo
    from ckptmesh.features.worker import AsyncPart, AsyncWorker, Part, Worker
    from ckptmesh.features.workers import AsyncWorkers, PipelineInfo, WorkerInfo, Workers
    from ckptmesh.values import register
    from ckptmesh.watch import AsyncWatch, Watch

__all__ = [
    "BLIND", "AddressInUse", "ArchiveUnavailable", "AsyncClient", "AsyncConsumer", "AsyncCursor",
    "AsyncIntervals", "AsyncLock", "AsyncNamedWatch", "AsyncPart", "AsyncRewindPlan", "AsyncRuns",
    "AsyncStageRun", "AsyncTransaction", "AsyncWatch", "AsyncWorker", "AsyncWorkers", "Capability",
    "Checkpoint", "CleanupPlan", "CleanupReport", "Client", "ClockSuspect", "Closed", "Compacted",
    "CompactionFailed", "Conflict", "Consumer", "Contract", "ContractBroken", "Corrupt", "Cursor",
    "DataLoss", "Delivery", "DirectoryInUse", "Error", "Event", "ExportDamaged", "ExportReport",
    "ExportTruncated", "FileRef", "FutureRevision", "ImportReport", "Interval", "Intervals",
    "InvalidDirectory", "InvalidKey", "InvalidPayload", "InvalidRequest", "InvalidUrl",
    "InvalidValue", "Lag", "LeaseLost", "Lock", "LockTimeout", "Mark", "MergeReceipt",
    "MissingExtra", "Misuse", "NamedWatch", "OtherStore", "OutOfSpace", "OutcomeUnknown",
    "OutputLost", "Part", "Pipeline", "PipelineChanged", "PipelineInfo", "Poisoned",
    "QuotaExceeded", "Receipt", "Receipts", "Repair", "RewindPlan", "RewindRefused", "Rewound",
    "RunError", "RunEvent", "RunNotFound", "RunRecord", "RunResult", "RunStopped", "Runs",
    "Savepoint", "SavepointNotFound", "Schema", "Stage", "StageNotReady", "StageRecord", "StageRun",
    "StateBackend", "StateDigest", "TooLarge", "Transaction", "Unavailable", "Unsupported",
    "Validation", "Watch", "WatchInfo", "Worker", "WorkerInfo", "Workers", "__version__", "connect",
    "connect_async", "merge", "partitions", "pipeline", "register", "runs",
]

_LAZY = {
    "BLIND": "api",
    "AsyncClient": "aio", "AsyncTransaction": "aio", "connect_async": "aio",
    "Client": "client", "Transaction": "client", "connect": "client",
    "Capability": "backends.base", "StateBackend": "backends.base",
    "AsyncConsumer": "consumer", "Consumer": "consumer", "Delivery": "consumer",
    "AsyncCursor": "features.cursors", "Cursor": "features.cursors",
    "AsyncIntervals": "features.intervals", "Interval": "features.holes",
    "Intervals": "features.intervals",
    "Lag": "features.lagging",
    "AsyncLock": "features.locks", "Lock": "features.locks",
    "MergeReceipt": "features.merging",
    "AsyncNamedWatch": "features.named", "NamedWatch": "features.named",
    "Stage": "features.pipeline.definition", "RunResult": "features.pipeline.executing",
    "AsyncStageRun": "features.pipeline.handles", "StageRun": "features.pipeline.handles",
    "Pipeline": "features.pipeline.pipelines", "pipeline": "features.pipeline.pipelines",
    "FileRef": "features.pipeline.storage",
    "RunError": "features.pipeline.records", "RunEvent": "features.pipeline.records",
    "RunRecord": "features.pipeline.records", "StageRecord": "features.pipeline.records",
    "AsyncRuns": "features.pipeline.runs", "Runs": "features.pipeline.runs",
    "runs": "features.pipeline.runs",
    "AsyncRewindPlan": "features.rewinding", "RewindPlan": "features.rewinding",
    "Rewound": "features.rewinding",
    "Schema": "features.schemas", "WatchInfo": "features.watches",
    "AsyncPart": "features.worker", "AsyncWorker": "features.worker",
    "Part": "features.worker", "Worker": "features.worker",
    "AsyncWorkers": "features.workers", "PipelineInfo": "features.workers",
    "WorkerInfo": "features.workers", "Workers": "features.workers",
    "CleanupPlan": "features.cleaning", "CleanupReport": "features.cleaning",
    "Repair": "features.validating", "Validation": "features.validating",
    "StateDigest": "features.pages",
    "ExportReport": "features.transfer", "ImportReport": "features.transfer",
    "register": "values",
    "AsyncWatch": "watch", "Watch": "watch",
}


_MODULES = {"merge": "features.merge", "partitions": "features.partitions"}  # as `merge.Add(3)`


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name) or _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'ckptmesh' has no attribute {name!r}")
    found: Any = import_module(f"ckptmesh.{module}")
    if name not in _MODULES:
        found = getattr(found, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
