"""The bench of all methods: each moves alpha as far as its own published search can, rate times steps, from the budgets it comes with."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest

from oche.bench.matrix import flat, matrix_from
from oche.data import Whole
from oche.methods import budgets, method_named
from oche.optim import Adam
from oche.search.method import Method
from oche.search.searcher import as_searcher

MATRIX = matrix_from(Path(__file__).parents[3] / "benchmarks" / "methods_nb201.toml")
HERE = 30 * 35
"""Steps of a search: batches of 64 out of half of the 4,480 train images, for 30 epochs."""

LAST = {"gm_nas": (30 * 521, 12 * 35)}
"""Alpha's steps where a supernet begins anew, in the last of them alone: (published, here)."""

SPACE = {"pdarts": "darts"}
"""Where the published settings are for another space than NAS-Bench-201, and that has settings of ours."""


def method(name: str, T: object = None) -> Method:
    found = as_searcher(method_named(name, {"T": T} if T else {})).method
    assert found is not None
    return found


def published(name: str) -> float:
    """Alpha's rate times the number of its steps, as published."""
    plain, budget = method(name), budgets(name)["paper"][SPACE.get(name, "nb201")]
    assert isinstance(plain.arch_optimizer, Adam)
    rate = float(str(budget.settings.get("arch_optimizer.lr", plain.arch_optimizer.lr)))
    if name in LAST:
        return rate * LAST[name][0]
    searching = 1 - float(str(budget.settings.get("arch_start", plain.arch_start)))
    images = 50_000 if isinstance(plain.split, Whole) else 25_000
    return rate * budget.epochs * searching * ceil(images / budget.batch) / plain.arch_every


def here(arm: str) -> float:
    """The same of the arm."""
    name = MATRIX.arm(arm).method.removeprefix("rf_")
    settings = flat(MATRIX.settings) | flat(MATRIX.arm(arm).settings)
    plain = method(name, settings.get("method.T"))
    paper = budgets(name)["paper"][SPACE.get(name, "nb201")]
    searching = 1 - float(str(paper.settings.get("arch_start", plain.arch_start)))
    every = int(str(settings.get("arch_every", plain.arch_every)))
    steps = HERE * searching / every * (2 if isinstance(plain.split, Whole) else 1)
    return float(str(settings["arch_optimizer.lr"])) * (LAST[name][1] if name in LAST else steps)


ARMS = [
    arm
    for arm in MATRIX.arms
    if (m := as_searcher(method_named(MATRIX.arm(arm).method)).method)
    and isinstance(m.arch_optimizer, Adam)
    and m.arch_start < 1
]
"""Those whose alpha has a rate: not ZARTS and Shapley-NAS, whose rule gives the step, nor what has no alpha that steps."""


@pytest.mark.parametrize("arm", ARMS)
def test_rate_times_steps_is_the_method_s_own(arm: str) -> None:
    assert here(arm) == pytest.approx(published(MATRIX.arm(arm).method.removeprefix("rf_")), rel=0.02)
