"""RLNAS: the angle against a literal walk over all paths; identical weights turn by nothing; evolution finds the widest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oche.base import counted
from oche.genotype import Genotype
from oche.methods.rlnas import KeepInitial, WidestAngle, angle, mixed, paths, products, rlnas
from oche.search.begin import begin, streams
from oche.search.loop import search
from oche.search.state import SearchState
from oche.spaces.base import Cell
from oche.spaces.sampling import sample
from reference.tiny import tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


def turned(space: str, scale: float | None = None, **settings: object) -> SearchState:
    """A state whose operations' weights are scaled, or moved by noise, since they were drawn."""
    state = begin(tiny_problem(space, **settings), rlnas())
    KeepInitial().on_epoch_start(state)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in state.supernet.parameters():
            p.copy_(p * scale if scale is not None else p + 0.3 * torch.randn(p.shape, generator=rng))
    return state


def literal(state: SearchState, cell: Genotype) -> float:
    """Every path of every cell walked one by one, its weights joined."""
    then: list[Tensor] = []
    now: list[Tensor] = []
    for name, group in state.space.cell_groups().items():
        module = state.supernet.body.cells[name]
        assert isinstance(module, Cell)
        choices = [c for c in cell.groups[group.name] if c.op != "none"]
        targets = {t for _, t in group.edges}
        first = {s for s, _ in group.edges} - targets
        ends = targets if module.concat else {max(targets)}

        def walk(node: int, taken: list[object]) -> None:
            if node in ends:  # noqa: B023
                for c in taken:
                    path = f"body.cells.{name}.edges.{c.source}-{c.target}.ops.{c.op}"  # type: ignore[attr-defined]  # noqa: B023
                    op = state.supernet.get_submodule(path)
                    for inside, p in op.named_parameters():
                        if p.ndim == 4:
                            then.append(state.memory[f"initial/{path}.{inside}"].flatten())
                            now.append(p.detach().flatten())
                    if any(isinstance(m, nn.AvgPool2d | nn.MaxPool2d) for m in op.modules()):
                        width = max(m.out_channels for m in module.edges.modules() if isinstance(m, nn.Conv2d))  # noqa: B023
                        then.append(torch.full((9 * width,), 1 / 9))
                        now.append(torch.full((9 * width,), 1 / 9))
            for c in choices:  # noqa: B023
                if c.source == node:
                    walk(c.target, [*taken, c])

        for node in sorted(first):
            walk(node, [])
    if not then:
        return 0.0
    a, b = torch.cat(then), torch.cat(now)
    return math.acos(float(a @ b / (a.norm() * b.norm())))


@pytest.mark.parametrize("space", ["nb201", "darts"])
def test_the_angle_is_that_of_all_paths_weights(space: str) -> None:
    settings = {"channels": 4, "cells": 1} if space == "nb201" else {"channels": 4, "cells": 3, "nodes": 3}
    state = turned(space, **settings)
    table, rng = products(state), counted(3)
    found = []
    for _ in range(6):
        cell = sample(state.space, rng)
        found.append(angle(state, table, cell))
        assert found[-1] == pytest.approx(literal(state, cell), abs=1e-9)
    assert len(set(found)) > 3


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
