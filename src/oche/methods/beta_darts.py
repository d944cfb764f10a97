"""Beta-DARTS: Beta-Decay Regularization. P. Ye, B. Li, Y. Li, T. Chen, J. Fan, W. Ouyang. CVPR 2022, arXiv 2203.01665.

    L_alpha = L_val + lambda_t sum over cell types of mean_e log sum_o exp(alpha_eo),     lambda_t = rate t in epoch t = 0, 1, ...

Its derivative is softmax(alpha_e)_o / E: a decay in proportion to the op's weight, which keeps the weights of an edge together.

Taken from code (Sunshine-Ye/Beta-DARTS @ f307704): rate 0.5 (optimizers/darts/architect.py, `mlc_loss` and `_backward_step`), so 0 -> 50
in 100 epochs on NAS-Bench-201 and 0 -> 25 in 50 on the DARTS space (7 ops, no `none`, sota/cnn/spaces.py:80); alpha keeps Adam 3e-4 and
weight decay 1e-3; alpha first, learning rate by epoch, no Nesterov (nasbench201/train_search.py:36-53, 160).
Published: NAS-Bench-201 test 94.36 / 73.51 / 46.34, no spread (readme); DARTS space, CIFAR-10 error 2.53 +- 0.08 %.

Deviations from the paper: none known.
Deviations from the script of the published numbers: the penalty reaches second-order gradients too, which there drop it
(architect.py:43); the shipped script for the DARTS space fails on two cell types (issue 1) and perturbs alpha unless told not to
(sota/cnn/train_search.py:56): here the means of both are added, and nothing is perturbed.
Cost against DARTS: the same passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import SearchState

_SOURCE = "Sunshine-Ye/Beta-DARTS @ f307704"

PUBLISHED = {
    "nb201": Budget(100, 64, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}, nasbench201/train_search.py"),
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, f"{_SOURCE}, sota/cnn/train_search.py"),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class BetaDecay:
    """rate * epoch * sum over groups of the mean over edges of logsumexp(alpha_e), over the candidates that remain."""

    rate: float

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        means = []
        for group in state.space.groups:
            logits, alive = alpha[f"{group.name}/alpha"], state.alive(group)
            kept = logits.masked_fill(~alive.to(logits.device), float("-inf"))[alive.any(-1)]
            means.append(kept.logsumexp(-1).mean())
        return self.rate * (state.epochs_before + state.epoch) * torch.stack(means).sum()


@dataclass(frozen=True)
class LoggedDecay(Callback):
    """Writes the penalty's weight into the epoch's record."""

    rate: float

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record["beta_decay"] = self.rate * (state.epochs_before + state.epoch)


def beta_darts(rate: float = 0.5) -> Method:
    """DARTS with beta decay on alpha, growing by the epoch.

    Its weight grows by `rate` per epoch.
    """
    return replace(
        darts(),
        name="beta_darts",
        outer_terms=(BetaDecay(rate),),
        callbacks=(LoggedDecay(rate),),
        space={"darts.without": ("none",)},
        papers=("ye2022betadarts",),
    )
