"""FairDARTS: Eliminating Unfair Advantages in Differentiable Architecture Search. X. Chu et al. ECCV 2020, arXiv 1911.12126.

    w_eo = sigmoid(alpha_eo)                                             no competition between the ops of an edge
    L_alpha = L_val - weight mean_eo (sigmoid(alpha_eo) - 1/2)^2          the zero-one loss pushes each weight to 0 or 1

A node keeps the two edges with the largest weights, and their ops if the weight is at least 0.85.

Taken from code (xiaomi-automl/FairDARTS): weight 10, alpha starts at 0, SGD 0.005 -> 0.001, batch 128, 50 epochs, Adam 3e-3 with betas
(0.9, 0.999) and weight decay 1e-3, 7 ops (no `none`); `absolute=True` is its variant - weight mean |sigmoid(alpha) - 1/2|.
Published: DARTS space, CIFAR-10 error 2.54 +- 0.05 %.

Deviations from the paper: a node whose ops are all below the threshold keeps its strongest one, where the paper leaves the node without
input; in NAS-Bench-201 all other edges below the threshold become `none`.
Deviations from the authors' code: its variant with up to two ops an edge is not offered, a genotype here has one.
Cost against DARTS: the same passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Group, Params
from oche.genotype import Choice, Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.optim import Adam
from oche.schedule import Cosine
from oche.search.method import Method
from oche.search.relaxations import Sigmoid
from oche.search.selection import argmax, strongest
from oche.search.state import Problem, SearchState

_SOURCE = "xiaomi-automl/FairDARTS"

PUBLISHED = {
    "darts": Budget(50, 128, {"space.cells": 8, "space.channels": 16}, _SOURCE),
    "nb201": Budget(
        50, 128, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}'s settings; none are published for it"
    ),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class ZeroOne:
    """- weight * mean over all candidates of (w - 1/2)^2, or of |w - 1/2|; `by_group` the sum of each group's own mean."""

    weight: float = 10.0
    absolute: bool = False
    by_group: bool = False

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw, parts = state.draw("alpha"), []
        for group in state.space.groups:
            w = state.relaxation(alpha, group, draw)
            parts.append((w - 0.5)[state.alive(group).to(w.device)])
        kept = parts if self.by_group else [torch.cat(parts)]
        return -self.weight * torch.stack([(t.abs() if self.absolute else t.square()).mean() for t in kept]).sum()


@dataclass(frozen=True)
class Threshold:
    """Two edges a node (or as many as the group keeps) by their strongest op, if that is at least `least`; see the module."""

    least: float = 0.85

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        choices = {}
        for group, strength in state.strengths():
            alive = state.alive(group)
            if group.keep is None:
                kept = self._per_edge(group, strength, argmax(group, strength, alive))
            else:
                kept = [
                    c for c in strongest(group, strength, group.keep, alive) if of(strength, group, c) >= self.least
                ]
            fed = {c.target for c in kept if c.op != "none"}
            rest = [c for c in strongest(group, strength, 1, alive) if c.target not in fed]
            instead = {(c.source, c.target) for c in rest}
            kept = [*(c for c in kept if (c.source, c.target) not in instead), *rest]
            choices[group.name] = tuple(sorted(kept, key=lambda c: (c.target, c.source)))
        return Genotype(problem.space.name, choices, problem.space.sharing)

    def _per_edge(self, group: Group, strength: Tensor, best: tuple[Choice, ...]) -> list[Choice]:
        """The best op of each edge, or `none` where that is below the threshold and `none` a candidate."""
        weak = [of(strength, group, c) < self.least and "none" in group.ops[e] for e, c in enumerate(best)]
        return [replace(c, op="none") if below else c for c, below in zip(best, weak, strict=True)]


def of(strength: Tensor, group: Group, choice: Choice) -> float:
    """A choice's own strength."""
    return float(strength[group.entry(choice.source, choice.target, choice.op)])


def fair_darts(weight: float = 10.0, absolute: bool = False, least: float = 0.85) -> Method:
    """Sigmoid op weights with a zero-one loss.

    Of that `weight`; ops below `least` are left out.
    """
    return replace(
        darts(),
        name="fair_darts",
        relaxation=Sigmoid(),
        outer_terms=(ZeroOne(weight, absolute),),
        arch_optimizer=Adam(3e-3, (0.9, 0.999)),
        weight_lr=Cosine(0.005, 0.001),
        selection=Threshold(least),
        space={"darts.without": ("none",)},
        papers=("chu2020fairdarts",),
    )
