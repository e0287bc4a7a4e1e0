"""One share of a campaign: so many seconds of it, from where the share before it ended.

A campaign that can go on for ever is a function `share(start, seconds)`: it begins with number
`start` (a seed, an image, a round), takes about that many seconds, and tells where the next share
begins, what it counted and what it found. `make prove` adds the shares up; alone one runs with

    python -m tests.campaign.NAME --start 0 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple


class Share(NamedTuple):
    """`next`: the number that the next share begins with. `counts`: plain numbers that add up over
    shares. `findings`: one line each, with the command that shows the same again."""

    next: int
    counts: dict[str, int]
    findings: list[str]


def numbers(start: int, seconds: float) -> Iterator[int]:
    """`start` and on: at least one, then as many as begin within so many seconds."""
    until = time.monotonic() + seconds
    yield start
    for number in count(start + 1):
        if time.monotonic() >= until:
            return
        yield number


def main(share: Callable[[int, float], Share], doc: str | None) -> None:
    """Run one share and print it as a line of JSON. Exit 1 when it found anything."""
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=int, default=0, help="number to begin with")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to go on")
    args = parser.parse_args()
    done = share(args.start, args.seconds)
    print(json.dumps(done._asdict()))
    for finding in done.findings:
        print(finding, file=sys.stderr)
    sys.exit(1 if done.findings else 0)
