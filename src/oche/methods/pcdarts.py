"""PC-DARTS: Partial Channel Connections. Y. Xu, L. Xie, X. Zhang, X. Chen, G. Qi, Q. Tian, H. Xiong. ICLR 2020, arXiv 1907.05737.

    y = shuffle( [ sum_o w_o op_o(x[1/K of the channels]) , x[the rest] ] )          on every edge
    w_eo = softmax_o(alpha_eo) softmax over the edges into e's node (beta_e)         edge normalisation

First-order DARTS otherwise. Published (yuhuixu1993/PC-DARTS): K=4, batch 256, SGD 0.1 -> 0, alpha and beta by Adam 6e-4, both held
for the first 15 of 50 epochs. ImageNet: K=2, batch 1024, SGD 0.5 -> 0 after a warm-up of 5 epochs, Adam 6e-3, held for 35 of 50 epochs,
10 % of each class for the weights and 2.5 % for alpha. S1-S4: the SDARTS repository's baseline, K=4 with DARTS's settings.
Published, from other papers' tables: DARTS space, CIFAR-10 error 2.57 +- 0.07 %; NAS-Bench-201 test 93.41 +- 0.30 / 67.48 +- 0.89 /
41.31 +- 0.22.

Deviations from the paper: none known.
Deviations from the authors' code: ImageNet's gradient clip does not reach alpha; at odd sizes the bypass pools to ceil(H/2).
Cost against DARTS: the same passes, with 1/K of the channels in every operation.
"""

from __future__ import annotations

from dataclasses import replace

from oche.methods.budgets import Budget
from oche.methods.darts import PUBLISHED as DARTS_PUBLISHED
from oche.methods.darts import darts
from oche.search.method import Method
from oche.search.relaxations import EdgeNormalised
from oche.spaces.edges import PartialChannels

_OURS = {"arch_start": 0.3, "space.cells": 8, "space.channels": 16}

PUBLISHED = {
    **DARTS_PUBLISHED,
    "darts": Budget(
        50,
        256,
        {**_OURS, "weight_lr.start": 0.1, "weight_lr.end": 0.0, "arch_optimizer.lr": 6e-4},
        "yuhuixu1993/PC-DARTS @ b74702f",
    ),
    "imagenet": Budget(
        50,
        1024,
        {
            **_OURS,
            "arch_start": 0.7,
            "edge.K": 2,
            "weight_lr.start": 0.5,
            "weight_lr.end": 0.0,
            "weight_lr.warm_up": 0.08,
            "arch_optimizer.lr": 6e-3,
            "split.weights": 0.1,
            "split.arch": 0.025,
        },
        "yuhuixu1993/PC-DARTS @ b74702f, ImageNet",
    ),
    **{
        space: Budget(
            50, 64, {"arch_start": 0.3, "space.cells": 8, "space.channels": 16}, "xiangning-chen/SmoothDARTS @ d3dbfed"
        )
        for space in ("s1", "s2", "s3", "s4")
    },
}
BUDGETS = {"paper": PUBLISHED}


def pcdarts(K: int = 4) -> Method:
    """PC-DARTS: 1/K of the channels are searched.

    Alpha and beta are held for the first 30 % of the epochs.
    """
    return replace(
        darts(),
        name="pcdarts",
        edge=PartialChannels(K),
        relaxation=EdgeNormalised(),
        arch_start=0.3,
        papers=("xu2020pcdarts",),
    )
