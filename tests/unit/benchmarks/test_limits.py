"""The study of limits reads its rows from what a training leaves behind."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from oche.api.train import train
from reference.tiny import tiny_data

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "limits.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("limits_study", SCRIPT)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_row_holds_what_the_training_reached_and_its_costs(script: ModuleType, tmp_path: Path) -> None:
    trained = train(
        "resnet8", data=tiny_data(12), out=tmp_path / "run", protocol="smoke", epochs=1, batch=6, threads=1,
        settings={"space.channels": 8},
    )  # fmt: skip
    step = script.Step("resnet8", 0, tmp_path / "run", ("train",))
    row = script.outcome("resnet8", 0, [step], {"search": None, "train": 12.34})
    assert row["test"] == pytest.approx(100 * trained.test.value)
    assert 0 <= row["val"] <= 100
    parameters = sum(p.numel() for p in trained.network().parameters())
    assert row["parameters"] == parameters
    assert row["train_seconds"] == 12.3
    assert "search_seconds" not in row


def test_two_processes_take_different_runs_and_none_that_has_ended(script: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "limits.jsonl"
    log.write_text('{"arm": "resnet8", "seed": 0}\n', encoding="utf-8")
    first = script.claim(tmp_path / "data.npz", tmp_path, log)
    second = script.claim(tmp_path / "data.npz", tmp_path, log)
    plan = [(arm, 0) for arm in script.ARMS if (arm, 0) != ("resnet8", 0)]
    assert [first[:2], second[:2]] == plan[:2]
    first[3].close()  # broken off: another process may go on with it
    again = script.claim(tmp_path / "data.npz", tmp_path, log)
    assert again[:2] == plan[0]
    again[3].close()
    second[3].close()


def test_a_run_that_ended_between_reading_and_locking_is_not_run_twice(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "limits.jsonl"
    arm, other = script.ARMS[:2]
    log.write_text(f'{{"arm": "{arm}", "seed": 0}}\n', encoding="utf-8")
    missing = script._missing
    monkeypatch.setattr(script, "_missing", lambda data, runs, rows: missing(data, runs, []))
    claimed = script.claim(tmp_path / "data.npz", tmp_path, log)
    assert claimed[:2] == (other, 0)
    claimed[3].close()
