"""DARTOpti: a network made by hand, improved by D-DARTS. A. Heuillet et al. arXiv 2108.09306.

The search of `d_darts` starts from a known network: alpha = 10 where it has an op, 0 elsewhere, among the seven ops of D-DARTS and five
dense ones that such networks are made of. Eleven times fewer epochs train the weights alone before. Every edge keeps up to two ops
(`parse="edge"`). The search ends once the network has stood still: from the sixth epoch of alpha on, with the ops that every edge would
keep now, Z_c (E, O) of cell c, Z0 those of the start, and measured accuracies as weights v of the ops,

    d(y, z) = sum_o v_o [y_o != z_o] / sum_o v_o          h(Y, Z) = max_i min_j d(Y_i, Z_j)
    distance = mean_c max( h(Z0, Z_c), h(Z_c, Z0) )       stop when it is within 0.001 of each of the last four epochs'

Taken from code (aheuillet/D-DARTS @ e3ad5d9): the 12 ops (genotypes.py:12-25), 10 (architecture_processing.py:78), 5 + 50 epochs and 32
channels (train_search.py:36-38), the stop (train_search.py:217-226, its weights op_stats.json); else as `d_darts`.
Published (readme), CIFAR-10 accuracy with AutoAugment: 97.39 % from ResNet-18, 97.20 % from ResNet-50.

Deviations from the paper: the start is two basic residual blocks a cell (ours), not a whole ResNet or Xception; else those of `d_darts`.
Deviations from the script of the published numbers: ResNet-18 has four cells there, three of them reductions, of one alpha
(genotypes.py:43), here 8 cells in the DARTS space's places, each with its own; else those of `d_darts`.
Cost against DARTS: that of `d_darts`, with 12 ops per edge instead of 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from oche.base import Alpha, Count, Draw, Group, Natural, NonNegative, Share
from oche.methods.budgets import Budget
from oche.methods.d_darts import d_darts
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.relaxations import Relaxation, Sigmoid
from oche.search.selection import leading
from oche.search.state import SearchState
from oche.spaces.darts import DARTS_OPS

DARTOPTI_OPS = (
    *DARTS_OPS[1:],
    "conv_3x1_1x3",
    "conv_7x1_1x7",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "bottleneck_1x3x1",
)

Gene = tuple[tuple[str, int, int], ...]
"""A cell in D-DARTS's code: (op, to node, from node) of each edge."""

RESIDUAL: Gene = (
    ("nor_conv_3x3", 2, 1),
    ("nor_conv_3x3", 3, 2),
    ("skip_connect", 3, 1),
    ("nor_conv_3x3", 4, 3),
    ("nor_conv_3x3", 5, 4),
    ("skip_connect", 5, 3),
)
"""Two basic blocks of a ResNet, one behind the other, in a DARTS cell."""


ACCURACIES = {
    "conv_3x1_1x3": 82.106,
    "conv_7x1_1x7": 83.159,
    "max_pool_3x3": 82.134,
    "avg_pool_3x3": 81.563,
    "skip_connect": 81.342,
    "nor_conv_1x1": 81.492,
    "nor_conv_3x3": 82.303,
    "sep_conv_3x3": 83.396,
    "sep_conv_5x5": 84.974,
    "dil_conv_3x3": 82.736,
    "dil_conv_5x5": 82.892,
    "bottleneck_1x3x1": 82.875,
}
"""op_stats.json, rounded: the mean CIFAR-10 accuracy of a two-cell network with the op in each place in turn, in per cent."""

PUBLISHED = {
    "darts": Budget(55, 96, {"space.cells": 8, "space.channels": 32}, "aheuillet/D-DARTS @ e3ad5d9"),
    "nb201": Budget(55, 96, {"space.cells": 5, "space.channels": 16}, "ours, after aheuillet/D-DARTS @ e3ad5d9"),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class StandstillStop(Callback):
    """Ends the search when the distance from the start has not moved by more than `tolerance` for `patience` epochs.

    Measured from the epoch number `since` of alpha's on, counted from 0. Writes it into the log.
    """

    gene: Gene
    least: Share = 0.85
    most: Count = 2
    since: Natural = 5
    tolerance: NonNegative = 1e-3
    patience: Count = 4

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if record["phase"] != "search":
            return
        searched = int(state.memory.get("dartopti/searched", torch.tensor(0)))
        state.memory["dartopti/searched"] = torch.tensor(searched + 1)
        if searched < self.since:
            return
        record["distance"] = now = self.distance(state)
        known = state.memory.get("dartopti/distances", torch.zeros(0, dtype=torch.float64))
        last = known[-self.patience :]
        if len(last) == self.patience and bool(((last - now).abs() <= self.tolerance).all()):
            state.stop = True
        state.memory["dartopti/distances"] = torch.cat([known, torch.tensor([now], dtype=torch.float64)])

    def distance(self, state: SearchState) -> float:
        """Distance in [0, 1] between the ops that would be kept now and those of the start."""
        found = []
        for group, strength in state.strengths():
            large = leading(strength, state.alive(group), self.most) & (strength >= self.least)
            begun = torch.zeros_like(large)
            for e, o in entries(self.gene, group):
                begun[e, o] = True
            weights = torch.tensor([ACCURACIES.get(op, 0.0) for op in group.ops[0]], dtype=torch.float64)
            found.append(hausdorff(begun, large, weights))
        return sum(found) / len(found)


def hausdorff(a: Tensor, b: Tensor, weights: Tensor) -> float:
    """max(h(a, b), h(b, a)) of the rows of two (E, O) masks under the weighted Hamming distance with weights (O,)."""
    apart = ((a[:, None] != b[None]) * weights).sum(-1) / weights.sum()
    return float(torch.maximum(apart.amin(1).max(), apart.amin(0).max()))


def entries(gene: Gene, group: Group) -> list[tuple[int, int]]:
    """Positions in an (E, O) matrix of the group of the gene's ops that are candidates."""
    there = [
        (group.edges.index((source, target)), op) for op, target, source in gene if (source, target) in group.edges
    ]
    return [(e, group.ops[e].index(op)) for e, op in there if op in group.ops[e]]


@dataclass(frozen=True)
class StartFrom(Relaxation):
    """A sigmoid whose alpha is `high` where the gene has an op that is a candidate, and 0 elsewhere."""

    gene: Gene
    high: float = 10.0

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        alpha = Sigmoid().init(group, rng)
        for e, o in entries(self.gene, group):
            alpha[f"{group.name}/alpha"][e, o] = self.high
        return alpha

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return Sigmoid()(alpha, group, draw)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return Sigmoid()(alpha, group, draw)


def dartopti(learns: bool = False, parse: Literal["sparse", "edge"] = "edge", least: float = 0.85) -> Method:
    """D-DARTS started from a residual network.

    In a space with dense convolutions.
    """
    base = d_darts(learns=learns, parse=parse, least=least)
    ops: Sequence[str] = DARTOPTI_OPS
    return replace(
        base,
        name="dartopti",
        relaxation=StartFrom(RESIDUAL),
        arch_start=1 / 11,
        callbacks=(*base.callbacks, StandstillStop(RESIDUAL, least)),
        space={**base.space, "darts.without": (), "darts.normal": (ops,), "darts.reduce": (ops,)},
    )
