"""What will be asked and what will go wrong, written down before anything happens.

A plan is made from a seed; a simulation runs a plan. So a part of a plan can be run too, which is
how a failing story becomes a short one.
"""

from __future__ import annotations

import errno
import random
from typing import NamedTuple

from ckptmesh.testing.simulation.network import Weather
from ckptmesh.testing.simulation.sites import CALLS
from ckptmesh.testing.simulation.world import SECOND

_DISK_CALLS = 40  # a kill at a disk call is at one of the next so many
_FAILING = tuple(call for call in CALLS if call != "close")


class Step(NamedTuple):
    """At this time (microseconds of the world) somebody does something."""

    at: int
    who: str
    what: str
    key: str = ""
    arguments: tuple[int, ...] = ()

    def __str__(self) -> str:
        words = (self.who, self.what, self.key, *map(str, self.arguments))
        return f"{self.at / SECOND:9.6f} {' '.join(word for word in words if word)}"


class Plan(NamedTuple):
    """`length`: microseconds until everything heals. `watched`: a prefix for each watcher."""

    seed: int
    length: int
    clients: int
    watched: tuple[str, ...]
    weather: Weather
    steps: tuple[Step, ...]


def make(seed: int) -> Plan:
    """The plan of a seed. Which kinds of fault there are differs from plan to plan, so that each
    also meets the others alone (Groce et al., Swarm Testing, ISSTA 2012)."""
    chance = random.Random(f"plan {seed}")
    length = chance.randint(2, 12) * SECOND
    clients = chance.randint(1, 4)
    watched = tuple(chance.choice(("", "a", "b", "a/1", "c"))
                    for _ in range(chance.randint(0, 2)))
    at, steps, burst = 0, [], chance.choice((0.0, 0.0, 0.6))
    for _ in range(chance.choice((10, 30, 60, 120))):
        at = at + chance.randint(0, 300) if chance.random() < burst else chance.randrange(length)
        steps.append(_asked(chance, at, f"c{chance.randrange(clients) + 1}"))
    for watcher in range(len(watched)):  # inside a revision, perhaps
        steps += [Step(chance.randrange(length), f"w{watcher + 1}", "restart", "",
                       (chance.randint(1, 4),)) for _ in range(chance.choice((0, 1, 4)))]
    kinds = [kind for kind in _FAULTS if chance.random() < 0.35]
    for kind in kinds:
        for _ in range(chance.randint(1, 4)):
            steps += _FAULTS[kind](chance, chance.randrange(length), clients, len(watched))
    weather = Weather()
    if chance.random() < 0.5:
        weather = Weather(*(chance.choice((0.0, 0.02, 0.15, 0.4)) for _ in Weather._fields))
    if any(step.what == "sleep" for step in steps):
        # An idle hour ends a session. A twin that the network made of a request, delivered after
        # that, is the one thing that a client cannot tell from a request that came too late
        # (docs/adr/0010); libzmq makes no twins.
        weather = weather._replace(doubled=0.0)
    lived = tuple(sorted(step for step in steps if step.at < length))  # then everything heals
    return Plan(seed, length, clients, watched, weather, lived)


# --- what is asked ----------------------------------------------------------------------------


def _key(chance: random.Random) -> str:
    return f"{chance.choice('aab')}/{chance.randint(0, 3)}"


def _asked(chance: random.Random, at: int, who: str) -> Step:
    lock = f"a/_lock/{chance.randint(0, 1)}"
    what = chance.choices(*zip(*_ASKED, strict=True))[0]
    match what:
        case "put" | "expect" | "create" | "delete" | "close" | "resolve":
            return Step(at, who, what, _key(chance))
        case "unchanged":  # under a pipeline, or one key
            key = _key(chance)
            return Step(at, who, what, chance.choice((key, key.partition("/")[0])))
        case "large":
            return Step(at, who, what, _key(chance), (chance.randint(100, 30_000),))
        case "hurried":  # gives up after so many milliseconds
            return Step(at, who, what, _key(chance), (chance.randint(1, 800),))
        case "ttl" | "touch":
            return Step(at, who, what, _key(chance), (chance.randint(1, 4 * SECOND),))
        case "increment":
            ttl = (chance.randint(1, 4 * SECOND),) if chance.random() < 0.3 else ()
            return Step(at, who, what, f"b/count{chance.randint(0, 1)}",
                        (chance.randint(1, 9), *ttl))
        case "acquire" | "seize":
            return Step(at, who, what, lock, (chance.randint(1, 5) * SECOND // 2,))
        case "renew" | "release" | "fenced":
            return Step(at, who, what, lock)
        case "hello":
            return Step(at, who, what)
        case "get at time":
            return Step(at, who, what, _key(chance), (chance.randint(0, 4 * SECOND),))
        case "get at" | "scan at" | "history":
            return Step(at, who, what, _key(chance), (chance.choice((1, 4, 12, 18)),))
        case "contract":
            rules = chance.choice((0, 0, 0, *range(1, 8)))
            # The checkers leave out what may end by itself: no TTL for all of a pipeline.
            prefix = _key(chance) if rules in (4, 7) else chance.choice((_key(chance), "a", "c"))
            return Step(at, who, what, prefix, (rules,))
        case "compact":
            return Step(at, who, what, "", (chance.choice((0, 60)),))
        case "many" | "many expect" | "many kinds":  # with a revision each
            return Step(at, who, what, _key(chance), (chance.choice((1, 3, 8, 12, 20)),))
        case "wholesale":  # different keys, one revision
            return Step(at, who, what, "", (chance.randint(0, 4), chance.randint(9, 15)))
        case _:  # several, get, get at, scan
            return Step(at, who, what, _key(chance), (chance.randint(1, 4),))


_ASKED = (
    ("put", 5), ("expect", 12), ("create", 3), ("unchanged", 3), ("large", 2), ("hurried", 4),
    ("ttl", 4), ("touch", 2), ("delete", 4), ("increment", 8), ("several", 8), ("acquire", 6),
    ("seize", 1), ("renew", 4), ("release", 2), ("fenced", 8), ("get", 12), ("get at", 3),
    ("get at time", 3), ("scan", 4), ("scan on", 2), ("scan at", 3), ("history", 3), ("hello", 2),
    ("compact", 2), ("close", 1), ("resolve", 3), ("many", 4), ("many expect", 2),
    ("many kinds", 2), ("wholesale", 2), ("contract", 2),
)


# --- what goes wrong --------------------------------------------------------------------------


def _later(chance: random.Random, at: int) -> int:
    return at + chance.randint(SECOND // 20, 4 * SECOND)


def _store_killed(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(at, "store", chance.choice(("kill", "power", "stop")))]


def _store_killed_in_call(chance: random.Random, at: int, clients: int, watchers: int) -> list[
        Step]:
    return [Step(at, "store", chance.choice(("kill in", "power in")), "",
                 (chance.randint(1, _DISK_CALLS),))]


def _killed_again_and_again(chance: random.Random, at: int, clients: int, watchers: int) -> list[
        Step]:
    return [Step(at + n * SECOND // 2, "store", "power in", "", (chance.randint(1, _DISK_CALLS),))
            for n in range(4)]


def _killed_at_birth(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(0, "store", "power in", "", (chance.randint(1, 60),))]


def _disk_fails(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(at, "store", "fail", chance.choice(_FAILING),
                 (chance.choice((errno.EIO, errno.EIO, errno.ENOSPC, errno.EROFS)),))]


def _disk_full(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(at, "store", "full"), Step(_later(chance, at), "store", "room")]


def _slow_sync(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(at, "store", "slow", "", (chance.randint(SECOND // 20, 5 * SECOND),
                                           chance.randint(0, 3)))]


def _store_stopped(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(at, "store", "pause"), Step(_later(chance, at), "store", "go on")]


def _compacted(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    asked = Step(at, "c1", "compact", "", (0,))
    if chance.random() < 0.3:
        return [asked]
    if chance.random() < 0.3:
        return [asked, Step(at, "store", "slow", "", (chance.randint(SECOND, 4 * SECOND),
                                                      chance.randint(1, 5)))]
    return [asked, Step(at + chance.randint(0, SECOND // 4), "store", "kill compactor", "",
                        (chance.randint(0, 60),))]


def _broker_killed(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(at, "broker", "kill"), Step(_later(chance, at), "broker", "start")]


def _cut_off(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    places = ["store", *(f"c{n + 1}" for n in range(clients)),
              *(f"w{n + 1}" for n in range(watchers))]
    place = chance.choice(places)
    return [Step(at, place, "cut"), Step(_later(chance, at), place, "join")]


def _client_killed(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(at, f"c{chance.randrange(clients) + 1}", "restart")]


def _client_stopped(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    who = f"c{chance.randrange(clients) + 1}"
    return [Step(at, who, "pause"), Step(_later(chance, at), who, "go on")]


def _watcher_in_trouble(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    if not watchers:
        return []
    who = f"w{chance.randrange(watchers) + 1}"
    if chance.random() < 0.5:
        return [Step(at, who, "restart", "", (chance.randint(0, 3),))]
    return [Step(at, who, "pause"), Step(_later(chance, at), who, "go on")]


def _suspended(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    return [Step(at, "store", "sleep", "", (chance.choice((30, 3_599, 3_700, 9_000)) * SECOND,))]


def _clock_jumps(chance: random.Random, at: int, clients: int, watchers: int) -> list[Step]:
    day = 86_400 * SECOND
    jump = chance.choice((3_600 * SECOND, 365 * day, -day, -365 * day, -SECOND))
    return [Step(at, "store", "clock", "", (jump,))]


_FAULTS = {kind.__name__.strip("_"): kind for kind in (
    _store_killed, _store_killed_in_call, _killed_again_and_again, _killed_at_birth, _disk_fails,
    _disk_full, _slow_sync, _store_stopped, _compacted, _broker_killed, _cut_off, _client_killed,
    _client_stopped, _watcher_in_trouble, _suspended,
    _clock_jumps,
)}
