"""The end of a search whose cell has settled: when it comes, what is told, and that a killed search ends at the same epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from oche.api.terminal import _epoch_line
from oche.errors import UserError
from oche.methods.darts import darts
from oche.optim import Adam
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import Run
from oche.search.callbacks import Callback
from oche.search.loop import search
from oche.search.method import Method
from oche.search.patience import Patience
from oche.search.state import Problem, SearchState
from reference.tiny import tiny_data, tiny_problem

LONG = 8


def longer(**changes: object) -> Problem:
    return replace(tiny_problem("toy", epochs=LONG), **changes)  # type: ignore[arg-type]


def moving(*callbacks: Callback, rate: float = 0.3, **changes: object) -> Method:
    """DARTS whose alpha moves so much that the cell changes now and then."""
    return replace(darts(), arch_optimizer=Adam(lr=rate), callbacks=callbacks, **changes)  # type: ignore[arg-type]


def ends(genotypes: list[str], patience: int, first: int) -> int:
    """The number of epochs after which the rule ends, found in the genotypes of a whole search: a second derivation."""
    for done in range(first + patience + 1, len(genotypes)):
        if all(a == b for a, b in pairwise(genotypes[done - patience - 1 : done])):
            return done
    return len(genotypes)


@pytest.mark.parametrize(("patience", "start"), [(1, 0.0), (2, 0.0), (3, 0.25), (LONG, 0.0)])
def test_it_ends_where_the_whole_search_shows_that_it_should(patience: int, start: float) -> None:
    whole = search(longer(), moving(arch_start=start))
    cut = search(longer(), moving(Patience(patience), arch_start=start))
    genotypes = [str(genotype) for genotype in whole_genotypes(whole.state, moving())]
    done = ends(genotypes, patience, round(start * LONG))
    assert cut.state.epoch == done
    assert str(cut.genotype) == genotypes[done - 1]


def whole_genotypes(state: SearchState, method: Method) -> list[object]:
    """The genotype after each epoch, from alpha's trajectory."""
    return [method.selection(state.at(n), state.problem) for n in range(1, state.epoch + 1)]


def test_the_log_and_the_terminal_say_it(tmp_path: Path) -> None:
    held = moving(Patience(2), rate=1e-9)
    history = search(longer(run=Run.create(tmp_path / "run")), held).history
    assert len(history) < LONG
    said = f"the cell has not changed for 2 epochs: the search ends after {len(history)} of {LONG}"
    assert [record.get("settled") for record in history] == [None] * (len(history) - 1) + [said]
    assert _epoch_line(history[-1]).endswith(f"\n    SETTLED  {said}")


def test_a_search_that_settles_in_its_last_epoch_says_nothing() -> None:
    held = moving(Patience(LONG - 1), rate=0.0)
    state = search(longer(), held).state
    assert state.epoch == LONG
    assert not state.stop


@dataclass(frozen=True)
class Killed(Callback):
    """Ends the process's work in the middle of an epoch."""

    after: int

    def before_inner_step(self, state: SearchState, weights, alpha, batch):  # type: ignore[no-untyped-def]
        if state.step == self.after:
            raise KeyboardInterrupt
        return weights


@pytest.mark.parametrize("step", [4, 7])
def test_a_killed_search_ends_at_the_same_epoch_with_the_same_bits(step: int, tmp_path: Path) -> None:
    held = moving(Patience(3), rate=1e-9)
    whole = search(longer(run=Run.create(tmp_path / "whole")), held)
    run = Run.create(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        search(longer(run=run), moving(Patience(3), Killed(step), rate=1e-9))
    resumed = search(longer(run=run), held)
    assert 0 < step // 3 < whole.state.epoch == resumed.state.epoch < LONG
    assert all(torch.equal(t, resumed.state.theta[name]) for name, t in whole.state.theta.items())
    assert str(whole.genotype) == str(resumed.genotype)


def request(**options: object) -> Request:
    return Request(**{"method": "darts", "space": "toy", "data": tiny_data(), "budget": "smoke", **options})  # type: ignore[arg-type]


def test_the_option_arrives_and_is_none_by_default() -> None:
    assert Patience(2) in resolve(request(patience=2)).callbacks
    assert not any(isinstance(callback, Patience) for callback in resolve(request()).callbacks)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patience": 0}, "at least 1; given 0"),
        ({"patience": 3, "budget": "paper", "space": "nb201"}, "leave it out, or take --budget quick"),
        ({"patience": 3, "method": "random_search"}, "random_search searches in another way"),
        ({"patience": 3, "method": "pdarts", "space": "darts"}, "pdarts searches in another way"),
        ({"patience": 3, "method": "rlnas", "space": "nb201"}, "rlnas searches in another way"),
    ],
)
def test_what_it_cannot_be_asked_of_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(request(**options))
