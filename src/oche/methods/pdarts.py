"""P-DARTS: Progressive Differentiable Architecture Search. X. Chen, L. Xie, J. Wu, Q. Tian. ICCV 2019, arXiv 1904.12760.

    stage     cells   candidates an edge   dropout behind skip connections, r
    1          5         8                    0
    2         11         5                    0.4
    3         17         3                    0.7

Each stage is a fresh supernet, deeper than the one before it, over the n candidates of each edge that were strongest there. Its
weights train alone for the first 10 of 25 epochs E; dropout behind the identity keeps skip connections from winning early, and fades:

    rate(e) = r (E - e - 1) / E  while alpha is held,  r exp(-0.2 (e - 10))  after

In the end, while the normal cell has more than `skips` skip connections, the weakest chosen one is struck out and the cell derived again.

Taken from code (chenxin061/pdarts @ b880e87, train_search.py:23-40, 109-123, 152-159): the table, batch 96, SGD 0.025 -> 0, alpha's Adam
at 6e-4, alpha's gradients clipped at 5 too. The readme's command has r = 0.1 in the first stage; ours is the paper's 0, of which its
numbers are.
Published: DARTS space, CIFAR-10 error 2.50 %, CIFAR-100 16.55 %.

Deviations from the paper: none known. In other spaces, and with other `space.cells`: depths are in the ratio 5 : 11 : 17, an edge never
has more candidates than the space gives it, and the fading keeps its shape over stages of another length (our choice). Nothing is
published on NAS-Bench-201; the settings there are ours.
Deviations from the script of the published numbers: at equal strengths the first edge is kept, where `sorted` keeps the last
(train_search.py:228); the first of two equal skip connections is struck out.
Cost against DARTS: its first-order steps in supernets of 1, 2.2 and 3.4 times the cells, with fewer candidates in each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from oche.base import Natural
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.schedule import Cosine, Schedule
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.selection import derived, leading
from oche.search.stages import Stage, Staged
from oche.search.state import Problem, SearchState
from oche.spaces import Space
from oche.spaces.edges import SkipDropout

PUBLISHED = {
    "darts": Budget(75, 96, {"space.cells": 5, "space.channels": 16}, "chenxin061/pdarts @ b880e87, train_search.py"),
    "nb201": Budget(
        75, 64, NB201_SETTINGS, "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e, 25 epochs per stage"
    ),
}

SMOKE = {
    "toy": Budget(3, 16, {}),
    "nb201": Budget(3, 16, {"space.cells": 1, "space.channels": 4}),
    "darts": Budget(3, 16, {"space.cells": 3, "space.channels": 4}),
}
"""Our choice: an epoch a stage."""
BUDGETS = {"paper": PUBLISHED, "smoke": SMOKE}

DEPTHS = (5, 11, 17)
CANDIDATES = (8, 5, 3)


@dataclass(frozen=True)
class Fading:
    """The rate above over a stage of `epochs`, of which the share `held` holds alpha; a step function of the epoch."""

    rate: float
    epochs: int
    held: float = 0.4

    def __call__(self, progress: float) -> float:
        epoch = math.floor(progress * self.epochs + 1e-9)
        if epoch < self.held * self.epochs:
            return self.rate * (self.epochs - epoch - 1) / self.epochs
        return self.rate * math.exp(-0.2 * (epoch - self.held * self.epochs) * 25 / self.epochs)


@dataclass(frozen=True)
class Dropped(Callback):
    """Writes the rate at which an epoch began into its record."""

    rate: Schedule

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record["skip_dropout"] = self.rate(state.epoch / state.problem.epochs)


@dataclass(frozen=True)
class Progressive:
    """Three stages of a third of the epochs each, with these rates r."""

    rates: tuple[float, float, float] = (0.0, 0.4, 0.7)

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        number = len(ended)
        if number == len(DEPTHS):
            return None
        if problem.epochs < len(DEPTHS):
            raise UserError(
                f"P-DARTS has {len(DEPTHS)} stages, given {problem.epochs} epochs: give at least one for each."
            )
        epochs = problem.epochs // 3 + (problem.epochs % 3 if number == 2 else 0)
        rate = Fading(self.rates[number], epochs, method.arch_start)
        own = replace(
            method,
            edge=SkipDropout(method.edge, rate),
            callbacks=(*method.callbacks, Dropped(rate)),
        )
        mask = {}
        if ended:
            for group, strength in ended[-1].strengths():
                mask[group.name] = leading(strength, ended[-1].alive(group), CANDIDATES[number])
        space = deeper(problem.space, DEPTHS[number])
        return Stage(space, own, epochs, mask=mask, note=f"{space.cells} cells")  # type: ignore[attr-defined]


def deeper(space: Space, depth: int, first: int = DEPTHS[0]) -> Space:
    """The space with its cells in the ratio depth : first."""
    cells: int = space.cells  # type: ignore[attr-defined]
    return replace(space, cells=max(1, round(cells * depth / first)))  # type: ignore[call-arg]


@dataclass(frozen=True)
class AtMostSkips:
    """The last stage's genotype with at most `skips` skip connections in its first kind of cell."""

    skips: Natural

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Genotype:
        last, choices = ended[-1], {}
        for number, (group, strength) in enumerate(last.strengths()):
            alive = last.alive(group)
            found = derived(group, strength, alive)
            while number == 0 and sum(c.op == "skip_connect" for c in found) > self.skips:
                skips = [group.entry(c.source, c.target, c.op) for c in found if c.op == "skip_connect"]
                alive = alive.clone()
                alive[min(skips, key=lambda entry, of=strength: float(of[entry]))] = False  # type: ignore[misc]
                found = derived(group, strength, alive)
            choices[group.name] = found
        return Genotype(problem.space.name, choices, problem.space.sharing)


def pdarts(skips: int = 2) -> Staged:
    """Three stages of growing depth and fewer candidates.

    With at most `skips` skip connections in the normal cell.
    """
    method = replace(
        darts(),
        weight_lr=Cosine(0.025, 0.0),
        arch_clip=5.0,
        arch_start=0.4,
        unfit=("grid", "chain", "signal", "sase"),
        unfit_why="its stages are ever deeper stacks of the same cells, and each node of a grid, each layer of a chain, is there once",
        papers=("liu2019darts", "chen2019pdarts"),
    )
    method = replace(method, arch_optimizer=replace(method.arch_optimizer, lr=6e-4))  # type: ignore[type-var]
    return Staged("pdarts", method, Progressive(), AtMostSkips(skips))
