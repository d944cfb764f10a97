"""PC-DARTS: Partial Channel Connections. Y. Xu, L. Xie, X. Zhang, X. Chen, G. Qi, Q. Tian, H. Xiong. ICLR 2020, arXiv 1907.05737.

    y = shuffle( [ sum_o w_o op_o(x[1/K of the channels]) , x[the rest] ] )          on every edge
    w_eo = softmax_o(alpha_eo) softmax over the edges into e's node (beta_e)         edge normalisation

First-order DARTS otherwise. Taken from code (yuhuixu1993/PC-DARTS @ b74702f): K=4 (model_search.py), batch 256, SGD 0.1 -> 0, alpha and
beta by Adam 6e-4, both held for the first 15 of 50 epochs (train_search.py:24-43, 156). ImageNet (train_search_imagenet.py:26-45, 156,
199-204): K=2, batch 1024, SGD 0.5 -> 0 after 0.1, 0.2, ..., 0.5 in the first 5 epochs, Adam 6e-3, held for 35 of 50 epochs, the gradients
of alpha and beta clipped at 5 together, 10 % of each class for the weights and 2.5 % for alpha. S1 to S4 (xiangning-chen/SmoothDARTS @
d3dbfed, sota/cnn/train_search_pcdarts.py and model_search_pcdarts.py): K=4 with DARTS's settings, no edge normalisation
(`normalised=False`), and alpha steps from the first epoch on.
Published, from other papers' tables: DARTS space, CIFAR-10 error 2.57 +- 0.07 %; NAS-Bench-201 test 93.41 +- 0.30 / 67.48 +- 0.89 / 41.31
+- 0.22, by settings that were not published.

Deviations from the paper: none known.
Deviations from the script of the published numbers: ImageNet's images are augmented as the data say (crop and flip), where
train_search_imagenet.py:94 takes random resized crops; the weights' clip leaves alpha out (line 213 counts it in); at odd sizes the
bypass pools to ceil(H/2).
Cost against DARTS: the same passes, with 1/K of the channels in every operation.
"""

from __future__ import annotations

from dataclasses import replace

from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.search.method import Method
from oche.search.relaxations import EdgeNormalised, Softmax
from oche.spaces.edges import PartialChannels

_OURS = {"arch_start": 0.3, "space.cells": 8, "space.channels": 16}
_SOURCE = "yuhuixu1993/PC-DARTS @ b74702f"
_S = Budget(
    50,
    64,
    {"method.normalised": False, "arch_start": 0.0, "space.cells": 8, "space.channels": 16},
    "xiangning-chen/SmoothDARTS @ d3dbfed, sota/cnn/train_search_pcdarts.py",
)

PUBLISHED = {
    "darts": Budget(
        50,
        256,
        {**_OURS, "weight_lr.start": 0.1, "weight_lr.end": 0.0, "arch_optimizer.lr": 6e-4},
        f"{_SOURCE}, train_search.py",
    ),
    "imagenet": Budget(
        50,
        1024,
        {
            **_OURS,
            "arch_start": 0.7,
            "arch_clip": 5.0,
            "method.K": 2,
            "weight_lr.start": 0.5,
            "weight_lr.end": 0.0,
            "weight_lr.warm_up": 0.1,
            "arch_optimizer.lr": 6e-3,
            "split.weights": 0.1,
            "split.arch": 0.025,
        },
        f"{_SOURCE}, train_search_imagenet.py",
    ),
    **dict.fromkeys(("s1", "s2", "s3", "s4"), _S),
    "nb201": Budget(50, 64, NB201_SETTINGS, "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e"),
}
BUDGETS = {"paper": PUBLISHED}


def pcdarts(K: int = 4, normalised: bool = True) -> Method:
    """PC-DARTS: 1/K of the channels are searched.

    Alpha and beta are held for the first 30 % of the epochs. Without edge normalisation (`normalised=False`) there is no beta.
    """
    return replace(
        darts(),
        name="pcdarts",
        edge=PartialChannels(K),
        relaxation=EdgeNormalised() if normalised else Softmax(),
        arch_start=0.3,
        papers=("xu2020pcdarts",),
    )
