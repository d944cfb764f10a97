"""SDARTS: Stabilizing DARTS via Perturbation-based Regularization. X. Chen, C. Hsieh. ICML 2020, arXiv 2002.05283.

    theta <- theta - SGD( d L_train(theta, p~) / d theta ),   p~ = norm(softmax(alpha) + delta),   |delta| <= epsilon_t
    alpha steps on L_val(theta, softmax(alpha)) as in DARTS

RS (`sdarts_rs`): delta uniform. ADV (`sdarts_adv`): delta climbs L_train in 7 steps of 2 epsilon / 7 along the gradient's sign, from a
random start, and is kept unless it lowered the loss. norm clamps to [0, 1] and divides each row by its sum; a row of zeros becomes
one-hot where the perturbed row was largest (`empty="clean"`: where the clean row was). epsilon from 0.03 to 0.3 in the course of the
search.

Taken from code (xiangning-chen/SmoothDARTS @ d3dbfed, attacker/perturb.py:11-50, sota/cnn/model_search.py:170,
sota/cnn/train_search.py:57, 170): all of the above; 50 epochs on the DARTS space (7 ops, no `none`, spaces.py:80) and S1 to S4, 100 on
NAS-Bench-201, with DARTS's settings, first order. Ours: another `epsilon` grows from a tenth of it too.
Published: DARTS space, CIFAR-10 error 2.67 +- 0.03 (RS), 2.61 +- 0.02 % (ADV).

Deviations from the paper: none known.
Deviations from the script of the published numbers: epsilon grows at every step, where train_search.py:170 sets it per epoch; the attack
sees batch statistics as the weight step does (a supernet here has no others), where perturb.py:14 switches to evaluation.
Cost against DARTS: RS the same passes; ADV 8 forward and 7 backward passes more per step, none of them for weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Natural, OpWeights
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.optim import average
from oche.schedule import Linear, Schedule
from oche.search.bilevel import detached
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import SearchState

_SOURCE = "xiangning-chen/SmoothDARTS @ d3dbfed"

PUBLISHED = {
    "nb201": Budget(100, 64, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}, nasbench201/train_search.py"),
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, f"{_SOURCE}, sota/cnn/train_search.py"),
}
BUDGETS = {"paper": PUBLISHED}


Empty = Literal["perturbed", "clean"]


def normalised(p: Tensor, like: Tensor) -> Tensor:
    """(E, O): p clamped to [0, 1], rows divided by their sums; a row of zeros is one-hot at the largest entry of the row in `like`."""
    p = p.clamp(0, 1)
    best = torch.zeros_like(like).scatter_(-1, like.argmax(-1, keepdim=True), 1.0)
    p = torch.where(p.sum(-1, keepdim=True) > 0, p, best)
    return p / p.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Perturbation(Callback):
    """The op weights of the weight step, moved by at most epsilon(progress): at random, and then `steps` times up the train loss.

    A row that is clamped to nothing becomes one-hot where the `empty` row, perturbed or clean, was largest.
    """

    epsilon: Schedule
    steps: Natural = 0
    empty: Empty = "perturbed"

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
        return state.space.spread(self._moved(clean, found, there))

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record["epsilon"] = self.epsilon(state.progress)

    def _climb(
        self, state: SearchState, clean: Alpha, delta: Alpha, there: Alpha, epsilon: float, batch: Batch
    ) -> Alpha:
        theta, draw = detached(state.theta), state.draw("weight")

        def loss(p: Mapping[str, Tensor]) -> Tensor:
            return state.task_loss(state.space.spread(p), batch, draw, theta)[0]

        for _ in range(self.steps):
            p = {name: t.requires_grad_() for name, t in self._moved(clean, delta, there).items()}
            own = torch.autograd.grad(loss(p), list(p.values()), materialize_grads=True)
            grads = average(state.problem.fabric, own)
            for (name, t), grad in zip(p.items(), grads, strict=True):
                step = t.detach() + 2 * epsilon / self.steps * grad.sign() * there[name] - clean[name]
                delta = {**delta, name: step.clamp(-epsilon, epsilon)}
        with torch.no_grad():
            both = [loss(self._moved(clean, delta, there)), loss(clean)]
            moved, unmoved = average(state.problem.fabric, both)
        lowered = bool(moved < unmoved)
        return {name: torch.zeros_like(t) for name, t in delta.items()} if lowered else delta

    def _moved(self, clean: Alpha, delta: Alpha, there: Alpha) -> Alpha:
        """Every group's op weights, perturbed and normalised."""
        found = {}
        for name, p in clean.items():
            likeliest = (p + delta[name]).masked_fill(there[name] == 0, float("-inf"))
            found[name] = normalised(p + delta[name], likeliest if self.empty == "perturbed" else p)
        return found


def sdarts_rs(epsilon: float = 0.3) -> Method:
    """DARTS with op weights perturbed at random.

    In the weight steps, by up to `epsilon` at the end.
    """
    return _with("sdarts_rs", Perturbation(Linear(epsilon / 10, epsilon)))


def sdarts_adv(epsilon: float = 0.3, steps: int = 7) -> Method:
    """DARTS with op weights perturbed to raise the loss.

    In the weight steps, by up to `epsilon` at the end.
    """
    return _with("sdarts_adv", Perturbation(Linear(epsilon / 10, epsilon), steps))


def _with(name: str, perturbation: Perturbation) -> Method:
    return replace(
        darts(), name=name, callbacks=(perturbation,), space={"darts.without": ("none",)}, papers=("chen2020sdarts",)
    )
