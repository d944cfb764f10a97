"""OLES: what freezes, when, and that it rests bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oche.methods.oles import BestEpoch, FreezeOverfitted, oles, operations, similarity
from oche.search.callbacks import OuterStep
from oche.search.loop import begin, search
from oche.search.selection import TopK
from oche.search.state import SearchState
from reference.tiny import tiny_problem


def fed(state: SearchState, rule: FreezeOverfitted, sign: float, steps: int) -> None:
    """The same gradient again and again in training, `sign` times it in validation."""
    for _ in range(steps):
        grads = {name: torch.ones_like(t) for name, t in state.theta.items()}
        rule.after_inner_backward(state, grads, None)  # type: ignore[arg-type]
        outer = OuterStep(torch.zeros(()), {name: sign * g for name, g in grads.items()})
        rule.after_outer_backward(state, {}, outer)


def test_agreeing_gradients_never_freeze() -> None:
    state = begin(tiny_problem("nb201", channels=4, cells=1), oles())
    learns = state.learns
    fed(state, FreezeOverfitted(), 1.0, 60)
    assert state.learns == learns


def test_opposed_gradients_freeze_operations_after_exactly_a_window() -> None:
    state = begin(tiny_problem("nb201", channels=4, cells=1), oles())
    learns = state.learns
    fed(state, FreezeOverfitted(), -1.0, 19)
    assert state.learns == learns
    fed(state, FreezeOverfitted(), -1.0, 1)
    inside = {name for names in operations(learns).values() for name in names}
    assert inside
    assert state.learns == learns - inside
    assert all("edges" in name for name in inside)


def test_frozen_weights_rest_bit_for_bit_and_the_others_learn() -> None:
    """A threshold above every cosine freezes all operations after two steps of the six."""
    problem = tiny_problem("nb201", epochs=1, channels=4, cells=1)
    method = replace(oles(), callbacks=(FreezeOverfitted(1, 2.0),))
    early = search(problem, method).state
    late = search(replace(problem, epochs=3), replace(method, weight_lr=method.weight_lr)).state
    assert early.learns == late.learns < frozenset(dict(early.supernet.named_parameters()))
    own, other = dict(early.supernet.named_parameters()), dict(late.supernet.named_parameters())
    for name in own.keys() - early.learns:
        assert torch.equal(own[name], other[name]), name
    assert any(not torch.equal(own[name], other[name]) for name in early.learns)


def test_similarity_is_the_mean_cosine_of_the_columns() -> None:
    a, b = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    columns = [(x @ y) / (x.norm() * y.norm()) for x, y in zip(a.flatten(1).T, b.flatten(1).T, strict=True)]
    assert float(similarity(a, b)) == pytest.approx(float(torch.stack(columns).mean()))


def test_the_genotype_is_that_of_the_best_epoch() -> None:
    state = search(tiny_problem("toy", epochs=4), oles()).state
    state.memory["accuracies"] = torch.tensor([0.1, 0.7, 0.7, 0.2])
    wanted = TopK()(state.at(2), state.problem)
    assert BestEpoch()(state, state.problem) == wanted
