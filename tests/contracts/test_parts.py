"""What holds for every part in every combination: one row a part, and a new part adds a row.

A step is finite, takes alpha and the weights that learn along and nothing else, and the same seed gives the same bits.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts.registry import ARCH_GRADIENTS, EDGE_TYPES, RELAXATIONS, SELECTIONS, SMALL, TRAINABLES
from oche.bilevel import ArchGradient
from oche.edges import EDGES, EdgeFactory, WeightedSum
from oche.loop import (
    SearchResult,
    StepBatches,
    arch_step,
    begin,
    bilevel,
    search,
    set_learning_rate,
    streams,
    weight_step,
)
from oche.method import Method
from oche.methods import METHODS, method_named
from oche.relaxations import Relaxation
from oche.selection import Selection
from oche.spaces import SPACES
from oche.state import Problem, SearchState
from oche.trainable import Trainable
from reference.tiny import tiny_problem

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


@pytest.mark.parametrize("trainable", TRAINABLES, **named)
@pytest.mark.parametrize("arch_gradient", ARCH_GRADIENTS, **named)
@pytest.mark.parametrize(("relaxation", "edge"), list(itertools.product(RELAXATIONS, EDGE_TYPES)), **named)
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
    assert moved == state.learns


@pytest.mark.parametrize("space", SMALL)
@pytest.mark.parametrize("name", [name for name, build in METHODS.items() if isinstance(build(), Method)])
def test_every_method_searches_every_space(name: str, space: str) -> None:
    """One epoch: reproducible to the bit, another seed gives another search, the genotype belongs to the space."""
    method = method_named(name, {"K": 2} if "pcdarts" in name else {})
    assert isinstance(method, Method)
    method = replace(method, arch_start=0.0)

    def run(seed: int) -> SearchResult:
        return search(tiny_problem(space, count=12, batch=6, seed=seed, **SMALL[space]), method)

    first, again, other = run(0), run(0), run(1)
    assert_finite(first.state)
    assert_same_bits(first.state, again.state)
    assert first.genotype == again.genotype
    assert any(not torch.equal(t, other.state.theta[n]) for n, t in first.state.theta.items())
    tiny_problem(space, **SMALL[space]).space.check(first.genotype)
    assert 0 <= first.state.entropy() <= 1 + 1e-9


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
    gone = problem.space.spread({g.name: ~(g.valid() & state.mask[g.name]) for g in problem.space.groups})
    assert any(rows.any() for rows in gone.values())
    for cell in problem.space.cell_groups():
        assert torch.equal(weights[cell] == 0, gone[cell])
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
    assert genotype.discrete
    assert genotype == selection(begin(problem, method_named("darts")), problem)  # type: ignore[arg-type]


def test_the_lists_of_this_file_are_complete() -> None:
    """A part that is registered or subclasses its interface has a row above."""
    assert set(SMALL) == set(SPACES)
    assert set(EDGES.values()) <= {type(edge) for edge in EDGE_TYPES}
    shared = {part for part in Relaxation.__subclasses__() if part.__module__ == "oche.relaxations"}
    assert shared == {type(relaxation) for relaxation in RELAXATIONS}


@pytest.mark.parametrize("trainable", TRAINABLES, **named)
def test_a_trainable_names_weights_of_the_supernet(trainable: Trainable) -> None:
    supernet = tiny_problem("darts", **SMALL["darts"]).space.supernet(WeightedSum(), affine=trainable.affine)
    names = trainable(supernet)
    assert names
    assert names <= {name for name, _ in supernet.named_parameters()}
