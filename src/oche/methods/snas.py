"""SNAS: Stochastic Neural Architecture Search. S. Xie, H. Zheng, C. Liu, L. Lin. ICLR 2019, arXiv 1812.09926.

    p_e = softmax((log softmax(alpha_e) + G) / tau),   G from Gumbel(0, 1),   tau from 1 to 0.03;   all ops run
    (theta, alpha) <- one step each along the gradient of L_train(theta, p(alpha)): a single level, no validation part

Every edge keeps its strongest op, `none` included, so any number of edges may enter a node.

`resource` weighs what p is expected to cost, in parameters and in multiply-adds, both of them alike (0 leaves it out):

    L_train + resource sum_e mean over its cells and both costs of ln max(1, sum_o p_eo cost_eo)

e runs over the edges that have an alpha: of 8 DARTS cells, a sixth of the 6 normal ones' sum and half of the 2 reductions'.

Taken from code (SNAS-Series): 150 epochs, batch 96, tau linear (a flag there, off by default), SGD 0.025 -> 0.001, Adam 3e-4, weight decay
1e-3, 8 cells of 16 channels; the resource term's form, whose weight is 1e-2 there by default and 1.5e-3 in the script for it.
Published: NAS-Bench-201 test 92.77 +- 0.83 / 69.34 +- 1.98 / 43.16 +- 2.64 (from other papers' tables); DARTS space, CIFAR-10 error
2.98 / 2.85 +- 0.02 / 3.10 +- 0.04 % for a mild, moderate and aggressive resource constraint.

Deviations from the paper: the weights of the resource term for the three published cells are not public; ours is 0 by default.
Deviations from the authors' code: tau falls at every step, not every epoch; memory access, their third cost, is not counted.
Cost against DARTS: one forward and backward pass a step instead of two, on twice the images an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.data import Whole
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.schedule import Linear
from oche.search.method import Method
from oche.search.relaxations import GumbelSoftmax
from oche.search.selection import PerEdgeArgmax
from oche.search.state import SearchState
from oche.spaces.cost import candidates

_SOURCE = "SNAS-Series"

PUBLISHED = {
    "darts": Budget(150, 96, {"space.cells": 8, "space.channels": 16}, _SOURCE),
    "nb201": Budget(
        150, 96, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}'s settings; none are published for it"
    ),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class Resource:
    """weight * the expected cost of the step's own sample p; see the module."""

    weight: float = 1e-2

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw, parts = state.draw("weight"), []
        for group in state.space.groups:
            p = state.relaxation(alpha, group, draw)
            expected = torch.einsum("eo,neoc->nec", p, candidates(state.space)[group.name].to(p))
            parts.append(expected.clamp_min(1.0).log().mean((0, 2)).sum())
        return self.weight * torch.stack(parts).sum()


def snas(start: float = 1.0, end: float = 0.03, resource: float = 0.0) -> Method:
    """SNAS: relaxed samples; weights and alpha step together.

    On all train images, tau from `start` to `end`; `resource` weighs the expected cost.
    """
    return replace(
        darts(),
        name="snas",
        relaxation=GumbelSoftmax(Linear(start, end)),
        single_level=True,
        split=Whole(),
        inner_terms=(Resource(resource),) if resource else (),
        selection=PerEdgeArgmax(),
        papers=("xie2019snas",),
    )
