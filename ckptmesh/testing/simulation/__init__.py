"""Whole systems in one thread, by seed: clients, broker, store, watchers, network, disk, clocks."""

from ckptmesh.testing.simulation.history import history_of
from ckptmesh.testing.simulation.plan import Plan, make
from ckptmesh.testing.simulation.run import Report, simulate
from ckptmesh.testing.simulation.shrink import shrink

__all__ = ["Plan", "Report", "history_of", "make", "shrink", "simulate"]
