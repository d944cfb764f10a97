"""Shapley-NAS: Discovering Operation Contribution for Neural Architecture Search. arXiv 2206.09811, CVPR 2022.

Alpha says how large an operation's weight is, not what the operation is worth. So no gradient leads it: before each epoch of the second
half of the search all candidates (kind of cell, edge, op) play a cooperative game whose value is the supernet's accuracy on a batch of
alpha's images. `permutations` random orders; along each, one candidate after another is removed, and the accuracy it takes with it is its
marginal.

    s = mean - std of the marginals over the orders;    z-normalised in each kind of cell (std over n - 1)
    m <- 0.8 m + 0.2 s;     alpha <- alpha + 0.1 m;     m begins as 1e-3 N(0, 1)

Each order has images of its own. It ends when less than half of the accuracy is left; those not reached count nothing. 1/K of the
channels are searched, the rest passes by; there is no edge normalisation.

Taken from code (Euphoria16/Shapley-NAS @ 0649727, train_search.py:22-49, 120, 144-167, 205-276): 25 epochs of weights alone, then 25; 10
orders; 1,024 images; 0.5, 0.8, 0.1; batch 256; SGD 0.1 -> 0; K=4 (model_search.py:104); 7 ops, no `none` (genotypes.py:5).
Recalled, not checked: NAS-Bench-201 test 94.37 / 73.51 / 46.85. The repository has no NAS-Bench-201 code; the settings there are ours.

Deviations from the paper: a removed candidate's weight is 0 without the others being normalised anew, as in the code.
Deviations from the script of the published numbers: plain images, where valid_queue is augmented (line 119); batch norm takes the
statistics of batches of the search's size, where the code takes those of 1,024 images, or running ones after an epoch that was evaluated
(line 175). The log's genotype of an epoch is the one after that epoch's update. The log has the share of candidates that an order reached
(`shapley_reached`) and the supernet's accuracy with all of them (`shapley_accuracy`).
Cost against DARTS: no architecture steps, and from half time on up to permutations x candidates forward passes of `images` per epoch, 300
in NAS-Bench-201.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Count, Fraction, Natural, NonNegative, Share, counted
from oche.data import ImageSet
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import SearchState
from oche.spaces.edges import PartialChannels
from oche.watch.probes import supernet_accuracy

_NB201 = {path: value for path, value in NB201_SETTINGS.items() if path != "arch_first"}
PUBLISHED = {
    "darts": Budget(
        50,
        256,
        {"space.cells": 8, "space.channels": 16, "weight_lr.start": 0.1, "weight_lr.end": 0.0},
        "Euphoria16/Shapley-NAS @ 0649727, run/search_cifar10_shapley.sh",
    ),
    "nb201": Budget(50, 64, _NB201, "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e"),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class Game(Callback):
    """The update of alpha above, in every epoch from the share `start` on.

    It comes before the epoch's training, or after it where `before` is false. Each order is played on images of its own, or all on the
    same (`fresh`). m begins as `initial` N(0, 1), and scores are divided by the deviation over n - `correction`.
    """

    permutations: Count
    images: Count
    start: Share = 0.5
    truncate: NonNegative = 0.5
    momentum: Fraction = 0.8
    step: NonNegative = 0.1
    before: bool = True
    fresh: bool = True
    initial: float = 1e-3
    correction: Natural = 1

    def on_epoch_start(self, state: SearchState) -> None:
        begun = state.step > state.epoch * (
            state.steps // state.problem.epochs
        )  # resumed within the epoch: played already
        if self.before and not begun:
            self.play(state)

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if not self.before:
            self.play(state)
        for key in ("reached", "accuracy"):
            if (told := state.memory.pop(f"shapley told/{key}", None)) is not None:
                record[f"shapley_{key}"] = float(told)

    @torch.no_grad()
    def play(self, state: SearchState) -> None:
        """Lets the candidates play and moves alpha, if the search is far enough."""
        if state.epoch < self.start * state.problem.epochs:
            return
        rng = counted(state.problem.seed, "shapley", state.epochs_before + state.epoch)
        alive = {group.name: state.alive(group) for group in state.space.groups}
        there = torch.cat([mask.flatten() for mask in alive.values()])
        players = there.nonzero().flatten()
        batches = [self._images(state, rng) for _ in range(self.permutations if self.fresh else 1)]
        orders = [torch.randperm(len(players), generator=rng) for _ in range(self.permutations)]
        games = [self._value(state, alive, players, images) for images in batches]
        found, reached, first = marginals(games, orders, self.truncate)
        worth = torch.zeros(len(there), dtype=torch.float64).index_copy_(
            0, players, found.mean(0) - found.std(0, correction=0)
        )
        sizes = [mask.numel() for mask in alive.values()]
        for (name, mask), part in zip(alive.items(), torch.split(worth, sizes), strict=True):
            score, key, alpha = (
                normal(part.view_as(mask), mask, self.correction),
                f"shapley/{name}",
                state.alpha[f"{name}/alpha"],
            )
            state.memory[key] = self.momentum * self._average(state, key, score) + (1 - self.momentum) * score
            alpha += (self.step * state.memory[key]).to(alpha)
        state.memory["shapley told/reached"] = torch.tensor(reached)
        state.memory["shapley told/accuracy"] = torch.tensor(first)

    def _images(self, state: SearchState, rng: torch.Generator) -> ImageSet:
        chosen = torch.randperm(len(state.arch_images), generator=rng)[: self.images]
        return state.arch_images.subset(chosen.to(state.arch_images.targets.device))

    def _average(self, state: SearchState, key: str, score: Tensor) -> Tensor:
        """m so far."""
        if key in state.memory:
            return state.memory[key].cpu()
        first = torch.randn(score.shape, generator=counted(state.problem.seed, key), dtype=score.dtype)
        return self.initial * first

    def _value(
        self, state: SearchState, alive: Mapping[str, Tensor], players: Tensor, images: ImageSet
    ) -> Callable[[Tensor], float]:
        """The game: which players are present, bool (n,) -> the supernet's accuracy on the images."""
        full = state.op_weights(state.alpha, state.draw("eval"))
        sizes = [mask.numel() for mask in alive.values()]

        def value(present: Tensor) -> float:
            on = torch.zeros(sum(sizes), dtype=torch.bool).index_fill_(0, players[present], True)
            masks = {
                name: part.view_as(mask)
                for (name, mask), part in zip(alive.items(), torch.split(on, sizes), strict=True)
            }
            kept = state.space.spread(masks)
            weights = {cell: w * kept[cell].to(w) for cell, w in full.items()}
            return supernet_accuracy(state, state.problem, weights, images)

        return value


def marginals(
    games: Sequence[Callable[[Tensor], float]], orders: Sequence[Tensor], truncate: float
) -> tuple[Tensor, float, float]:
    """(orders, n) in fp64: what a game's value (of a bool (n,): who is present) loses with each player, all present at first.

    An order is played in the game of its number, or all in one. It ends where less than `truncate` of the first value is left; players
    after that lose nothing. Also the share of players that an order reached, and the first value, both in the mean over the orders.
    """
    n, reached, first = len(orders[0]), 0, 0.0
    found = torch.zeros(len(orders), n, dtype=torch.float64)
    fulls = [game(torch.ones(n, dtype=torch.bool)) for game in games]
    for number, (row, order) in enumerate(zip(found, orders, strict=True)):
        value, full = games[number % len(games)], fulls[number % len(games)]
        present, last = torch.ones(n, dtype=torch.bool), full
        first += full / len(orders)
        for player in order.tolist():
            if last < truncate * full:
                break
            present[player] = False
            left = value(present)
            row[player], last = last - left, left
            reached += 1
    return found, reached / (n * len(orders)), first


def normal(score: Tensor, there: Tensor, correction: int) -> Tensor:
    """Zero mean and unit deviation over the entries that are there; zero elsewhere, and everywhere if all are equal."""
    known = score[there]
    scale = known.std(correction=correction if len(known) > correction else 0)
    return torch.where(there, (score - known.mean()) / torch.where(scale > 0, scale, torch.ones_like(scale)), 0.0)


def shapley_nas(permutations: int = 10, images: int = 1024, K: int = 4) -> Method:
    """Alpha led by Shapley values instead of a gradient.

    After weights alone for half of the epochs. 1/K of the channels are searched.
    """
    return replace(
        darts(),
        name="shapley_nas",
        edge=PartialChannels(K),
        arch_start=1.0,
        callbacks=(Game(permutations, images),),
        space={"darts.without": ("none",)},
        papers=("xiao2022shapley",),
    )
