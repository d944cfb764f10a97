"""Random search with weight sharing: one cell a step, uniformly, and the best of the sampled ones in the end."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from oche.base import Draw, Group, counted
from oche.data import ImageSet, batches, none
from oche.genotype import Genotype
from oche.methods.random_search_ws import (
    BestOfSampled,
    GivenCell,
    OneCell,
    SampledOps,
    accuracy,
    one_hot,
    random_search_ws,
)
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.loop import search, weight_step
from oche.search.selection import argmax
from oche.spaces import SPACES
from oche.spaces.edges import WeightedSum
from oche.spaces.ops import OPS
from oche.spaces.sampling import sample
from reference.tiny import tiny_problem


def weights(group: Group, step: int, phase: str = "weight") -> torch.Tensor:
    relaxation = OneCell()
    return relaxation(relaxation.init(group, counted(0)), group, Draw(0, step, phase))


def test_a_step_draws_one_op_an_edge_each_as_often() -> None:
    (group,) = SPACES["toy"]().groups
    counts: Counter[tuple[int, ...]] = Counter()
    for step in range(2700):
        w = weights(group, step)
        assert torch.equal(w.sum(-1), torch.ones(3))
        counts[tuple(w.argmax(-1).tolist())] += 1
    assert len(counts) == 27
    chi_square = sum((n - 100) ** 2 / 100 for n in counts.values())
    assert chi_square < 54.1  # the 99.9 % quantile with 26 degrees of freedom


def test_cells_that_keep_two_edges_a_node_get_two() -> None:
    for group in SPACES["darts"]().groups:
        w = weights(group, 5)
        assert set(w.unique().tolist()) == {0.0, 1.0}
        assert all(w[numbers].sum() == 2 for numbers in group.into().values())
        assert w[:, group.ops[0].index("none")].sum() == 0


def test_the_same_draw_is_the_same_cell_and_selection_sees_no_preference() -> None:
    (group,) = SPACES["nb201"]().groups
    assert torch.equal(weights(group, 3), weights(group, 3))
    assert not torch.equal(weights(group, 3), weights(group, 4))
    assert torch.equal(weights(group, 3, "eval"), torch.full((6, 5), 0.2))


def test_the_sampled_edge_is_the_weighted_sum_of_a_one_hot() -> None:
    ops, x = ("none", "skip_connect", "nor_conv_3x3"), torch.randn(2, 4, 8, 8)
    edges = []
    for factory in (SampledOps(), WeightedSum()):
        torch.manual_seed(0)
        edges.append(factory(ops, 4, 1, lambda op, channels: OPS[op](channels, 1, False)))
    assert list(edges[0].state_dict()) == list(edges[1].state_dict())
    for o in range(3):
        w = torch.eye(3)[o]
        torch.testing.assert_close(edges[0](x, w, Draw(0)), edges[1](x, w, Draw(0)))
    torch.testing.assert_close(edges[0](x, torch.zeros(3), Draw(0)), torch.zeros_like(x))


def test_a_step_changes_the_drawn_ops_alone() -> None:
    problem, method = tiny_problem(), random_search_ws()
    state = begin(problem, method)
    before = {name: p.detach().clone() for name, p in state.supernet.named_parameters()}
    batches = StepBatches(*streams(problem, method), 0)
    drawn = OneCell()(state.alpha, problem.space.groups[0], state.draw("weight"))
    weight_step(state, method, bilevel(state, method), batches)
    convolution = problem.space.groups[0].ops[0].index("nor_conv_3x3")
    for e, (source, target) in enumerate(problem.space.groups[0].edges):
        names = [n for n in before if f".edges.{source}-{target}." in n]
        moved = any(not torch.equal(before[n], p) for n, p in state.supernet.named_parameters() if n in names)
        assert moved <= bool(drawn[e, convolution])


def test_alpha_never_moves_and_the_result_is_a_connected_cell() -> None:
    method = replace(random_search_ws(), selection=BestOfSampled(12, 1, 3, 2))
    result = search(tiny_problem(epochs=2), method)
    assert result.genotype.connected
    assert all(torch.equal(t, torch.zeros_like(t)) for t in result.state.alpha.values())
    assert search(tiny_problem(epochs=2), method).genotype == result.genotype


def test_the_chosen_cell_is_the_best_of_those_sampled() -> None:
    """With every sample a finalist, the choice is the first of the most accurate over all validation images."""
    problem = tiny_problem(count=48, epochs=2)
    targets = torch.arange(48) % 3
    patterns = torch.rand(3, 8, 8, 2, generator=counted(1))  # noise cannot be learnt, these can
    images = ImageSet.of((patterns[targets] + torch.rand(48, 8, 8, 2, generator=counted(2))) / 2, targets)
    problem = replace(problem, data=replace(problem.data, train=images, val=images))
    choose = BestOfSampled(20, 2, 20)
    state = search(problem, replace(random_search_ws(), selection=choose)).state
    order = torch.randperm(48, generator=counted(problem.seed, "random search images"))
    shuffled = images.subset(order)
    rng, sampled = counted(problem.seed, "random search cells", state.epoch), []
    while len(sampled) < 20:
        if (cell := sample(problem.space, rng)).connected:
            sampled.append(cell)
    best = max(accuracy(state, problem, shuffled, cell) for cell in sampled)
    chosen = choose(state, problem)
    assert chosen in sampled
    assert accuracy(state, problem, shuffled, chosen) == pytest.approx(best)
    assert len({accuracy(state, problem, shuffled, cell) for cell in sampled}) > 1  # else there was nothing to choose


@pytest.mark.parametrize("epoch", [0, 1])
def test_few_images_rank_the_samples_and_all_images_the_finalists(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With planted scores: all images reverse the order of few, so that the last finalist is the best."""
    problem = tiny_problem(batch=2)
    state = begin(problem, random_search_ws())
    state.epoch = epoch
    few: list[Genotype] = []
    asked: Counter[int] = Counter()

    def planted(state: object, problem: object, images: ImageSet, cell: Genotype) -> float:
        asked[len(images)] += 1
        few.extend([cell] * (len(images) == 8))
        return int(cell.hash, 16) * (1 if len(images) == 8 else -1)

    monkeypatch.setattr(sys.modules[BestOfSampled.__module__], "accuracy", planted)
    chosen = random_search_ws().selection(state, problem)
    ranked = sorted(few, key=lambda cell: -int(cell.hash, 16))
    assert asked == ({8: 4} if epoch == 0 else {8: 100, 24: 10})
    assert chosen == ranked[0 if epoch == 0 else 9]
    assert epoch == 1 or ranked[0] != ranked[1]
    assert random_search_ws(published=True).selection == BestOfSampled(1000, 10, 10, 4)


def test_a_cell_s_accuracy_is_the_share_of_images_that_it_gets_right() -> None:
    problem = tiny_problem(count=12, batch=12)
    state = begin(problem, random_search_ws())
    cell = sample(problem.space, counted(4))
    (group,) = problem.space.groups
    batch = next(batches(problem.data.val, 12, none(problem.data)))
    weights = dict.fromkeys(problem.space.cell_groups(), one_hot(group, cell.groups["cell"]))
    said, _ = state.supernet(batch.images, weights, state.draw("eval"))
    said = said[0] if isinstance(said, tuple) else said
    right = (said.argmax(1) == batch.targets).double().mean().item()
    assert 0 < right < 1
    assert accuracy(state, problem, problem.data.val, cell) == pytest.approx(right)


def test_alpha_has_no_gradient_and_a_lone_op_all_the_weight() -> None:
    (group,) = SPACES["nb201"]().groups
    alpha = {"cell/alpha": torch.zeros(6, 5, requires_grad=True)}
    (grad,) = torch.autograd.grad(OneCell()(alpha, group, Draw(0, 1, "weight")).sum(), alpha["cell/alpha"])
    assert not grad.any()
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[:, 3] = True
    assert torch.equal(OneCell()(alpha, group, Draw(0, mask={"cell": mask})), mask.float())


def test_one_hot_inverts_argmax() -> None:
    (group,) = SPACES["nb201"]().groups
    w = weights(group, 9)
    assert torch.equal(one_hot(group, argmax(group, w)), w)
    assert torch.equal(GivenCell({"cell": w})({}, group, Draw(0)), w)
