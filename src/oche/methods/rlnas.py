"""RLNAS: Neural Architecture Search with Random Labels. X. Zhang et al. CVPR 2021, arXiv 2101.11834.

A uniform single-path supernet learns random labels, drawn once, on all training images. No alpha, no validation: a cell is worth
the angle by which its weights turned while they learned, which says how easily it converges:

    angle = arccos( <v_0, v_T> / (|v_0| |v_T|) )

v joins the convolutions along every path from a cell's input to its output, over all cells, at initialisation (0) and after
training (T); so an operation counts once for each path through it. A pool counts as a depthwise kernel of constants 1/9, an
identity adds nothing, a path through `none` is left out. The largest angle is found by evolution: a population of 50, the 10 best
stay, 25 mutations, 25 crossovers, 20 generations.

Taken from code (megvii-model/RLNAS): these numbers, mutation probability 0.1, 250 epochs, batch 64, SGD 0.025 -> 0.001. Published,
NAS-Bench-201 test (its README, searched on each data set): 93.45 / 70.71 / 43.70.

Deviations from the paper: none known.
Deviations from the authors' code: a mutation and a crossover change whole nodes (their incoming edges and operations), so that
every child is a cell of the space; the stem, reductions and classifier, common to all cells, are left out of v.
Cost against DARTS: one operation an edge in each pass and no architecture steps; the evolution looks up inner products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from oche.base import Group, counted
from oche.data import RandomTargets, Whole
from oche.genotype import Choice, Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS
from oche.methods.random_search_ws import OneCell
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from oche.spaces.base import Cell
from oche.spaces.edges import SampledOps
from oche.spaces.sampling import sample

PUBLISHED = {
    "darts": Budget(250, 64, {"space.cells": 8, "space.channels": 16}, "megvii-model/RLNAS @ 6a6d838"),
    "nb201": Budget(250, 64, NB201_SETTINGS, "megvii-model/RLNAS @ 6a6d838"),
}
BUDGETS = {"paper": PUBLISHED}

Products = dict[str, Tensor]
"""Group -> (E, O, 3): <v_0, v_T>, <v_0, v_0> and <v_T, v_T> of every candidate, summed over the group's cells."""


@dataclass(frozen=True)
class KeepInitial(Callback):
    """Remembers the supernet's convolutions as they were drawn."""

    def on_epoch_start(self, state: SearchState) -> None:
        if state.step == 0:
            for name, p in state.supernet.named_parameters():
                if p.ndim == 4 and ".ops." in name:
                    state.memory[f"initial/{name}"] = p.detach().clone()


@dataclass(frozen=True)
class WidestAngle:
    """The cell whose weights turned most, by evolution; after each epoch but the last of one generation only."""

    population: int = 50
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    generations: int = 20
    probability: float = 0.1

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        rng = counted(problem.seed, "angle evolution", state.epoch)
        table, worth = products(state), dict[str, float]()

        def fitness(cell: Genotype) -> float:
            if str(cell) not in worth:
                worth[str(cell)] = angle(state, table, cell)
            return worth[str(cell)]

        people = [sample(problem.space, rng) for _ in range(self.population)]
        for _ in range(self.generations if state.epoch >= problem.epochs else 1):
            best = sorted({str(cell): cell for cell in people}.values(), key=lambda cell: -fitness(cell))[
                : self.parents
            ]

            def parent(best: list[Genotype] = best) -> Genotype:
                return best[int(torch.randint(len(best), (), generator=rng))]

            people = list(best)
            people += [
                mixed(parent(), sample(problem.space, rng), self.probability, rng) for _ in range(self.mutations)
            ]
            people += [mixed(parent(), parent(), 0.5, rng) for _ in range(self.crossovers)]
        return max(people, key=fitness)


def mixed(cell: Genotype, other: Genotype, probability: float, rng: torch.Generator) -> Genotype:
    """The cell with each node's choices taken from the other with this probability."""
    groups = {}
    for name, choices in cell.groups.items():
        nodes = sorted({c.target for c in choices})
        taken = {n for n in nodes if float(torch.rand((), generator=rng)) < probability}
        kept = [c for c in choices if c.target not in taken] + [c for c in other.groups[name] if c.target in taken]
        groups[name] = tuple(sorted(kept, key=lambda c: (c.target, c.source)))
    return replace(cell, groups=groups)


@torch.no_grad()
def products(state: SearchState) -> Products:
    """The three inner products of every candidate."""
    table = {g.name: torch.zeros(len(g.edges), g.width, 3, dtype=torch.float64) for g in state.space.groups}
    for name, group in state.space.cell_groups().items():
        cell = state.supernet.body.cells[name]
        assert isinstance(cell, Cell)
        for e, (source, target) in enumerate(group.edges):
            for o, op in enumerate(group.ops[e]):
                path = f"body.cells.{name}.edges.{source}-{target}.ops.{op}"
                module = state.supernet.get_submodule(path)
                for inside, p in module.named_parameters():
                    if p.ndim == 4:
                        now, then = (
                            p.double().flatten(),
                            state.memory.get(f"initial/{path}.{inside}", p).double().flatten(),
                        )
                        table[group.name][e, o] += torch.stack([then @ now, then @ then, now @ now]).cpu()
                if any(isinstance(m, nn.MaxPool2d | nn.AvgPool2d) for m in module.modules()):
                    table[group.name][e, o] += channels(cell) / 9  # C kernels of nine constants 1/9
    return table


def channels(cell: Cell) -> int:
    """Of the cell's nodes: those of its first convolution that keeps them."""
    sizes = [m.out_channels for edge in cell.edges.values() for m in edge.modules() if isinstance(m, nn.Conv2d)]
    return max(sizes, default=1)


def angle(state: SearchState, table: Mapping[str, Tensor], cell: Genotype) -> float:
    """In radians; 0 for a cell without weights on any path."""
    total = torch.zeros(3, dtype=torch.float64)
    for group in [group for group in state.space.groups if group.cells]:
        concat = state.supernet.body.cells[group.cells[0]].concat
        assert isinstance(concat, bool)
        for c, count in paths(group, cell.groups[group.name], concat).items():
            total += count * table[group.name][group.entry(c.source, c.target, c.op)]
    across, then, now = total.tolist()
    return math.acos(max(-1.0, min(1.0, across / math.sqrt(then * now)))) if then * now > 0 else 0.0


def paths(group: Group, choices: tuple[Choice, ...], concat: bool) -> dict[Choice, int]:
    """Each choice that is not `none` -> the number of paths through it from the cell's inputs to its output."""
    live = [c for c in choices if c.op != "none"]
    nodes = sorted(group.into())
    inputs = sorted({source for source, _ in group.edges} - set(nodes))
    into = dict.fromkeys(inputs, 1)
    for node in nodes:
        into[node] = sum(into[c.source] for c in live if c.target == node)
    out = dict.fromkeys(inputs, 0)
    for node in reversed(nodes):
        ends = 1 if concat or node == nodes[-1] else 0
        out[node] = ends + sum(out[c.target] for c in live if c.source == node)
    return {c: into[c.source] * out[c.target] for c in live}


def rlnas() -> Method:
    """Random labels, and the cell whose weights turn most."""
    return Method(
        name="rlnas",
        relaxation=OneCell(),
        edge=SampledOps(),
        arch_start=1.0,
        split=Whole(),
        targets=RandomTargets(),
        callbacks=(KeepInitial(),),
        selection=WidestAngle(),
        unfit=("grid",),
        unfit_why="its angle counts the paths through a cell, and a grid is one graph of many inputs and outputs",
        papers=("zhang2021rlnas",),
    )
