"""DARTS-: Robustly Stepping out of Performance Collapse Without Indicators. X. Chu et al. ICLR 2021, arXiv 2009.01027.

    f_e(x) = beta_t aux(x) + sum_o p_eo op_o(x),      aux = identity, or a factorised reduction at stride 2;   beta from 1 to 0

The help that a skip connection gives to training comes from aux, which alpha has no say in, so the searched skip is judged as an
operation. aux is left out of the genotype.

Taken from code (Meituan-AutoML/DARTS- @ adb81a8, src/search/args.py:28-42, 76-82 and scripts/run_darts_minus.sh): beta linear over 50
epochs, all else as DARTS, first order, all eight ops in the DARTS space (src/spaces.py:80). The repository has no NAS-Bench-201 code; the
settings there are ours.
Published: NAS-Bench-201 test 93.80 +- 0.40 / 71.53 +- 1.51 / 45.12 +- 0.82 (from other papers' tables); DARTS space, CIFAR-10 error 2.59
+- 0.08 %.

Deviations from the paper: none known.
Deviations from the script of the published numbers: beta falls at every step, where utils.py:188 sets it per epoch.
Cost against DARTS: the same passes, with one more skip connection per edge.
"""

from __future__ import annotations

from dataclasses import replace

from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.methods.logged import Logged
from oche.schedule import Linear
from oche.search.method import Method
from oche.spaces.edges import AuxiliarySkip

PUBLISHED = {
    "darts": Budget(
        50,
        64,
        {"space.cells": 8, "space.channels": 16},
        "Meituan-AutoML/DARTS- @ adb81a8, scripts/run_darts_minus.sh",
    ),
    "nb201": Budget(50, 64, NB201_SETTINGS, "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e"),
}
BUDGETS = {"paper": PUBLISHED}


def darts_minus(beta: float = 1.0) -> Method:
    """DARTS with an auxiliary skip connection that fades.

    On every edge, its weight from `beta` to 0.
    """
    fading = Linear(beta, 0.0)
    return replace(
        darts(),
        name="darts_minus",
        edge=AuxiliarySkip(beta=fading),
        callbacks=(Logged("beta", fading),),
        unfit=("sase",),
        unfit_why="it adds a skip connection to every edge, and a slot of an attention block has no room for one",
        papers=("chu2021dartsminus",),
    )
