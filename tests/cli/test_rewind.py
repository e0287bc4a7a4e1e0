"""`ckptmesh state rewind`: shown, done, undone, told in the history."""

from __future__ import annotations

import json

from tests.cli.conftest import CommandLine


def _two_days(line: CommandLine) -> None:
    line("state", "set", "orders", "1", "--position", "10")
    line("state", "set", "orders", "2", "--position", "30")


def test_a_rewind_that_is_not_told_where_to_says_what_is_missing(directory: CommandLine) -> None:
    _two_days(directory)
    for arguments, said in (
            (("orders",), "either --to 8h"),
            (("orders", "--to", "1", "--value", "7"), "either --to 8h"),
            (("", "--value", "7"), "which key"), (("orders", "--to", "1"), "'--reason'")):
        reason = () if "reason" in said else ("--reason", "odd")
        result = directory("state", "rewind", *arguments, *reason, "--yes", code=2)
        assert said in result.stderr
    assert directory.out("state", "get", "orders") == "2"


def test_a_rewind_is_shown_done_told_and_undone(directory: CommandLine) -> None:
    _two_days(directory)
    shown = directory.out("state", "rewind", "orders", "--to", "1", "--reason", "bad feed",
                          "--dry-run")
    assert "change  orders  @2 (position 30) → @1 (position 10)" in shown
    assert directory.out("state", "get", "orders") == "2"
    directory("state", "rewind", "orders", "--to", "1", "--reason", "bad feed", code=2)
    done = directory("state", "rewind", "orders", "--to", "1", "--reason", "bad feed", "--yes")
    assert "1 changed, 0 deleted" in done.stdout
    assert "--to 2" in done.stderr
    assert directory.out("state", "get", "orders") == "1"
    assert "bad feed" in directory.out("state", "history", "orders").splitlines()[1]
    directory("state", "rewind", "orders", "--to", "2", "--reason", "it was good", "--yes")
    assert directory.out("state", "get", "orders") == "2"


def test_a_plan_is_a_document_too(directory: CommandLine) -> None:
    _two_days(directory)
    plan = json.loads(directory.out("state", "rewind", "orders", "--position", "12", "--reason",
                                    "again", "--dry-run", "--json"))
    assert plan["changes"] == [{
        "key": "orders", "change": "change", "again": 20,
        "before": {"value": 2, "revision": 2, "position": 30},
        "after": {"value": 1, "revision": 1, "position": 10}}]
    assert plan["again"] == ["orders: from position 10 to 30, 20 in all"]


def test_a_value_can_be_set_by_a_rewind(directory: CommandLine) -> None:
    _two_days(directory)
    done = json.loads(directory.out("state", "rewind", "orders", "--value", "7", "--reason",
                                    "by hand", "--yes", "--json"))
    assert (done["changed"], done["reason"]) == (1, "by hand")
    assert directory.out("state", "get", "orders") == "7"
    assert directory.out("state", "rewind", "orders", "--value", "7", "--reason", "again",
                         "--yes") == "nothing differs"
