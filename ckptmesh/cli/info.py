"""`ckptmesh info`: every figure, by section, as redis-cli INFO has them."""

from __future__ import annotations

from typing import Any

import click

from ckptmesh.cli.common import NotFound, Use, client_options

CLIENT = "client"  # section of the figures that this very call of the command line has made


@click.command("info")
@click.argument("section", required=False)
@client_options
def info(use: Use, section: str | None) -> None:
    """Print every figure that the store keeps, and those of this client, by section.

    Names and units are those of `mesh.status()` and `mesh.stats()`: sizes in bytes, times in
    seconds unless the name says ms. Exit code 3 for a SECTION that there is not.

    \b
    Examples:
      ckptmesh info
      ckptmesh info log
      ckptmesh info --json | jq .store.counts
    """
    with use.connect(reading=True) as mesh:
        status = mesh.status()
        sections = _sections("store", status) | _sections(CLIENT, mesh.stats())
    if section is not None:
        if section not in sections:
            raise NotFound(f"there is no section {section}",
                           hint=f"sections: {', '.join(sections)}")
        sections = {section: sections[section]}
    if use.out.as_json:
        use.out.document(sections)
        return
    for number, (name, figures) in enumerate(sections.items()):
        use.out.text(("\n" if number else "") + f"# {name}")
        for figure, value in figures.items():
            use.out.text(f"{figure}: {_text(value)}")


def _sections(name: str, figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Plain figures under `name`, nested ones as sections of their own."""
    found: dict[str, dict[str, Any]] = {name: {}}
    for figure, value in figures.items():
        if isinstance(value, dict):
            inner = figure if name == "store" else f"{name}.{figure}"
            found[inner] = value
        else:
            found[name][figure] = value
    return {name: each for name, each in found.items() if each}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return str(value)
