"""DDPNAS: its epochs, its sweeps, and that the best operations survive where accuracy is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from typing import Literal

import pytest
import torch

from oche.data import Fractions
from oche.errors import UserError
from oche.methods.ddpnas import Place, Prune, ddpnas, told
from oche.optim import SGD
from oche.search.begin import begin
from oche.search.loop import search
from oche.search.state import SearchState
from reference.tiny import tiny_problem


def played(monkeypatch: pytest.MonkeyPatch, worth: torch.Tensor, epochs: int, sign: float = 1.0) -> SearchState:
    """All epochs without training; the visited cell is as accurate as its operations are worth together."""
    state = begin(tiny_problem("nb201", epochs=epochs, channels=4, cells=1), ddpnas())

    def accuracy(state: SearchState, problem: object, weights: dict[str, torch.Tensor], images: object) -> float:
        return float(0.5 + sign * (worth * next(iter(weights.values()))).sum())

    monkeypatch.setattr(import_module("oche.methods.ddpnas"), "supernet_accuracy", accuracy)
    visits = list[torch.Tensor]()
    for epoch in range(epochs):
        state.epoch = epoch
        Prune(3).on_epoch_start(state)
        visits.append(state.alpha["cell/now"].detach().clone())
        Prune(3).on_epoch_end(state, {})
    state.memory["visits"] = torch.stack(visits)
    return state


WORTH = torch.tensor([[0.0, 0.02, 0.05, 0.01, 0.03]]).roll(1, 1).repeat(6, 1)


def test_it_takes_forty_two_epochs_in_nas_bench_201(monkeypatch: pytest.MonkeyPatch) -> None:
    state = played(monkeypatch, WORTH, 42)
    assert state.alive(state.space.groups[0]).sum(-1).tolist() == [1] * 6


def test_with_fewer_epochs_there_are_fewer_sweeps() -> None:
    def place(epochs: int, epoch: int) -> Place | None:
        state = begin(tiny_problem("nb201", epochs=epochs, channels=4, cells=1), ddpnas())
        return Prune(3).place(replace(state, epoch=epoch))

    assert place(42, 0) == Place(5, 0, 0)
    assert place(30, 1) is None  # 2 sweeps of 14 visits, after 2 epochs of warm-up
    assert place(30, 2) == Place(5, 0, 0)
    assert [place(14, epoch) for epoch in (0, 5, 13)] == [Place(5, 0, 0), Place(4, 0, 0), Place(2, 0, 1)]
    with pytest.raises(UserError, match="14 epochs at least"):
        place(13, 0)


def test_a_sweep_visits_every_remaining_operation_of_every_edge_once(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = played(monkeypatch, WORTH, 42).memory["visits"]
    assert torch.equal(visits.sum(-1), torch.ones(42, 6))
    start = 0
    for left in (5, 4, 3, 2):
        for _ in range(3):
            sweep = visits[start : start + left].sum(0)
            assert (
                sorted(Counter(sweep.flatten().tolist()).items()) == [(0.0, 6 * (5 - left)), (1.0, 6 * left)]
                or left == 5
            )
            assert sweep.max() == 1
            assert (sweep.sum(-1) == left).all()
            start += left


@pytest.mark.parametrize(("sign", "survivor"), [(1.0, 3), (-1.0, 1)])
def test_the_best_survive_accuracy_and_the_worst_error(
    monkeypatch: pytest.MonkeyPatch, sign: float, survivor: int
) -> None:
    """An additive objective; every edge is the same, so its best operation is the best everywhere."""
    worth = torch.zeros(6, 5)
    worth[0] = 4 * torch.tensor([0.02, 0.0, 0.03, 0.08, 0.01])
    state = played(monkeypatch, worth, 42, sign)
    assert int(state.alive(state.space.groups[0])[0].int().argmax()) == survivor


@pytest.mark.parametrize(("draw", "late"), [("uniform", 0.5), ("theta", 0.02)])
def test_orders_are_uniform_or_drawn_by_theta(draw: Literal["uniform", "theta"], late: float) -> None:
    """How often the first visit of a sweep is of an operation that theta all but excludes."""
    problem, first = tiny_problem("nb201", epochs=42, channels=4, cells=1), []
    state = begin(problem, ddpnas())
    state.epoch = 36  # two operations are left
    state.mask["cell"] = torch.arange(5).expand(6, 5) < 2
    state.alpha["cell/alpha"].data.copy_(torch.tensor([0.98, 0.02, 0.0, 0.0, 0.0]))
    for seed in range(60):
        Prune(3, draw=draw).on_epoch_start(replace(state, problem=replace(problem, seed=seed)))
        first.append(state.alpha["cell/now"][:, 1].detach().clone())
    assert float(torch.stack(first).mean()) == pytest.approx(late, abs=0.09)


def test_the_momentum_of_a_round_is_kept_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """v after the second round is 0.9 v1 + 0.1 E2, by a literal second derivation from what was seen."""
    seen: list[tuple[torch.Tensor, ...]] = []
    module = import_module("oche.methods.ddpnas")

    def noted(theta: torch.Tensor, v: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        new, after = told(theta, v, *rest)  # type: ignore[arg-type]
        seen.append((theta, v, after, rest[0]))  # type: ignore[arg-type]
        return new, after

    monkeypatch.setattr(module, "told", noted)
    played(monkeypatch, WORTH, 42)
    assert not seen[0][1].any()
    assert [len(sweeps) for _, _, _, sweeps in seen] == [3, 3, 3, 3]
    assert [int((sweeps > 0).sum()) for _, _, _, sweeps in seen] == [3 * 6 * left for left in (5, 4, 3, 2)]
    for (_, _, after, _), (theta, v, _, _) in pairwise(seen):
        assert torch.equal(v, after)
        torch.testing.assert_close(theta.sum(-1), torch.ones(6))


def test_the_distribution_begins_uniform_and_the_visited_op_alone_has_weight_one() -> None:
    state = begin(tiny_problem("darts", epochs=35, channels=4, cells=3, nodes=1, batch=16), ddpnas(1))
    Prune(1).on_epoch_start(state)
    for group in state.space.groups:
        torch.testing.assert_close(state.alpha[f"{group.name}/alpha"].detach(), torch.full((2, 8), 1 / 8))
        weights = state.relaxation(state.alpha, group, state.draw("weight"))
        assert torch.equal(weights.detach(), state.alpha[f"{group.name}/now"].detach())
        assert sorted(weights.detach().flatten().tolist()) == [0.0] * 14 + [1.0] * 2


def test_the_log_says_how_many_operations_are_left() -> None:
    state, record = begin(tiny_problem("nb201", epochs=42, channels=4, cells=1), ddpnas()), dict[str, object]()
    state.mask["cell"] = torch.arange(5).expand(6, 5) < torch.tensor([2, 3, 2, 2, 2, 2])[:, None]
    state.epoch = 33
    Prune(3).on_epoch_start(state)
    Prune(3).on_epoch_end(state, record)
    assert record["operations_left"] == 3


def test_ddpnas_is_the_published_one() -> None:
    method = ddpnas()
    assert method.callbacks == (Prune(3, 0.9, "uniform"),)
    assert (method.split, method.arch_start) == (Fractions(0.8, 0.2), 1.0)
    assert method.weight_optimizer == SGD(0.9, 5e-4)


def test_what_is_told_is_the_rule_s() -> None:
    theta, v = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.0, 0.0]])
    seen, alive = torch.tensor([[[0.50, 0.52, 0.9]], [[0.40, 0.45, 0.9]]]), torch.tensor([[True, True, False]])
    new, found = told(theta, v, seen, alive, 0.9)
    share = [1 / (1 + 2.718281828459045 ** (100 * gap)) for gap in (0.02, 0.05)]
    e = torch.tensor([[sum(share) / 2, 1 - sum(share) / 2, 0.0]])
    torch.testing.assert_close(found, 0.9 * v + 0.1 * e)
    expected = (theta + found) * alive
    torch.testing.assert_close(new, expected / expected.sum())


def test_a_search_ends_with_one_operation_an_edge() -> None:
    problem = tiny_problem("toy", epochs=6, count=48)
    state = search(problem, ddpnas(sweeps=1)).state
    assert state.alive(state.space.groups[0]).sum(-1).tolist() == [1, 1, 1]
    assert not state.arch_optimizer.state
    assert replace(state, mask={}).alive(state.space.groups[0]).all()
