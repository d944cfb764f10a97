"""DARTS-AER's entropy term against its closed form and a literal sum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from oche.base import Group
from oche.methods.darts_aer import Entropy, darts_aer, without_none
from oche.methods.oles import BestEpoch, RememberAccuracy
from oche.schedule import Constant, Cosine
from oche.search.begin import begin
from oche.search.bilevel import FirstOrder, Unrolled
from oche.search.loop import search
from oche.search.selection import TopK
from reference.tiny import tiny_problem


def test_a_uniform_alpha_has_the_entropy_log2_of_the_candidates() -> None:
    state = begin(tiny_problem("nb201", epochs=10, channels=4, cells=1), darts_aer())
    (term,) = darts_aer().outer_terms
    still = {name: torch.zeros_like(t) for name, t in state.alpha.items()}
    batch = None
    for epoch, coefficient in ((0, -0.2), (5, 0.0), (10, 0.2)):
        value = float(term(replace(state, epoch=epoch), {}, still, batch))  # type: ignore[arg-type]
        assert value == pytest.approx(coefficient * math.log2(5), abs=1e-6)


def test_the_term_is_the_mean_over_the_edges_of_all_cells() -> None:
    state = begin(tiny_problem("darts", epochs=3, channels=4, cells=3, nodes=2), darts_aer())
    (term,) = darts_aer(0.7).outer_terms
    alpha = {
        name: torch.randn(t.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for name, t in state.alpha.items()
    }
    entropies = []
    for t in alpha.values():
        for row in t[:, 1:].tolist():  # search_cnn.py:164: without `none`, which comes first here
            p = [math.exp(a) / sum(map(math.exp, row)) for a in row]
            entropies.append(-sum(x * math.log2(x) for x in p))
    mean = sum(entropies) / len(entropies)
    state = replace(state, epoch=1)
    assert float(term(state, {}, alpha, None)) == pytest.approx((0.7 - 1.4 * (1 + math.cos(math.pi / 3)) / 2) * mean)  # type: ignore[arg-type]


def test_none_counts_where_it_can_be_derived_or_where_it_is_asked_for() -> None:
    nb201 = begin(tiny_problem("nb201", epochs=2, channels=4, cells=1), darts_aer())
    darts_state = begin(tiny_problem("darts", epochs=2, channels=4, cells=3, nodes=1), darts_aer())
    for state, derivable, ops in ((nb201, True, 5), (darts_state, True, 7), (darts_state, False, 8)):
        still = {name: torch.zeros_like(t) for name, t in state.alpha.items()}
        value = float(Entropy(Constant(1.0), derivable)(state, {}, still, None))  # type: ignore[arg-type]
        assert value == pytest.approx(math.log2(ops), abs=1e-6)


def test_an_edge_with_nothing_but_none_keeps_it() -> None:
    group = Group("cell", ((0, 2), (1, 2)), (("none", "a", "b"),) * 2, keep=2)
    p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]])
    torch.testing.assert_close(without_none(p, group), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.4]]))


def test_it_is_of_second_order_and_of_the_best_epoch_unless_told_otherwise() -> None:
    method, first = darts_aer(), darts_aer(second_order=False, best_epoch=False)
    assert method.arch_gradient == Unrolled()
    assert method.selection == BestEpoch(at_end=True)
    assert RememberAccuracy() in method.callbacks
    assert first.arch_gradient == FirstOrder()
    assert first.selection == TopK()
    assert RememberAccuracy() not in first.callbacks
    assert method.outer_terms == (Entropy(Cosine(-0.2, 0.2)),)


def test_the_genotype_is_that_at_the_end_of_the_best_epoch() -> None:
    state = search(tiny_problem("toy", epochs=3), darts_aer(second_order=False)).state
    state.memory["accuracies"] = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    with torch.no_grad():
        for name, row in zip(state.alpha, (2,), strict=True):
            state.trajectory[name][row].zero_()
            state.trajectory[name][row][:, 2] = 1.0
    chosen = darts_aer().selection(state, state.problem)
    assert {c.op for c in chosen.groups["cell"]} == {state.space.groups[0].ops[0][2]}
