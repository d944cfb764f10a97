"""SNAS: Stochastic Neural Architecture Search. S. Xie, H. Zheng, C. Liu, L. Lin. ICLR 2019, arXiv 1812.09926.

    p_e = softmax((log softmax(alpha_e) + G) / tau),   G from Gumbel(0, 1),   tau from 1 to 0.03;   all ops run
    (theta, alpha) <- one step each along the gradient of L_train(theta, p(alpha)): a single level, no validation part

Every edge keeps its strongest op, `none` included, so any number of edges may enter a node.

Taken from code (SNAS-Series): 150 epochs, batch 96, tau linear (a flag there, off by default), SGD 0.025 -> 0.001, Adam 3e-4, weight decay
1e-3, 8 cells of 16 channels.
Published: NAS-Bench-201 test 92.77 +- 0.83 / 69.34 +- 1.98 / 43.16 +- 2.64 (from other papers' tables); DARTS space, CIFAR-10 error
2.98 / 2.85 +- 0.02 / 3.10 +- 0.04 % for a mild, moderate and aggressive resource constraint.

Deviations from the paper: without the resource term (its weights for the three published cells are not public).
Deviations from the authors' code: tau falls at every step, not every epoch.
Cost against DARTS: one forward and backward pass a step instead of two, on twice the images an epoch.
"""

from __future__ import annotations

from dataclasses import replace

from oche.budgets import Budget
from oche.data import Whole
from oche.method import Method
from oche.methods.darts import darts
from oche.relaxations import GumbelSoftmax
from oche.schedule import Linear
from oche.selection import PerEdgeArgmax

_SOURCE = "SNAS-Series"

PUBLISHED = {
    "darts": Budget(150, 96, {"space.cells": 8, "space.channels": 16}, _SOURCE),
    "nb201": Budget(
        150, 96, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}'s settings; none are published for it"
    ),
}


def snas(start: float = 1.0, end: float = 0.03) -> Method:
    """SNAS: relaxed samples; weights and alpha step together.

    On all train images, tau from `start` to `end`.
    """
    return replace(
        darts(),
        name="snas",
        relaxation=GumbelSoftmax(Linear(start, end)),
        single_level=True,
        split=Whole(),
        selection=PerEdgeArgmax(),
        papers=("xie2019snas",),
    )
