"""`--batch auto`: what is tried and taken, and that a run keeps the number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import oche
from oche import config
from oche.api import batch as module
from oche.api import search as api
from oche.api.batch import NEAR, SIZES, STEPS, measured, quick, sizes
from oche.api.resume import reopen
from oche.api.train import plan_training
from oche.errors import UserError
from oche.plan.request import Request, TrainRequest
from oche.plan.resolve import resolve
from oche.run import Run
from oche.search.preflight import Estimate
from oche.training.pace import Pace
from reference.tiny import tiny_data

DATA = tiny_data(300)
CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|"
REQUEST = Request("rf_darts", space="toy", data=DATA, budget="smoke", epochs=1, compare=0, batch="auto", threads=1)


def overhead(size: int) -> float:
    """Seconds of a step: one tenth and a hundredth per image, so that larger batches are quicker per image without end."""
    return 0.1 + 0.01 * size


@given(st.integers(1, 10**6), st.integers(1, 7))
def test_sizes_are_shared_evenly_and_leave_some_steps(images: int, processes: int) -> None:
    found = sizes(images, processes)
    assert found == sorted(set(found))
    assert all(size % processes == 0 and size >= 8 for size in found)
    assert all(size * STEPS <= images for size in found[1:])
    assert len(found) <= len(SIZES)


@given(st.dictionaries(st.integers(1, 600), st.floats(1e-6, 10), min_size=1))
def test_the_smallest_of_the_quick_ones(seconds: dict[int, float]) -> None:
    """By sorting: the first whose time is near the least."""
    least = sorted(seconds.values())[0]
    assert quick(seconds) == next(size for size in sorted(seconds) if seconds[size] <= NEAR * least)


def test_what_does_not_fit_into_memory_ends_the_trials() -> None:
    def seconds(size: int) -> float:
        if size > 16:
            raise UserError("too large")
        return 1 / size

    assert measured([8, 16, 32, 64], seconds) == {8: 1 / 8, 16: 1 / 16}
    with pytest.raises(UserError, match="too large"):
        measured([32, 64], seconds)


def test_a_search_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 images to learn weights on: 8 and 16 leave eight steps, and 16 is the quicker by more than a tenth."""
    tried: list[int] = []

    def estimated(problem: object, method: object) -> Estimate:
        size = problem.batch  # type: ignore[attr-defined]
        tried.append(size)
        return Estimate(0, 0, 0.0, overhead(size), 1, {})

    monkeypatch.setattr(module, "estimate", estimated)
    plan = module.with_batch(resolve(REQUEST))
    assert (tried, plan.batch, plan.request.batch) == ([8, 16], 16, 16)
    assert plan.chosen == "batch 16, by images per second: 8: 44, 16: 62"
    monkeypatch.setattr(api, "carry_out", lambda plan, run, *_: run)
    options = {
        name: getattr(REQUEST, name) for name in ("method", "space", "data", "budget", "epochs", "batch", "compare")
    }
    run: Run = oche.search(**options, threads=1, out=tmp_path / "run")  # type: ignore[assignment]
    table = config.loads(run.read(Run.CONFIG).decode(), "run.toml")
    assert table["request"]["batch"] == table["resolved"]["batch"] == 16  # type: ignore[index]
    monkeypatch.setattr(module, "estimate", None)  # nothing is measured again
    again, _ = reopen(run.path, data=DATA)
    assert again.batch == 16


def test_numbers_and_words() -> None:
    assert resolve(replace(REQUEST, batch="32")).batch == resolve(replace(REQUEST, batch=32)).batch == 32
    assert resolve(replace(REQUEST, batch="32")).request.batch == 32
    for given_, words in (("many", "number of images, or auto; given many"), ("1", "batches of two images")):
        with pytest.raises(UserError, match=words):
            resolve(replace(REQUEST, batch=given_))


def test_where_auto_makes_no_sense() -> None:
    with pytest.raises(UserError, match="published budget has a batch of its own, 64"):
        resolve(replace(REQUEST, method="darts", space="darts", budget="paper"))
    with pytest.raises(UserError, match="random_search asks for cells and has no steps to measure"):
        module.with_batch(resolve(replace(REQUEST, method="random_search")))
    with pytest.raises(UserError, match="leave one of them out"):
        plan_training(TrainRequest(CELL, space="toy", data=DATA, batch="auto", settings={"train.batch": 8}))


def test_a_training_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 images: 8, 16 and 32 leave eight steps. 32 takes 0.0131 s an image, 16 more than a tenth more."""

    def paced(training: object) -> Pace:
        size = training.protocol.batch  # type: ignore[attr-defined]
        return Pace(300 / size * overhead(size), 0.0)

    monkeypatch.setattr(module, "pace", paced)
    plan = plan_training(
        TrainRequest(CELL, space="toy", data=DATA, batch="auto", protocol="smoke", epochs=1)
    ).measured()
    assert (plan.training.protocol.batch, plan.request.batch) == (32, 32)
    run = plan.start(tmp_path / "run")
    table = config.loads(run.read(Run.CONFIG).decode(), "run.toml")
    assert table["training"]["batch"] == table["train"]["batch"] == 32  # type: ignore[index]
    assert (
        plan_training(TrainRequest(CELL, space="toy", data=DATA, batch="8", protocol="smoke")).training.protocol.batch
        == 8
    )
