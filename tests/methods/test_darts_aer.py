"""DARTS-AER's entropy term against its closed form and a literal sum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from oche.methods.darts_aer import darts_aer
from oche.search.begin import begin
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
        for row in t.tolist():
            p = [math.exp(a) / sum(map(math.exp, row)) for a in row]
            entropies.append(-sum(x * math.log2(x) for x in p))
    mean = sum(entropies) / len(entropies)
    state = replace(state, epoch=1)
    assert float(term(state, {}, alpha, None)) == pytest.approx((0.7 - 1.4 * (1 + math.cos(math.pi / 3)) / 2) * mean)  # type: ignore[arg-type]
