"""Trainings whose numbers are not finite go back and on at smaller rates, and give up with a sentence, as searches do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from chaos.dying import fresh
from oche.base import counted
from oche.errors import RunFailed
from oche.plan.machine import fabric_for
from oche.report.claims import warnings
from oche.run import Run
from oche.schedule import Cosine
from oche.spaces.sampling import sample
from oche.tasks import Classify
from oche.training import train
from oche.training.compare import compare
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.tiny import tiny_data, tiny_space

DATA = tiny_data(24)
SPACE = tiny_space("toy", DATA)
PROTOCOL = replace(PROTOCOLS["smoke"], epochs=3, batch=8, lr=Cosine(0.04))
STEPS = 3
rates: list[float] = []
calls: list[int] = []


@dataclass(frozen=True)
class Fragile(Classify):
    """A loss that `spoil` changes at the calls `at` of a run, while the rate is above `above`."""

    above: float = 0.0
    at: tuple[int, ...] = ()
    spoil: Callable[[Tensor], Tensor] = field(default=lambda loss: loss * math.nan)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = super().loss(outputs, targets)
        if not loss.requires_grad:
            return loss
        calls.append(len(calls))
        due = not self.at or calls[-1] in self.at
        return self.spoil(loss) if due and rates[-1] > self.above else loss


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    rates.clear()
    calls.clear()
    set_rate = train.set_rate

    def told(optimizer: torch.optim.Optimizer, rate: float) -> None:
        rates.append(rate)
        set_rate(optimizer, rate)

    monkeypatch.setattr(train, "set_rate", told)


def training(run: Run | None = None, task: Classify = Classify(), **protocol: object) -> Training:
    asked = replace(PROTOCOL, auxiliary=0.0, **protocol)  # type: ignore[arg-type]
    return Training(SPACE, sample(SPACE, counted(5)), DATA, asked, 1, fabric_for("cpu"), run, task=task)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in network.state_dict().items()}


def told(run: Run) -> list[Mapping[str, object]]:
    for line in run.file(Run.LOG).read_bytes().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    return [record for record in run.records() if record["kind"] == "rolled_back"]


def infinite_gradient(loss: Tensor) -> Tensor:
    """The same loss, with a derivative that is none."""
    return loss + 0 * (loss - loss).sqrt()


@pytest.mark.parametrize(
    ("spoil", "clip", "what"),
    [
        (lambda loss: loss * math.inf, 5.0, "the loss"),
        (infinite_gradient, 5.0, "the gradient"),
        (infinite_gradient, None, "the loss"),  # of the next step: where nothing is clipped, no norm is taken
    ],
)
def test_what_is_never_finite_is_named_and_given_up(
    spoil: Callable[[Tensor], Tensor], clip: float | None, what: str, tmp_path: Path
) -> None:
    run = fresh(tmp_path / "run")
    with pytest.raises(RunFailed, match=rf"in epoch 0 of 3, because {what} was not finite after 3 attempts") as error:
        retrain(training(run, Fragile(spoil=spoil), clip=clip))
    assert "--set train.lr.start=0.004" in str(error.value)
    assert str(run.path) in str(error.value)
    assert [(r["what"], r["to_epoch"], r["rates"]) for r in told(run)] == [(what, 0, 0.5**n) for n in (1, 2, 3)]
    assert not run.has(Run.STATE)


def test_a_weight_that_the_last_step_spoilt_is_found(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run")
    retrain(training(run, Fragile(at=(3 * STEPS - 1,), spoil=infinite_gradient), clip=None))
    assert [(r["what"], r["to_epoch"]) for r in told(run)] == [("a weight", 2)]


def test_half_the_rate_is_that_of_a_training_at_half_the_rate(tmp_path: Path) -> None:
    """From the beginning, with nothing of the first try left: weights, momentum and statistics are those of the other training."""
    run = fresh(tmp_path / "run")
    found = weights(retrain(training(run, Fragile(above=0.03))))
    other = weights(retrain(training(lr=Cosine(0.02))))
    assert [r["rates"] for r in told(run)] == [0.5]
    assert found.keys() == other.keys()
    for name, t in found.items():
        torch.testing.assert_close(t, other[name], rtol=0, atol=0)
    assert run.records()[-1]["lr"] == pytest.approx(0.5 * PROTOCOL.lr(2 / 3))
    assert "Numbers were not finite (the loss): it went back" in " ".join(warnings(run.records()))


def test_it_goes_back_to_the_last_epoch_and_is_carried_on_as_slowly(tmp_path: Path) -> None:
    spoilt = Fragile(at=(STEPS + 1,))
    whole, cut = fresh(tmp_path / "whole"), fresh(tmp_path / "cut")
    unbroken = weights(retrain(training(whole, spoilt)))
    assert [(r["to_epoch"], r["rates"]) for r in told(whole)] == [(1, 0.5)]

    def stops(event: str, record: Mapping[str, object]) -> None:
        if event == "train_epoch" and record["epoch"] == 1:
            raise KeyboardInterrupt

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        retrain(replace(training(cut, spoilt), listener=stops))
    carried = weights(retrain(training(cut, spoilt)))
    for name, t in unbroken.items():
        assert torch.equal(t, carried[name])
    assert [r["epoch"] for r in cut.records() if r["kind"] == "train_epoch"] == [0, 1, 2]
    assert len(told(cut)) == 1


def test_a_published_protocol_stops_at_once() -> None:
    with pytest.raises(RunFailed, match="because the loss was not finite: try a smaller rate"):
        retrain(training(None, Fragile(), source="a paper"))


def test_a_comparison_says_which_network_it_was(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run")
    found = compare(training(run, Fragile(above=0.03)), cells=1, seeds=1, keep=lambda network, score: None)
    assert len(found.accuracies) == 2
    assert [r["rolled_back"] for r in run.records() if r["kind"] == "trained"] == [1, 1]
    assert "1 time in training found; 1 time in training random 1" in " ".join(warnings(run.records()))
    with pytest.raises(RunFailed, match="In the comparison, found, seed 1: The training stopped in epoch 0"):
        compare(training(None, Fragile()), cells=1, seeds=1, keep=lambda network, score: None)


def test_numbers_that_are_finite_change_nothing() -> None:
    """The same bits as a training without these looks."""
    plain = retrain(training())
    watched = retrain(training(None, Fragile(above=1.0)))
    assert all(torch.equal(t, watched.state_dict()[name]) for name, t in plain.state_dict().items())
