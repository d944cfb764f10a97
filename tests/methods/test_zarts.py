"""ZARTS: its weights against a literal density, and its step on a bilevel quadratic."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from oche.base import Alpha, Batch, Draw, Params
from oche.methods.zarts import Rule, Trials, loss_after, shifted, zarts
from oche.optim import Descent
from oche.schedule import Constant
from oche.search.bilevel import Bilevel
from oche.search.loop import search
from reference.real import digits, epochs_of, real_problem
from reference.tiny import NoBatches, tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


def quadratic(step: int = 0) -> Bilevel:
    """inner = |w - a|^2 / 2, outer = |w - 1|^2 / 2 + |a - 1|^2 / 2: the minimiser is a = 1."""

    def inner(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return (theta["w"] - alpha["a"]).square().sum() / 2

    def outer(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return ((theta["w"] - 1).square().sum() + (alpha["a"] - 1).square().sum()) / 2

    return Bilevel(inner, outer, lambda theta, grads: theta, rate=lambda: 0.2, draw=lambda: Draw(5, step))


@pytest.mark.parametrize("rule", ["code", "paper"])
def test_the_shares_are_those_of_the_rule(rule: Rule) -> None:
    trials, g = torch.tensor([[0.1, -0.2], [0.0, 0.3], [0.2, 0.2]]), torch.tensor([-0.1, 0.1])
    losses, sigma, far, tau = [2.01, 1.98, 2.03], 0.1, 0.05, 0.02
    weights = []
    for (x, y), loss in zip(trials.tolist(), losses, strict=True):
        near, own = (x - 0.1) ** 2 + (y + 0.1) ** 2, x**2 + y**2
        if rule == "code":
            q = (1 - far) * math.exp(-near / (2 * sigma**2)) + far * math.exp(-own / 2.0 * sigma**2)
        else:
            q = ((1 - far) * math.exp(-near / (2 * sigma**2)) + far * math.exp(-own / (2 * sigma**2))) / (
                2 * math.pi * sigma**2
            )
        weights.append(math.exp(-(loss - 2.0) / tau) / (q + 1e-4))
    found = Trials(far=far, tau=tau, rule=rule).shares(torch.tensor(losses), trials, g, sigma)
    torch.testing.assert_close(found, torch.tensor(weights) / sum(weights))
    assert float(found.sum()) == pytest.approx(1.0)


def test_the_proposals_are_a_sum_of_two_noises_and_not_a_mixture() -> None:
    """Mean -(1 - l) g and variance ((1 - l)^2 + l^2) s^2; the mixture's mean is the same, its variance is not."""
    g, n = torch.tensor([3.0, -1.0, 0.5]), 40_000
    for rule, variance in (("code", 0.7**2 + 0.3**2), ("paper", 1.0 + 0.21 * 9 / 0.01)):
        part = Trials(samples=n, far=0.3, rule=rule)  # type: ignore[arg-type]
        found = part.proposals(g, 0.1, torch.Generator().manual_seed(1))
        torch.testing.assert_close(found.mean(0), -0.7 * g, atol=0.05, rtol=0)
        assert float(found[:, 0].var()) == pytest.approx(variance * 0.01, rel=0.05)


def test_the_noise_narrows_from_the_end_of_the_warm_up_on() -> None:
    part = zarts().arch_gradient
    assert isinstance(part, Trials)
    assert [part.spread(p) for p in (0.0, 0.2)] == [0.025, 0.025]
    assert part.spread(0.6) == pytest.approx(0.0125)
    assert part.spread(1.0) == pytest.approx(0.0, abs=1e-9)
    assert zarts().arch_start == part.since == 0.2
    assert part == Trials()
    assert zarts().arch_optimizer == Descent(1.0), "the gradient is minus the step"
    assert (part.samples, part.steps, part.far, part.tau, part.rule) == (4, 10, 1e-3, 0.01, "code")


def test_a_trial_is_judged_after_its_own_weight_steps() -> None:
    """w_k = a + 0.8^k (w_0 - a) here; the weights themselves rest."""
    theta, alpha = {"w": torch.tensor([3.0, -1.0])}, {"a": torch.tensor([0.5, 0.25])}
    found = loss_after(quadratic(), theta, alpha, NoBatches(), NoBatches().outer(), 6)
    w = alpha["a"] + 0.8**6 * (theta["w"] - alpha["a"])
    torch.testing.assert_close(found, ((w - 1).square().sum() + (alpha["a"] - 1).square().sum()) / 2)
    assert torch.equal(theta["w"], torch.tensor([3.0, -1.0]))


def test_a_trial_lies_at_alpha_plus_its_step_and_the_log_counts_whom_the_step_follows() -> None:
    alpha = {"a": torch.tensor([3.0, -2.0]), "b": torch.tensor([1.0])}
    found = shifted(alpha, torch.tensor([0.5, 1.0, -4.0]))
    assert {name: t.tolist() for name, t in found.items()} == {"a": [3.5, -1.0], "b": [-3.0]}
    told: dict[str, Tensor] = {}
    problem = replace(quadratic(), meter=lambda **numbers: told.update(numbers))
    Trials(1, 2)(problem, {"w": torch.zeros(2)}, {"a": torch.tensor([3.0, -2.0], requires_grad=True)}, NoBatches())
    assert {name: float(t) for name, t in told.items()} == {"largest_share": 1, "best_followed": 1, "trial_steps": 1}


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


def test_copies_train_on_the_weights_images_and_are_judged_on_alphas() -> None:
    """Every inner loss sees an inner batch, every outer one the step's outer batch."""
    seen: list[tuple[str, float]] = []
    plain = quadratic()

    class Marked:
        def inner(self, ahead: int = 0) -> Batch:
            return Batch(torch.tensor([float(ahead)]), torch.zeros(1))

        def outer(self) -> Batch:
            return Batch(torch.tensor([-1.0]), torch.zeros(1))

    def inner(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        seen.append(("inner", float(batch.images)))
        return plain.inner(theta, alpha, batch)

    def outer(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        seen.append(("outer", float(batch.images)))
        return plain.outer(theta, alpha, batch)

    alpha, theta = {"a": torch.tensor([3.0, -2.0], requires_grad=True)}, {"w": torch.zeros(2)}
    Trials(2, 3)(replace(plain, inner=inner, outer=outer), theta, alpha, Marked())
    copy = [("inner", 0.0), ("inner", 1.0), ("inner", 2.0), ("outer", -1.0)]
    assert seen == [("outer", -1.0), *copy, *copy]


@pytest.mark.slow
@pytest.mark.parametrize("space", ["nb201", "darts"])
def test_the_largest_share_lies_at_the_lowest_loss(space: str) -> None:
    """On digits, in more steps than chance has it: one of four, by an exact binomial test at 1e-6; the paper's rule fails it."""
    torch.set_default_dtype(torch.float32)
    for rule in ("code", "paper"):
        told: list[dict[str, Any]] = []
        problem = real_problem(space, digits(), 3, 16, listener=epochs_of(told), without=("none",))
        method = replace(zarts(M=1, rule=rule), arch_start=0.0)  # type: ignore[arg-type]
        search(problem, method)
        steps = told[-1]["step"]
        hits = round(sum(record["best_followed"] for record in told) * steps / len(told))
        chance = sum(math.comb(steps, k) * 0.25**k * 0.75 ** (steps - k) for k in range(hits, steps + 1))
        assert steps >= 60
        assert (chance < 1e-6) == (rule == "code"), f"{hits} of {steps}"
        assert 0.25 < told[-1]["largest_share"] <= 1
