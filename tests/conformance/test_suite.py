"""The suite itself: it catches what it is there to catch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.broken_stores import FAULTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def failures() -> set[str]:
    """What fails on the broken stores, of the tests that ought to."""
    wanted = " or ".join(f"(Test{kind.__name__} and {test})" for kind, test in FAULTS.items())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/conformance/broken_stores.py", "-k", wanted,
         "-p", "no:cacheprovider", "-o", "addopts=", "--tb=no", "-q", "-rf"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return {line.split("::", 1)[1].split(" ")[0] for line in done.stdout.splitlines()
            if line.startswith("FAILED")}


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_the_suite_catches_a_store_with_a_fault(kind: type, failures: set[str]) -> None:
    caught = [name for name in failures if name.startswith(f"Test{kind.__name__}::{FAULTS[kind]}")]
    assert caught, f"{kind.__doc__} was not caught; what failed: {sorted(failures)}"
