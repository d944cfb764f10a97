"""DARTS+PT: Rethinking Architecture Selection in Differentiable NAS. R. Wang et al. ICLR 2021, arXiv 2108.04392.

The strength of alpha does not tell an operation's worth; what the supernet loses without it does. After any search:

    edges in random order:     keep the op without which the supernet is worst on alpha's half of the images; then tune 5 epochs
    then nodes, random order:  remove the incoming edges without which it is best, until 2 are left;         then tune 5 epochs

"Without" is a weight of 0, the others as they are; a decided edge has its op at weight 1. With a normal and a reduction cell one edge of
the one is decided, then one of the other. Spaces that keep all edges have no second part; there `none` is a candidate like any other.
Tuning steps the weights and the alpha of undecided edges, at a tenth of the search's first learning rate and from momentum zero; alpha's
Adam goes on from the search.

`fixed_alpha` holds alpha at zero throughout: selection is the perturbations' alone (the paper's "blank" supernet).

Taken from code (ruocwang/darts-pt @ 4ec3149): NAS-Bench-201 100 + 25 epochs, DARTS 50 + 81 over 7 ops (no `none`, sota/cnn/spaces.py:80),
both with DARTS's settings. Published (the paper): CIFAR-10 test on NAS-Bench-201 88.11, with alpha fixed 93.80; reruns of the first give
85.0 to 88.2. DARTS space, CIFAR-10 error 2.61 +- 0.08, with alpha fixed 2.87 %.

Deviations from the paper: where the epochs are few, tuning takes two thirds of them at most (our choice).
Deviations from the script of the published numbers (projection.py in sota/cnn and nasbench201): tuning ends with the last decision, where
one epoch follows that changes nothing any more (sota line 127), and NAS-Bench-201's last decision comes an epoch later than there (line
84); accuracies are of plain images, where theirs are augmented (train_search.py:214); in S3 `none` is no candidate, where project_op
tries it and the genotype then has another op for it: a genotype cannot say so; alpha fixed is 0, where theirs stays at 1e-3 N(0, 1); a
tuning is a stage whose supernet holds no removed candidate.
Cost against DARTS: half as much again to twice: a pass over alpha's images for each candidate, and the tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from oche.base import Group, Natural, counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.budgets import QUICK as OURS
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.schedule import Schedule
from oche.search.method import Method
from oche.search.relaxations import Softmax
from oche.search.stages import Stage, Staged, carry_arch_optimizer, carry_on
from oche.search.state import Problem, SearchState
from oche.spaces import Space
from oche.watch.probes import supernet_accuracy

_SOURCE = "ruocwang/darts-pt @ 4ec3149"
_DARTS = Budget(130, 64, {"space.cells": 8, "space.channels": 16}, f"{_SOURCE}, exp_scripts/darts-proj-sota.sh")
PUBLISHED = {
    "nb201": Budget(125, 64, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}, exp_scripts/darts-proj-201.sh"),
    **dict.fromkeys(("darts", "s1", "s2", "s3", "s4"), _DARTS),
}
SMOKE = {
    "toy": Budget(3, 16, {}),
    "nb201": Budget(6, 16, {"space.cells": 1, "space.channels": 4}),
    "darts": Budget(17, 16, {"space.cells": 3, "space.channels": 4}),
    "grid": Budget(10, 4, {"space.layers": 2, "space.channels": 4, "space.levels": 2}),
}
QUICK = {"grid": Budget(100, 8, {"space.layers": 6, "space.channels": 8, "arch_optimizer.lr": 3e-3})}
"""Our choice: an epoch between two decisions, of which a grid has many."""
BUDGETS = {"paper": PUBLISHED, "quick": {**OURS, **QUICK}, "smoke": SMOKE}

Mask = dict[str, Tensor]


@dataclass(frozen=True)
class Tenth:
    """A tenth of a schedule; of its first value throughout, unless it is `falling`."""

    whole: Schedule
    falling: bool

    def __call__(self, progress: float) -> float:
        return self.whole(progress if self.falling else 0.0) / 10


@dataclass(frozen=True)
class Perturb:
    """A search, then decisions with `tune` epochs between them; what is left of the epochs is the search's.

    Where that would be less than a third of them, there are fewer between the decisions, but one at least. `falling` lets the learning
    rate follow the search's schedule once more, over all of the tuning. `carry` says what a tuning takes over besides weights and alpha:
    "adam", alpha's Adam throughout, and the weights' momentum from the second tuning on; or "momentum", that alone, from the first.
    """

    tune: Natural
    falling: bool = False
    carry: Literal["adam", "momentum"] = "adam"

    def between(self, problem: Problem, decisions: int) -> int:
        """Epochs between two decisions."""
        return max(1, min(self.tune, 2 * problem.epochs // (3 * max(1, decisions - 1))))

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        decisions = rounds(problem.space)
        tune = self.between(problem, decisions)
        search = problem.epochs - tune * (decisions - 1)
        if search < 1 or self.tune < 1:
            raise UserError(
                f"DARTS+PT searches for an epoch at least, and tunes for one after each of {decisions - 1} decisions in "
                f"{problem.space.name}; given {problem.epochs} epochs and tune={self.tune}: give more."
            )
        if len(ended) == decisions:
            return None
        if not ended:
            return Stage(problem.space, method, search, note="search")
        mask, number = decided(ended[-1], len(ended) - 1), len(ended)
        rate = Tenth(method.weight_lr, self.falling)
        tuning = replace(method, weight_lr=rate, arch_start=float(method.arch_start == 1.0))
        span = ((number - 1) / (decisions - 1), number / (decisions - 1))
        enter = carry_on if self.carry == "momentum" else begin_tuning if number == 1 else go_on_tuning
        return Stage(problem.space, tuning, tune, span, mask, enter, f"tuning {number} of {decisions - 1}")


def go_on_tuning(state: SearchState, ended: tuple[SearchState, ...]) -> None:
    """Takes over weights with their momentum, and alpha with its Adam's."""
    carry_on(state, ended)
    carry_arch_optimizer(state, ended[-1])


def begin_tuning(state: SearchState, ended: tuple[SearchState, ...]) -> None:
    """Takes over weights without their momentum, and alpha with its Adam's."""
    go_on_tuning(state, ended)
    state.weight_optimizer.state.clear()


def choose(problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Genotype:
    """The genotype that the last decision leaves."""
    last = replace(ended[-1], mask=decided(ended[-1], rounds(problem.space) - 1))
    return method.selection(last, last.problem)


def rounds(space: Space) -> int:
    """The number of decisions: one an edge, and one a node that has edges too many."""
    return max(len(group.edges) + len(crowded(group)) for group in space.groups)


def crowded(group: Group) -> list[int]:
    """Nodes with more incoming edges than they keep."""
    return [] if group.keep is None else [node for node, into in group.into().items() if len(into) > group.keep]


def decided(state: SearchState, number: int) -> Mask:
    """What remains after decision `number` in every group, each made in sight of those before it."""
    mask = {group.name: state.alive(group) for group in state.space.groups}
    for group in state.space.groups:
        edges = shuffled(range(len(group.edges)), state, f"edges/{group.name}")
        nodes = shuffled(crowded(group), state, f"nodes/{group.name}")
        if number < len(edges):
            decide_op(state, group, edges[number], mask)
        elif number - len(edges) < len(nodes):
            decide_edges(state, group, nodes[number - len(edges)], mask)
    return mask


def decide_op(state: SearchState, group: Group, edge: int, mask: Mask) -> None:
    """Leaves the op whose absence hurts most on this edge; `none` is no candidate where nodes choose among edges."""
    names = group.ops[edge]
    ops = [o for o, op in enumerate(names) if mask[group.name][edge, o] and (group.keep is None or op != "none")]
    without = {o: accuracy(state, mask, group, [(edge, o)]) for o in ops}
    mask[group.name] = mask[group.name].clone()
    mask[group.name][edge] = torch.arange(group.width) == min(without, key=lambda o: without[o])


def decide_edges(state: SearchState, group: Group, node: int, mask: Mask) -> None:
    """Removes edges into the node, the one without which the supernet is best first, until `keep` are left."""
    edges, keep = [e for e in group.into()[node] if mask[group.name][e].any()], group.keep
    while keep is not None and len(edges) > keep:
        without = {e: accuracy(state, mask, group, [(e, o) for o in range(group.width)]) for e in edges}
        gone = max(without, key=lambda e: without[e])
        edges.remove(gone)
        mask[group.name] = mask[group.name].clone()
        mask[group.name][gone] = False


@torch.no_grad()
def accuracy(state: SearchState, mask: Mapping[str, Tensor], group: Group, off: list[tuple[int, int]]) -> float:
    """Of the supernet under the mask on alpha's images, with these entries of the group's op weights at zero."""
    masked = replace(state, mask=dict(mask))
    draw = masked.draw("eval")
    weights = {own.name: state.relaxation(state.alpha, own, draw) for own in state.space.groups}
    weights[group.name] = weights[group.name].clone()
    for entry in off:
        weights[group.name][entry] = 0.0
    return supernet_accuracy(masked, state.problem, state.space.spread(weights), state.arch_images)


def shuffled(numbers: range | list[int], state: SearchState, purpose: str) -> list[int]:
    """In an order that depends on the seed alone."""
    order = torch.randperm(len(numbers), generator=counted(state.problem.seed, "perturb", purpose))
    return [numbers[i] for i in order.tolist()]


def darts_pt(tune: int = 5, fixed_alpha: bool = False) -> Staged:
    """DARTS whose operations are selected by perturbation.

    With at most `tune` epochs after each decision. `fixed_alpha` never steps alpha.
    """
    method = replace(darts(), space={"darts.without": ("none",)}, papers=("liu2019darts", "wang2021rethinking"))
    if fixed_alpha:
        method = replace(method, relaxation=Softmax(0.0), arch_start=1.0)
    return Staged("darts_pt", method, Perturb(tune), choose)
