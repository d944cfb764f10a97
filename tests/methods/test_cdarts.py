"""Cyclic DARTS: the joint step against its loss written down whole, the cycles, and what is left without them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.registry import SMALL
from contracts.same import assert_other_search, assert_same_search, step_alpha_from
from oche.base import Alpha, Draw, Group
from oche.errors import UserError
from oche.methods.cdarts import CELL, WEIGHT, Evaluation, PoolsAndSkips, Rule, cdarts, divergence, weights
from oche.methods.darts import darts
from oche.optim import Adam
from oche.plan.machine import fabric_for
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.schedule import Linear
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.callbacks import Callback, OuterStep
from oche.search.loop import arch_step, search
from oche.search.method import Method
from oche.search.preflight import estimate
from oche.search.relaxations import Softmax
from oche.search.state import SearchState
from oche.spaces.synchronised import SynchronisedBatchNorm
from reference.real import digits, epochs_of, real_problem
from reference.tiny import tiny_data, tiny_problem


@dataclass(frozen=True)
class Seen(Callback):
    """Keeps alpha's gradients as the optimiser gets them."""

    grads: list[Alpha] = field(default_factory=list)

    def after_outer_backward(self, state: SearchState, grads: Alpha, outer: OuterStep) -> Alpha:
        self.grads.append({name: g.clone() for name, g in grads.items()})
        return grads


@dataclass(frozen=True)
class Noted(Softmax):
    """Notes whether autocast reigns where op weights are made."""

    halves: list[bool] = field(default_factory=list)

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        self.halves.append(torch.is_autocast_enabled("cpu"))
        return super().__call__(alpha, group, draw)


def evaluation(method_callbacks: tuple[Callback, ...]) -> Evaluation:
    (found,) = [c for c in method_callbacks if isinstance(c, Evaluation)]
    return found


def begun(space: str = "toy", cells: int | None = None) -> tuple[SearchState, Evaluation]:
    """A search whose first cycle has begun."""
    method = cdarts(cells=cells)
    state = begin(tiny_problem(space, epochs=4, **SMALL[space]), method)  # type: ignore[arg-type]
    part = evaluation(method.callbacks)
    part.on_epoch_start(state)
    return state, part


def test_the_divergence_is_that_of_torch_distributions() -> None:
    rng = torch.Generator().manual_seed(0)
    z_e, z_s = torch.randn(2, 6, 4, generator=rng).double()
    p, q = (torch.distributions.Categorical(logits=z / 2) for z in (z_e, z_s))
    torch.testing.assert_close(divergence(z_e, z_s, 2.0), 4 * torch.distributions.kl_divergence(p, q).mean())
    assert float(divergence(z_e, z_e, 3.0)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("space", ["nb201", "darts"])
@pytest.mark.parametrize("rule", ["code", "paper"])
def test_two_joint_steps_are_those_of_the_loss_written_down_whole(space: str, rule: Rule) -> None:
    """Alpha's gradient and E's weights after SGD with momentum, from one backward pass of CE_S + CE_E + T^2 KL + L1, in float64."""
    seen = Seen()
    method = cdarts(rule=rule)
    method = replace(method, callbacks=(*method.callbacks, seen))
    problem = tiny_problem(space, epochs=4, **SMALL[space])  # type: ignore[arg-type]
    state, part = begin(problem, method), evaluation(method.callbacks)
    state.supernet.double()
    with torch.no_grad():
        for t in state.alpha.values():
            t.data = 200 * t.data.double()
    part.on_epoch_start(state)
    literal = problem.space.network(part.cell(state)).double()
    literal.load_state_dict(weights(state, WEIGHT), strict=False)
    optimizer = torch.optim.SGD(literal.parameters(), 0.0, momentum=0.9, weight_decay=3e-4)
    losses, (w_stream, a_stream) = bilevel(state, method), streams(problem, method)
    for step in range(2):
        state.step = step
        batch = a_stream.at(step)
        images, draw = batch.images.double(), state.draw("alpha")
        z_s, _ = state.supernet(images, state.op_weights(state.alpha, draw), draw)
        z_e = literal(images)
        joint = F.cross_entropy(z_s, batch.targets) + F.cross_entropy(z_e, batch.targets)
        if rule == "code":  # Loss_interactive and l1_loss of its two versions, line by line
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch: this mean is none over the batch
                joint = joint + torch.nn.KLDivLoss()(F.log_softmax(z_s / 2, dim=1), F.softmax(z_e / 2, dim=1)) * (2 * 2)
            coefficient = max(5 * (1 - step / (12 * 0.5)), 0)
        else:
            p_e, p_s = (z_e / 2).softmax(1), (z_s / 2).softmax(1)
            joint = joint + 4 * (p_e * (p_e.log() - p_s.log())).sum(1).mean()
            coefficient = 5 * (1 - step / 12)
        if rule == "code" and space == "nb201":
            joint = joint + coefficient * torch.mean(torch.abs(state.alpha["cell/alpha"][:, 0:1]))
        for group in problem.space.groups if rule == "paper" or space == "darts" else ():
            for e, ops in enumerate(group.ops):
                for o, op in enumerate(ops):
                    if op == "skip_connect" or op.endswith("pool_3x3"):
                        joint = joint + coefficient * state.alpha[f"{group.name}/alpha"][e, o].abs()
        own = list(literal.parameters())
        grads = torch.autograd.grad(joint, [*state.alpha.values(), *own], materialize_grads=True)
        for p, g in zip(own, grads[len(state.alpha) :], strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(own, 5.0)
        optimizer.param_groups[0]["lr"] = part.lr(step / 12)
        arch_step(state, method, losses, StepBatches(w_stream, a_stream, step))
        optimizer.step()
        for name, g in zip(state.alpha, grads, strict=False):
            torch.testing.assert_close(seen.grads[step][name], g)
        for name, p in literal.named_parameters():
            torch.testing.assert_close(state.memory[WEIGHT + name].detach(), p.detach())
    assert not any("loss" in name for name in state.memory)


def test_without_its_terms_it_is_darts_and_with_them_it_is_not() -> None:
    base = replace(step_alpha_from(darts()), weight_lr=cdarts().weight_lr)
    assert_same_search(step_alpha_from(cdarts(weight=0.0, l1=0.0)), base)
    assert_other_search(step_alpha_from(cdarts(weight=1.0, l1=0.0)), base)
    assert_other_search(step_alpha_from(cdarts(weight=0.0, l1=5.0, rule="paper")), base)
    assert cdarts().arch_first


def test_cycles_begin_when_they_should_and_not_again() -> None:
    found: list[tuple[int, bytes]] = []

    def listener(event: str, record: Mapping[str, object]) -> None:
        if event == "epoch":
            found.append((int(str(record["epoch"])), str(record["evaluation_cell"]).encode()))

    method = step_alpha_from(cdarts(cycles=2, l1=0.0), 0.3)
    problem = replace(tiny_problem("nb201", epochs=5, **SMALL["nb201"]), listener=listener)  # type: ignore[arg-type]
    search(problem, method)
    cells = [cell for _, cell in found]
    assert cells[0] == cells[1] == cells[2] != cells[3] == cells[4]
    state, part = begun()
    before = {name: t.clone() for name, t in state.memory.items()}
    with torch.no_grad():
        for t in state.alpha.values():
            t.copy_(t.flip(-1))
    state.step = 1
    part.on_epoch_start(state)  # resumed within the epoch
    assert all(torch.equal(t, before[name]) for name, t in state.memory.items())


def test_a_new_cell_keeps_the_weights_of_the_operations_that_stay() -> None:
    state, part = begun("nb201")
    conv, other = (state.space.groups[0].ops[0].index(op) for op in ("nor_conv_3x3", "nor_conv_1x1"))

    def choose(ops: list[int], epoch: int) -> dict[str, Tensor]:
        with torch.no_grad():
            state.alpha["cell/alpha"].zero_()[torch.arange(6), torch.tensor(ops)] = 1.0
        state.epoch = epoch
        part.on_epoch_start(state)
        return {name: t.clone() for name, t in state.memory.items()}

    first = choose([conv] * 6, 1)
    second = choose([conv] * 5 + [other], 2)
    assert not torch.equal(first[CELL], second[CELL])
    kept = [name for name in second if name.startswith("cdarts/") and name in first and ".edges." in name]
    assert kept
    assert not any("2-3" in name for name in kept)
    assert all(torch.equal(first[name], second[name]) for name in kept)
    assert any("2-3.ops.nor_conv_1x1" in name for name in second)
    assert not any("2-3.ops.nor_conv_3x3" in name for name in second)


def test_pools_and_skips_pull_by_the_coefficient_and_nothing_else() -> None:
    state, _ = begun("nb201")
    term = PoolsAndSkips(Linear(5.0, 0.0), "paper")
    ops, batch = state.space.groups[0].ops[0], streams(state.problem, cdarts())[1].at(0)
    for step, coefficient in ((0, 5.0), (6, 2.5), (12, 0.0)):
        state.step = step
        (grad,) = torch.autograd.grad(term(state, {}, state.alpha, batch), [state.alpha["cell/alpha"]])
        mine = torch.tensor([op in ("skip_connect", "avg_pool_3x3") for op in ops]).expand(6, 5)
        assert torch.equal(grad, coefficient * state.alpha["cell/alpha"].sign() * mine)


def test_the_codes_penalty_ends_at_half_and_is_a_mean_over_none_in_nb201() -> None:
    (_, term), (state, _) = cdarts().outer_terms, begun("nb201")
    ops, batch = state.space.groups[0].ops[0], streams(state.problem, cdarts())[1].at(0)
    for step, coefficient in ((0, 5.0), (3, 2.5), (6, 0.0), (9, 0.0)):
        state.step = step
        (grad,) = torch.autograd.grad(term(state, {}, state.alpha, batch), [state.alpha["cell/alpha"]])
        mine = torch.tensor([op == "none" for op in ops]).expand(6, 5)
        torch.testing.assert_close(grad, coefficient / 6 * state.alpha["cell/alpha"].sign() * mine)


def test_published_settings_in_nb201() -> None:
    found = resolve(Request("cdarts", space="nb201", data=tiny_data(), budget="paper"))
    method = found.searcher
    assert isinstance(method, Method)
    part = evaluation(method.callbacks)
    assert (found.epochs, found.batch) == (25, 64)
    assert (part.temperature, part.weight, part.rule) == (2, 1, "code")
    assert [method.weight_lr(p) for p in (0.0, 1.0)] == [0.05, 0.05]
    assert [part.lr(p) for p in (0.0, 1.0)] == [0.1, 0.1]
    assert method.arch_optimizer == Adam(3e-4)
    assert cdarts().arch_optimizer == Adam(6e-4)


@pytest.mark.slow
def test_on_digits_both_networks_learn_and_the_penalty_fades() -> None:
    told: list[dict[str, Any]] = []
    problem = real_problem("nb201", digits(), 4, listener=epochs_of(told))
    search(problem, cdarts(cycles=2))
    assert told[-1]["evaluation_accuracy"] > told[0]["evaluation_accuracy"] + 0.1
    assert told[-1]["weight_accuracy"] > told[0]["weight_accuracy"] + 0.1
    assert all(0 < record["lesson"] < 1 for record in told)
    assert len({record["evaluation_cell"] for record in told[:2]}) == 1


def test_in_bf16_op_weights_stay_in_single_precision() -> None:
    """A relaxation with a product in it would lose 16 bits of alpha under autocast."""
    method = cdarts()
    problem = replace(tiny_problem(), fabric=fabric_for("cpu", precision="bf16"))
    relaxation = Noted()
    state = begin(problem, replace(method, relaxation=relaxation))
    part = evaluation(method.callbacks)
    part.on_epoch_start(state)
    relaxation.halves.clear()
    part(state, state.theta, state.alpha, StepBatches(*streams(problem, method), 0).outer())
    assert relaxation.halves == [False]


def test_the_evaluation_network_may_be_deeper() -> None:
    shallow, _ = begun("nb201")
    deep, _ = begun("nb201", cells=3)
    assert len(weights(deep, WEIGHT)) > 2 * len(weights(shallow, WEIGHT))
    with pytest.raises(UserError, match="cells=0"):
        begun("nb201", cells=0)
    with pytest.raises(UserError, match="at least one cycle"):
        cdarts(cycles=0)


def test_the_preflight_measures_a_step_with_both_networks() -> None:
    """Its cell is derived before an epoch, so the step that is measured has to be one of an epoch that has begun."""
    assert estimate(tiny_problem("toy", batch=4), cdarts()).step_seconds > 0


def test_the_parts_have_the_method_s_numbers_and_bounds_are_inclusive() -> None:
    method = cdarts()
    assert evaluation(method.callbacks) == Evaluation(5, None, 2.0, 1.0) == Evaluation()
    assert PoolsAndSkips(Linear(5.0, -5.0)) in method.outer_terms
    assert PoolsAndSkips() in method.outer_terms
    assert (method.weight_lr(0.0), method.weight_lr(1.0)) == (0.05, 0.05)
    assert evaluation(cdarts(cycles=1, temperature=0.5).callbacks) == Evaluation(1, None, 0.5)
    for wrong in ({"cycles": 0}, {"temperature": 0.0}):
        with pytest.raises(UserError, match="at least one cycle"):
            cdarts(**wrong)  # type: ignore[arg-type]
    state = begin(tiny_problem("nb201", channels=4, cells=2), cdarts())
    assert Evaluation(cells=1).space(state) == replace(state.space, cells=1)  # type: ignore[call-arg]
    with pytest.raises(UserError, match="at least 1"):
        Evaluation(cells=0).space(state)


def test_the_log_s_lesson_is_the_mean_over_the_steps_of_alpha() -> None:
    problem, method = tiny_problem("toy", **SMALL["toy"]), cdarts()  # type: ignore[arg-type]
    state = begin(problem, method)
    teacher = evaluation(method.callbacks)
    teacher.on_epoch_start(state)
    batches = StepBatches(*streams(problem, method), 0)
    values = [float(teacher(state, state.theta, state.alpha, batches.outer()).detach()) for _ in range(2)]
    record: dict[str, object] = {"genotype": ""}
    teacher.on_epoch_end(state, record)
    assert record["lesson"] == pytest.approx(sum(values) / 2)


def test_with_sync_the_evaluation_network_s_batch_is_that_of_all_processes() -> None:
    """Its batch norms become shared ones in two processes, and ordinary ones again without them or without `sync`."""
    state, part = begun()
    problem = state.problem
    for processes, sync, shared in ((2, True, True), (1, True, False), (2, True, True), (2, False, False)):
        fabric: Any = SimpleNamespace(world_size=processes)
        state.problem = replace(problem, fabric=fabric, sync=sync)
        norms = [m for m in part.derived(state).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms
        assert {isinstance(norm, SynchronisedBatchNorm) for norm in norms} == {shared}
