"""Random sampling is uniform over what can be derived, by chi-square against an enumeration."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import chisquare

from oche.base import counted
from oche.genotype import Genotype
from oche.methods.random_sampling import RandomSampling
from oche.run import Run
from oche.spaces import SPACES, Space
from oche.spaces.darts import DartsSpace
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace
from reference.tiny import tiny_problem


def darts_cells(lists: dict[tuple[int, int], list[str]]) -> set[frozenset[tuple[int, int, str]]]:
    """All cells that keep two edges a node with an operation other than none, from {(source, target): operations}."""
    nodes = []
    for target in sorted({t for _, t in lists}):
        options = []
        for a, b in itertools.combinations(sorted(e for e in lists if e[1] == target), 2):
            for p, q in itertools.product(lists[a], lists[b]):
                if "none" not in (p, q):
                    options.append(((*a, p), (*b, q)))
        nodes.append(options)
    return {frozenset(itertools.chain(*parts)) for parts in itertools.product(*nodes)}


def drawn(space: Space, group: str, count: int) -> Counter[frozenset[tuple[int, int, str]]]:
    rng = counted(11)
    return Counter(
        frozenset((c.source, c.target, c.op) for c in sample(space, rng).groups[group]) for _ in range(count)
    )


def assert_uniform(
    found: Counter[frozenset[tuple[int, int, str]]], expected: set[frozenset[tuple[int, int, str]]]
) -> None:
    assert set(found) <= expected
    assert chisquare([found[cell] for cell in expected]).pvalue > 1e-3


def test_toy_cells_are_uniform() -> None:
    edges = ((0, 1), (0, 2), (1, 2))
    every = {
        frozenset((s, t, op) for (s, t), op in zip(edges, ops, strict=True))
        for ops in itertools.product(("none", "skip_connect", "nor_conv_3x3"), repeat=3)
    }
    assert len(every) == 27
    assert_uniform(drawn(ToySpace(), "cell", 2700), every)


UNEVEN = (
    ("none", "noise"),
    ("noise", "skip_connect", "none"),
    ("noise", "max_pool_3x3", "none"),
    ("noise",),
    ("skip_connect", "noise"),
)
"""Lists of several lengths: an edge with more operations is kept more often, else cells would not be equally likely."""


def test_darts_cells_with_uneven_lists_are_uniform() -> None:
    space = DartsSpace(nodes=2, normal=UNEVEN, reduce=(("none", "skip_connect", "noise"),))
    edges = ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    normal = darts_cells({edge: list(ops) for edge, ops in zip(edges, UNEVEN, strict=True)})
    reduce = darts_cells({edge: ["none", "skip_connect", "noise"] for edge in edges})
    assert len(normal) == 1 * 2 * (2 * 1 + 2 * 2 + 1 * 2)
    assert len(reduce) == 4 * 12
    assert space.cardinality() == len(normal) * len(reduce)
    assert_uniform(drawn(space, "normal", 1600), normal)
    assert_uniform(drawn(space, "reduce", 2400), reduce)


def test_cells_are_independent() -> None:
    """Pairs of cells are uniform too, not only each by itself."""
    space = ToySpace(sharing="cell", ops=("none", "skip_connect"), nodes=2)
    rng = counted(3)
    pairs = Counter(
        tuple(g.groups[n][0].op for n in ("cell_0", "cell_1")) for g in (sample(space, rng) for _ in range(2000))
    )
    assert len(pairs) == 4
    assert chisquare(list(pairs.values())).pvalue > 1e-3


def test_the_check_would_notice() -> None:
    """Drawing edges first, each pair alike, then their operations: not uniform where the lists differ."""
    rng = random.Random(0)
    lists = {(0, 3): ["noise", "max"], (1, 3): ["noise"], (2, 3): ["skip", "noise"]}
    found: Counter[frozenset[tuple[int, int, str]]] = Counter()
    for _ in range(1600):
        kept = rng.sample(sorted(lists), 2)
        found[frozenset((*e, rng.choice(lists[e])) for e in kept)] += 1
    with pytest.raises(AssertionError):
        assert_uniform(found, darts_cells(lists))


@pytest.mark.parametrize("name", SPACES)
def test_samples_are_genotypes_of_the_space_and_repeatable(name: str) -> None:
    space = SPACES[name]()
    first = [sample(space, counted(seed)) for seed in range(10)]
    assert first == [sample(space, counted(seed)) for seed in range(10)]
    assert len({g.hash for g in first}) > 5
    for genotype in first:
        space.check(genotype)
        assert genotype.discrete


def test_random_sampling_depends_on_the_seed_and_writes_its_genotype(tmp_path: Path) -> None:
    problems = [tiny_problem("nb201", seed=seed) for seed in (0, 0, 1)]
    a, b, c = (RandomSampling().run(problem)[0] for problem in problems)
    assert a == b != c
    run = Run(tmp_path / "run")
    kept, _ = RandomSampling().run(replace(problems[0], run=run))
    assert Genotype.from_json((tmp_path / "run" / "genotype.json").read_text()) == kept == a
