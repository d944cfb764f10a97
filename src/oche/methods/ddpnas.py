"""DDPNAS: Dynamic Distribution Pruning for Efficient Network Architecture Search. X. Zheng et al. arXiv 1905.13543.

Every edge has a categorical distribution theta over its remaining operations, uniform at first. No gradient: cells are asked and told.

    repeat until an edge has one operation left:
        T sweeps, each of which visits every remaining operation of every edge once, in a random order:
            one epoch trains the weights of the visited cell alone;   V[sweep, e, o] = its accuracy on alpha's images
        E = mean over sweeps of softmax_o(100 V);   v <- 0.9 v + 0.1 E;   theta <- theta + v, over its sum
        each edge loses its operation of least theta

Orders are uniform. That takes T sum_{k=2..K} k epochs: 42 with K = 5 operations and T = 3, 105 with K = 8; more epochs are spent on
uniformly drawn cells first, and with fewer T is as large as fits (our choice).

Taken from code (MAC-AutoML/XNAS @ ea8f8ab, xnas/algorithms/SNG/DDPNAS.py:50-116 and configs/search/SNG/DDPNAS_*_cifar10.yaml): T = 3,
0.9, uniform orders (`draw="theta"` draws them by theta), 80 % of the images for the weights, batch 256, SGD 0.025 -> 0.001 per epoch
without Nesterov, weight decay 5e-4 (core/config.py:69-92). Published (readme of tanglang96/DDPNAS, whose search code is not public):
DARTS space, CIFAR-10 error 2.58 % with 3.4M parameters. Nothing is published on NAS-Bench-201.

Deviations from the paper: the momentum is the later version's.
Deviations from the script of the published numbers (the group's later one, scripts/search/SNG/search.py, for that of the number is not
public): it tells the error (line 83), which keeps the worst operations, and trains other cells than it records (line 77 with
RANDOM_SAMPLE): here the accuracy, and the same cell; half of its cells have few operations without parameters (BIGMODEL_SAMPLE_PROB);
removed operations have no part in the softmax here; it goes on to 200 epochs where all is decided. The log has the operations that the
fullest edge has left (`operations_left`), and the visited cell's accuracy.
Cost against DARTS: one operation per edge in each pass, no architecture steps, and a pass over alpha's images per epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from oche.base import Alpha, Count, Draw, Fraction, Group, counted
from oche.data import Fractions
from oche.errors import UserError
from oche.methods.budgets import QUICK as OURS
from oche.methods.budgets import Budget
from oche.optim import SGD
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.relaxations import Relaxation
from oche.search.state import SearchState
from oche.spaces.edges import SampledOps
from oche.watch.probes import supernet_accuracy

_SOURCE = "MAC-AutoML/XNAS @ ea8f8ab, configs/search/SNG"

PUBLISHED = {
    "darts": Budget(105, 256, {"space.cells": 8, "space.channels": 16}, f"{_SOURCE}/DDPNAS_darts_cifar10.yaml"),
    "nb201": Budget(42, 256, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}/DDPNAS_nasbench201_cifar10.yaml"),
}
SMOKE = {
    "toy": Budget(5, 16, {}),
    "nb201": Budget(14, 16, {"space.cells": 1, "space.channels": 4}),
    "darts": Budget(35, 16, {"space.cells": 3, "space.channels": 4}),
}
QUICK = {"darts": Budget(40, 64, {"space.cells": 5, "space.channels": 8})}
"""Our choice: one sweep a round takes so many epochs."""
BUDGETS = {"paper": PUBLISHED, "quick": {**OURS, **QUICK}, "smoke": SMOKE}


@dataclass(frozen=True)
class Visited(Relaxation):
    """w_eo = 1 for the operation that this epoch visits, `group/now`; strength is theta, `group/alpha`."""

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        there = group.valid().float()
        return {
            f"{group.name}/alpha": there / there.sum(-1, keepdim=True),
            f"{group.name}/now": torch.zeros_like(there),
        }

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return alpha[f"{group.name}/now"] + 0 * alpha[f"{group.name}/alpha"]

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        theta = alpha[f"{group.name}/alpha"]
        return theta * draw.alive(group).to(theta)


class Place(NamedTuple):
    """Where an epoch stands: `left` operations on the fullest edge, sweep number `sweep`, and the `visit` in it."""

    left: int
    sweep: int
    visit: int


@dataclass(frozen=True)
class Prune(Callback):
    """Asks before an epoch, tells after it; `sweeps` is T, or fewer where no more fit into the epochs.

    A sweep visits an edge's operations in an order that is uniform, or drawn by theta without replacement.
    """

    sweeps: Count
    momentum: Fraction = 0.9
    draw: Literal["uniform", "theta"] = "uniform"

    def place(self, state: SearchState) -> Place | None:
        """None in the warm-up. Raises UserError where one sweep a round does not fit."""
        most = max(len(ops) for group in state.space.groups for ops in group.ops)
        visits, epochs = most * (most + 1) // 2 - 1, state.problem.epochs
        sweeps = min(self.sweeps, epochs // visits)
        if sweeps < 1:
            raise UserError(
                f"DDPNAS visits each of {most} operations and loses one a round: give it {visits} epochs at least and one sweep or more; "
                f"given {epochs} and sweeps={self.sweeps}."
            )
        places = [
            Place(left, sweep, visit) for left in range(most, 1, -1) for sweep in range(sweeps) for visit in range(left)
        ]
        number = state.epoch - (epochs - len(places))
        return places[number] if number >= 0 else None

    @torch.no_grad()
    def on_epoch_start(self, state: SearchState) -> None:
        place = self.place(state)
        for group in state.space.groups:
            theta, alive = state.alpha[f"{group.name}/alpha"].cpu(), state.alive(group)
            key = f"{place.left}/{place.sweep}" if place else f"warm-up {state.epoch}"
            rng = counted(state.problem.seed, "ddpnas", group.name, key)
            now = torch.zeros_like(theta)
            for e, there in enumerate(alive):
                likely = theta[e] * there if place and self.draw == "theta" else there.float()
                order = torch.multinomial(likely, int(there.sum()), generator=rng)
                now[e, order[place.visit % len(order) if place else 0]] = 1.0
            state.alpha[f"{group.name}/now"].copy_(now)

    @torch.no_grad()
    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        place = self.place(state)
        weights = state.op_weights(state.alpha, state.draw("eval"))
        accuracy = supernet_accuracy(state, state.problem, weights, state.arch_images)
        record["visited_accuracy"] = accuracy
        record["operations_left"] = max(int(state.alive(group).sum(-1).max()) for group in state.space.groups)
        if place is None:
            return
        for group in state.space.groups:
            seen = state.memory.get(f"ddpnas/seen/{group.name}", torch.zeros(0, len(group.edges), group.width))
            if place.visit == 0:
                seen = torch.cat([seen, torch.zeros(1, len(group.edges), group.width)])
            seen[-1] += accuracy * state.alpha[f"{group.name}/now"].cpu() * (seen[-1] == 0)
            state.memory[f"ddpnas/seen/{group.name}"] = seen
        following = (
            self.place(replace(state, epoch=state.epoch + 1)) if state.epoch + 1 < state.problem.epochs else None
        )
        if following is None or following.left < place.left:
            for group in state.space.groups:
                self.prune(state, group)

    def prune(self, state: SearchState, group: Group) -> None:
        """Tells theta what the sweeps saw, and removes the worst operation of each edge that has more than one."""
        seen, alive = state.memory.pop(f"ddpnas/seen/{group.name}"), state.alive(group)
        theta = state.alpha[f"{group.name}/alpha"]
        new, v = told(
            theta.cpu(),
            state.memory.get(f"ddpnas/v/{group.name}", torch.zeros_like(theta)).cpu(),
            seen,
            alive,
            self.momentum,
        )
        worst = new.masked_fill(~alive, torch.inf).argmin(-1)
        gone = torch.nn.functional.one_hot(worst, group.width).bool() & (alive.sum(-1, keepdim=True) > 1)
        remains = alive & ~gone
        state.memory[f"ddpnas/v/{group.name}"] = v
        state.mask[group.name] = remains
        theta.copy_(new * remains / (new * remains).sum(-1, keepdim=True))


def told(theta: Tensor, v: Tensor, seen: Tensor, alive: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """(theta + v over its sum, v) after sweeps that saw the accuracies `seen` (T, E, O), in [0, 1]; removed operations have none."""
    e = (100 * seen).masked_fill(~alive, float("-inf")).softmax(-1).mean(0)
    v = momentum * v + (1 - momentum) * e
    new = (theta + v) * alive
    return new / new.sum(-1, keepdim=True), v


def ddpnas(sweeps: int = 3) -> Method:
    """Cells asked and told; the worst operation goes each round."""
    return Method(
        name="ddpnas",
        relaxation=Visited(),
        edge=SampledOps(),
        weight_optimizer=SGD(weight_decay=5e-4),
        arch_start=1.0,
        split=Fractions(0.8, 0.2),
        callbacks=(Prune(sweeps),),
        unfit=("grid",),
        unfit_why="one visited operation an edge, gates among them, leaves hardly a path through the grid",
        papers=("zheng2019ddpnas",),
    )
