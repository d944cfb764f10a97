"""RLNAS: Neural Architecture Search with Random Labels. X. Zhang et al. CVPR 2021, arXiv 2101.11834.

A uniform single-path supernet learns random labels, drawn once, on all training images. No alpha, no validation: a cell is worth
the angle by which its weights turned while they learned, which says how easily it converges:

    angle = arccos( <v_0, v_T> / (|v_0| |v_T|) )

v joins the weights along every path from a cell's input to its output, over all cells, at initialisation (0) and after training (T); so
an operation counts once for each path through it. A pool counts as a depthwise kernel of constants 1/9 per path; a path through `none` is
left out; what all cells have in common, stem, entries, reductions and classifier, counts once. The largest angle is found by evolution: a
population of 50, the 10 best stay, 25 mutations, 25 crossovers, 20 generations.

What counts differs between the repository's two searches, and so it does here:

    DARTS space      batch norms too, which are affine; an identity is the unit matrix (C, C); of a dilated convolution's batch norm gamma
                     counts twice and beta not at all (a slip); not the classifier's bias
    NAS-Bench-201    convolutions, which have no affine batch norm beside them in the cells; an identity is nothing; the classifier's bias
                     too; 0 where no path is left

`rule="convolutions"` counts the operations' convolutions and pools alone, in every space.

Taken from code (megvii-model/RLNAS @ 6a6d838). DARTS space (darts_search_space/cifar10/rlnas/evolution_search/test_server.py:126-272,
config.py:51-56): the numbers above, mutation probability 0.1, 250 epochs, batch 64, SGD 0.025 -> 0.001. NAS-Bench-201
(nas_bench_201/exps/algos/weight_angle.py:50-138, rlnas_evolution_search_with_angle.py:51-57): a population of 100, 30 stay, 50 and 50,
Nesterov, weight decay 5e-4, gradients not clipped. Published, NAS-Bench-201 test (its README, searched on each data set):
93.45 / 70.71 / 43.70.

Deviations from the paper: it has no batch norms and no unit matrices in v; they are the code's (above).
Deviations from the script of the published numbers: a mutation and a crossover change whole nodes (their incoming edges and operations),
so that every child is a cell of the space, where search.py:198-212 changes edges and mends the cell; children may repeat cells already
seen, where the code fills up with random ones (search.py:286); on CIFAR-10 the NAS-Bench-201 script trains on half of the images
(nas_bench_201/exps/algos/rlnas_train_supernet.py:77, cifar-split), and on all of the other sets, here on all of each.
Cost against DARTS: one operation per edge in each pass and no architecture steps; the evolution looks up inner products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from oche.base import Count, Group, Natural, Share, counted
from oche.data import RandomTargets, Whole
from oche.genotype import Choice, Genotype
from oche.methods.budgets import Budget
from oche.methods.random_search_ws import OneCell
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from oche.search.trainable import AllWeights
from oche.spaces.edges import SampledOps
from oche.spaces.networks import Cell
from oche.spaces.sampling import sample

_SOURCE = "megvii-model/RLNAS @ 6a6d838"

PUBLISHED = {
    "darts": Budget(250, 64, {"space.cells": 8, "space.channels": 16}, _SOURCE),
    "nb201": Budget(
        250,
        64,
        {
            "space.cells": 5,
            "space.channels": 16,
            "weight_optimizer.nesterov": True,
            "weight_optimizer.weight_decay": 5e-4,
            "clip": "none",
            "trainable.affine": False,
            "selection.population": 100,
            "selection.parents": 30,
            "selection.mutations": 50,
            "selection.crossovers": 50,
        },
        _SOURCE,
    ),
}
BUDGETS = {"paper": PUBLISHED}

Rule = Literal["code", "convolutions"]

Products = dict[str, Tensor]
"""Group -> (E, O, 3): <v_0, v_T>, <v_0, v_0> and <v_T, v_T> of every candidate, summed over the group's cells; COMMON -> (3,)."""

COMMON = ""
"""Names the products of the weights that all cells have in common."""


@dataclass(frozen=True)
class KeepInitial(Callback):
    """Remembers the supernet's weights as they were drawn, and writes the chosen cell's angle into the log."""

    rule: Rule = "code"

    def on_epoch_start(self, state: SearchState) -> None:
        if state.step == 0:
            for name, p in state.supernet.named_parameters():
                state.memory[f"initial/{name}"] = p.detach().clone()

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record["angle"] = angle(
            state, products(state, self.rule), Genotype.parse(str(record["genotype"]), state.space.name)
        )


@dataclass(frozen=True)
class WidestAngle:
    """The cell whose weights turned most, by evolution; after each epoch but the last of one generation only. `rule`: see the module."""

    population: Count = 50
    parents: Count = 10
    mutations: Natural = 25
    crossovers: Natural = 25
    generations: Count = 20
    probability: Share = 0.1
    rule: Rule = "code"

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        rng = counted(problem.seed, "angle evolution", state.epoch)
        table, worth = products(state, self.rule), dict[str, float]()

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
def products(state: SearchState, rule: Rule = "code") -> Products:
    """The three inner products of every candidate, and of what all cells have in common."""
    table = {g.name: torch.zeros(len(g.edges), g.width, 3, dtype=torch.float64) for g in state.space.groups}
    own = dict(state.supernet.named_parameters())
    of = parts_of(own)
    for name, group in state.space.cell_groups().items():
        cell = state.supernet.body.cells[name]
        assert isinstance(cell, Cell)
        for e, (source, target) in enumerate(group.edges):
            for o, op in enumerate(group.ops[e]):
                path = f"body.cells.{name}.edges.{source}-{target}.ops.{op}"
                entry = table[group.name][e, o]
                for weight in of.get(path, ()):
                    if rule == "convolutions" and own[weight].ndim < 4:
                        continue
                    slip = op.startswith("dil_conv") and weight.endswith(".bias")
                    entry += product(state, own, f"{weight.removesuffix('bias')}weight" if slip else weight)
                module = state.supernet.get_submodule(path)
                if any(isinstance(m, nn.MaxPool2d | nn.AvgPool2d) for m in module.modules()):
                    entry += channels(cell) / 9  # C kernels of nine constants 1/9
                if rule == "code" and cell.concat and isinstance(module, nn.Identity):
                    entry += channels(cell)
    table[COMMON] = torch.zeros(3, dtype=torch.float64)
    if rule == "code":
        whole = any(isinstance(cell, Cell) and not cell.concat for cell in state.supernet.body.cells.values())
        for weight in of[COMMON]:
            if whole or not weight.endswith("classifier.bias"):
                table[COMMON] += product(state, own, weight)
    return table


def parts_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Weights by the path of the operation that they lie in, or COMMON."""
    found: dict[str, list[str]] = {COMMON: []}
    for name in names:
        before, dot, inside = name.partition(".ops.")
        found.setdefault(f"{before}.ops.{inside.split('.')[0]}" if dot else COMMON, []).append(name)
    return found


def product(state: SearchState, own: Mapping[str, Tensor], name: str) -> Tensor:
    """(3,): a weight's three inner products."""
    now = own[name].detach().double().flatten()
    then = state.memory.get(f"initial/{name}", now).double().flatten()
    return torch.stack([then @ now, then @ then, now @ now]).cpu()


def channels(cell: Cell) -> int:
    """The channels of the cell's nodes: those of the convolution that has most."""
    sizes = [m.out_channels for edge in cell.edges.values() for m in edge.modules() if isinstance(m, nn.Conv2d)]
    return max(sizes, default=1)


def angle(state: SearchState, table: Products, cell: Genotype) -> float:
    """In radians; 0 for a cell without weights on any path."""
    total, some = table[COMMON].clone(), False
    for group in [group for group in state.space.groups if group.cells]:
        concat = state.supernet.body.cells[group.cells[0]].concat
        assert isinstance(concat, bool)
        for c, count in paths(group, cell.groups[group.name], concat).items():
            total += count * table[group.name][group.entry(c.source, c.target, c.op)]
            some |= count > 0
    across, then, now = total.tolist()
    return math.acos(max(-1.0, min(1.0, across / math.sqrt(then * now)))) if some and then * now > 0 else 0.0


def paths(group: Group, choices: tuple[Choice, ...], concat: bool) -> dict[Choice, int]:
    """Each choice that is not `none` -> the number of paths through it from the cell's inputs to its output."""
    live = [c for c in choices if c.op != "none"]
    nodes = sorted(group.into())
    inputs = sorted({source for source, _ in group.edges} - set(nodes))
    into = dict.fromkeys(inputs, 1)
    for node in nodes:
        into[node] = sum(into[c.source] for c in live if c.target == node)
    out = dict[int, int]()
    for node in reversed(nodes):
        ends = 1 if concat or node == nodes[-1] else 0
        out[node] = ends + sum(out[c.target] for c in live if c.source == node)
    return {c: into[c.source] * out[c.target] for c in live}


def rlnas(rule: Rule = "code") -> Method:
    """Random labels, and the cell whose weights turn most.

    `rule` says which weights count.
    """
    return Method(
        name="rlnas",
        relaxation=OneCell(),
        edge=SampledOps(),
        trainable=AllWeights(affine=True),
        arch_start=1.0,
        split=Whole(),
        targets=RandomTargets(),
        callbacks=(KeepInitial(rule),),
        selection=WidestAngle(rule=rule),
        space={"chain.sharing": "cell", "signal.sharing": "cell"},
        unfit=("grid",),
        unfit_why="its angle counts the paths through a cell, and a grid is one graph of many inputs and outputs",
        papers=("zhang2021rlnas",),
    )
