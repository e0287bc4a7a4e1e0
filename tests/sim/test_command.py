"""`python -m ckptmesh.testing.simulation`: what it prints, and its exit codes."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from ckptmesh.machine import Machine
from ckptmesh.testing.simulation.__main__ import main


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def steps(done: Result) -> int:
    """How many the plan has that was told."""
    return sum(line.startswith("plan ") for line in done.output.splitlines())


@pytest.mark.parametrize(("arguments", "says"), [
    ((), "Missing argument 'FIRST'"),
    (("10", "5"), "END (5) is not beyond FIRST (10)"),
    (("5", "5"), "END (5) is not beyond FIRST (5)"),
    (("0", "5", "--shrink"), "--shrink takes one seed"),
])
def test_no_seed_at_all_is_a_wrong_argument_and_no_success(
    arguments: tuple[str, ...], says: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert says in done.output


def test_the_help_shows_each_command_on_a_line_of_its_own() -> None:
    lines = [line.split() for line in run("--help").output.splitlines()]
    assert sum(line[:2] == ["python", "-m"] for line in lines) == 3


def test_seeds_that_keep_every_promise_are_counted_and_nothing_is_shrunk() -> None:
    done = run("0", "3", "--sites")
    assert done.exit_code == 0
    assert "3 seeds, 0 of them broke a promise" in done.output
    assert "  message late\n" in done.output
    assert "    never  power lost\n" in done.output
    done = run("0", "--shrink")
    assert done.exit_code == 0
    assert done.output.startswith("seed 0: all promises were kept\n")


def test_a_broken_promise_ends_with_1_alone_among_others_and_shrunk(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "_known", lambda self, request: None)
    many = run("0", "30")
    assert many.exit_code == 1
    told = [line for line in many.output.splitlines() if line.startswith("seed ")]
    assert f"30 seeds, {len(told)} of them broke a promise" in many.output
    seed, _, violation = told[0].removeprefix("seed ").partition(": ")
    whole, short = run(seed), run(seed, "--shrink")
    assert whole.exit_code == short.exit_code == 1
    assert f"seed {seed}: {violation}\n" in whole.output
    assert f"seed {seed}: " in short.output
    assert 0 < steps(short) < steps(whole)
