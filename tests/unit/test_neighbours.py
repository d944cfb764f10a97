"""Neighbours are what differs in one place: against all cells of small spaces, by brute force."""

from __future__ import annotations

import itertools

import pytest

from contracts.registry import SMALL
from oche.base import counted
from oche.genotype import Choice, Genotype
from oche.spaces import SPACES, Space
from oche.spaces.darts import DartsSpace
from oche.spaces.neighbours import neighbours, other_inputs, other_ops
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace


def test_toy_cells_are_neighbours_if_one_letter_differs() -> None:
    space, ops = ToySpace(), ("none", "skip_connect", "nor_conv_3x3")
    every = [
        Genotype(
            "toy", {"cell": tuple(Choice(s, t, op) for (s, t), op in zip(space.groups[0].edges, word, strict=True))}
        )
        for word in itertools.product(ops, repeat=3)
    ]
    for cell in every:
        near = {
            str(other)
            for other in every
            if sum(a != b for a, b in zip(cell.groups["cell"], other.groups["cell"], strict=True)) == 1
        }
        found = [str(other) for other in neighbours(space, cell)]
        assert len(found) == len(set(found)) == 6
        assert set(found) == near


def darts_cells(space: DartsSpace) -> list[Genotype]:
    """All cells of the normal kind, the reduction cell being always the same one."""
    fixed = sample(space, counted(0)).groups["reduce"]
    group = space.groups[0]
    nodes = []
    for target, numbers in sorted(group.into().items()):
        pairs = itertools.combinations(numbers, 2)
        nodes.append(
            [
                tuple(Choice(group.edges[e][0], target, op) for e, op in zip(pair, word, strict=True))
                for pair in pairs
                for word in itertools.product(*([op for op in group.ops[e] if op != "none"] for e in pair))
            ]
        )
    return [
        Genotype("darts", {"normal": sum(parts, ()), "reduce": fixed}, space.sharing)
        for parts in itertools.product(*nodes)
    ]


def one_apart(a: Genotype, b: Genotype) -> bool:
    """True if one edge of the normal cell was given up for another with the same operation, or one operation differs."""
    (gone, come) = (set(x.groups["normal"]) - set(y.groups["normal"]) for x, y in ((a, b), (b, a)))
    if len(gone) != 1 or len(come) != 1:
        return False
    (old, new) = (*gone, *come)
    return old.target == new.target and (old.source == new.source or old.op == new.op)


def test_darts_cells_against_all_of_them() -> None:
    space = DartsSpace(nodes=2, normal=(("none", "skip_connect", "noise"),))
    every = darts_cells(space)
    assert len(every) == 4 * 12
    for cell in every:
        found = [g for g in neighbours(space, cell) if g.groups["reduce"] == cell.groups["reduce"]]
        assert len({g.hash for g in found}) == len(found)
        assert {g.hash for g in found} == {g.hash for g in every if one_apart(cell, g)}
        assert all(g in every for g in found), "choices stand in the order of the edges, as sampled ones do"


def small(name: str) -> Space:
    return SPACES[name](**SMALL[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SPACES)
def test_neighbours_belong_to_the_space_and_know_each_other(name: str) -> None:
    space = small(name)
    for seed in range(3):
        cell = sample(space, counted(seed))
        found = list(neighbours(space, cell))
        assert found == [*other_ops(space, cell), *other_inputs(space, cell)]
        hashes = {g.hash for g in found}
        assert len(hashes) == len(found) > 0
        assert cell.hash not in hashes
        for other in found[:: max(1, len(found) // 5)]:
            space.check(other)
            assert cell.hash in {g.hash for g in neighbours(space, other)}


def test_edges_with_other_candidates_try_all_of_them() -> None:
    """A node that gives up an edge for one with other operations may take any of them, and back again."""
    lists = (("none", "noise"), ("noise", "skip_connect", "none"), ("noise",), ("noise",), ("skip_connect", "noise"))
    space = DartsSpace(nodes=2, normal=lists, reduce=(("none", "noise"),))
    seen = 0
    for seed in range(20):
        cell = sample(space, counted(seed))
        for other in other_inputs(space, cell):
            seen += 1
            assert cell.hash in {g.hash for g in neighbours(space, other)}
    assert seen > 20
