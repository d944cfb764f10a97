"""ZARTS: its weights against a literal density, and its step on a bilevel quadratic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from oche.base import Alpha, Batch, Draw, Params
from oche.methods.zarts import Trials, loss_after, zarts
from oche.schedule import Constant
from oche.search.bilevel import Bilevel
from oche.search.loop import search
from reference.tiny import NoBatches, tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


def quadratic(step: int = 0) -> Bilevel:
    """inner = |w - a|^2 / 2, outer = |w - 1|^2 / 2 + |a - 1|^2 / 2: the minimiser is a = 1."""

    def inner(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return (theta["w"] - alpha["a"]).square().sum() / 2

    def outer(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return ((theta["w"] - 1).square().sum() + (alpha["a"] - 1).square().sum()) / 2

    return Bilevel(inner, outer, lambda theta, grads: theta, rate=lambda: 0.2, draw=lambda: Draw(5, step))


def test_the_shares_are_those_of_the_rule() -> None:
    trials, g = torch.tensor([[0.1, -0.2], [0.0, 0.3], [0.2, 0.2]]), torch.tensor([-0.1, 0.1])
    rise, sigma, far = [0.01, -0.02, 0.03], 0.4, 0.05
    weights = []
    for row, up in zip(trials.tolist(), rise, strict=True):

        def density(x: list[float], mean: list[float]) -> float:
            off = sum((a - b) ** 2 for a, b in zip(x, mean, strict=True))
            return math.exp(-off / (2 * sigma**2)) / (2 * math.pi * sigma**2)

        q = (1 - far) * density(row, [-t for t in g.tolist()]) + far * density(row, [0.0, 0.0])
        weights.append(math.exp(-up / 0.01) / (q + 1e-4))
    found = Trials(far=far).shares(torch.tensor(rise), trials, g, sigma)
    torch.testing.assert_close(found, torch.tensor(weights) / sum(weights))
    assert float(found.sum()) == pytest.approx(1.0)


def test_a_trial_is_judged_after_its_own_weight_steps() -> None:
    """w_k = a + 0.8^k (w_0 - a) here; the weights themselves rest."""
    theta, alpha = {"w": torch.tensor([3.0, -1.0])}, {"a": torch.tensor([0.5, 0.25])}
    found = loss_after(quadratic(), theta, alpha, NoBatches(), NoBatches().outer(), 6)
    w = alpha["a"] + 0.8**6 * (theta["w"] - alpha["a"])
    torch.testing.assert_close(found, ((w - 1).square().sum() + (alpha["a"] - 1).square().sum()) / 2)
    assert torch.equal(theta["w"], torch.tensor([3.0, -1.0]))


def test_alpha_approaches_the_minimiser() -> None:
    alpha, theta = {"a": torch.tensor([3.0, -2.0], requires_grad=True)}, {"w": torch.zeros(2)}
    trials = Trials(8, 5, sigma=Constant(0.3), tau=0.05)
    first = float((alpha["a"] - 1).detach().norm())
    for step in range(60):
        _, grads = trials(quadratic(step), theta, alpha, NoBatches())
        alpha = {"a": (alpha["a"] - grads["a"]).detach().requires_grad_()}
        theta = {"w": theta["w"] + 0.5 * (alpha["a"].detach() - theta["w"])}
    assert float((alpha["a"] - 1).detach().norm()) < first / 5


def test_a_search_waits_for_the_weights_and_then_steps_every_m() -> None:
    problem = tiny_problem("nb201", epochs=5, channels=4, cells=1)
    method = zarts(N=2, M=2)
    assert problem.space.without == ()
    state = search(problem, method).state
    rows = next(iter(state.trajectory.values()))
    assert torch.equal(rows[0], rows[1])  # the first fifth trains weights alone
    assert not torch.equal(rows[1], rows[-1])
    assert method.space == {"without": ("none",)}
