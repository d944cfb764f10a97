"""DARTS: Differentiable Architecture Search. H. Liu, K. Simonyan, Y. Yang. ICLR 2019, arXiv 1806.09055.

    alpha <- alpha - Adam( d L_val(theta - xi d L_train/d theta, alpha) / d alpha )
    theta <- theta - SGD( d L_train(theta, alpha) / d theta )

first order with xi = 0 (`darts`), second order with xi the present learning rate (`darts_2nd`).

Published (quark0/darts): 8 cells of 16 channels, halves of the train set, 50 epochs, batch 64; weights by SGD 0.025 -> 0.001 cosine an
epoch, momentum 0.9, weight decay 3e-4, clip 5; alpha by Adam 3e-4, betas (0.5, 0.999), weight decay 1e-3, initially 1e-3 N(0, 1), stepped
before the weights. On NAS-Bench-201 (D-X-Y/AutoDL-Projects): the weights step first, Nesterov, weight decay 5e-4, cosine at every step.
Published: DARTS space, CIFAR-10 error 3.00 +- 0.14 (first order), 2.76 +- 0.09 % (second); NAS-Bench-201 test 54.30 / 15.61 / 16.32,
the cell of nothing but skip connections (all from other papers' tables).

Deviations from the paper: none known.
Deviations from the authors' code: the second-order product is exact by double backward, where the code takes a finite difference
(`finite_difference=True`); halves are stratified by class, where the code takes the first and last 25,000; the learning rate of
epoch e is the schedule's value at e/50, which is what the code's old-style scheduler call amounts to.
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
    "lr_by_step": True,
    "weight_optimizer.nesterov": True,
    "weight_optimizer.weight_decay": 5e-4,
}

PUBLISHED = {
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, "quark0/darts @ f276dd3"),
    "nb201": Budget(50, 64, NB201_SETTINGS, "D-X-Y/AutoDL-Projects @ f46486e, NAS-Bench-201 scripts"),
}
BUDGETS = {"paper": PUBLISHED}


def darts() -> Method:
    """First-order DARTS."""
    return Method(name="darts", arch_gradient=FirstOrder(), papers=("liu2019darts",))


def darts_2nd(finite_difference: bool = False) -> Method:
    """Second-order DARTS.

    `finite_difference` takes the product as the authors' code does.
    """
    return replace(darts(), name="darts_2nd", arch_gradient=FiniteDifference() if finite_difference else Unrolled())
