"""Checks of a method's parts: relaxations and architecture gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Draw, Group, Params
from oche.search.bilevel import ArchGradient, Bilevel
from oche.search.relaxations import Relaxation
from oche.spaces import Space
from oche.spaces.darts import DartsSpace
from oche.testing.noise import assert_true


def check_relaxation(relaxation: Relaxation, space: Space | None = None) -> None:
    """Checks a relaxation in every group of a space, with all candidates and with some of them masked.

    Op weights are (E, O), finite, 0 where there is no candidate, differentiable in alpha, and the same for the same draw; strengths have
    no noise; what is masked gets no gradient.
    """
    for group in (space or DartsSpace(nodes=2, channels=4, cells=3)).groups:
        name = f"{type(relaxation).__name__} in the group {group.name!r}"
        alpha, other = (relaxation.init(group, torch.Generator().manual_seed(0)) for _ in range(2))
        assert_true(bool(alpha), f"{name}: `init` returns no architecture parameters.")
        for key, t in alpha.items():
            assert_true(key.startswith(f"{group.name}/"), f"{name}: alpha {key!r} must be named {group.name}/...")
            assert_true(
                bool(torch.equal(t, other[key])), f"{name}: `init` takes randomness from somewhere but its generator."
            )
            t.requires_grad_()
        dead = torch.rand(len(group.edges), group.width, generator=torch.Generator().manual_seed(1)) < 0.4
        dead[:, 0] = False  # an edge keeps a candidate
        for mask in ({}, {group.name: ~dead}):
            _check_op_weights(relaxation, group, alpha, mask, name)


def _check_op_weights(
    relaxation: Relaxation, group: Group, alpha: Alpha, mask: Mapping[str, Tensor], name: str
) -> None:
    draws = {phase: Draw(7, 3, phase, 0.5, mask) for phase in ("weight", "alpha", "eval")}
    gone = ~draws["eval"].alive(group)
    for phase, draw in draws.items():
        w = relaxation(alpha, group, draw)
        shape = (len(group.edges), group.width)
        assert_true(
            w.shape == shape, f"{name}: op weights are {tuple(w.shape)}, not (E, O) = {shape}, in the phase {phase!r}."
        )
        assert_true(bool(torch.isfinite(w).all()), f"{name}: op weights are not finite in the phase {phase!r}.")
        assert_true(
            not w[gone].any(),
            f"{name}: a candidate that is not there or was masked has a weight: use `draw.alive(group)`.",
        )
        assert_true(bool(w.any()), f"{name}: all op weights are 0 in the phase {phase!r}.")
        again = relaxation(alpha, group, draw)
        assert_true(
            bool(torch.equal(w, again)), f"{name}: the same draw gives other weights: use `draw.generator(name)`."
        )
    total = (relaxation(alpha, group, draws["alpha"]) * torch.arange(1.0, 1 + group.width)).square().sum()
    grads = dict(zip(alpha, torch.autograd.grad(total, list(alpha.values()), materialize_grads=True), strict=True))
    assert_true(any(bool(g.any()) for g in grads.values()), f"{name}: no gradient reaches alpha.")
    for key, g in grads.items():
        assert_true(bool(torch.isfinite(g).all()), f"{name}: the gradient of {key} is not finite.")
        assert_true(
            g.shape != gone.shape or not g[gone].any(), f"{name}: a masked candidate gets a gradient through {key}."
        )
    first, later = (relaxation.strength(alpha, group, Draw(7, step, "eval", 0.5, mask)) for step in (3, 4))
    assert_true(bool(torch.equal(first, later)), f"{name}: `strength` has noise; selections would depend on the step.")
    assert_true(
        first.shape == gone.shape, f"{name}: `strength` is {tuple(first.shape)}, not (E, O) = {tuple(gone.shape)}."
    )


def check_arch_gradient(
    arch_gradient: ArchGradient, *, like: ArchGradient | None = None, tolerance: float = 1e-6, derivative: bool = True
) -> None:
    """Checks an architecture gradient on a small bilevel problem in float64 that is no quadratic.

    It returns the loss and a finite gradient of each alpha, leaves weights and alpha as they were, and gives the same when asked again.
    With `derivative` (not for rules that only return a step) a term of alpha in the outer loss adds its own derivative. `like` is one
    that it must equal within the tolerance, relative to the largest entry.
    """
    name, game = type(arch_gradient).__name__, _Game()
    loss, grads = arch_gradient(game.problem(), game.theta, game.alpha, game)
    assert_true(
        set(grads) == set(game.alpha), f"{name} returns gradients of {sorted(grads)}, not of {sorted(game.alpha)}."
    )
    for key, g in grads.items():
        assert_true(g.shape == game.alpha[key].shape, f"{name}: the gradient of {key} is {tuple(g.shape)}.")
        assert_true(
            bool(torch.isfinite(g).all()) and not g.requires_grad,
            f"{name}: {key} needs a finite gradient without a graph.",
        )
    assert_true(
        bool(torch.isfinite(loss)) and not loss.requires_grad,
        f"{name} returns a loss that is not finite, or has a graph.",
    )
    fresh = _Game()
    for key, t in {**game.theta, **game.alpha}.items():
        assert_true(bool(torch.equal(t, {**fresh.theta, **fresh.alpha}[key])), f"{name} changes {key}.")
        assert_true(t.grad is None, f"{name} leaves a gradient behind in {key}.")
    _, again = arch_gradient(game.problem(), game.theta, game.alpha, game)
    assert_true(
        all(bool(torch.equal(grads[k], again[k])) for k in grads), f"{name} gives another gradient when asked again."
    )
    if derivative:
        _, more = arch_gradient(game.problem(slope=0.5), game.theta, game.alpha, game)
        for key, g in grads.items():
            close = torch.allclose(more[key] - g, torch.full_like(g, 0.5), rtol=tolerance, atol=tolerance)
            assert_true(close, f"{name}: a term of the outer loss does not add its own derivative to {key}.")
    if like is not None:
        _, expected = like(game.problem(), game.theta, game.alpha, game)
        largest = max(float(t.abs().max()) for t in expected.values())
        worst = max(float((grads[k] - expected[k]).abs().max()) for k in expected) / largest
        assert_true(
            worst <= tolerance, f"{name} differs from {type(like).__name__} by {worst:.2g} of the largest entry."
        )


class _Game:
    """A bilevel problem of five weights and three architecture parameters; its own batches."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(5)
        numbers = torch.randn(5, 13, generator=rng, dtype=torch.float64)
        self.A, self.B, self.E = numbers[:, :5] @ numbers[:, :5].T / 5, numbers[:, 5:8], numbers[:, 8:11]
        self.theta = {"u": numbers[:2, 11].clone().requires_grad_(), "v": numbers[2:, 11:12].clone().requires_grad_()}
        self.alpha = {"g/a": numbers[:1, 12].clone().requires_grad_(), "g/b": numbers[1:3, 12].clone().requires_grad_()}

    def problem(self, slope: float = 0.0) -> Bilevel:
        """The two losses; `slope` times the sum of alpha is added to the outer one."""

        def inner(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
            t, a = _vector(theta), _vector(alpha)
            return 0.5 * t @ self.A @ t - t @ self.B @ a + (t.sin() * (self.E @ a)).sum()

        def outer(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
            t, a = _vector(theta), _vector(alpha)
            return (t - 1).square().sum() + t @ self.E @ a + a.square().sum() + slope * a.sum()

        def descend(theta: Params, grads: Params) -> Params:
            return {key: t - 0.1 * grads[key] for key, t in theta.items()}

        return Bilevel(inner, outer, descend, rate=lambda: 0.1)

    def inner(self, ahead: int = 0) -> Batch:
        """A batch without content."""
        return Batch(torch.zeros(1), torch.zeros(1))

    def outer(self) -> Batch:
        """A batch without content."""
        return self.inner()


def _vector(tree: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tree.values()])
