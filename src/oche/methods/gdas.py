"""GDAS: Searching for a Robust Neural Architecture in Four GPU Hours. X. Dong, Y. Yang. CVPR 2019, arXiv 1910.04465.

    h_e = one-hot of argmax (log softmax(alpha_e) + G),  G from Gumbel(0, 1)           one draw per cell type and forward
    d h_e / d alpha_e := d softmax((log softmax(alpha_e) + G) / tau) / d alpha_e       straight through; tau falls from 10 to 0.1

Only the drawn op of an edge is computed, in both steps. The code also adds the weights of the others, which are zero, to every value of
the edge's output, so that each of them gets a derivative: the sum of the output's gradient. That is the default; with `scalars=False`
alpha moves along the drawn op's probability alone, as the paper writes it.

A node keeps its two strongest (op, edge) pairs, which may lie on one edge.

Taken from code (D-X-Y/AutoDL-Projects @ f46486e, exps/NAS-Bench-201-algos/GDAS.py with configs/nas-benchmark/algos/GDAS.config, and for
the DARTS space configs/search-opts/GDAS-NASNet-CIFAR.config): tau linear, 250 epochs, weights first, Nesterov, weight decay 5e-4,
learning rate by epoch (its scheduler looks at nothing else, xautodl/procedures/optimizers.py:81), batch 64 (NAS-Bench-201) and 256 (DARTS
space, six cells).
Published: NAS-Bench-201 test 93.61 +- 0.09 / 70.70 +- 0.30 / 41.71 +- 0.98 (another paper's table); CIFAR-10 error 2.93 %.

Deviations from the paper: the scalars above.
Deviations from the script of the published numbers: tau falls at every step, where GDAS.py:237 sets 10 - 9.9 epoch / (epochs - 1); the
weights' clip leaves alpha's gradient out, which GDAS.py:54 counts in; a non-finite draw cannot occur, so none is drawn again
(search_model_gdas.py, `while True`).
Cost against DARTS: as many passes, each through one op per edge instead of all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.methods.logged import Logged
from oche.schedule import Linear
from oche.search.method import Method
from oche.search.relaxations import GumbelSoftmax
from oche.search.selection import argmax
from oche.search.state import Problem, SearchState
from oche.spaces.edges import SampledOps

_SOURCE = "D-X-Y/AutoDL-Projects @ f46486e"

PUBLISHED = {
    "nb201": Budget(250, 64, NB201_SETTINGS, f"{_SOURCE}, scripts-search/NAS-Bench-201-algos/GDAS.sh"),
    "darts": Budget(
        250,
        256,
        {**NB201_SETTINGS, "space.cells": 6},
        f"{_SOURCE}, scripts-search/NASNet-space-search-by-GDAS.sh",
    ),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class StrongestPairs:
    """Each node keeps its strongest pairs of an incoming edge and an op other than `none`, as many as the group says.

    Two of them may lie on one edge. A group that keeps all its edges takes the strongest op of each.
    """

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        choices = {}
        for group, strength in state.strengths():
            alive = state.alive(group)
            choices[group.name] = (
                argmax(group, strength, alive) if group.keep is None else pairs(group, strength, alive)
            )
        return Genotype(problem.space.name, choices, problem.space.sharing)


def pairs(group: Group, strength: Tensor, alive: Tensor) -> tuple[Choice, ...]:
    """The `group.keep` strongest (edge, op) pairs `alive` (E, O) of each node, the first of equals; by edge and op."""
    scores = strength.masked_fill(~alive | group.named("none"), float("-inf"))
    found = []
    for target, numbers in sorted(group.into().items()):
        own = scores[numbers]
        order = own.flatten().argsort(descending=True, stable=True)[: group.keep].sort().values
        for at in order.tolist():
            e, o = numbers[at // group.width], at % group.width
            if torch.isfinite(scores[e, o]):
                found.append(Choice(group.edges[e][0], target, group.ops[e][o]))
    return tuple(found)


def gdas(start: float = 10.0, end: float = 0.1, scalars: bool = True) -> Method:
    """GDAS: one op per edge, drawn with Gumbel noise.

    tau falls from `start` to `end`. `scalars=False` is the paper's gradient.
    """
    tau = Linear(start, end)
    return replace(
        darts(),
        name="gdas",
        relaxation=GumbelSoftmax(tau, hard=True),
        edge=SampledOps(scalars),
        selection=StrongestPairs(),
        callbacks=(Logged("temperature", tau),),
        papers=("dong2019gdas",),
    )
