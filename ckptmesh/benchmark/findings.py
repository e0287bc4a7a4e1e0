"""What the figures mean, in a few sentences.

Rule 1: a sentence says what was measured and no more. Where a figure is missing, so is the claim.
Rule 2: every threshold has a name and a reason.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptmesh.benchmark.run import (
    BATCHES,
    ONE,
    PIPELINED,
    WORKERS,
    Figures,
    Result,
)
from ckptmesh.lock import FORGETFUL

MOST = 0.5  # of a lone commit's time: what takes the greater half is what to look at first
STORE_FULL = 0.9  # of the time, the store's one thread works or waits for a sync: little is idle
DISK_FULL = 0.7  # likewise where its work cannot be seen: the rest is work between two syncs
MACHINE_FULL = 0.9  # of all processors: the system itself needs some to give work to all of them
TAIL = 10  # p99 / p50: a disk and a machine of one's own stay below that
TAIL_FLOOR = 2_000  # µs: a shorter p99 is a matter of scheduling, whatever the p50
FOREIGN = 0.02  # commits of others / own: fewer change no figure that can be told apart
OWN = 0.4  # of what is busy: the broker, unseen from here, takes no more than clients and store do
IN_SYNCS = 50  # syncs in a window that make a share of its time worth telling
SYNC_TOO_FAST = 15  # µs: no disk, and no flash with a cache that survives, is so fast
GAIN = 2  # times as many keys a second in batches: less is not worth another way to write


def findings(result: Result) -> list[str]:
    """The sentences, the most important first; at least one."""
    found = [*_limit(result), *_alone(result), *_batches(result), *_tail(result),
             *_foreign(result), *_doubt(result)]
    return found or ["Nothing stands out in these figures."]


# --- what is the limit ------------------------------------------------------------------------


def _limit(result: Result) -> Iterator[str]:
    """Which of disk, the store's thread and this machine's processors the busiest writers met."""
    tried = [result.workloads[name] for name in (ONE, WORKERS, PIPELINED)
             if name in result.workloads and result.workloads[name].commits_per_sync]
    if not tried:
        return
    best = max(tried, key=lambda each: each.sample.rate)
    sharing = best.commits_per_sync
    fact = (f"At most {best.sample.rate:,.0f} single commits a second here, with "
            f"{best.workload.text}, {sharing:.1f} to a sync")
    full, room = _loads(result, best)
    if full:
        yield f"{fact}. At the limit: {_joined(full)}." + (
            f" Below theirs: {_joined(room)}." if room else "")
    elif room:
        more = ("an embedded store has no more workers to give it more to do" if result.embedded
                else "more workers may get more, unless the network or its other end is")
        yield f"{fact}. {_capital(_joined(room))}. None of that is at its limit: {more}."
    else:
        yield f"{fact}. What limits it cannot be told from here."


def _loads(result: Result, best: Figures) -> tuple[list[str], list[str]]:
    """What was at its limit, and what was not, in words."""
    full: list[str] = []
    room: list[str] = []
    syncs = sync_share(result, best)
    work = best.sample.cpu / best.sample.seconds if result.embedded else best.store
    who = "this process, with the store in it," if result.embedded else "the store's thread"
    parts = []
    if work is not None:
        parts.append(f"works {work:.0%}")
    if syncs is not None:
        parts.append(f"waits for its disk about {syncs:.0%}" if best.sync else
                     f"would wait for the bare disk {syncs:.0%}")
    if parts:
        used = (work or 0.0) + (syncs or 0.0)
        store_full = used >= (DISK_FULL if work is None else STORE_FULL)
        (full if store_full else room).append(f"{who} {_joined(parts)} of the time")
    if best.busy is not None:
        text = (f"the processors of this machine are {best.busy:.0%} busy, {best.own_busy:.0%} "
                "with clients and store")
        (full if best.busy >= MACHINE_FULL else room).append(text)
    return full, room


def sync_share(result: Result, figures: Figures) -> float | None:
    """About which part of the window the store waited for syncs: their number times their median,
    as the store tells it or else as the disk alone has it. None where neither is known."""
    median = _sync_median(result, figures)
    if median is None or figures.syncs < IN_SYNCS:
        return None
    return min(1.0, figures.syncs * median / 1e6 / figures.sample.seconds)


def _sync_median(result: Result, figures: Figures) -> float | None:
    """Microseconds of the store's syncs in this workload, else of the disk alone."""
    if figures.sync is not None:
        return figures.sync[0] * 1e3
    return result.disk.latency.percentile(50) if result.disk else None


def _joined(parts: list[str]) -> str:
    return " and ".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- what a lone worker waits for -------------------------------------------------------------


def _alone(result: Result) -> Iterator[str]:
    figures = result.workloads.get(ONE)
    if figures is None:
        return
    whole = figures.sample.latency.percentile(50)
    way, sync = result.round_trip.percentile(50), _sync_median(result, figures)
    fact = f"A lone commit takes {ms(whole)}"
    if sync is not None and sync >= MOST * whole:
        whose = "the store's" if figures.sync else "the bare disk's"
        yield f"{fact}, and {whose} sync {ms(sync)} of it: a faster disk would show."
    elif way >= MOST * whole and not result.embedded:
        yield (f"{fact}, and the bare way there and back {ms(way)} of it: "
               + ("a faster disk would change little, " if sync is not None else "")
               + "more in flight helps.")


def _batches(result: Result) -> Iterator[str]:
    one, batches = result.workloads.get(ONE), result.workloads.get(BATCHES)
    if one is None or batches is None or not one.sample.operations:
        return
    gain = batches.sample.rate / one.sample.rate
    if gain >= GAIN:
        yield (f"{_capital(batches.workload.text)} write {gain:.0f} times as many keys as one "
               "worker does alone.")


# --- what makes the figures worth less --------------------------------------------------------


def _tail(result: Result) -> Iterator[str]:
    figures = result.workloads.get(ONE) or result.workloads.get(WORKERS)
    if figures is None:
        return
    latency = figures.sample.latency
    p50, p99 = latency.percentile(50), latency.percentile(99)
    if p99 < TAIL_FLOOR or p99 < TAIL * p50:
        return
    fact = f"With {figures.workload.text}, p99 is {p99 / max(1, p50):.0f} times p50"
    if result.disk is None:
        yield f"{fact}: something else uses the disk or the machine; --data DIR tells them apart."
        return
    bare = result.disk.latency
    if bare.percentile(99) >= TAIL * bare.percentile(50):
        yield f"{fact}, and the bare disk does likewise: something else uses it, or it stalls."
    else:
        yield (f"{fact}, while the bare disk's is {bare.percentile(99) / bare.percentile(50):.0f} "
               "times: look for what else runs on these machines.")


def _foreign(result: Result) -> Iterator[str]:
    foreign = sum(each.foreign_commits for each in result.workloads.values())
    own = sum(each.own_commits for each in result.workloads.values())
    if foreign > FOREIGN * own:
        yield f"Others committed {foreign:,} times meanwhile: these are figures of a mesh in use."
    for each in result.workloads.values():
        if each.busy is not None and each.busy >= MACHINE_FULL and each.own_busy < OWN * each.busy:
            yield (f"With {each.workload.text}, other programs than clients and store used most of "
                   "this machine's processors: without them there is more.")
            return


def _doubt(result: Result) -> Iterator[str]:
    disk = result.disk
    if disk is None:
        return
    if disk.kind in FORGETFUL:
        yield f"{disk.directory} is on {disk.kind}, which is {FORGETFUL[disk.kind]}."
    elif disk.latency.percentile(50) < SYNC_TOO_FAST:
        yield (f"A sync takes {disk.latency.percentile(50)} µs, which no disk can do: something "
               "below lies about it. `ckptmesh certify` has more.")


def ms(micros: float) -> str:
    """`0.31 ms`, for people."""
    return f"{micros / 1e3:.2f} ms"
