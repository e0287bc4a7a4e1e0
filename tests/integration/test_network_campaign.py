"""A short share of the campaigns of the network, and that their judge can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign import hot_client, network
from tests.campaign.network import Event, judge

ACKNOWLEDGED = {"a": [(1, 1), (3, 2)], "b": [(2, 1)]}
SEEN: list[Event] = [(1, "a", 1), (2, "b", 1), (3, "a", 2)]
FINAL = {"a": 2, "b": 1}


@pytest.mark.fault(30)
@pytest.mark.fault(31)
@pytest.mark.fault(33)
@pytest.mark.fault(35)
def test_a_network_that_breaks_in_every_way_costs_neither_a_commit_nor_an_event() -> None:
    done = network.share(7, 0.0, rounds=4)
    assert not done.findings
    assert done.next == 8
    assert done.counts["acknowledged"] > 20
    assert done.counts["network_rounds"] == 4


@pytest.mark.parametrize(("acknowledged", "seen", "final", "said"), [
    (ACKNOWLEDGED, SEEN, FINAL, ""),
    (ACKNOWLEDGED, SEEN[1:], FINAL, "a watcher missed"),
    (ACKNOWLEDGED, [*SEEN, SEEN[2]], FINAL, "a watcher missed, repeated"),
    (ACKNOWLEDGED, [SEEN[1], SEEN[0], SEEN[2]], FINAL, "reordered"),
    (ACKNOWLEDGED, [*SEEN, (4, "a", 2)], FINAL, "applied twice"),
    ({**ACKNOWLEDGED, "c": [(4, 1)]}, SEEN, {**FINAL, "c": 1}, "acknowledged and lost"),
    ({**ACKNOWLEDGED, "b": [(9, 1)]}, SEEN, FINAL, "acknowledged and lost"),
    (ACKNOWLEDGED, SEEN, {**FINAL, "a": 1}, "stands at 1"),
    ({**ACKNOWLEDGED, "b": []}, SEEN, FINAL, "stands at 1; 0 commits"),
])
def test_the_judge_of_the_network_sees_what_is_wrong(
    acknowledged: dict[str, list[tuple[int, int]]], seen: list[Event], final: dict[str, int],
    said: str,
) -> None:
    if not said:
        judge(acknowledged, [seen, seen], final)
        return
    with pytest.raises(AssertionError, match=said):
        judge(acknowledged, [SEEN, seen], final)


@pytest.mark.fault(55)
def test_beside_a_client_that_asks_for_pages_without_pause_nobody_is_refused(
    tmp_path: Path,
) -> None:
    figures = hot_client.run(tmp_path, rounds=1, kind="pages", window=0.8)
    answers = figures["answers"]
    assert isinstance(answers, dict)
    assert min(answers.values()) > 0
