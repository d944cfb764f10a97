"""ZARTS: On Zero-order Optimization for Neural Architecture Search. arXiv 2110.04743, NeurIPS 2022.

No gradient leads alpha but as a proposal. Every M steps, with g = d L_val / d alpha, N steps are tried:

    D_i = (1 - l) (-g + s e_i) + l s e'_i,     e, e' from N(0, 1),     l = 1e-3, s = 0.025 falling by a cosine from the warm-up's end on
    l_i = L_val after M weight steps of a copy under alpha + D_i
    alpha <- alpha + sum_i c_i D_i,     c_i ~ exp(-l_i / tau) / (q(D_i) + 1e-4),     sum_i c_i = 1,     tau = 0.01
    q(D) = (1 - l) exp(-|D + g|^2 / 2 s^2) + l exp(-|D|^2 s^2 / 2)

The second exponential is the code's, and about 1 where a density would have -|D|^2 / 2 s^2; the first is about exp(-n / 2) for n entries
of alpha. So q is about l, and the losses decide: wholly for the 196 entries of the DARTS space, mostly for the 24 of NAS-Bench-201. With
`rule="paper"` D_i is drawn from the mixture (1 - l) N(-g, s^2) + l N(0, s^2) and q is that mixture's density, whose factor of
(2 pi s^2)^(-n/2) makes 1 / q decide alone: the step follows the longest noise vector.

The first 10 of 50 epochs train weights alone; the space is searched without `none`. The log has the mean over the epoch's steps of the
largest share c, `largest_share`, and how often it lay at the lowest loss, `best_followed`.

Taken from code (vicFigure/ZARTS @ 38bb2a6, cnn/train_search.py and cnn/script/run_search.sh): all numbers. From the abstract: DARTS space,
CIFAR-10 accuracy 97.54 %. The settings for NAS-Bench-201 are ours.

Deviations from the paper: by default D and q are the code's (above); of its three estimators this is MGS, RS and GLD are not offered. The
copies' weight steps are plain gradient descent at the present rate, without momentum, decay or clip (our choice).
Deviations from the script of the published numbers (cnn/train_search.py): its copies are trained by the original's optimiser (lines
373-375), so they never move and each l_i is the loss of the present weights (`arch_gradient.steps=0` is that, and then N + 1 passes in
all); they train on batches of 48 of the validation half (158-161), here on the training half. It subtracts a base loss from all l_i
(line 387), which cancels. s falls once per epoch and one epoch late (line 260), here at every step.
Cost against DARTS: N times the weight steps, and one step of alpha in M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Count, Natural, Params, Positive, Share
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.optim import Descent
from oche.schedule import Cosine, Schedule
from oche.search.bilevel import Batches, Bilevel, FirstOrder, detached, gradient, packed, required, unpacked
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import SearchState

Rule = Literal["code", "paper"]

PUBLISHED = {
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, "vicFigure/ZARTS @ 38bb2a6"),
    "nb201": Budget(50, 64, {"space.cells": 5, "space.channels": 16}, "ours"),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class Trials:
    """Minus the step above as if it were a gradient (for `Descent(1.0)`).

    `samples` is N, `steps` M, `far` l, `sigma`(progress) s, which starts to fall at progress `since`.
    """

    samples: Count = 4
    steps: Natural = 10
    far: Positive = 1e-3
    sigma: Schedule = Cosine(0.025)
    tau: Positive = 0.01
    rule: Rule = "code"
    since: Share = 0.2

    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        loss, grads = FirstOrder()(problem, theta, alpha, batches)
        grads = dict(zip(grads, problem.mean(list(grads.values())), strict=True))
        g, draw, outer = packed(grads), problem.draw(), batches.outer()
        sigma = self.spread(draw.progress)
        trials = self.proposals(g, sigma, draw.generator("trials"))
        tried = [loss_after(problem, theta, shifted(alpha, row), batches, outer, self.steps) for row in trials]
        losses = torch.stack(problem.mean(tried))
        c = self.shares(losses, trials, g, sigma)
        problem.meter(largest_share=c.max(), best_followed=(c.argmax() == losses.argmin()).double(), trial_steps=1.0)
        return loss, unpacked(-(c[:, None] * trials).sum(0), alpha)

    def spread(self, progress: float) -> float:
        """s: the schedule's value at the share of the time since `since` that has passed."""
        return max(self.sigma(max(0.0, (progress - self.since) / (1 - self.since))), 1e-12)

    def proposals(self, g: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
        """D (N, n) from the gradient g (n,) and s."""
        noise = sigma * torch.randn(self.samples, len(g), generator=rng, dtype=torch.float64)
        if self.rule == "paper":
            near = torch.rand(self.samples, 1, generator=rng) >= self.far
            return noise.to(g) - near.to(g) * g
        other = sigma * torch.randn(self.samples, len(g), generator=rng, dtype=torch.float64)
        return ((1 - self.far) * (noise - g.double().cpu()) + self.far * other).to(g)

    def shares(self, losses: Tensor, trials: Tensor, g: Tensor, sigma: float) -> Tensor:
        """c (N,) from the losses (N,), the trials D (N, n), the gradient g (n,) and s; sums to 1."""
        d, near = trials.double(), (trials + g).double()
        if self.rule == "paper":
            peak = len(g) * math.log(sigma * math.sqrt(2 * math.pi))
            logs = (-(near / sigma).square().sum(1) / 2 - peak, -(d / sigma).square().sum(1) / 2 - peak)
        else:
            logs = (-(near / sigma).square().sum(1) / 2, -(d * sigma).square().sum(1) / 2)
        parts = [logs[0] + math.log1p(-self.far), logs[1] + math.log(self.far)]
        q = torch.logsumexp(torch.stack([*parts, torch.full_like(parts[0], math.log(1e-4))]), 0)
        return (-losses.double() / self.tau - q).softmax(0).to(trials)


@dataclass(frozen=True)
class Followed(Callback):
    """Writes into the log how decided the steps of alpha were, and how often the lowest loss decided them."""

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        steps = float(state.meters.get("trial_steps", 0.0))
        if steps:
            record["largest_share"] = float(state.meters["largest_share"]) / steps
            record["best_followed"] = float(state.meters["best_followed"]) / steps


def loss_after(problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches, outer: Batch, steps: int) -> Tensor:
    """The outer loss under a fixed alpha after `steps` descents of a copy of theta on the coming inner batches."""
    fixed, copy = detached(alpha), detached(theta)
    for ahead in range(steps):
        leaves = required(copy)
        g = gradient(problem.inner(leaves, fixed, batches.inner(ahead)), leaves)
        mean = problem.mean(list(g.values()))
        copy = {name: t - problem.rate() * m for (name, t), m in zip(copy.items(), mean, strict=True)}
    with torch.no_grad():
        return problem.outer(copy, fixed, outer)


def shifted(alpha: Alpha, step: Tensor) -> Alpha:
    """alpha + step, of its entries one after another."""
    moves = unpacked(step, alpha)
    return {name: t.detach() + moves[name] for name, t in alpha.items()}


def zarts(N: int = 4, M: int = 10, rule: Rule = "code") -> Method:
    """Zero-order search: the better of N tried steps of alpha.

    Every M steps, by what they lead to; `rule="paper"` weighs them by a normalised density.
    """
    return replace(
        darts(),
        name="zarts",
        arch_gradient=Trials(N, M, rule=rule),
        arch_optimizer=Descent(1.0),
        arch_start=0.2,
        arch_every=M,
        callbacks=(Followed(),),
        space={"without": ("none",)},
        papers=("liu2019darts", "wang2022zarts"),
    )
