"""The statistics against scipy, literal formulas and published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
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
        found = stats.relative_improvement(method, random)
        assert found is not None
        assert abs(found - expected) <= margin, name


@pytest.mark.parametrize("baseline", [0.0, -10.1])
def test_there_is_no_improvement_over_a_score_that_is_not_positive(baseline: float) -> None:
    """R2 of -7.2 over -10.1 would be "-29 %", though it is better."""
    assert stats.relative_improvement(-7.2, baseline) is None
    method = {0: -7.0, 1: -7.2, 2: -7.4}
    assert stats.improvement_interval(method, dict.fromkeys(method, baseline)) is None


def test_a_summary_by_hand() -> None:
    found = stats.summary([90.0, 92.0, 94.0, 96.0])
    assert (found.n, found.mean, found.best) == (4, 93.0, 96.0)
    assert found.std == pytest.approx(math.sqrt(20 / 3))
    half = 3.182446 * math.sqrt(20 / 3) / 2  # Student's quantile for three degrees of freedom, from a printed table
    assert found.interval == pytest.approx((93.0 - half, 93.0 + half), abs=1e-5)
    alone = stats.summary([90.0])
    assert (alone.std, alone.interval) == (None, None)


@pytest.mark.parametrize("values", [[91.0], [91.0, 95.0], [91.0, 91.0, 91.0], [0.1 + 0.2, 0.3, 0.3]])
def test_too_few_or_equal_numbers_have_no_interval(values: list[float]) -> None:
    assert stats.mean_interval(values) is None


def test_an_improvement_s_interval_is_that_of_the_difference_where_the_baseline_is_known() -> None:
    """Without spread in the baseline, RI is a linear function of the method's mean, and so are the ends."""
    method = {0: 92.0, 1: 93.0, 2: 95.0}
    low, high = stats.mean_interval([92.0, 93.0, 95.0]) or (0.0, 0.0)
    ends = stats.improvement_interval(method, dict.fromkeys(method, 80.0))
    assert ends == pytest.approx((100 * (low - 80) / 80, 100 * (high - 80) / 80))


def test_an_improvement_s_interval_is_near_that_of_all_resamples_of_many_pairs() -> None:
    rng = np.random.default_rng(0)
    r = rng.normal(85, 3, 200)
    m = r + rng.normal(4, 2, 200)
    low, high = stats.improvement_interval(dict(enumerate(m)), dict(enumerate(r))) or (0.0, 0.0)
    picks = rng.integers(0, 200, (4000, 200))
    resampled = 100 * (m[picks].mean(1) / r[picks].mean(1) - 1)
    assert (low, high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.06)


def test_differences_are_over_the_seeds_that_both_have() -> None:
    method, random = {0: 92.0, 1: 93.5, 2: 95.0, 3: 91.0, 8: 1.0}, {3: 90.2, 2: 91.0, 1: 92.0, 0: 90.0, 9: 99.0}
    found = stats.difference(method, random)
    assert found is not None
    m, r = zip(*((method[s], random[s]) for s in range(4)), strict=True)
    theirs = scipy_stats.ttest_rel(m, r)
    assert (found.n, found.mean) == (4, pytest.approx(np.mean(np.subtract(m, r))))
    assert found.t_p == pytest.approx(theirs.pvalue)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.rank_p == pytest.approx(2 / 2**4)  # all four signs agree: two of the sixteen sign patterns
    assert stats.difference({0: 1.0}, {1: 2.0}) is None


@pytest.mark.parametrize(
    ("method", "random", "p", "verdict"),
    [
        ({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 2.0, 2: 3.0}, 1.0, "not told apart"),
        (
            dict.fromkeys(range(3), 2.0),
            dict.fromkeys(range(3), 1.0),
            0.25,
            "not told apart",
        ),  # three signs prove nothing
        (dict.fromkeys(range(6), 2.0), dict.fromkeys(range(6), 1.0), 1 / 32, "better"),
        (dict.fromkeys(range(6), 0.5), dict.fromkeys(range(6), 1.0), 1 / 32, "worse"),
        ({0: 90.0, 1: 95.0}, {0: 1.0, 1: 2.0}, None, "no verdict: fewer than 3 seeds"),
    ],
)
def test_without_spread_signs_decide_and_two_seeds_decide_nothing(
    method: dict[int, float], random: dict[int, float], p: float | None, verdict: str
) -> None:
    found = stats.difference(method, random)
    assert found is not None
    assert (found.t_p, found.verdict) == (p, verdict)


def test_the_one_rule_is_the_interval_for_one_comparison() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        found = stats.difference(dict(enumerate(rng.normal(1, 1, 4))), dict(enumerate(rng.normal(0, 1, 4))))
        assert found is not None
        assert found.interval is not None
        low, high = found.interval
        assert found.verdict == ("better" if low > 0 else "worse" if high < 0 else "not told apart")


def test_holm_against_its_definition() -> None:
    """Step by step: the smallest p against level / m, the next against level / (m - 1), and so on, until one is not below."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        p, level = rng.uniform(0, 0.1, 6), 0.05
        rejected = set()
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > level / (len(p) - rank):
                break
            rejected.add(int(i))
        assert {i for i, q in enumerate(stats.holm(p.tolist())) if q <= level} == rejected


def test_holm_against_statsmodels() -> None:
    theirs = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed")
    rng = np.random.default_rng(7)
    for size in (1, 2, 9):
        p = rng.uniform(0, 0.3, size)
        assert stats.holm(p.tolist()) == pytest.approx(theirs.multipletests(p, method="holm")[1])


def test_pairs_and_baseline_are_corrected_for_as_many_as_were_tested() -> None:
    rng = np.random.default_rng(3)
    values = {name: dict(enumerate(rng.normal(mu, 1, 5))) for name, mu in (("a", 3), ("b", 0), ("c", 0))}
    values["few"] = {0: 1.0, 1: 5.0}
    found = stats.against(values, "b")
    assert found.keys() == {"a", "c", "few"}
    raw = [found[name].t_p or 0.0 for name in ("a", "c")]
    assert [found[name].holm for name in ("a", "c")] == pytest.approx(
        [min(1.0, max(2 * min(raw), p if p > min(raw) else 0)) for p in raw]
    )
    assert found["few"].holm is None
    pairs = stats.all_pairs(values)
    assert set(pairs) == {("a", "b"), ("a", "c"), ("a", "few"), ("b", "c"), ("b", "few"), ("c", "few")}
    tested = [pair for pair, of in pairs.items() if of.t_p is not None]
    assert set(tested) == {("a", "b"), ("a", "c"), ("b", "c")}
    least = min(tested, key=lambda pair: pairs[pair].t_p or 0.0)
    assert pairs[least].holm == pytest.approx(3 * (pairs[least].t_p or 0.0))


def test_mean_ranks_against_a_printed_critical_difference() -> None:
    """Demsar 2006, section 3.2.2: four classifiers on fourteen data sets, q = 2.569, a critical difference of 1.25."""
    rng = np.random.default_rng(4)
    values = {name: dict(enumerate(rng.normal(0, 1, 14))) for name in "abcd"}
    found = stats.mean_ranks(values)
    assert found is not None
    ranks, critical, blocks = found
    assert (blocks, round(critical, 2)) == (14, 1.25)
    assert sum(ranks.values()) == pytest.approx(4 * 5 / 2)
    by_hand = np.mean([1 + sum(values[o][s] > values["a"][s] for o in "bcd") for s in range(14)])
    assert ranks["a"] == pytest.approx(by_hand)
    assert stats.mean_ranks({"a": {0: 1.0}, "b": {0: 1.0}, "c": {0: 2.0}}) is None


# ------------------------------------------------------------------ how often the intervals hold


def held(draw: Callable[[np.random.Generator], NDArray[np.float64]], truth: float, times: int = 3000) -> float:
    """The share of samples whose interval holds the truth, of those that have one."""
    rng = np.random.default_rng(5)
    ends = [found for _ in range(times) if (found := stats.mean_interval(draw(rng).tolist()))]
    return float(np.mean([low <= truth <= high for low, high in ends]))


@pytest.mark.parametrize("n", [3, 5, 8])
def test_intervals_of_normal_values_hold_as_often_as_they_say(n: int) -> None:
    assert 0.93 <= held(lambda rng: rng.normal(93, 1, n), 93) <= 0.97


def test_intervals_of_skewed_and_two_humped_values_hold_less_often() -> None:
    """What docs/bench.md states: a search that ends well or collapses has two humps, and three seeds often see one of them."""
    skewed = {n: held(lambda rng, n=n: -rng.lognormal(0, 1, n), -math.exp(0.5)) for n in (3, 8)}  # type: ignore[misc]
    humps = {
        n: held(lambda rng, n=n: np.where(rng.random(n) < 0.3, 54.3, 93) + rng.normal(0, 0.3, n), 0.3 * 54.3 + 0.7 * 93)  # type: ignore[misc]
        for n in (3, 8)
    }
    assert 0.78 <= skewed[3] <= 0.88
    assert 0.82 <= skewed[8] <= 0.90
    assert 0.55 <= humps[3] <= 0.68
    assert 0.90 <= humps[8] <= 0.97


def test_an_improvement_s_interval_holds_for_normal_values() -> None:
    rng, truth, found = np.random.default_rng(6), 100 * (93 - 87) / 87, []
    for _ in range(1500):
        m, r = dict(enumerate(rng.normal(93, 1, 3))), dict(enumerate(rng.normal(87, 3, 3)))
        low, high = stats.improvement_interval(m, r) or (0.0, 0.0)
        found.append(low <= truth <= high)
    assert 0.93 <= np.mean(found) <= 0.97
