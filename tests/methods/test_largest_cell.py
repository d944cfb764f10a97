"""The largest cell against all cells, or as many as can be counted."""

from __future__ import annotations

import itertools

import pytest

from contracts.registry import SMALL
from oche.base import counted
from oche.genotype import Choice, Genotype
from oche.methods.largest_cell import LargestCell, largest
from oche.spaces import SPACES
from oche.spaces.cost import cost
from oche.spaces.darts import DartsSpace
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace
from reference.tiny import tiny_problem


def test_no_cell_of_the_toy_space_is_larger() -> None:
    """All 27."""
    space = ToySpace(channels=4, cells=1, stages=1)
    (group,) = space.groups
    sizes = {}
    for ops in itertools.product(*group.ops):
        cell = tuple(Choice(s, t, op) for (s, t), op in zip(group.edges, ops, strict=True))
        genotype = Genotype("toy", {"cell": cell})
        sizes[str(genotype)] = cost(space, genotype).parameters
    assert sizes[str(largest(space))] == max(sizes.values())
    assert list(sizes.values()).count(max(sizes.values())) == 1


def test_in_nas_bench_201_it_is_index_1462() -> None:
    assert largest(SPACES["nb201"](channels=4, cells=1)) == Genotype.parse("nb201:1462")


def test_in_the_darts_space_it_is_the_largest_convolution_from_both_inputs() -> None:
    found = largest(DartsSpace(channels=4, cells=3, nodes=2))
    for choices in found.groups.values():
        assert choices == tuple(Choice(s, t, "sep_conv_5x5") for t in (2, 3) for s in (0, 1))


def test_a_node_keeps_its_two_largest_edges_and_never_none() -> None:
    """Candidates by edge, so that neither the order of names nor that of edges decides."""
    edges = ("none", "skip_connect"), ("none", "sep_conv_3x3"), ("skip_connect",), ("sep_conv_3x3",), ("sep_conv_5x5",)
    space = DartsSpace(channels=4, cells=3, nodes=2, normal=edges, reduce=(("none", "skip_connect"),))
    found = largest(space).groups
    assert [str(c.op) for c in found["normal"]] == ["skip_connect", "sep_conv_3x3", "sep_conv_3x3", "sep_conv_5x5"]
    assert [(c.source, c.target) for c in found["normal"]] == [(0, 2), (1, 2), (1, 3), (2, 3)]
    assert {c.op for c in found["reduce"]} == {"skip_connect"}


def test_of_equal_candidates_the_first_is_taken() -> None:
    """Neither has a weight or a multiply-add; where a node keeps every edge, `none` is a candidate like any other."""
    for ops in (("none", "skip_connect"), ("skip_connect", "none")):
        (choices,) = largest(ToySpace(channels=4, cells=1, stages=1, ops=ops)).groups.values()
        assert {c.op for c in choices} == {ops[0]}


QUICK = ("toy", "nb201", "s4")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_random_cells_are_not_larger(name: str) -> None:
    space = SPACES[name](**SMALL[name])  # type: ignore[arg-type]
    found = largest(space)
    space.check(found)
    most = cost(space, found).parameters
    assert all(cost(space, sample(space, counted(seed))).parameters <= most for seed in range(3))


def test_every_seed_finds_it() -> None:
    found = {LargestCell().run(tiny_problem(seed=seed))[0].hash for seed in range(2)}
    assert len(found) == 1
