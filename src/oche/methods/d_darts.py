"""D-DARTS: Distributed Differentiable Architecture Search. A. Heuillet et al. arXiv 2108.09306.

Every cell c has an alpha of its own (`sharing="cell"`) and a loss of its own, and w = sigmoid(alpha), as in FairDARTS:

    L_c = L_val + zero_one L01_c - ablation I_c                        zero_one 9, ablation 0.7
    L01_c = - mean_eo (sigmoid(alpha_ceo) - 1/2)^2
    M_c = L_val - L_val with random weights from U(0, 1) in c          negative where c is of use
    I_c = (mean M - M_c) / |mean M|                                    how much more c is of use than the mean cell

Each alpha_c steps by Adam along d L_c / d alpha_c. A node keeps the two edges with the largest weights, and their ops if the weight is at
least 0.85 (`parse="sparse"`), or every edge keeps up to two ops of at least that (`parse="edge"`).

In the authors' code M is a number without a gradient (architect.py:77-92), so the ablation term moves nothing: that is the default. With
`learns=True` it has one, of our design: with N cells and |mean M| held, but at least a tenth of L_val, so that it does not blow up while
no cell matters,

    d (- I_c) / d alpha_c = 1 / (N |mean M|) sum_j!=c d L_val(without j) / d alpha_c

so that a cell learns to do without any one of the others; it is the gradient of ablation mean_j L_val(without j) / |mean M|. M_c is in the
log either way (`Contributions`).

Taken from code (aheuillet/D-DARTS @ e3ad5d9): the constants, 50 epochs, 8 cells, batch 96, SGD 0.005 -> 0.001, Adam 3e-3 -> 1e-3 cosine
an epoch, betas (0.9, 0.999), weight decay 1e-3, 7 ops (no `none`).
Published (readme), DARTS space, CIFAR-10 accuracy with AutoAugment: 97.33 % with 1.7M parameters, 97.75 % with the
deeper 6.3M, whose stack of more cells than were searched is not here.

Deviations from the paper: a node without an op above the threshold keeps its strongest one, where theirs vanishes. NAS-Bench-201, whose
tables know one cell, shares alpha between all its cells.
Deviations from the script of the published numbers: their `backward` once a cell adds up gradients between cells, steps, and into the
weights; here each alpha has its own once, and the weights' gradients are those of the training loss alone.
Cost against DARTS: none; with `learns=True` as many more passes of the architecture step as there are cells, twice forward, one at a time
in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from oche.base import Alpha, Batch, Count, Draw, OpWeights, Params, Share
from oche.data import batches, none
from oche.genotype import Choice, Genotype
from oche.methods.budgets import Budget
from oche.methods.fair_darts import Threshold, ZeroOne, fair_darts
from oche.optim import average
from oche.schedule import Cosine, Schedule
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.selection import Selection, argmax
from oche.search.state import Problem, SearchState
from oche.watch.probes import sample

_SOURCE = "aheuillet/D-DARTS @ e3ad5d9"

PUBLISHED = {
    "darts": Budget(50, 96, {"space.cells": 8, "space.channels": 16}, _SOURCE),
    "nb201": Budget(
        50, 96, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}'s settings; none are published for it"
    ),
}
BUDGETS = {"paper": PUBLISHED}

# ------------------------------------------------------------------ the cell losses


def without(weights: OpWeights, cell: str, state: SearchState, draw: Draw) -> OpWeights:
    """The op weights with those of one cell drawn from U(0, 1) wherever there is a candidate."""
    w = weights[cell]
    noise = torch.rand(w.shape, generator=draw.generator(f"ablated {cell}")).to(w)
    return {**weights, cell: noise * state.alive(state.space.cell_groups()[cell]).to(w)}


@dataclass(frozen=True)
class Ablation:
    """weight * mean over cells of L(without the cell) / max(|mean M|, floor * L), or 0 where it does not learn; see the module."""

    weight: float = 0.7
    floor: float = 0.1
    learns: bool = False

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        if not self.learns:
            return torch.zeros((), device=batch.images.device)
        draw = state.draw("alpha")
        weights = state.op_weights(alpha, draw)

        def ablated(cell: str) -> Tensor:
            loss, _ = state.task_loss(without(weights, cell, state, draw), batch, draw, theta)
            return loss

        cells = list(weights)
        losses = torch.stack(
            [checkpoint(ablated, cell, use_reentrant=False, preserve_rng_state=False) for cell in cells]
        )
        with torch.no_grad():
            own = state.task_loss(weights, batch, draw, theta)[0]
            whole, ablation = average(state.problem.fabric, [own, losses.mean()])
            scale = (whole - ablation).abs().clamp_min(self.floor * whole)
        return self.weight * losses.mean() / scale


@dataclass(frozen=True)
class Contributions(Callback):
    """Writes M_c of every cell into the epoch's record, on `images` validation images, always the same ones."""

    images: Count = 64

    @torch.no_grad()
    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        problem, draw = state.problem, state.draw("eval")
        shown = sample(problem.data.val, self.images, problem.seed)
        batch = next(batches(shown, len(shown), none(problem.data), problem.fabric.device))
        weights = state.op_weights(state.alpha, draw)
        whole, _ = state.task_loss(weights, batch, draw)
        record["contributions"] = {
            cell: float(whole - state.task_loss(without(weights, cell, state, draw), batch, draw)[0])
            for cell in weights
        }


@dataclass(frozen=True)
class ArchRate(Callback):
    """The optimiser of alpha begins with its own learning rate, times `share` of the epochs done."""

    share: Schedule

    def on_epoch_start(self, state: SearchState) -> None:
        (group,) = state.arch_optimizer.param_groups
        first = state.memory.setdefault("d_darts/rate", torch.tensor(group["lr"], dtype=torch.float64))
        group["lr"] = float(first) * self.share(state.epoch / state.problem.epochs)


# ------------------------------------------------------------------ from alpha to cells


@dataclass(frozen=True)
class EdgeThreshold:
    """Every edge keeps its `most` strongest ops, if they are at least `least`; a node that is left without input its strongest one."""

    least: Share = 0.85
    most: Count = 2

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        choices = {}
        for group, strength in state.strengths():
            alive, found = state.alive(group), list[Choice]()
            best = argmax(group, strength, alive)
            for _, numbers in sorted(group.into().items()):
                entries = [
                    (float(strength[e, o]), e, o)
                    for e in numbers
                    for o in strength[e].masked_fill(~alive[e], -1).argsort(descending=True, stable=True)[: self.most]
                    if alive[e, o] and group.ops[e][o] != "none" and strength[e, o] >= self.least
                ]
                own = [Choice(*group.edges[e], group.ops[e][int(o)]) for _, e, o in entries]
                strongest = max(numbers, key=lambda e: float(strength[e].masked_fill(~alive[e], -1).max()))
                found += own or [best[strongest]]
            choices[group.name] = tuple(found)
        return Genotype(problem.space.name, choices, problem.space.sharing)


# ------------------------------------------------------------------ the methods


def selection(parse: Literal["sparse", "edge"], least: float) -> Selection:
    """The selection of that name."""
    return Threshold(least) if parse == "sparse" else EdgeThreshold(least)


def d_darts(
    zero_one: float = 9.0,
    ablation: float = 0.7,
    learns: bool = False,
    parse: Literal["sparse", "edge"] = "sparse",
    least: float = 0.85,
) -> Method:
    """FairDARTS with an alpha and a loss of each cell.

    `learns=True` gives the ablation term a gradient, which the code takes for 0.
    """
    base = fair_darts()
    return replace(
        base,
        name="d_darts",
        outer_terms=(ZeroOne(zero_one, by_group=True), *((Ablation(ablation, learns=learns),) if ablation else ())),
        callbacks=(ArchRate(Cosine(1.0, 1 / 3)), Contributions()),
        selection=selection(parse, least),
        space={**base.space, "sharing": "cell", "nb201.sharing": "type", "grid.sharing": "type"},
        unfit=("grid",),
        unfit_why="each of its nodes has an alpha of its own already, so that nothing is left to distribute (fair_darts fits)",
        papers=("heuillet2021ddarts",),
    )
