"""Optimisers of the weights and alpha as parts, and the look-ahead of a weight step.

The optimisers themselves are torch's: over all tensors at once (`foreach`), or on an NVIDIA GPU its fused ones, with a learning rate
and a count of steps that are tensors, so that a captured step (`search.replay`) follows the schedule. `SGD.look_ahead` is the same step as
a differentiable function, for unrolling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from oche.base import Fraction, NonNegative, Params


class OptimizerFactory(Protocol):
    """Builds a torch optimiser over the given tensors; the loop sets its learning rate."""

    def __call__(self, tensors: Sequence[Tensor]) -> torch.optim.Optimizer: ...
    def look_ahead(self, theta: Params, grads: Params, optimizer: torch.optim.Optimizer) -> Params: ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum; the learning rate comes from the method's schedule.

    Weight decay reaches all weights, as in DARTS, or where `decay_vectors` is false those of more than one dimension: neither batch norms
    nor biases. A look-ahead leaves Nesterov out, as the one published code that has both does (AutoDL-Projects, DARTS-V2.py, lines 64 to
    83), unless `nesterov_ahead` takes it along.
    """

    momentum: Fraction = 0.9
    weight_decay: NonNegative = 3e-4
    nesterov: bool = False
    decay_vectors: bool = True
    nesterov_ahead: bool = False

    def __call__(self, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
        fused = on_gpu(tensors)
        return (torch.optim.SGD if self.decay_vectors else Sparing)(
            tensors,
            lr=torch.zeros((), device=tensors[0].device) if fused else 0.0,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            foreach=not fused,
            fused=fused,
        )

    def look_ahead(self, theta: Params, grads: Params, optimizer: torch.optim.Optimizer) -> Params:
        """theta after the optimiser's next step from `grads`, without taking it; differentiable in theta and grads.

        The optimiser's tensors must be in theta's order; its own weight decay counts, which a callback may have raised. Gradient
        clipping is not part of it, as in the DARTS code, nor by default is Nesterov.
        """
        (group,) = optimizer.param_groups
        here, gradients = tuple(theta.values()), tuple(grads[name] for name in theta)
        decayed = here if self.decay_vectors else tuple(t if t.ndim > 1 else torch.zeros_like(t) for t in here)
        step = torch._foreach_add(gradients, decayed, alpha=group["weight_decay"])
        buffers = [optimizer.state.get(own, {}).get("momentum_buffer") for own in group["params"]]
        moving = [torch.zeros_like(t) if b is None else b for b, t in zip(buffers, here, strict=True)]
        still = all(b is None for b in buffers)
        velocity = step if still else torch._foreach_add(step, moving, alpha=self.momentum)
        if self.nesterov and self.nesterov_ahead:
            velocity = torch._foreach_add(step, velocity, alpha=self.momentum)
        ahead = torch._foreach_sub(here, torch._foreach_mul(velocity, group["lr"]))
        return dict(zip(theta, ahead, strict=True))


class Sparing(torch.optim.SGD):
    """Takes weight decay back from the gradients of vectors before torch adds it to all: one group of weights stays one group."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2 and p.grad is not None:
                    p.grad.sub_(p, alpha=group["weight_decay"])
        loss: float | None = super().step(closure)
        return loss


@dataclass(frozen=True)
class Adam:
    """Adam, by default with the DARTS settings for alpha."""

    lr: NonNegative = 3e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    weight_decay: NonNegative = 1e-3

    def __call__(self, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
        fused = on_gpu(tensors)
        return torch.optim.Adam(
            tensors, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, foreach=not fused, fused=fused
        )

    def look_ahead(self, theta: Params, grads: Params, optimizer: torch.optim.Optimizer) -> Params:
        raise TypeError("a look-ahead through Adam is not defined by any published method; use SGD for the weights")


@dataclass(frozen=True)
class Descent:
    """x - lr g, nothing else: for alpha whose rule gives the step itself (ZARTS, Shapley-NAS: lr=1 and g = -step)."""

    lr: NonNegative = 1.0

    def __call__(self, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(tensors, lr=self.lr)

    def look_ahead(self, theta: Params, grads: Params, optimizer: torch.optim.Optimizer) -> Params:
        return {name: t - self.lr * grads[name] for name, t in theta.items()}


def on_gpu(tensors: Sequence[Tensor]) -> bool:
    """True if all tensors are on a device where torch's fused optimisers can be captured."""
    return bool(tensors) and all(t.is_cuda for t in tensors)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group's learning rate; in place where it is a tensor, for a recorded step reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class NotFinite(ArithmeticError):
    """Names the number that is NaN or infinite."""


def check_finite(what: str, value: Tensor | float) -> None:
    """Raises NotFinite where a number is NaN or infinite. An accelerator is not waited for: its epoch's mean loss is checked instead."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            return
        value = float(value)
    if value - value != 0:
        raise NotFinite(what)


def average(fabric: Fabric, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over all processes, in one message. Explicit, since DDP's hooks do not see `autograd.grad`."""
    if fabric.world_size == 1 or not tensors:
        return list(tensors)
    flat = fabric.all_reduce(torch.cat([t.flatten().to(fabric.device) for t in tensors]), reduce_op="mean")
    assert isinstance(flat, Tensor)
    parts = torch.split(flat, [t.numel() for t in tensors])
    return [part.view_as(t).to(t) for part, t in zip(parts, tensors, strict=True)]
