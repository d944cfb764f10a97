"""Alpha-ADARTS: alpha takes part in the attention that chooses the channels. "Alpha channel attention for ...", 2024, from its code.

    A = softmax(alpha) of the cell type (E, O),   G = A^T A (O, O)
    a = sigmoid( F2 relu( G F1 [mean over pixels of x ; maximum over pixels of x] ) ),   F1: 2C -> O,  F2: O -> C,  no biases

All else is ADARTS: the C/K channels whose a, summed over the batch, is largest go through the candidates and are written back in place, the
rest of a * x passes by; edge normalisation; the product of both softmaxes decides. Since G is a function of alpha, alpha is stepped along
the attention's derivative, too. Near alpha's start all entries of G are nearly the same, so the ReLU passes all of an image's O numbers or
none, and where none, a is 0.5 throughout (seen here, not told by its authors). In the DARTS space the candidates are ten, 5x5 pools beside
the usual ones. Alpha starts at 5e-4 N(0, 1), the column of `sep_conv_5x5` at 1e-3.

Taken from code (Cxllxc/alpha-ADARTS @ 683ae6c, model_search.py, train_search.py): K=4, alpha held for the first 15 of 80 epochs, batch 64,
8 cells of 16 channels, SGD 0.025 -> 0, Adam 6e-4 with weight decay 1e-3; the ten operations from
eval-EXP-20240118-165737/scripts/genotypes.py @ 39e8d03. NAS-Bench-201: nothing is published for it; the settings are ours.
Published (its logs): one cell for CIFAR-10 and CIFAR-100, errors 2.49 and 16.07 %. These are the *best test epochs*, under CutMix without
cutout; the last epochs are 2.65 and 16.31 %. 3.286 M and 3.338 M parameters. The cell is `alpha-adarts` in `oche list genotypes`.

Beside the code, a supernet of 8 cells in float64, its weights copied: logits, the weights' and alpha's gradients agree to rounding.

Deviations from the paper: its text was not at hand.
Deviations from the script of the published numbers: A is read from the op weights, w_eo over their sum on the edge, which is softmax(alpha)
whatever beta is; with candidates removed it is the softmax over those that remain. The code steps the learning rate's schedule before each
epoch (train_search.py:118), so that its last epoch has a rate of 0; here epoch e has the schedule's value at e/80. Halves and batches of
alpha as in `adarts`.
Cost against DARTS: as ADARTS, with a smaller attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from oche.base import Alpha, Count, Draw, Group, NonNegative
from oche.errors import UserError
from oche.methods.adarts import adarts
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS
from oche.search.method import Method
from oche.search.relaxations import EdgeNormalised, Relaxation, masked_softmax
from oche.spaces.attention import Chooser, pooled, share_of, written_back
from oche.spaces.edges import Among, Candidate, Edge, SomeChannels, mix

PUBLISHED = {
    "darts": Budget(80, 64, {"space.cells": 8, "space.channels": 16}, "Cxllxc/alpha-ADARTS @ 683ae6c, train_search.py"),
    "nb201": Budget(50, 64, NB201_SETTINGS, "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e"),
}
BUDGETS = {"paper": PUBLISHED}

TEN_OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "max_pool_5x5",
    "avg_pool_5x5",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class AlphaAttention(nn.Module):
    """a = sigmoid(F2 relu(G F1 [mean ; maximum])), (B, C, 1, 1), with G (O, O) the Gram matrix of the cell's op probabilities (E, O)."""

    def __init__(self, channels: int, ops: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(2 * channels, ops, 1, bias=False)
        self.excite = nn.Conv2d(ops, channels, 1, bias=False)

    def forward(self, x: Tensor, probabilities: Tensor) -> Tensor:
        inside = self.squeeze(torch.cat(pooled(x), dim=1))
        gram = (probabilities.T @ probabilities).to(inside.dtype)
        inside = torch.einsum("op,bphw->bohw", gram, inside)
        out: Tensor = self.excite(inside.relu()).sigmoid()
        return out


class _AlphaAttended(Among):
    def __init__(self, ops: nn.ModuleDict, channels: int, count: int, stride: int) -> None:
        super().__init__()
        self.ops, self.stride = ops, stride
        self.attention, self.choose = AlphaAttention(channels, len(ops)), Chooser(count)

    def among(self, x: Tensor, weights: Tensor, e: int, draw: Draw | None) -> Tensor:
        if weights.shape[-1] != len(self.ops):
            raise UserError(
                f"alpha_adarts compares the edges of a cell by their {weights.shape[-1]} operations, and an edge here has "
                f"{len(self.ops)}: choose a space whose edges have the same candidates."
            )
        probabilities = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        a = self.attention(x, probabilities)
        x = x * a
        channels = self.choose(a, draw)
        mixed = mix(self.ops, x.index_select(1, channels), weights[e], draw)
        return written_back(x, channels, mixed, self.stride, weights[e].sum())


@dataclass(frozen=True)
class AlphaAttendedChannels(SomeChannels):
    """As `AttendedChannels`, with an attention in which the op weights of all the cell's edges take part."""

    K: Count = 4

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        count = share_of(channels, self.K, stride)
        return _AlphaAttended(nn.ModuleDict({op: build(op, count) for op in ops}), channels, count, stride)


@dataclass(frozen=True)
class Favouring(Relaxation):
    """The softmax of alpha, which starts at `scale` N(0, 1), but for the column of `op`, which starts at `value`."""

    op: str = "sep_conv_5x5"
    value: float = 1e-3
    scale: NonNegative = 5e-4

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        drawn = self.scale * torch.randn(len(group.edges), group.width, generator=rng)
        return {f"{group.name}/alpha": drawn.masked_fill(group.named(self.op), self.value)}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return masked_softmax(alpha[f"{group.name}/alpha"], group, draw)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self(alpha, group, draw)


def alpha_adarts(K: int = 4) -> Method:
    """ADARTS with an attention that alpha takes part in.

    1/K of the channels are searched.
    """
    return replace(
        adarts(),
        name="alpha_adarts",
        edge=AlphaAttendedChannels(K),
        relaxation=EdgeNormalised(Favouring()),
        space={"darts.normal": (TEN_OPS,), "darts.reduce": (TEN_OPS,)},
        unfit=("s1", "grid", "chain", "signal", "sase"),
        unfit_why="its attention compares edges by their operations, and the edges of this space have different ones",
        papers=("alpha2024adarts", "xue2022adarts"),
    )
