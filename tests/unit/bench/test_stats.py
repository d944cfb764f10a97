"""The statistics against scipy, literal formulas and published numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from oche.bench import stats

MEANS = """
DARTS    | 96.92 97.23 | 82.18 82.37 | 93.99 93.87 | 70.66 70.73 | 96.11 96.30
P-DARTS  | 96.62 97.12 | 80.84 82.46 | 91.98 92.45 | 69.87 70.70 | 94.85 95.09
NSGANET  | 96.64 96.18 | 76.27 77.31 | 92.14 92.53 | 68.82 70.20 | 93.92 95.30
ENAS     | 95.84 95.85 | 80.80 78.02 | 93.91 94.54 | 70.96 71.05 | 96.11 96.56
CNAS     | 93.82 94.51 | 76.34 75.66 | 89.23 88.29 | 69.89 69.43 | 93.36 91.04
MANAS    | 97.01 97.18 | 82.24 82.07 | 94.15 94.46 | 70.32 71.36 | 95.91 96.57
StacNAS  | 96.98 97.39 | 81.26 83.59 | 94.14 94.50 | 71.09 71.13 | 96.47 96.31
NAO      | 96.46 96.88 | 81.70 81.69 | 88.05 86.24 | 66.10 65.09 | 93.83 93.71
"""  # random, then method: CIFAR-10, CIFAR-100, Sport8, MIT67, Flowers102 (Yang et al., from their CSV files)

IMPROVEMENTS = """
DARTS    0.32 0.23 -0.13 0.10 0.20
P-DARTS  0.52 2.00 0.51 1.19 0.25
NSGANET  -0.48 1.37 0.43 2.00 1.47
ENAS     0.01 -3.44 0.67 0.13 0.47
CNAS     0.74 -0.89 -1.06 -0.66 -2.48
MANAS    0.18 -0.20 0.33 1.48 0.70
StacNAS  0.43 2.87 0.38 0.05 -0.16
NAO      0.44 -0.01 -2.05 -1.53 -0.13
"""


def published() -> list[tuple[str, float, float, float]]:
    """(method, random mean, method mean, published RI)."""
    means = {line.split("|")[0].strip(): line.split("|")[1:] for line in MEANS.strip().splitlines()}
    rows = {line.split()[0]: line.split()[1:] for line in IMPROVEMENTS.strip().splitlines()}
    return [
        (name, *map(float, pair.split()), float(ri))  # type: ignore[misc]
        for name, pairs in means.items()
        for pair, ri in zip(pairs, rows[name], strict=True)
    ]


def test_relative_improvement_reproduces_the_published_table() -> None:
    cases = published()
    assert len(cases) == 40
    for name, random, method, expected in cases:
        # the listed means are rounded to 0.005, which moves RI by at most 0.011 at these accuracies; RI itself is rounded too
        margin = 100 * 0.01 / random + 0.0051
        assert abs(stats.relative_improvement(method, random) - expected) <= margin, name


def test_a_summary_by_hand() -> None:
    found = stats.summary([90.0, 92.0, 94.0, 96.0])
    assert (found.n, found.mean, found.best) == (4, 93.0, 96.0)
    assert found.std == pytest.approx(math.sqrt(20 / 3))
    alone = stats.summary([90.0])
    assert (alone.std, alone.interval) == (None, None)
    assert stats.mean_interval([91.0, 91.0]) == (91.0, 91.0)


@pytest.mark.parametrize(("n", "seed"), [(3, 0), (4, 1), (8, 2), (40, 3)])
def test_the_interval_is_scipys(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(93, 1, n).tolist()
    theirs = scipy_stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    assert stats.mean_interval(values) == (theirs.low, theirs.high)


def test_the_interval_is_near_students_for_many_normal_values() -> None:
    values = np.random.default_rng(5).normal(93, 1, 60)
    low, high = stats.mean_interval(values.tolist()) or (0.0, 0.0)
    student = scipy_stats.t.interval(0.95, 59, values.mean(), scipy_stats.sem(values))
    assert abs(low - student[0]) < 0.05
    assert abs(high - student[1]) < 0.05


def test_the_improvements_interval_equals_all_resamples_of_pairs() -> None:
    """With three pairs there are 27 resamples, equally likely: the exact percentiles are known."""
    method, random = [92.0, 93.0, 95.0], [90.0, 92.0, 91.0]
    every = []
    for picks in itertools.product(range(3), repeat=3):
        m, r = np.mean([method[i] for i in picks]), np.mean([random[i] for i in picks])
        every.append(100 * (m - r) / r)
    low, high = stats.improvement_interval(method, random, paired=True) or (0.0, 0.0)
    assert min(every) <= low <= sorted(every)[1] + 1e-9  # each corner is one of 27: 3.7 %, more than the 2.5 % cut off
    assert sorted(every)[-2] - 1e-9 <= high <= max(every)
    assert stats.improvement_interval([92.0], random, paired=False) is None
    assert stats.improvement_interval([90.0, 90.0], [80.0, 80.0], paired=True) == (12.5, 12.5)


def test_equal_seeds_are_tested_in_pairs() -> None:
    method, random = {0: 92.0, 1: 93.5, 2: 95.0, 3: 91.0}, {3: 90.2, 2: 91.0, 1: 92.0, 0: 90.0}
    found = stats.significance(method, random)
    assert found is not None
    assert (found.t_name, found.rank_name) == ("paired t", "Wilcoxon")
    m, r = zip(*((method[s], random[s]) for s in range(4)), strict=True)
    assert found.t_p == pytest.approx(scipy_stats.ttest_rel(m, r).pvalue)
    assert found.rank_p == pytest.approx(2 / 2**4)  # all four signs agree: two of the sixteen sign patterns


def test_other_seeds_are_tested_as_samples() -> None:
    method, random = {0: 92.0, 1: 93.5, 2: 95.0}, {0: 90.0, 1: 92.0, 2: 91.0, 3: 90.2}
    found = stats.significance(method, random)
    assert found is not None
    assert (found.t_name, found.rank_name) == ("Welch's t", "Mann-Whitney")
    m, r = list(method.values()), list(random.values())
    welch = (np.mean(m) - np.mean(r)) / np.sqrt(np.var(m, ddof=1) / 3 + np.var(r, ddof=1) / 4)
    freedom = (np.var(m, ddof=1) / 3 + np.var(r, ddof=1) / 4) ** 2 / (
        (np.var(m, ddof=1) / 3) ** 2 / 2 + (np.var(r, ddof=1) / 4) ** 2 / 3
    )
    assert found.t_p == pytest.approx(2 * scipy_stats.t.sf(abs(welch), freedom))


@pytest.mark.parametrize(
    ("method", "random", "expected"),
    [
        ({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, 1.0),
        ({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0}, 0.0),  # always one more
        ({0: 2.0, 1: 2.0}, {2: 2.0, 3: 2.0}, 1.0),
        ({0: 2.0, 1: 2.0}, {2: 1.0, 3: 1.0}, 0.0),
    ],
)
def test_values_without_spread_have_a_p_value(
    method: dict[int, float], random: dict[int, float], expected: float
) -> None:
    found = stats.significance(method, random)
    assert found is not None
    assert found.t_p == expected


def test_one_seed_proves_nothing() -> None:
    assert stats.significance({0: 1.0}, {0: 2.0, 1: 3.0}) is None
