"""The bilevel problem as two pure functions, and the ways to differentiate through it.

    min_alpha outer(theta*(alpha), alpha)   where   theta*(alpha) = argmin_theta inner(theta, alpha)

`theta` holds the weights that learn and no others, so freezing weights makes every product here cheaper by itself. Nothing
below knows of supernets: each gradient can be checked on a quadratic whose hypergradient is known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Draw, Params

Loss = Callable[[Params, Alpha, Batch], Tensor]


@dataclass(frozen=True)
class Bilevel:
    """`inner` and `outer` losses, and `descend(theta, grads)`: the weights after the next weight step, differentiable in grads.

    `mean` averages tensors over processes; alone it does nothing. `rate` is the present learning rate of the weights, `draw` the
    randomness and the progress of this step. `keep` is handed d outer / d theta by a gradient that takes it along, `meter` numbers by
    name that the epoch's record is to sum up.
    """

    inner: Loss
    outer: Loss
    descend: Callable[[Params, Params], Params]
    mean: Callable[[Sequence[Tensor]], list[Tensor]] = list
    rate: Callable[[], float] = float
    draw: Callable[[], Draw] = partial(Draw, 0)
    keep: Callable[[Params], object] = dict
    meter: Callable[..., object] = dict


class Batches(Protocol):
    """The batches of one step: `inner()` is the one the weight step will use, `outer()` that of the architecture step.

    `inner(n)` is that of the n-th weight step from now, for gradients that look further ahead.
    """

    def inner(self, ahead: int = 0) -> Batch: ...
    def outer(self) -> Batch: ...


class ArchGradient(Protocol):
    """(outer loss, d outer / d alpha), both of this process; the loop averages the gradient over processes.

    A loss whose gradient is differentiated again, or whose graph is retained, is computed inside of
    `torch.compiler.set_stance("force_eager")`, for the sake of searches with `compile`.
    """

    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]: ...


@dataclass(frozen=True)
class FirstOrder:
    """d outer(theta, alpha) / d alpha at the present weights (DARTS, xi = 0).

    No gradient of a weight is computed unless `keep_theta` asks for d outer / d theta too, out of the same backward pass.
    """

    keep_theta: bool = False

    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        leaves = required(theta) if self.keep_theta else detached(theta)
        loss = problem.outer(leaves, alpha, batches.outer())
        if not self.keep_theta:
            return loss.detach(), gradient(loss, alpha)
        grads = torch.autograd.grad(loss, [*alpha.values(), *leaves.values()], materialize_grads=True)
        problem.keep(dict(zip(theta, grads[len(alpha) :], strict=True)))
        return loss.detach(), dict(zip(alpha, grads, strict=False))


@dataclass(frozen=True)
class Unrolled:
    """d outer(theta', alpha) / d alpha with theta' = descend(theta, g), g = d inner(theta, alpha) / d theta (DARTS, eq. 7), exact.

    With u = (d theta'/d g)^T d outer/d theta', the second term is (d g/d alpha)^T u: one product by double backward.
    """

    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        leaves = required(theta)
        with torch.compiler.set_stance("force_eager"):  # programs of torch.compile have no second derivative
            inner = problem.inner(leaves, alpha, batches.inner())
        g = torch.autograd.grad(inner, list(leaves.values()), create_graph=True, materialize_grads=True)
        loss, direct, u = _look_ahead(problem, theta, alpha, g, batches)
        second = torch.autograd.grad(g, list(alpha.values()), grad_outputs=list(u.values()), materialize_grads=True)
        return loss, {name: direct[name] + term for name, term in zip(alpha, second, strict=True)}


@dataclass(frozen=True)
class FiniteDifference:
    """Unrolled with the product taken by a central difference (DARTS, eq. 8): the weights move by `radius` to either side along u.

    As published; Unrolled is exact, and how far this is from it `docs/results/performance.md` tells. The weights themselves are not
    touched: either side is a copy, and neither pass computes gradients of weights.
    """

    radius: float = 0.01

    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        batch = batches.inner()
        leaves = required(theta)
        g = torch.autograd.grad(
            problem.inner(leaves, detached(alpha), batch), list(leaves.values()), materialize_grads=True
        )
        loss, direct, u = _look_ahead(problem, theta, alpha, g, batches)
        here, along = [t.detach() for t in theta.values()], list(u.values())
        norm = torch.stack(torch._foreach_norm(along)).norm()
        epsilon = self.radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        aside = torch._foreach_mul(along, epsilon)

        def there(weights: Sequence[Tensor]) -> Alpha:
            return gradient(problem.inner(dict(zip(theta, weights, strict=True)), alpha, batch), alpha)

        plus, minus = there(torch._foreach_add(here, aside)), there(torch._foreach_sub(here, aside))
        return loss, {name: direct[name] + (plus[name] - minus[name]) / (2 * epsilon) for name in alpha}


def _look_ahead(
    problem: Bilevel, theta: Params, alpha: Alpha, g: Sequence[Tensor], batches: Batches
) -> tuple[Tensor, Alpha, Params]:
    """Outer loss at theta' = descend(theta, g), its direct gradient in alpha, and u, its gradient in g."""
    averaged = [t.requires_grad_() for t in problem.mean([t.detach() for t in g])]
    ahead = problem.descend(detached(theta), dict(zip(theta, averaged, strict=True)))
    loss = problem.outer(ahead, alpha, batches.outer())
    grads = torch.autograd.grad(loss, [*alpha.values(), *averaged], materialize_grads=True)
    direct = dict(zip(alpha, grads[: len(alpha)], strict=True))
    u = dict(zip(theta, problem.mean(grads[len(alpha) :]), strict=True))
    return loss.detach(), direct, u


# ------------------------------------------------------------------ dict algebra


def detached(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, cut from the graph."""
    return {name: t.detach() for name, t in tree.items()}


def required(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values as fresh leaves that require gradients."""
    return {name: t.detach().requires_grad_() for name, t in tree.items()}


def packed(tree: dict[str, Tensor]) -> Tensor:
    """All values one after the other (N,), cut from the graph."""
    return torch.cat([t.detach().reshape(-1) for t in tree.values()]) if tree else torch.zeros(0)


def unpacked(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """`packed` undone: views into flat (N,) with the names and shapes of `like`."""
    parts = torch.split(flat, [t.numel() for t in like.values()])
    return {name: part.view(t.shape) for part, (name, t) in zip(parts, like.items(), strict=True)}


def averaged(problem: Bilevel, loss: Tensor, *trees: dict[str, Tensor]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The loss and each tree's tensors in the mean over processes, so that none decides by its own images alone."""
    loss, *tensors = problem.mean([loss, *(t for tree in trees for t in tree.values())])
    rest = iter(tensors)
    return loss, [dict(zip(tree, rest, strict=False)) for tree in trees]


def gradient(loss: Tensor, tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """d loss / d tree, zeros where the loss does not depend on an entry."""
    grads = torch.autograd.grad(loss, list(tree.values()), materialize_grads=True)
    return dict(zip(tree, grads, strict=True))
