"""Every outer term changes every hypergradient by exactly its own derivative: total, where the gradient looks ahead.

The second derivation is plain autograd, through the weight step where there is one. What CDARTS's second network adds has the same
test in its own file, since it steps as well.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from contracts.registry import ARCH_GRADIENTS
from contracts.same import problem_of
from oche.base import Alpha, Params
from oche.methods import METHODS
from oche.methods.anr_darts import AlphaNorm
from oche.methods.beta_darts import BetaDecay
from oche.methods.cdarts import Evaluation, PoolsAndSkips
from oche.methods.d_darts import Ablation
from oche.methods.darts import darts
from oche.methods.darts_aer import Entropy as EntropyInBits
from oche.methods.drnas import DirichletKL
from oche.methods.fair_darts import ZeroOne
from oche.methods.fault_darts import Complexity
from oche.methods.idarts import ImplicitNeumann
from oche.methods.snas import Resource
from oche.schedule import Constant
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import ArchGradient, Bilevel, FiniteDifference, Unrolled, required
from oche.search.loop import set_learning_rate
from oche.search.method import Method
from oche.search.relaxations import Gated
from oche.search.searcher import as_searcher
from oche.search.state import SearchState
from oche.search.terms import Entropy, InputEntropy, Term, discretisation, log_distance

pytestmark = pytest.mark.usefixtures("float64")

OF_ALPHA: tuple[Term, ...] = (
    BetaDecay(0.5),
    AlphaNorm(Constant(3.0)),
    EntropyInBits(Constant(0.2)),
    ZeroOne(10.0),
    ZeroOne(10.0, absolute=True),
    ZeroOne(9.0, by_group=True),
    DirichletKL(0.1),
    PoolsAndSkips(Constant(5.0)),
    Entropy(Constant(1.0), Constant(0.5)),
    Entropy(Constant(1.0), Constant(0.5), log_distance),
    Entropy(Constant(1.0), Constant(0.5), discretisation),
    InputEntropy(Constant(1.0), Constant(0.5)),
    Resource(1e-2),
    Complexity(3.0),
)
OF_WEIGHTS: tuple[Term, ...] = (Ablation(learns=True),)
CASES = [(term, space) for term in OF_ALPHA for space in ("toy", "grid")]
CASES.remove((PoolsAndSkips(Constant(5.0)), "grid"))  # it has none

named = {
    "ids": lambda part: part if isinstance(part, str) else re.sub(" at 0x[0-9a-f]+", "", repr(part))
}  # the same in every process


def setting(method: Method, space: str) -> tuple[SearchState, StepBatches]:
    """A state in the middle of a search, alpha far from its start; and the batches of a step."""
    state = begin(problem_of(space), method)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for t in state.alpha.values():
            t += torch.randn(t.shape, generator=rng, dtype=torch.float64)
    state.step, state.epoch = 1, 1
    weights, arch = streams(state.problem, method)
    set_learning_rate(state, method, weights.steps_per_epoch)
    return state, StepBatches(weights, arch, 0)


@cache
def hypergradient(arch_gradient: ArchGradient, terms: tuple[Term, ...], space: str) -> Alpha:
    method = method_in(space, outer_terms=terms)
    state, batches = setting(method, space)
    return arch_gradient(bilevel(state, method), state.theta, state.alpha, batches)[1]


def method_in(space: str, outer_terms: tuple[Term, ...] = ()) -> Method:
    method = replace(darts(), outer_terms=outer_terms)
    return replace(method, relaxation=Gated()) if space == "grid" else method


@cache
def own(term: Term, space: str, through: ArchGradient | None) -> Alpha:
    """d term / d alpha by plain autograd, at the weights or through the steps that the gradient looks back on."""
    method = method_in(space)
    state, batches = setting(method, space)
    losses, theta = bilevel(state, method), required(state.theta)
    if isinstance(through, Unrolled | FiniteDifference):
        theta = losses.descend(theta, slope(losses, theta, state.alpha, batches))
    elif isinstance(through, ImplicitNeumann):
        for _ in range(through.terms + 1):  # steps at the present weights, by value: their derivatives add up
            g = slope(losses, theta, state.alpha, batches)
            moved = {n: t - losses.rate() * g[n] for n, t in theta.items()}
            theta = {n: state.theta[n].detach() + moved[n] - moved[n].detach() for n in theta}
    value = term(state, theta, state.alpha, batches.outer())
    grads = torch.autograd.grad(value, list(state.alpha.values()), materialize_grads=True)
    return dict(zip(state.alpha, grads, strict=True))


def slope(losses: Bilevel, theta: Params, alpha: Alpha, batches: StepBatches) -> Params:
    """d inner / d theta, with its graph."""
    inner = losses.inner(theta, alpha, batches.inner())
    g = torch.autograd.grad(inner, list(theta.values()), create_graph=True, materialize_grads=True)
    return dict(zip(theta, g, strict=True))


def assert_added(
    arch_gradient: ArchGradient, term: Term, space: str, through: ArchGradient | None, tolerance: float
) -> None:
    plain, found = (hypergradient(arch_gradient, terms, space) for terms in ((), (term,)))
    expected = own(term, space, through)
    largest = max(float(t.abs().max()) for t in expected.values())
    assert largest > 1e-4, "a term without a derivative would pass"
    for name, t in expected.items():
        torch.testing.assert_close(found[name] - plain[name], t, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize(("term", "space"), CASES, **named)
@pytest.mark.parametrize("arch_gradient", ARCH_GRADIENTS, **named)
def test_a_term_of_alpha_adds_its_own_derivative(arch_gradient: ArchGradient, term: Term, space: str) -> None:
    assert_added(arch_gradient, term, space, through=None, tolerance=1e-7)


@pytest.mark.parametrize("arch_gradient", ARCH_GRADIENTS, **named)
def test_a_term_of_the_weights_reaches_through_the_step(arch_gradient: ArchGradient) -> None:
    if isinstance(arch_gradient, FiniteDifference):  # so near that hardly a rectifier turns
        assert_added(replace(arch_gradient, radius=1e-6), Ablation(learns=True), "toy", arch_gradient, tolerance=1e-4)
    else:
        assert_added(arch_gradient, Ablation(learns=True), "toy", arch_gradient, tolerance=1e-7)


def test_every_outer_term_is_here() -> None:
    used: set[type] = set()
    for build in METHODS.values():
        method = as_searcher(build()).method
        used |= {type(term) for term in method.outer_terms} if method else set()
    assert used <= {type(term) for term in (*OF_ALPHA, *OF_WEIGHTS)} | {Evaluation}
