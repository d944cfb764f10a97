"""The lines of a page of results that tell how its searches stand to what costs none: a random cell, and the largest one."""

from __future__ import annotations

from collections.abc import Iterator

from oche.bench.result import BenchResult, Row
from oche.bench.tables import LARGEST
from oche.bench.trial import BEST

RANDOM = "mean of the table"


def standing(result: BenchResult, metric: str) -> Iterator[str]:
    """A line for each of the two: the rows above it, and those whose 95 % interval lies above or below it.

    There is none for what the table lacks. Searches that ask the table for their cells do not count.
    """
    told = [r for r in result.rows if r.metric == metric]
    value = {r.method: r.summary.mean for r in told if r.fixed}
    rows = [r for r in told if not r.fixed and trained(result, r.method)]
    unseen = sum(r.summary.n < result.matrix.seeds_for(r.method) for r in rows)
    few = f", {unseen} of them with seeds that are missing" if unseen else ""
    for name, words in ((RANDOM, "a random cell's, the table's mean of"), (LARGEST, "the largest cell's")):
        if name in value:
            over = sum(r.summary.mean > value[name] for r in rows)
            above, below = (listed(rows, value[name], side) for side in (1, -1))
            yield (
                f"Of {len(rows)} rows of searches with a supernet{few}, {over} have a mean above {words} {value[name]:.2f}. "
                f"With all of a 95 % interval above it: {above}. With all below: {below}."
            )


def trained(result: BenchResult, name: str) -> bool:
    """True if a method or arm trains a supernet: it is no baseline that draws or counts, and asks the table nothing."""
    plain = result.matrix.arm(name).method in ("largest_cell", *result.matrix.baselines)
    return not plain and not any(t.probes.get(BEST) for t in result.finished if t.method == name)


def listed(rows: list[Row], value: float, side: int) -> str:
    """The names of the rows whose interval lies above (side 1) or below (-1) the value."""
    ends = ((r.method, r.summary.interval) for r in rows)
    return ", ".join(name for name, ends in ends if ends and min(side * (end - value) for end in ends) > 0) or "none"
