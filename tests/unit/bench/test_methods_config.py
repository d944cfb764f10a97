"""The bench of all methods: each moves alpha as far as its own published search can, rate times steps, from the budgets it comes with."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest

from oche.bench.matrix import flat, matrix_from
from oche.data import Whole
from oche.methods import METHODS, budgets, method_named
from oche.optim import Adam
from oche.search.method import Method
from oche.search.searcher import as_searcher

MATRIX = matrix_from(Path(__file__).parents[3] / "benchmarks" / "methods_nb201.toml")
EPOCH = 35
"""Steps of an epoch: batches of 64 out of half of the 4,480 train images."""

LAST = {"gm_nas": (30 * 521, 6 * EPOCH), "rdarts_pick": (50 * 391, 15 * EPOCH)}
"""Steps of the weights where a supernet begins anew, in the last of them alone: (published, here)."""

SPACE = {"pdarts": "darts"}
"""Where the published settings are for another space than NAS-Bench-201, and that has settings of ours."""

NO_CELL = {"single_stage", "ista_nas_one_stage"}
"""Methods that keep the network they searched, several weighted operations on an edge: the table has no such cells."""

VERSIONS = ("darts", "pcdarts", "drnas", "gdas", "beta_darts", "darts_minus")
"""Methods that are run with random features, too."""


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


def here(name: str) -> float:
    """The same of the arm."""
    arm = MATRIX.arm(name)
    base = arm.method.removeprefix("rf_")
    settings = flat(MATRIX.settings) | flat(arm.settings)
    plain = method(base, settings.get("method.T"))
    paper = budgets(base)["paper"][SPACE.get(base, "nb201")]
    searching = 1 - float(str(paper.settings.get("arch_start", plain.arch_start)))
    every = int(str(settings.get("arch_every", plain.arch_every)))
    epochs = arm.epochs or MATRIX.epochs or 0
    steps = EPOCH * epochs * searching * (2 if isinstance(plain.split, Whole) else 1)
    return float(str(settings["arch_optimizer.lr"])) * (LAST[base][1] if base in LAST else steps) / every


def steps_alpha(name: str) -> bool:
    """True if the arm's alpha has a rate: not ZARTS and Shapley-NAS, whose rule gives the step, nor what has no alpha that steps."""
    searcher = as_searcher(method_named(MATRIX.arm(name).method)).method
    return searcher is not None and isinstance(searcher.arch_optimizer, Adam) and searcher.arch_start < 1


@pytest.mark.parametrize("arm", [arm for arm in MATRIX.arms if steps_alpha(arm)])
def test_rate_times_steps_is_the_method_s_own(arm: str) -> None:
    assert here(arm) == pytest.approx(published(MATRIX.arm(arm).method.removeprefix("rf_")), rel=0.02)


def test_every_method_that_finds_a_cell_of_the_table_has_its_row() -> None:
    alone = {name for name in METHODS if not name.startswith("rf_")}
    assert alone - NO_CELL == {name for name in MATRIX.searched if name in METHODS and MATRIX.arm(name).method == name}
    for name in VERSIONS:
        assert MATRIX.arm(f"rf_{name}_fast").method == f"rf_{name}"


def test_rows_have_three_seeds_and_one_budget_but_for_the_test_of_more_steps() -> None:
    other = {name: MATRIX.arm(name).epochs for name in MATRIX.arms if MATRIX.arm(name).epochs}
    assert {name: epochs for name, epochs in other.items() if "_x" not in name} == {"rdarts_pick": 4 * 15}
    for base in ("drnas", "gdas"):
        for times in (2, 4):
            assert other[f"{base}_x{times}"] == other[f"rf_{base}_x{times}_fast"] == times * 15
    assert {MATRIX.seeds_for(name) for name in MATRIX.searched} == {3}


@pytest.mark.parametrize("name", VERSIONS)
def test_a_random_features_version_differs_in_what_learns_alone(name: str) -> None:
    alone, version = (flat(MATRIX.arm(arm).settings) for arm in (name, f"rf_{name}_fast"))
    assert version == {**alone, "trainable.classifier": True, "weight_lr.start": 0.5}
