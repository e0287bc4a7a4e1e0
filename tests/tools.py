"""Tools of the system that some tests need: without one they are skipped, unless
`CKPTMESH_REQUIRE_SERVERS` names it (as `.ci/run` does), for then they fail."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(name: str, why: str) -> NoReturn:
    """Skip the test for want of `name`, or fail it where that is required."""
    if name in os.environ.get("CKPTMESH_REQUIRE_SERVERS", "").split(","):
        pytest.fail(f"{name} is required here: {why}")
    pytest.skip(f"{name}: {why}")


def tool(name: str) -> str:
    """The path of a program."""
    found = shutil.which(name)
    if found is None:
        missing(name, "it is not installed")
    return found
