"""The strongest connected genotype, against all genotypes of small spaces."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.methods.darts import darts
from oche.run import Run
from oche.search.callbacks import Callback
from oche.search.connected import joined
from oche.search.loop import search
from oche.search.selection import argmax
from oche.search.state import SearchState
from oche.spaces import SPACES, GridSpace
from oche.watch.monitor import Monitor
from reference.tiny import tiny_problem


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


# ---------------------------------------------------------------------- in a search


@dataclass(frozen=True)
class Dead(Callback):
    """Makes `none` the strongest candidate of every edge."""

    def on_epoch_start(self, state: SearchState) -> None:
        (group,) = state.space.groups
        with torch.no_grad():
            state.alpha["cell/alpha"][group.named("none")] = 9.0


@pytest.mark.parametrize("literal", [False, True])
def test_a_dead_cell_is_told_at_the_epoch_and_not_handed_out(tmp_path: Path, literal: bool) -> None:
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    method = replace(darts(), callbacks=(Dead(), Monitor()))
    found = search(replace(tiny_problem("nb201"), run=run, literal=literal), method)
    epoch, supernet = run.records()
    assert found.genotype.connected is not literal
    assert Genotype.from_json(run.read(Run.GENOTYPE).decode()) == found.genotype
    assert json.loads(run.read(Run.GENOTYPE))["derived"] == ("literal" if literal else "connected")
    assert (epoch["genotype"] == epoch["cut"]) is literal
    assert "leave no path through the cell" in str(epoch["warning"])
    assert supernet["cut"] == ("kept" if literal else "connected")


def test_a_living_cell_is_handed_out_as_the_rule_derived_it(tmp_path: Path) -> None:
    asked = tiny_problem("nb201")
    found, literal = search(asked, darts()), search(replace(asked, literal=True), darts())
    assert literal.genotype.connected
    assert found.genotype == literal.genotype
