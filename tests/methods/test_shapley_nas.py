"""Shapley-NAS: the values of games that are known, and the update of alpha from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import Tensor

from oche.data import ImageSet
from oche.methods.shapley_nas import Game, marginals, normal, shapley_nas
from oche.search.begin import begin
from oche.search.loop import search
from oche.search.state import SearchState
from oche.spaces.edges import PartialChannels
from reference.tiny import tiny_problem

WORTH = torch.tensor([0.1, 0.3, 0.05, 0.2], dtype=torch.float64)


def orders(count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(2)
    return [torch.randperm(4, generator=rng) for _ in range(count)]


def one(value: Callable[[Tensor], float], played: list[Tensor], truncate: float) -> Tensor:
    return marginals([value], played, truncate)[0]


def test_an_additive_game_gives_each_player_its_own_worth() -> None:
    found = one(lambda present: float(0.35 + (WORTH * present).sum()), orders(3), 0.0)
    torch.testing.assert_close(found, WORTH.expand(3, 4))


def test_the_values_add_up_to_what_all_are_worth_together() -> None:
    """Also where players need each other: efficiency holds for every order, without truncation."""

    def value(present: Tensor) -> float:
        return float(0.2 + 0.3 * present[0] * present[1] + 0.1 * present[2] + 0.4 * present[1] * present[3])

    found = one(value, orders(5), 0.0)
    torch.testing.assert_close(found.sum(1), torch.full((5,), 0.8, dtype=torch.float64))
    assert float(found.std(0).max()) > 0


def test_an_order_ends_when_too_little_is_left() -> None:
    """From 1.0: 0.7 and 0.5 are left, not less than half, then 0.4: the fourth is not reached."""
    game = [lambda present: float(0.35 + (WORTH * present).sum())]
    found, reached, first = marginals(game, [torch.tensor([1, 3, 0, 2])], 0.5)
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.3, 0.0, 0.2]], dtype=torch.float64))
    assert (reached, first) == (pytest.approx(3 / 4), pytest.approx(1.0))


def test_each_order_is_played_on_its_own_images() -> None:
    games = [lambda present, scale=scale: float(0.35 + scale * (WORTH * present).sum()) for scale in (1.0, 2.0)]
    found, _, first = marginals(games, orders(2), 0.0)
    torch.testing.assert_close(found, torch.stack([WORTH, 2 * WORTH]))
    assert first == pytest.approx((1.0 + 1.65) / 2)


def test_scores_are_normalised_over_those_that_are_there() -> None:
    score, there = torch.tensor([[1.0, 2.0], [6.0, 99.0]]), torch.tensor([[True, True], [True, False]])
    known = torch.tensor([1.0, 2.0, 6.0])
    for correction in (0, 1):
        found = normal(score, there, correction)
        torch.testing.assert_close(found[there], (known - 3) / known.std(correction=correction))
        assert found[1, 1] == 0
    assert not normal(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), 1).any()
    assert not normal(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), 1).any()


@pytest.mark.parametrize(("before", "still"), [(True, 2), (False, 2)])
def test_alpha_follows_the_moving_average_from_half_time_on(before: bool, still: int) -> None:
    problem = tiny_problem("toy", epochs=4, count=96, batch=48)
    method = replace(shapley_nas(K=2), callbacks=(Game(3, 48, before=before),))
    state = search(problem, method).state
    (rows,) = state.trajectory.values()
    assert torch.equal(rows[0], rows[still])
    assert not torch.equal(rows[still], rows[still + 1])
    assert not state.arch_optimizer.state  # no gradient ever led it


def test_the_update_is_the_rule_s() -> None:
    """alpha moves by 0.1 (0.8 m + 0.2 z), z of zero mean and unit deviation; m begins small and is kept."""
    problem = tiny_problem("toy", epochs=2, count=48, batch=24)
    state = begin(problem, shapley_nas(K=2))
    game = Game(3, 24, start=0.0, truncate=0.0, initial=1e-3)
    (alpha,) = state.alpha.values()
    before = alpha.detach().clone()
    first = game._average(state, "shapley/cell", before.double())
    assert 0 < float(first.abs().max()) < 5e-3
    game.on_epoch_start(state)
    m = state.memory["shapley/cell"]
    torch.testing.assert_close(alpha.detach() - before, (0.1 * m).to(alpha))
    z = (m - 0.8 * first) / 0.2
    assert float(z.mean()) == pytest.approx(0, abs=1e-9)
    assert float(z.std(correction=1)) == pytest.approx(1)
    state.epoch, state.step = 1, state.steps // 2
    game.on_epoch_start(state)
    w = (state.memory["shapley/cell"] - 0.8 * m) / 0.2
    assert float(w.mean()) == pytest.approx(0, abs=1e-9)
    assert float(w.std(correction=1)) == pytest.approx(1)


def test_scores_are_the_mean_less_the_deviation_over_the_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """With marginals that are known: a player that is worth much in one order and nothing in the other ranks below a steady one."""
    found = torch.zeros(2, 9, dtype=torch.float64)
    found[:, 0] = torch.tensor([0.4, 0.0])
    found[:, 1] = 0.1
    module = import_module("oche.methods.shapley_nas")
    monkeypatch.setattr(module, "marginals", lambda games, orders, truncate: (found, 1.0, 0.5))
    state = begin(tiny_problem("toy", epochs=2), shapley_nas(K=2))
    Game(2, 24, start=0.0, initial=0.0).on_epoch_start(state)
    score = torch.zeros(9, dtype=torch.float64)
    score[0], score[1] = 0.2 - 0.2, 0.1 - 0.0
    expected = 0.2 * (score - score.mean()) / score.std(correction=1)
    torch.testing.assert_close(state.memory["shapley/cell"].flatten(), expected)


def test_orders_are_played_on_images_of_their_own_or_all_on_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module, drawn, played = import_module("oche.methods.shapley_nas"), list[Tensor](), list[int]()

    def noted(games: list[object], played_orders: list[Tensor], truncate: float) -> tuple[Tensor, float, float]:
        played.append(len(games))
        return torch.zeros(len(played_orders), 9, dtype=torch.float64), 1.0, 0.5

    class Seen(Game):
        def _images(self, state: SearchState, rng: torch.Generator) -> ImageSet:
            images = super()._images(state, rng)
            drawn.append(images.index)
            return images

    monkeypatch.setattr(module, "marginals", noted)
    for fresh in (True, False):
        state = begin(tiny_problem("toy", epochs=2), shapley_nas(K=2))
        Seen(3, 4, start=0.0, fresh=fresh).on_epoch_start(state)
    assert played == [3, 1]
    assert len(drawn) == 4
    assert not torch.equal(drawn[0], drawn[1])
    assert [len(index) for index in drawn] == [4] * 4


def test_the_log_says_what_the_orders_reached() -> None:
    state, record = begin(tiny_problem("toy", epochs=2), shapley_nas(K=2)), dict[str, object]()
    game = Game(2, 12, start=0.0, truncate=0.0)
    game.on_epoch_start(state)
    game.on_epoch_end(state, record)
    assert record["shapley_reached"] == 1.0
    assert 0.0 <= float(record["shapley_accuracy"]) <= 1.0  # type: ignore[arg-type]
    assert not any(key.startswith("shapley told") for key in state.memory)


def test_an_epoch_that_is_resumed_is_not_played_again() -> None:
    state = begin(tiny_problem("toy", epochs=2), shapley_nas(K=2))
    state.step = 1
    Game(1, 8, start=0.0).on_epoch_start(state)
    assert not state.memory


def test_shapley_nas_is_the_published_one() -> None:
    method = shapley_nas()
    assert method.callbacks == (Game(10, 1024, 0.5, 0.5, 0.8, 0.1, True, True, 1e-3, 1),)
    assert method.edge == PartialChannels(4)
    assert method.space == {"darts.without": ("none",)}
