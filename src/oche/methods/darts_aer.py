"""DARTS-AER: An Architecture Entropy Regularizer for Differentiable NAS. K. Jing, L. Chen, J. Xu. Neural Networks 158, 2023.

    L_alpha = L_val + c(t) mean_e H(softmax alpha_e),     H in bits,     c(t) = 0.2 - 0.4 (1 + cos(pi t / T)) / 2

A negative coefficient spreads alpha early in the search, a positive one sharpens it late, so that little is lost when the network is
discretised. t is the epoch, T their number: c goes from -0.2 through 0 at half time to +0.2. First-order DARTS otherwise.

Taken from code (kunjing96/DARTS-AER): 0.2 and the cosine. Published: DARTS space, CIFAR-10 error 2.53 +- 0.02 %.

Deviations from the paper: its body was not at hand; the rule is the code's.
Deviations from the authors' code: none known.
Cost against DARTS: the same passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.methods.darts import darts
from oche.schedule import Cosine, Schedule
from oche.search.method import Method
from oche.search.relaxations import masked_softmax
from oche.search.state import SearchState


@dataclass(frozen=True)
class Entropy:
    """coefficient(t / T) times the mean over all edges of -sum_o p log2 p, p = softmax(alpha) over the candidates that remain."""

    coefficient: Schedule

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw, rows = state.draw("alpha"), []
        for group in state.space.groups:
            p = masked_softmax(alpha[f"{group.name}/alpha"], group, draw)
            rows.append(-(p * p.clamp_min(torch.finfo(p.dtype).tiny).log2()).sum(-1))  # finite derivative at p = 0
        return self.coefficient(state.epoch / state.problem.epochs) * torch.cat(rows).mean()


def darts_aer(most: float = 0.2) -> Method:
    """DARTS whose entropy is raised at first and lowered at last.

    By at most `most` a bit.
    """
    return replace(
        darts(),
        name="darts_aer",
        outer_terms=(Entropy(Cosine(-most, most)),),
        papers=("liu2019darts", "jing2023aer"),
    )
