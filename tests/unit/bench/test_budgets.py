"""Equal budgets in a bench, or said: whatever keeps its weights is trained like the others, and who gets more is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oche import config
from oche.bench import Matrix, run_bench
from oche.bench.result import budgets_said
from oche.run import Run
from reference.small_bench import ToyTable, pretend

pytestmark = pytest.mark.usefixtures("undrawn")

ARMS = Matrix(
    methods=(),
    arms={
        "base": {"method": "darts"},
        "longer": {"method": "darts", "epochs": 3},
        "trained": {"method": "darts", "settings": {"train.epochs": 9}},
    },
    baseline="base",
    baselines=(),
    spaces=("toy",),
    budgets=("smoke",),
    seeds=1,
    epochs=2,
    evaluate="train",
)


def test_arms_with_other_budgets_than_those_beside_them_are_named() -> None:
    search, train = budgets_said(ARMS)
    assert search == "Budgets: not all search for as many epochs: longer for 3, the others for 2."
    assert train.startswith("Budgets: not all networks train alike")
    assert train.endswith(": trained with train.epochs=9.")
    (of,) = budgets_said(
        replace(ARMS, arms={"base": {"method": "darts"}}, settings_of={"base": {"train": {"batch": 8}}})
    )
    assert of.endswith(": base with train.batch=8.")


def test_equal_budgets_need_no_word() -> None:
    equal = replace(ARMS, arms={"base": {"method": "darts", "epochs": 2}}, methods=("pcdarts",))
    assert list(budgets_said(equal)) == []
    same = replace(ARMS, arms={**ARMS.arms, "longer": {"method": "darts"}}, settings={"train.epochs": 9})
    assert list(budgets_said(same)) == []


def test_a_table_s_cells_are_trained_already(matrix: Matrix) -> None:
    assert list(budgets_said(replace(matrix, settings_of={"darts": {"train.epochs": 9}}))) == []


def test_the_result_says_it(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    unequal = replace(matrix, evaluate="both", seeds=1, settings_of={"darts": {"train.epochs": 9}})
    result = run_bench(unequal, tmp_path / "b", table=table, work=pretend)
    assert "darts with train.epochs=9" in result.folder.file(result.folder.MARKDOWN).read_text()


@pytest.mark.slow
def test_a_network_that_was_kept_trains_like_one_that_was_decoded(tmp_path: Path) -> None:
    """`single_stage` hands out its supernet's weights; a bench judges its network as it does any other: from scratch, as long."""
    rows = Matrix(
        methods=("single_stage", "darts"), baseline="single_stage", baselines=(), spaces=("grid",), data=("digits_masks",),
        budgets=("smoke",), seeds=1, epochs=1, batch=8, protocol="smoke", evaluate="train",
    )  # fmt: skip
    result = run_bench(rows, tmp_path / "b")
    assert not result.failures
    trained = [Run(result.folder.file(f"{result.folder.RUNS}/{t.name}/trained")) for t in result.finished]
    asked = [config.loads(run.read(Run.CONFIG).decode(), "run.toml") for run in trained]
    assert len(asked) == 2
    assert asked[0]["train"] == asked[1]["train"]
    seen = [[(r["epoch"], r["lr"]) for r in run.records() if r["kind"] == "train_epoch"] for run in trained]
    assert seen[0] == seen[1]
    assert not any(run.has("start.safetensors") for run in trained)
