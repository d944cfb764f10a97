"""Baselines that cost no search: the best of n random cells, the largest cell, and random cells as large as the one that was found.

With N cells of which no two score the same, the best of n that are drawn without repetition is the k-th from below with probability

    P(k) = C(k - 1, n - 1) / C(N, n),    P(best is among the k lowest) = C(k, n) / C(N, n) = prod_{j<n} (k - j) / (N - j)

so its expected value by any other metric is a weighted mean over the table, and nothing is sampled. Cells that score the same share
what falls to them. Cells without a score are never drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from oche.tables import TableLike

Numbers = NDArray[np.float64]

MOST = 200
"""The largest n that a bench looks up."""

RIVALS = 10
"""Random cells of a found cell's size of which the best by validation stands beside it (our choice)."""


def chances(scores: Numbers, most: int) -> Iterator[Numbers]:
    """(N,) for n = 1, 2, ... `most`: each cell's probability of being the best by `scores` of n cells drawn without repetition.

    Where fewer cells have a score, the last n is their number.
    """
    known = np.flatnonzero(np.isfinite(scores))
    order = known[np.argsort(scores[known], kind="stable")]
    _, tied, counts = np.unique(scores[order], return_inverse=True, return_counts=True)
    count, among = len(order), np.ones(len(order) + 1)  # P(best of n is among the k lowest), k = 0 ... N
    among[0] = 0.0
    for j in range(min(most, count)):
        if j:
            among *= np.maximum(np.arange(count + 1) - j, 0) / (count - j)
        else:
            among = np.arange(count + 1) / count
        shared = np.bincount(tied, np.diff(among)) / counts
        found = np.zeros(len(scores))
        found[order] = shared[tied]
        yield found


def best_of(scores: Numbers, values: Numbers, most: int = MOST) -> list[tuple[float, float]]:
    """For n = 1, 2, ... `most` the mean and standard deviation of the value of the best of n random cells by `scores`.

    >>> round(best_of(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 60.0]), 2)[0][0], 9)
    30.0
    """
    found = []
    for weights in chances(np.where(np.isfinite(values), scores, np.nan), most):
        mean = float(np.nansum(weights * values))
        spread = float(np.nansum(weights * (values - mean) ** 2)) ** 0.5
        found.append((mean, spread))
    return found


def size_metric(table: TableLike, metric: str) -> str | None:
    """The table's parameters of networks for the data set of a metric: `cifar10/parameters` for `cifar10/test`."""
    name = f"{metric.partition('/')[0]}/parameters"
    return name if name in table.metrics else None


def by_size(sizes: Numbers, scores: Numbers, values: Numbers) -> dict[str, float]:
    """Number of parameters -> mean value of the best by `scores` of `RIVALS` random cells that have as many.

    Where fewer have as many, of all of them.
    """
    found = {}
    for size in np.unique(sizes[np.isfinite(sizes)]):
        same = np.flatnonzero(sizes == size)
        if means := best_of(scores[same], values[same], RIVALS):
            found[f"{size:.0f}"] = means[-1][0]
    return found
