"""SNAS: Stochastic Neural Architecture Search. S. Xie, H. Zheng, C. Liu, L. Lin. ICLR 2019, arXiv 1812.09926.

    p_e = softmax((log softmax(alpha_e) + G) / tau),   G from Gumbel(0, 1),   tau from 1 to 0.03;   all ops run
    (theta, alpha) <- one step each along the gradient of L_train(theta, p(alpha)): a single level, no validation part

Every edge keeps its strongest op, `none` included, so any number of edges may enter a node.

`resource` weighs what p is expected to cost, in parameters and in multiply-adds, both of them alike (0 leaves it out):

    L_train + resource sum_e mean over its cells and both costs of ln max(1, sum_o p_eo cost_eo)

e runs over the edges that have an alpha: of 8 DARTS cells, a sixth of the 6 normal ones' sum and half of the 2 reductions'.

Taken from code (SNAS-Series/SNAS-Series @ 9a43adb, the command of SNAS/README.md:27-30 and SNAS/train_search.py): 150 epochs, batch 64,
tau linear, SGD 0.025 -> 0.001, Adam 3e-4, weight decay 1e-3, alpha's gradient clipped at 10, alpha initially of standard deviation 0.01,
8 cells of 16 channels; in that command also drop path of whole mixed edges at 0.3 throughout and the resource term at 1.5e-3, which
`--budget paper` has in the DARTS space. Published: NAS-Bench-201 test 92.77 +- 0.83 / 69.34 +- 1.98 / 43.16 +- 2.64 (from other papers'
tables); DARTS space, CIFAR-10 error 2.98 / 2.85 +- 0.02 / 3.10 +- 0.04 % for a mild, moderate and aggressive resource constraint.

Deviations from the paper: the weights of the resource term for the three published cells are not public; ours is 0 by default.
Deviations from the script of the published numbers: tau falls at every step, theirs per epoch and one epoch early (SNAS/utils.py:137-148);
memory access, their third cost, is not counted (SNAS/model_search.py:474); alpha starts around 0, theirs around 1, which decay alone can
tell apart (model_search.py:160-165); on one GPU their alpha steps by plain SGD at 3e-4, and by the weights' SGD too, whose list it is in
(train_search.py:261-270), on several by Adam alone (254-259), as here.
Cost against DARTS: one forward and backward pass per step instead of two, on twice the images per epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.data import Whole
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.schedule import Constant, Linear
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.relaxations import GumbelSoftmax
from oche.search.selection import PerEdgeArgmax
from oche.search.state import SearchState
from oche.spaces.cost import candidates
from oche.spaces.edges import DropPath

_SOURCE = "SNAS-Series/SNAS-Series @ 9a43adb"

PUBLISHED = {
    "darts": Budget(
        150,
        64,
        {
            "space.cells": 8,
            "space.channels": 16,
            "edge": DropPath(rate=Constant(0.3)),
            "method.resource": 1.5e-3,
        },
        _SOURCE,
    ),
    "nb201": Budget(150, 64, {"space.cells": 5, "space.channels": 16}, f"ours, after {_SOURCE}"),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class Resource:
    """weight * the expected cost of the step's own sample p; see the module."""

    weight: float

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw, parts = state.draw("weight"), []
        for group in state.space.groups:
            p = state.relaxation(alpha, group, draw)
            expected = torch.einsum("eo,neoc->nec", p, candidates(state.space)[group.name].to(p))
            parts.append(expected.clamp_min(1.0).log().mean((0, 2)).sum())
        return self.weight * torch.stack(parts).sum()


@dataclass(frozen=True)
class Temperature(Callback):
    """Writes into the log the temperature of the samples at the epoch's end."""

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if isinstance(state.relaxation, GumbelSoftmax):
            record["temperature"] = state.relaxation.temperature(state.progress)


def snas(start: float = 1.0, end: float = 0.03, resource: float = 0.0) -> Method:
    """SNAS: relaxed samples; weights and alpha step together.

    On all train images, tau from `start` to `end`; `resource` weighs the expected cost.
    """
    return replace(
        darts(),
        name="snas",
        relaxation=GumbelSoftmax(Linear(start, end), scale=0.01),
        arch_clip=10.0,
        single_level=True,
        split=Whole(),
        callbacks=(Temperature(),),
        inner_terms=(Resource(resource),) if resource else (),
        selection=PerEdgeArgmax(),
        papers=("xie2019snas",),
    )
