"""GDAS: Searching for a Robust Neural Architecture in Four GPU Hours. X. Dong, Y. Yang. CVPR 2019, arXiv 1910.04465.

    h_e = one-hot of argmax (log softmax(alpha_e) + G),  G from Gumbel(0, 1)           one draw a cell type and forward
    d h_e / d alpha_e := d softmax((log softmax(alpha_e) + G) / tau) / d alpha_e       straight through; tau falls from 10 to 0.1

Only the drawn op of an edge is computed, in both steps, so an architecture step moves alpha along the drawn op's probability alone.

Taken from code (D-X-Y/AutoDL-Projects @ f46486e): tau linear, 250 epochs; NAS-Bench-201 with the repository's settings (weights first,
Nesterov, weight decay 5e-4, batch 64). Its DARTS-like space: batch 256.
Published: NAS-Bench-201 test 93.61 +- 0.09 / 70.70 +- 0.30 / 41.71 +- 0.98 (another paper's table); CIFAR-10 error 2.93 %.

Deviations from the paper: none known.
Deviations from the authors' code: there an op that was not drawn adds its weight, which is zero, to every value of the edge's output, and
so alpha gets a derivative that no op's output enters (`scalars=True`); tau falls at every step, not every epoch; a non-finite draw cannot
occur, so none is drawn again.
Cost against DARTS: as many passes, each through one op an edge instead of all.
"""

from __future__ import annotations

from dataclasses import replace

from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.schedule import Linear
from oche.search.method import Method
from oche.search.relaxations import GumbelSoftmax
from oche.spaces.edges import SampledOps

_SOURCE = "D-X-Y/AutoDL-Projects @ f46486e"

PUBLISHED = {
    "nb201": Budget(250, 64, NB201_SETTINGS, _SOURCE),
    "darts": Budget(250, 256, {"space.cells": 8, "space.channels": 16}, _SOURCE),
}
BUDGETS = {"paper": PUBLISHED}


def gdas(start: float = 10.0, end: float = 0.1, scalars: bool = False) -> Method:
    """GDAS: one op an edge, drawn with Gumbel noise.

    tau falls from `start` to `end`.
    """
    return replace(
        darts(),
        name="gdas",
        relaxation=GumbelSoftmax(Linear(start, end), hard=True),
        edge=SampledOps(scalars),
        papers=("dong2019gdas",),
    )
