"""DARTS-: Robustly Stepping out of Performance Collapse Without Indicators. X. Chu et al. ICLR 2021, arXiv 2009.01027.

    f_e(x) = beta_t aux(x) + sum_o p_eo op_o(x),      aux = identity, or a factorised reduction at stride 2;   beta from 1 to 0

The help that a skip connection gives to training comes from aux, which alpha has no say in, so the searched skip is judged as an
operation. aux is left out of the genotype.

Published (Meituan-AutoML/DARTS-): beta linear over 50 epochs, all else as DARTS. NAS-Bench-201 test 93.80 +- 0.40 / 71.53 +- 1.51 /
45.12 +- 0.82 (from other papers' tables); DARTS space, CIFAR-10 error 2.59 +- 0.08 %.

Deviations from the paper: none known.
Deviations from the authors' code: beta falls at every step, not every epoch.
Cost against DARTS: the same passes, with one more skip connection an edge.
"""

from __future__ import annotations

from dataclasses import replace

from oche.methods.darts import darts
from oche.schedule import Linear
from oche.search.method import Method
from oche.spaces.edges import AuxiliarySkip


def darts_minus(beta: float = 1.0) -> Method:
    """DARTS with an auxiliary skip connection that fades.

    On every edge, its weight from `beta` to 0.
    """
    edge = AuxiliarySkip(beta=Linear(beta, 0.0))
    return replace(darts(), name="darts_minus", edge=edge, papers=("chu2021dartsminus",))
