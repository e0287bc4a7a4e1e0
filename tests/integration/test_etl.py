"""The demo's ETL, killed by itself in each of its stages, leaves what it leaves undisturbed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptmesh
from tests.cli.conftest import environment
from tests.cluster import Cluster


def etl(url: str, folder: Path, database: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "demo.etl", "orders.csv", database, "--ttl", "1", *options],
        cwd=folder, env=environment(CKPTMESH_URL=url), capture_output=True, text=True, timeout=60)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with Cluster(tmp_path) as cluster:
        yield cluster.url


def table(file: Path) -> list[tuple[str, int, int]]:
    with sqlite3.connect(file) as database:
        return database.execute("SELECT * FROM totals ORDER BY customer").fetchall()


def test_an_etl_that_is_killed_in_each_of_its_stages_leaves_what_it_leaves_undisturbed(
        tmp_path: Path, url: str) -> None:
    calm = etl("memory://", tmp_path, "calm.db", "--make", "4000")
    assert calm.returncode == 0, calm.stderr
    assert calm.stdout.startswith("extract, transform, load done here; 100 customers")
    for number, stage in enumerate(("extract", "transform", "load")):
        killed = etl(url, tmp_path, "totals.db", "--crash", stage)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with ckptmesh.connect(url) as mesh:
            record = mesh.runs("etl").get("orders.csv")
            assert record is not None
            assert (record.status, record.stage) == ("running", stage)
            assert len(record.completed) == number
    rest = etl(url, tmp_path, "totals.db")
    assert rest.returncode == 0, rest.stderr
    assert rest.stdout == calm.stdout.replace("extract, transform, load", "load").replace(
        "0 resumes", "3 resumes")
    assert table(tmp_path / "totals.db") == table(tmp_path / "calm.db")
    assert len(table(tmp_path / "totals.db")) == 100
    again = etl(url, tmp_path, "totals.db")
    assert again.stdout.startswith("nothing done here; 100 customers")
    with ckptmesh.connect(url) as mesh:
        record = mesh.runs("etl").get("orders.csv")
        assert record is not None
        assert {each.name: each.executions for each in record.stages} == {
            "extract": 2, "transform": 2, "load": 2}
