"""FairDARTS: Eliminating Unfair Advantages in Differentiable Architecture Search. X. Chu et al. ECCV 2020, arXiv 1911.12126.

    w_eo = sigmoid(alpha_eo)                                             no competition between the ops of an edge
    L_alpha = L_val - weight mean_eo (sigmoid(alpha_eo) - 1/2)^2          the zero-one loss pushes each weight to 0 or 1

A node keeps the two edges with the largest weights, and their ops if the weight is at least 0.85. What is below leaves the node without
input, and a node without input is absent from its cell (`starve=True`, which the published settings take). In a short search no weight
comes so far, so by default such a node keeps its strongest op (ours).

Taken from code (xiaomi-automl/FairDARTS @ 270cfc9, fairdarts/train_search.py:23-48 and utils.py:161-190, `threshold_sparse`): weight 10,
alpha starts at 0, SGD 0.005 -> 0.001, batch 128, 50 epochs, Adam 3e-3 with betas (0.9, 0.999) and weight decay 1e-3, 7 ops (no `none`);
`absolute=True` is its variant - weight mean |sigmoid(alpha) - 1/2|.
Published: DARTS space, CIFAR-10 error 2.54 +- 0.05 % (seven cells, FAIRDARTS_A to G in `oche list genotypes`).

Deviations from the paper: none with `starve=True`. In NAS-Bench-201, where nothing is published, all edges below the threshold but a
node's strongest become `none`.
Deviations from the script of the published numbers: its variant with up to two ops on an edge (`threshold_edge`) is not offered; where
a cell would have no node at all, which its network cannot be built of, each node keeps its strongest op. As there, an edge that leaves
an absent node is left out (model.py:103). The log has the number of weights that have come so far (`above_threshold`).
Cost against DARTS: the same passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Group, NonNegative, Params, Share
from oche.genotype import Choice, Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.optim import Adam
from oche.schedule import Cosine
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.relaxations import Sigmoid
from oche.search.selection import argmax, strongest
from oche.search.state import Problem, SearchState

_SOURCE = "xiaomi-automl/FairDARTS @ 270cfc9"

PUBLISHED = {
    "darts": Budget(
        50,
        128,
        {"space.cells": 8, "space.channels": 16, "method.starve": True},
        f"{_SOURCE}, fairdarts/train_search.py",
    ),
    "nb201": Budget(
        50, 128, {"space.cells": 5, "space.channels": 16}, f"ours: the settings of {_SOURCE} for the DARTS space"
    ),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class ZeroOne:
    """- weight * mean over all candidates of (w - 1/2)^2, or of |w - 1/2|; `by_group` the sum of each group's own mean."""

    weight: NonNegative
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
    """Two edges per node (or as many as the group keeps) by their strongest op, if that is at least `least`.

    A node that this leaves without input keeps its strongest op, or is absent (`starve`), and with it the edges that leave it. A cell that
    would have no node at all keeps the strongest op of each.
    """

    least: Share = 0.85
    starve: bool = False

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        choices, concat = {}, {}
        for group, strength in state.strengths():
            alive = state.alive(group)
            if group.keep is None:
                kept = self._per_edge(group, strength, argmax(group, strength, alive))
            else:
                kept = [
                    c for c in strongest(group, strength, group.keep, alive) if of(strength, group, c) >= self.least
                ]
            found = reached(kept) if self.starve and group.keep is not None else []
            if found:
                nodes = tuple(sorted({c.target for c in found}))
                if nodes != tuple(sorted(group.into())):
                    concat[group.name] = nodes
            else:
                found = self._fed(group, kept, strongest(group, strength, 1, alive))
            choices[group.name] = tuple(sorted(found, key=lambda c: (c.target, c.source)))
        return Genotype(problem.space.name, choices, problem.space.sharing, concat=concat)

    def _fed(self, group: Group, kept: list[Choice], best: tuple[Choice, ...]) -> list[Choice]:
        """`kept`, and for each node that it does not feed the node's best."""
        fed = {c.target for c in kept if c.op != "none"}
        rest = [c for c in best if c.target not in fed]
        instead = {(c.source, c.target) for c in rest}
        return [*(c for c in kept if (c.source, c.target) not in instead), *rest]

    def _per_edge(self, group: Group, strength: Tensor, best: tuple[Choice, ...]) -> list[Choice]:
        """The best op of each edge, or `none` where that is below the threshold and `none` a candidate."""
        weak = [of(strength, group, c) < self.least and "none" in group.ops[e] for e, c in enumerate(best)]
        return [replace(c, op="none") if below else c for c, below in zip(best, weak, strict=True)]


def reached(choices: list[Choice]) -> list[Choice]:
    """Those that start at an input of the cell, 0 or 1, or at a node that is reached itself."""
    fed, found = {0, 1}, []
    for choice in sorted(choices, key=lambda c: c.target):
        if choice.source in fed:
            fed.add(choice.target)
            found.append(choice)
    return found


@dataclass(frozen=True)
class Above(Callback):
    """Writes the number of weights of at least `least` into the epoch's record."""

    least: Share

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record["above_threshold"] = sum(int((strength >= self.least).sum()) for _, strength in state.strengths())


def of(strength: Tensor, group: Group, choice: Choice) -> float:
    """A choice's own strength."""
    return float(strength[group.entry(choice.source, choice.target, choice.op)])


def fair_darts(weight: float = 10.0, absolute: bool = False, least: float = 0.85, starve: bool = False) -> Method:
    """Sigmoid op weights with a zero-one loss.

    Of that `weight`; ops below `least` are left out, with `starve` also where a node has no other.
    """
    return replace(
        darts(),
        name="fair_darts",
        relaxation=Sigmoid(),
        outer_terms=(ZeroOne(weight, absolute),),
        arch_optimizer=Adam(3e-3, (0.9, 0.999)),
        weight_lr=Cosine(0.005, 0.001),
        callbacks=(Above(least),),
        selection=Threshold(least, starve),
        space={"darts.without": ("none",)},
        papers=("chu2020fairdarts",),
    )
