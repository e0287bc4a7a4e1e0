"""`ckptmesh contract`: rules set, shown, broken and taken away."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import CommandLine


def test_rules_are_set_shown_held_and_taken_away(directory: CommandLine) -> None:
    told = directory.out("contract", "set", "orders", "--monotonic", "--max-step", "10000",
                         "--ttl", "30d")
    assert told == "contract 1 on orders: monotonic, max_step 10,000, ttl 30d"
    directory("state", "set", "orders", "1", "--position", "7")
    refused = directory("state", "set", "orders", "1", "--position", "6", code=4)
    assert "rule monotonic" in refused.stderr
    assert "contract list" in refused.stderr
    assert "orders  " in directory.out("contract", "list", "orders/eu")
    assert directory.out("contract", "list", "other") == ""
    directory("contract", "delete", "orders")
    directory("contract", "delete", "orders", code=3)
    directory("state", "set", "orders", "1", "--position", "6")


def test_contracts_are_listed_as_json(directory: CommandLine) -> None:
    made = json.loads(directory.out("contract", "set", "orders", "--required", "--json"))
    listed = [json.loads(line) for line in
              directory.out("contract", "list", "--json").splitlines()]
    assert listed == [made]
    assert (made["prefix"], made["version"], made["required"], made["max_step"]) == (
        "orders", 1, True, None)


def test_a_schema_is_read_from_a_file(directory: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "orders.json"
    file.write_text('{"type": "integer"}')
    assert ": schema " in directory.out("contract", "set", "orders", "--schema", str(file))
    assert "rule schema" in directory("state", "set", "orders", "1", code=4).stderr
    file.write_text("{")
    assert "no JSON" in directory("contract", "set", "orders", "--schema", str(file),
                                  code=2).stderr


def test_a_contract_without_a_rule_is_refused(directory: CommandLine) -> None:
    assert "at least one rule" in directory("contract", "set", "orders", code=2).stderr
