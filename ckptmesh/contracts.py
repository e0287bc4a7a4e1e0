"""Commit contracts: what the store demands of whatever is put under a prefix.

Rule 1: all contracts that cover a key hold for it, the nearest first; a TTL and a depth of history
        are given by the nearest that has one.
Rule 2: ckptmesh's own keys, with a segment below the prefix that begins with `_`, are not covered.
Rule 3: nothing here decides: `transactions.py` holds a transaction to the contracts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ckptmesh.messages import Contracted, Rules

NO_RULE = Rules()


class Contracts:
    """The contracts of a store, by prefix. Only `State.apply` changes them."""

    def __init__(self) -> None:
        self._standing: dict[str, Contracted] = {}

    def __len__(self) -> int:
        return len(self._standing)

    def __iter__(self) -> Iterator[Contracted]:
        """All of them, by prefix."""
        return iter(sorted(self._standing.values()))

    def get(self, prefix: str) -> Contracted | None:
        """The contract on this very prefix."""
        return self._standing.get(prefix)

    def change(self, prefix: str, contract: Rules, time: int) -> None:
        """Put a contract on a prefix in place of any other; without a rule, take it away."""
        before = self._standing.pop(prefix, None)
        if contract != NO_RULE:
            version = before.version + 1 if before else 1
            self._standing[prefix] = Contracted(prefix, contract, version, time)

    def load(self, contracted: Contracted) -> None:
        """Take one as it was dumped."""
        self._standing[contracted.prefix] = contracted

    def of(self, key: str) -> list[Contracted]:
        """Those that cover a key, the nearest first."""
        found = []
        prefix = key
        while True:
            contracted = self._standing.get(prefix)
            if contracted is not None and "/_" not in key[len(prefix):]:
                found.append(contracted)
            if not prefix:
                return found
            prefix = prefix.rpartition("/")[0]

    def history(self, key: str, default: int) -> int:
        """How many versions of a key are kept for display."""
        for contracted in self.of(key):
            if contracted.contract.history is not None:
                return contracted.contract.history
        return default


def contract_of(fields: Sequence[Any]) -> Rules:
    """The contract of its fields, as a log or a snapshot holds them. Raises `ValueError`."""
    if len(fields) != len(Rules._fields) or not (
            tuple(map(type, fields[:2])) == (bool, bool) and type(fields[6]) is str
            and all(field is None or type(field) is int for field in fields[2:6])):
        raise ValueError("a contract has a wrong form")
    return Rules(*fields)
