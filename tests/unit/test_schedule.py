"""Schedules against the authors' loops and torch's schedulers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oche.errors import UserError
from oche.methods import ENTRIES, budgets
from oche.methods.budgets import NAMES, QUICK, SMOKE, budget
from oche.methods.darts import darts
from oche.methods.pcdarts import pcdarts
from oche.schedule import Constant, Cosine, Geometric, Linear, LinearTail, Schedule
from oche.search.begin import begin
from oche.search.loop import set_learning_rate
from oche.search.state import SearchState
from reference.tiny import tiny_problem

PUBLISHED = {name: entry.budgets.get("paper", {}) for name, entry in ENTRIES.items()}

SCHEDULES: list[Schedule] = [
    Constant(0.1),
    Linear(0.3, 0.0),
    Cosine(0.025, 0.001),
    Cosine(0.5, 0.0, warm_up=0.1),
    Cosine(0.5, 0.0, warm_up=0.08, ramp="cosine"),
    LinearTail(0.5),
    Geometric(0.1, 1e-4),
]


def torch_cosine(start: float, end: float, epochs: int) -> list[float]:
    """The values that CosineAnnealingLR gives to epochs 0, 1, ...: its recursion, not its closed form."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=start)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epochs), eta_min=end)
    values = []
    for _ in range(epochs):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize(("start", "end", "epochs"), [(0.025, 0.001, 50), (0.1, 0.0, 50), (0.025, 0.0, 600)])
def test_darts_cosine(start: float, end: float, epochs: int) -> None:
    """Epoch e of the old-style call at the start of each epoch: end + (start - end) (1 + cos(pi e / E)) / 2."""
    expected = [end + (start - end) * (1 + math.cos(math.pi * e / epochs)) / 2 for e in range(epochs)]
    schedule = Cosine(start, end)
    assert [schedule(e / epochs) for e in range(epochs)] == pytest.approx(expected, abs=1e-15)
    assert expected == pytest.approx(torch_cosine(start, end, epochs), abs=1e-9)
    assert schedule(0.0) == start
    assert schedule(1.0) == pytest.approx(end)


def test_pcdarts_on_imagenet() -> None:
    """train_search_imagenet.py:151-158: the cosine from 0.5, and 0.5 (epoch + 1) / 5 while epoch < 5."""
    settings = PUBLISHED["pcdarts"]["imagenet"].settings
    schedule = Cosine(settings["weight_lr.start"], settings["weight_lr.end"], settings["weight_lr.warm_up"])  # type: ignore[arg-type]
    epochs = 50
    expected = [0.5 * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    expected[:5] = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [schedule(e / epochs) for e in range(epochs)] == pytest.approx(expected, abs=1e-15)


def test_the_older_warm_up_multiplies_the_cosine() -> None:
    schedule, plain = Cosine(0.5, 0.0, 0.08, ramp="cosine"), Cosine(0.5)
    found = [schedule(e / 50) / plain(e / 50) for e in range(6)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_pcdarts_retraining_on_imagenet() -> None:
    """adjust_lr of train_imagenet.py, then its warm-up."""
    epochs, schedule = 250, LinearTail(0.5)
    for epoch in range(epochs):
        lr = 0.5 * (epochs - 5 - epoch) / (epochs - 5)
        if epochs - epoch <= 5:
            lr = 0.5 * (epochs - epoch) / ((epochs - 5) * 5)
        if epoch < 5:
            lr = lr * (epoch + 1) / 5.0
        assert schedule(epoch / epochs) == pytest.approx(lr, abs=1e-12), epoch


def test_linear_tail_without_warm_up() -> None:
    assert LinearTail(0.5, epochs=10, tail=0, warm_up=0)(0.3) == pytest.approx(0.35)


def test_darts_retraining_on_imagenet() -> None:
    """StepLR with gamma 0.97 each epoch."""
    schedule = Geometric(0.1, 0.1 * 0.97**250)
    for epoch in range(250):
        assert schedule(epoch / 250) == pytest.approx(0.1 * 0.97**epoch, rel=1e-12)


def test_linear_and_constant() -> None:
    assert [Linear(1.0, 3.0)(p) for p in (0.0, 0.25, 1.0)] == [1.0, 1.5, 3.0]
    assert [Constant(2.0)(p) for p in (0.0, 1.0)] == [2.0, 2.0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(progress=st.floats(0, 1))
def test_values_are_finite_and_not_negative(schedule: Schedule, progress: float) -> None:
    assert 0 <= schedule(progress) < math.inf


# ---------------------------------------------------------------------- in the loop


def rates(by_step: bool, epochs: int = 4) -> list[float]:
    """The learning rate of each of the 3 steps of each epoch."""
    problem, method = tiny_problem("toy", epochs=epochs), replace(darts(), lr_by_step=by_step)
    state = begin(problem, method)
    found = []
    for step in range(3 * epochs):
        state.step = step
        set_learning_rate(state, method, 3)
        found.append(rate(state))
    return found


def rate(state: SearchState) -> float:
    (group,) = state.weight_optimizer.param_groups
    return float(group["lr"])


def test_the_rate_moves_by_epoch_or_by_step() -> None:
    by_epoch = torch_cosine(0.025, 0.001, 4)
    assert rates(False) == pytest.approx([lr for lr in by_epoch for _ in range(3)], abs=1e-12)
    assert rates(True) == pytest.approx(torch_cosine(0.025, 0.001, 12), abs=1e-12)


@pytest.mark.parametrize(("share", "held"), [(0.3, 15), (0.7, 35)])
def test_alpha_is_held_for_the_published_epochs(share: float, held: int) -> None:
    """The loop's rule: epoch >= arch_start * epochs; floating point must not cost an epoch."""
    assert [epoch >= share * 50 for epoch in range(50)].index(True) == held
    assert pcdarts().arch_start == 0.3
    assert PUBLISHED["pcdarts"]["imagenet"].settings["arch_start"] == 0.7


# ---------------------------------------------------------------------- published budgets, rf-darts.md 2.1, 2.2, 2.4


def test_published_numbers() -> None:
    darts_ = PUBLISHED["darts"]["darts"]
    assert (darts_.epochs, darts_.batch) == (50, 64)
    assert (darts_.settings["space.cells"], darts_.settings["space.channels"]) == (8, 16)
    nb201 = PUBLISHED["darts"]["nb201"]
    assert (nb201.epochs, nb201.batch) == (50, 64)
    assert nb201.settings["weight_optimizer.nesterov"]
    assert nb201.settings["weight_optimizer.weight_decay"] == 5e-4
    assert not nb201.settings["arch_first"]
    cifar, imagenet = PUBLISHED["pcdarts"]["darts"], PUBLISHED["pcdarts"]["imagenet"]
    assert (cifar.epochs, cifar.batch, imagenet.epochs, imagenet.batch) == (50, 256, 50, 1024)
    assert (cifar.settings["weight_lr.start"], cifar.settings["weight_lr.end"]) == (0.1, 0.0)
    assert (cifar.settings["arch_optimizer.lr"], imagenet.settings["arch_optimizer.lr"]) == (6e-4, 6e-3)
    assert (imagenet.settings["split.weights"], imagenet.settings["split.arch"]) == (0.1, 0.025)
    assert imagenet.settings["method.K"] == 2
    for space in ("s1", "s2", "s3", "s4"):
        assert PUBLISHED["pcdarts"][space].batch == 64
        assert "weight_lr.start" not in PUBLISHED["pcdarts"][space].settings


def test_budget_by_name() -> None:
    assert budget("smoke", "toy", budgets("darts")) == SMOKE["toy"]
    assert budget("quick", "s3", budgets("darts")) == QUICK["darts"], "spaces without their own take that of darts"
    assert budget("paper", "nb201", budgets("darts")) == PUBLISHED["darts"]["nb201"]
    assert budget("paper", "s2", budgets("rf_pcdarts")) == PUBLISHED["pcdarts"]["s2"], (
        "random features take their base's"
    )
    assert NAMES == ("paper", "quick", "smoke")
    with pytest.raises(UserError, match="no budget 'papr'; did you mean 'paper'"):
        budget("papr", "toy", budgets("darts"))
