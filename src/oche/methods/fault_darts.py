"""Fault diagnosis on signals: DARTS that pays for complexity and for undecided edges, and prunes operations. After Zhang et al., MSSP 2021.

    L_alpha = L_val + lambda_c  sum_e sum_o p_eo cost_eo / sum_e max_o cost_eo  +  lambda_d(t)  mean_e (1 - max_o p_eo)

p = softmax(alpha). At the end of each epoch after the share `start` an edge loses the operations with p_eo < share / K of K left, and
beyond these its weakest until n(t) are left; n goes down in equal steps from all to `left` in the last epoch. The strongest always stays.
What was lost is no longer computed. Where a node keeps some of its edges, the strongest but for `none` stays too. Candidates on signals:
separable and dilated convolutions of kernels 3, 5, 7 and 15, pools, skip.

From its abstract and a public summary alone: DARTS cells on vibration signals, penalties for complexity and for the discretisation error in
the outer loss, candidates pruned while the search runs. The forms are our notes' (the threshold, 0.1 / K, too), all other constants ours:
lambda_c 0.1 on multiply-adds, lambda_d growing to 0.5, `start` 0.2, `left` 1, the steps of n(t). Budgets are those of DARTS.
Published: no figure was at hand; the summary names a fault simulator and an escalator platform.

Deviations from the paper: its text was not at hand. Theirs also learns how many layers and nodes there are, and how channels are fused;
here `skip_connect` leaves a layer out, and channels are those of the space. `none` is no candidate: in the space of signals each layer lies
on the only path.
Deviations from the script of the published numbers: no code is public.
Cost against DARTS: the same passes, over ever fewer operations; with `left=1` about half of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.errors import UserError
from oche.methods.darts import darts
from oche.schedule import Ramp
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.selection import leading
from oche.search.state import SearchState
from oche.search.terms import Entropy, OfAlpha, discretisation
from oche.spaces import Space
from oche.spaces.cost import candidates
from oche.spaces.signals import DIAGNOSIS_OPS

Of = Literal["multiply_adds", "parameters"]


@dataclass(frozen=True)
class Complexity(OfAlpha):
    """weight times the expected cost of the candidates, in [0, 1]: 1 where every edge has its dearest operation alone."""

    weight: float
    of: Of = "multiply_adds"

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw, total = state.draw("alpha"), next(iter(alpha.values())).new_zeros(())
        for group, costs in zip(state.space.groups, shares(state.space, self.of), strict=True):
            p = state.relaxation(alpha, group, draw)
            total = total + (p * costs.to(p)).sum()
        return self.weight * total


@lru_cache(maxsize=16)
def shares(space: Space, of: Of) -> tuple[Tensor, ...]:
    """Each group's (E, O) costs, over the sum of every edge's dearest; zeros where no operation costs anything."""
    column = ("parameters", "multiply_adds").index(of)
    tables = [candidates(space, True)[group.name][..., column].sum(0) for group in space.groups]
    most = sum(float(t.amax(1).sum()) for t in tables)
    return tuple(t / most if most else t for t in tables)


@dataclass(frozen=True)
class PruneOperations(Callback):
    """Drops an edge's weakest operations at the ends of epochs: those below `share` / K, and those beyond n(t); see the module.

    The log has the operations that the fullest edge has left (`operations_left`).
    """

    share: float = 0.1
    start: float = 0.2
    left: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.start < 1 or self.left < 1:
            raise UserError(
                "Pruning takes a share in [0, 1], a start in [0, 1) and at least one operation that is left; given "
                f"share={self.share}, start={self.start}, left={self.left}."
            )

    def most(self, candidates: int, progress: float) -> int:
        """n(t): how many of an edge's candidates may be left."""
        done = max(0.0, progress - self.start) / (1 - self.start)
        return max(1, math.ceil(candidates - max(0, candidates - self.left) * done - 1e-9))

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        progress = state.progress
        fullest = 0
        for group, strength in state.strengths():
            alive = state.alive(group)
            if progress >= self.start:
                kept = self.pruned(strength, alive, [self.most(len(ops), progress) for ops in group.ops])
                if group.keep is not None:  # an edge that its node may keep needs an operation
                    kept |= leading(strength, alive & ~group.named("none").to(alive.device), 1)
                alive = state.mask[group.name] = kept
            fullest = max(fullest, int(alive.sum(-1).max()))
        record["operations_left"] = fullest

    def pruned(self, strength: Tensor, alive: Tensor, most: list[int]) -> Tensor:
        """(E, O) bool: what remains of `alive`, each edge's strongest at least."""
        p = strength * alive
        p = p / p.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        there = alive & (p >= self.share / alive.sum(-1, keepdim=True))
        rows = [leading(p[e : e + 1], there[e : e + 1], count) for e, count in enumerate(most)]
        return torch.cat(rows) | leading(p, alive, 1)


def fault_darts(
    complexity: float = 0.1,
    discrete: float = 0.5,
    share: float = 0.1,
    start: float = 0.2,
    left: int = 1,
    of: Of = "multiply_adds",
) -> Method:
    """DARTS with prices on cost and indecision; operations pruned.

    For fault diagnosis. `complexity` and `discrete` weigh the prices, of multiply-adds or parameters; from `start` on edges lose operations
    below `share` of the mean, and in steps down to `left`. A labelled reading.
    """
    return replace(
        darts(),
        name="fault_darts",
        outer_terms=(Complexity(complexity, of), Entropy(ops=Ramp(discrete), measure=discretisation)),
        callbacks=(PruneOperations(share, start, left),),
        space={"signal.ops": DIAGNOSIS_OPS},
        papers=("liu2019darts", "zhang2021fault"),
    )
