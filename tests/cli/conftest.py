"""Two ways to call the command line: in this process, which is fast, and as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ckptmesh.cli import program
from tests.cluster import Cluster

ROOT = Path(__file__).parent.parent.parent
PROGRAM = [sys.executable, "-m", "ckptmesh"]


class CommandLine:
    """Calls `ckptmesh` in this process, with a store's URL in the environment."""

    def __init__(self, url: str = "", **environ: str) -> None:
        self.environ = {"CKPTMESH_URL": url, **environ}

    def __call__(self, *args: str, stdin: str | bytes | None = None, code: int = 0,
                 **environ: str) -> Result:
        """The result; its exit code must be `code`."""
        result = CliRunner().invoke(program, list(args), input=stdin,
                                    env={**self.environ, **environ})
        assert result.exit_code == code, (args, result.exit_code, result.stdout, result.stderr)
        assert "Traceback" not in result.stderr
        return result

    def out(self, *args: str, **options: Any) -> str:
        """What it wrote to stdout, without the last line end."""
        return self(*args, **options).stdout.removesuffix("\n")


def environment(**changes: str) -> dict[str, str]:
    """The environment for a real process."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith("CKPTMESH_") and name != "NO_COLOR"}
    return {**clean, "PYTHONPATH": str(ROOT), **changes}


def process(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `ckptmesh` as a process to its end."""
    return subprocess.run([*PROGRAM, *args], env=environment(**environ), check=False, timeout=60,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture
def directory(tmp_path: Path) -> CommandLine:
    """The command line with a directory for a store."""
    return CommandLine(f"file:{tmp_path}/state")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One broker and one store for all tests of this folder; each uses keys of its own."""
    with Cluster(tmp_path_factory.mktemp("cli")) as running:
        yield running


@pytest.fixture
def served(cluster: Cluster) -> CommandLine:
    """The command line with a running store."""
    return CommandLine(cluster.url)
