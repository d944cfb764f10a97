"""The loop's hooks and what a search may change while it runs: what learns, what remains, what a step is told."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from oche import config
from oche.base import Alpha, Batch, OpWeights, Params
from oche.data import RandomTargets, Whole
from oche.errors import UserError
from oche.methods.darts import darts
from oche.optim import SGD, Descent
from oche.schedule import Constant
from oche.search import checkpoint
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import Batches, Bilevel, FirstOrder, detached
from oche.search.callbacks import Callback, InnerStep, OuterStep
from oche.search.checkpoint import dumps, loads
from oche.search.loop import arch_step, search, set_learning_rate, steps, weight_step
from oche.search.method import Method
from oche.search.record import STATUS
from oche.search.selection import PerEdgeArgmax, TopK
from oche.search.state import Problem, SearchState
from reference.tiny import tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


PLAIN = replace(darts(), weight_optimizer=SGD(0.0, 0.0), weight_lr=Constant(0.1), clip=None)
"""Gradient descent, so that a weight's change shows its gradient."""


def ready(problem: Problem, method: Method) -> tuple[SearchState, StepBatches]:
    state = begin(problem, method)
    weights, arch = streams(problem, method)
    set_learning_rate(state, method, weights.steps_per_epoch)
    return state, StepBatches(weights, arch, 0)


def snapshot(state: SearchState) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in state.supernet.named_parameters()}


@dataclass(frozen=True)
class Recorder(Callback):
    """Asks for op weights' gradients and keeps what it is told."""

    inner: list[InnerStep] = field(default_factory=list)
    outer: list[OuterStep] = field(default_factory=list)

    def before_inner_step(self, state: SearchState, weights: OpWeights, alpha: Alpha, batch: Batch) -> OpWeights:
        return {cell: w.detach().requires_grad_() for cell, w in weights.items()}

    def after_inner_backward(self, state: SearchState, grads: Params, inner: InnerStep) -> Params:
        self.inner.append(inner)
        return grads

    def after_outer_backward(self, state: SearchState, grads: Alpha, outer: OuterStep) -> Alpha:
        self.outer.append(outer)
        return grads


# ---------------------------------------------------------------------- what the hooks are told


@pytest.mark.parametrize("space", ["toy", "darts"])
def test_op_weights_that_ask_for_it_get_a_gradient_of_every_cell_by_itself(space: str) -> None:
    """Against a central difference in one entry of one cell's op weights; alpha is shared by all cells."""
    problem = tiny_problem(space, **({} if space == "toy" else {"channels": 4, "cells": 3, "nodes": 1}))
    seen = Recorder()
    method = replace(PLAIN, callbacks=(seen,))
    state, now = ready(problem, method)
    theta = {n: t.detach().clone() for n, t in state.theta.items()}
    weight_step(state, method, bilevel(state, method), now)
    (step,) = seen.inner
    assert step.weight_grads.keys() == problem.space.cell_groups().keys()
    for cell, grad in step.weight_grads.items():
        entry = divmod(int(grad.abs().argmax()), grad.shape[1])
        sides = []
        for h in (1e-5, -1e-5):
            moved = {c: w.detach().clone() for c, w in step.weights.items()}
            moved[cell][entry] += h
            sides.append(float(state.task_loss(moved, step.batch, step.draw, theta)[0]))
        torch.testing.assert_close(float(grad[entry]), (sides[0] - sides[1]) / 2e-5, rtol=1e-4, atol=1e-9)


def test_op_weights_that_do_not_ask_get_none() -> None:
    seen = Recorder()
    method = replace(PLAIN, callbacks=(replace(seen),))
    state, now = ready(tiny_problem("toy"), method)

    @dataclass(frozen=True)
    class Look(Callback):
        def after_inner_backward(self, state: SearchState, grads: Params, inner: InnerStep) -> Params:
            assert not inner.weight_grads
            assert not any(w.requires_grad for w in inner.weights.values())
            return grads

    weight_step(state, replace(method, callbacks=(Look(),)), bilevel(state, method), now)


def test_the_outer_loss_s_weight_gradients_are_kept_where_asked_for() -> None:
    """They are those of the outer loss, alpha's gradient is the same with and without, and nothing learns from them."""
    seen = Recorder()
    method = replace(PLAIN, callbacks=(seen,), arch_gradient=FirstOrder(keep_theta=True))
    state, now = ready(tiny_problem("toy"), method)
    losses = bilevel(state, method)
    expected = torch.autograd.grad(
        losses.outer(state.theta, detached(state.alpha), now.outer()),
        list(state.theta.values()),
        materialize_grads=True,
    )
    _, plain = FirstOrder()(losses, state.theta, state.alpha, now)
    before = snapshot(state)
    arch_step(state, method, losses, now)
    (outer,) = seen.outer
    assert list(outer.theta_grads) == list(state.theta)
    for got, wanted in zip(outer.theta_grads.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    for name, t in state.alpha.items():
        torch.testing.assert_close(t.grad, plain[name])
    assert all(torch.equal(t, before[n]) for n, t in state.supernet.named_parameters())
    assert all(t.grad is None for t in state.theta.values())


def test_gradients_that_a_callback_leaves_out_are_not_stepped() -> None:
    """Not by weight decay either: of the weights the classifier's, of alpha all."""

    @dataclass(frozen=True)
    class Hold(Callback):
        def after_inner_backward(self, state: SearchState, grads: Params, inner: InnerStep) -> Params:
            return {n: g for n, g in grads.items() if "classifier" not in n}

        def after_outer_backward(self, state: SearchState, grads: Alpha, outer: OuterStep) -> Alpha:
            return {}

    method = replace(darts(), callbacks=(Hold(),))
    state, now = ready(tiny_problem("toy"), method)
    before, alpha = snapshot(state), {n: t.detach().clone() for n, t in state.alpha.items()}
    steps(state, method, bilevel(state, method), now, due=True)
    assert all(torch.equal(t, alpha[n]) for n, t in state.alpha.items())
    moved = {n for n, t in state.supernet.named_parameters() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if "classifier" not in n}


def test_later_batches_are_those_of_the_later_steps() -> None:
    _, now = ready(tiny_problem("toy"), darts())
    later = StepBatches(now.weights, now.arch, 2)
    assert torch.equal(now.inner(2).images, later.inner().images)
    assert not torch.equal(now.inner(2).images, now.inner().images)
    assert now.inner(2) is now.inner(2)


@pytest.mark.parametrize(("first", "fresh"), [(True, True), (False, True), (False, False)])
def test_the_architecture_step_sees_the_coming_weight_steps_batch(first: bool, fresh: bool) -> None:
    """`inner()` is the batch of the next weight step from now: this step's where alpha goes first, else the next one's."""
    problem, asked = tiny_problem("toy"), []

    @dataclass(frozen=True)
    class Asking:
        def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, now: Batches) -> tuple[Tensor, Alpha]:
            asked.append((now.inner(), now.inner(1), now.outer()))
            return FirstOrder()(problem, theta, alpha, now)

    method = replace(darts(), arch_first=first, fresh_inner=fresh, arch_gradient=Asking())
    state, now = ready(problem, method)
    steps(state, method, bilevel(state, method), now, due=True)
    ((inner, ahead, outer),) = asked
    later = int(not first and fresh)
    for batch, stream, step in ((inner, now.weights, later), (ahead, now.weights, later + 1), (outer, now.arch, 0)):
        assert torch.equal(batch.images, stream.at(step).images)


def test_with_one_stream_alpha_takes_the_batch_of_its_own_step() -> None:
    _, now = ready(tiny_problem("toy"), darts())
    shared = replace(now, arch=now.weights, kept={})
    assert torch.equal(shared.after().outer().images, now.weights.at(0).images)
    assert shared.after().outer() is shared.inner()


# ---------------------------------------------------------------------- what may change


def test_what_is_frozen_in_mid_search_stays_and_the_others_momentum_goes_on() -> None:
    method = darts()
    state, now = ready(tiny_problem("toy"), method)
    losses = bilevel(state, method)
    weight_step(state, method, losses, now)
    frozen = {n for n in state.learns if ".ops." in n}
    before = snapshot(state)
    momenta = {n: state.weight_optimizer.state[t]["momentum_buffer"].clone() for n, t in state.theta.items()}
    state.learn(state.learns - frozen)
    assert set(state.theta) == state.learns == set(before) - frozen
    for name, t in state.theta.items():
        assert torch.equal(state.weight_optimizer.state[t]["momentum_buffer"], momenta[name])
    steps(state, method, losses, now, due=True)
    moved = {n for n, t in state.supernet.named_parameters() if not torch.equal(t, before[n])}
    assert moved == state.learns
    state.learn(before)  # thawed: from a standstill, as at the beginning
    assert not any(state.weight_optimizer.state.get(state.theta[n]) for n in frozen)
    weight_step(state, method, losses, now)
    assert all(not torch.equal(state.theta[n], before[n]) for n in frozen)
    with pytest.raises(ValueError, match="no such weight"):
        state.learn({"no such weight"})


def test_the_frozen_set_outlives_a_checkpoint() -> None:
    method = darts()
    state, now = ready(tiny_problem("toy"), method)
    losses = bilevel(state, method)
    weight_step(state, method, losses, now)
    state.learn(n for n in state.learns if "classifier" in n or "stem" in n)
    weight_step(state, method, losses, now)
    fresh, _ = ready(tiny_problem("toy"), method)
    loads(fresh, dumps(state), torch.device("cpu"))
    assert fresh.learns == state.learns
    assert [p.requires_grad for p in fresh.supernet.parameters()] == [
        p.requires_grad for p in state.supernet.parameters()
    ]
    for s in (state, fresh):
        steps(s, method, bilevel(s, method), now, due=True)
    assert all(torch.equal(a, b) for a, b in zip(state.supernet.parameters(), fresh.supernet.parameters(), strict=True))
    assert all(torch.equal(state.alpha[n], fresh.alpha[n]) for n in state.alpha)


def test_a_checkpoint_of_later_rules_is_refused_and_one_without_an_entry_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, _ = ready(tiny_problem("toy"), darts())
    data = dumps(state)
    assert torch.load(io.BytesIO(data), weights_only=True)["rules"] == config.RULES
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "RULES", 1)
        with pytest.raises(UserError, match="install a later one"):
            loads(state, data, torch.device("cpu"))
    older = {k: v for k, v in torch.load(io.BytesIO(data), weights_only=True).items() if k != "rules"}
    buffer = io.BytesIO()
    torch.save(older, buffer)
    assert loads(state, buffer.getvalue(), torch.device("cpu"))


@pytest.mark.parametrize("space", ["toy", "darts"])
def test_selections_take_no_masked_candidate_whatever_its_strength(space: str) -> None:
    problem = tiny_problem(space, **({} if space == "toy" else {"channels": 4, "cells": 3, "nodes": 2}))
    state = begin(problem, darts())
    for group in problem.space.groups:
        state.mask[group.name] = torch.zeros(len(group.edges), group.width, dtype=torch.bool)
        state.mask[group.name][:, 1] = True
    negative = replace(state, relaxation=Negative())
    for selection in (TopK(), PerEdgeArgmax()):
        for group in problem.space.groups:
            chosen = selection(negative, problem).groups[group.name]
            assert {c.op for c in chosen} == {group.ops[0][1]}


@dataclass(frozen=True)
class Negative(type(darts().relaxation)):  # type: ignore[misc]
    """Strengths below zero where a candidate remains, zero where it does not: signed relaxations (ISTA-NAS) have such."""

    def strength(self, alpha: Alpha, group: object, draw: object) -> Tensor:
        return -super().strength(alpha, group, draw)


@pytest.mark.parametrize("space", ["toy", "darts", "s1"])
def test_a_masked_supernet_has_fewer_weights_under_the_same_names(space: str) -> None:
    """And gives what the whole one gives with those candidates' op weights at zero."""
    small: dict[str, object] = {} if space == "toy" else {"channels": 4, "cells": 2}
    problem = tiny_problem(space, **small)
    mask = {g.name: g.valid() for g in problem.space.groups}
    for there in mask.values():
        there[:, -1] = False  # toy: the convolution; s1: leaves an edge its first alone
    part, whole = begin(problem, darts(), mask), begin(problem, darts())
    own = dict(whole.supernet.named_parameters())
    assert set(part.theta) < set(own)
    with torch.no_grad():
        for name, p in part.supernet.named_parameters():
            p.copy_(own[name])
    whole.mask = dict(part.mask)
    batch = StepBatches(*streams(problem, darts()), 0).inner()
    draw = part.draw("weight")
    for name in own:
        assert (name in part.theta) or ".ops." in name
    losses = [s.task_loss(s.op_weights(whole.alpha, s.draw("weight")), batch, draw)[0] for s in (part, whole)]
    torch.testing.assert_close(*losses)


# ---------------------------------------------------------------------- single level, targets, fixed alpha


def test_a_joint_step_is_both_steps_from_one_loss() -> None:
    method = replace(PLAIN, single_level=True, split=Whole(), arch_optimizer=Descent(0.5))
    state, now = ready(tiny_problem("toy"), method)
    draw, batch = state.draw("weight"), now.inner()
    loss, _ = state.task_loss(state.op_weights(state.alpha, draw), batch, draw)
    both = [*state.theta.values(), *state.alpha.values()]
    grads = torch.autograd.grad(loss, both, materialize_grads=True)
    rates = [0.1] * len(state.theta) + [0.5] * len(state.alpha)
    expected = [(t - lr * g).detach() for t, g, lr in zip(both, grads, rates, strict=True)]
    steps(state, method, bilevel(state, method), now, due=True)
    for t, e in zip(both, expected, strict=True):
        torch.testing.assert_close(t.detach(), e)


def test_a_joint_step_takes_both_kinds_of_terms() -> None:
    def alphas(state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        return sum((t.sum() for t in alpha.values()), torch.zeros(()))

    base = replace(PLAIN, single_level=True, arch_optimizer=Descent(1.0))
    found = []
    for method in (base, replace(base, inner_terms=(alphas,)), replace(base, outer_terms=(alphas,))):
        state, now = ready(tiny_problem("toy"), method)
        steps(state, method, bilevel(state, method), now, due=True)
        found.append(torch.cat([t.detach().flatten() for t in state.alpha.values()]))
    for with_term in found[1:]:
        torch.testing.assert_close(with_term - found[0], torch.full_like(found[0], -1.0))


def test_all_images_for_both_levels() -> None:
    problem = tiny_problem("toy")
    weights, arch = streams(problem, replace(darts(), split=Whole()))
    assert len(weights.images) == len(arch.images) == len(problem.data.train)


def test_single_level_refuses_another_gradient() -> None:
    from oche.search.bilevel import Unrolled

    with pytest.raises(UserError, match="single-level"):
        replace(darts(), single_level=True, arch_gradient=Unrolled())


def test_random_labels_are_drawn_once_and_only_for_training() -> None:
    problem = tiny_problem("toy", count=240)
    method = replace(darts(), targets=RandomTargets(), split=Whole())
    first, again = (streams(problem, method)[0].images.targets for _ in range(2))
    other = streams(replace(problem, seed=9), method)[0].images.targets
    true = problem.data.train.targets
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    agree = float((first == true).double().mean())
    assert abs(agree - 1 / 3) < 0.1, "as often right as chance"
    assert first.unique().tolist() == [0, 1, 2]


def test_alpha_never_steps_at_arch_start_1() -> None:
    method = replace(darts(), arch_start=1.0)
    state = search(tiny_problem("toy", epochs=2), method).state
    for name, rows in state.trajectory.items():
        assert all(torch.equal(row, rows[0]) for row in rows)
        assert torch.equal(state.alpha[name].detach(), rows[0])
    assert not state.arch_optimizer.state


def test_alpha_s_gradient_is_clipped() -> None:
    norms = []
    for clip in (None, 1e-3):
        method = replace(PLAIN, arch_clip=clip, arch_optimizer=Descent())
        state, now = ready(tiny_problem("toy"), method)
        arch_step(state, method, bilevel(state, method), now)
        norms.append(float(torch.cat([t.grad.flatten() for t in state.alpha.values() if t.grad is not None]).norm()))
    assert norms[0] > 1e-3
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_an_earlier_alpha_can_be_looked_at() -> None:
    state = search(tiny_problem("toy", epochs=3), darts()).state
    for name, rows in state.trajectory.items():
        assert len(rows) == 4
        assert torch.equal(state.at(2).alpha[name], rows[2])
        assert torch.equal(state.at(3).alpha[name], state.alpha[name].detach())


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="reads this process's memory from /proc")
def test_a_process_does_not_count_its_parents_memory() -> None:
    """getrusage gives a child the highest that its parent had, as long as it has not had more itself."""
    held = torch.ones(2**27, dtype=torch.float64)
    ask = "import torch; from oche.search.record import memory_mib; print(memory_mib(torch.device('cpu')))"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=60).stdout
    assert 10 < float(said) < held.numel() * 8 / 2**20
