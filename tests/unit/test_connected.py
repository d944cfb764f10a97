"""The strongest connected genotype, against all genotypes of small spaces."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.search.connected import joined
from oche.search.selection import argmax
from oche.spaces import SPACES, GridSpace


def cell(group: Group, ops: tuple[str, ...]) -> tuple[Choice, ...]:
    return tuple(Choice(*edge, op) for edge, op in zip(group.edges, ops, strict=True))


def strengths(group: Group, seed: int, dead: float) -> torch.Tensor:
    """(E, O), each row a distribution in which `none` is strong."""
    w = torch.rand(len(group.edges), group.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = w + dead * group.named("none")
    return w / w.sum(-1, keepdim=True)


@pytest.mark.parametrize("seed", range(40))
def test_no_connected_cell_of_the_space_is_stronger(seed: int) -> None:
    (group,) = SPACES["toy"](inputs=1, outputs=10, size=(8, 8)).groups
    strength = strengths(group, seed, 0.8)
    got = joined(group, (max(t for _, t in group.edges),), argmax(group, strength), strength, group.valid())

    def weight(ops: tuple[str, ...]) -> float:
        return float(torch.stack([strength[e][group.ops[e].index(op)] for e, op in enumerate(ops)]).prod())

    all_connected = [ops for ops in product(*group.ops) if Genotype("toy", {"cell": cell(group, ops)}).connected]
    assert weight(tuple(c.op for c in got)) == pytest.approx(max(map(weight, all_connected)), rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_nas_bench_201_cells_are_connected_with_fewest_losses(seed: int) -> None:
    (group,) = SPACES["nb201"](inputs=1, outputs=10, size=(8, 8)).groups
    strength = strengths(group, seed, 1.5)
    literal = argmax(group, strength)
    got = joined(group, (3,), literal, strength, group.valid())
    assert not Genotype("nb201", {"cell": literal}).connected
    assert Genotype("nb201", {"cell": got}).connected
    names = {edge: e for e, edge in enumerate(group.edges)}
    paths = [
        [names[edge] for edge in way]
        for way in ([(0, 3)], [(0, 1), (1, 3)], [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)])
    ]
    none = group.ops[0].index("none")

    def loss(e: int) -> float:
        rest = torch.cat([strength[e][:none], strength[e][none + 1 :]]).max()
        return float((strength[e][none] / rest).log().clamp_min(0))

    cheapest = min(paths, key=lambda way: sum(map(loss, way)))
    changed = {e for e, (a, b) in enumerate(zip(literal, got, strict=True)) if a != b}
    assert changed == {e for e in cheapest if literal[e].op == "none"}


def test_a_connected_cell_and_one_without_all_edges_stay_as_they_are() -> None:
    (group,) = SPACES["nb201"](inputs=1, outputs=10, size=(8, 8)).groups
    strength = strengths(group, 0, 0.0)
    good = argmax(group, strength)
    assert joined(group, (3,), good, strength, group.valid()) == good
    few = cell(group, ("none",) * 6)[:3]
    assert joined(group, (3,), few, strength, group.valid()) == few


def test_candidates_that_are_gone_are_not_chosen() -> None:
    (group,) = SPACES["nb201"](inputs=1, outputs=10, size=(8, 8)).groups
    strength = strengths(group, 3, 1.5)
    alive = group.named("none") | group.named("skip_connect")
    got = joined(group, (3,), argmax(group, strength, alive), strength, alive)
    assert {c.op for c in got} == {"none", "skip_connect"}
    only = group.named("none")
    dead = argmax(group, strength, only)
    assert joined(group, (3,), dead, strength, only) == dead


def test_a_grid_reaches_its_last_layer() -> None:
    space = GridSpace(inputs=3, outputs=2, size=(32, 32), layers=3, levels=2)
    (group,) = space.groups
    strength = torch.rand(len(group.edges), group.width, generator=torch.Generator().manual_seed(0)) * group.valid()
    strength = strength + group.named("none")
    literal = argmax(group, strength)
    got = joined(group, space.ends(group), literal, strength, group.valid())
    edges = lambda choices: {(c.source, c.target) for c in choices if c.op != "none"}  # noqa: E731
    assert not space.used(edges(literal))
    assert space.used(edges(got))
