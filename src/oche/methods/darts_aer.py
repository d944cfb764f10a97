"""DARTS-AER: An Architecture Entropy Regularizer for Differentiable NAS. K. Jing, L. Chen, J. Xu. Neural Networks 158, 2023.

    L_alpha = L_val + c(t) mean_e H(softmax alpha_e),     H in bits,     c(t) = 0.2 - 0.4 (1 + cos(pi t / T)) / 2

A negative coefficient spreads alpha early in the search, a positive one sharpens it late, so that little is lost when the network is
discretised. t is the epoch, T their number: c goes from -0.2 through 0 at half time to +0.2. H is that of the operations that can be
derived: without `none` in cells whose nodes choose among edges, with it in NAS-Bench-201. Second-order DARTS otherwise, and the genotype
is that of the epoch with the best accuracy of the supernet on alpha's half.

Taken from code (kunjing96/DARTS-AER @ b981212). DARTS space (DARTS-AER/search_aer.py:83, 107, 139 and models/search_cnn.py:164): 0.2, the
cosine, second order, entropy without `none`, genotype of the best epoch, all else as DARTS. NAS-Bench-201
(AutoDL-Projects/exps/algos/DARTS-V1-AER.py:86, 276): first order (`second_order=False`), weights first, entropy with `none`, genotype of
the last epoch (`best_epoch=False`).
Published: DARTS space, CIFAR-10 error 2.53 +- 0.02 %.

Deviations from the paper: its body was not at hand; the rule is the code's.
Deviations from the script of the published numbers: alpha's half is scored on plain images and with batch statistics (search_aer.py:176
has augmented images and running statistics); the product of second order is exact, where theirs is a finite difference (architect.py);
their entropy adds 1e-9 in the logarithm.
Cost against DARTS: that of second order, and a pass over alpha's images per epoch; with `second_order=False` and `best_epoch=False` the
same passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Group, Params
from oche.methods.budgets import QUICK as OURS
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.methods.logged import Logged
from oche.methods.oles import BestEpoch, RememberAccuracy
from oche.schedule import Cosine, Schedule
from oche.search.bilevel import FirstOrder, Unrolled
from oche.search.method import Method
from oche.search.relaxations import masked_softmax
from oche.search.selection import TopK
from oche.search.state import SearchState

_SOURCE = "kunjing96/DARTS-AER @ b981212"
_FIRST = {"method.second_order": False, "method.best_epoch": False}

PUBLISHED = {
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, f"{_SOURCE}, DARTS-AER/search_aer.py"),
    "nb201": Budget(50, 64, {**NB201_SETTINGS, **_FIRST}, f"{_SOURCE}, AutoDL-Projects/exps/algos/DARTS-V1-AER.py"),
}
QUICK = {"nb201": replace(OURS["nb201"], settings={**OURS["nb201"].settings, **_FIRST})}
"""Our choice: the order of the NAS-Bench-201 script there too."""
BUDGETS = {"paper": PUBLISHED, "quick": {**OURS, **QUICK}}


@dataclass(frozen=True)
class Entropy:
    """coefficient(t / T) times the mean over all edges of -sum_o p log2 p, p = softmax(alpha) over the candidates that remain.

    `none` is left out where it cannot be derived, in groups whose nodes choose among edges; `derivable=False` counts it everywhere.
    """

    coefficient: Schedule
    derivable: bool = True

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw, rows = state.draw("alpha"), []
        for group in state.space.groups:
            p = masked_softmax(alpha[f"{group.name}/alpha"], group, draw)
            if self.derivable and group.keep is not None:
                p = without_none(p, group)
            rows.append(-(p * p.clamp_min(torch.finfo(p.dtype).tiny).log2()).sum(-1))  # finite derivative at p = 0
        return self.coefficient(state.epoch / state.problem.epochs) * torch.cat(rows).mean()


def without_none(p: Tensor, group: Group) -> Tensor:
    """(E, O): each row without `none`, over its sum; an edge that has nothing else keeps it."""
    none = group.named("none").to(p.device)
    rest = p.masked_fill(none, 0.0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total.clamp_min(torch.finfo(p.dtype).tiny), p)


def darts_aer(most: float = 0.2, second_order: bool = True, best_epoch: bool = True) -> Method:
    """DARTS whose entropy is raised at first and lowered at last.

    By at most `most` per bit. `best_epoch` takes the genotype of the epoch with the best supernet, else that of the last.
    """
    coefficient = Cosine(-most, most)
    logged = Logged("entropy_coefficient", coefficient)
    return replace(
        darts(),
        name="darts_aer",
        arch_gradient=Unrolled() if second_order else FirstOrder(),
        outer_terms=(Entropy(coefficient),),
        callbacks=(logged, RememberAccuracy()) if best_epoch else (logged,),
        selection=BestEpoch(at_end=True) if best_epoch else TopK(),
        papers=("liu2019darts", "jing2023aer"),
    )
