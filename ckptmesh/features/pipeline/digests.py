"""What makes a stage run again: digests of all that its output was made from.

Rule 1: equal values have equal digests, whatever the order of a map's keys.
Rule 2: a stage's digest covers its name and version, the run's inputs and configuration, and the
        outputs of the stages it needs, each by its own digest. So a stage that is run again and
        gives what it gave before makes none of those after it run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ckptmesh import values
from ckptmesh.errors import InvalidValue, TooLarge


def sha256(data: bytes) -> str:
    """The digest of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_of(value: Any, what: str) -> str:
    """The digest of a value that the store can hold. Raises `InvalidValue`, `TooLarge`, in which
    `what` stands for the value."""
    return sha256(packed(_ordered(value), what))


def packed(value: Any, what: str) -> bytes:
    """A value as the store keeps it. Raises `InvalidValue`, `TooLarge`, naming what it is."""
    try:
        return values.pack(value)
    except (InvalidValue, TooLarge) as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint or None, **error.details,
                          ) from None


def provenance_of(inputs: str, config: str, needs: Mapping[str, str]) -> dict[str, str]:
    """What a stage depends on, a digest each."""
    return {"inputs": inputs, "config": config, **{f"needs/{name}": sha
                                                   for name, sha in needs.items()}}


def made_from(stage: str, version: int | str, provenance: Mapping[str, str]) -> str:
    """The digest of all that a stage's output depends on."""
    return digest_of([stage, version, dict(provenance)], "provenance")


def _ordered(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {key: _ordered(value[key]) for key in _sorted(value)}
    if kind is list:
        return [_ordered(item) for item in value]
    return tuple(map(_ordered, value)) if kind is tuple else value


def _sorted(value: dict[Any, Any]) -> list[Any]:
    try:
        return sorted(value)
    except TypeError:  # keys that are no strings: `pack` says so
        return list(value)
