"""A network that loses, doubles, delays, reorders and cuts, by chance and by command.

Real links between broker and peers keep order and lose only when a connection ends. This one does
worse, message by message, since whatever survives it survives those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ckptmesh.testing.simulation.world import SECOND, World

_NEAR, _FAR = 40, 900  # microseconds on the way, least and most, when all is well
LATE = 6 * SECOND  # a late message is at most so late: it may meet the epoch after its own


class Weather(NamedTuple):
    """How likely it is that a message is lost, comes twice, or comes late."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0


CALM = Weather()


class Network:
    """Carries payloads from place to place. A place is a name, such as "c1" or "broker"."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.weather = CALM
        self._cut: set[str] = set()

    def cut(self, place: str) -> None:
        """Nothing comes from or to this place any more, until it is joined again."""
        self._cut.add(place)

    def join(self, place: str) -> None:
        self._cut.discard(place)

    def calm(self) -> None:
        """No more faults."""
        self.weather = CALM
        self._cut.clear()

    def send(self, source: str, target: str, payload: bytes,
             deliver: Callable[[bytes], object]) -> None:
        """Have `deliver(payload)` called after a while: once, or not at all, or twice."""
        world, weather = self._world, self.weather
        world.see(payload)
        way = f"{source} to {target}"
        if source in self._cut or target in self._cut:
            world.fault("message cut off", way)
            return
        chance = world.chance(f"{source}>{target}")
        if weather is CALM:
            world.after(chance.randint(_NEAR, _FAR), self._arrive, target, payload, deliver)
            return
        if chance.random() < weather.lost:
            world.fault("message lost", way)
            return
        copies = 1
        if chance.random() < weather.doubled:
            world.fault("message doubled", way)
            copies = 2
        for _ in range(copies):
            delay = chance.randint(_NEAR, _FAR)
            if chance.random() < weather.late:
                delay += chance.randint(_FAR, LATE)
                world.fault("message late", f"{way}, {delay / SECOND:.3f} s")
            world.after(delay, self._arrive, target, payload, deliver)

    def _arrive(self, target: str, payload: bytes, deliver: Callable[[bytes], object]) -> None:
        if target in self._cut:
            self._world.fault("message cut off", f"at {target}")
            return
        deliver(payload)
