"""Every method searches every space, held to the checks of `oche.testing`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from contracts.registry import SMALL, epochs, small
from oche.methods import METHODS
from oche.search.method import Method
from oche.search.searcher import SearcherLike, as_searcher
from oche.search.state import Problem
from oche.spaces import SPACES
from oche.testing import check_method, noise_problem

LONG = {
    "single_stage",
    "ddpnas",
    "darts_pt",
    "zarts",
    "random_search_ws",
    "idarts",
    "shapley_nas",
    "rlnas",
    "rdarts",
    "darts_es",
    "darts_ada",
    "gm_nas",
    "pdarts",
    "rdarts_pick",
}
"""Searches of more than two seconds in any space but the smallest."""

ALIKE = ("s2", "s3", "s4")
"""Spaces that differ in their operations alone: each method searches one of them in the short run, all in the long one."""


def _long(name: str, space: str, number: int) -> bool:
    return (name in LONG and space != "toy") or (space in ALIKE and space != ALIKE[number % len(ALIKE)])


PAIRS = [
    (name, space, number)
    for number, (name, build) in enumerate(METHODS.items())
    if (method := as_searcher(build()).method) is not None
    for space in SMALL
    if space not in method.unfit
]


def _wholes() -> set[tuple[str, str]]:
    """The pairs in which the short run makes all checks: each method in the toy space and in the one least used so far."""
    found: set[tuple[str, str]] = set()
    used = Counter[str]()
    for method in dict.fromkeys(name for name, _, _ in PAIRS):
        others = [space for name, space, n in PAIRS if name == method and space != "toy" and not _long(name, space, n)]
        chosen = sorted(others, key=lambda space: used[space])[:1]
        used.update(chosen)
        found |= {(method, space) for space in ("toy", *chosen)}
    return found


WHOLE = _wholes()
SEARCHES = [
    pytest.param(name, space, marks=() if (name, space) in WHOLE else pytest.mark.slow, id=f"{name}-{space}")
    for name, space, number in PAIRS
]
ONCE = [
    pytest.param(name, space, id=f"{name}-{space}")
    for name, space, number in PAIRS
    if (name, space) not in WHOLE and not _long(name, space, number)
]


def smallest_search(name: str, space: str) -> tuple[SearcherLike, Problem]:
    """The method, and a problem as short as it goes in the space."""
    method = small(name)
    if isinstance(method, Method):
        method = replace(method, arch_start=method.arch_start if method.arch_start == 1 else 0.0)
    given = as_searcher(method).method
    assert given is not None
    own = {key.removeprefix(f"{space}."): v for key, v in given.space.items() if key.startswith(f"{space}.")}
    of_its_own = replace(SPACES[space](**SMALL[space]), **own)  # type: ignore[arg-type]
    return method, noise_problem(of_its_own, epochs=epochs(name, space), count=12, batch=6)


@pytest.mark.parametrize(("name", "space"), SEARCHES)
def test_every_method_searches_every_space(name: str, space: str) -> None:
    """Three searches each; kills are tried in `test_resume`."""
    method, problem = smallest_search(name, space)
    check_method(method, problem, kill_every=None)


@pytest.mark.parametrize(("name", "space"), ONCE)
def test_every_method_finds_a_cell_in_every_space(name: str, space: str) -> None:
    """One search, where the short run does not make all checks of the method in the space."""
    method, problem = smallest_search(name, space)
    genotype, state = as_searcher(method).run(problem)
    problem.space.check(genotype)
    assert state is not None
    assert [name for name, t in {**state.theta, **state.alpha}.items() if not t.isfinite().all()] == []


def test_the_short_run_has_every_method_in_every_space_but_the_long_ones() -> None:
    whole = [row.values for row in SEARCHES if not row.marks]
    once = [row.values for row in ONCE]
    assert sorted(whole + once) == sorted((name, space) for name, space, n in PAIRS if not _long(name, space, n))
    assert {name for name, _ in whole} == {name for name, _, _ in PAIRS}
    assert {space for _, space in whole} == set(SMALL)
