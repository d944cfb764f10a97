"""A whole search step equals a literal one: weights, momenta, alpha and Adam's state, in float64, to 1e-10."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oche.base import Batch
from oche.methods.darts import darts, darts_2nd
from oche.methods.pcdarts import pcdarts
from oche.methods.random_features import random_features, rf_darts, rf_pcdarts
from oche.optim import SGD
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import FiniteDifference, Unrolled
from oche.search.loop import arch_step, search, set_learning_rate, weight_step
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from reference.darts_step import GRADIENTS, DartsReference, Reference, ToyReference
from reference.tiny import tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


TOLERANCE = {"rtol": 0.0, "atol": 1e-10}


def toy(epochs: int = 1) -> Problem:
    return tiny_problem("toy", epochs=epochs)


def small(epochs: int = 1) -> Problem:
    return tiny_problem("darts", epochs=epochs, cells=3, channels=4, nodes=2)


def two_cells(epochs: int = 1) -> Problem:
    return tiny_problem("darts", epochs=epochs, count=16, cells=2, channels=4, nodes=4)


def literal(state: SearchState, method: Method, problem: Problem) -> Reference:
    """The reference at the same starting point."""
    assert isinstance(method.weight_optimizer, SGD)
    k = getattr(method.edge, "K", 0)
    p = {name: t.detach().clone() for name, t in state.supernet.named_parameters()}
    alpha = {name: t.detach().clone() for name, t in state.alpha.items()}
    optimiser = method.weight_optimizer
    shared = {
        "k": k,
        "clip": math.inf if method.clip is None else method.clip,
        "nesterov": optimiser.nesterov,
        "weight_decay": optimiser.weight_decay,
    }
    frozen = method.name.startswith(
        "rf_"
    )  # what learns is told by shape and name, where oche asks for the module's type
    learns = [n for n, t in p.items() if not frozen or (t.ndim == 1 and not n.startswith("body.classifier"))]
    if problem.space.name == "toy":
        return ToyReference(p, learns, alpha, **shared)
    layers, steps = (getattr(problem.space, name) for name in ("cells", "nodes"))
    return DartsReference(p, learns, alpha, **shared, layers=layers, steps=steps)


def pair(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.images.double(), batch.targets


def run_reference(problem: Problem, method: Method, gradient: str = "first") -> tuple[Reference, list[float]]:
    """The whole search by the reference, and the gradient norms that it clipped."""
    net = literal(begin(problem, method), method, problem)
    weights, arch = streams(problem, method)
    norms = []
    for epoch in range(problem.epochs):
        lr = 0.001 + 0.024 * (1 + math.cos(math.pi * epoch / problem.epochs)) / 2
        for step in range(epoch * weights.steps_per_epoch, (epoch + 1) * weights.steps_per_epoch):
            inner, outer = pair(weights.at(step)), pair(arch.at(step))
            if epoch >= method.arch_start * problem.epochs and method.arch_first:
                net.arch_step(GRADIENTS[gradient](net, inner, outer, lr))
            norms.append(net.weight_step(inner, lr))
            if epoch >= method.arch_start * problem.epochs and not method.arch_first:
                net.arch_step(GRADIENTS[gradient](net, inner, outer, lr))
    return net, norms


def assert_same(state: SearchState, net: Reference) -> None:
    """Everything that either of them keeps."""
    own = dict(state.supernet.named_parameters())
    assert own.keys() == net.p.keys()
    for name, t in own.items():
        torch.testing.assert_close(t.detach(), net.p[name], **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    assert set(state.theta) == set(net.learns)
    for name, t in state.theta.items():
        buffer = state.weight_optimizer.state.get(t, {}).get("momentum_buffer")
        # a weight that no loss depends on gets no gradient, hence no step and no buffer, from torch's SGD
        assert buffer is not None, name
        torch.testing.assert_close(buffer, net.buffers[name], **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    for name, t in state.alpha.items():
        torch.testing.assert_close(t.detach(), net.alpha[name], **TOLERANCE)
        adam = state.arch_optimizer.state.get(t, {})
        assert (name in net.m) == bool(adam)
        if adam:
            torch.testing.assert_close(adam["exp_avg"], net.m[name], **TOLERANCE)
            torch.testing.assert_close(adam["exp_avg_sq"], net.v[name], **TOLERANCE)
            assert int(adam["step"]) == net.t


CASES: dict[str, Callable[[], tuple[Problem, Method]]] = {
    "darts on toy": lambda: (toy(), darts()),
    "darts on toy, two epochs": lambda: (toy(2), darts()),
    "darts on darts": lambda: (small(), darts()),
    "darts on two reduction cells of four nodes": lambda: (two_cells(), darts()),
    "darts, clipped": lambda: (toy(), replace(darts(), clip=0.05)),
    "darts, not clipped": lambda: (toy(), replace(darts(), clip=None)),
    "darts, weights first, Nesterov": lambda: (
        toy(),
        replace(darts(), arch_first=False, weight_optimizer=SGD(nesterov=True, weight_decay=5e-4)),
    ),
    "pcdarts on toy": lambda: (toy(), replace(pcdarts(), arch_start=0.0)),
    "pcdarts K=2 on toy, alpha held": lambda: (toy(2), replace(pcdarts(2), arch_start=0.5)),
    "pcdarts K=2 on darts": lambda: (small(), replace(pcdarts(2), arch_start=0.0)),
    "rf_darts on toy": lambda: (toy(2), rf_darts()),
    "rf_darts on darts": lambda: (small(), rf_darts()),
    "rf_pcdarts on darts": lambda: (small(), replace(rf_pcdarts(2), arch_start=0.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_search_equals_the_reference(case: str) -> None:
    problem, method = CASES[case]()
    net, norms = run_reference(problem, method)
    assert net.t > 0
    if "clipped" in case and method.clip is not None:
        assert min(norms) > method.clip, "the clip has nothing to do"
    assert_same(search(problem, method).state, net)


def test_one_step_equals_the_reference() -> None:
    """The first step alone: no momentum buffer yet, Adam at t = 1."""
    problem, method = toy(), darts()
    state = begin(problem, method)
    net = literal(state, method, problem)
    weights, arch = streams(problem, method)
    losses = bilevel(state, method)
    set_learning_rate(state, method, weights.steps_per_epoch)
    now = StepBatches(weights, arch, 0)
    arch_step(state, method, losses, now)
    weight_step(state, method, losses, now)
    net.arch_step(net.first_order(pair(arch.at(0))))
    net.weight_step(pair(weights.at(0)), 0.025)
    assert_same(state, net)


@pytest.mark.parametrize("gradient", ["unrolled", "difference"])
@pytest.mark.parametrize("frozen", [False, True], ids=["all weights", "random features"])
def test_second_order_search_equals_the_reference(gradient: str, frozen: bool) -> None:
    """Three whole steps; the look-ahead sees momentum buffers from the second on, and ranges over the trainable set."""
    method = darts_2nd(finite_difference=gradient == "difference")
    method = random_features(method) if frozen else method
    net, _ = run_reference(toy(), method, gradient)
    assert_same(search(toy(), method).state, net)


@pytest.mark.parametrize("make", [toy, small])
@pytest.mark.parametrize("gradient", ["unrolled", "difference"])
def test_second_order_gradient_equals_the_reference(make: Callable[[], Problem], gradient: str) -> None:
    """Before Adam divides by its size. The learning rate is large, so that the second-order part is no rounding error."""
    method = replace(darts_2nd(), arch_gradient=Unrolled() if gradient == "unrolled" else FiniteDifference())
    problem = make()
    state = begin(problem, method)
    net = literal(state, method, problem)
    weights, arch = streams(problem, method)
    for group in state.weight_optimizer.param_groups:
        group["lr"] = 0.5
    now = StepBatches(weights, arch, 0)
    _, got = method.arch_gradient(bilevel(state, method), state.weights.tensors, state.alpha, now)
    inner, outer = pair(weights.at(0)), pair(arch.at(0))
    expected, first = GRADIENTS[gradient](net, inner, outer, 0.5), net.first_order(outer)
    for name, grad in got.items():
        torch.testing.assert_close(grad, expected[name], **TOLERANCE)
        assert (grad - first[name]).abs().max() > 1e-4, "the second-order part is too small to be tested"


def test_both_steps_share_the_inner_batch() -> None:
    problem = toy()
    weights, arch = streams(problem, darts())
    now = StepBatches(weights, arch, 1)
    assert now.inner() is now.inner()
    torch.testing.assert_close(now.inner().images, weights.at(1).images)
