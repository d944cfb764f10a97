"""RLNAS: the angle against a literal walk over all paths; identical weights turn by nothing; evolution finds the widest."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from oche.base import counted
from oche.genotype import Genotype
from oche.methods.rlnas import COMMON, KeepInitial, WidestAngle, angle, mixed, paths, products, rlnas
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.begin import begin, streams
from oche.search.loop import search
from oche.search.method import Method
from oche.search.state import SearchState
from oche.search.trainable import AllWeights
from oche.spaces.sampling import sample
from reference.real import digits, epochs_of, real_problem
from reference.tiny import tiny_data, tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


def turned(space: str, scale: float | None = None, **settings: object) -> SearchState:
    """A state whose operations' weights are scaled, or moved by noise, since they were drawn."""
    method = replace(rlnas(), trainable=AllWeights(affine=space == "darts"))  # as published
    state = begin(tiny_problem(space, **settings), method)
    KeepInitial().on_epoch_start(state)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in state.supernet.parameters():
            p.copy_(p * scale if scale is not None else p + 0.3 * torch.randn(p.shape, generator=rng))
    return state


class Weights:
    """All weights by name as they were drawn and as they are, flat; and what each operation adds to the two vectors."""

    def __init__(self, state: SearchState) -> None:
        self.shapes = {name: p.shape for name, p in state.supernet.named_parameters()}
        self.now = {name: p.detach().flatten() for name, p in state.supernet.named_parameters()}
        self.then = {name: state.memory[f"initial/{name}"].flatten() for name in self.now}
        self.darts = state.space.name == "darts"
        self.seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def op(self, cell: str, edge: str, op: str) -> tuple[list[Tensor], list[Tensor]]:
        path = f"body.cells.{cell}.edges.{edge}.ops"
        if f"{path}.{op}" not in self.seen:
            self.seen[f"{path}.{op}"] = self.vectors(path, op)
        return self.seen[f"{path}.{op}"]

    def vectors(self, path: str, op: str) -> tuple[list[Tensor], list[Tensor]]:
        """get_arch_vector of the DARTS space, get_arch_angle of NAS-Bench-201."""
        width = self.shapes[f"{path}.{'dil_conv_3x3.2' if self.darts else 'nor_conv_3x3.1'}.weight"][0]
        if op == "skip_connect" and f"{path}.skip_connect.even.weight" not in self.now:
            constant = [torch.eye(width).flatten()] if self.darts else []
            return constant, constant
        constant = [torch.ones(width, 3, 3).flatten() / 9] if "pool" in op else []
        names = [f"{path}.{op}.{inside}" for inside in INSIDE[op] if self.darts or "norm" not in inside]
        return constant + [self.then[n] for n in names], constant + [self.now[n] for n in names]


SEPARABLE = ["1.weight", "2.weight", "5.weight", "6.weight", "3.weight", "3.bias", "7.weight", "7.bias"]
DILATED = ["1.weight", "2.weight", "3.weight", "3.weight"]  # gamma for beta, as there
INSIDE = {
    "max_pool_3x3": ["norm.weight", "norm.bias"],
    "avg_pool_3x3": ["norm.weight", "norm.bias"],
    "skip_connect": ["even.weight", "odd.weight", "norm.weight", "norm.bias"],
    "sep_conv_3x3": SEPARABLE,
    "sep_conv_5x5": SEPARABLE,
    "dil_conv_3x3": DILATED,
    "dil_conv_5x5": DILATED,
    "nor_conv_1x1": ["1.weight"],
    "nor_conv_3x3": ["1.weight"],
}


def routes(nodes: range, ends: set[int], starts: list[int]) -> list[list[int]]:
    """config.paths: every increasing list of nodes from an input to an end."""
    found = []
    for start in starts:
        for size in range(len(nodes) + 1):
            for middle in combinations(nodes, size):
                if middle and middle[-1] in ends:
                    found.append([start, *middle])
    return found


def literal(state: SearchState, weights: Weights, genotype: Genotype) -> float:
    """The code's angle: every path of every cell, its weights joined, and what is common to all cells."""
    darts = weights.darts
    common = [n for n in weights.now if ".ops." not in n and not (darts and n.endswith("classifier.bias"))]
    then, now = [weights.then[n] for n in common], [weights.now[n] for n in common]
    lost = True
    for name, group in state.space.cell_groups().items():
        ops = {(c.source, c.target): c.op for c in genotype.groups[group.name]}
        last = max(t for _, t in group.edges)
        starts, nodes = ([0, 1], range(2, last + 1)) if darts else ([0], range(1, last + 1))
        for route in routes(nodes, set(nodes) if darts else {last}, starts):
            chosen = [ops.get(edge, "none") for edge in pairwise(route)]
            if "none" in chosen:
                continue
            lost = False
            for edge, op in zip(pairwise(route), chosen, strict=True):
                a, b = weights.op(name, f"{edge[0]}-{edge[1]}", op)
                then += a
                now += b
    if lost:
        return 0.0
    a, b = torch.cat(then), torch.cat(now)
    return math.acos(float(a @ b / (a.norm() * b.norm())))


@pytest.mark.parametrize(
    ("space", "count"), [("nb201", 40), ("darts", 40), pytest.param("darts", 400, marks=pytest.mark.slow)]
)
def test_the_angle_ranks_cells_as_the_code_does(space: str, count: int) -> None:
    """Kendall's tau is 1, and so are the angles themselves."""
    settings = {"channels": 4, "cells": 1} if space == "nb201" else {"channels": 4, "cells": 3}
    state = turned(space, **settings)
    table, rng, weights = products(state), counted(3), Weights(state)
    found, expected = [], []
    for _ in range(count):
        cell = sample(state.space, rng)
        found.append(angle(state, table, cell))
        expected.append(literal(state, weights, cell))
    assert found == pytest.approx(expected, abs=1e-9)
    order, other = (sorted(range(count), key=values.__getitem__) for values in (found, expected))
    assert order == other
    assert len(set(found)) > count / 2


def test_convolutions_alone_rank_otherwise() -> None:
    """The rule as it was: what it leaves out matters."""
    state = turned("darts", channels=4, cells=3)
    tables, rng = (products(state), products(state, "convolutions")), counted(3)
    cells = [sample(state.space, rng) for _ in range(40)]
    code, convolutions = ([angle(state, table, cell) for cell in cells] for table in tables)
    assert sorted(range(40), key=code.__getitem__) != sorted(range(40), key=convolutions.__getitem__)


def test_a_sum_of_convolutions_alone() -> None:
    """Against the kernels one by one."""
    state = turned("darts", channels=4, cells=3)
    table, weights = products(state, "convolutions"), Weights(state)
    group = state.space.groups[0]
    for op in ("sep_conv_3x3", "dil_conv_5x5", "max_pool_3x3"):
        expected = torch.zeros(3)
        for cell in group.cells:
            path = f"body.cells.{cell}.edges.0-2.ops.{op}."
            for name in [n for n in weights.now if n.startswith(path) and len(weights.shapes[n]) == 4]:
                a, b = weights.then[name], weights.now[name]
                expected += torch.stack([a @ b, a @ a, b @ b])
            if "pool" in op:
                expected += 4 / 9
        torch.testing.assert_close(table[group.name][group.entry(0, 2, op)], expected)


def test_the_angle_depends_on_no_scale_and_stands_roundings() -> None:
    state = turned("toy")
    table, cell = products(state), sample(state.space, counted(2))
    small = {name: t * 1e-9 for name, t in table.items()}
    assert angle(state, small, cell) == pytest.approx(angle(state, table, cell)) != 0.0
    for sign, expected in ((1, 0.0), (-1, math.pi)):
        over = {name: torch.zeros_like(t) for name, t in table.items()}
        over[COMMON] = torch.tensor([sign * (1 + 1e-12), 1.0, 1.0])
        assert angle(state, over, cell) == expected


def test_one_generation_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def planted(cell: Genotype, other: Genotype, probability: float, rng: torch.Generator) -> Genotype:
        asked.append(probability)
        return cell

    monkeypatch.setattr(sys.modules[WidestAngle.__module__], "mixed", planted)
    state = turned("toy")
    for epoch, generations in ((0, 1), (state.problem.epochs, 3)):
        asked.clear()
        WidestAngle(6, 4, 2, 3, 3)(replace(state, epoch=epoch), state.problem)
        assert asked == ([0.1] * 2 + [0.5] * 3) * generations


def test_a_cell_without_a_path_has_angle_zero() -> None:
    state = turned("nb201", channels=4, cells=1)
    cell = Genotype.parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "nb201")
    assert angle(state, products(state), cell) == 0.0


def test_the_published_evolutions() -> None:
    for space, numbers in (("darts", (50, 10, 25, 25, 20, 0.1)), ("nb201", (100, 30, 50, 50, 20, 0.1))):
        found = resolve(Request("rlnas", space=space, data=tiny_data(), budget="paper")).searcher
        assert isinstance(found, Method)
        assert found.selection == WidestAngle(*numbers, rule="code")
        assert found.trainable == AllWeights(affine=space == "darts")
        assert found.clip == (5.0 if space == "darts" else None)


@pytest.mark.slow
def test_on_digits_the_angle_opens_and_the_labels_say_nothing() -> None:
    torch.set_default_dtype(torch.float32)
    told: list[dict[str, Any]] = []
    problem = real_problem("nb201", digits(), 3, listener=epochs_of(told))
    state = search(problem, rlnas()).state
    angles = [record["angle"] for record in told]
    assert 0.05 < angles[0] < angles[1] < angles[2] < 1.6
    assert told[-1]["weight_accuracy"] < 0.25, "labels are random"
    assert state.alpha["cell/alpha"].abs().max() == 0


def test_identical_and_scaled_weights_have_not_turned() -> None:
    for scale in (1.0, 3.0):
        state = turned("toy", scale)
        table, rng = products(state), counted(3)
        for _ in range(5):
            assert angle(state, table, sample(state.space, rng)) == pytest.approx(0.0, abs=1e-6)


def test_paths_through_none_are_dropped() -> None:
    space = begin(tiny_problem("nb201", channels=4, cells=1), rlnas()).space
    (group,) = space.groups
    text = "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|nor_conv_1x1~1|nor_conv_3x3~2|"
    cell = Genotype.parse(text, "nb201")
    counts = paths(group, cell.groups["cell"], concat=False)
    assert {(c.source, c.target): n for c, n in counts.items()} == {(0, 2): 1, (1, 2): 0, (1, 3): 0, (2, 3): 1}


def test_children_are_cells_of_the_space() -> None:
    state = turned("darts", channels=4, cells=3, nodes=3)
    rng = counted(5)
    one, two = sample(state.space, rng), sample(state.space, rng)
    for probability in (0.0, 0.5, 1.0):
        child = mixed(one, two, probability, rng)
        state.space.check(child)
        assert (child == one, child == two) == (probability == 0.0, probability == 1.0)


def test_evolution_finds_the_widest_angle_of_the_toy_space() -> None:
    """27 cells: all of them can be looked at."""
    state = turned("toy")
    state = replace(state, epoch=state.problem.epochs)
    table, rng = products(state), counted(9)
    widest = max(angle(state, table, sample(state.space, rng)) for _ in range(400))
    assert angle(state, table, WidestAngle()(state, state.problem)) == pytest.approx(widest)


def test_weights_learn_from_random_labels_on_all_images() -> None:
    problem = tiny_problem("toy", epochs=2, count=48)
    weights, _ = streams(problem, rlnas())
    assert len(weights.images) == 48
    assert not torch.equal(weights.images.targets, problem.data.train.targets)
    state = search(problem, replace(rlnas(), selection=WidestAngle(8, 4, 4, 4, 2))).state
    assert not state.arch_optimizer.state
    assert any(
        not torch.equal(p, state.memory[f"initial/{n}"])
        for n, p in state.supernet.named_parameters()
        if f"initial/{n}" in state.memory
    )
