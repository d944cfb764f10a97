"""SWD-NAS: operations are weighed by attention, not by alpha. Y. Xue, X. Han, Z. Wang. IEEE Transactions on Industrial Informatics, 2024.

On every edge, with ADARTS's attention a and its C/16 channels I:

    Y = [ op_1(x'_I) ; ... ; op_O(x'_I) ]   x' = a * x                        concatenated
    s = sigmoid( W2 relu( W1 mean over pixels of Y ) )                        squeeze and excitation, hidden 1/8, no biases
    y = x' (2x2 max pool at stride 2),   y_I = sum_o s_o * op_o(x'_I)         in place
    out = y + skip(x)                                                         an identity, or a factorised reduction at stride 2

One level: the weights learn by SGD, attentions among them, and there is no alpha. An operation's score is the sum of its s over its
channels and over the images of a pass over the other half. A node keeps its two edges with the largest normalised score, `none` left out.
The five cells of the network, N R N R N, are five architectures: `--space stages`.

`normalise="share"` (ours) divides an edge's scores by their sum. The code takes their softmax (`"softmax"`): the scores are in the
hundreds, so that it is 1 for the best operation of nearly every edge, and ties are decided by the edges' order: 38 of the 40 inputs of the
published cells are nodes 0 and 1. The code has the division by the sum, too, in a function that is not called (train_search.py:226).

Taken from code (XiaolongHan2000/SWD-NAS @ c1c46f8, model_search.py, train_search.py): K=16, 30 epochs, batch 64, SGD 0.025 -> 0.001, weight
decay 3e-4, five cells of 16 channels, half of the train images. Retraining: 20 cells of 36 channels, the five cells over five ranges of
depth, 600 epochs, batch 96, cutout, drop path 0.2; the published five make a network of 3.17 M parameters. ImageNet: 20 cells of 48
channels, 250 epochs, batch 256, rate 0.1 (not here). NAS-Bench-201: nothing is published for it; the settings are ours.
Published: no figures are in the code, and the paper's were not at hand.

Beside the code, a supernet of five cells in float64, its weights copied: logits and scores are the same, gradients to rounding; with one
channel on an edge, as in its first cell, the code's write-back has to be mended first (model_search.py:109 fails on a current torch), and
its first cell's output is that of the others (below).

Deviations from the paper: its text was not at hand beyond the abstract, which asks for a normalisation over the connecting edges.
Deviations from the script of the published numbers: the pass that measures has no augmentation and batch statistics, where the code has
augmented images and running statistics (train_search.py:165); the first cell's output is all of its nodes, where the code's has its second
input in the place of the first node (model_search.py:160); at least one channel is searched, two where an edge halves the resolution;
halves are stratified by class; the learning rate of epoch e is the schedule's value at e/30, where the code steps it first (:110).
Cost against DARTS: no architecture steps, 1/16 of the channels in every operation, and after every epoch a pass over alpha's half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oche.base import Count, Draw
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS
from oche.methods.weighing import Measured, Normalise, OwnWeights, Weigher
from oche.search.method import Method
from oche.spaces.attention import ChannelAttention, Chooser, share_of, written_back
from oche.spaces.edges import Candidate, Edge, SomeChannels
from oche.spaces.ops import run

_SOURCE = "XiaolongHan2000/SWD-NAS @ c1c46f8, train_search.py"
PUBLISHED = {
    "stages": Budget(30, 64, {"space.cells": 5, "space.channels": 16}, _SOURCE),
    "darts": Budget(
        30, 64, {"space.cells": 5, "space.channels": 16}, f"ours: {_SOURCE}, one cell for each kind of cell"
    ),
    "nb201": Budget(
        50,
        64,
        {path: value for path, value in NB201_SETTINGS.items() if path != "arch_first"},
        "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e",
    ),
}
BUDGETS = {"paper": PUBLISHED}


class SqueezeExcite(Weigher):
    """s = sigmoid(W2 relu(W1 mean over pixels)) of the operations' outputs (B, O * c, H, W) side by side, as (B, O, c)."""

    def __init__(self, ops: int, channels: int) -> None:
        super().__init__()
        self.shape = (ops, channels)
        inside = max(1, ops * channels // 8)
        self.squeeze = nn.Linear(ops * channels, inside, bias=False)
        self.excite = nn.Linear(inside, ops * channels, bias=False)

    def forward(self, outputs: Tensor) -> Tensor:
        gates: Tensor = self.excite(self.squeeze(outputs.mean((2, 3))).relu()).sigmoid()
        return gates.view(-1, *self.shape)


class _Excited(Edge):
    def __init__(self, ops: nn.ModuleDict, skip: nn.Module, channels: int, count: int, stride: int) -> None:
        super().__init__()
        self.ops, self.skip, self.stride = ops, skip, stride
        self.attention, self.choose = ChannelAttention(channels), Chooser(count)
        self.weigher = SqueezeExcite(len(ops), count)

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        a = self.attention(x)
        channels = self.choose(a, draw)
        attended = x * a
        outputs = [run(op, attended.index_select(1, channels), draw) for op in self.ops.values()]
        s = self.weigher(torch.cat(outputs, dim=1)) * w[:, None]
        terms = [s[:, o, :, None, None] * y for o, y in enumerate(outputs)]
        return written_back(attended, channels, sum(terms[1:], terms[0]), self.stride) + run(self.skip, x, draw)


@dataclass(frozen=True)
class ExcitedChannels(SomeChannels):
    """The edge above: the 1/K most attended channels, operations weighed by squeeze and excitation, beside an auxiliary skip."""

    K: Count = 16

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        count = share_of(channels, self.K, stride)
        candidates = nn.ModuleDict({op: build(op, count) for op in ops})
        return _Excited(candidates, build("skip_connect", channels), channels, count, stride)


def swd_nas(K: int = 16, normalise: Normalise = "share") -> Method:
    """SWD-NAS: no alpha, operations weighed by attention.

    1/K of the channels are searched. `normalise="softmax"` is the code's rule.
    """
    return Method(
        name="swd_nas",
        edge=ExcitedChannels(K),
        relaxation=OwnWeights(),
        arch_start=1.0,
        selection=Measured(normalise=normalise),
        unfit=("grid", "chain", "signal", "sase"),
        unfit_why="its edges add an identity and weigh all their candidates, which edges that change width or are gates cannot",
        papers=("xue2024swdnas",),
    )
