"""What a checker found, for programs and for people."""

from __future__ import annotations

from dataclasses import dataclass

from ckptmesh.testing.checkers.history import Operation


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise. `rule` is a word for programs (each checker lists its own), `message` a
    sentence for people; `operations` those concerned, `revision` where in the store's order."""

    rule: str
    message: str
    operations: tuple[Operation, ...] = ()
    revision: int | None = None

    def __str__(self) -> str:
        lines = [f"{self.rule}: {self.message}", *(f"  {asked}" for asked in self.operations)]
        return "\n".join(lines)
