"""Every method that searches, in every space, under limits: the network that it hands out keeps them, by a count of its own.

Three hundred and more searches of one or a few steps; a few of them in `make test`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from contracts.registry import SMALL, epochs, small
from oche.api.folders import fitted
from oche.base import counted
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.methods.ask_tell import AskTell
from oche.run import Run
from oche.search.searcher import as_searcher
from oche.spaces import Space
from oche.spaces.cost import cost
from oche.spaces.edges import KEPT_NORMED
from oche.spaces.fit import built, check
from oche.spaces.limits import Limits
from oche.spaces.sampling import sample
from oche.spaces.smallest import smallest
from reference.costs import hooked_multiply_adds, literal_peak
from reference.tiny import tiny_problem

KINDS = (("parameters",), ("multiply_adds",), ("parameters", "multiply_adds"), ("parameters", "memory"))
SPACES = ("toy", "nb201", "darts", "s2", "grid", "signal")
LATER = (("stages", "sase"), ("chain",))
"""Spaces whose cases come behind all others, one per method: older cases keep their numbers."""


@dataclass(frozen=True)
class Case:
    """A method in a space under limits that lie `share` of the way from the smallest network to a random one."""

    number: int
    method: str
    space: str
    kinds: tuple[str, ...]
    share: float
    fixed: bool


def cases() -> Iterator[Case]:
    """Methods x spaces x limits, the limits changing from case to case: every method in every space, and at least 300."""
    number, fits = 0, {name: as_searcher(small(name)).method for name in METHODS}
    spaces, later = SPACES, [*LATER]
    while spaces:
        for method, has in fits.items():
            for space in spaces:
                if has is not None and space in has.unfit:
                    continue
                turn = number // 3 + number
                other = number // len(SPACES) + number  # no space has the same share each time
                yield Case(number, method, space, KINDS[turn % 4], (0.0, 0.4, 0.8)[other % 3], other % 2 == 0)
                number += 1
        if number >= 300:
            spaces = later.pop(0) if later else ()


def limits_of(case: Case, space: Space, keeps: bool) -> Limits:
    """Between the smallest network and a random one."""
    least = smallest(space, Limits())
    low = cost(space, replace(least, edge=KEPT_NORMED) if keeps else least).table()
    high = cost(space, sample(space, counted(case.number, "limited"))).table()
    most = {name: int(low[name] + case.share * max(0, high[name] - low[name])) for name in case.kinds}
    return Limits(**most, fixed=case.fixed or keeps)


def check_case(case: Case, folder: Path) -> None:
    searcher = small(case.method)
    if isinstance(searcher, AskTell):
        searcher = replace(searcher, queries=3)
    found = as_searcher(searcher)
    usual = found.method.space if found.method else {}  # the method's own settings of the space
    own = {k.removeprefix(f"{case.space}."): v for k, v in usual.items() if k.startswith(f"{case.space}.")}
    problem = tiny_problem(
        case.space,
        epochs=epochs(case.method, case.space),
        batch=12,
        count=12,
        seed=case.number,
        **{**SMALL[case.space], **own},
    )  # type: ignore[arg-type]
    limits = limits_of(case, problem.space, found.keeps_weights)
    check(problem.space, limits, found.keeps_weights)
    run = Run.create(folder / "run")
    genotype, _ = found.run(replace(problem, run=run, limits=limits, built=problem.space))
    written = Genotype.from_json(run.read(Run.GENOTYPE).decode())
    assert written == genotype
    space = built(problem.space, fitted(run))
    assert space == problem.space or not limits.fixed
    network = space.network(genotype).eval()
    image = torch.rand(1, space.inputs, *space.size)
    counted_again = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiply_adds": hooked_multiply_adds(network, image),
        "memory": literal_peak(network, image) if limits.memory else 0,
    }
    for name, most in limits.items():
        assert counted_again[name] <= most, f"{case}: {counted_again[name]} {name}, {most:.0f} allowed"


ALL = list(cases())
QUICK = (
    "darts",
    "pcdarts",
    "gdas",
    "snas",
    "fair_darts",
    "drnas",
    "rlnas",
    "random_search_ws",
    "random_search",
    "largest_cell",
)


@pytest.mark.parametrize(
    "case", [case for case in ALL if case.method in QUICK and case.space in ("toy", "nb201", "signal")][:28], ids=str
)
def test_networks_keep_their_limits(case: Case, tmp_path: Path) -> None:
    check_case(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_three_hundred_limited_searches(method: str, tmp_path: Path) -> None:
    for case in ALL:
        if case.method == method:
            check_case(case, tmp_path / str(case.number))


def test_there_are_three_hundred() -> None:
    assert len(ALL) >= 300
    assert {case.method for case in ALL} == set(METHODS)
    assert {case.space for case in ALL} == {*SPACES, *itertools.chain(*LATER)}
