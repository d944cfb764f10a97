"""D-DARTS: the cell losses' gradients against each cell's loss by itself, what they leave alone, and architecture coding."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts.same import assert_other_search, assert_same_search, problem_of
from oche.base import Batch
from oche.genotype import Choice
from oche.methods.d_darts import Ablation, Contributions, EdgeThreshold, d_darts, without
from oche.methods.dartopti import ACCURACIES, DARTOPTI_OPS, RESIDUAL, StandstillStop, dartopti, hausdorff
from oche.methods.fair_darts import Threshold, ZeroOne, fair_darts
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import gradient
from oche.search.checkpoint import dumps, loads
from oche.search.loop import arch_step, search
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from reference.tiny import tiny_data

pytestmark = pytest.mark.usefixtures("float64")


def started(problem: Problem, method: Method) -> tuple[SearchState, Batch]:
    """A fresh state with alpha anywhere, and its validation batch."""
    state = begin(problem, method)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for t in state.alpha.values():
            t.copy_(torch.randn(t.shape, generator=rng))
    return state, StepBatches(*streams(problem, method), 0).outer()


def by_cell(**settings: object) -> Problem:
    return problem_of("darts", sharing="cell", **settings)


# ---------------------------------------------------------------------- the cell losses


def cell_loss(state: SearchState, batch: Batch, cell: str, zero_one: float, ablation: float, floor: float) -> Tensor:
    """L_c written down literally; the scale |mean M| is held, nothing else is."""
    draw = state.draw("alpha")
    weights = state.op_weights(state.alpha, draw)
    whole, _ = state.task_loss(weights, batch, draw)
    contributions = {c: whole - state.task_loss(without(weights, c, state, draw), batch, draw)[0] for c in weights}
    mean = torch.stack(list(contributions.values())).mean()
    scale = max(abs(mean.item()), floor * whole.item())
    sigmoid = state.alpha[f"{cell}/alpha"].sigmoid()
    return whole - zero_one * (sigmoid - 0.5).square().mean() - ablation * (mean - contributions[cell]) / scale


@pytest.mark.parametrize("floor", [0.0, 0.1, 100.0])
@pytest.mark.parametrize(("zero_one", "ablation"), [(9.0, 0.7), (0.0, 0.7), (9.0, 0.0), (0.0, 0.0)])
def test_each_cell_s_alpha_has_the_gradient_of_its_own_loss_once(
    zero_one: float, ablation: float, floor: float
) -> None:
    terms = (ZeroOne(zero_one, by_group=True), Ablation(ablation, floor, learns=True))
    problem, method = by_cell(without=("none",)), replace(d_darts(), outer_terms=terms)
    state, batch = started(problem, method)
    found = gradient(bilevel(state, method).outer(state.theta, state.alpha, batch), state.alpha)
    for cell in problem.space.cell_groups():
        key = f"{cell}/alpha"
        expected = gradient(cell_loss(state, batch, cell, zero_one, ablation, floor), {key: state.alpha[key]})
        torch.testing.assert_close(found[key], expected[key])


@pytest.mark.slow
def test_the_ablation_term_moves_alpha_and_the_code_s_constant_does_not() -> None:
    problem = by_cell(without=("none",))
    state, batch = started(problem, d_darts())
    grads = gradient(Ablation(learns=True)(state, state.theta, state.alpha, batch), state.alpha)
    assert all(g.abs().max() > 1e-6 for g in grads.values())
    assert d_darts().outer_terms == (ZeroOne(9.0, by_group=True), Ablation(0.7, learns=False))
    assert_same_search(d_darts(), d_darts(ablation=0.0), "darts")
    assert_other_search(d_darts(learns=True), d_darts(), "darts")


def test_an_ablated_cell_has_random_weights_and_the_others_keep_theirs() -> None:
    problem = problem_of("s1", sharing="cell")
    state, _ = started(problem, d_darts())
    draw = state.draw("alpha")
    weights = state.op_weights(state.alpha, draw)
    ablated = without(weights, "cell_1", state, draw)
    assert torch.equal(ablated["cell_0"], weights["cell_0"])
    there = problem.space.cell_groups()["cell_1"].valid()
    assert torch.equal(ablated["cell_1"] != 0, there)
    assert not ablated["cell_1"].requires_grad
    assert torch.equal(ablated["cell_1"], without(weights, "cell_1", state, draw)["cell_1"])
    assert 0 <= ablated["cell_1"].min() < ablated["cell_1"].max() <= 1


def test_an_architecture_step_leaves_the_weights_and_their_gradients_alone() -> None:
    problem, method = by_cell(without=("none",)), d_darts()
    state, _ = started(problem, method)
    before = {n: t.detach().clone() for n, t in state.supernet.named_parameters()}
    for t in state.theta.values():
        t.grad = torch.ones_like(t)
    arch_step(state, method, bilevel(state, method), StepBatches(*streams(problem, method), 0))
    assert all((t.grad == 1).all() and torch.equal(t, before[n]) for n, t in state.theta.items())


def test_one_group_s_mean_is_fair_darts_s_zero_one_loss() -> None:
    problem = problem_of("toy")
    state, batch = started(problem, fair_darts())
    whole = ZeroOne(3.0)(state, {}, state.alpha, batch)
    torch.testing.assert_close(whole, ZeroOne(3.0, by_group=True)(state, {}, state.alpha, batch))
    several, batch = started(by_cell(), fair_darts())
    mean, total = (ZeroOne(3.0, by_group=each)(several, {}, several.alpha, batch) for each in (False, True))
    torch.testing.assert_close(total, 3 * mean)  # three cells of one size


def test_alpha_s_rate_falls_to_a_third_and_a_resumed_search_knows_the_first() -> None:
    problem, method = problem_of("toy", epochs=4), d_darts()
    state = begin(problem, method)
    rates = []
    for epoch in range(5):
        state.epoch = epoch
        method.callbacks[0].on_epoch_start(state)
        rates.append(state.arch_optimizer.param_groups[0]["lr"])
        fresh = begin(problem, method)
        assert loads(fresh, dumps(state), problem.fabric.device)
        state = fresh
    torch.testing.assert_close(rates, [3e-3, *(2e-3 + 1e-3 * x for x in (0.5**0.5, 0.0, -(0.5**0.5))), 1e-3])


def test_the_log_has_every_cell_s_contribution() -> None:
    problem = by_cell(without=("none",), epochs=1)
    state = search(problem, d_darts()).state
    record: dict[str, object] = {}
    d_darts().callbacks[1].on_epoch_end(state, record)
    assert list(record["contributions"]) == ["cell_0", "cell_1", "cell_2"]  # type: ignore[call-overload]


# ---------------------------------------------------------------------- coding and derivation


def alpha_of(problem: Problem, values: dict[tuple[int, int, str], float]) -> SearchState:
    """Sigmoid weights of 1/2, but for those of (source, target, op) in the first cell."""
    state = begin(problem, d_darts())
    group = problem.space.groups[0]
    with torch.no_grad():
        for (source, target, op), w in values.items():
            e = group.edges.index((source, target))
            state.alpha[f"{group.name}/alpha"][e, group.ops[e].index(op)] = torch.logit(torch.tensor(w))
    return state


def test_an_edge_keeps_two_ops_above_the_threshold() -> None:
    problem = by_cell()
    state = alpha_of(
        problem,
        {
            (0, 2, "sep_conv_3x3"): 0.9,
            (0, 2, "skip_connect"): 0.95,
            (0, 2, "dil_conv_3x3"): 0.86,
            (1, 2, "sep_conv_5x5"): 0.84,
            (1, 2, "none"): 0.99,
            (2, 3, "max_pool_3x3"): 0.6,
        },
    )
    found = EdgeThreshold()(state, problem)
    problem.space.check(found)
    assert set(found.groups["cell_0"]) == {
        Choice(0, 2, "sep_conv_3x3"),
        Choice(0, 2, "skip_connect"),
        Choice(2, 3, "max_pool_3x3"),
    }
    sparse = Threshold(0.85)(state, problem)
    assert {c for c in sparse.groups["cell_0"] if c.target == 2} == {Choice(0, 2, "skip_connect")}
    assert d_darts(parse="edge", least=0.7).selection == EdgeThreshold(0.7)
    network = problem.space.network(found)
    assert network(torch.rand(2, 2, 8, 8)).shape == (2, 3)


def test_alpha_of_a_network_made_by_hand_is_decoded_to_it() -> None:
    ops = (DARTOPTI_OPS,)
    problem = by_cell(nodes=4, normal=ops, reduce=ops)
    state = begin(problem, dartopti())
    expected = {Choice(source, target, op) for op, target, source in RESIDUAL}
    for selection in (EdgeThreshold(), Threshold(0.85)):
        found = selection(state, problem)
        assert {n: set(own) for n, own in found.groups.items()} == dict.fromkeys(problem.space.cell_groups(), expected)
    w = next(iter(state.op_weights(state.alpha, state.draw("eval")).values())).detach()
    assert sorted(w.flatten().tolist())[-6:] == pytest.approx([1.0] * 6, abs=1e-4)
    assert (w == 0.5).sum() == w.numel() - 6


# ---------------------------------------------------------------------- DARTOpti's stop


def hamming(u: list[bool], v: list[bool], w: list[float]) -> float:
    """scipy's, with weights."""
    return sum(x for a, b, x in zip(u, v, w, strict=True) if a != b) / sum(w)


def cell_hausdorff_distance(c1: list[list[bool]], c2: list[list[bool]], w: list[float]) -> float:
    """architecture_processing.py, lines 17 to 59, without the shuffling that changes its speed alone."""
    cmax = 0.0
    for row in c1:
        cmin = math.inf
        for other in c2:
            d = hamming(row, other, w)
            if d < cmax:
                break
            if d < cmin:
                cmin = d
        if cmin >= cmax and d >= cmax:
            cmax = cmin
    return cmax


def test_the_distance_is_the_code_s() -> None:
    rng = torch.Generator().manual_seed(3)
    w = torch.rand(12, generator=rng) + 0.5
    for _ in range(30):
        a, b = (torch.rand(14, 12, generator=rng) < 0.2 for _ in range(2))
        sides = (cell_hausdorff_distance(x.tolist(), y.tolist(), w.tolist()) for x, y in ((a, b), (b, a)))
        assert hausdorff(a, b, w) == pytest.approx(max(sides))
    assert hausdorff(a, a, w) == 0.0


def test_it_stops_after_four_epochs_without_movement() -> None:
    """From the sixth epoch of alpha's on; a cell of other operations is further away than the start."""
    ops = (DARTOPTI_OPS,)
    state = begin(by_cell(nodes=4, normal=ops, reduce=ops), dartopti())
    stop = next(c for c in dartopti().callbacks if isinstance(c, StandstillStop))
    assert (stop.since, stop.tolerance, stop.patience, stop.least, stop.most) == (5, 1e-3, 4, 0.85, 2)
    assert stop == StandstillStop(RESIDUAL)
    assert stop.distance(state) == 0.0
    told: list[dict[str, object]] = []
    for epoch in range(14):
        if epoch == 7:
            with torch.no_grad():
                state.alpha["cell_0/alpha"][0, :2] = 10.0
        record: dict[str, object] = {"phase": "warm-up" if epoch < 2 else "search"}
        stop.on_epoch_end(state, record)
        told.append(record)
        assert state.stop == (epoch >= 11), "epochs 7 to 10 are remembered, 11 is as far"
        if state.stop:
            break
    assert next(epoch for epoch, record in enumerate(told) if "distance" in record) == 7
    assert len(told) == 12
    assert told[7]["distance"] == told[11]["distance"] == stop.distance(state) > 0


def test_a_start_that_stays_is_left_after_five_and_four_epochs() -> None:
    """At a distance of 0 all the time."""
    ops = (DARTOPTI_OPS,)
    state = begin(by_cell(nodes=4, normal=ops, reduce=ops), dartopti())
    stop = StandstillStop(RESIDUAL)
    for epoch in range(10):
        stop.on_epoch_end(state, {"phase": "search"})
        assert state.stop == (epoch == 9)


def test_operations_count_by_the_accuracies_of_the_code() -> None:
    """architecture_processing.py's table of operations on NAS-Bench-201, in percent."""
    table = {
        "conv_3x1_1x3": 82.106, "conv_7x1_1x7": 83.159, "max_pool_3x3": 82.134, "avg_pool_3x3": 81.563,
        "skip_connect": 81.342, "nor_conv_1x1": 81.492, "nor_conv_3x3": 82.303, "sep_conv_3x3": 83.396,
        "sep_conv_5x5": 84.974, "dil_conv_3x3": 82.736, "dil_conv_5x5": 82.892, "bottleneck_1x3x1": 82.875,
    }  # fmt: skip
    assert set(DARTOPTI_OPS) == set(table)
    assert pytest.approx(table) == ACCURACIES


def test_published_d_darts() -> None:
    assert d_darts().outer_terms == (ZeroOne(9.0, by_group=True), Ablation(0.7, 0.1, learns=False))
    assert d_darts().outer_terms[1] == Ablation()
    assert d_darts().callbacks[1] == Contributions() == Contributions(64)


def test_a_cell_that_random_weights_leave_as_it_is_contributes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Ablation.__module__], "without", lambda weights, cell, state, draw: weights)
    state, record = begin(by_cell(), d_darts()), dict[str, object]()
    Contributions().on_epoch_end(state, record)
    assert record == {"contributions": dict.fromkeys(problem_of("darts").space.cell_groups(), 0.0)}


def test_published_dartopti() -> None:
    found = resolve(Request("dartopti", space="darts", data=tiny_data(), budget="paper"))
    assert (found.epochs, found.batch, getattr(found.space, "channels", 0)) == (55, 96, 32)
    method = found.searcher
    assert isinstance(method, Method)
    assert method.arch_start * found.epochs == pytest.approx(5)
    assert len(found.space.groups[0].ops[0]) == 12
