"""DARTOpti: a network made by hand, improved by D-DARTS. A. Heuillet et al. arXiv 2108.09306.

The search of `d_darts` starts from a known network: alpha = 10 where it has an op, 0 elsewhere, among the seven ops of D-DARTS and five
dense ones that such networks are made of. Ten percent of the epochs train the weights alone. Every edge keeps up to two ops
(`parse="edge"`).

Taken from code (aheuillet/D-DARTS @ e3ad5d9): the 12 ops, 10, 5 of 50 epochs; else as `d_darts`.
Published (readme), CIFAR-10 accuracy with AutoAugment: 97.39 % from ResNet-18, 97.20 % from ResNet-50.

Deviations from the paper: no stop by the distance that the network moves, which weighs operations by measured accuracies that were not at
hand; the start is two basic residual blocks a cell (ours), not a whole ResNet or Xception; else those of `d_darts`.
Deviations from the authors' code: those of `d_darts`.
Cost against DARTS: that of `d_darts`, with 12 ops an edge instead of 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from oche.base import Alpha, Draw, Group
from oche.methods.d_darts import Gene, d_darts
from oche.search.method import Method
from oche.search.relaxations import Relaxation, Sigmoid
from oche.spaces.darts import DARTS_OPS

DARTOPTI_OPS = (
    *DARTS_OPS[1:],
    "conv_3x1_1x3",
    "conv_7x1_1x7",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "bottleneck_1x3x1",
)

RESIDUAL: Gene = (
    ("nor_conv_3x3", 2, 1),
    ("nor_conv_3x3", 3, 2),
    ("skip_connect", 3, 1),
    ("nor_conv_3x3", 4, 3),
    ("nor_conv_3x3", 5, 4),
    ("skip_connect", 5, 3),
)
"""Two basic blocks of a ResNet, one behind the other, in a DARTS cell."""


@dataclass(frozen=True)
class StartFrom(Relaxation):
    """A sigmoid whose alpha is `high` where the gene has an op that is a candidate, and 0 elsewhere."""

    gene: Gene
    high: float = 10.0

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        alpha = Sigmoid().init(group, rng)
        for op, target, source in self.gene:
            if (source, target) in group.edges and op in group.ops[group.edges.index((source, target))]:
                e = group.edges.index((source, target))
                alpha[f"{group.name}/alpha"][e, group.ops[e].index(op)] = self.high
        return alpha

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return Sigmoid()(alpha, group, draw)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return Sigmoid()(alpha, group, draw)


def dartopti(learns: bool = True, parse: Literal["sparse", "edge"] = "edge", least: float = 0.85) -> Method:
    """D-DARTS started from a residual network.

    In a space with dense convolutions.
    """
    base = d_darts(learns=learns, parse=parse, least=least)
    ops: Sequence[str] = DARTOPTI_OPS
    return replace(
        base,
        name="dartopti",
        relaxation=StartFrom(RESIDUAL),
        arch_start=0.1,
        space={**base.space, "darts.without": (), "darts.normal": (ops,), "darts.reduce": (ops,)},
    )
