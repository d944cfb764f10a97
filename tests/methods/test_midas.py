"""MIDAS: attention over patches, op weights for each image, and the choice of edges, against literal references in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.same import problem_of
from oche.base import Draw, Group
from oche.data import batches, none
from oche.methods.midas import Alike, PatchAttention, PatchWeighed, combinations, kept, midas, subsets
from oche.methods.weighing import Measured, log_shares, scores
from oche.search.begin import begin
from oche.search.loop import search
from oche.spaces.darts import DARTS_OPS, DartsSpace
from oche.spaces.edges import Edge

pytestmark = pytest.mark.usefixtures("float64")

DRAW = Draw(0, 0, "weight")


def built(channels: int, stride: int, patches: int = 2) -> Edge:
    torch.manual_seed(channels + 100 * stride)
    space = DartsSpace()
    return PatchWeighed(patches)(DARTS_OPS, channels, stride, lambda op, n: space.candidate(op, n, stride, False))


def patch_means(x: Tensor, side: int) -> list[list[Tensor]]:
    """[image][patch] -> (C,): even patches, cut by hand."""
    height = x.shape[2] // side
    return [
        [
            image[:, r * height : (r + 1) * height, c * height : (c + 1) * height].mean((1, 2))
            for r in range(side)
            for c in range(side)
        ]
        for image in x
    ]


def literal(edge: Any, x: Tensor, there: list[int], side: int = 2) -> Tensor:
    query, key = edge.weigher.query.weight, edge.weigher.key.weight
    outputs = {o: op(x) for o, op in enumerate(edge.ops.values())}
    before, after = patch_means(x, side), {o: patch_means(outputs[o], side) for o in there}
    rows = []
    for b in range(len(x)):
        w = dict.fromkeys(there, torch.zeros(()))
        for p in range(side * side):
            q = query @ before[b][p]
            logits = {o: (q @ (key @ after[o][b][p])) / math.sqrt(len(q)) for o in there}
            total = sum(torch.exp(v) for v in logits.values())
            w = {o: w[o] + torch.exp(logits[o]) / total / (side * side) for o in there}
        rows.append(sum(w[o] * outputs[o][b] for o in there))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (8, 2)])
def test_the_edge_is_the_literal_one(channels: int, stride: int) -> None:
    edge = built(channels, stride)
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for there in (list(range(8)), [1, 3, 6]):  # candidates that were removed have no weight
        w = torch.tensor([float(o in there) for o in range(8)])
        own, found = literal(edge, x, there), edge(x, w, DRAW)
        torch.testing.assert_close(found, own)
        direction = torch.randn(own.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        grads = [
            torch.autograd.grad((out * direction).sum(), list(edge.weigher.parameters()))
            for out in (found, own)  # type: ignore[union-attr]
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)
    assert not edge(x, torch.zeros(8), DRAW).any(), "an edge that has lost all candidates gives zeros"


def test_weights_are_those_of_the_image_alone() -> None:
    """Other images of the batch change them by batch norm only: a candidate without one keeps its weight's numerator."""
    attention = PatchAttention(4, 2)
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = [x.flip(1), 2 * x, x.square()]
    there = torch.ones(3, dtype=torch.bool)
    whole = attention(x, outputs, there)
    assert whole.shape == (3, 3, 4)
    torch.testing.assert_close(whole.sum(1), torch.ones(3, 4))
    alone = attention(x[1:2], [y[1:2] for y in outputs], there)
    torch.testing.assert_close(alone[0], whole[1])
    assert (whole[0] - whole[1]).abs().max() > 1e-6


def test_scores_are_sums_of_weights() -> None:
    """Each image gives each edge one, times the number of patches."""
    problem = problem_of("nb201", count=22)
    state = begin(problem, midas())
    (group,) = problem.space.groups
    found = scores(state)[group.name]
    assert (found > 0).all()
    images = sum(
        len(b.targets)
        for b in batches(state.arch_images, problem.batch, none(problem.data), problem.fabric.device)
        if len(b.targets) > 1
    )
    torch.testing.assert_close(
        found.sum(1), torch.full((len(group.edges),), 16.0 * images * len(group.cells), dtype=torch.float64)
    )


# ---------------------------------------------------------------------- edges


def test_subsets_are_compared_with_the_whole_sum() -> None:
    """Against outputs of the edges that this test computes itself, cell by cell, image by image."""
    problem = problem_of("darts", count=20, nodes=3)
    state = begin(problem, midas(2))
    found = subsets(state)
    expected: dict[str, dict[tuple[int, ...], float]] = {g.name: {} for g in problem.space.groups}
    weights, draw = state.op_weights(state.alpha, state.draw("eval")), state.draw("eval")
    groups = problem.space.cell_groups()

    def run_cell(name: str, cell: Any, inputs: Any) -> Tensor:
        group = groups[name]
        states = [entry(x) for entry, x in zip(cell.entries, inputs, strict=True)]
        edges = list(cell.edges.values())
        for numbers in group.into().values():
            outputs = {e: edges[e](states[group.edges[e][0]], weights[name][e], draw) for e in numbers}
            total = sum(outputs.values())
            for pair in itertools.combinations(numbers, 2) if len(numbers) > 2 else ():
                part = outputs[pair[0]] + outputs[pair[1]]
                for b in range(len(part)):
                    like = (part[b] * total[b]).sum() / (part[b].norm() * total[b].norm())  # type: ignore[index, union-attr]
                    expected[group.name][pair] = expected[group.name].get(pair, 0.0) + float(like)
            states.append(total)
        return torch.cat(states[2:], dim=1)

    with torch.no_grad():
        for batch in batches(state.arch_images, problem.batch, none(problem.data), problem.fabric.device):
            if len(batch.targets) > 1:
                state.supernet.body(batch.images.double(), run_cell)
    assert {name: set(pairs) for name, pairs in found.items()} == {name: set(pairs) for name, pairs in expected.items()}
    for name, pairs in expected.items():
        assert len(pairs) == 3 + 6
        for pair, value in pairs.items():
            assert float(found[name][pair]) == pytest.approx(value)
    assert not any(m._forward_hooks for m in state.supernet.modules()), "no hook is left behind"


def test_the_best_pair_of_each_node_stays() -> None:
    group = Group("g", ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), (("a", "none"),) * 5)
    alike = {(2, 3): torch.tensor(1.0), (2, 4): torch.tensor(3.0), (3, 4): torch.tensor(2.0)}
    everything = torch.ones(5, dtype=torch.bool)
    assert kept(group, everything, alike) == [0, 1, 2, 4]
    lost = torch.tensor([True, False, False, True, True])
    assert kept(group, lost, alike) == [0, 3, 4]
    lost = torch.tensor([True, True, False, False, False])
    assert kept(group, lost, alike) == [0, 1]
    assert combinations([1, 2, 3], 2) == [(1, 2), (1, 3), (2, 3)]
    assert combinations([1], 2) == [(1,)]
    assert combinations([], 2) == [()]


def test_the_choice_is_by_pairs_and_scores() -> None:
    problem = problem_of("darts", nodes=3)
    state = begin(problem, midas(2))
    genotype = Measured(Alike())(state, problem)
    problem.space.check(genotype)
    alike, measured = subsets(state), scores(state)
    for group in problem.space.groups:
        torch.testing.assert_close(state.alpha[f"{group.name}/alpha"], log_shares(measured[group.name]))
        for node, numbers in group.into().items():
            chosen = [c for c in genotype.groups[group.name] if c.target == node]
            edges = tuple(group.edges.index((c.source, c.target)) for c in chosen)
            assert len(edges) == 2
            if len(numbers) > 2:
                assert edges == max(
                    alike[group.name], key=lambda s: float(alike[group.name][s]) if set(s) <= set(numbers) else -9
                )
            for e, c in zip(edges, chosen, strict=True):
                row = measured[group.name][e].masked_fill(group.named("none")[e], -1.0)
                assert c.op == group.ops[e][int(row.argmax())]


def test_where_all_edges_are_kept_none_may_be_chosen() -> None:
    problem = problem_of("nb201")
    state = begin(problem, midas(2))
    (group,) = problem.space.groups
    with torch.no_grad():
        state.alpha[f"{group.name}/alpha"][:, 0] = 99.0
    assert subsets(state) == {group.name: {}}
    assert {c.op for c in Alike()(state, problem).groups[group.name]} == {group.ops[0][0]}


def test_a_search_learns_attention_with_the_weights() -> None:
    start = begin(problem_of("toy"), midas(2))
    state = search(problem_of("toy", epochs=2), midas(2)).state
    before = dict(start.supernet.named_parameters())
    moved = {n for n, p in state.supernet.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)
    assert not state.arch_optimizer.state
    assert midas().edge == PatchWeighed() == PatchWeighed(4)
