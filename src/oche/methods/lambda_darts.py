"""Lambda-DARTS: Mitigating Performance Collapse by Harmonising Operation Selection among Cells. arXiv 2210.07998, ICLR 2023.

Alpha is shared by all cells of a kind, yet in a deep supernet its gradient is that of the last cells: skip connections feed those
well. A weight step therefore also makes the cells agree. With g_l = d L_train / d p_l of cell l = 1..L, u_l = g_l / |g_l| and
c = 2 / (L (L - 1)), what rises is the mean over pairs of cells of

    corr:  <g_l, g_j> / (|g_l| |g_j|)               d_l = c (I - u_l u_l^T) sum_j u_j / |g_l|
    sign:  <g_l, g_j> / <abs g_l, abs g_j> = r_lj   d_l = c sum_j!=l (1 - r_lj sgn g_l sgn g_j) g_j / <abs g_l, abs g_j>

whose gradient in the weights is a central difference along d, at e = 1e-4 / |d|:

    grad <- grad L_train + lambda(t) (grad L_train(p - e d) - grad L_train(p + e d)) / 2 e,      lambda(t) from 0 to lambda, linearly

The architecture step is DARTS's, first order. Between the two passes of the central difference many ReLUs change their side, so that it is
2 to 60 times as long as the derivative by double backward and stands across it (cosine 0.0 to 0.7), in double precision too; the code
does the same with the same e. Measured on NAS-Bench-201 at 8 channels and 16x16 pixels: lambda times it is 4 to 9 times as long as the
loss's gradient with 3 cells, 2 to 18 times with 15, and the clip of the sum leaves the loss little.

Taken from code (dr-faustus/Lambda-DARTS @ c7ac3ba): lambda 0.125 and e (sota/cnn/train_search.py:59-61), for `sign`, our default, since
the script tells no kind; only normal cells take part; 7 ops, no `none` (spaces.py). NAS-Bench-201 (scripts-search/algos/DARTS-V1.sh and
configs/nas-benchmark/algos/DARTS.config), where there is no `sign`: `corr`, lambda 0.25, 100 epochs, alpha lr 1e-4, weight decay 3e-4, no
Nesterov, weights first. S1 to S4 (run_search.sh, SVHN): `corr`, lambda 0.25, e of 1e-3, batch 96.
Published: NAS-Bench-201 test 94.36 / 73.51 / 46.34, without variance; DARTS space, CIFAR-10 error 2.52 +- 0.11 %.

Deviations from the paper: none known.
Deviations from the script of the published numbers: lambda rises with every step, where DARTS-V1.py:197 sets lambda epoch / (epochs - 1);
where the cells agree already (|d| below 1e-12) the two passes are left out; the weights' clip leaves alpha's gradient out, which
DARTS-V1.py:51 counts in.
Cost against DARTS: two more passes per weight step, about twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from oche.base import Alpha, Batch, OpWeights, Params, Positive
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.optim import average
from oche.schedule import Linear, Schedule
from oche.search.callbacks import Callback, InnerStep
from oche.search.method import Method
from oche.search.state import SearchState

_SOURCE = "dr-faustus/Lambda-DARTS @ c7ac3ba"
_S = Budget(
    50,
    96,
    {"method.align": "corr", "method.radius": 1e-3, "space.cells": 8, "space.channels": 16},
    f"{_SOURCE}, run_search.sh (SVHN, S4)",
)

PUBLISHED = {
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, f"{_SOURCE}, sota/cnn/train_search.py"),
    **dict.fromkeys(("s1", "s2", "s3", "s4"), _S),
    "nb201": Budget(
        100,
        64,
        {
            **NB201_SETTINGS,
            "method.align": "corr",
            "weight_optimizer.nesterov": False,
            "weight_optimizer.weight_decay": 3e-4,
            "arch_optimizer.lr": 1e-4,
        },
        f"{_SOURCE}, NAS-Bench201/scripts-search/algos/DARTS-V1.sh",
    ),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class Corr:
    """d (L, n) of the mean cosine of all pairs of rows of g (L, n)."""

    def __call__(self, g: Tensor) -> Tensor:
        norm = g.norm(dim=1, keepdim=True)
        u = g / norm
        total = u.sum(0, keepdim=True)
        d: Tensor = 2 / (len(g) * (len(g) - 1)) * (total - (u @ total.T) * u) / norm
        return d


@dataclass(frozen=True)
class Sign:
    """d (L, n) of the mean over pairs of rows of <g_l, g_j> / <abs g_l, abs g_j>, g (L, n)."""

    def __call__(self, g: Tensor) -> Tensor:
        size = (g.abs() @ g.abs().T).fill_diagonal_(torch.inf)
        r = (g @ g.T) / size
        return 2 / (len(g) * (len(g) - 1)) * ((1 / size) @ g - g.sign() * ((r / size) @ g.abs()))


@dataclass(frozen=True)
class Harmony(Callback):
    """The cells of the space's first kind are made to agree on alpha, by `direction` and with a weight of `coefficient`(progress)."""

    coefficient: Schedule
    direction: Corr | Sign
    radius: Positive

    def cells(self, state: SearchState) -> tuple[str, ...]:
        """Those that share the first group's alpha: the normal cells; none where a cell is alone."""
        cells = state.space.groups[0].cells
        return cells if len(cells) > 1 and self.coefficient(state.progress) else ()

    def before_inner_step(self, state: SearchState, weights: OpWeights, alpha: Alpha, batch: Batch) -> OpWeights:
        return {**weights, **{cell: weights[cell].detach().requires_grad_() for cell in self.cells(state)}}

    def after_inner_backward(self, state: SearchState, grads: Params, inner: InnerStep) -> Params:
        cells = self.cells(state)
        if not cells:
            return grads
        g = torch.stack([inner.weight_grads[cell].flatten() for cell in cells])
        d = self.direction(g)
        norm = d.norm()
        if not norm > 1e-12:
            return grads
        epsilon = self.radius / norm
        sides = []
        for side in (-epsilon, epsilon):
            moved = {
                cell: inner.weights[cell].detach() + side * row.view_as(inner.weights[cell])
                for cell, row in zip(cells, d, strict=True)
            }
            loss, _ = state.task_loss({**inner.weights, **moved}, inner.batch, inner.draw)
            found = torch.autograd.grad(loss, list(state.theta.values()), materialize_grads=True)
            sides.append(dict(zip(state.theta, average(state.problem.fabric, found), strict=True)))
        share = self.coefficient(state.progress) / (2 * epsilon)
        return {name: grad + share * (sides[0][name] - sides[1][name]) for name, grad in grads.items()}

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record["lambda"] = self.coefficient(state.progress)


DIRECTIONS: dict[str, tuple[Corr | Sign, float]] = {"sign": (Sign(), 0.125), "corr": (Corr(), 0.25)}


def lambda_darts(align: Literal["sign", "corr"] = "sign", weight: float | None = None, radius: float = 1e-4) -> Method:
    """DARTS whose cells are made to agree on alpha.

    `weight` is lambda, by default the published one of `align`; `radius` is that of the central difference.
    """
    direction, published = DIRECTIONS[align]
    harmony = Harmony(Linear(0.0, published if weight is None else weight), direction, radius)
    return replace(
        darts(),
        name="lambda_darts",
        callbacks=(harmony,),
        space={"darts.without": ("none",)},
        papers=("liu2019darts", "movahedi2023lambda"),
    )
