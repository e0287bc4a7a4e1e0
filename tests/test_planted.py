"""The planted bugs themselves: each fits the present tree, and the check of them can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign import planted_bugs
from tests.campaign.planted_bugs import PATCHES, ROOT, Bug, Hunk, bugs, changed, parse

ENGINE = "ckptmesh/engine.py"
QUICK = ("tests/unit/test_stats.py",)


def named(name: str) -> Bug:
    return next(bug for bug in bugs() if bug.name == name)


@pytest.mark.parametrize("path", sorted(PATCHES.glob("*.patch")), ids=lambda path: path.stem)
def test_the_patch_fits_the_present_tree_and_says_what_it_breaks(path: Path) -> None:
    bug = parse(path.stem, path.read_text(encoding="utf-8"))
    for file in bug.hint:
        assert (ROOT / file).exists(), f"{bug.name} hints at {file}"
    for file, text in changed(bug, ROOT).items():
        assert file.startswith("ckptmesh/")
        compile(text, file, "exec")


def test_there_are_enough_of_them_numbered_without_gaps_each_with_a_sentence_of_its_own() -> None:
    found = bugs()
    assert len(found) >= 20
    assert [bug.name[:2] for bug in found] == [f"{n:02}" for n in range(1, len(found) + 1)]
    assert len({bug.bug for bug in found}) == len(found)
    assert all(bug.bug.endswith(".") for bug in found)


def test_a_patch_without_its_header_or_without_a_change_is_refused() -> None:
    whole = (PATCHES / "08-gap-repair-off.patch").read_text(encoding="utf-8")
    for broken in (whole.replace("# breaks:", "# broken:"), "\n" + whole,
                   whole.partition("--- a/")[0], whole.replace("\n-", "\n?")):
        with pytest.raises(ValueError, match="08"):
            parse("08", broken)


def test_a_patch_of_lines_that_do_not_stand_there_once_is_refused() -> None:
    line = "    def close(self) -> None:\n"
    for old, count in (("no such line\n", 0), ("    @property\n", 2)):
        bug = Bug("x", "x", "x", (), (Hunk(ENGINE, old, ""),))
        with pytest.raises(ValueError, match=rf"stand {count} times"):
            changed(bug, ROOT)
    assert line not in changed(Bug("x", "", "", (), (Hunk(ENGINE, line, ""),)), ROOT)[ENGINE]


def test_a_bug_is_caught_by_the_first_test_that_fails() -> None:
    bug = named("06-ttl-by-wall-clock")
    verdict = planted_bugs.check(bug, rooms=())
    assert verdict.trouble == ""
    assert verdict.test.startswith("tests/unit/test_clock.py::test_")
    assert f"| `{verdict.test}` |" in planted_bugs.table([verdict])


def test_what_breaks_nothing_is_not_caught_and_stands_so_in_share_and_table(
        monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = Bug("00-harmless", "A comment.", "nothing", QUICK, (
        Hunk("ckptmesh/stats.py", "from __future__ import annotations\n",
             "from __future__ import annotations  # changed\n"),))
    monkeypatch.setattr(planted_bugs, "bugs", lambda: [harmless])
    monkeypatch.setattr(planted_bugs, "ROOMS", ())
    share = planted_bugs.share(0, 0)
    assert (share.next, share.counts) == (1, {"planted": 1, "caught": 0})
    assert planted_bugs.share(1, 60).next == 1, "behind the last there is nothing left"
    assert "00-harmless: no test failed" in share.findings[0]
    page = planted_bugs.table([planted_bugs.Verdict(harmless, "", 1.0, "no test failed")])
    assert "Planted: 1. Caught: 0." in page
    assert "**not caught**: no test failed" in page


def test_a_patch_that_does_not_import_or_only_breaks_names_catches_nothing() -> None:
    for old, new, said in (
        ("from collections import Counter\n", "from collections import NoCounter\n",
         "a bad patch: it does not import"),
        ("        self.count += 1\n", "        self.count += one\n",
         "a bad patch: NameError"),
    ):
        hunk = Hunk("ckptmesh/stats.py", old, new)
        verdict = planted_bugs.check(Bug("00", "x", "x", QUICK, (hunk,)), rooms=())
        assert (verdict.test, verdict.trouble[:len(said)]) == ("", said)
