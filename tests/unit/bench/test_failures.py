"""A bench whose trials fail says which, keeps the others, and ends with 1."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oche.bench import run_bench
from oche.bench.planned import Trial
from oche.bench.trial import Outcome
from oche.cli.main import app
from oche.errors import RunFailed
from reference.small_bench import pretend

pytestmark = pytest.mark.usefixtures("undrawn")

COMMAND = (
    "bench --method darts --method random_sampling --space toy --data digits --budget smoke --seeds 1 --evaluate train"
)


def failing(trial: Trial, folder: Path) -> Outcome:
    if trial.method == "darts":
        raise RuntimeError("the sky fell")
    return pretend(trial, folder)


def test_failed_trials_are_named_and_the_exit_code_is_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["oche.bench"], "run_bench", partial(run_bench, work=failing))
    ended = CliRunner().invoke(app, [*COMMAND.split(), "--out", str(tmp_path / "b")])
    assert ended.exit_code == 1
    said = " ".join(ended.output.split())
    assert "failed darts-toy-digits-smoke-0: the sky fell" in said
    assert isinstance(ended.exception, RunFailed), "which the command line says in a sentence, and ends with 1"
    assert str(ended.exception).startswith("1 trial failed (darts-toy-digits-smoke-0); the others are kept in ")
    assert len((tmp_path / "b" / "trials.jsonl").read_text().splitlines()) == 2


def test_without_failures_it_is_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["oche.bench"], "run_bench", partial(run_bench, work=pretend))
    assert CliRunner().invoke(app, [*COMMAND.split(), "--out", str(tmp_path / "b")]).exit_code == 0
