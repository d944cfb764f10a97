"""DARTS-ES: early stopping on the curvature of the validation loss. A. Zela et al. ICLR 2020, arXiv 1909.09656.

    v = largest eigenvalue of d2 L_val / d alpha2, every 2 epochs;     m = its mean over 5 probes around each
    stop when m / m(4 probes earlier) > 1.3;                           return the genotype of the earlier one's epoch

looked at once that epoch is 10 or later, so a search stops after epoch 22 at the earliest. Second-order DARTS otherwise.

Published and taken from code (automl/RobustDARTS @ 3dec3fe, src/search/args.py:61-64 and src/utils.py:67-140): all numbers; the paper
states the inverse ratio as 0.75. The settings for NAS-Bench-201 are ours, those of `darts_2nd` there.

Deviations from the paper: none known.
Deviations from the script of the published numbers: the eigenvalue is of the validation loss on the same 64 validation images each time,
by Lanczos, where the code takes the whole Hessian on the last batch (src/search/train_search.py:393) and adds alpha's weight decay, 1e-3,
to it, since one batch for all epochs has less noise; the last epoch's probe is looked at too.
Cost against DARTS: that of the second order; a probe is some tens of double backward passes of one batch, every second epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from oche.base import Count
from oche.genotype import Genotype
from oche.methods.darts import SECOND_ORDER, darts_2nd
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.selection import Selection, TopK
from oche.search.state import Problem, SearchState
from oche.watch.monitor import Eigenvalue, EigenvalueRule, Probe

Series = tuple[list[int], list[float]]

PUBLISHED = {
    "darts": replace(SECOND_ORDER["paper"]["darts"], source="automl/RobustDARTS @ 3dec3fe"),
    "nb201": replace(SECOND_ORDER["paper"]["nb201"], source="ours, after D-X-Y/AutoDL-Projects @ f46486e, DARTS-V2.py"),
}
BUDGETS = {"paper": PUBLISHED}


@dataclass(frozen=True)
class Curvature:
    """Measures `probe` after every `every`-th epoch and the last, and remembers the series."""

    every: Count = 2
    probe: Probe = Eigenvalue()

    def due(self, state: SearchState) -> bool:
        return state.epoch % self.every == 0 or state.epoch == state.problem.epochs - 1

    def __call__(self, state: SearchState, record: dict[str, object]) -> Series:
        """Epochs and values so far, this one's added; the record is told."""
        genotype = Genotype.parse(str(record["genotype"]), state.space.name)
        value = self.probe(state, state.problem, genotype)
        record[self.probe.name] = value
        epochs, values = curvatures(state)
        rows = [[float(e), v] for e, v in zip([*epochs, state.epoch], [*values, value], strict=True)]
        state.memory["curvature"] = torch.tensor(rows, dtype=torch.float64)
        return curvatures(state)


def curvatures(state: SearchState) -> Series:
    """The series that is remembered."""
    rows = state.memory.get("curvature", torch.zeros(0, 2, dtype=torch.float64))
    return [int(epoch) for epoch in rows[:, 0].tolist()], rows[:, 1].tolist()


@dataclass(frozen=True)
class EigenvalueStop(Callback):
    """Ends the search when the rule says so, and remembers after how many epochs alpha was still good."""

    rule: EigenvalueRule = EigenvalueRule()
    curvature: Curvature = Curvature()

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if self.curvature.due(state):
            found = self.rule.growth(*self.curvature(state, record))
            if found and found[1] > self.rule.ratio:
                give_back(state, found[0] + 1)


def give_back(state: SearchState, epochs: int) -> None:
    """Ends the search before the next epoch, to return alpha as it stood after so many epochs."""
    state.stop = True
    state.memory["returned"] = torch.tensor(epochs)


@dataclass(frozen=True)
class Returned:
    """The genotype of the remembered alpha; of the present one where the search was not stopped."""

    inner: Selection = TopK()

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        epochs = state.memory.get("returned")
        return self.inner(state if epochs is None else state.at(int(epochs)), problem)


def darts_es(ratio: float = 1.3, every: int = 2) -> Method:
    """DARTS, stopped when its loss turns sharp in alpha.

    Second order; returns the genotype from before.
    """
    return replace(
        darts_2nd(),
        name="darts_es",
        callbacks=(EigenvalueStop(EigenvalueRule(ratio=ratio), Curvature(every)),),
        selection=Returned(),
        papers=("liu2019darts", "zela2020understanding"),
    )
