"""Limits: how they are written, what the term of expected cost is, and that networks are made to fit."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import oche
from contracts.registry import RELAXATIONS, SMALL
from oche.base import counted
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.methods.darts import darts
from oche.methods.single_stage import single_stage
from oche.methods.sparse_code import SparseCode
from oche.optim import Adam
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.begin import begin, packable
from oche.search.limits import ExpectedCost, expected, limited, ramp, strength_of
from oche.search.loop import search
from oche.search.relaxations import Relaxation
from oche.search.selection import Keep
from oche.search.state import SearchState
from oche.spaces import Space
from oche.spaces.chain import ChainSpace
from oche.spaces.cost import cost
from oche.spaces.fit import check, fit, greatest, searched, widest
from oche.spaces.limits import Limits, limit
from oche.spaces.sampling import sample
from oche.spaces.smallest import smallest
from reference.tiny import tiny_data, tiny_problem, tiny_space


@pytest.mark.parametrize(
    ("cost_", "text", "wanted"),
    [
        ("parameters", "80k", 80_000),
        ("parameters", 78_186, 78_186),
        ("multiply_adds", "12.7M", 12_700_000),
        ("multiply_adds", "1_000", 1_000),
        ("memory", "64KB", 64_000),
        ("memory", "64 KiB", 65_536),
        ("memory", "64kb", 64_000),
        ("latency", "3ms", 3.0),
        ("latency", "0.5s", 500.0),
        ("latency", "250us", 0.25),
        ("size", "none", None),
        ("int8_size", "30KB", 30_000),
    ],
)
def test_units(cost_: str, text: str | int, wanted: float | None) -> None:
    assert limit(cost_, text) == wanted


@pytest.mark.parametrize(
    ("cost_", "text", "said"),
    [
        ("parameters", "80KB", "unit 'KB'"),
        ("memory", "64", None),
        ("memory", "64M", "unit 'M'"),
        ("latency", "fast", "no amount"),
        ("parameters", "-3", "no amount"),
        ("parameters", "0", "above 0"),
    ],
)
def test_amounts_that_are_none(cost_: str, text: str, said: str | None) -> None:
    if said is None:
        assert limit(cost_, text) == float(text)
        return
    with pytest.raises(UserError, match=said):
        limit(cost_, text)


# ------------------------------------------------------------------ the term


def state_of(relaxation: Relaxation, space: str, limits: Limits, step: int = 1) -> SearchState:
    """A state in the middle of a search, alpha far from its start."""
    problem = replace(tiny_problem(space, epochs=1, **SMALL[space]), limits=limits)  # type: ignore[arg-type]
    state = begin(problem, replace(darts(), relaxation=relaxation))
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for t in state.alpha.values():
            t += 0.5 * torch.randn(t.shape, generator=rng, dtype=t.dtype)
    state.step = step
    return state


GRADIENTS = [
    pytest.param(relaxation, space, marks=() if short else pytest.mark.slow, id=f"{relaxation!r}-{space}")
    for number, relaxation in enumerate(RELAXATIONS)
    for space in ("toy", "darts", "grid")
    for short in [space == "toy" or space == ("darts", "grid")[number % 2]]
]
"""In the short run, each relaxation in the toy space and in one of the others."""


@pytest.mark.parametrize(("relaxation", "space"), GRADIENTS)
@pytest.mark.usefixtures("float64")
def test_the_gradient_is_the_finite_difference_of_the_expected_cost(relaxation: Relaxation, space: str) -> None:
    state = state_of(relaxation, space, Limits(parameters=100, multiply_adds=1000, size=50))
    term = ExpectedCost()

    def value() -> torch.Tensor:
        return term(state, {}, state.alpha, None)  # type: ignore[arg-type]

    grads = torch.autograd.grad(value(), list(state.alpha.values()), materialize_grads=True)
    assert max(float(g.abs().max()) for g in grads) > 1e-6
    for t, grad in zip(state.alpha.values(), grads, strict=True):
        assert t.dtype == torch.float64
        flat, by = t.detach().view(-1), 1e-5
        for i in range(0, len(flat), max(1, len(flat) // 6)):
            before = float(flat[i])
            flat[i] = before + by
            up = float(value().detach())
            flat[i] = before - by
            down = float(value().detach())
            flat[i] = before
            assert float(grad.view(-1)[i]) == pytest.approx((up - down) / (2 * by), rel=1e-5, abs=1e-6)


def test_the_expected_cost_is_the_mean_over_all_genotypes() -> None:
    """Every genotype of the toy space, each with the product of its operations' probabilities, at the cost of its network."""
    state = state_of(darts().relaxation, "toy", Limits(parameters=1, multiply_adds=1))
    (group,) = state.space.groups
    p = state.alpha["cell/alpha"].detach().double().softmax(-1)
    sums = {"parameters": 0.0, "multiply_adds": 0.0}
    for ops in itertools.product(range(3), repeat=3):
        chance = math.prod(float(p[e, o]) for e, o in enumerate(ops))
        cell = tuple(Choice(*edge, group.ops[e][o]) for e, (edge, o) in enumerate(zip(group.edges, ops, strict=True)))
        price = cost(state.space, Genotype("toy", {"cell": cell}))
        sums["parameters"] += chance * price.parameters
        sums["multiply_adds"] += chance * price.multiply_adds
    found = expected(
        state.space, state.problem.limits, state.space.groups, state.relaxation, state.alpha, state.draw("eval")
    )
    for name, total in sums.items():
        assert found[name].item() == pytest.approx(total, rel=1e-5)


def test_a_sharp_alpha_costs_what_its_network_costs() -> None:
    """Where each edge is decided and each node's inputs too, the expectation is the derived network's cost."""
    state = state_of(RELAXATIONS[1], "darts", Limits(parameters=1, multiply_adds=1))  # edge normalised
    genotype = sample(state.space, counted(3, "sharp"))
    with torch.no_grad():
        for group in state.space.groups:
            state.alpha[f"{group.name}/alpha"].fill_(0)
            state.alpha[f"{group.name}/beta"].fill_(-60)
            for c in genotype.groups[group.name]:
                e, o = group.entry(c.source, c.target, c.op)
                state.alpha[f"{group.name}/alpha"][e, o] = 60
                state.alpha[f"{group.name}/beta"][e] = 60
    found = expected(
        state.space, state.problem.limits, state.space.groups, state.relaxation, state.alpha, state.draw("eval")
    )
    price = cost(state.space, genotype)
    assert found["parameters"].item() == pytest.approx(price.parameters, rel=1e-5)
    assert found["multiply_adds"].item() == pytest.approx(price.multiply_adds, rel=1e-5)


def test_the_ramp_and_the_strength_by_hand() -> None:
    assert [ramp(t) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.01, 0.505, 1.0, 1.0])
    state = state_of(darts().relaxation, "toy", Limits())
    even = {"cell/alpha": torch.zeros(3, 3)}
    begun = float(
        expected(state.space, Limits(parameters=1), state.space.groups, state.relaxation, even, state.draw("eval"))[
            "parameters"
        ]
    )
    half = Limits(parameters=int(begun / 1.5))
    assert strength_of(state.space, half)["parameters"] == pytest.approx(math.log(3) / 0.5, rel=1e-2)
    assert strength_of(state.space, Limits(parameters=10**9))["parameters"] == pytest.approx(math.log(3) / 0.1)


def test_alpha_goes_where_the_limit_wants_it() -> None:
    """With a tight limit the search ends cheaper than without one, and the term alone is the reason."""
    problem = tiny_problem("toy", epochs=8)
    method = replace(darts(), arch_optimizer=Adam(0.1, weight_decay=0.0))
    tight = replace(problem, limits=Limits(parameters=1200, fixed=True))
    costs = []
    for asked in (problem, tight):
        state = search(asked, method).state
        found = expected(
            state.space, Limits(parameters=1), state.space.groups, state.relaxation, state.alpha, state.draw("eval")
        )
        costs.append(found["parameters"].item())
    assert costs[1] < costs[0] - 50


@pytest.mark.parametrize("parameters", [10**9, 1831])
def test_a_limit_far_above_changes_no_bit(parameters: int) -> None:
    """Above what alpha can ever cost there is no term; above what it costs, the term is zero and so is its gradient."""
    problem = tiny_problem("toy", epochs=3)
    plain = search(problem, darts()).state
    bounded = search(replace(problem, limits=Limits(parameters=parameters, fixed=True)), darts()).state
    for name, rows in plain.trajectory.items():
        assert all(torch.equal(a, b) for a, b in zip(rows, bounded.trajectory[name], strict=True))
    for name, t in plain.theta.items():
        assert torch.equal(t, bounded.theta[name])


def test_weights_stay_packed_beside_the_term() -> None:
    problem = replace(tiny_problem("toy"), limits=Limits(parameters=100))
    method = limited(problem, darts())
    assert isinstance(method.outer_terms[-1], ExpectedCost)
    assert packable(method)
    assert limited(problem, replace(darts(), arch_start=1.0)).outer_terms == ()


# ------------------------------------------------------------------ made to fit


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("name", ["toy", "nb201", "darts", "grid"])
def test_a_network_is_made_to_fit(name: str, fixed: bool) -> None:
    space = tiny_space(name, tiny_data(size=(16, 16)), **SMALL[name])
    genotype = sample(space, counted(1, "fit"))
    full, least = cost(space, genotype), cost(space, smallest(space, Limits()))
    limits = Limits(parameters=(full.parameters + least.parameters) // 2, fixed=fixed)
    strengths = {
        g.name: torch.rand(len(g.edges), g.width, generator=torch.Generator().manual_seed(2)) for g in space.groups
    }
    found = fit(space, genotype, limits, strengths)
    assert cost(found.space, found.genotype).parameters <= limits.parameters  # type: ignore[operator]
    found.space.check(found.genotype)
    assert found.space == space or not fixed
    assert found.done


def test_a_width_is_the_greatest_that_keeps_the_limits() -> None:
    space = tiny_space("nb201", tiny_data(), channels=8, cells=1)
    genotype = sample(space, counted(2, "width"))
    limits = Limits(parameters=20_000)
    found = fit(space, genotype, limits)
    assert found.genotype == genotype
    wide = found.space.channels  # type: ignore[attr-defined]
    by_width = {w: cost(replace(space, channels=w), genotype).parameters for w in (wide, wide + 1)}  # type: ignore[call-arg]
    assert by_width[wide] <= 20_000 < by_width[wide + 1]


@pytest.mark.parametrize("first", range(1, 9))
@pytest.mark.parametrize("most", range(9))
def test_greatest(most: int, first: int) -> None:
    assert greatest(1, 8, lambda n: n <= most, first) == (most if most else None)


def test_alpha_loses_the_least_that_it_can() -> None:
    """Two edges are dear; the one that alpha minds less becomes cheap."""
    space = tiny_space("toy", tiny_data())
    (group,) = space.groups
    genotype = Genotype("toy", {"cell": tuple(Choice(*edge, "nor_conv_3x3") for edge in group.edges)})
    strengths = torch.tensor([[0.01, 0.04, 0.95], [0.1, 0.4, 0.5], [0.01, 0.04, 0.95]])
    one_less = cost(space, genotype).parameters - 1
    found = fit(space, genotype, Limits(parameters=one_less, fixed=True), {"cell": strengths})
    assert [c.op for c in found.genotype.groups["cell"]] == ["nor_conv_3x3", "skip_connect", "nor_conv_3x3"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fixed", [True, False])
def test_nothing_is_given_up_in_vain(fixed: bool, seed: int) -> None:
    """Peak memory hangs on one place: with any operation of before put back, or wider, the network would exceed a limit."""
    space = ChainSpace(layers=(2, 1, 1), channels=4, size=(12, 12), outputs=3)
    genotype = sample(space, counted(seed, "in vain"))
    full, least = (cost(space, g).memory for g in (genotype, smallest(space, Limits())))
    limits = Limits(parameters=100_000, memory=(full + least) // 2, fixed=fixed)
    (group,) = space.groups
    strengths = {group.name: torch.rand(4, group.width, generator=torch.Generator().manual_seed(seed))}
    found = fit(space, genotype, limits, strengths)
    assert found.genotype != genotype

    def kept(genotype: Genotype, space: Space) -> bool:
        costs = cost(space, genotype)
        return costs.parameters <= 100_000 and costs.memory <= (full + least) // 2

    assert kept(found.genotype, found.space)
    table, mine = strengths[group.name], found.genotype.groups[group.name]
    for n, (old, new) in enumerate(zip(genotype.groups[group.name], mine, strict=True)):
        better = [op for op in group.ops[n] if table[n, group.ops[n].index(op)] > table[n, group.ops[n].index(new.op)]]
        for op in {old.op, *better} if old != new else ():
            again = replace(found.genotype, groups={group.name: (*mine[:n], replace(new, op=op), *mine[n + 1 :])})
            assert not kept(again, space)
    wider = replace(space, channels=found.space.channels + 1)  # type: ignore[attr-defined]
    assert fixed or not kept(found.genotype, wider)


def test_a_kept_network_drops_what_weighs_least() -> None:
    """Soft coefficients keep their width, which belongs to weights."""
    problem = tiny_problem("darts", **SMALL["darts"])  # type: ignore[arg-type]
    state = begin(problem, darts())
    genotype = Keep()(state, problem)
    half = cost(problem.space, genotype).parameters // 2
    strengths = {group.name: s for group, s in state.strengths()}
    found = fit(problem.space, genotype, Limits(parameters=half), strengths)
    assert found.space == problem.space
    assert cost(problem.space, found.genotype).parameters <= half
    assert found.genotype.edge == genotype.edge


@pytest.mark.parametrize("name", SMALL)
def test_impossible_limits_are_refused_with_the_smallest_network(name: str) -> None:
    space = tiny_space(name, tiny_data(), **SMALL[name])
    least = cost(space, smallest(space, Limits()))
    check(space, Limits(parameters=least.parameters, fixed=True))
    with pytest.raises(
        UserError, match=f"smallest network of {name} at 4 channels .* has {least.parameters:,} parameters"
    ):
        check(space, Limits(parameters=least.parameters - 1, fixed=True))


@pytest.mark.parametrize("name", ["toy", "s2", "darts"])
def test_no_network_is_smaller_than_the_smallest(name: str) -> None:
    space = tiny_space(name, tiny_data(), **SMALL[name])
    least = cost(space, smallest(space, Limits(parameters=1)))
    for seed in range(12):
        assert cost(space, sample(space, counted(seed, "smaller"))).parameters >= least.parameters


def test_the_search_is_no_wider_than_the_budget_and_than_the_limit() -> None:
    space = tiny_space("nb201", tiny_data(), channels=16, cells=1)
    assert searched(space, Limits(parameters=10**7), lambda s: True) == space
    narrow = searched(space, Limits(parameters=20_000), lambda s: True)
    assert narrow.channels in (4, 8)  # type: ignore[attr-defined]
    assert searched(space, Limits(parameters=20_000, fixed=True), lambda s: True) == space
    eights = searched(space, Limits(parameters=20_000), lambda s: s.channels % 8 == 0)  # type: ignore[attr-defined]
    assert eights.channels == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["toy", "nb201", "chain", "grid"])
def test_a_supernet_that_is_handed_out_is_as_wide_as_all_of_it_may_be(name: str) -> None:
    """By its own parameters without alpha, to the last one. One too large at its narrowest is as wide as others."""
    space = tiny_space(name, tiny_data(), **SMALL[name])
    wanted = space.channels + 3  # type: ignore[attr-defined]
    problem = tiny_problem(name, **{**SMALL[name], "channels": wanted})  # type: ignore[arg-type]
    kept = Keep()(begin(problem, single_stage().method), problem)
    most = sum(p.numel() for p in problem.space.network(kept).parameters())

    def width(parameters: int, whole: bool = True) -> int:
        return searched(space, Limits(parameters=parameters), lambda s: True, whole).channels  # type: ignore[attr-defined]

    assert (width(most), width(most - 1)) == (wanted, wanted - 1)
    least = cost(space, smallest(space, Limits())).parameters + 10
    assert width(least) == width(least, whole=False)


def test_networks_with_weights_of_a_few_candidates_are_no_narrower_for_the_others() -> None:
    """A sparse code hands out a part of its supernet, as one decision per edge does: their width is that of other methods."""

    def width(method: str, **settings: object) -> int:
        request = Request(method, space="nb201", budget="quick", max_params="100k", settings=settings)
        return resolve(request).space.channels  # type: ignore[attr-defined, no-any-return]

    usual = width("darts")
    assert width("single_stage") < usual
    assert usual == width("single_stage", **{"method.variant": "one_hot"}) == width("ista_nas_one_stage")


def test_widest_needs_a_width_that_keeps() -> None:
    space = tiny_space("nb201", tiny_data(), channels=8, cells=1)
    assert widest(space, sample(space, counted(2, "width")), Limits(parameters=10)) is None


# ------------------------------------------------------------------ the road


def test_nothing_is_cut_from_a_single_stage_network_after_its_training(tmp_path: Path) -> None:
    """Its supernet was made as wide as it may be before: all candidates are there, and the limit is nearly full."""
    found = oche.search("single_stage", space="toy", budget="smoke", max_params="6k", out=tmp_path / "run")
    table = json.loads(found.run.read("genotype.json"))["fitted"]
    assert table["done"] == []
    assert 0.7 < table["shares"]["parameters"] <= 1
    assert sum(p.numel() for p in found.network().parameters()) == table["costs"]["parameters"] <= 6000


@pytest.mark.slow
def test_a_search_keeps_its_limits_in_all_it_hands_out(tmp_path: Path) -> None:
    """The found network, the random ones, the card, and a training of the run; a training that would exceed them is refused."""
    settings = {"train.epochs": 1, "space.cells": 1, "space.stages": 2}
    found = oche.search(
        "darts",
        budget="smoke",
        epochs=1,
        compare=1,
        compare_seeds=1,
        max_params="3k",
        settings=settings,
        out=tmp_path / "run",
    )
    trained = [r for r in found.run.records() if r.get("kind") == "trained"]
    assert len(trained) == 3  # found, random, and the ResNet that fits
    assert all(int(str(r["parameters"])) <= 3000 for r in trained)
    again = oche.train(found.run.path, epochs=1, out=tmp_path / "again")
    assert sum(p.numel() for p in again.network().parameters()) <= 3000
    with pytest.raises(UserError, match="leave its sizes to the limits"):
        oche.train(found.run.path, epochs=1, settings={"space.channels": 32}, out=tmp_path / "refused")
    free = oche.train(
        found.run.path, epochs=1, settings={"space.channels": 8}, max_params="none", out=tmp_path / "free"
    )
    assert sum(p.numel() for p in free.network().parameters()) > 3000
    with pytest.raises(UserError, match="smallest network of nb201"):
        oche.search("darts", budget="smoke", max_params="100", out=tmp_path / "impossible")
    assert not (tmp_path / "impossible").exists()


def test_sparse_codes_pay_too() -> None:
    state = state_of(SparseCode(), "darts", Limits(parameters=100))
    value = ExpectedCost()(state, {}, state.alpha, None)  # type: ignore[arg-type]
    assert float(value.detach()) > 0
