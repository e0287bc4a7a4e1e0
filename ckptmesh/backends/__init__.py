"""State backends: one small interface, chosen by URL."""

from __future__ import annotations

from ckptmesh.backends.base import Capability, StateBackend

__all__ = ["Capability", "StateBackend"]
