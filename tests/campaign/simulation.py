"""Simulated worlds, seed after seed: see `ckptmesh.testing.simulation`. What their clients saw is
also held against the black-box checker of linearizability, which knows nothing of the judge.

    python -m tests.campaign.simulation --start 0 --seconds 60
"""

from __future__ import annotations

import time
from collections import Counter

from ckptmesh.testing.checkers import Inconclusive, NotLinearizable, check_linearizable
from ckptmesh.testing.simulation import history_of, make, simulate
from tests.campaign.shares import Share, main


def share(start: int, seconds: float) -> Share:
    """Simulate the seeds from `start` on."""
    end = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    findings: list[str] = []
    seed = start
    while time.monotonic() < end:
        report = simulate(make(seed))
        counts["seeds"] += 1
        counts["simulated_seconds"] += round(report.seconds)
        counts["revisions"] += report.revisions
        counts["operations"] += len(report.operations)
        for site, count in report.sites.items():
            counts[f"fault: {site}"] += count
        verdict = check_linearizable(history_of(report.operations))
        counts["histories_checked"] += 1
        counts["histories_inconclusive"] += isinstance(verdict, Inconclusive)
        if isinstance(verdict, NotLinearizable):
            findings.append(f"seed {seed} is not linearizable: {verdict}")
        if report.violation:
            findings.append(f"python -m ckptmesh.testing.simulation {seed} --shrink: "
                            f"{report.violation}")
        seed += 1
    return Share(seed, dict(counts), findings)


if __name__ == "__main__":
    main(share, __doc__)
