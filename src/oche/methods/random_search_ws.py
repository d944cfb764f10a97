"""Random search with weight sharing. L. Li, A. Talwalkar. UAI 2019, arXiv 1902.07638.

    every step: one cell of each group, drawn uniformly; its operations alone run, and their weights step
    at the end: `samples` cells drawn again and scored by the supernet on `batches` batches; the `finalists` best of them on all
    validation images; the best of these is the result

The baseline that a search with a supernet has to beat: what it finds is owed to shared weights alone, there is no alpha to learn.

Taken from code (liamcli/randomNAS_release @ 6513a0a, searchers/random_weight_share.py and
benchmarks/cnn/darts/darts_wrapper_discrete.py): a cell per batch, SGD 0.025 -> 0.001 per epoch, weight decay 3e-4, 1,000 samples on 10
batches, 10 finalists on all validation images (`published=True`); its runs' epochs, channels and clip stand in a table that is not at
hand: 100 epochs, 16 channels are the script's defaults, the clip of 5 is DARTS's. NAS-Bench-201 (D-X-Y/AutoDL-Projects @ f46486e,
exps/NAS-Bench-201-algos/RANDOM-NAS.py with configs/nas-benchmark/algos/RANDOM.config): 250 epochs, Nesterov, weight decay 5e-4, rate by
step, 100 samples on 512 images each, no finalists. Recalled, not checked: NAS-Bench-201 test 87.66 +- 1.69 / 58.33 +- 4.34 / 31.14 +-
3.88; DARTS space, CIFAR-10 error 2.85 +- 0.08 %.
Ours: fewer samples by default (100 on 4 batches, for a laptop), and after every epoch the best of `glances`, so that the search can be
watched.

Deviations from the paper: none known.
Deviations from the script of the published numbers: a cell is scored with each batch's own statistics, where the code takes running ones
gathered over all cells (darts_wrapper_discrete.py:190); on the validation part, where the code takes the other half of the train images
(unused here); all cells on the same images, where the code goes on through them; no `none` in cells that keep two edges per node; one
round of samples, where random_weight_share.py:84 makes one for every 10,000 steps; cells that no signal can pass are drawn again.
Cost against DARTS: one operation per edge in each pass and no architecture steps; in the end a pass for each sampled cell and batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Count, Draw, Group, counted
from oche.data import ImageSet
from oche.genotype import Choice, Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS
from oche.search.method import Method
from oche.search.record import score
from oche.search.relaxations import Relaxation
from oche.search.selection import derived
from oche.search.state import Problem, SearchState
from oche.spaces.edges import SampledOps
from oche.spaces.sampling import sample

_NB201 = {path: value for path, value in NB201_SETTINGS.items() if path != "arch_first"}
PUBLISHED = {
    "darts": Budget(
        100,
        64,
        {"space.cells": 8, "space.channels": 16, "method.published": True},
        "liamcli/randomNAS_release @ 6513a0a, searchers/random_weight_share.py",
    ),
    "nb201": Budget(
        250,
        64,
        {**_NB201, "selection.samples": 100, "selection.batches": 8, "selection.finalists": 1},
        "D-X-Y/AutoDL-Projects @ f46486e, scripts-search/NAS-Bench-201-algos/RANDOM-NAS.sh",
    ),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class OneCell(Relaxation):
    """w_eo = 1 where the drawn cell has op o on edge e, else 0; drawn anew at every step. Selection and probes see w_eo = 1/O."""

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {f"{group.name}/alpha": torch.zeros(len(group.edges), group.width)}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        still = 0 * alpha[f"{group.name}/alpha"]  # the weights depend on alpha, by a gradient of zero
        if draw.phase == "eval":
            return self.strength(alpha, group, draw)
        random = torch.rand(len(group.edges), group.width, generator=draw.generator(f"one cell/{group.name}"))
        return still + one_hot(group, derived(group, random)).to(still)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        alive = draw.alive(group).to(alpha[f"{group.name}/alpha"])
        return alive / alive.sum(-1, keepdim=True).clamp_min(1)


@dataclass(frozen=True)
class GivenCell(Relaxation):
    """The op weights of one cell, whatever alpha is."""

    cell: Mapping[str, Tensor]

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self.cell[group.name]

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self.cell[group.name]


@dataclass(frozen=True)
class BestOfSampled:
    """The best of `samples` random cells by the supernet's validation accuracy: first on `batches` batches, the `finalists` on all."""

    samples: Count = 100
    batches: Count = 4
    finalists: Count = 10
    glances: Count = 4

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        images = problem.data.val
        order = torch.randperm(len(images), generator=counted(problem.seed, "random search images")).to(
            images.targets.device
        )
        last = state.epoch >= problem.epochs
        cells = self._cells(state, problem, self.samples if last else self.glances)
        few = images.subset(order[: self.batches * problem.batch])
        ranked = sorted(cells, key=lambda cell: -accuracy(state, problem, few, cell))  # stable: the first of equals
        if not last:
            return ranked[0]
        every = images.subset(order)
        return max(ranked[: self.finalists], key=lambda cell: accuracy(state, problem, every, cell))

    def _cells(self, state: SearchState, problem: Problem, count: int) -> list[Genotype]:
        """`count` connected cells; the draw depends on the seed and the epoch alone."""
        rng, cells = counted(problem.seed, "random search cells", state.epoch), list[Genotype]()
        while len(cells) < count:
            cell = sample(problem.space, rng)
            if cell.connected:
                cells.append(cell)
        return cells


def accuracy(state: SearchState, problem: Problem, images: ImageSet, cell: Genotype) -> float:
    """In [0, 1], of the supernet with one cell switched on."""
    like = next(iter(state.alpha.values()))
    weights = {group.name: one_hot(group, cell.groups[group.name]).to(like) for group in problem.space.groups}
    return score(replace(state, relaxation=GivenCell(weights)), problem, images)[0]


def one_hot(group: Group, choices: Sequence[Choice]) -> Tensor:
    """(E, O): 1 for each chosen op."""
    w = torch.zeros(len(group.edges), group.width)
    for choice in choices:
        w[group.entry(choice.source, choice.target, choice.op)] = 1.0
    return w


def random_search_ws(published: bool = False) -> Method:
    """Random search with shared weights: a baseline.

    Of any search with a supernet.
    """
    return Method(
        name="random_search_ws",
        relaxation=OneCell(),
        edge=SampledOps(),
        arch_start=1.0,
        selection=BestOfSampled(1000, 10, 10) if published else BestOfSampled(),
        papers=("li2019random",),
    )
