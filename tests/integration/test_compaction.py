"""Compaction on demand, as its user sees it."""

from __future__ import annotations

from pathlib import Path

import ckptmesh


def test_two_compactions_in_a_row_free_the_log(tmp_path: Path) -> None:
    with ckptmesh.connect(f"file:{tmp_path / 'state'}") as mesh:
        for count in range(300):
            mesh.commit("job", bytes(20_000), position=count)
        first, second = mesh.compact(retain=0), mesh.compact(retain=0)
        assert first["made"]
        assert not first["removed"], "until there are two snapshots the log is the fallback"
        assert second["made"], "with nothing new in between, too"
        assert any(file.startswith("wal/") for file in second["removed"])
        assert mesh.get("job").position == 299
