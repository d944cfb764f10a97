"""Selection against the authors' code written out, and against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oche.base import Group, counted
from oche.genotype import Choice, Genotype
from oche.methods.darts import darts
from oche.methods.pcdarts import pcdarts
from oche.search.begin import begin
from oche.search.selection import PerEdgeArgmax, TopK, argmax, leading, strongest
from oche.search.state import Problem, SearchState
from oche.spaces import SPACES
from oche.spaces.darts import DARTS_OPS
from oche.spaces.nb201 import NB201_OPS
from reference.derivation import nb201_genotype, parse, parse_partial
from reference.tiny import tiny_problem

seeds = st.integers(0, 2**31)


def kept(gene: list[tuple[str, int]]) -> list[set[tuple[str, int]]]:
    """A set for each node: the order within a node says nothing."""
    return [set(gene[i : i + 2]) for i in range(0, len(gene), 2)]


def pairs(choices: tuple[Choice, ...]) -> list[tuple[str, int]]:
    assert [c.target for c in choices] == sorted(c.target for c in choices)
    return [(c.op, c.source) for c in choices]


@pytest.fixture(scope="module")
def darts_state() -> tuple[SearchState, Problem]:
    problem = tiny_problem("darts", cells=2, channels=4)
    return begin(problem, darts()), problem


@pytest.fixture(scope="module")
def pcdarts_state() -> tuple[SearchState, Problem]:
    problem = tiny_problem("darts", cells=2, channels=4)
    return begin(problem, pcdarts(2)), problem


@torch.no_grad()
def randomise(state: SearchState, seed: int, scale: float = 1.0) -> None:
    for name, t in state.alpha.items():
        t.copy_(scale * torch.randn(t.shape, generator=counted(seed, name)))


@given(seed=seeds)
def test_darts_derivation_equals_the_authors_code(darts_state: tuple[SearchState, Problem], seed: int) -> None:
    state, problem = darts_state
    randomise(state, seed)
    genotype = TopK()(state, problem)
    problem.space.check(genotype)
    for kind in ("normal", "reduce"):
        expected = parse(state.alpha[f"{kind}/alpha"].softmax(-1).tolist(), list(DARTS_OPS))
        assert kept(pairs(genotype.groups[kind])) == kept(expected)
    assert Genotype.parse(str(genotype)) == genotype


@given(seed=seeds)
def test_pcdarts_derivation_equals_the_authors_code(pcdarts_state: tuple[SearchState, Problem], seed: int) -> None:
    state, problem = pcdarts_state
    randomise(state, seed)
    genotype = TopK()(state, problem)
    for kind in ("normal", "reduce"):
        alpha, beta = state.alpha[f"{kind}/alpha"].tolist(), state.alpha[f"{kind}/beta"].tolist()
        assert kept(pairs(genotype.groups[kind])) == kept(parse_partial(alpha, beta, list(DARTS_OPS)))


def test_beta_decides_between_edges(pcdarts_state: tuple[SearchState, Problem]) -> None:
    """With equal alphas only the edges' shares tell them apart."""
    state, problem = pcdarts_state
    with torch.no_grad():
        for t in state.alpha.values():
            t.zero_()
        state.alpha["normal/beta"][9 + 1] = state.alpha["normal/beta"][9 + 3] = 1.0  # 1->5 and 3->5
    assert [c.source for c in TopK()(state, problem).groups["normal"] if c.target == 5] == [1, 3]


@pytest.mark.parametrize("space", ["s1", "s2", "s3", "s4"])
@given(seed=seeds)
def test_small_spaces_by_brute_force(space: str, seed: int) -> None:
    """The best set of two edges a node, by the sum of ranks: no other edge has a stronger operation."""
    for group in SPACES[space]().groups:
        strength = torch.rand(len(group.edges), group.width, generator=counted(seed, group.name)) * group.valid()
        assert set(strongest(group, strength, 2)) == brute_force(group, strength, 2)


@given(seed=seeds, keep=st.integers(1, 5))
def test_any_number_of_edges_may_be_kept(seed: int, keep: int) -> None:
    for group in SPACES["darts"]().groups:
        strength = torch.rand(len(group.edges), group.width, generator=counted(seed, group.name))
        found = strongest(group, strength, keep)
        assert set(found) == brute_force(group, strength, keep)
        counts = {t: sum(c.target == t for c in found) for t in range(2, 6)}
        assert counts == {t: min(keep, t) for t in range(2, 6)}


def brute_force(group: Group, strength: Tensor, keep: int) -> set[Choice]:
    """Returns, of all sets of `keep` choices on different edges of a node, the one with the greatest sum: strengths are positive."""
    best: set[Choice] = set()
    for target in {t for _, t in group.edges}:
        options = [
            (float(strength[e, o]), Choice(s, t, op))
            for e, (s, t) in enumerate(group.edges)
            for o, op in enumerate(group.ops[e])
            if t == target and op != "none"
        ]
        options = [
            max((o for o in options if o[1].source == s), key=lambda o: o[0]) for s in {o[1].source for o in options}
        ]
        sets = itertools.combinations(options, min(keep, len(options)))
        best |= {choice for _, choice in max(sets, key=lambda chosen: sum(value for value, _ in chosen))}
    return best


def test_none_is_never_kept_and_does_not_help_its_edge() -> None:
    group = Group("cell", ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), (("none", "skip_connect"),) * 5)
    strength = torch.tensor([[0.0, 0.1], [0.0, 0.1], [0.9, 0.1], [0.5, 0.5], [0.4, 0.6]])
    assert strongest(group, strength, 2)[2:] == (Choice(1, 3, "skip_connect"), Choice(2, 3, "skip_connect"))


def test_an_edge_with_nothing_but_none_is_left_out() -> None:
    group = Group("cell", ((0, 2), (1, 2)), (("none",), ("skip_connect",)))
    assert strongest(group, torch.tensor([[1.0], [0.1]]), 2) == (Choice(1, 2, "skip_connect"),)


def test_a_lighter_candidate_list_is_no_advantage() -> None:
    """Padding never wins, even where all strengths are negative."""
    group = Group("cell", ((0, 2), (1, 2)), (("skip_connect",), ("noise", "sep_conv_3x3")), keep=1)
    strength = torch.tensor([[-3.0, 5.0], [-2.0, -1.0]])
    assert strongest(group, strength, 1) == (Choice(1, 2, "sep_conv_3x3"),)
    assert argmax(group, strength) == (Choice(0, 2, "skip_connect"), Choice(1, 2, "sep_conv_3x3"))


@given(seed=seeds)
def test_nb201_derivation_equals_the_authors_code(seed: int) -> None:
    (group,) = SPACES["nb201"]().groups
    alpha = torch.randn(6, 5, generator=counted(seed))
    assert str(Genotype("nb201", {"cell": argmax(group, alpha.softmax(-1))})) == nb201_genotype(
        alpha.tolist(), list(NB201_OPS)
    )


def test_topk_follows_the_group_unless_told() -> None:
    """In NAS-Bench-201 cells every edge is kept, `none` too; `keep=1` makes it a selection like that of DARTS."""
    problem = tiny_problem("toy")
    state = begin(problem, darts())
    with torch.no_grad():
        state.alpha["cell/alpha"].copy_(torch.tensor([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0], [2.0, 1.5, 0.0]]))
    assert [c.op for c in TopK()(state, problem).groups["cell"]] == ["none"] * 3
    assert TopK()(state, problem) == PerEdgeArgmax()(state, problem)
    assert TopK(keep=1)(state, problem).groups["cell"] == (Choice(0, 1, "skip_connect"), Choice(1, 2, "skip_connect"))


def test_per_edge_argmax_in_a_darts_space(darts_state: tuple[SearchState, Problem]) -> None:
    state, problem = darts_state
    randomise(state, 1)
    for kind, choices in PerEdgeArgmax()(state, problem).groups.items():
        assert [c.op for c in choices] == [DARTS_OPS[o] for o in state.alpha[f"{kind}/alpha"].argmax(-1).tolist()]


def test_masked_candidates_are_not_chosen(darts_state: tuple[SearchState, Problem]) -> None:
    state, problem = darts_state
    randomise(state, 4)
    mask = torch.zeros(14, 8, dtype=torch.bool)
    mask[:, [0, 3]] = True
    masked = replace(state, mask={"normal": mask})
    assert {c.op for c in TopK()(masked, problem).groups["normal"]} == {"skip_connect"}
    assert TopK()(masked, problem).groups["reduce"] == TopK()(state, problem).groups["reduce"]


def test_sharing_by_cell_names_the_cells() -> None:
    problem = tiny_problem("toy", sharing="cell")
    genotype = TopK()(begin(problem, darts()), problem)
    assert set(genotype.groups) == {"cell_0", "cell_1"}
    assert genotype.sharing == "cell"
    problem.space.check(genotype)


def test_the_leading_are_kept() -> None:
    strength = torch.tensor([[0.1, 0.5, 0.3, 0.9], [0.4, 0.2, 0.2, 0.2]])
    alive = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert leading(strength, alive, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert torch.equal(leading(strength, alive, 9), alive)
