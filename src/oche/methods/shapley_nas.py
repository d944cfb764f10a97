"""Shapley-NAS: Discovering Operation Contribution for Neural Architecture Search. arXiv 2206.09811, CVPR 2022.

Alpha says how large an operation's weight is, not what the operation is worth. So no gradient leads it: after each epoch of the second half
of the search all candidates (kind of cell, edge, op) play a cooperative game whose value is the supernet's accuracy on a batch of alpha's
images. `permutations` random orders; along each, one candidate after another is removed, and the accuracy it takes with it is its marginal.

    s = mean - std of the marginals over the orders;    z-normalised in each kind of cell
    m <- 0.8 m + 0.2 s;     alpha <- alpha + 0.1 m

An order ends when less than half of the accuracy is left; those not reached count nothing.

From code (Euphoria16/Shapley-NAS): 25 epochs of weights alone, then 25; 10 orders; 1,024 images; 0.5, 0.8, 0.1; batch 256; SGD 0.1 -> 0.
Recalled, not checked: NAS-Bench-201 test 94.37 / 73.51 / 46.85.

Deviations from the paper: m starts at 0, and a removed candidate's weight is 0 without the others being normalised anew (our reading).
Deviations from the authors' code: batch norm takes the statistics of batches of the search's size.
The log's genotype of an epoch is the one before that epoch's update.
Cost against DARTS: no architecture steps, and from half time on up to permutations x candidates forward passes of `images` an epoch, 300 in
NAS-Bench-201.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import counted
from oche.methods.budgets import Budget
from oche.methods.darts import PUBLISHED as DARTS_PUBLISHED
from oche.methods.darts import darts
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import SearchState
from oche.watch.probes import supernet_accuracy

PUBLISHED = {
    **DARTS_PUBLISHED,
    "darts": Budget(
        50,
        256,
        {"space.cells": 8, "space.channels": 16, "weight_lr.start": 0.1, "weight_lr.end": 0.0},
        "Euphoria16/Shapley-NAS",
    ),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class Game(Callback):
    """The update of alpha above, after every epoch from the share `start` on."""

    permutations: int = 10
    images: int = 1024
    start: float = 0.5
    truncate: float = 0.5
    momentum: float = 0.8
    step: float = 0.1

    @torch.no_grad()
    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if state.epoch < self.start * state.problem.epochs:
            return
        rng = counted(state.problem.seed, "shapley", state.epochs_before + state.epoch)
        images = state.arch_images.subset(
            torch.randperm(len(state.arch_images), generator=rng)[: self.images].to(state.arch_images.targets.device)
        )
        alive = {group.name: state.alive(group) for group in state.space.groups}
        there = torch.cat([mask.flatten() for mask in alive.values()])
        sizes = [mask.numel() for mask in alive.values()]
        players = there.nonzero().flatten()
        full = state.op_weights(state.alpha, state.draw("eval"))

        def value(present: Tensor) -> float:
            on = torch.zeros_like(there).index_fill_(0, players[present], True)
            parts = torch.split(on, sizes)
            masks = {name: part.view_as(alive[name]) for name, part in zip(alive, parts, strict=True)}
            kept = state.space.spread(masks)
            weights = {cell: w * kept[cell].to(w) for cell, w in full.items()}
            return supernet_accuracy(state, state.problem, weights, images)

        orders = [torch.randperm(len(players), generator=rng) for _ in range(self.permutations)]
        found = marginals(value, orders, self.truncate)
        worth = torch.zeros(len(there), dtype=torch.float64).index_copy_(
            0, players, found.mean(0) - found.std(0, correction=0)
        )
        for (name, mask), part in zip(alive.items(), torch.split(worth, sizes), strict=True):
            score, key, alpha = normal(part.view_as(mask), mask), f"shapley/{name}", state.alpha[f"{name}/alpha"]
            before = state.memory.get(key, torch.zeros_like(score)).cpu()
            state.memory[key] = self.momentum * before + (1 - self.momentum) * score
            alpha += (self.step * state.memory[key]).to(alpha)


def marginals(value: Callable[[Tensor], float], orders: Sequence[Tensor], truncate: float) -> Tensor:
    """(orders, n) in fp64: what `value` (of a bool (n,): who is present) loses with each player, all present at first.

    An order ends where less than `truncate` of the first value is left; players after that lose nothing.
    """
    n = len(orders[0])
    found, full = torch.zeros(len(orders), n, dtype=torch.float64), value(torch.ones(n, dtype=torch.bool))
    for row, order in zip(found, orders, strict=True):
        present, last = torch.ones(n, dtype=torch.bool), full
        for player in order.tolist():
            if last < truncate * full:
                break
            present[player] = False
            left = value(present)
            row[player], last = last - left, left
    return found


def normal(score: Tensor, there: Tensor) -> Tensor:
    """Zero mean and unit deviation over the entries that are there; zero elsewhere, and everywhere if all are equal."""
    known = score[there]
    scale = known.std(correction=0)
    return torch.where(there, (score - known.mean()) / torch.where(scale > 0, scale, torch.ones_like(scale)), 0.0)


def shapley_nas(permutations: int = 10, images: int = 1024) -> Method:
    """Alpha led by Shapley values instead of a gradient.

    After weights alone for half of the epochs.
    """
    return replace(
        darts(),
        name="shapley_nas",
        arch_start=1.0,
        callbacks=(Game(permutations, images),),
        papers=("xiao2022shapley",),
    )
