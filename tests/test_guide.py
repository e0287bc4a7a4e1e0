"""The guide's pages run as they stand, on a store in memory and on a mesh, and print what they say.

A line `print(…)  # text` in an example promises that text.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
_SAID = re.compile(r"^\s*print\(.*\)\s*#\s*(?:→\s*)?(\S.*?)\s*$", re.M)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("guide")) as found:
        yield found


@pytest.mark.parametrize("where", ["memory", "mesh"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_one_after_the_other(
    page: Path, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = "memory://" if where == "memory" else request.getfixturevalue("cluster").url
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    assert blocks, "a page of the guide has an example"
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CKPTMESH_URL": url}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for promised in _SAID.findall("\n".join(blocks)):
        assert promised in said, f"{promised!r} is promised; printed was {said}"
