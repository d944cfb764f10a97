"""ZARTS: On Zero-order Optimization for Neural Architecture Search. arXiv 2110.04743, NeurIPS 2022.

No gradient leads alpha but as a proposal. Every M steps, with g = d L_val / d alpha, N steps are tried:

    D_i ~ q = (1 - l) N(-g, s^2) + l N(0, s^2),                l = 1e-3, s = 0.025 falling by a cosine
    l_i = L_val after M weight steps of a copy under alpha + D_i,    l_0 under alpha
    alpha <- alpha + sum_i c_i D_i,     c_i ~ exp(-(l_i - l_0) / tau) / (q(D_i) + 1e-4), sum_i c_i = 1,     tau = 0.01

The first 10 of 50 epochs train weights alone; the space is searched without `none`.

Taken from code (vicFigure/ZARTS): N = 4, M = 10, l, s, tau, 1e-4. From the abstract: DARTS space, CIFAR-10 accuracy 97.54 %.

Deviations from the paper: the copies' weight steps are plain gradient descent at the present rate, without momentum or decay (our choice;
not settled by the paper's rule as we have it).
Deviations from the authors' code: its copies step the original's parameters and so never move, its Gaussian density has a slip of operator
precedence, and it trains copies on the validation half: here they are copies, a density and the training half. Of the paper's three
estimators this is MGS; RS and GLD are not offered.
Cost against DARTS: N + 1 times the weight steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.methods.darts import darts
from oche.optim import Descent
from oche.schedule import Cosine, Schedule
from oche.search.bilevel import Batches, Bilevel, FirstOrder, detached, gradient, packed, required, unpacked
from oche.search.method import Method


@dataclass(frozen=True)
class Trials:
    """Minus the step above as if it were a gradient (for `Descent(1.0)`): `samples` is N, `steps` M, `far` l, `sigma`(progress) s."""

    samples: int = 4
    steps: int = 10
    far: float = 1e-3
    sigma: Schedule = Cosine(0.025)
    tau: float = 0.01

    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        loss, grads = FirstOrder()(problem, theta, alpha, batches)
        grads = dict(zip(grads, problem.mean(list(grads.values())), strict=True))
        g = packed(grads)
        draw, outer = problem.draw(), batches.outer()
        sigma = max(self.sigma(draw.progress), 1e-12)
        rng = draw.generator("trials")
        noise = sigma * torch.randn(self.samples, len(g), generator=rng, dtype=torch.float64)
        near = torch.rand(self.samples, 1, generator=rng) >= self.far
        trials = noise.to(g) - near.to(g) * g
        tried = [loss_after(problem, theta, alpha, batches, outer, self.steps)]
        for row in trials:
            tried.append(loss_after(problem, theta, shifted(alpha, row), batches, outer, self.steps))
        losses = torch.stack(problem.mean(tried))
        c = self.shares(losses[1:] - losses[0], trials, g, sigma)
        return loss, unpacked(-(c[:, None] * trials).sum(0), alpha)

    def shares(self, rise: Tensor, trials: Tensor, g: Tensor, sigma: float) -> Tensor:
        """c (N,) from the rises of the loss (N,), the trials D (N, n), the gradient g (n,) and s; sums to 1."""

        def log_normal(off: Tensor) -> Tensor:
            return -(off / sigma).square().sum(1) / 2 - len(g) * math.log(sigma * math.sqrt(2 * math.pi))

        d, middle = trials.double(), g.double()
        parts = [log_normal(d + middle) + math.log1p(-self.far), log_normal(d) + math.log(self.far)]
        q = torch.logsumexp(torch.stack([*parts, torch.full_like(parts[0], math.log(1e-4))]), 0)
        return (-rise.double() / self.tau - q).softmax(0).to(trials)


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


def zarts(N: int = 4, M: int = 10) -> Method:
    """Zero-order search: the better of N tried steps of alpha.

    Every M steps, by what they lead to.
    """
    return replace(
        darts(),
        name="zarts",
        arch_gradient=Trials(N, M),
        arch_optimizer=Descent(1.0),
        arch_start=0.2,
        arch_every=M,
        space={"without": ("none",)},
        papers=("liu2019darts", "wang2022zarts"),
    )
