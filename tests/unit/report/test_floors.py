"""Beside every accuracy stands that of naming the commonest class: in the terminal, in JSON, in the log and in the card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import oche
from oche.api.inference import evaluate_run
from oche.api.search import Found
from oche.api.terminal import _LINES, data_rows
from oche.cli.show import show_found, show_score, show_trained
from oche.data import load
from oche.report.claims import floored
from oche.training.export import CARD, load_network


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of two classes; of the test images three in four are of class 1."""
    rng, y = np.random.default_rng(0), np.array([0, 1, 1, 1] * 4)
    x = rng.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    path = tmp_path_factory.mktemp("data") / "a.npz"
    np.savez(path, x_train=x, y_train=y, x_val=x, y_val=y, x_test=x[:8], y_test=y[:8])
    return path


@pytest.fixture(scope="module")
def found(unbalanced: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oche.api.search.render", lambda run: None)
        patch.setattr("oche.api.search.available_formats", lambda: ())
        return oche.search(
            "random_search", data=str(unbalanced), space="toy", budget="smoke", compare=1, compare_seeds=2, rivals="none",
            out=tmp_path_factory.mktemp("runs") / "search", settings={"queries": 1, "train.epochs": 1}, progress=False,
        )  # fmt: skip


def plain(text: str) -> str:
    return " ".join(text.split())


def test_after_a_search(found: Found, capsys: pytest.CaptureFixture[str]) -> None:
    show_found(found, as_json=False)
    assert "always naming the commonest class 75.00%" in plain(capsys.readouterr().out)
    show_found(found, as_json=True)
    assert json.loads(capsys.readouterr().out)["comparison"]["floor"] == 0.75
    assert json.loads(found.run.read(CARD))["metrics"]["floor"] == 0.75
    assert json.loads(found.run.read(CARD))["comparison"]["floor"] == 0.75
    logged = {str(r["kind"]): r for r in found.run.records()}
    assert logged["comparison"]["floor"] == logged["trained"]["floor"] == 0.75


def test_while_it_runs(found: Found) -> None:
    for record in found.run.records():
        if record["kind"] == "supernet":
            assert "always naming the commonest class: 75.0%" in _LINES[str(record["kind"])](record)


def test_after_a_training_and_an_evaluation(
    found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oche.api.train.render", lambda run: None)
    trained = oche.train(found.run.path, protocol="smoke", epochs=1, batch=8, out=tmp_path / "train", progress=False)
    show_trained(trained, as_json=False)
    assert "(always naming the commonest class: 75.00%)" in plain(capsys.readouterr().out)
    show_trained(trained, as_json=True)
    assert json.loads(capsys.readouterr().out)["test"]["floor"] == 0.75
    assert json.loads(trained.run.read(CARD))["metrics"]["floor"] == 0.75
    score, network = evaluate_run(trained.run.path), load_network(trained.run)
    show_score(score, network, False, None)
    assert "(always naming the commonest class: 75.00%)" in plain(capsys.readouterr().out)
    show_score(score, network, True, None)
    assert json.loads(capsys.readouterr().out)["floor"] == 0.75


def test_before_a_run(unbalanced: Path) -> None:
    assert dict(data_rows(load(unbalanced)))["classes"] == "2: 0, 1; 75.0% of the train images are '1'"


def test_other_metrics_have_floors_of_their_own() -> None:
    assert floored({"metric": "r2", "floor": 0.0}) == " (always answering the mean: 0)"
    assert floored({"metric": "miou", "floor": 0.494}, 1) == " (always naming the commonest class: 49.4%)"
    assert floored({"metric": "mine", "floor": 0.5}) == floored({"metric": "accuracy"}) == ""
