"""Cells as graphs of operations: the published edges, every cell and back, and graphs that are no cells."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from contracts.registry import SMALL
from oche.base import Group
from oche.genotype import Genotype
from oche.methods.graphs import END, START, Graphs
from oche.methods.tokens import Tokens
from oche.spaces import SPACES
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace

NB201 = Graphs(SPACES["nb201"]())
CELL = Genotype.parse("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|")
PUBLISHED = {(0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 6), (3, 6), (4, 7), (5, 7), (6, 7)}
"""The edges of NAS-Bench-201 cells between eight nodes, as SVGe's code has them."""


def test_a_nas_bench_201_cell_has_the_published_edges() -> None:
    types, edges = NB201.encode([CELL])
    assert {(int(u), int(v)) for u, v in edges[0].nonzero()} == PUBLISHED
    assert NB201.types == 7
    ops = [NB201.ops[k - 2] for k in types[0, 1:-1]]
    assert ops == [c.op for c in CELL.groups["cell"]]
    assert types[0, [0, -1]].tolist() == [1, 0]
    assert (START, END) == (1, 0)


def test_a_darts_cell_has_inputs_and_shows_all_its_nodes() -> None:
    space = SPACES["darts"](nodes=2)
    text = (
        "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('max_pool_3x3', 1), ('sep_conv_5x5', 2)], normal_concat=[2, 3], "
        "reduce=[('dil_conv_3x3', 0), ('dil_conv_5x5', 1), ('avg_pool_3x3', 0), ('skip_connect', 1)], reduce_concat=[2, 3])"
    )
    cell = Genotype.parse(text)
    types, edges = Graphs(space).encode([cell])
    assert {(int(u), int(v)) for u, v in edges[0].nonzero()} == {
        *((0, 1), (0, 2), (1, 3), (2, 4), (2, 5), (3, 6), (4, 6), (3, 7), (4, 7), (5, 7), (6, 7)),
        *((7, 8), (7, 9), (8, 10), (9, 11), (8, 12), (9, 13), (10, 14), (11, 14), (12, 14), (13, 14)),
    }
    assert types[0, [0, 1, 2, 7, 8, 9, 14]].tolist() == [START, 2, 3, END, 2, 3, END]
    ops = Graphs(space).ops
    assert Graphs(space).types == 4 + len(ops), "a start, an end and two inputs beside the operations"
    assert types[0, [3, 6, 10]].tolist() == [
        4 + ops.index(op) for op in ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3")
    ]
    swapped = types.clone()
    swapped[0, [3, 4]], edges[0][:, [3, 4]] = types[0, [4, 3]], edges[0][:, [4, 3]]
    assert Graphs(space).decode(swapped[0], edges[0]) == cell, "the order of a node's two operations means nothing"


@pytest.mark.parametrize("name", SPACES)
def test_every_cell_comes_back(name: str) -> None:
    graphs, rng = Graphs(SPACES[name](**SMALL[name])), torch.Generator().manual_seed(1)  # type: ignore[arg-type]
    cells = [sample(graphs.space, rng) for _ in range(10)]
    types, edges = graphs.encode(cells)
    assert types.shape[1] == len(graphs.places)
    assert int(types.max()) < graphs.types
    assert not edges.tril().any(), "a node reads earlier ones"
    assert [graphs.decode(t, e) for t, e in zip(types, edges, strict=True)] == cells


@dataclass(frozen=True)
class TurnedRound(ToySpace):
    """Its edges do not stand in the order of the nodes that they lead to."""

    @property
    def groups(self) -> tuple[Group, ...]:
        return (Group("cell", ((1, 2), (0, 2), (0, 1)), (self.ops,) * 3, keep=None, cells=("cell_0",)),)


def test_choices_come_back_in_the_order_of_the_edges() -> None:
    graphs, tokens = Graphs(TurnedRound()), Tokens(TurnedRound())
    for numbers in itertools.product(range(3), repeat=3):
        cell = tokens.decode(numbers)
        types, edges = graphs.encode([cell])
        assert graphs.decode(types[0], edges[0]) == cell


def test_one_edge_or_one_fixed_type_too_many_is_no_cell() -> None:
    types, edges = (x[0] for x in NB201.encode([CELL]))
    for u in range(8):
        for v in range(u + 1, 8):
            other = edges.clone()
            other[u, v] = ~other[u, v]
            assert NB201.decode(types, other) is None
    for v in range(8):
        for kind in range(7):
            changed = types.clone()
            changed[v] = kind
            found = NB201.decode(changed, edges)
            if kind != types[v] and (v in (0, 7) or kind < 2):
                assert found is None
            elif found is not None:
                assert torch.equal(NB201.encode([found])[0][0], changed)
            else:
                raise AssertionError((v, kind))


def test_two_operations_on_one_edge_are_no_cell() -> None:
    graphs = Graphs(SPACES["darts"](nodes=2))
    types, edges = (x[0] for x in graphs.encode([sample(graphs.space, torch.Generator().manual_seed(0))]))
    edges[:, 4] = edges[:, 3]
    assert graphs.decode(types, edges) is None
    s2 = Graphs(SPACES["s2"](channels=4, cells=3, nodes=2))
    types, edges = (x[0] for x in s2.encode([sample(s2.space, torch.Generator().manual_seed(0))]))
    types[3] = 1
    assert s2.decode(types, edges) is None
