"""iDARTS on quadratics whose hypergradient is known at every truncation, and its displacement of the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.methods.darts import darts
from oche.methods.idarts import ImplicitNeumann, Terms, idarts
from oche.search.begin import begin
from oche.search.bilevel import Bilevel
from oche.search.callbacks import Callback, InnerStep, OuterStep
from oche.search.loop import search
from oche.search.method import Method
from oche.search.state import SearchState
from reference.real import digits, epochs_of, real_problem
from reference.tiny import NoBatches, tiny_problem

RATE = 0.1


pytestmark = pytest.mark.usefixtures("float64")


def quadratic(scale: float = 1.0) -> tuple[Bilevel, Params, Alpha, Tensor, Tensor, Tensor]:
    """inner = (w - B a)^T H (w - B a) / 2, outer = |w - t|^2 / 2, at w = B a."""
    rng = torch.Generator().manual_seed(4)
    m = torch.randn(5, 5, generator=rng)
    h = scale * (m @ m.T / 5 + torch.eye(5))
    b, t = torch.randn(5, 3, generator=rng), torch.randn(5, generator=rng)
    alpha = {"a": torch.randn(3, generator=rng).requires_grad_()}
    theta = {"w": (b @ alpha["a"].detach()).requires_grad_()}

    def inner(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        off = theta["w"] - b @ alpha["a"]
        return off @ h @ off / 2

    def outer(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return (theta["w"] - t).square().sum() / 2

    return Bilevel(inner, outer, lambda theta, grads: theta, rate=lambda: RATE), theta, alpha, h, b, t


@pytest.mark.parametrize("terms", [0, 1, 2, 7])
def test_it_is_the_truncated_series(terms: int) -> None:
    problem, theta, alpha, h, b, t = quadratic()
    _, found = ImplicitNeumann(terms)(problem, theta, alpha, NoBatches())
    power = torch.eye(5) - RATE * h
    series = sum(torch.linalg.matrix_power(power, k) for k in range(terms + 1))
    expected = RATE * b.T @ h @ series @ (theta["w"].detach() - t)  # type: ignore[operator]
    torch.testing.assert_close(found["a"], expected, rtol=1e-10, atol=1e-12)


def test_what_has_no_part_in_a_loss_has_no_gradient() -> None:
    problem, theta, alpha, *_ = quadratic()
    _, plain = ImplicitNeumann()(problem, theta, alpha, NoBatches())
    more = {"w": theta["w"], "idle": torch.ones(2, requires_grad=True)}
    _, found = ImplicitNeumann()(problem, more, {**alpha, "idle": torch.ones(4, requires_grad=True)}, NoBatches())
    torch.testing.assert_close(found, {**plain, "idle": torch.zeros(4)})


def test_the_log_has_the_mean_number_of_terms() -> None:
    told: list[dict[str, float]] = []
    for scale, terms in ((1.0, 2), (1.0, 3), (100.0, 3)):
        problem, theta, alpha, *_ = quadratic(scale)
        problem = replace(problem, meter=lambda **numbers: told.append(numbers))
        ImplicitNeumann(terms)(problem, theta, alpha, NoBatches())
    assert told == [{"neumann_terms": float(n), "neumann_steps": 1.0} for n in (2, 3, 0)]
    state, record = begin(tiny_problem("toy"), idarts()), dict[str, object]()
    Terms().on_epoch_end(state, record)
    assert record == {}
    assert idarts().arch_gradient == ImplicitNeumann(2, residual_noise=False) == ImplicitNeumann()


def test_it_tends_to_the_implicit_hypergradient() -> None:
    problem, theta, alpha, _, b, t = quadratic()
    _, found = ImplicitNeumann(500)(problem, theta, alpha, NoBatches())
    torch.testing.assert_close(found["a"], b.T @ (theta["w"].detach() - t), rtol=1e-8, atol=1e-8)


def test_a_series_that_would_diverge_is_cut() -> None:
    problem, theta, alpha, *_ = quadratic(scale=100.0)
    _, found = ImplicitNeumann(30)(problem, theta, alpha, NoBatches())
    _, first = ImplicitNeumann(0)(problem, theta, alpha, NoBatches())
    torch.testing.assert_close(found["a"], first["a"])


def test_weights_rest_unless_the_code_s_noise_is_asked_for() -> None:
    problem, theta, alpha, h, _, t = quadratic()
    before = theta["w"].detach().clone()
    ImplicitNeumann(2)(problem, theta, alpha, NoBatches())
    assert torch.equal(theta["w"], before)
    ImplicitNeumann(2, residual_noise=True)(problem, theta, alpha, NoBatches())
    v = before - t
    power = torch.eye(5) - RATE * h
    s = v + power @ v + power @ power @ v
    torch.testing.assert_close(theta["w"].detach() - before, 0.01 / v.norm() * (v - s))


@dataclass(frozen=True)
class Weigh(Callback):
    """Writes down how many weight steps there have been at each step of alpha."""

    seen: list[int]
    done: list[int]

    def after_inner_backward(self, state: SearchState, grads: Params, step: InnerStep) -> Params:
        self.done.append(state.step)
        return grads

    def after_outer_backward(self, state: SearchState, grads: Alpha, outer: OuterStep) -> Alpha:
        self.seen.append(len(self.done))
        return grads


@pytest.mark.parametrize(
    ("method", "seen"),
    [
        (idarts(T=4), [4]),
        (idarts(T=2), [2, 4, 6]),
        (idarts(T=1), [1, 2, 3, 4, 5, 6]),
        (replace(darts(), arch_every=4), [0, 4]),
    ],
)
def test_alpha_steps_after_every_t_weight_steps_or_before_them(method: Method, seen: list[int]) -> None:
    callback = Weigh([], [])
    search(tiny_problem("toy", epochs=2), replace(method, callbacks=(callback,)))  # 6 steps
    assert callback.seen == seen


@pytest.mark.slow
def test_on_digits_the_series_is_taken_up_and_alpha_moves() -> None:
    """A step of alpha per four of the weights, with at most K terms each, and the guard is no rule: some terms shrink."""
    torch.set_default_dtype(torch.float32)
    told: list[dict[str, Any]] = []
    problem = real_problem("nb201", digits(), 3, listener=epochs_of(told))
    state = search(problem, idarts()).state
    assert 0 < told[-1]["neumann_terms"] <= 2
    first, last = (state.trajectory["cell/alpha"][i] for i in (0, -1))
    assert float((last - first).abs().max()) > 1e-3
    adam = state.arch_optimizer.state[state.alpha["cell/alpha"]]
    assert int(adam["step"]) == told[-1]["step"] // 4
