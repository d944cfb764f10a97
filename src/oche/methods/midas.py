"""MIDAS: op weights by attention, for each image and patch. K. Subbotko. "Mosaic Input-Specific ...", arXiv 2602.17700, 2026.

    q = Wq patches(x),   k_o = Wk patches(op_o(x))                 means over a grid of patches p, no biases
    w_o(p) = softmax over o of <q(p), k_o(p)> / sqrt(C),   w_o = mean over p of w_o(p)            for every image by itself
    y = sum_o w_o op_o(x)

and without a parameter, at the end: of the edges into a node those `keep` stay whose sum is most like the sum of all of them, by the cosine
of the two, averaged over images. An edge's operation is the one that its attention gave most, summed over images and patches.

From the abstract (stated there): alpha is replaced by op weights from self-attention that depend on the input and are computed for each
patch; a topology rule without parameters that selects the two incoming edges of a node. Our reading: queries from the edge's input, keys
from the outputs, patches averaged, the cosine; one level, where the attention learns with the weights on their half, and is measured on the
other. Ours too are all constants: 4 x 4 patches, C features, the budgets of DARTS.
Published: DARTS space, CIFAR-10 97.42 %, CIFAR-100 83.38 %; NAS-Bench-201 test 94.36 / 73.51 / 46.34.

Deviations from the paper: not known, its body was not at hand.
Deviations from the script of the published numbers: no code is public.
Cost against DARTS: no architecture steps, attention over patches on every edge, and after every epoch two passes over alpha's half.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Count, Draw, Group
from oche.genotype import Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS
from oche.methods.weighing import Measured, OwnWeights, Weigher
from oche.search.method import Method
from oche.search.record import scored
from oche.search.selection import argmax
from oche.search.state import Problem, SearchState
from oche.spaces.edges import Candidate, Edge
from oche.spaces.networks import Cell
from oche.spaces.ops import run

PUBLISHED = {
    "darts": Budget(50, 64, {"space.cells": 8, "space.channels": 16}, "ours: DARTS's, nothing else was at hand"),
    "nb201": Budget(
        50,
        64,
        {path: value for path, value in NB201_SETTINGS.items() if path != "arch_first"},
        "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e",
    ),
}
BUDGETS = {"paper": PUBLISHED}

Subsets = dict[str, dict[tuple[int, ...], Tensor]]
"""Group -> edges into one node that might stay together -> how much their sum is like the sum of all, summed over images and cells."""


class PatchAttention(Weigher):
    """w (B, O, P): for every image and patch, the softmax over operations of <Wq x, Wk op_o(x)> / sqrt(C), of those that `there` names."""

    def __init__(self, channels: int, patches: int) -> None:
        super().__init__()
        self.patches = patches
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P, C): the patches' means."""
        return F.adaptive_avg_pool2d(x, self.patches).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, outputs: Sequence[Tensor], there: Tensor) -> Tensor:
        q = self.query(self.tokens(x))
        k = torch.stack([self.key(self.tokens(y)) for y in outputs], dim=1)
        logits = (k * q[:, None]).sum(-1) / q.shape[-1] ** 0.5
        out: Tensor = logits.masked_fill(~there[:, None], torch.finfo(logits.dtype).min).softmax(1)
        return out


class _PatchWeighed(Edge):
    def __init__(self, ops: nn.ModuleDict, channels: int, patches: int) -> None:
        super().__init__()
        self.ops = ops
        self.weigher = PatchAttention(channels, patches)

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        outputs = [run(op, x, draw) for op in self.ops.values()]
        weights = self.weigher(x, outputs, w != 0).mean(-1) * w
        terms = [weights[:, o, None, None, None] * y for o, y in enumerate(outputs)]
        out: Tensor = sum(terms[1:], terms[0])
        return out


@dataclass(frozen=True)
class PatchWeighed:
    """The edge above: candidates weighed by attention over `patches` x `patches` patches of every image."""

    patches: Count = 4

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        return _PatchWeighed(nn.ModuleDict({op: build(op, channels) for op in ops}), channels, self.patches)


@dataclass(frozen=True)
class Alike:
    """Each node keeps the edges whose sum is most like the sum of all into it; each edge keeps its strongest operation."""

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        found, choices = subsets(state), {}
        for group, strength in state.strengths():
            alive = state.alive(group)
            if group.keep is None:
                choices[group.name] = argmax(group, strength, alive)
                continue
            usable = alive & ~group.named("none")
            best = argmax(group, strength, usable)
            choices[group.name] = tuple(best[e] for e in kept(group, usable.any(-1), found[group.name]))
        return Genotype(problem.space.name, choices, problem.space.sharing)


def kept(group: Group, usable: Tensor, alike: dict[tuple[int, ...], Tensor]) -> list[int]:
    """The edges of the best subset of every node, of those that have an operation left.

    A kind of cell that the network has none of was never measured, so that all its subsets are equal.
    """
    assert group.keep is not None
    edges: list[int] = []
    for numbers in group.into().values():
        found = combinations([e for e in numbers if usable[e]], group.keep)
        edges += found[0] if len(found) == 1 else max((float(alike[s]) if alike else 0.0, s) for s in found)[1]
    return sorted(edges)


def combinations(numbers: Sequence[int], keep: int) -> list[tuple[int, ...]]:
    """All subsets of `keep` of the numbers; all of them together where there are no more."""
    return list(itertools.combinations(numbers, min(keep, len(numbers))))


def subsets(state: SearchState) -> Subsets:
    """For every node that has edges too many, how like their sum each subset's is, over alpha's images without augmentation."""
    found: Subsets = {group.name: {} for group in state.space.groups}
    with ExitStack() as stack:
        for name, group in state.space.cell_groups().items():
            cell = state.supernet.body.cells[name]
            assert isinstance(cell, Cell)
            if group.keep is not None:
                for hook in listen(cell, group, found[group.name]):
                    stack.callback(hook.remove)
        if any(group.keep is not None for group in state.space.groups):
            scored(state, state.problem, state.arch_images)
    return found


def listen(cell: Cell, group: Group, found: dict[tuple[int, ...], Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that keep the edges' outputs until the cell is through, and then compare."""
    outputs: dict[int, Tensor] = {}
    assert group.keep is not None
    keep = group.keep

    def compare(module: nn.Module, given: object, out: Tensor) -> None:
        for numbers in group.into().values():
            if len(numbers) <= keep:
                continue
            whole = sum((outputs[e] for e in numbers[1:]), outputs[numbers[0]]).flatten(1)
            for subset in combinations(numbers, keep):
                part = sum((outputs[e] for e in subset[1:]), outputs[subset[0]]).flatten(1)
                like = F.cosine_similarity(part, whole, dim=1).double().sum().cpu()
                found[subset] = found.get(subset, torch.zeros((), dtype=torch.float64)) + like
        outputs.clear()

    hooks = [cell.register_forward_hook(compare)]
    for e, edge in enumerate(cell.edges.values()):

        def remember(module: nn.Module, given: object, out: Tensor, e: int = e) -> None:
            outputs[e] = out.detach()

        hooks.append(edge.register_forward_hook(remember))
    return hooks


def midas(patches: int = 4) -> Method:
    """Op weights by attention, for each image and patch.

    On a grid of `patches` x `patches` patches. A labelled reading.
    """
    return Method(
        name="midas",
        edge=PatchWeighed(patches),
        relaxation=OwnWeights(),
        arch_start=1.0,
        selection=Measured(Alike()),
        unfit=("grid", "chain", "signal", "sase"),
        unfit_why="its edges compare what goes in with what comes out, which edges that change width or are gates cannot",
        papers=("subbotko2026midas",),
    )
