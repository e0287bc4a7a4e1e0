"""`ckptmesh broker`: the public addresses."""

from __future__ import annotations

import click

from ckptmesh.broker import Broker
from ckptmesh.cli.settings import settings
from ckptmesh.config import BrokerConfig, load
from ckptmesh.process import begin


@click.command("broker")
@settings(BrokerConfig)
def broker(**given: object) -> None:
    """Run the broker alone: it holds the public addresses and passes everything on.

    It needs a store beside it (`ckptmesh store`); until one is connected it answers every request
    at once with "unavailable". `ckptmesh up` runs both.

    \b
    Examples:
      ckptmesh broker
      ckptmesh broker --data /var/lib/ckptmesh
    """
    Broker(load(BrokerConfig, given), tell=begin("broker")).run()
