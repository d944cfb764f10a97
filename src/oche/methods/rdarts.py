"""R-DARTS: Understanding and Robustifying Differentiable Architecture Search. A. Zela et al. ICLR 2020, arXiv 1909.09656.

Second-order DARTS collapses where the validation loss is sharp in alpha; a stronger regularisation of the weights keeps it flat.

    l2:  weight decay `strength`, one of 3e-4, 9e-4, 27e-4, 81e-4          (3e-4 is DARTS)
    dp:  an image loses a whole mixed edge with probability strength * progress, one of 0, 0.2, 0.4, 0.6          (0 is DARTS)

This is one search at one strength. R-DARTS proper searches at each of the four, three seeds each, trains the cells briefly and keeps
the best on validation images: `oche search rdarts_pick` searches at each of the four for a quarter of the epochs, trains the four cells
(`brief`) and keeps the one that is best; `--seeds 3 --pick validation` does so for three seeds. The supernet's own accuracy cannot choose
the strength: it is best where the cell has the most skip connections.

`whole=False` drops each candidate but the identity by itself, as drop path does in the network that is trained in the end.

Published and taken from code (automl/RobustDARTS @ 3dec3fe, scripts/start_search.sh:5-6): the strengths, 50 epochs, all else as
second-order DARTS. The default strengths, 27e-4 and 0.2, are our choice, and so are the settings for NAS-Bench-201 and the grid, whose
weight decay is the strength. DARTS space, CIFAR-10 error 2.95 +- 0.21 % (`l2`, from other papers' tables).

Deviations from the paper: no cutout in the search; there its probability grows with drop path's.
Deviations from the script of the published numbers: cutout (src/search/train_search.py:113), as above, since a method has no say in how
images are varied; drop path grows at every step up to its end, theirs per epoch and reaches it in the last one (train_search.py:112);
else those of `darts_2nd`.
Cost against DARTS: that of the second order; the paper's protocol is 12 searches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from oche.base import Count
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.budgets import QUICK, SMOKE, Budget
from oche.methods.darts import darts_2nd
from oche.methods.racing import race
from oche.optim import SGD
from oche.schedule import Linear
from oche.search.method import Method
from oche.search.stages import Stage, Staged
from oche.search.state import Problem, SearchState
from oche.spaces.edges import DropPath
from oche.training.protocols import PROTOCOLS

PUBLISHED = {
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, "automl/RobustDARTS @ 3dec3fe"),
    "nb201": Budget(
        50,
        64,
        {"space.cells": 5, "space.channels": 16, "arch_first": True, "weight_optimizer.nesterov": True},
        "ours, after D-X-Y/AutoDL-Projects @ f46486e, DARTS-V2.py",
    ),
    "grid": Budget(200, 8, {"arch_optimizer.lr": 3e-3, "arch_optimizer.weight_decay": 0.0}, "ours"),
}
BUDGETS = {"paper": PUBLISHED}
_EPOCHS = 4
PICK_BUDGETS = {
    "paper": {space: replace(row, epochs=_EPOCHS * row.epochs) for space, row in PUBLISHED.items()},
    "quick": {space: replace(row, epochs=_EPOCHS * row.epochs) for space, row in QUICK.items()},
    "smoke": {space: replace(row, epochs=_EPOCHS) for space, row in SMOKE.items()},
}
"""As many epochs for each strength as `rdarts` has; in `smoke` one."""

Regularisation = Literal["l2", "dp"]
STRENGTHS: dict[Regularisation, tuple[float, ...]] = {"l2": (3e-4, 9e-4, 27e-4, 81e-4), "dp": (0.0, 0.2, 0.4, 0.6)}
"""Those of the paper: weight decays, and drop path's probability at the end."""


def rdarts(regularisation: Regularisation = "l2", strength: float | None = None, whole: bool = True) -> Method:
    """Second-order DARTS, more regularised, at one strength.

    By more weight decay (`l2`) or by drop path (`dp`), of `whole` mixed edges or of single candidates.
    """
    method = replace(darts_2nd(), name="rdarts", papers=("liu2019darts", "zela2020understanding"))
    if strength is not None and not 0 <= strength < 1:
        raise UserError(
            f"rdarts: strength is a weight decay, or a probability of drop path, in [0, 1); given {strength}."
        )
    if regularisation == "l2":
        return replace(method, weight_optimizer=SGD(weight_decay=27e-4 if strength is None else strength))
    rate = Linear(0.0, 0.2 if strength is None else strength)
    return replace(method, edge=DropPath(rate=rate, whole=whole))


# ------------------------------------------------------------------ the pick of four


@dataclass(frozen=True)
class OnePerStrength:
    """A search from scratch at each strength, over an equal share of the epochs; those left over go to the first."""

    regularisation: Regularisation = "l2"
    whole: bool = True

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        strengths = STRENGTHS[self.regularisation]
        if problem.epochs < len(strengths):
            raise UserError(
                f"rdarts_pick needs an epoch for each of {len(strengths)} strengths; given {problem.epochs}."
            )
        if len(ended) == len(strengths):
            return None
        strength, share = strengths[len(ended)], problem.epochs // len(strengths)
        if self.regularisation == "dp":
            own = replace(method, edge=DropPath(rate=Linear(0.0, strength), whole=self.whole))
        elif isinstance(method.weight_optimizer, SGD):
            own = replace(method, weight_optimizer=replace(method.weight_optimizer, weight_decay=strength))
        else:
            raise UserError(
                "rdarts_pick varies SGD's weight decay: leave weight_optimizer SGD, or take regularisation=dp."
            )
        epochs = share if ended else problem.epochs - share * (len(strengths) - 1)
        return Stage(problem.space, own, epochs, note=f"{self.regularisation} {strength:g}")


@dataclass(frozen=True)
class BestTrained:
    """Keeps the stages' cell that is best on validation images after a training from scratch."""

    protocol: str = "brief"
    epochs: Count | None = None

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Genotype:
        name = f"segment_{self.protocol}" if f"{problem.space.task}_{self.protocol}" in PROTOCOLS else self.protocol
        cells = [method.selection(state, state.problem) for state in ended]
        return cells[race(problem, cells, name, (self.epochs or PROTOCOLS[name].epochs,), (1,))]


def rdarts_pick(regularisation: Regularisation = "l2", whole: bool = True) -> Staged:
    """R-DARTS: second-order DARTS at four strengths, the best.

    For one seed; `--seeds 3 --pick validation` does it for three.
    """
    method = replace(rdarts(regularisation, whole=whole), name="rdarts_pick")
    return Staged("rdarts_pick", method, OnePerStrength(regularisation, whole), BestTrained())
