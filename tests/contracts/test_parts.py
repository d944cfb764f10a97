"""Contracts of every part in every combination: one row per part, and a new part adds a row.

A step is finite, takes alpha and the weights that learn along and nothing else, and the same seed gives the same bits.
"""

from __future__ import annotations

import itertools
from dataclasses import is_dataclass, replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from contracts.registry import (
    ARCH_GRADIENTS,
    CONTROLS,
    EDGE_TYPES,
    EPOCHS,
    OPTIONS,
    RELAXATIONS,
    SELECTIONS,
    SMALL,
    TRAINABLES,
    TRIED,
)
from oche.methods import METHODS, method_named
from oche.schedule import Constant
from oche.search import bilevel as gradients
from oche.search import relaxations, selection, trainable
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import ArchGradient, Bilevel, detached
from oche.search.loop import arch_step, set_learning_rate, weight_step
from oche.search.method import Method
from oche.search.relaxations import GumbelSoftmax, Relaxation
from oche.search.selection import Keep, Selection
from oche.search.state import Problem, SearchState
from oche.search.trainable import TRAINABLES as TRAINABLES_BY_NAME
from oche.search.trainable import Trainable
from oche.spaces import SPACES, edges
from oche.spaces.edges import EDGES, EdgeFactory, WeightedSum
from reference.tiny import tiny_problem

PARTS = (RELAXATIONS, EDGE_TYPES, ARCH_GRADIENTS + TRIED, TRAINABLES)
SHARED = [n for n, gradient in enumerate(ARCH_GRADIENTS + TRIED) if type(gradient).__module__ == gradients.__name__]
"""The gradients that are no method's own."""


def _quick(r: int, e: int, g: int, t: int) -> bool:
    """True for one combination per relaxation and edge type: so few, and each two parts meet."""
    return g == SHARED[(r + e) % len(SHARED)] and t == (r + e // 3) % len(TRAINABLES)


def _combinations() -> list[object]:
    """All combinations; in the short run those in which each two parts meet, without the gradients of the methods' own."""
    found = []
    for numbers in itertools.product(*(range(len(kind)) for kind in PARTS)):
        parts = [kind[n] for kind, n in zip(PARTS, numbers, strict=True)]
        name = "-".join(repr(part).replace("oche.", "") for part in parts)
        found.append(pytest.param(*parts, marks=() if _quick(*numbers) else pytest.mark.slow, id=name))
    return found


def test_in_the_short_run_each_two_parts_meet() -> None:
    short = [n for n in itertools.product(*(range(len(kind)) for kind in PARTS)) if _quick(*n)]
    there = [range(len(RELAXATIONS)), range(len(EDGE_TYPES)), SHARED, range(len(TRAINABLES))]
    for one, other in itertools.combinations(range(4), 2):
        assert {(n[one], n[other]) for n in short} == set(itertools.product(there[one], there[other]))


named = {"ids": lambda part: repr(part).replace("oche.", "")}


def step(problem: Problem, method: Method) -> SearchState:
    """One architecture step and one weight step from a fresh state."""
    state = begin(problem, method)
    weights, arch = streams(problem, method)
    losses, now = bilevel(state, method), StepBatches(weights, arch, 0)
    set_learning_rate(state, method, weights.steps_per_epoch)
    arch_step(state, method, losses, now)
    weight_step(state, method, losses, now)
    return state


def bits(state: SearchState) -> dict[str, Tensor]:
    """Every tensor of a state by a name."""
    found = {f"weight {n}": t.detach() for n, t in state.supernet.named_parameters()}
    found |= {f"alpha {n}": t.detach() for n, t in state.alpha.items()}
    for which, optimizer in (("sgd", state.weight_optimizer), ("adam", state.arch_optimizer)):
        for i, own in enumerate(optimizer.state.values()):
            found |= {f"{which} {i} {key}": t for key, t in own.items() if isinstance(t, Tensor)}
    return found


def assert_same_bits(a: SearchState, b: SearchState) -> None:
    first, second = bits(a), bits(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_finite(state: SearchState) -> None:
    assert [name for name, t in bits(state).items() if not torch.isfinite(t).all()] == []


@pytest.mark.parametrize(("relaxation", "edge", "arch_gradient", "trainable"), _combinations())
def test_a_step_of_any_combination(
    relaxation: Relaxation, edge: EdgeFactory, arch_gradient: ArchGradient, trainable: Trainable
) -> None:
    problem = tiny_problem("toy")
    method = Method("any", relaxation=relaxation, edge=edge, arch_gradient=arch_gradient, trainable=trainable)
    start, state = begin(problem, method), step(problem, method)
    assert_finite(state)
    assert_same_bits(state, step(problem, method))
    for group in problem.space.groups:
        assert state.alpha[f"{group.name}/alpha"].shape == (len(group.edges), group.width)
    for name, t in state.alpha.items():
        assert not torch.equal(t, start.alpha[name]), f"{name} did not move"
        assert (t - start.alpha[name]).abs().max() <= 3.1e-4, "Adam's first step is at most its learning rate"
    before = dict(start.supernet.named_parameters())
    moved = {name for name, t in state.supernet.named_parameters() if not torch.equal(t, before[name])}
    if samples(relaxation):
        assert moved == reached(problem, method) <= state.learns
    else:
        assert moved == state.learns


def samples(relaxation: Relaxation) -> bool:
    """True if one op per edge has a weight: a cell may then be cut off, and an op need not be computed."""
    return isinstance(relaxation, GumbelSoftmax) and relaxation.hard


def reached(problem: Problem, method: Method) -> set[str]:
    """The weights that SGD's formula moves from a fresh start: d inner / d theta + weight decay theta is there and not zero."""
    state = begin(problem, method)
    weights, arch = streams(problem, method)
    losses, now = bilevel(state, method), StepBatches(weights, arch, 0)
    set_learning_rate(state, method, weights.steps_per_epoch)
    arch_step(state, method, losses, now)
    loss = losses.inner(state.theta, detached(state.alpha), now.inner())
    grads = torch.autograd.grad(loss, list(state.theta.values()), allow_unused=True)
    pairs = zip(state.theta.items(), grads, strict=True)
    return {name for (name, t), grad in pairs if grad is not None and (grad + 3e-4 * t).any()}


def test_the_ops_that_were_not_drawn_rest() -> None:
    """Against the sample itself: of the ops on the way to the output, those of weight 0 are bit for bit where they were."""
    problem = tiny_problem("toy")
    method = Method("any", relaxation=GumbelSoftmax(Constant(1.0), hard=True), edge=edges.SampledOps())
    start, state = begin(problem, method), step(problem, method)
    before = dict(start.supernet.named_parameters())
    (group,) = problem.space.groups
    for cell, w in state.op_weights(state.alpha, state.draw("weight")).items():
        for e, (source, target) in enumerate(group.edges):
            for o, op in enumerate(group.ops[e]):
                path = f"body.cells.{cell}.edges.{source}-{target}.ops.{op}."
                own = {n: p for n, p in state.supernet.named_parameters() if n.startswith(path)}
                assert w[e, o] or all(torch.equal(p, before[n]) for n, p in own.items())


@pytest.mark.parametrize("relaxation", RELAXATIONS, **named)
@pytest.mark.parametrize("space", SPACES)
def test_masked_candidates_have_no_weight_and_no_gradient(space: str, relaxation: Relaxation) -> None:
    problem = tiny_problem(space, **SMALL[space])
    state = begin(problem, replace(METHODS["darts"](), relaxation=relaxation))  # type: ignore[type-var]
    rng = torch.Generator().manual_seed(0)
    for group in problem.space.groups:
        state.mask[group.name] = torch.rand(len(group.edges), group.width, generator=rng) < 0.6
    weights = state.op_weights(state.alpha, state.draw("weight"))
    assert weights.keys() == problem.space.cell_groups().keys()
    lost = problem.space.spread({g.name: ~(g.valid() & state.mask[g.name]) for g in problem.space.groups})
    assert any(rows.any() for rows in lost.values())
    for cell, gone in lost.items():
        assert weights[cell].shape == gone.shape
        if samples(relaxation):
            assert torch.equal(weights[cell].sum(-1), (~gone).any(-1).to(weights[cell]))
            assert torch.equal((weights[cell] == 1).sum(-1), (~gone).any(-1).long())
            assert not weights[cell][gone].any()
        else:
            assert torch.equal(weights[cell] == 0, gone)
    total = sum((w.square().sum() for w in weights.values()), torch.zeros(()))
    grads = dict(
        zip(state.alpha, torch.autograd.grad(total, list(state.alpha.values()), materialize_grads=True), strict=True)
    )
    for group in problem.space.groups:
        assert not grads[f"{group.name}/alpha"][~(group.valid() & state.mask[group.name])].any()


@pytest.mark.parametrize("selection", SELECTIONS, **named)
@pytest.mark.parametrize("space", SPACES)
def test_a_selection_gives_a_genotype_of_the_space(space: str, selection: Selection) -> None:
    problem = tiny_problem(space, **SMALL[space])
    genotype = selection(begin(problem, method_named("darts")), problem)  # type: ignore[arg-type]
    problem.space.check(genotype)
    assert genotype.discrete == (selection != Keep())
    assert genotype == selection(begin(problem, method_named("darts")), problem)  # type: ignore[arg-type]


def parts(module: ModuleType, *others: str) -> set[type]:
    """The dataclasses that a module defines under a public name, but for `others`."""
    own = {name: c for name, c in vars(module).items() if is_dataclass(c) and c.__module__ == module.__name__}
    return {c for name, c in own.items() if isinstance(c, type) and not name.startswith("_") and name not in others}


def shared(rows: tuple[object, ...], module: ModuleType) -> set[type]:
    """The classes of a list's rows that the module defines."""
    return {type(row) for row in rows if type(row).__module__ == module.__name__}


def test_the_lists_of_this_file_are_complete() -> None:
    """Each part of a shared module has a row, whatever is registered is such a part, and the tables name what there is."""
    assert set(SMALL) == set(SPACES)
    gates = ("SigmoidGate", "ReluTanhGate", "SoftmaxGate")  # parts of Gated, tested with it
    assert shared(RELAXATIONS, relaxations) == parts(relaxations, *gates)
    assert shared(EDGE_TYPES, edges) == parts(edges)
    assert shared(ARCH_GRADIENTS, gradients) == parts(gradients, Bilevel.__name__)
    assert shared(SELECTIONS, selection) == parts(selection)
    assert shared(TRAINABLES + CONTROLS, trainable) == parts(trainable)
    assert {type(t) for t in TRAINABLES_BY_NAME.values()} == parts(trainable)
    named_edges = set(EDGES.values()) - {edges.kept_normed}
    others = {edges.SampledOps, edges.AuxiliarySkip, edges.DropPath, edges.SkipDropout, edges.Normed}
    assert named_edges | others == parts(edges)
    assert not OPTIONS.keys() - METHODS.keys()
    assert not EPOCHS.keys() - METHODS.keys()


@pytest.mark.parametrize("trainable", TRAINABLES + CONTROLS, **named)
def test_a_trainable_names_weights_of_the_supernet(trainable: Trainable) -> None:
    supernet = tiny_problem("darts", **SMALL["darts"]).space.supernet(WeightedSum(), affine=trainable.affine)
    trainable.prepare(supernet, torch.Generator().manual_seed(0))
    names = trainable(supernet)
    assert names
    assert names <= {name for name, _ in supernet.named_parameters()}
