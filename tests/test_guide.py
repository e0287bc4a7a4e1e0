"""The guide's pages, and the recipes, run as they stand, on a store without a server and on a
mesh, and print what they say.

python    a line `print(…)  # text` promises that text
console   a line `$ command` promises the lines up to the next one, and no others: stdout and stderr
          in their order; … in such a line stands for any text. `> ` goes on with a command.
sh        a script that the page's commands call; its second line is `# name: what it does`;
          a block of python that begins with `#!` is one as well
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptmesh
from tests.cluster import Cluster

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs" / "guide").glob("*.md")), ROOT / "docs" / "recipes.md"]


def blocks_of(page: Path, language: str) -> list[str]:
    """The blocks of a page in one language; "sh": its scripts, of whichever."""
    name = "sh|python" if language == "sh" else language
    found = re.findall(rf"^```(?:{name})\n(.*?)^```", page.read_text(), re.M | re.S)
    return [block for block in found if block.startswith("#!") is (language == "sh")]


WITH = {language: [page for page in PAGES if blocks_of(page, language)]
        for language in ("python", "console", "sh")}
_SAID = re.compile(r"^\s*print\(.*\)\s*#\s*(?:→\s*)?(\S.*?)\s*$", re.M)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("guide")) as found:
        yield found


def address(where: str, request: pytest.FixtureRequest) -> str:
    """The URL of a store without a key."""
    if where != "mesh":
        return {"memory": "memory://", "file": "file:./state"}[where]
    cluster = request.getfixturevalue("cluster")
    assert isinstance(cluster, Cluster)
    with ckptmesh.connect(cluster.url) as mesh:  # pages share it, and use names that go together
        for contract in mesh.contracts():
            mesh.drop_contract(contract.prefix)
        for savepoint in mesh.savepoints():
            mesh.drop_savepoint(savepoint.name)
        for found in mesh.list():
            mesh.delete(found.key)
    return cluster.url


def test_every_page_has_an_example_that_is_run() -> None:
    assert PAGES
    assert set(PAGES) == {*WITH["python"], *WITH["console"]}
    assert set(WITH["sh"]) <= set(WITH["console"])


@pytest.mark.parametrize("where", ["memory", "mesh"])
@pytest.mark.parametrize("page", WITH["python"], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_one_after_the_other(
    page: Path, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = address(where, request)
    blocks = blocks_of(page, "python")
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CKPTMESH_URL": url}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for promised in _SAID.findall("\n".join(blocks)):
        assert promised in said, f"{promised!r} is promised; printed was {said}"


@pytest.mark.parametrize("where", ["file", "mesh"])
@pytest.mark.parametrize("page", WITH["console"], ids=lambda page: page.stem)
def test_the_commands_of_a_page_print_what_it_shows(
    page: Path, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for script in blocks_of(page, "sh"):
        name = re.match(r"#!.*\n# (\S+): ", script)
        assert name, "the second line of a script is `# name: what it does`"
        (tmp_path / name[1]).write_text(script)
        (tmp_path / name[1]).chmod(0o755)
    url = address(where, request)
    for command, promised in commands("".join(blocks_of(page, "console"))):
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=shell_env(tmp_path, url),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60)
        assert is_as_promised(done.stdout, promised), (
            f"{command}\npromised:\n{promised}\nprinted:\n{done.stdout}")


def shell_env(folder: Path, url: str) -> dict[str, str]:
    """An environment in which `ckptmesh` is the one of this tree, `python` that which runs it."""
    program = folder / "bin" / "ckptmesh"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ckptmesh "$@"\n')
    program.with_name("python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for each in program.parent.iterdir():
        each.chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(ROOT), "CKPTMESH_URL": url, "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",  # a terminal shows stdout and stderr in their order
            "PATH": f"{program.parent}:{os.environ['PATH']}"}


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of console examples, each with what it is promised to print."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
            continue
        assert found, "an example begins with a command"
        command, promised = found[-1]
        found[-1] = ((f"{command}\n{line[2:]}", promised) if line.startswith("> ") and not promised
                     else (command, f"{promised}{line}\n"))
    return found


def is_as_promised(printed: str, promised: str) -> bool:
    """Whether all that was printed is promised, and the other way round."""
    pattern = "[^\\n]*".join(map(re.escape, promised.split("…")))
    return re.fullmatch(pattern, printed) is not None


def test_examples_of_commands_are_read_and_compared_to_the_letter() -> None:
    assert commands("$ a \\\n>   b\none\n> two\n$ c\n") == [
        ("a \\\n  b", "one\n> two\n"), ("c", "")]
    assert is_as_promised("key 7 (x)\n", "key … (x)\n")
    for printed in ("", "key 7 (x)\nmore\n", "key 7\n(x)\n", "key 7 (x)", "a key 7 (x)\n"):
        assert not is_as_promised(printed, "key … (x)\n"), printed
