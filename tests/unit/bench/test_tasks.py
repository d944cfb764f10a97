"""Benches and studies of data that are neither classes nor masks: labels, and numbers."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from oche.bench import Matrix, run_bench
from oche.bench.matrix import TRAINED_TEST, TRAINED_VAL
from oche.run import Run
from oche.study import run_study, study_from

pytestmark = pytest.mark.usefixtures("undrawn")
SETTINGS = {"train.epochs": 1, "train.batch": 8}
STUDY = """
methods = []
spaces = ["toy"]
budgets = ["smoke"]
epochs = 1
batch = 8
seeds = 1
baseline = "soft"
baselines = []
protocol = "smoke"
arms.soft = {method = "darts"}

[measure]
decodings = ["op"]
sweep = []
tuned = []
batches = 2

[roles]
single = "soft"
"""


@pytest.fixture(params=["mean_f1", "r2"])
def task(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """(metric, path) of images with several labels each, or with two numbers each."""
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 3)) < 0.4).astype("i8") if request.param == "mean_f1" else rng.random((40, 2))
    np.savez(tmp_path / "data.npz", x=rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), y=labels)
    return request.param, str(tmp_path / "data.npz")


def test_a_bench_reports_the_task_s_score(task: tuple[str, str], tmp_path: Path) -> None:
    metric, data = task
    matrix = Matrix(
        methods=("darts",), baselines=("random_sampling",), baseline="random_sampling", spaces=("toy",), data=(data,), budgets=("smoke",),
        seeds=1, epochs=1, batch=8, protocol="smoke", settings=SETTINGS,
    )  # fmt: skip
    result = run_bench(matrix, tmp_path / "bench")
    assert not result.failures
    for trial in result.finished:
        log = Run(result.folder.file(f"{result.folder.RUNS}/{trial.name}/trained")).records()
        (last,) = (r for r in log if r["kind"] == "train_epoch")
        assert trial.values[TRAINED_VAL] == pytest.approx(100 * float(str(last[f"val_{metric}"])), rel=1e-6)
        assert isinstance(trial.values[TRAINED_TEST], float)
    rows = list(csv.DictReader(io.StringIO(result.folder.file(result.folder.CSV).read_text())))
    random = {row["metric"]: float(row["mean"]) for row in rows if row["method"] == "random_sampling"}
    for row in rows:
        if row["method"] == "darts":
            assert bool(row["improvement"]) == (random[row["metric"]] > 0)


def test_a_study_measures_what_decoding_costs(
    task: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oche.study.runner.figures", lambda result: {})
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    result = run_study(study_from("discretisation", path, {"data": (task[1],)}), tmp_path / "study")
    assert not result.failures
    (trial,) = result.finished
    assert isinstance(trial.values[TRAINED_VAL], float)
