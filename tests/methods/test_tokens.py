"""Cells as sequences: every cell has one, and comes back from it, in every space."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from contracts.registry import SMALL
from oche.base import Group
from oche.genotype import Genotype
from oche.methods.tokens import Tokens
from oche.spaces import SPACES
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace

NB201 = SPACES["nb201"]()


def test_a_nas_bench_201_cell_is_six_numbers() -> None:
    cell = Genotype.parse("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|")
    assert Tokens(NB201).widths == (5,) * 6
    assert Tokens(NB201).encode(cell) == (3, 1, 0, 0, 4, 2)
    assert Tokens(NB201).decode((3, 1, 0, 0, 4, 2)) == cell


def test_a_darts_cell_says_which_inputs_a_node_keeps_unless_it_keeps_all() -> None:
    """Four nodes of two edges: of 2, 3, 4 and 5 inputs 1, 3, 6 and 10 pairs, and seven operations on each edge."""
    one = (7, 7, 3, 7, 7, 6, 7, 7, 10, 7, 7)
    tokens = Tokens(SPACES["darts"]())
    assert tokens.widths == one * 2
    assert len(tokens) == 22
    cell = tokens.decode((0, 0, 1, 3, 4, *[0] * 17))
    third = [c for c in cell.groups["normal"] if c.target == 3]
    ops = SPACES["darts"]().groups[0].ops[0]
    assert [(c.source, c.op) for c in third] == [(0, ops[4]), (2, ops[5])], (
        "the second of three pairs; `none` is left out"
    )


@pytest.mark.parametrize("name", SPACES)
def test_every_cell_comes_back(name: str) -> None:
    space, rng = SPACES[name](**SMALL[name]), torch.Generator().manual_seed(1)  # type: ignore[arg-type]
    tokens = Tokens(space)
    for _ in range(20):
        cell = sample(space, rng)
        numbers = tokens.encode(cell)
        assert tokens.decode(numbers) == cell
        assert all(0 <= number < width for number, width in zip(numbers, tokens.widths, strict=True))


@dataclass(frozen=True)
class OneOfTwo(ToySpace):
    """Its last node keeps one of two edges."""

    @property
    def groups(self) -> tuple[Group, ...]:
        return (Group("cell", ((0, 1), (0, 2), (1, 2)), (self.ops,) * 3, keep=1, cells=("cell_0",)),)


def test_a_choice_of_two_sets_is_a_number_too() -> None:
    tokens = Tokens(OneOfTwo())
    assert tokens.widths == (2, 2, 2), "the operation into node 1; which edge into node 2, and its operation"
    for numbers in itertools.product(range(2), repeat=3):
        assert tokens.encode(tokens.decode(numbers)) == numbers


@pytest.mark.parametrize("name", ["toy", "darts", "s1", "grid", "chain"])
def test_any_numbers_are_a_cell_of_the_space(name: str) -> None:
    space, rng = SPACES[name](**SMALL[name]), torch.Generator().manual_seed(2)  # type: ignore[arg-type]
    for _ in range(10):
        space.check(Tokens(space).decode([int(torch.randint(w, (), generator=rng)) for w in Tokens(space).widths]))


def test_there_are_as_many_sequences_as_cells() -> None:
    tokens = Tokens(ToySpace())
    cells = {tokens.decode((a, b, c)).hash for a in range(3) for b in range(3) for c in range(3)}
    assert len(cells) == ToySpace().cardinality() == math.prod(tokens.widths)


def test_the_strongest_of_the_possible_values_is_written() -> None:
    tokens = Tokens(SPACES["s1"](**SMALL["s1"]))  # type: ignore[arg-type]
    cell = sample(tokens.space, torch.Generator().manual_seed(3))
    numbers = tokens.encode(cell)
    scores = [np.eye(width)[number] for number, width in zip(numbers, tokens.widths, strict=True)]
    assert tokens.strongest(scores) == cell
    assert tokens.strongest([s - 10 for s in scores]) == cell
    impossible = [np.append(s, 99.0) for s in scores]
    assert tokens.strongest(impossible) == cell, "a value that no operation has there"
    fewest = min(place for place in range(len(tokens)) if tokens.widths[place] > 0)
    assert tokens.decode([99] * len(tokens)) == tokens.decode([w - 1 for w in tokens.widths])
    assert fewest == 0
