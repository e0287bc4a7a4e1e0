"""Operations on contracts: rules as users write them, contracts as users hold them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ckptmesh.api import Api, SchemaLike, Steps, schema_key
from ckptmesh.clock import Seconds, ttl_micros
from ckptmesh.contracts import NO_RULE
from ckptmesh.errors import Conflict, Misuse
from ckptmesh.limits import CONTRACT_HISTORY, INTEGER_MAX, SECOND, VALUE_BYTES, under
from ckptmesh.messages import Contracted, ListContracts, Rules, SetContract
from ckptmesh.views import Contract


def put(api: Api, prefix: str, *, monotonic: bool, required: bool, max_step: int | None,
        max_bytes: int | None, ttl: Seconds | None, history: int | None,
        schema: SchemaLike | None) -> Steps[Contract]:
    """Put rules on a prefix; the schema's document is kept beside it, for people. Raises `Misuse`,
    `InvalidKey`, `QuotaExceeded`."""
    rules = Rules(
        bool(monotonic), bool(required), _count(max_step, "max_step", INTEGER_MAX),
        _count(max_bytes, "max_bytes", VALUE_BYTES), None if ttl is None else ttl_micros(ttl),
        _count(history, "history", CONTRACT_HISTORY), schema.digest if schema else "")
    if rules == NO_RULE:
        raise Misuse("a contract has at least one rule", hint="drop_contract() takes one away")
    full = api.under(prefix)
    if schema is not None:
        with suppress(Conflict):  # it is there already
            yield from api.commit(schema_key(prefix, schema), schema.document, expect=None)
    yield SetContract(full, rules)
    for found in (yield from standing(api)):
        if found.prefix == prefix:
            return found
    raise Conflict(f"somebody took the contract on {prefix!r} away again", key=prefix)


def drop(api: Api, prefix: str) -> Steps[bool]:
    """Take the contract on this very prefix away; whether there was one."""
    before = yield from standing(api)
    yield SetContract(api.under(prefix), NO_RULE)
    return any(found.prefix == prefix for found in before)


def standing(api: Api) -> Steps[list[Contract]]:
    """All contracts under this client's prefix, by prefix."""
    found: tuple[Contracted, ...] = yield ListContracts()
    return [_shown(api, contracted) for contracted in found if under(api.prefix, contracted.prefix)]


def _shown(api: Api, contracted: Contracted) -> Contract:
    prefix, rules, version, time = contracted
    return Contract(
        "" if prefix == api.prefix else api.bare(prefix), version, time, rules.monotonic,
        rules.required, rules.max_step, rules.max_bytes,
        None if rules.ttl is None else rules.ttl / SECOND, rules.history, rules.schema)


def _count(number: Any, name: str, most: int) -> int | None:
    if number is not None and (type(number) is not int or not 0 <= number <= most):
        raise Misuse(f"{name} is a number from 0 to {most:,}, not {number!r:.80}")
    return number
