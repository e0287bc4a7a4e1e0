"""`ckptmesh doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import os
from collections import Counter

import click

from ckptmesh.cli import checks
from ckptmesh.cli.checks import FAIL, OK, WARN, Finding, Findings
from ckptmesh.cli.common import Use, client_options
from ckptmesh.cli.health import examine, is_address
from ckptmesh.config import (
    DEFAULT_DATA,
    DEFAULT_PUBLISH,
    DEFAULT_URL,
    StoreConfig,
    load,
)
from ckptmesh.errors import DirectoryInUse, Error
from ckptmesh.urls import directory_of

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


@click.command("doctor")
@click.option("--data", envvar="CKPTMESH_DATA", show_envvar=True, metavar="DIR",
              help=f"The directory to look at. Default: that of --url file:…, else {DEFAULT_DATA}.")
@click.option("--bind", envvar="CKPTMESH_BIND", show_envvar=True, metavar="URL",
              help=f"Where `ckptmesh up` is to serve. Default, without --url: {DEFAULT_URL}.")
@click.option("--publish", envvar="CKPTMESH_PUBLISH", show_envvar=True, metavar="URL",
              help=f"Where `ckptmesh up` is to publish. Default, likewise: {DEFAULT_PUBLISH}.")
@client_options
def doctor(use: Use, data: str | None, bind: str | None, publish: str | None) -> None:
    """Look for what is wrong: installation, directory, disk, addresses, clock, store.

    Nothing is changed. Each line says ok, warn or fail, and what to do about it. Exit code 0 only
    when nothing fails, else 1; a warning fails nothing.

    \b
    Examples:
      ckptmesh doctor
      ckptmesh doctor --data /var/lib/ckptmesh
      ckptmesh doctor --json | jq -r 'select(.level != "ok") | .advice'
    """
    if not use.url:
        bind, publish = bind or DEFAULT_URL, publish or DEFAULT_PUBLISH
    url = use.url or bind or DEFAULT_URL
    path = data or (directory_of(url) if url.startswith("file:") else DEFAULT_DATA)
    levels: Counter[str] = Counter()
    for finding in _look(use, path, url, bind, publish):
        levels[finding.level] += 1
        _print(use, finding)
    if not use.out.as_json:
        use.out.note(_summary(levels))
    if levels[FAIL]:
        raise click.exceptions.Exit(1)


def _look(use: Use, path: str, url: str, bind: str | None, publish: str | None) -> Findings:
    yield from checks.installation()
    yield from checks.variables(dict(os.environ))
    yield from checks.descriptors()
    yield from checks.directory(path)
    yield from checks.file_systems(path)
    yield from checks.free_space(path, load(StoreConfig, {}).space_watermark)
    yield from checks.sync_latency(path)
    health = None
    try:
        # Opening a directory would make it, and "nothing is changed" is the promise here.
        if is_address(url) or os.path.isdir(path):
            health = examine(use, url, publish or "" if url == bind else "")
    except DirectoryInUse as error:
        yield Finding("store answers", OK, f"{error.message}, which then is its store")
    except Error as error:
        yield Finding("store answers", FAIL, error.message, error.hint)
    else:
        if health is not None:
            yield from checks.reachable(health, asked_for=bool(use.url))
    yield from checks.addresses([each for each in (bind, publish) if each], health)
    yield from checks.clock(path, health)


def _print(use: Use, finding: Finding) -> None:
    if use.out.as_json:
        use.out.line({"subject": finding.subject, "level": finding.level, "text": finding.text,
                      "advice": finding.advice})
        return
    use.out.styled((finding.level.ljust(4), _COLOURS[finding.level]),
                   (finding.subject.ljust(13), ""), (finding.text, ""))
    if finding.advice:
        use.out.styled((" " * 18 + "→", ""), (finding.advice, ""))


def _summary(levels: Counter[str]) -> str:
    if not levels[FAIL] and not levels[WARN]:
        return "all is well"
    return f"{levels[FAIL]} to mend, {levels[WARN]} to know about"
