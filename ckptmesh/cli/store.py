"""`ckptmesh store`: the process that owns the data."""

from __future__ import annotations

import click

from ckptmesh import store_actor
from ckptmesh.cli.settings import settings
from ckptmesh.config import StoreConfig, load
from ckptmesh.process import begin


@click.command("store")
@settings(StoreConfig)
def store(**given: object) -> None:
    """Run the store alone: it owns the data directory and connects to a broker.

    With --direct it also takes clients of this host at an address of its own.

    \b
    Examples:
      ckptmesh store --data /var/lib/ckptmesh
      ckptmesh store --direct ipc:///run/ckptmesh/direct
    """
    store_actor.run(load(StoreConfig, given), begin("store"))
