"""GM-NAS: Generalizing Few-Shot NAS with Gradient Matching. S. Hu, R. Wang, L. Hong, Z. Li, C. Hsieh, J. Feng. ICLR 2022, arXiv 2203.15207.

One supernet shares weights among operations that would move them apart. It is split in two on the edge where that is worst, and
its halves again: 2^s supernets with fewer candidates, each searched by itself. On an edge e that has not been split:

    g_o = d L_train / d (the weights that e's operations share), with e set to operation o alone and the other edges as they are
    D_oo' = 1 - <g_o, g_o'> / (|g_o| |g_o'| + 1e-6)                                     averaged over `batches` batches
    e's operations fall into two groups, none of one operation, with the least D within;   cut = sum of D - within
    the edge with the largest cut is split (`edge_score=cut_max`), or that with the least within (`within_min`)

Supernets that will be split train their weights alone, alpha at uniform; halves inherit weights and momenta. After the last split weights
and alpha begin anew and the inner method searches: `inner` is darts, darts_2nd, pcdarts, gdas or drnas. Of the 2^s cells found the one is
taken that scores best on validation images with its own supernet's weights; the log has all of them (`child_accuracy`). With
`choose="halving"` the cells are trained from scratch beside each other instead, and half of them are kept after 30 and again after 100 of
600 epochs, by the accuracy on validation images (a running mean that is nearly the last value); the better one is the result.

Taken from code (skhu101/GM-NAS @ a69837d): NAS-Bench-201 (WS-GM/README.md:30, exp_scripts/ws-so-darts-201.sh:43-53,
nasbench201/train_search.py:97-100) second order, alpha first, Nesterov, weight decay 5e-4, two splits after 15 epochs each and 30 in the
end (165 over all supernets), batch 48, cut_max; DARTS space (exp_scripts/darts-sota-ws-res.sh:29-36) first order, three splits after 2
epochs each and 15 in the end (134), batch 64, within_min, edges of the normal cell alone, set to one operation at its own weight
(`by_weight`), no `none`; 100 batches. Published: CIFAR-10 error 2.35 % (best, first order, readme).

Deviations from the paper: its text was not at hand. The shared weights are those of all cells' other edges and of the blocks between
stages; groups have two operations at least where there are four or more; a row keeps its sum when set to one operation, so edge
normalisation holds (our choices). At most an epoch's batches are compared. Where epochs or edges are too few, there are fewer splits.
Deviations from the script of the published numbers: on NAS-Bench-201 it chooses among the cells by asking the benchmark
(train_search.py:366), here by validation with the supernets' weights; its halving goes by test accuracy (successive_halving.py), here by
validation images. A weight without gradient counts as zero instead of shifting those behind it. The last supernets' learning rate runs
its whole course (NAS-Bench-201's stops half-way there).
Cost against DARTS: 2^s supernets of fewer candidates, and a backward pass an operation, edge and batch at each split (3,000 in
NAS-Bench-201). All supernets stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from oche.base import Count, Group, Natural, Share
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts, darts_2nd
from oche.methods.drnas import drnas
from oche.methods.gdas import gdas
from oche.methods.pcdarts import pcdarts
from oche.methods.racing import race
from oche.optim import average
from oche.search.begin import streams
from oche.search.bilevel import detached
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.selection import Selection
from oche.search.stages import Choose, Stage, Staged
from oche.search.state import Problem, SearchState
from oche.search.weights import same_shape
from oche.watch.probes import one_hot, supernet_accuracy

EdgeScore = Literal["cut_max", "within_min"]
INNER: dict[str, Callable[[], Method]] = {
    "darts": darts,
    "darts_2nd": darts_2nd,
    "pcdarts": pcdarts,
    "gdas": gdas,
    "drnas": drnas,
}

_SOURCE = "skhu101/GM-NAS @ a69837d"
_DARTS: dict[str, object] = {
    "stages.splits": 3,
    "stages.warm_up": 2 / 15,
    "stages.edge_score": "within_min",
    "stages.by_weight": True,
    "stages.first_kind": True,
}
PUBLISHED = {
    "nb201": Budget(165, 48, {**NB201_SETTINGS, "method.inner": "darts_2nd", "arch_first": True}, _SOURCE),
    "darts": Budget(134, 64, {"space.cells": 8, "space.channels": 16, "method.choose": "halving", **_DARTS}, _SOURCE),
}
SMOKE = {
    "toy": Budget(7, 16, {"stages.batches": 1}),
    "nb201": Budget(7, 16, {"space.cells": 1, "space.channels": 4, "stages.batches": 1}),
    "darts": Budget(3, 16, {"space.cells": 3, "space.channels": 4, "stages.batches": 1, "stages.first_kind": True}),
}
"""Our choice: a search in stages needs an epoch for each."""
BUDGETS = {"paper": PUBLISHED, "smoke": SMOKE}


# ------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Split:
    """A binary tree of supernets, level by level: number n is a half of number (n - 1) // 2.

    At most `splits` levels are split, after `warm_up` times the epochs of a last supernet; epochs left over go to the first.
    """

    splits: Natural = 2
    warm_up: Share = 0.5
    edge_score: EdgeScore = "cut_max"
    batches: Count = 100
    by_weight: bool = False
    first_kind: bool = False

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        splits, warm, final = self.shares(problem)
        number = len(ended)
        level = (number + 1).bit_length() - 1
        if level > splits:
            return None
        mask = half(ended[(number - 1) // 2], (number - 1) % 2) if number else {}
        note = f"supernet {number + 2 - 2**level} of {2**level}, {splits - level} splits to come"
        if level == splits:
            own = replace(method, callbacks=(*method.callbacks, Score(method.selection)))
            return Stage(problem.space, own, final if splits else problem.epochs, mask=mask, note=note)
        spare = 0 if number else problem.epochs - final * 2**splits - warm * (2**splits - 1)
        path = splits * warm + final
        own = replace(method, arch_start=1.0, callbacks=(*method.callbacks, Divide(method, self)))
        span = (level * warm / path, (level + 1) * warm / path)
        return Stage(problem.space, own, warm + spare, span, mask, inherit, note)

    def shares(self, problem: Problem) -> tuple[int, int, int]:
        """(levels that are split, epochs of a supernet on them, epochs of a last one). Raises UserError where nothing can be split."""
        edges = sum(len(ops) > 1 for group in self.scanned(problem.space.groups) for ops in group.ops)
        splits = min(self.splits, edges, (problem.epochs + 1).bit_length() - 2)
        if self.splits < 0 or self.batches < 1 or self.warm_up < 0 or splits < min(self.splits, 1):
            raise UserError(
                f"Split(splits={self.splits}, warm_up={self.warm_up}, batches={self.batches}) needs at least 3 epochs and an edge with "
                f"two operations; {problem.space.name} has {edges} such edges, and {problem.epochs} epochs were given: give more."
            )
        for final in range(problem.epochs // 2**splits, 0, -1):
            warm = max(1, round(self.warm_up * final))
            if final * 2**splits + warm * (2**splits - 1) <= problem.epochs:
                break
        return splits, warm, final

    def scanned(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        """The kinds of cell whose edges may be split."""
        return groups[:1] if self.first_kind else groups


@torch.no_grad()
def inherit(state: SearchState, ended: tuple[SearchState, ...]) -> None:
    """Weights and momenta of the supernet that was split; alpha at zero, that is uniform."""
    for t in state.alpha.values():
        t.zero_()
    if ended:
        state.weights.take_over(ended[(len(ended) - 1) // 2].weights, same_shape)


def best_child(problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Genotype:
    """The cell of the last supernet that is most accurate on validation images."""
    children = [state for state in ended if "gm_nas/accuracy" in state.memory]
    best = max(children, key=lambda state: float(state.memory["gm_nas/accuracy"]))
    return method.selection(best, best.problem)


@dataclass(frozen=True)
class Halving:
    """Keeps the last supernets' cell that wins a race of trainings from scratch, see `racing.race`."""

    protocol: str = "darts_cifar"
    until: tuple[int, ...] = (30, 100, 600)
    keep: tuple[int, ...] = (4, 2, 1)

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Genotype:
        children = [state for state in ended if "gm_nas/accuracy" in state.memory]
        cells = [method.selection(state, state.problem) for state in children]
        return cells[race(problem, cells, self.protocol, self.until, self.keep)]


CHOICES: dict[str, Choose] = {"validation": best_child, "halving": Halving()}


@dataclass(frozen=True)
class Score(Callback):
    """After the last epoch: the derived cell's accuracy on validation images, with the supernet's weights."""

    selection: Selection

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if state.epoch + 1 == state.problem.epochs:
            weights = one_hot(state.space, self.selection(state, state.problem))
            accuracy = supernet_accuracy(state, state.problem, weights, state.problem.data.val)
            state.memory["gm_nas/accuracy"] = torch.tensor(accuracy, dtype=torch.float64)
            record["child_accuracy"] = accuracy


# ------------------------------------------------------------------ where to split


@dataclass(frozen=True)
class Divide(Callback):
    """After the last epoch: the masks of both halves, kept in the state's memory, so that they are found once."""

    method: Method
    plan: Split

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if state.epoch + 1 < state.problem.epochs:
            return
        found = []
        for group, e in unsplit(state, self.plan.scanned(state.space.groups)):
            ops = state.alive(group)[e].nonzero().flatten()
            part, cut, within = partition(self.distances(state, group, e))
            found.append((cut if self.plan.edge_score == "cut_max" else -within, group, e, ops[list(part)]))
        score, group, e, ops = max(found, key=lambda row: row[0])
        for name, alive in ((g.name, state.alive(g)) for g in state.space.groups):
            for side in (0, 1):
                mask = alive.clone()
                if name == group.name:
                    mask[e, ops] &= side == 0
                    others = torch.ones(group.width, dtype=torch.bool).index_fill(0, ops, False)
                    mask[e, others] &= side == 1
                state.memory[f"gm_nas/half {side}/{name}"] = mask
        source, target = group.edges[e]
        record["split"] = (
            f"{group.name} {source}-{target}: {', '.join(group.ops[e][o] for o in ops.tolist())} | the rest"
        )
        record["split_score"] = score

    def distances(self, state: SearchState, group: Group, e: int) -> Tensor:
        """(n, n) D between the n operations that edge e has left."""
        stream, _ = streams(state.problem, self.method)
        ops = state.alive(group)[e].nonzero().flatten().tolist()
        strength = state.relaxation.strength(detached(state.alpha), group, state.draw("eval"))[e]
        shared = [t for name, t in state.theta.items() if is_shared(name, group, e)]
        count, total = min(self.plan.batches, stream.steps_per_epoch), torch.zeros(len(ops), len(ops))
        for i in range(count):
            draw = replace(state.draw("weight"), step=state.steps_before + state.step + i)
            batch, weights = stream.at(draw.step), state.op_weights(detached(state.alpha), draw)
            rows = []
            for o in ops:
                alone = {cell: w.clone() for cell, w in weights.items()}
                for cell in group.cells:
                    alone[cell][e] = torch.zeros_like(strength)
                    alone[cell][e, o] = strength[o] if self.plan.by_weight else weights[cell][e].sum()
                loss, _ = state.task_loss(alone, batch, draw)
                grads = torch.autograd.grad(loss, shared, materialize_grads=True)
                rows.append(torch.cat([grad.flatten() for grad in grads]))
            total += dissimilarity(torch.stack(average(state.problem.fabric, rows))).cpu() / count
        return total


def half(state: SearchState, side: int) -> dict[str, Tensor]:
    """{group: (E, O) bool}: what a half of this supernet keeps."""
    return {group.name: state.memory[f"gm_nas/half {side}/{group.name}"].cpu() for group in state.space.groups}


def unsplit(state: SearchState, groups: tuple[Group, ...]) -> Iterator[tuple[Group, int]]:
    """Edges that have all their operations, and more than one."""
    for group in groups:
        whole = (state.alive(group) == group.valid()).all(-1)
        yield from ((group, e) for e, ops in enumerate(group.ops) if whole[e] and len(ops) > 1)


def is_shared(name: str, group: Group, e: int) -> bool:
    """True if a weight belongs to the cells or to what lies between them, and not to edge e of the group's cells."""
    source, target = group.edges[e]
    own = any(name.startswith(f"body.cells.{cell}.edges.{source}-{target}.") for cell in group.cells)
    return name.startswith(("body.cells.", "body.reductions.")) and ".entries." not in name and not own


def dissimilarity(g: Tensor) -> Tensor:
    """(n, P) gradients -> (n, n) 1 - their cosine; 1 where one of them is zero."""
    norms = g.norm(dim=1)
    cosine: Tensor = g @ g.T / (norms[:, None] * norms[None, :] + 1e-6)
    return 1 - cosine


def partition(d: Tensor) -> tuple[tuple[int, ...], float, float]:
    """(the smaller of the two groups with the least D within both, cut, within), by trying all; the first of equals."""
    n, upper, found = len(d), d.double().triu(1), list[tuple[float, tuple[int, ...]]]()
    for size in range(min(2, n // 2), n // 2 + 1):
        for part in combinations(range(n), size):
            side = torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor(part), True)
            found.append((float(upper[side[:, None] == side].sum()), part))
    within, part = min(found)
    return part, float(upper.sum()) - within, within


def gm_nas(
    inner: Literal["darts", "darts_2nd", "pcdarts", "gdas", "drnas"] = "darts",
    splits: int = 2,
    edge_score: EdgeScore = "cut_max",
    choose: Literal["validation", "halving"] = "validation",
) -> Staged:
    """Supernets that are split where their gradients disagree.

    2^`splits` of them, each searched by `inner`; `choose` says how one of their cells is chosen.
    """
    base = INNER[inner]()
    method = replace(
        base,
        space={"darts.without": ("none",), "chain.sharing": "cell", "signal.sharing": "cell"},
        unfit=("grid",),
        unfit_why="it splits an edge of repeated cells, and a grid has every node once",
        papers=(*base.papers, "hu2022gmnas"),
    )
    return Staged("gm_nas", method, Split(splits, edge_score=edge_score), CHOICES[choose])
