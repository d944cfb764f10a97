"""Numbers that are no longer finite: named at the step, rolled back at half the rates, given up with a sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.errors import RunFailed
from oche.methods.darts import darts
from oche.run import Run
from oche.search.loop import search
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from reference.tiny import tiny_problem


@dataclass(frozen=True)
class Explodes:
    """A term that is not finite from step `at` on while the weights' rate is above `above`: NaN in the loss, or in the gradient alone."""

    at: int = 5
    above: float = 0.0
    gradient: bool = False

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        some = next(iter((theta or alpha).values())).flatten()[0]
        bad = state.step >= self.at and state.weights.rate > self.above
        if not bad:
            return 0 * some
        return (some * 0).sqrt() if self.gradient else some * torch.nan


def problem(tmp_path: Path | None, **changes: object) -> Problem:
    run = None
    if tmp_path is not None:
        run = Run.create(tmp_path / "run")
        run.write(Run.CONFIG, b"")
    return replace(tiny_problem("toy", epochs=2), run=run, **changes)  # type: ignore[arg-type]


def method(term: Explodes, outer: bool = False) -> Method:
    return replace(darts(), outer_terms=(term,)) if outer else replace(darts(), inner_terms=(term,))


@pytest.mark.parametrize(
    ("term", "outer", "what"),
    [
        (Explodes(), False, "the weights' gradient"),
        (Explodes(gradient=True), False, "the weights' gradient"),
        (Explodes(), True, "the loss on alpha's images"),
    ],
)
def test_a_search_that_stays_bad_ends_with_a_sentence(tmp_path: Path, term: Explodes, outer: bool, what: str) -> None:
    asked = problem(tmp_path)
    with pytest.raises(
        RunFailed, match="was not finite after 3 attempts at smaller rates: try a smaller rate"
    ) as error:
        search(asked, method(term, outer))
    assert what in str(error.value) or "alpha" in str(error.value)
    assert str(asked.run.path) in str(error.value)  # type: ignore[union-attr]


def test_rates_are_halved_until_it_works_and_the_log_says_so(tmp_path: Path) -> None:
    asked = problem(tmp_path)
    result = search(asked, method(Explodes(above=0.0126)))  # the rate begins at 0.025: one halving is enough
    assert asked.run
    told = [r for r in asked.run.records() if r["kind"] == "rolled_back"]
    assert [(r["what"], r["step"], r["to_step"], r["rates"]) for r in told] == [("the weights' gradient", 5, 3, 0.5)]
    assert result.state.slower == 1
    assert all(torch.isfinite(t).all() for t in result.state.weights.theta.values())
    json.loads(asked.run.file(Run.LOG).read_bytes().splitlines()[0])


def test_it_goes_back_to_the_last_checkpoint_and_resumes_as_slowly(tmp_path: Path) -> None:
    asked = problem(tmp_path, epochs=3, checkpoint_every=1)
    whole = search(asked, method(Explodes(at=7, above=0.004)))
    assert asked.run
    assert [r["to_step"] for r in asked.run.records() if r["kind"] == "rolled_back"] == [7]
    again = problem(tmp_path / "again", epochs=3, checkpoint_every=1)
    assert again.run
    for name in (Run.STATE, Run.LOG):
        again.run.write(name, asked.run.file(name).read_bytes())
    resumed = search(again, method(Explodes(at=7, above=0.004)))
    assert resumed.state.slower == 1
    assert resumed.genotype == whole.genotype


def test_without_rollbacks_it_stops_at_once(tmp_path: Path) -> None:
    asked = problem(tmp_path, rollbacks=0)
    with pytest.raises(RunFailed, match=r"at step 5 \(epoch 1\), because the weights' gradient was not finite: try"):
        search(asked, method(Explodes(above=0.0126)))


def test_a_search_that_is_kept_nowhere_begins_anew() -> None:
    assert search(problem(None), method(Explodes(above=0.0126))).state.slower == 1


def test_half_the_rates_is_half_the_rates_of_weights_and_alpha(tmp_path: Path) -> None:
    calm = search(problem(None), darts()).state
    slow = search(problem(tmp_path), method(Explodes(above=0.0126))).state
    assert slow.weights.rate == pytest.approx(calm.weights.rate / 2)
    assert slow.arch_optimizer.param_groups[0]["lr"] == pytest.approx(calm.arch_optimizer.param_groups[0]["lr"] / 2)
