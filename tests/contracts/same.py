"""Two methods that ought to be one: `assert_same_search` for "equals its base when its own constant is zero"."""

from __future__ import annotations

from dataclasses import replace

from contracts.registry import SMALL
from oche.base import Params
from oche.optim import Adam
from oche.search.loop import search
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from oche.spaces.edges import plain_name
from reference.tiny import tiny_problem


def searched(method: Method, space: str, epochs: int = 2) -> SearchState:
    """The end of a small search, alpha moving from the first epoch on."""
    problem = tiny_problem(space, epochs=epochs, count=24, **SMALL[space])  # type: ignore[arg-type]
    return search(problem, method).state


def moved(one: SearchState, other: SearchState) -> float:
    """The largest difference between two states' weights and alpha; infinite where they do not have the same."""
    pairs = [(by_name(one), by_name(other)), (one.alpha, other.alpha)]
    if any({n: t.shape for n, t in a.items()} != {n: t.shape for n, t in b.items()} for a, b in pairs):
        return float("inf")
    return max(float((t.detach() - b[n].detach()).abs().max()) for a, b in pairs for n, t in a.items())


def by_name(state: SearchState) -> Params:
    """The supernet's weights by the names they have without wrappers around operations."""
    return {plain_name(name): p for name, p in state.supernet.named_parameters()}


def assert_same_search(method: Method, base: Method, space: str = "toy", tolerance: float = 0.0) -> None:
    """Both searches end with the same weights and alpha, to the bit unless a tolerance is given."""
    difference = moved(searched(method, space), searched(base, space))
    assert difference <= tolerance, f"{method.name} differs from {base.name} by {difference:.3g}"


def assert_other_search(method: Method, base: Method, space: str = "toy") -> None:
    """The counterpart: with its constant on, the method is no alias of its base."""
    difference = moved(searched(method, space), searched(base, space))
    assert difference > 1e-9, f"{method.name} is {base.name} under another name"


def step_alpha_from(method: Method, alpha_lr: float = 0.05) -> Method:
    """The method with alpha held nowhere and stepped far, so that three steps tell two methods apart."""
    return replace(method, arch_start=0.0, arch_optimizer=Adam(alpha_lr))


def problem_of(space: str, **settings: object) -> Problem:
    """A tiny problem in the contracts' size of the space."""
    return tiny_problem(space, **{**SMALL[space], **settings})  # type: ignore[arg-type]
