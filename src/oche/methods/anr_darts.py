"""ANR-DARTS: a norm of the architecture parameters, and redundant edges pruned. Zeng, Wu, Xia, Xiang. Sci. Sin. Inform. 54(9), 2024.

    L_alpha = L_val + lambda_t  sum over cell types of mean_e N(v_e)          v_e = softmax(alpha_e) or alpha_e

and on the genotype, with the supernet's weights: the edge without which the network is best on alpha's half is dropped, as long as that
costs less than `least` of the score and every node keeps an input. Then the same again. First-order DARTS otherwise.

From its abstract alone: that a norm of the architecture parameters stabilises the search, and that a pruning of redundant edges follows.
Which norm, of what, with which sign and weight, and how an edge is found redundant, is our reading, and so are all constants: the squared
norm of the softmax, whose minimum is the uniform distribution, at lambda 1 -> 0 over the search, so that no operation wins early; an edge
is dropped where the score is better without it (`least=0`). `start` and `end` below 0 sharpen instead. Budgets are those of DARTS.
Published: no figure was at hand; the abstract names CIFAR-10, CIFAR-100, mini-ImageNet and a set of fetal heart planes.

Deviations from the paper: not known, its text was not at hand.
Deviations from the script of the published numbers: no code is public. Nothing is trained between two drops. Where a node keeps all its
edges (NAS-Bench-201) a dropped edge has `none`.
Cost against DARTS: the same passes, and at the end one pass over alpha's half for each edge that might be dropped, per drop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Group, Params
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.methods.darts import darts
from oche.schedule import Linear, Schedule
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.relaxations import masked_softmax
from oche.search.selection import Selection, TopK
from oche.search.state import Problem, SearchState
from oche.search.terms import OfAlpha
from oche.watch.probes import one_hot, supernet_accuracy

Norm = Literal["l1", "l2", "squared", "max"]


@dataclass(frozen=True)
class AlphaNorm(OfAlpha):
    """weight(t) times the sum over groups of the mean over edges of the norm of v_e, over the candidates that remain.

    v_e is softmax(alpha_e), or alpha_e itself (`of="alpha"`); "squared" is the square of "l2".
    """

    weight: Schedule = Linear(1.0, 0.0)
    norm: Norm = "squared"
    of: Literal["softmax", "alpha"] = "softmax"

    def __post_init__(self) -> None:
        if self.norm == "l1" and self.of == "softmax":
            raise UserError("norm=l1 of a softmax is 1 whatever alpha is: take another norm, or of=alpha.")

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("alpha")
        means = []
        for group in state.space.groups:
            logits = alpha[f"{group.name}/alpha"]
            alive = state.alive(group).to(logits.device)
            v = masked_softmax(logits, group, draw) if self.of == "softmax" else logits.masked_fill(~alive, 0.0)
            means.append(normed(v, self.norm)[alive.any(-1)].mean())
        return self.weight(draw.progress) * torch.stack(means).sum()


def normed(v: Tensor, norm: Norm) -> Tensor:
    """(E,): the norm of every row of v (E, O)."""
    if norm == "squared":
        return v.square().sum(-1)
    length: Tensor = torch.linalg.vector_norm(v, {"l1": 1, "l2": 2, "max": torch.inf}[norm], dim=-1)
    return length


@dataclass(frozen=True)
class LoggedNorm(Callback):
    """Writes the norm's weight at the epoch's end into its record."""

    weight: Schedule

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record["norm_weight"] = self.weight(state.progress)


@dataclass(frozen=True)
class Pruned:
    """`inner`, and after the last epoch without the edges that are worth less than `least` of the supernet's score on alpha's half."""

    inner: Selection = TopK()
    least: float = 0.0

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        genotype = self.inner(state, problem)
        if state.epoch < problem.epochs:
            return genotype
        score = worth(state, genotype)
        while found := max(((worth(state, g), g) for g in lighter(state, genotype)), key=lambda f: f[0], default=None):
            if score - found[0] >= self.least:
                break
            score, genotype = found
        return genotype


def worth(state: SearchState, genotype: Genotype) -> float:
    """The score of the genotype on alpha's half, with the supernet's weights."""
    with torch.no_grad():
        return supernet_accuracy(state, state.problem, one_hot(state.space, genotype), state.arch_images)


def lighter(state: SearchState, genotype: Genotype) -> Iterator[Genotype]:
    """The genotype without one edge, for each that can be spared: its node has another input that is not `none`."""
    for group in state.space.groups:
        choices = genotype.groups[group.name]
        for n, c in enumerate(choices):
            inputs = [d for d in choices if d.target == c.target and d.op != "none"]
            if c.op == "none" or len(inputs) < 2 or not group.cells:
                continue
            if spared := without(group, choices, n):
                yield replace(genotype, groups={**genotype.groups, group.name: spared})


def without(group: Group, choices: tuple[Choice, ...], n: int) -> tuple[Choice, ...]:
    """The choices without number n, or with `none` in its place where nodes keep all their edges; empty where that is no candidate."""
    if group.keep is not None:
        return choices[:n] + choices[n + 1 :]
    c = choices[n]
    if "none" not in group.ops[group.edges.index((c.source, c.target))]:
        return ()
    return (*choices[:n], replace(c, op="none"), *choices[n + 1 :])


def anr_darts(
    start: float = 1.0,
    end: float = 0.0,
    norm: Norm = "squared",
    of: Literal["softmax", "alpha"] = "softmax",
    least: float = 0.0,
) -> Method:
    """DARTS with a norm on alpha, and redundant edges pruned.

    The norm's weight goes from `start` to `end`; an edge goes that is worth less than `least` of the score. A labelled reading.
    """
    weight = Linear(start, end)
    return replace(
        darts(),
        name="anr_darts",
        outer_terms=(AlphaNorm(weight, norm, of),),
        callbacks=(LoggedNorm(weight),),
        selection=Pruned(least=least),
        papers=("liu2019darts", "zeng2024anr"),
    )
