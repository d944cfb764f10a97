"""Every architecture gradient against the closed form of a quadratic bilevel problem, in float64.

    inner = 0.5 theta' A theta - theta' B alpha        outer = 0.5 |theta - c|^2 + theta' E alpha + d' alpha

With theta_1 = theta - s (A theta - B alpha + ...) after a step of SGD, d theta_1 / d alpha = s B whatever the momentum buffer, so

    d outer(theta_1, alpha) / d alpha = d + E' theta_1 + s B' (theta_1 - c + E alpha).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.methods.darts import darts
from oche.optim import SGD, Adam, set_rate
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import (
    ArchGradient,
    Bilevel,
    FiniteDifference,
    FirstOrder,
    Unrolled,
    gradient,
    packed,
    unpacked,
)
from oche.search.loop import set_learning_rate
from oche.search.state import SearchState
from reference.tiny import NoBatches, tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


N, M = 5, 3  # weights, architecture parameters
NOTHING = Batch(torch.zeros(1), torch.zeros(1))


@dataclass
class Quadratic:
    """A random problem of this seed; theta and alpha are split in two tensors each, of different shapes."""

    seed: int
    lr: float = 0.1
    sgd: SGD = SGD(momentum=0.0, weight_decay=0.0)
    steps_before: int = 0
    wave: float = 0.0  # adds wave * sum sin(theta_i) (Q alpha)_i to the inner loss, so that it is no quadratic

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)
        root = torch.randn(N, N, generator=rng)
        self.A = root @ root.T / N + torch.eye(N)
        self.B, self.E, self.Q = (torch.randn(N, M, generator=rng) for _ in range(3))
        self.c, self.d = torch.randn(N, generator=rng), torch.randn(M, generator=rng)
        start = torch.randn(N, generator=rng)
        self.theta = {"u": start[:2].clone(), "v": start[2:].reshape(3, 1).clone()}
        alpha = torch.randn(M, generator=rng)
        self.alpha = {"g/a": alpha[:1].clone().requires_grad_(), "g/b": alpha[1:].clone().requires_grad_()}
        for t in self.theta.values():
            t.requires_grad_()
        self.optimizer = self.sgd(list(self.theta.values()))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        for _ in range(self.steps_before):
            for t in self.theta.values():
                t.grad = torch.randn(t.shape, generator=rng)
            self.optimizer.step()

    def inner(self, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        t, a = flat(theta), flat(alpha)
        return 0.5 * t @ self.A @ t - t @ self.B @ a + self.wave * (t.sin() * (self.Q @ a)).sum()

    def outer(self, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        t, a = flat(theta), flat(alpha)
        return 0.5 * (t - self.c).square().sum() + t @ self.E @ a + self.d @ a

    def problem(self) -> Bilevel:
        return Bilevel(self.inner, self.outer, lambda theta, g: self.sgd.look_ahead(theta, g, self.optimizer))

    def by(self, arch_gradient: ArchGradient) -> tuple[Tensor, Tensor]:
        loss, grads = arch_gradient(self.problem(), self.theta, self.alpha, NoBatches())
        assert set(grads) == set(self.alpha)
        assert not any(t.requires_grad for t in (loss, *grads.values()))
        return loss, flat(grads)

    def closed_form(self) -> tuple[Tensor, Tensor]:
        """(outer loss after the step, its gradient in alpha), for wave = 0, by hand."""
        with torch.no_grad():
            t, a, mu = flat(self.theta), flat(self.alpha), self.sgd.momentum
            step = self.A @ t - self.B @ a + self.sgd.weight_decay * t
            size = self.lr * (1 + mu if self.sgd.nesterov else 1)
            buffers = [self.optimizer.state.get(p, {}).get("momentum_buffer") for p in self.theta.values()]
            old = torch.zeros(N) if buffers[0] is None else torch.cat([b.flatten() for b in buffers])
            ahead = t - size * step - self.lr * mu * (mu if self.sgd.nesterov else 1) * old
            loss = self.outer({"t": ahead}, {"a": a}, NOTHING)
            return loss, self.d + self.E.T @ ahead + size * self.B.T @ (ahead - self.c + self.E @ a)


def flat(tree: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tree.values()])


SGDS = {
    "plain": SGD(momentum=0.0, weight_decay=0.0),
    "momentum": SGD(momentum=0.9, weight_decay=0.01),
    "nesterov": SGD(momentum=0.9, weight_decay=0.01, nesterov=True, nesterov_ahead=True),
}
random_problems = given(
    seed=st.integers(0, 2**31),
    lr=st.floats(1e-3, 0.5),
    sgd=st.sampled_from(list(SGDS.values())),
    steps_before=st.integers(0, 3),
)


# ---------------------------------------------------------------------- closed forms


@random_problems
def test_first_order_is_the_direct_derivative(seed: int, lr: float, sgd: SGD, steps_before: int) -> None:
    q = Quadratic(seed, lr, sgd, steps_before)
    loss, grad = q.by(FirstOrder())
    torch.testing.assert_close(grad, (q.d + q.E.T @ flat(q.theta)).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, q.outer(q.theta, q.alpha, NOTHING).detach())


@random_problems
def test_unrolled_equals_the_closed_form(seed: int, lr: float, sgd: SGD, steps_before: int) -> None:
    q = Quadratic(seed, lr, sgd, steps_before)
    got, expected = q.by(Unrolled()), q.closed_form()
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@random_problems
def test_finite_difference_is_exact_on_a_quadratic(seed: int, lr: float, sgd: SGD, steps_before: int) -> None:
    """The mixed derivative of the inner loss is constant there, so only rounding is left."""
    q = Quadratic(seed, lr, sgd, steps_before)
    torch.testing.assert_close(q.by(FiniteDifference()), q.closed_form(), rtol=1e-9, atol=1e-9)


def test_the_second_term_is_not_small() -> None:
    """Else the closed forms would also hold for an implementation without it."""
    for sgd in SGDS.values():
        q = Quadratic(1, 0.1, sgd)
        assert (q.by(Unrolled())[1] - q.by(FirstOrder())[1]).abs().max() > 0.1


@given(seed=st.integers(0, 2**31), name=st.sampled_from(list(SGDS)), steps_before=st.integers(0, 2))
def test_unrolled_equals_plain_autograd(seed: int, name: str, steps_before: int) -> None:
    """A second derivation, for a loss that is no quadratic: autograd straight through the step."""
    q = Quadratic(seed, 0.1, SGDS[name], steps_before, wave=1.0)
    g = torch.autograd.grad(q.inner(q.theta, q.alpha, NOTHING), list(q.theta.values()), create_graph=True)
    ahead = q.sgd.look_ahead(q.theta, dict(zip(q.theta, g, strict=True)), q.optimizer)
    expected = flat(gradient(q.outer(ahead, q.alpha, NOTHING), q.alpha))
    torch.testing.assert_close(q.by(Unrolled())[1], expected, rtol=1e-11, atol=1e-11)


@given(seed=st.integers(0, 2**31), name=st.sampled_from(list(SGDS)))
def test_finite_difference_converges_to_unrolled(seed: int, name: str) -> None:
    """A central difference: the error falls with the square of the radius."""
    q = Quadratic(seed, 0.1, SGDS[name], wave=1.0)
    exact = q.by(Unrolled())[1]
    errors = [float((q.by(FiniteDifference(r))[1] - exact).norm()) for r in (0.2, 0.1, 0.05)]
    for coarse, fine in pairwise(errors):
        assert 3.9 < coarse / fine < 4.1
    assert float((q.by(FiniteDifference(1e-4))[1] - exact).norm()) < 1e-7 * max(1.0, float(exact.norm()))


def test_finite_difference_stands_still_where_there_is_no_direction() -> None:
    """At u = 0 (a learning rate of zero) the radius over its norm must not become a NaN."""
    q = Quadratic(2, lr=0.0)
    torch.testing.assert_close(q.by(FiniteDifference())[1], q.by(FirstOrder())[1])


@pytest.mark.parametrize(
    "arch_gradient", [FirstOrder(), Unrolled(), FiniteDifference()], ids=lambda g: type(g).__name__
)
def test_nothing_is_left_behind(arch_gradient: ArchGradient) -> None:
    """theta, alpha and the optimiser are as they were, bit for bit, and nothing was accumulated."""
    q = Quadratic(5, sgd=SGDS["nesterov"], steps_before=1)
    for t in q.theta.values():
        t.grad = None
    before = [t.detach().clone() for t in (*q.theta.values(), *q.alpha.values())]
    buffers = [s["momentum_buffer"].clone() for s in q.optimizer.state.values()]
    q.by(arch_gradient)
    assert all(torch.equal(a, b) for a, b in zip(before, (*q.theta.values(), *q.alpha.values()), strict=True))
    assert all(torch.equal(a, s["momentum_buffer"]) for a, s in zip(buffers, q.optimizer.state.values(), strict=True))
    assert all(t.grad is None for t in (*q.theta.values(), *q.alpha.values()))


# ---------------------------------------------------------------------- terms

TermOf = Callable[[Params, Alpha], Tensor]


@pytest.mark.parametrize(
    "arch_gradient", [FirstOrder(), Unrolled(), FiniteDifference()], ids=lambda g: type(g).__name__
)
@given(seed=st.integers(0, 2**31))
def test_an_outer_term_adds_its_own_derivative(arch_gradient: ArchGradient, seed: int) -> None:
    """A term of alpha alone, so its derivative is the same at theta and at theta_1."""
    q = Quadratic(seed, sgd=SGDS["momentum"], wave=0.5)
    plain = q.by(arch_gradient)[1]

    def with_term(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return q.outer(theta, alpha, batch) + flat(alpha).pow(3).sum()

    _, grads = arch_gradient(replace(q.problem(), outer=with_term), q.theta, q.alpha, NoBatches())
    torch.testing.assert_close(flat(grads) - plain, 3 * flat(q.alpha).detach().square(), rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 2**31), name=st.sampled_from(list(SGDS)))
def test_an_outer_term_in_theta_reaches_through_the_step(seed: int, name: str) -> None:
    """tau' theta adds s B' tau to the unrolled gradient, and nothing to the first-order one."""
    q = Quadratic(seed, sgd=SGDS[name])
    tau = torch.randn(N, generator=torch.Generator().manual_seed(seed + 1))
    size = q.lr * (1 + q.sgd.momentum if q.sgd.nesterov else 1)

    def with_term(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return q.outer(theta, alpha, batch) + tau @ flat(theta)

    added = {FirstOrder(): torch.zeros(M), Unrolled(): size * q.B.T @ tau, FiniteDifference(): size * q.B.T @ tau}
    for arch_gradient, expected in added.items():
        _, grads = arch_gradient(replace(q.problem(), outer=with_term), q.theta, q.alpha, NoBatches())
        torch.testing.assert_close(flat(grads) - q.by(arch_gradient)[1], expected, rtol=1e-8, atol=1e-8)


@dataclass(frozen=True)
class AlphaSquared:
    """0.5 |alpha|^2, whose derivative is alpha."""

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return 0.5 * sum((t.square().sum() for t in alpha.values()), torch.zeros(()))


@dataclass(frozen=True)
class Coupling:
    """sum over alpha times sum over theta: as an inner term it changes every second-order gradient."""

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return sum(t.sum() for t in alpha.values()) * sum((t.sum() for t in theta.values()), torch.zeros(()))


@pytest.mark.parametrize(
    "arch_gradient", [FirstOrder(), Unrolled(), FiniteDifference()], ids=lambda g: type(g).__name__
)
def test_a_method_s_terms_reach_the_gradient(arch_gradient: ArchGradient) -> None:
    """In the loop: outer_terms add their derivative; inner_terms reach second-order gradients and leave the first-order one."""
    problem = tiny_problem("toy")
    method = replace(darts(), arch_gradient=arch_gradient)

    def grads(**slots: object) -> tuple[SearchState, Tensor]:
        own = replace(method, **slots)
        state = begin(problem, own)
        weights, arch = streams(problem, own)
        set_learning_rate(state, own, weights.steps_per_epoch)
        losses = bilevel(state, own)
        _, found = own.arch_gradient(losses, state.theta, state.alpha, StepBatches(weights, arch, 0))
        return state, flat(found)

    state, plain = grads()
    _, outer = grads(outer_terms=(AlphaSquared(),))
    torch.testing.assert_close(outer - plain, flat(state.alpha).detach(), rtol=1e-9, atol=1e-10)
    _, inner = grads(inner_terms=(Coupling(),))
    if isinstance(arch_gradient, FirstOrder):
        assert torch.equal(inner, plain)
    else:
        assert (inner - plain).abs().max() > 1e-4


# ---------------------------------------------------------------------- the look-ahead


@given(
    seed=st.integers(0, 2**31),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 3e-4, 0.1]),
    nesterov=st.booleans(),
    decay_vectors=st.booleans(),
    lr=st.floats(1e-4, 1.0),
    steps_before=st.integers(0, 3),
)
def test_look_ahead_is_the_next_step_of_torch(
    seed: int, momentum: float, weight_decay: float, nesterov: bool, decay_vectors: bool, lr: float, steps_before: int
) -> None:
    """Also before the first step, when there is no momentum buffer."""
    sgd = SGD(momentum, weight_decay, nesterov and momentum > 0, decay_vectors, nesterov_ahead=True)
    rng = torch.Generator().manual_seed(seed)
    theta = {name: torch.randn(shape, generator=rng).requires_grad_() for name, shape in (("u", (2,)), ("v", (3, 1)))}
    optimizer = sgd(list(theta.values()))
    optimizer.param_groups[0]["lr"] = lr
    for step in range(steps_before + 1):
        grads = {name: torch.randn(t.shape, generator=rng) for name, t in theta.items()}
        ahead = sgd.look_ahead(theta, grads, optimizer)
        for name, t in theta.items():
            t.grad = grads[name].clone()
        optimizer.step()
        assert flat(ahead).requires_grad, "the look-ahead is differentiable"
        torch.testing.assert_close(flat(ahead).detach(), flat(theta).detach(), rtol=0, atol=1e-12, msg=f"{step=}")


@pytest.mark.parametrize("nesterov", [False, True])
def test_weight_decay_that_spares_vectors_is_that_of_two_groups(nesterov: bool) -> None:
    """One of torch's own: matrices with decay, vectors without; a weight without a gradient rests in both."""
    rng = torch.Generator().manual_seed(3)
    starts = [torch.randn(shape, generator=rng) for shape in ((3,), (2, 3), (4, 2, 1, 1), (), (2, 2))]
    ours, theirs = ([t.clone().requires_grad_() for t in starts] for _ in range(2))
    one = SGD(0.9, 0.1, nesterov, decay_vectors=False)(ours)
    set_rate(one, 0.3)
    groups = [
        {"params": [t for t in theirs if (t.ndim > 1) == large], "weight_decay": 0.1 * large} for large in (True, False)
    ]
    two = torch.optim.SGD(groups, lr=0.3, momentum=0.9, nesterov=nesterov)
    for _ in range(4):
        for a, b in zip(ours[:-1], theirs[:-1], strict=True):
            a.grad = torch.randn(a.shape, generator=rng)
            b.grad = a.grad.clone()
        one.step()
        two.step()
    for a, b, start in zip(ours, theirs, starts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert torch.equal(a, start) == (a is ours[-1])


def test_a_look_ahead_through_adam_is_refused() -> None:
    theta = {"u": torch.zeros(2, requires_grad=True)}
    with pytest.raises(TypeError, match="use SGD"):
        Adam().look_ahead(theta, theta, Adam()(list(theta.values())))


def test_adam_is_built_with_the_settings_of_darts() -> None:
    (group,) = Adam()([torch.zeros(1, requires_grad=True)]).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.5, 0.999), 1e-3)


def test_packed_and_back() -> None:
    tree = {"a": torch.arange(6.0).view(2, 3).t().requires_grad_(), "b": torch.tensor(7.0)}
    flat = packed(tree)
    assert flat.tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 7.0]
    assert not flat.requires_grad
    back = unpacked(2 * flat, tree)
    assert all(torch.equal(back[name], 2 * t) for name, t in tree.items())
