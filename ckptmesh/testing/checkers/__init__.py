"""Checkers: is what clients were told by a store possible at all, and is what was committed right?

Record what clients ask and are told (`Recorder`, or files of JSON lines: `dump`, `load`), and what
the store says it committed (`commits_of` the events of a watch). Then ask

| checker | the question | needs |
|---|---|---|
| `check_linearizable` | could a store that does one thing at a time have answered this? | answers |
| `check_order` | did everybody see the one order of the revisions? | answers, commits |
| `check_once` | did what was asked for take effect once, and nothing else? | answers, commits |
| `check_counters` | do the increments sum up? | answers, last values |
| `check_watch` | was a watcher given everything once, in order? | events, commits |

The first gives a verdict that is true only where the answer is yes (`assert
check_linearizable(history)`), all others a list of violations, empty where all is well.

Two clients, one of which reads what stood there before an acknowledged commit:

>>> from ckptmesh.testing.checkers import *
>>> recorder = Recorder()
>>> for offset in (10, 20):
...     asked = recorder.invoke("worker", Put("orders", offset))
...     recorder.ok(asked, revision=offset // 10)
>>> asked = recorder.invoke("monitor", Get("orders"))
>>> recorder.ok(asked, Found(10, 1))
>>> history = recorder.history()
>>> commits = [Commit(1, (Change("orders", "put", 10),)), Commit(2, (Change("orders", "put", 20),))]
>>> check_once(history, commits)
[]
>>> print(*check_order(history, commits))
stale: monitor's get of orders was told what stood at revision 1, and no longer at 2, which had \
been reached before it was invoked
  worker [3, 4] put("orders", 20) → ok at revision 2
  monitor [5, 6] get("orders") → found 10 at revision 1
>>> print(check_linearizable(history))
Not linearizable: no order of the 3 operations on orders up to then explains what monitor's get \
of orders was told.
  monitor [5, 6] get("orders") → found 10 at revision 1
Without it there could have been:
  orders: 20
Returned last before it was invoked:
  worker [1, 2] put("orders", 10) → ok at revision 1
  worker [3, 4] put("orders", 20) → ok at revision 2

All of it is plain data: no sockets, no clocks. What none of the checkers knows is time to live:
keys that expire by themselves can be committed and watched, but not read in a history.
"""

from ckptmesh.testing.checkers.findings import Violation
from ckptmesh.testing.checkers.history import (
    ANYTHING,
    Change,
    Commit,
    Delete,
    Found,
    Get,
    Increment,
    Ok,
    Operation,
    Put,
    Recorder,
    Refused,
    Touch,
    Unknown,
    commits_of,
    dump,
    load,
)
from ckptmesh.testing.checkers.linearizability import (
    Bounds,
    Inconclusive,
    Linearizable,
    NotLinearizable,
    Verdict,
    check_linearizable,
)
from ckptmesh.testing.checkers.once import check_counters, check_once
from ckptmesh.testing.checkers.order import check_order
from ckptmesh.testing.checkers.watches import Seen, check_watch, seen_of

__all__ = [
    "ANYTHING",
    "Bounds",
    "Change",
    "Commit",
    "Delete",
    "Found",
    "Get",
    "Inconclusive",
    "Increment",
    "Linearizable",
    "NotLinearizable",
    "Ok",
    "Operation",
    "Put",
    "Recorder",
    "Refused",
    "Seen",
    "Touch",
    "Unknown",
    "Verdict",
    "Violation",
    "check_counters",
    "check_linearizable",
    "check_once",
    "check_order",
    "check_watch",
    "commits_of",
    "dump",
    "load",
    "seen_of",
]
