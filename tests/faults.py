"""The faults by number, and docs/faults.md, which is made from them and from the tests' markers.

    python -m tests.faults

A test answers for a fault when it carries `@pytest.mark.fault(N)`: itself, its class, its module
(`pytestmark`), or one of its parameters. Nothing is imported and nothing is run to find them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
SHOWN = 3  # tests in a row of the page; the others are counted


class Fault(NamedTuple):
    """What may go wrong, and what must happen then."""

    what: str
    outcome: str


GROUPS: dict[str, dict[int, Fault]] = {
    "Process": {
        1: Fault("store killed before the write", "absent"),
        2: Fault("killed between write and sync", "whole or absent"),
        3: Fault("killed after the sync, before the reply",
                 "there; a retry gets the first outcome"),
        4: Fault("killed after the reply, before the publication", "watchers ask for it"),
        5: Fault("killed at any step of a compaction", "the old files or the new ones"),
        6: Fault("killed during recovery, again and again", "the same state"),
        7: Fault("broker killed", "clients try again; nothing is applied twice"),
        8: Fault("process stopped beyond its lease, then continued", "its late commit is refused"),
        9: Fault("second process on a directory or an address", "`DirectoryInUse`, `AddressInUse`"),
        10: Fault("`LOCK` unlinked or replaced", "the holder notices and stops"),
        11: Fault("client dies with a lease", "it expires; the next token is greater"),
        12: Fault("a forked child uses its parent's client", "a clear error"),
    },
    "Disk": {
        13: Fault("short write", "continued, else poisoned"),
        14: Fault("I/O error on a write", "poisoned"),
        15: Fault("I/O error on a sync, once, then success", "still poisoned"),
        16: Fault("I/O error on the sync of a directory",
                  "poisoned; the next start finds all that was acknowledged"),
        17: Fault("no space for the log", "refused, nothing broken; goes on when there is room"),
        18: Fault("no space for a snapshot", "the old one stays"),
        19: Fault("file system becomes read-only", "poisoned"),
        20: Fault("log cut at any byte of its tail", "a torn tail"),
        21: Fault("any subset of the sectors of the last frame written", "a torn tail, or whole"),
        22: Fault("garbage after the last frame; zeroes", "torn; clean"),
        23: Fault("a bit flipped anywhere before", "`Corrupt`, with file and offset"),
        24: Fault("a sealed segment missing, doubled or swapped", "`Corrupt`"),
        25: Fault("a segment of another store", "refused"),
        26: Fault("a rename that was lost", "recovered"),
        27: Fault("a bit flipped in a snapshot", "the one before is used"),
        28: Fault("a sync that takes seconds", "clients wait; no lease ends for it"),
        29: Fault("restore to any revision", "the state of that revision"),
    },
    "Network": {
        30: Fault("request lost", "asked again, applied once"),
        31: Fault("reply lost", "asked again, applied once, told the first outcome"),
        32: Fault("messages doubled or in another order", "applied once"),
        33: Fault("half-open connection", "found and replaced; what is in doubt can be resolved"),
        34: Fault("client cut off", "its lease ends; its late commit is refused"),
        35: Fault("publications lost or too many", "a gap is seen and filled"),
        36: Fault("a subscriber that joins late", "likewise"),
        37: Fault("broker restarts, everybody subscribes anew", "all are heard again"),
        38: Fault("reply of an old epoch", "dropped"),
        39: Fault("reply that leads nowhere", "dropped and counted"),
    },
    "Clock": {
        40: Fault("clock a year ahead", "running: nothing ends early; at a start: `ClockSuspect`"),
        41: Fault("clock goes back", "times and tokens still grow"),
        42: Fault("a client's clock is wrong", "no effect"),
        43: Fault("restart during a lease", "its full time again"),
        44: Fault("machine suspended", "the token still fences"),
    },
    "Input": {
        45: Fault("envelope cut or changed", "a typed error, for that peer only"),
        46: Fault("nesting beyond the limit", "refused before it is unpacked"),
        47: Fault("megabytes of tiny containers", "refused in bounded memory"),
        48: Fault("NaN, integers of 2^64 and up, bad UTF-8, extension types", "refused"),
        49: Fault("keys that only look alike, such as 1, 1.0 and true; doubled keys", "refused"),
        50: Fault("wrong number of frames, unknown version", "dropped; `Unsupported`"),
        64: Fault("control characters in a key", "`InvalidKey`"),
    },
    "Resources": {
        51: Fault("descriptors used up by half-open connections",
                  "those who are there go on, others come in once these are cut off"),
        52: Fault("too little memory", "bounded before the log"),
        53: Fault("floods of sessions, leases, watchers", "`QuotaExceeded`, or the idlest goes"),
        54: Fault("a reader slower than its scan", "bounded; it asks again for what is beyond"),
        55: Fault("one client that asks without pause", "the others are answered in few batches"),
    },
}
ROWS = {number: fault for group in GROUPS.values() for number, fault in group.items()}
BESIDE = {61}  # answered for in tests, though its group does not exist yet

_HEAD = """\
# Faults

What may go wrong, numbered, what must happen then, and the tests that show it. For every fault it
must hold: each acknowledged operation is visible, each unacknowledged one is whole or absent, and
nothing takes effect twice. Numbers are never reused. What is torn, poisoned or fenced stands in the
[glossary](glossary.md).

Made by `python -m tests.faults` from the tests' markers; change a row in `tests/faults.py`. A test
that answers for a fault carries `@pytest.mark.fault(N)`; to see all: `grep -rn "fault(17)" tests`.
"""
_FOOT = """
## Security

61, a request sent again by a stranger, is answered as any copy is. 56 to 60, 62 and 63 belong to
authentication, authorization and an audit log, which do not exist yet.
"""


class Answer(NamedTuple):
    """A test that answers for a fault."""

    path: str  # below the root, with slashes
    name: str

    @property
    def link(self) -> str:
        words = self.name.removeprefix("test_").replace("_", " ")
        return f"[{words}](../{self.path})"


# --- from the tests ---------------------------------------------------------------------------


def answers(root: Path = ROOT) -> dict[int, list[Answer]]:
    """All tests that answer for a fault, by its number: by file, then as they stand there."""
    found: dict[int, list[Answer]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        where = path.relative_to(root).as_posix()
        for name, numbers in marked(ast.parse(path.read_text())):
            for number in sorted(numbers):
                found.setdefault(number, []).append(Answer(where, name))
    return found


def marked(module: ast.Module) -> Iterator[tuple[str, set[int]]]:
    """Each test of a module that carries a marker of a fault, and the numbers."""
    constants = {target.id: node.value for node in module.body if isinstance(node, ast.Assign)
                 for target in node.targets if isinstance(target, ast.Name)}
    yield from _marked_in(module.body, _numbers(constants.get("pytestmark"), {}), constants)


def _marked_in(body: list[ast.stmt], outer: set[int], constants: dict[str, ast.expr]
               ) -> Iterator[tuple[str, set[int]]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _marked_in(node.body, outer | _decorated(node, constants), constants)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            numbers = outer | _decorated(node, constants)
            if node.name.startswith("test_") and numbers:
                yield node.name, numbers


def _decorated(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
               constants: dict[str, ast.expr]) -> set[int]:
    return {n for decorator in node.decorator_list for n in _numbers(decorator, constants)}


def _numbers(where: ast.expr | None, constants: dict[str, ast.expr]) -> set[int]:
    """The numbers of all `pytest.mark.fault(N)` in an expression, and in the constants of the
    module that it names, such as a list of parameters."""
    found: set[int] = set()
    for node in ast.walk(where) if where is not None else ():
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            found.add(int(ast.literal_eval(node.args[0])))
        elif isinstance(node, ast.Name) and node.id in constants:
            found |= _numbers(constants[node.id], {})
    return found


# --- to the page ------------------------------------------------------------------------------


def page(tests: dict[int, list[Answer]]) -> str:
    """The text of docs/faults.md. Raises `ValueError` for a marker of no fault, and for a fault
    without a test."""
    unknown = sorted(set(tests) - set(ROWS) - BESIDE)
    if unknown:
        raise ValueError(f"tests answer for faults that are none: {unknown}")
    bare = sorted(set(ROWS) - set(tests))
    if bare:
        raise ValueError(f"no test answers for the faults {bare}")
    parts = [_HEAD]
    for group, rows in GROUPS.items():
        parts.append(f"\n## {group}\n\n| | fault | what must happen | tests |\n|---|---|---|---|\n")
        parts += [f"| {number} | {fault.what} | {fault.outcome} | {_links(tests[number])} |\n"
                  for number, fault in rows.items()]
    return "".join([*parts, _FOOT])


def _links(tests: list[Answer]) -> str:
    """Some of the tests, of as many files as there are, and the number of the others."""
    turns: dict[str, int] = {}
    ranked = []
    for test in tests:
        turns[test.path] = turns.get(test.path, 0) + 1
        ranked.append((turns[test.path], test))
    shown = [test for _, test in sorted(ranked, key=lambda each: each[0])[:SHOWN]]
    more = len(tests) - len(shown)
    return "; ".join(test.link for test in shown) + (f"; and {more} more" if more else "")


def main() -> None:
    PAGE.write_text(page(answers()))


if __name__ == "__main__":
    main()
