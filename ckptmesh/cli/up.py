"""`ckptmesh up`: broker and store, kept alive."""

from __future__ import annotations

import click

from ckptmesh.cli.settings import settings
from ckptmesh.config import BrokerConfig, StoreConfig, load_up
from ckptmesh.process import begin
from ckptmesh.supervisor import up as run_up


@click.command("up")
@settings(BrokerConfig, StoreConfig)
def up(**given: object) -> None:
    """Run broker and store until Ctrl-C or SIGTERM.

    A child that dies is started again; one that ends with exit code 2 (usage), 4 (in use) or 6
    (corruption or loss) ends this command with the same code.

    \b
    Examples:
      ckptmesh up
      ckptmesh up --data /var/lib/ckptmesh
      ckptmesh up --bind tcp://127.0.0.1:7711 --publish tcp://127.0.0.1:7712
    """
    code = run_up(load_up(given), begin("up"))
    if code:
        raise click.exceptions.Exit(code)
