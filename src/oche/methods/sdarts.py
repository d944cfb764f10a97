"""SDARTS: Stabilizing DARTS via Perturbation-based Regularization. X. Chen, C. Hsieh. ICML 2020, arXiv 2002.05283.

    theta <- theta - SGD( d L_train(theta, p~) / d theta ),   p~ = norm(softmax(alpha) + delta),   |delta| <= epsilon_t
    alpha steps on L_val(theta, softmax(alpha)) as in DARTS

RS (`sdarts_rs`): delta uniform. ADV (`sdarts_adv`): delta climbs L_train in 7 steps of 2 epsilon / 7 along the gradient's sign, from a
random start, and is kept if it raised the loss. norm clamps to [0, 1] and divides each row by its sum; a row of zeros becomes one-hot where
the clean row was largest. epsilon from 0.03 to 0.3 in the course of the search.

Taken from code (xiangning-chen/SmoothDARTS @ d3dbfed): all of the above; 50 epochs on the DARTS space and S1 to S4, 100 on NAS-Bench-201.
Published: DARTS space, CIFAR-10 error 2.67 +- 0.03 (RS), 2.61 +- 0.02 % (ADV).

Deviations from the paper: none known.
Deviations from the authors' code: epsilon grows at every step, not every epoch; the attack sees batch statistics as the weight step does
(a supernet here has no others), where theirs switches to evaluation.
Cost against DARTS: RS the same passes; ADV 8 forward and 7 backward passes more a step, none of them for weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, OpWeights
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.schedule import Linear, Schedule
from oche.search.bilevel import detached
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import SearchState

_SOURCE = "xiangning-chen/SmoothDARTS @ d3dbfed"

PUBLISHED = {
    "nb201": Budget(100, 64, {"space.cells": 5, "space.channels": 16}, _SOURCE),
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, _SOURCE),
}
BUDGETS = {"paper": PUBLISHED}


def normalised(p: Tensor, clean: Tensor) -> Tensor:
    """(E, O): p clamped to [0, 1], rows divided by their sums; a row of zeros is one-hot at the clean row's largest entry."""
    p = p.clamp(0, 1)
    best = torch.zeros_like(clean).scatter_(-1, clean.argmax(-1, keepdim=True), 1.0)
    p = torch.where(p.sum(-1, keepdim=True) > 0, p, best)
    return p / p.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Perturbation(Callback):
    """The op weights of the weight step, moved by at most epsilon(progress): at random, and then `steps` times up the train loss."""

    epsilon: Schedule = Linear(0.03, 0.3)
    steps: int = 0

    def before_inner_step(self, state: SearchState, weights: OpWeights, alpha: Alpha, batch: Batch) -> OpWeights:
        epsilon, draw = self.epsilon(state.progress), state.draw("weight")
        groups = state.space.groups
        clean = {group.name: state.relaxation(alpha, group, draw).detach() for group in groups}
        there = {group.name: state.alive(group).to(clean[group.name]) for group in groups}
        delta = {}
        for name, p in clean.items():
            noise = torch.rand(p.shape, generator=draw.generator(f"perturbation/{name}"), dtype=torch.float64)
            delta[name] = (2 * noise.to(p) - 1) * epsilon * there[name]
        found = self._climb(state, clean, delta, there, epsilon, batch) if self.steps and epsilon else delta
        return state.space.spread(moved(clean, found))

    def _climb(
        self, state: SearchState, clean: Alpha, delta: Alpha, there: Alpha, epsilon: float, batch: Batch
    ) -> Alpha:
        theta, draw = detached(state.theta), state.draw("weight")

        def loss(p: Mapping[str, Tensor]) -> Tensor:
            return state.task_loss(state.space.spread(p), batch, draw, theta)[0]

        for _ in range(self.steps):
            p = {name: t.requires_grad_() for name, t in moved(clean, delta).items()}
            grads = torch.autograd.grad(loss(p), list(p.values()), materialize_grads=True)
            for (name, t), grad in zip(p.items(), grads, strict=True):
                step = t.detach() + 2 * epsilon / self.steps * grad.sign() * there[name] - clean[name]
                delta = {**delta, name: step.clamp(-epsilon, epsilon)}
        with torch.no_grad():
            raised = loss(moved(clean, delta)) > loss(clean)
        return delta if raised else {name: torch.zeros_like(t) for name, t in delta.items()}


def moved(clean: Alpha, delta: Alpha) -> Alpha:
    """Every group's op weights, perturbed and normalised."""
    return {name: normalised(p + delta[name], p) for name, p in clean.items()}


def sdarts_rs(epsilon: float = 0.3) -> Method:
    """DARTS with op weights perturbed at random.

    In the weight steps, by up to `epsilon` at the end.
    """
    callbacks = (Perturbation(Linear(epsilon / 10, epsilon)),)
    return replace(darts(), name="sdarts_rs", callbacks=callbacks, papers=("chen2020sdarts",))


def sdarts_adv(epsilon: float = 0.3, steps: int = 7) -> Method:
    """DARTS with op weights perturbed to raise the loss.

    In the weight steps, by up to `epsilon` at the end.
    """
    callbacks = (Perturbation(Linear(epsilon / 10, epsilon), steps),)
    return replace(darts(), name="sdarts_adv", callbacks=callbacks, papers=("chen2020sdarts",))
