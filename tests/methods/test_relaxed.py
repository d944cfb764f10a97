"""GDAS, SNAS, FairDARTS, DARTS-, Beta-DARTS: each rule against a second derivation, and its base where its constant is zero."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.same import assert_other_search, assert_same_search, problem_of
from oche.base import Batch, Draw, Group
from oche.data import Whole
from oche.genotype import Choice
from oche.methods.beta_darts import BetaDecay, beta_darts
from oche.methods.darts_minus import darts_minus
from oche.methods.fair_darts import Threshold, ZeroOne, fair_darts, reached
from oche.methods.gdas import gdas
from oche.methods.snas import Resource, snas
from oche.optim import Adam
from oche.plan.resolve import Request, resolve
from oche.schedule import Constant, Cosine, Linear
from oche.search.begin import StepBatches, begin, streams
from oche.search.bilevel import gradient
from oche.search.loop import search
from oche.search.method import Method
from oche.search.relaxations import GumbelSoftmax, Sigmoid, Softmax
from oche.spaces.edges import AuxiliarySkip, DropPath, SampledOps, WeightedSum
from reference.real import digits, epochs_of, real_problem
from reference.tiny import tiny_data, tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


GROUP = Group("cell", ((0, 1), (0, 2)), (("a", "b", "c"), ("a", "b", "c")))
ALPHA = {"cell/alpha": torch.tensor([[0.5, -0.5, 0.2], [1.0, 0.0, -1.0]], dtype=torch.float64)}
NOTHING = Batch(torch.zeros(1), torch.zeros(1))


def draws(relaxation: GumbelSoftmax, count: int) -> torch.Tensor:
    return torch.stack([relaxation(ALPHA, GROUP, Draw(0, step, "weight")) for step in range(count)])


# ---------------------------------------------------------------------- Gumbel


def test_hard_samples_are_exactly_one_hot_with_the_soft_sample_s_gradient() -> None:
    for step in range(20):
        draw = Draw(0, step, "alpha", 0.3)
        alpha = {n: t.clone().requires_grad_() for n, t in ALPHA.items()}
        soft, hard = (GumbelSoftmax(Linear(10, 0.1), hard=h)(alpha, GROUP, draw) for h in (False, True))
        assert sorted(hard.detach().flatten().tolist()) == [0.0] * 4 + [1.0] * 2
        assert torch.equal(hard.argmax(-1), soft.argmax(-1))
        direction = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(*(gradient((w * direction).sum(), alpha)["cell/alpha"] for w in (hard, soft)))


def test_the_op_drawn_follows_the_softmax() -> None:
    count = 4000
    drawn = draws(GumbelSoftmax(Constant(1.0), hard=True), count).mean(0)
    p = ALPHA["cell/alpha"].softmax(-1)
    assert ((drawn - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all()


def test_cold_samples_are_nearly_one_hot_and_hot_ones_nearly_uniform() -> None:
    assert (draws(GumbelSoftmax(Constant(0.01)), 200).amax(-1) > 0.99).double().mean() > 0.9
    torch.testing.assert_close(
        draws(GumbelSoftmax(Constant(1e4)), 20), torch.full((20, 2, 3), 1 / 3), atol=1e-3, rtol=0
    )


def test_the_temperature_follows_progress_and_evaluation_has_no_noise() -> None:
    relaxation = GumbelSoftmax(Linear(1.0, 0.1))
    early, late = (relaxation(ALPHA, GROUP, Draw(0, 5, "weight", t)).log() for t in (0.0, 1.0))
    gap = (late[:, 0] - late[:, 1]) / (early[:, 0] - early[:, 1])
    torch.testing.assert_close(gap, torch.full((2,), 10.0))
    torch.testing.assert_close(relaxation(ALPHA, GROUP, Draw(0)), ALPHA["cell/alpha"].softmax(-1))


@pytest.mark.parametrize("space", ["toy", "darts"])
def test_running_the_drawn_ops_alone_gives_the_loss_and_the_drawn_op_s_derivative_of_running_all(space: str) -> None:
    problem = problem_of(space)
    one = begin(problem, gdas(scalars=False))
    all_ops = begin(problem, replace(gdas(), edge=WeightedSum()))
    batch, draw = StepBatches(*streams(problem, gdas()), 0).inner(), one.draw("alpha")
    losses, grads = [], []
    for state in (one, all_ops):
        w = {c: w.detach().requires_grad_() for c, w in state.op_weights(state.alpha, draw).items()}
        loss, _ = state.task_loss(w, batch, draw)
        losses.append(loss.detach())
        grads.append(gradient(loss, w))
    torch.testing.assert_close(*losses)
    for cell, w in one.op_weights(one.alpha, draw).items():
        drawn = w.detach() == 1
        torch.testing.assert_close(grads[0][cell][drawn], grads[1][cell][drawn])
        assert not grads[0][cell][~drawn].any()
    assert any(
        g[w.detach() == 0].any()
        for g, w in zip(grads[1].values(), one.op_weights(one.alpha, draw).values(), strict=True)
    )


def test_the_code_s_scalars_give_every_weight_the_sum_of_the_output_s_gradient() -> None:
    from oche.spaces.ops import OPS

    edge = SampledOps(scalars=True)(
        ("skip_connect", "max_pool_3x3", "avg_pool_3x3"), 2, 1, lambda op, c: OPS[op](c, 1, False)
    )
    x, direction = torch.rand(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    w = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    out = edge(x, w, Draw(0))
    torch.testing.assert_close(out.detach(), torch.nn.functional.max_pool2d(x, 3, 1, 1))
    (grad,) = torch.autograd.grad((out * direction).sum(), w)
    torch.testing.assert_close(grad[[0, 2]], direction.sum().repeat(2))


def test_a_node_keeps_its_two_strongest_pairs_which_may_lie_on_one_edge() -> None:
    """Against a literal sort of all (op, edge) pairs, as `genotype` of search_model_gdas_nasnet.py has it."""
    problem = problem_of("darts", nodes=3)
    state = begin(problem, gdas())
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for alpha in state.alpha.values():
            alpha.copy_(torch.randn(alpha.shape, generator=rng, dtype=alpha.dtype))
        state.alpha["normal/alpha"][0, 0] = 9.0  # `none` does not compete
        state.alpha["normal/alpha"][1, [3, 5]] = torch.tensor([4.0, 5.0])
    found = gdas().selection(state, problem)
    for group, strength in state.strengths():
        for node, into in group.into().items():
            ranked = sorted(
                (
                    (-float(strength[e, o]), group.edges[e][0], op)
                    for e in into
                    for o, op in enumerate(group.ops[e])
                    if op != "none"
                )
            )
            chosen = {(c.source, c.op) for c in found.groups[group.name] if c.target == node}
            assert chosen == {(source, op) for _, source, op in ranked[:2]}
    first = [(c.source, c.op) for c in found.groups["normal"] if c.target == 2]
    assert first == [(1, "skip_connect"), (1, "sep_conv_5x5")]
    problem.space.check(found)
    network = problem.space.network(found)
    assert network(torch.randn(2, 2, 8, 8)).shape == (2, 3)


def test_gdas_is_the_published_one() -> None:
    method = gdas()
    assert method.relaxation == GumbelSoftmax(Linear(10.0, 0.1), hard=True)
    assert method.edge == SampledOps(scalars=True)


# ---------------------------------------------------------------------- FairDARTS


def test_sigmoids_do_not_compete() -> None:
    alpha = {n: t.clone().requires_grad_() for n, t in ALPHA.items()}
    w = Sigmoid()(alpha, GROUP, Draw(0))
    torch.testing.assert_close(w, 1 / (1 + (-alpha["cell/alpha"]).exp()))
    grad = gradient(w[0, 1], alpha)["cell/alpha"]
    assert grad.count_nonzero() == 1


@pytest.mark.parametrize("absolute", [False, True])
def test_the_zero_one_loss_in_closed_form(absolute: bool) -> None:
    state = begin(problem_of("darts"), fair_darts())
    state.alpha = {n: torch.randn_like(t).requires_grad_() for n, t in state.alpha.items()}
    s = {n: t.detach().sigmoid() for n, t in state.alpha.items()}
    count = sum(t.numel() for t in s.values())
    loss = ZeroOne(3.0, absolute)(state, {}, state.alpha, NOTHING)
    value = sum(((t - 0.5).abs() if absolute else (t - 0.5).square()).sum() for t in s.values())
    torch.testing.assert_close(loss.detach(), -3.0 * value / count)
    for name, grad in gradient(loss, state.alpha).items():
        slope = (s[name] - 0.5).sign() if absolute else 2 * (s[name] - 0.5)
        torch.testing.assert_close(grad, -3.0 * slope * s[name] * (1 - s[name]) / count)


def test_at_the_start_the_zero_one_loss_and_its_gradient_are_zero() -> None:
    state = begin(problem_of("toy"), fair_darts())
    assert all(not t.any() for t in state.alpha.values())
    loss = ZeroOne(10.0)(state, {}, state.alpha, NOTHING)
    assert float(loss.detach()) == 0
    assert not any(g.any() for g in gradient(loss, state.alpha).values())


def test_below_the_threshold_an_edge_is_none_unless_its_node_has_nothing_better() -> None:
    """Edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3: at equal alphas the first is each node's strongest, by its first op that is not `none`."""
    problem = problem_of("nb201")
    state = begin(problem, fair_darts())

    def ops() -> list[str]:
        genotype = Threshold()(state, problem)
        problem.space.check(genotype)
        return [c.op for c in genotype.groups["cell"]]

    assert ops() == ["skip_connect", "skip_connect", "none", "skip_connect", "none", "none"]
    with torch.no_grad():
        state.alpha["cell/alpha"][2, 3] = math.log(0.86 / 0.14)  # passes, so that node 2 needs no other
        state.alpha["cell/alpha"][4, 2] = math.log(0.84 / 0.16)  # does not, but is the best that node 3 has
    assert ops() == ["skip_connect", "none", "nor_conv_3x3", "none", "nor_conv_1x1", "none"]


def test_an_edge_s_own_op_has_to_reach_the_threshold_too() -> None:
    """Node 3 has three edges whose strongest op is a convolution; the weak one in the middle is not needed."""
    problem = problem_of("nb201")
    state = begin(problem, fair_darts())
    with torch.no_grad():
        for e, w in ((3, 0.9), (4, 0.84), (5, 0.86)):
            state.alpha["cell/alpha"][e, 3] = math.log(w / (1 - w))
    found = Threshold()(state, problem).groups["cell"]
    assert [c.op for c in found if c.target == 3] == ["nor_conv_3x3", "none", "nor_conv_3x3"]
    record: dict[str, object] = {}
    for callback in fair_darts().callbacks:
        callback.on_epoch_end(state, record)
    assert record == {"above_threshold": 2}


def test_a_node_keeps_two_edges_above_the_threshold_or_its_best_one() -> None:
    problem = problem_of("darts")
    state = begin(problem, fair_darts())
    group = problem.space.groups[0]
    into = group.into()
    with torch.no_grad():
        for e, value in zip(into[3], (3.0, 2.5, 2.0), strict=True):
            state.alpha[f"{group.name}/alpha"][e, 4] = value
        state.alpha[f"{group.name}/alpha"][into[2][1], 5] = 1.0
    found = Threshold()(state, problem)
    problem.space.check(found)
    chosen = found.groups[group.name]
    assert [(c.source, c.op) for c in chosen if c.target == 3] == [(0, "sep_conv_3x3"), (1, "sep_conv_3x3")]
    assert [(c.source, c.op) for c in chosen if c.target == 2] == [(1, "sep_conv_5x5")]


def threshold_sparse(weights: list[list[float]], ops: tuple[str, ...], least: float) -> list[tuple[str, int, int]]:
    """`parse` of FairDARTS's utils.py, literally: (op, node, input)."""
    found, start = [], 0
    for i in range(2):
        rows = weights[start : start + 2 + i]
        for j in sorted(range(2 + i), key=lambda x: -max(rows[x]))[:2]:
            best = max(range(len(ops)), key=lambda k: rows[j][k])
            if rows[j][best] >= least:
                found.append((ops[best], i + 2, j))
        start += 2 + i
    return found


@pytest.mark.parametrize("seed", range(6))
def test_starved_nodes_are_absent_as_in_the_code(seed: int) -> None:
    """Against its `parse`; the edges that leave an absent node go, as in its model.py."""
    problem = tiny_problem("darts", channels=4, cells=3, nodes=2, without=("none",))
    state = begin(problem, fair_darts())
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for alpha in state.alpha.values():
            alpha.copy_(torch.randn(alpha.shape, generator=rng, dtype=alpha.dtype))
    found = Threshold(0.75, starve=True)(state, problem)
    for group in problem.space.groups:
        wanted = threshold_sparse(state.alpha[f"{group.name}/alpha"].detach().sigmoid().tolist(), group.ops[0], 0.75)
        fed = {target for _, target, _ in wanted}
        wanted = [c for c in wanted if c[2] in {0, 1} | fed]
        if wanted:
            assert sorted((c.op, c.target, c.source) for c in found.groups[group.name]) == sorted(wanted)
            assert found.concat.get(group.name, (2, 3)) == tuple(sorted({target for _, target, _ in wanted}))
    problem.space.fitted(found).check(found)
    assert problem.space.network(found)(torch.randn(2, 2, 8, 8)).shape == (2, 3)


def test_a_cell_without_any_node_keeps_the_strongest_op_of_each() -> None:
    problem = tiny_problem("darts", channels=4, cells=3, nodes=2, without=("none",))
    state = begin(problem, fair_darts())
    found = Threshold(0.85, starve=True)(state, problem)
    assert found == Threshold(0.85)(state, problem)
    assert {c.target for c in found.groups["normal"]} == {2, 3}
    assert not found.concat


def test_edges_that_leave_an_absent_node_are_not_reached() -> None:
    choices = [Choice(0, 3, "a"), Choice(2, 4, "a"), Choice(3, 5, "a"), Choice(4, 5, "a")]
    assert reached(choices) == [choices[0], choices[2]]


def test_fair_darts_is_the_published_one() -> None:
    method = fair_darts()
    assert method.arch_optimizer == Adam(3e-3, (0.9, 0.999), 1e-3)
    assert method.weight_lr == Cosine(0.005, 0.001)
    assert method.outer_terms == (ZeroOne(10.0),)
    assert method.selection == Threshold(0.85)
    assert fair_darts(starve=True).selection == Threshold(0.85, starve=True)


# ---------------------------------------------------------------------- DARTS-, Beta-DARTS


def test_beta_darts_and_darts_minus_are_the_published_ones() -> None:
    assert beta_darts().outer_terms == (BetaDecay(0.5),)
    assert darts_minus().edge == AuxiliarySkip(beta=Linear(1.0, 0.0))


def test_the_beta_penalty_counts_epochs_from_the_search_s_first() -> None:
    state = begin(problem_of("toy"), beta_darts())
    state.epoch, state.epochs_before = 3, 4
    still = {name: torch.zeros_like(t) for name, t in state.alpha.items()}
    assert float(BetaDecay(0.5)(state, {}, still, NOTHING)) == pytest.approx(3.5 * math.log(3))
    record: dict[str, object] = {}
    for callback in beta_darts().callbacks:
        callback.on_epoch_end(state, record)
    assert record["beta_decay"] == pytest.approx(3.5)


def test_the_beta_penalty_s_gradient_is_the_softmax_over_the_number_of_edges() -> None:
    state = begin(problem_of("darts"), beta_darts())
    state.epoch = 6
    state.alpha = {n: torch.randn_like(t).requires_grad_() for n, t in state.alpha.items()}
    loss = BetaDecay(0.5)(state, {}, state.alpha, NOTHING)
    for name, grad in gradient(loss, state.alpha).items():
        t = state.alpha[name].detach()
        torch.testing.assert_close(grad, 3.0 * t.softmax(-1) / len(t))


def test_the_beta_penalty_of_equal_logits_is_the_logarithm_of_their_number() -> None:
    state = begin(problem_of("nb201"), beta_darts())
    state.epoch = 2
    state.alpha = {n: torch.zeros_like(t) for n, t in state.alpha.items()}
    assert float(BetaDecay(0.5)(state, {}, state.alpha, NOTHING)) == pytest.approx(math.log(5))
    state.mask["cell"] = torch.ones(6, 5, dtype=torch.bool)
    state.mask["cell"][:, :2] = False
    assert float(BetaDecay(0.5)(state, {}, state.alpha, NOTHING)) == pytest.approx(math.log(3))


def test_the_expected_cost_and_its_derivative_in_closed_form() -> None:
    """Only the convolution of a toy edge costs: ln (p c) = ln p + ln c, whose derivative in the logits is one-hot - p."""
    problem = problem_of("toy")
    state = begin(problem, replace(snas(resource=0.3), relaxation=Softmax()))
    alpha = state.alpha["cell/alpha"]
    with torch.no_grad():
        alpha.copy_(torch.randn(alpha.shape, generator=torch.Generator().manual_seed(1), dtype=alpha.dtype))
    batch = Batch(torch.zeros(1), torch.zeros(1))
    value = Resource(0.3)(state, {}, state.alpha, batch)
    p = alpha.detach().softmax(-1)
    costs = [[4 * 4 * 9, 64 * 4 * 4 * 9], [8 * 8 * 9, 16 * 8 * 8 * 9]]
    expected = sum(math.log(p[e, 2] * c) for e in range(3) for cell in costs for c in cell) / 4
    assert value.item() == pytest.approx(0.3 * expected, rel=1e-6)
    (found,) = torch.autograd.grad(value, alpha)
    torch.testing.assert_close(found, 0.3 * (torch.tensor([0.0, 0.0, 1.0]).to(p) - p))


def test_below_one_a_cost_is_nothing_and_the_term_is_in_the_step_when_weighed() -> None:
    state = begin(problem_of("toy"), replace(snas(), relaxation=Softmax()))
    with torch.no_grad():
        state.alpha["cell/alpha"][:, 2] = -30.0
    value = Resource(1e-2)(state, {}, state.alpha, Batch(torch.zeros(1), torch.zeros(1)))
    (found,) = torch.autograd.grad(value, state.alpha["cell/alpha"])
    assert value.item() == 0
    assert not found.any()
    assert snas().inner_terms == ()
    assert_same_search(replace(snas(resource=1e-2), inner_terms=()), snas())
    assert_other_search(snas(resource=1e-2), snas())


def test_snas_as_its_readme_runs_it() -> None:
    found = resolve(Request("snas", space="darts", data=tiny_data(), budget="paper"))
    method = found.searcher
    assert isinstance(method, Method)
    assert method.edge == DropPath(rate=Constant(0.3), whole=True)
    assert method.inner_terms == (Resource(1.5e-3),)
    assert isinstance(snas().edge, WeightedSum)
    assert snas().split == Whole()
    assert snas().inner_terms == ()


@pytest.mark.slow
def test_on_digits_snas_cools_and_decides() -> None:
    """Weights and alpha learn from one batch; the temperature falls in a straight line; what is sampled grows decided."""
    torch.set_default_dtype(torch.float32)
    told: list[dict[str, Any]] = []
    problem = real_problem("nb201", digits(), 4, listener=epochs_of(told))
    state = search(problem, replace(snas(), arch_optimizer=Adam(3e-2))).state
    assert [record["temperature"] for record in told] == pytest.approx(
        [1 - 0.97 * e / 4 for e in (1, 2, 3, 4)], abs=1e-3
    )
    assert told[-1]["entropy"] < told[0]["entropy"]
    assert told[-1]["weight_accuracy"] > told[0]["weight_accuracy"]
    rows = state.trajectory["cell/alpha"]
    assert float(rows[0].std()) == pytest.approx(0.01, rel=0.3)
