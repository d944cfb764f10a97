"""Shapley-NAS: the values of games that are known, and the update of alpha from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oche.methods.shapley_nas import Game, marginals, normal, shapley_nas
from oche.search.begin import begin
from oche.search.loop import search
from reference.tiny import tiny_problem

WORTH = torch.tensor([0.1, 0.3, 0.05, 0.2], dtype=torch.float64)


def orders(count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(2)
    return [torch.randperm(4, generator=rng) for _ in range(count)]


def test_an_additive_game_gives_each_player_its_own_worth() -> None:
    found = marginals(lambda present: float(0.35 + (WORTH * present).sum()), orders(3), 0.0)
    torch.testing.assert_close(found, WORTH.expand(3, 4))


def test_the_values_add_up_to_what_all_are_worth_together() -> None:
    """Also where players need each other: efficiency holds for every order, without truncation."""

    def value(present: Tensor) -> float:
        return float(0.2 + 0.3 * present[0] * present[1] + 0.1 * present[2] + 0.4 * present[1] * present[3])

    found = marginals(value, orders(5), 0.0)
    torch.testing.assert_close(found.sum(1), torch.full((5,), 0.8, dtype=torch.float64))
    assert float(found.std(0).max()) > 0


def test_an_order_ends_when_too_little_is_left() -> None:
    found = marginals(lambda present: float(0.35 + (WORTH * present).sum()), [torch.tensor([1, 3, 0, 2])], 0.5)
    torch.testing.assert_close(
        found, torch.tensor([[0.0, 0.3, 0.0, 0.2]], dtype=torch.float64) + torch.tensor([[0.1, 0, 0, 0]])
    )


def test_scores_are_normalised_over_those_that_are_there() -> None:
    score, there = torch.tensor([[1.0, 2.0], [6.0, 99.0]]), torch.tensor([[True, True], [True, False]])
    found = normal(score, there)
    known = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(found[there], (known - 3) / known.std(correction=0))
    assert found[1, 1] == 0
    assert not normal(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)).any()


def test_alpha_follows_the_moving_average_from_half_time_on() -> None:
    problem = tiny_problem("toy", epochs=4, count=192, batch=48)
    state = search(problem, shapley_nas(permutations=3, images=96)).state
    (rows,) = state.trajectory.values()
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[2], rows[3])
    assert not state.arch_optimizer.state  # no gradient ever led it


def test_the_update_is_the_rule_s() -> None:
    """One epoch's: alpha moves by 0.1 (0.2 z), z of zero mean and unit deviation; the second keeps 0.8 of the first."""
    state = begin(tiny_problem("toy", epochs=2), shapley_nas())
    (alpha,) = state.alpha.values()
    before = alpha.detach().clone()
    Game(3, 24, start=0.0, truncate=0.0).on_epoch_end(state, {})
    (m,) = (t for key, t in state.memory.items() if key.startswith("shapley/"))
    torch.testing.assert_close(alpha.detach() - before, (0.1 * m).to(alpha))
    z = m / 0.2
    assert float(z.mean()) == pytest.approx(0, abs=1e-9)
    assert float(z.std(correction=0)) in (pytest.approx(1), 0.0)
    Game(3, 24, start=0.0, truncate=0.0).on_epoch_end(replace(state, epoch=1), {})
    (n,) = (t for key, t in state.memory.items() if key.startswith("shapley/"))
    assert float((n - 0.8 * m).mean()) == pytest.approx(0, abs=1e-9)
