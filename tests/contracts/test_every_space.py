"""Every method searches every space, held to the checks of `oche.testing`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracts.registry import SMALL, epochs, small
from oche.methods import METHODS
from oche.search.method import Method
from oche.search.searcher import as_searcher
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


SEARCHES = [
    pytest.param(name, space, marks=pytest.mark.slow if _long(name, space, number) else (), id=f"{name}-{space}")
    for number, (name, build) in enumerate(METHODS.items())
    if (method := as_searcher(build()).method) is not None
    for space in SMALL
    if space not in method.unfit
]


@pytest.mark.parametrize(("name", "space"), SEARCHES)
def test_every_method_searches_every_space(name: str, space: str) -> None:
    """As short as it goes; kills are tried in `test_resume`."""
    method = small(name)
    if isinstance(method, Method):
        method = replace(method, arch_start=method.arch_start if method.arch_start == 1 else 0.0)
    given = as_searcher(method).method
    assert given is not None
    own = {key.removeprefix(f"{space}."): v for key, v in given.space.items() if key.startswith(f"{space}.")}
    of_its_own = replace(SPACES[space](**SMALL[space]), **own)  # type: ignore[arg-type]
    problem = noise_problem(of_its_own, epochs=epochs(name, space), count=12, batch=6)
    check_method(method, problem, kill_every=None)
