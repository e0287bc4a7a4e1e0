"""The replies of one batch as messages, in bounded memory.

Rule 1: what changed anything is always answered. Answers that carry values are packed up to the
        bounds of a batch; whoever asked for more is told to ask again.
Rule 2: the outcomes of transactions that came together leave together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ckptmesh import bundles, commands, limits, protocol
from ckptmesh.errors import Conflict, TooManyInFlight
from ckptmesh.messages import Get, History, Reply, Request, Scan, Since

_READS = frozenset({Get, Scan, History, Since})  # answered with values

Route = TypeVar("Route")


class Caller:
    """Who calls an engine in its own process. `gone`: nobody waits for its answers any more."""

    gone = False


def pack_answers(decided: Sequence[tuple[Route, Request, Reply]]) -> list[tuple[Route, bytes]]:
    """The replies, packed, each with its route. A few hundred small requests may ask for gigabytes
    of values: what is beyond the bounds of a batch is not packed, and its client asks again."""
    found: list[tuple[Route, bytes]] = []
    spent: dict[Route, int] = {}
    total = 0
    together: list[Reply] = []
    for i, (route, request, reply) in enumerate(decided):
        if request.bundled and reply.error is None:
            together.append(reply)
            if i + 1 < len(decided) and _goes_on(decided[i + 1], route, request):
                continue
            payload = bundles.encode_outcomes(together)
            together = []
        else:
            so_far = spent.get(route, 0)
            full = so_far >= limits.ANSWER_BYTES or total >= limits.BATCH_ANSWER_BYTES
            payload = protocol.encode_reply(commands.op_of(request.command),
                                            _deferred(request, reply) if full else reply)
            spent[route] = so_far + len(payload)
            total += len(payload)
        found.append((route, payload))
    return found


def _goes_on(following: tuple[Route, Request, Reply], route: Route, request: Request) -> bool:
    """Whether the next reply may leave with this one."""
    other, then, reply = following
    return (other is route and then.bundled and reply.error is None
            and then.session == request.session)


def _deferred(request: Request, reply: Reply) -> Reply:
    """The reply, or where it may carry values: ask again."""
    if type(request.command) not in _READS and not isinstance(reply.error, Conflict):
        return reply
    return reply._replace(result=None, error=TooManyInFlight(
        f"this batch has answered with {limits.ANSWER_BYTES:,} bytes or more already: wait, and "
        "ask again", limit=limits.ANSWER_BYTES))
