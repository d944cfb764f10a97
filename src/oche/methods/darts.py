"""DARTS: Differentiable Architecture Search. H. Liu, K. Simonyan, Y. Yang. ICLR 2019, arXiv 1806.09055.

    alpha <- alpha - Adam( d L_val(theta - xi d L_train/d theta, alpha) / d alpha )
    theta <- theta - SGD( d L_train(theta, alpha) / d theta )

first order with xi = 0 (`darts`), second order with xi the present learning rate (`darts_2nd`).

Published (quark0/darts): 8 cells of 16 channels, halves of the train set, 50 epochs, batch 64; weights by SGD 0.025 -> 0.001 cosine per
epoch, momentum 0.9, weight decay 3e-4, clip 5; alpha by Adam 3e-4, betas (0.5, 0.999), weight decay 1e-3, initially 1e-3 N(0, 1), stepped
before the weights. On NAS-Bench-201 (D-X-Y/AutoDL-Projects @ f46486e): Nesterov, weight decay 5e-4, cosine per epoch; the weights step
first in first order (exps/NAS-Bench-201-algos/DARTS-V1.py:59, 73), alpha in second order (DARTS-V2.py:152, 167), whose look-ahead is
without Nesterov (DARTS-V2.py:64-83). Published: DARTS space, CIFAR-10 error 3.00 +- 0.14 (first order), 2.76 +- 0.09 % (second);
NAS-Bench-201 test 54.30 / 15.61 / 16.32, the cell of nothing but skip connections (all from other papers' tables).

Deviations from the paper: none known.
Deviations from the script of the published numbers: the second-order product is exact by double backward, where the code takes a finite
difference (cnn/architect.py:76-92, `finite_difference=True`), because that one loses half of its digits in single precision; halves are
stratified by class, where the code takes the first and last 25,000 (cnn/train_search.py:90-100); the learning rate of epoch e is the
schedule's value at e/50, which is what the code's old-style scheduler call amounts to; on NAS-Bench-201 the clipped norm is that of the
weights' gradients alone, where the code's has alpha's in it (DARTS-V1.py:58, `network.parameters()`).
Cost against DARTS: the first order is the measure; the second is several times a first-order step (docs/results/performance.md).
"""

from __future__ import annotations

from dataclasses import replace

from oche.methods.budgets import Budget
from oche.search.bilevel import FiniteDifference, FirstOrder, Unrolled
from oche.search.method import Method

NB201_SETTINGS = {
    "space.cells": 5,
    "space.channels": 16,
    "arch_first": False,
    "weight_optimizer.nesterov": True,
    "weight_optimizer.weight_decay": 5e-4,
}
"""AutoDL-Projects' recipe, the weights first: configs/nas-benchmark/algos/DARTS.config."""

DARTS_SPACE = Budget(50, 64, {"space.cells": 8, "space.channels": 16}, "quark0/darts @ f276dd3")

PUBLISHED = {
    "darts": DARTS_SPACE,
    "nb201": Budget(50, 64, NB201_SETTINGS, "D-X-Y/AutoDL-Projects @ f46486e, DARTS-V1.py"),
}
BUDGETS = {"paper": PUBLISHED}
SECOND_ORDER = {
    "paper": {
        "darts": DARTS_SPACE,
        "nb201": Budget(50, 64, {**NB201_SETTINGS, "arch_first": True}, "D-X-Y/AutoDL-Projects @ f46486e, DARTS-V2.py"),
    }
}


def darts() -> Method:
    """First-order DARTS."""
    return Method(name="darts", arch_gradient=FirstOrder(), papers=("liu2019darts",))


def darts_2nd(finite_difference: bool = False) -> Method:
    """Second-order DARTS.

    `finite_difference` takes the product as the authors' code does.
    """
    return replace(darts(), name="darts_2nd", arch_gradient=FiniteDifference() if finite_difference else Unrolled())
