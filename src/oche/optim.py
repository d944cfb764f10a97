"""Optimisers as parts: what steps the weights and alpha, and what a weight step would do before it is done.

The optimisers themselves are torch's, over all tensors at once (`foreach`); `SGD.look_ahead` is the same step as a differentiable
function, for unrolling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from oche.base import Params


class OptimizerFactory(Protocol):
    """Builds a torch optimiser over the given tensors; the loop sets its learning rate."""

    def __call__(self, tensors: Sequence[Tensor]) -> torch.optim.Optimizer: ...
    def look_ahead(self, theta: Params, grads: Params, optimizer: torch.optim.Optimizer) -> Params: ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum; the learning rate comes from the method's schedule."""

    momentum: float = 0.9
    weight_decay: float = 3e-4
    nesterov: bool = False

    def __call__(self, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            tensors,
            lr=0.0,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            foreach=True,
        )

    def look_ahead(self, theta: Params, grads: Params, optimizer: torch.optim.Optimizer) -> Params:
        """theta after the optimiser's next step from `grads`, without taking it; differentiable in theta and grads.

        The optimiser's tensors must be in theta's order; its own weight decay counts, which a callback may have raised. Gradient
        clipping is not part of it, as in the DARTS code.
        """
        (group,) = optimizer.param_groups
        ahead = {}
        for (name, t), own in zip(theta.items(), group["params"], strict=True):
            step = grads[name] + group["weight_decay"] * t
            buffer = optimizer.state.get(own, {}).get("momentum_buffer")
            velocity = step if buffer is None else self.momentum * buffer + step
            ahead[name] = t - group["lr"] * (step + self.momentum * velocity if self.nesterov else velocity)
        return ahead


@dataclass(frozen=True)
class Adam:
    """Adam, by default with the DARTS settings for alpha."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3

    def __call__(self, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(tensors, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, foreach=True)

    def look_ahead(self, theta: Params, grads: Params, optimizer: torch.optim.Optimizer) -> Params:
        raise TypeError("a look-ahead through Adam is not defined by any published method; use SGD for the weights")


@dataclass(frozen=True)
class Descent:
    """x - lr g, nothing else: for alpha whose rule gives the step itself (ZARTS, Shapley-NAS: lr=1 and g = -step)."""

    lr: float = 1.0

    def __call__(self, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(tensors, lr=self.lr)

    def look_ahead(self, theta: Params, grads: Params, optimizer: torch.optim.Optimizer) -> Params:
        return {name: t - self.lr * grads[name] for name, t in theta.items()}
