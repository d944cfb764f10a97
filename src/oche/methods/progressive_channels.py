"""Progressive partial channels: deeper, fewer operations, more channels. Y. Xue, C. Lu, F. Neri, J. Qin. IEEE TETCI, 2024.

Three stages, each a search of ADARTS's kind (channels chosen by attention, edge normalisation) from the beginning:

    stage   cells   operations per edge   channels searched
      1       8              8                  1/8
      2      14              5                  1/4
      3      20              3                  1/2

At the border every edge keeps its strongest operations, by softmax(alpha). The last stage's product of both softmaxes decides. So depth x
operations x share stays about the same, and the last stage is as deep as the network that is trained.

From its abstract alone: attention that chooses partial channels, stages of ever more channels and fewer operations, a last stage of 20
cells. The table's constants are ours, by balance of memory, 25 epochs for each stage of which alpha is held for 10; rates are ADARTS's. The
stages begin anew, weights and alpha, as in P-DARTS. In other spaces the cells grow in the same ratio.
Published: CIFAR-10 error 2.41 %, CIFAR-100 16.39 %, ImageNet top-1 75.3 %, of its own schedule.

Deviations from the paper: not known, its text was not at hand.
Deviations from the script of the published numbers: no code is public.
Cost against DARTS: per epoch, by candidates x channels x cells, about a seventh in each of the stages; and one attention per edge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from oche.errors import UserError
from oche.methods.adarts import adarts
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS
from oche.methods.pdarts import SMOKE, deeper
from oche.search.method import Method
from oche.search.selection import leading
from oche.search.stages import Stage, Staged
from oche.search.state import Problem, SearchState
from oche.spaces.attention import AttendedChannels

PUBLISHED = {
    "darts": Budget(75, 64, {"space.cells": 8, "space.channels": 16}, "ours: the abstract has no settings"),
    "nb201": Budget(
        75, 64, NB201_SETTINGS, "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e, 25 epochs per stage"
    ),
}
BUDGETS = {"paper": PUBLISHED, "smoke": SMOKE}


@dataclass(frozen=True)
class Growing:
    """Stage n has the space's cells in the ratio cells[n] : cells[0], keep[n] operations per edge and 1/K[n] of the channels searched.

    The stages have equal shares of the epochs.
    """

    cells: tuple[int, ...] = (8, 14, 20)
    keep: tuple[int, ...] = (8, 5, 3)
    K: tuple[int, ...] = (8, 4, 2)

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        n, count = len(ended), len(self.K)
        if not count == len(self.cells) == len(self.keep) or problem.epochs < count:
            raise UserError(
                f"Growing(cells={self.cells}, keep={self.keep}, K={self.K}) needs as many of each, and an epoch for every stage; "
                f"given {problem.epochs} epochs."
            )
        if n == count:
            return None
        mask = {}
        if ended:
            for group, strength in ended[-1].strengths():
                mask[group.name] = leading(strength, ended[-1].alive(group), self.keep[n])
        epochs = problem.epochs * (n + 1) // count - problem.epochs * n // count
        space = deeper(problem.space, self.cells[n], self.cells[0])
        own = replace(method, edge=AttendedChannels(self.K[n]))
        return Stage(space, own, epochs, mask=mask, note=f"{space.cells} cells, K={self.K[n]}")  # type: ignore[attr-defined]


def progressive_channels() -> Staged:
    """Stages: deeper, fewer operations, more attended channels.

    `stages.cells`, `stages.keep` and `stages.K` are its table. A labelled reading.
    """
    method = replace(
        adarts(),
        name="progressive_channels",
        arch_start=0.4,
        unfit=("grid", "chain", "signal", "sase"),
        unfit_why="its stages are ever deeper stacks of the same cells, and each node of a grid, each layer of a chain, is there once",
        papers=("xue2024progressive", "xue2022adarts"),
    )
    return Staged("progressive_channels", method, Growing())
