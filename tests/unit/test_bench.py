"""What `make bench` makes of its samples. No server, no worker, no client library of a peer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import report
from bench.figures import Result, Spread, interleaved, rows, spread
from bench.peers import PEERS
from bench.report import Report
from bench.servers import SERVERS
from bench.targets import TARGETS, Target, target_of
from bench.workloads import BY_NAME, WORKLOADS, Compared

SAMPLED = Result(
    "workers-16", "/s", {"broker": [10.0, 20.0, 30.0], "redis": [10.0, 10.0, 60.0],
                         "nats": [1.0, 2.0, 3.0]},
    ("broker",), ("redis", "nats"), {"nats": "acknowledges before it syncs"},
)
FACTS = {"date": "2026-01-01", "commit": "abc", "took": 61.0, "versions": {"Python": "3.11.0"},
         "machine": {"processor": "a processor", "processors": 2, "memory_gib": 8,
                     "system": "Linux 6", "file_system": "ext4", "load_before": [0.5, 0.4, 0.3]},
         "settings": {"rounds": 3, "seconds": 1.0, "keys": 10}}
FOUND = Report([SAMPLED], {"etcd": "no etcd on this machine"},
               {"reads": "WorkerFailed: worker 1: gone"}, FACTS)


def test_a_ratio_is_of_two_figures_of_one_round() -> None:
    assert SAMPLED.ratios("broker", "redis") == [1.0, 2.0, 0.5]
    [redis, nats] = rows(SAMPLED)
    assert redis.ratio == Spread(1.0, 0.5, 2.0)  # that of the medians would be 2
    assert nats.ratio == Spread(10.0, 10.0, 10.0)


def test_a_spread_is_the_median_and_both_ends() -> None:
    assert spread([5.0, 1.0, 2.0, 9.0, 3.0]) == Spread(3.0, 1.0, 9.0)
    assert spread([4.0]) == Spread(4.0, 4.0, 4.0)


def test_a_round_in_which_the_other_came_to_nothing_breaks_neither_table_nor_json() -> None:
    stalled = SAMPLED._replace(series={**SAMPLED.series, "redis": [10.0, 0.0, 60.0]})
    [redis, _] = rows(stalled)
    assert redis.ratio == Spread(1.0, 0.5, float("inf"))
    found = FOUND._replace(results=[stalled])
    assert "1 (0.5–∞)" in report.table(found)  # noqa: RUF001
    assert "Infinity" not in report.to_json(found)
    assert report.from_json(report.to_json(found)) == found


def test_rounds_are_interleaved() -> None:
    order: list[str] = []

    def noted(name: str) -> int:
        order.append(name)
        return len(order)

    found = interleaved({name: lambda name=name: noted(name) for name in "ABC"}, 2)
    assert order == list("ABCABC")
    assert found == {"A": [1, 4], "B": [2, 5], "C": [3, 6]}


def test_a_figure_without_a_peer_stands_for_itself() -> None:
    [row] = rows(Result("replay", "records/s", {"1,000,000 commits": [8e5, 9e5]},
                        ("1,000,000 commits",)))
    assert (row.own.median, row.their, row.ratio) == (8.5e5, None, None)
    assert report.verdict(row) == "met"
    assert report.goal(target_of(row)) == "≥ 700,000, reach 1,500,000"


def test_the_table_has_ratios_with_figures_targets_and_remarks_beside() -> None:
    lines = report.table(FOUND).splitlines()
    redis = next(line for line in lines if "redis" in line)
    for cell in ("workers-16", "broker", "20/s (10–30)", "10/s (10–60)", "1 (0.5–2)",  # noqa: RUF001
                 "≥ 1, reach 1.3", "met"):
        assert cell in redis
    nats = next(line for line in lines if "nats" in line)
    assert "reach; acknowledges before it syncs" in nats
    assert "left out: etcd (no etcd on this machine)" in lines
    assert "failed: reads (WorkerFailed: worker 1: gone)" in lines
    assert "not judged: workers-16 broker etcd" in lines
    assert not any("workers-50" in line for line in lines)  # it was not run


@pytest.mark.parametrize(("found", "most", "verdict"), [
    (1.3, False, "reach"), (1.0, False, "met"), (0.99, False, "missed"),
    (1.0, True, "reach"), (1.3, True, "met"), (1.31, True, "missed"),
])
def test_a_target_judges_from_below_or_from_above(found: float, most: bool, verdict: str) -> None:
    least, reach = (1.3, 1.0) if most else (1.0, 1.3)
    assert Target("w", "broker", "redis", least, reach, most).verdict(found) == verdict


def test_every_target_names_rows_that_a_workload_makes() -> None:
    made = {name: each for each in WORKLOADS for name in each.results}
    for target in TARGETS:
        assert target.workload in made
        compared = getattr(made[target.workload].run, "func", None)
        if isinstance(compared, Compared):
            assert target.ours in compared.variants
            assert target.against in compared.peers
            assert PEERS[target.against].can(compared.job.kind)
    assert len({each[:3] for each in TARGETS}) == len(TARGETS)


def test_a_row_finds_its_target_and_no_other() -> None:
    [redis, nats] = rows(SAMPLED)
    assert target_of(redis) == Target("workers-16", "broker", "redis", 1.0, 1.3)
    assert target_of(redis._replace(peer="valkey")) is None
    assert target_of(nats) == Target("workers-16", "broker", "nats", 2.0, 4.0)


def test_names_of_workloads_are_their_own() -> None:
    assert len(BY_NAME) == len(WORKLOADS)
    results = [name for each in WORKLOADS for name in each.results]
    assert len(set(results)) == len(results)


def test_a_server_that_is_not_installed_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "etcd" else f"/bin/{name}")
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "nats" else object())
    there, left_out = command.choose(["redis", "sqlite", "etcd", "nats"])
    assert there == ["redis", "sqlite"]
    assert left_out == {
        "etcd": "no etcd on this machine",
        "nats": "no Python module nats: install the extra ckptmesh[bench]"}


def test_peers_and_servers_have_the_same_names() -> None:
    servers = [each.server or name for name, each in PEERS.items()]
    assert list(dict.fromkeys(servers)) == list(SERVERS)


def test_results_survive_json() -> None:
    again = report.from_json(report.to_json(FOUND))
    assert again == FOUND
    assert report.table(again) == report.table(FOUND)


def test_a_page_gets_its_section_between_the_marks_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_page(page, report.section(FOUND, "plot.png"))
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert text.count("| workers-16 | broker | 20/s") == 2
    assert "old" not in text
    assert "![ratios" in text


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="has no two lines"):
        report.write_page(page, "text")
    assert page.read_text() == "no marks\n"


def test_importing_the_bench_needs_no_library_of_a_peer() -> None:
    code = ("import sys, bench.__main__; "
            "print([m for m in ('redis', 'psycopg', 'etcd3gw', 'nats', 'matplotlib') "
            "if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_peer_that_does_not_exist_is_refused_by_name() -> None:
    from click.testing import CliRunner

    done = CliRunner().invoke(command.main, ["--peers", "redis,mongo"])
    assert done.exit_code == 2
    assert "'mongo' is none of redis, postgres" in done.output
