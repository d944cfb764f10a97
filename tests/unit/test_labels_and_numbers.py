"""Several labels, or numbers, for each image, end to end: reading, splitting, search, training, resuming, evaluation, prediction."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import oche
from oche.api.inference import evaluate_run, predict
from oche.api.resume import resume
from oche.cli.main import app
from oche.data import halves, load
from oche.errors import UserError
from oche.run import Run

COUNT = 60


def written(folder: Path, task: str) -> Path:
    """An archive of 60 images whose labels, or numbers, are facts about their pixels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (COUNT, 8, 8, 1), dtype=np.uint8)
    halves_of = np.stack([x[:, :4].mean((1, 2, 3)), x[:, 4:].mean((1, 2, 3))], 1)
    y = (halves_of > 127).astype(np.int64) if task == "multilabel" else halves_of * (1, 100)
    np.savez(folder / f"{task}.npz", x=x, y=y, classes=["top", "bottom"])
    return folder / f"{task}.npz"


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_parts_and_halves_hold_each_image_once_with_its_own_targets(task: str, tmp_path: Path) -> None:
    path = written(tmp_path, task)
    data = load(path)
    assert (data.task, data.classes) == (task, ("top", "bottom"))
    assert any("at random, for there are no classes" in note for note in data.notes)
    y = torch.from_numpy(np.load(path)["y"])
    seen: list[int] = []
    for part in (data.train, data.val, data.test):
        targets = part.targets.double()
        if task == "regress":
            assert data.target_mean is not None
            assert data.target_std is not None
            targets = targets * torch.tensor(data.target_std).double() + torch.tensor(data.target_mean).double()
        seen += part.index.tolist()
        torch.testing.assert_close(targets, y[part.index].double(), rtol=1e-4, atol=1e-2)
    assert sorted(seen) == list(range(COUNT))
    if task == "regress":
        torch.testing.assert_close(data.train.targets.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(data.train.targets.std(0, correction=0), torch.ones(2))
    parts = halves()(data.train, 3)
    assert parts.arch is not None
    assert sorted(parts.weights.index.tolist() + parts.arch.index.tolist()) == sorted(data.train.index.tolist())
    _, taken = parts.arch.take(torch.tensor([1, 0]))
    assert torch.equal(taken, parts.arch.targets[[1, 0]])


@pytest.mark.parametrize(
    ("y", "task", "taught"),
    [
        (torch.eye(3)[torch.arange(30) % 3], None, "classify"),
        (torch.eye(3)[torch.arange(30) % 3], "multilabel", "multilabel"),
        (torch.eye(3)[torch.arange(30) % 3], "regress", "regress"),
        (torch.arange(30.0) % 3, None, "classify"),
        (torch.arange(30) % 3, "regress", "regress"),
        (torch.arange(30.0) / 7, None, "regress"),
        (torch.ones(30, 2).triu(-15).long(), None, "multilabel"),
    ],
)
def test_what_labels_teach_is_their_look_or_what_was_asked(
    y: Tensor, task: str | None, taught: str, tmp_path: Path
) -> None:
    x = torch.rand(30, 8, 8, 1, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "some.npz", x=x.numpy(), y=y.numpy())
    data = load(tmp_path / "some.npz", task=task)  # type: ignore[arg-type]
    assert data.task == taught
    if taught != "classify" or y.ndim == 2:
        assert load(TensorDataset(x.movedim(3, 1), y), task=task).task == taught  # type: ignore[arg-type]


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    x = np.zeros((6, 8, 8, 1), dtype=np.uint8)
    cases = {
        "values other than 0 and 1": (np.full((6, 2), 2), "multilabel"),
        "NaN or infinity": (np.array([[0.5], [np.nan]] * 3), "regress"),
        "5 labels for 6 images": (np.linspace(0, 1, 5), "regress"),
    }
    for number, (said, (y, task)) in enumerate(cases.items()):
        np.savez(tmp_path / f"{number}.npz", x=x, y=y)
        with pytest.raises(UserError, match=said):
            load(tmp_path / f"{number}.npz", task=task)  # type: ignore[arg-type]
    np.savez(tmp_path / "classes.npz", x=x, y=np.linspace(0, 1, 6))
    with pytest.raises(UserError, match="are not whole"):
        load(tmp_path / "classes.npz", task="classify")
    with pytest.raises(UserError, match="has a class for each image"):
        load("digits", task="segment")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric"), [("multilabel", "mean_f1"), ("regress", "r2")])
def test_search_compare_train_resume_eval_and_predict(task: str, metric: str, tmp_path: Path) -> None:
    path = written(tmp_path, task)
    found = oche.search(
        "darts", data=str(path), space="toy", budget="smoke", compare=1, out=tmp_path / "s", progress=False
    )
    assert found.comparison is not None
    assert found.comparison.metric == metric
    assert found.run.has(Run.REPORT)
    settings: dict[str, object] = {"train.epochs": 3, "train.batch": 16}
    trained = oche.train(found.run.path, out=tmp_path / "t", protocol="brief", settings=settings, progress=False)
    assert evaluate_run(trained.run.path).metrics == trained.test.metrics
    assert not [r for r in trained.run.records() if r["kind"] == "confusion"]

    class Cut(Exception):
        pass

    def cut(kind: str, record: object) -> None:
        if kind == "train_epoch" and isinstance(record, dict) and record["epoch"] == 1:
            raise Cut

    with pytest.raises(Cut):
        oche.train(
            found.run.path, out=tmp_path / "c", protocol="brief", settings=settings, progress=False, listener=cut
        )
    resume(tmp_path / "c")
    again = [r for r in Run.open(tmp_path / "c").records() if r["kind"] == "test"]
    assert again == [r for r in trained.run.records() if r["kind"] == "test"]

    Image.fromarray(np.load(path)["x"][0, :, :, 0]).save(tmp_path / "one.png")
    (said,) = predict(trained.run.path, [tmp_path / "one.png"])
    assert list(said.values) == ["top", "bottom"]
    if task == "multilabel":
        names = [name for name, p in said.values.items() if p >= 0.5]
        assert said.label == (", ".join(names) or "(none)")
        assert said.probability == pytest.approx(math.prod(max(p, 1 - p) for p in said.values.values()), rel=1e-5)
    else:
        assert 0 < said.values["top"] < 255 < 10 * said.values["bottom"]
        assert math.isnan(said.probability)
    script = trained.run.file("network/predict.py")
    if not script.exists():
        trained.export()
    printed = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "one.png")], capture_output=True, text=True, check=True
    ).stdout
    found_numbers = [float(word.rpartition("=")[2]) for word in printed.split()[-2:]]
    assert found_numbers == pytest.approx(list(said.values.values()), rel=1e-4, abs=1e-5)
    runner = CliRunner()
    for command in (["eval"], ["predict", str(tmp_path / "one.png")], ["report"]):
        done = runner.invoke(app, [command[0], str(trained.run.path), *command[1:]])
        assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["predict", str(trained.run.path), str(tmp_path / "one.png"), "--json"])
    assert json.loads(done.stdout)["values"].keys() == said.values.keys()
    assert runner.invoke(app, ["check", str(path)]).exit_code == 0
