"""search(): the one loop that runs every differentiable method. Read this first.

A step is an architecture step on one half of the images and a weight step on the other. Nothing here knows the name of a
method, a space or a device: what differs sits in the method's slots.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch

from oche.base import Alpha, Params
from oche.optim import NotFinite, check_finite, set_rate
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import Batches, Bilevel, averaged, detached
from oche.search.callbacks import InnerStep, OuterStep, asked
from oche.search.checkpoint import checkpoint, kept, resume
from oche.search.finite import roll_back
from oche.search.limits import limited
from oche.search.method import Method
from oche.search.record import SearchResult, conclude, end_epoch
from oche.search.replay import Step, replayed
from oche.search.state import Problem, SearchState


def search(problem: Problem, method: Method) -> SearchResult:
    """Searches `problem.space` with `method`. Continues from the run's checkpoint if there is one.

    Raises UserError where the checkpoint is damaged or of other settings.
    """
    method = limited(problem, method)
    state = begin(problem, method)
    resume(state)
    advance(state, method)
    return conclude(state, method.arch_start < 1, method.selection(state, problem))


def advance(state: SearchState, method: Method) -> None:
    """Runs the epochs that are left, and keeps where it stands if they end before their time."""
    with kept(state):
        epochs(state, method)


def epochs(state: SearchState, method: Method) -> None:
    """Runs the epochs that are left."""
    problem = state.problem
    steps_per_epoch = streams(problem, method)[0].steps_per_epoch
    losses = bilevel(state, method)
    pair = replayed(both_steps(state, method, losses), state, method)

    while state.epoch < problem.epochs:
        for callback in method.callbacks:
            callback.on_epoch_start(state)
        state.weights.settle()
        if state.stop:
            break
        started, first = time.perf_counter(), state.step
        searching = state.epoch >= method.arch_start * problem.epochs
        begun = state.steps_before + state.epoch * steps_per_epoch
        weights, arch = streams(problem, method, state.epochs_before + state.epoch, begun)
        try:
            while state.step < (state.epoch + 1) * steps_per_epoch:
                set_learning_rate(state, method, steps_per_epoch)
                now = StepBatches(weights, arch, state.steps_before + state.step)
                due = searching and arch_due(method, state.step)
                steps(state, method, losses, now, due, pair)
                state.step += 1
                problem.listener("step", {"step": state.step, "steps": state.steps, "epoch": state.epoch})
                if state.step % (problem.checkpoint_every or 100) == 0:
                    checkpoint(state)
            end_epoch(state, method, time.perf_counter() - started, (state.step - first) * problem.batch, searching)
        except NotFinite as fault:
            roll_back(state, method, fault)


def set_learning_rate(state: SearchState, method: Method, steps_per_epoch: int) -> None:
    """Sets the weights' learning rate to the schedule's value at this epoch, or at this step."""
    start, end = state.span
    done = state.step / state.steps if method.lr_by_step else (state.step // steps_per_epoch) / state.problem.epochs
    set_rate(state.weight_optimizer, method.weight_lr(start + (end - start) * done) * 0.5**state.slower)


def arch_due(method: Method, step: int) -> bool:
    """True if alpha steps at this step: it begins a round of `arch_every`, or ends one where the weights go first."""
    return (step if method.arch_first else step + 1) % method.arch_every == 0


# ------------------------------------------------------------------ the two steps


def steps(
    state: SearchState,
    method: Method,
    losses: Bilevel,
    now: StepBatches,
    due: bool,
    pair: tuple[Step, Step] | None = None,
) -> None:
    """The architecture step, where it is `due`, and the weight step, in the method's order or together."""
    if method.single_level:
        weight_step(state, method, losses, now, joint=due)
        return
    arch, weight = pair or both_steps(state, method, losses)
    if due and method.arch_first:
        arch(now)
    weight(now)
    if due and not method.arch_first:
        arch(now.after() if method.fresh_inner else now)


def both_steps(state: SearchState, method: Method, losses: Bilevel) -> tuple[Step, Step]:
    """(architecture step, weight step) of this search, which take the batches alone."""
    return partial(arch_step, state, method, losses), partial(weight_step, state, method, losses)


def arch_step(state: SearchState, method: Method, losses: Bilevel, now: Batches) -> None:
    """One step of alpha along the method's architecture gradient."""
    kept: Params = {}
    keeping = replace(losses, keep=kept.update)
    loss, grads = method.arch_gradient(keeping, state.weights.tensors, state.alpha, now)
    loss, (grads, kept) = averaged(losses, loss, grads, kept)
    check_finite("the loss on alpha's images", loss)
    step_alpha(state, method, grads, OuterStep(loss, kept))


def weight_step(state: SearchState, method: Method, losses: Bilevel, now: Batches, *, joint: bool = False) -> None:
    """One step of the weights that learn. Alpha is a constant here, unless a `joint` step takes it along (single level)."""
    draw, batch = state.draw("weight"), now.inner()
    alpha = state.alpha if joint else detached(state.alpha)
    op_weights = state.op_weights(alpha, draw)
    for callback in method.callbacks:
        op_weights = callback.before_inner_step(state, op_weights, alpha, batch)
    theta = state.weights.taking_part(op_weights)
    loss, confusion = state.task_loss(op_weights, batch, draw, theta)
    task_loss = loss.detach()
    state.meter(weight_loss=loss, weight_confusion=confusion, weight_steps=1.0)
    for term in method.inner_terms + (method.outer_terms if joint else ()):
        loss = loss + term(state, theta, alpha, batch)
    grads = state.weights.gradients_of(loss, asked(op_weights), alpha if joint else {})
    task_loss, (by_weight, by_op_weight, by_alpha) = averaged(losses, task_loss, *grads)
    check_finite("the loss on the weights' images", task_loss)
    for callback in method.callbacks:
        inner = InnerStep(op_weights, alpha, batch, draw, by_op_weight)
        by_weight = callback.after_inner_backward(state, by_weight, inner)
    state.weights.step(by_weight, method.clip)
    if joint:
        state.meter(arch_loss=loss, arch_confusion=confusion, arch_steps=1.0)
        step_alpha(state, method, by_alpha, OuterStep(loss.detach()))


def step_alpha(state: SearchState, method: Method, grads: Alpha, outer: OuterStep) -> None:
    """Lets the callbacks see alpha's gradients, clips them where the method does, and steps."""
    for callback in method.callbacks:
        grads = callback.after_outer_backward(state, grads, outer)
    check_finite("alpha's gradient", torch.nn.utils.get_total_norm(grads.values()))
    for name, t in state.alpha.items():
        t.grad = grads.get(name)
    if method.arch_clip is not None:
        torch.nn.utils.clip_grad_norm_(state.alpha.values(), method.arch_clip)
    state.arch_optimizer.step()
