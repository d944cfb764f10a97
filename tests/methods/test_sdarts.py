"""SDARTS: the perturbation stays in its ball and on the simplex, ADV raises the loss, and alpha steps see clean op weights."""

from __future__ import annotations

import pytest
import torch

from contracts.same import assert_other_search, problem_of
from oche.methods.darts import darts
from oche.methods.sdarts import Perturbation, normalised, sdarts_adv, sdarts_rs
from oche.schedule import Constant, Linear
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.loop import arch_step

pytestmark = pytest.mark.usefixtures("float64")


def test_normalised_rows_by_hand() -> None:
    like = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    p = torch.tensor([[-0.1, 0.5], [-0.2, -0.3], [1.5, 1.0]])
    assert torch.equal(normalised(p, like), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]))


@pytest.mark.parametrize(("empty", "ops"), [("perturbed", (0, 1)), ("clean", (0, 0))])
def test_a_row_clipped_to_nothing_is_one_hot_where_the_empty_row_was_largest(empty: str, ops: tuple[int, int]) -> None:
    """perturb.py and `clip` of model_search.py: the largest entry before the clamp. At S1 one candidate may be missing: never that one."""
    problem = problem_of("s2")
    state = begin(problem, darts())
    perturbation = Perturbation(Constant(0.9), empty=empty)  # type: ignore[arg-type]
    clean, delta, there = ({}, {}, {})  # type: dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]
    for group in problem.space.groups:
        clean[group.name] = torch.tensor([0.6, 0.4]).expand(len(group.edges), 2)
        delta[group.name] = torch.tensor([-0.7, -0.8]).expand(len(group.edges), 2).clone()
        delta[group.name][1] = torch.tensor([-0.8, -0.45])
        there[group.name] = torch.ones(len(group.edges), 2)
    found = perturbation._moved(clean, delta, there)
    for p in found.values():
        assert p[:2].argmax(-1).tolist() == list(ops)
        assert torch.equal(p.sum(-1), torch.ones(len(p)))
    del state


@pytest.mark.parametrize("space", ["toy", "darts", "s1"])
@pytest.mark.parametrize("steps", [0, 7])
def test_perturbed_rows_are_distributions_within_the_ball(space: str, steps: int) -> None:
    problem = problem_of(space)
    state = begin(problem, darts())
    batch, epsilon = StepBatches(*streams(problem, darts()), 0).inner(), 0.02
    clean = state.op_weights(state.alpha, state.draw("weight"))
    found = Perturbation(Constant(epsilon), steps).before_inner_step(state, clean, state.alpha, batch)
    assert found.keys() == clean.keys()
    for cell, p in found.items():
        valid = problem.space.cell_groups()[cell].valid()
        torch.testing.assert_close(p.sum(-1), torch.ones(len(p)))
        assert ((p >= 0) & (p <= 1)).all()
        assert not p[~valid].any()
        raw = (
            p * 1.0
        )  # before the division: each entry in clean +- epsilon up to the row's sum, which is within O epsilon of 1
        width = valid.sum(-1, keepdim=True)
        assert ((raw - clean[cell]).abs() <= (epsilon * (1 + width) / (1 - epsilon * width)) + 1e-12).all()
        assert not p.requires_grad


def test_the_attack_raises_the_loss_or_leaves_the_clean_op_weights() -> None:
    for space in ("toy", "darts"):
        problem = problem_of(space)
        state = begin(problem, darts())
        for step in range(3):
            state.step = step
            batch, draw = StepBatches(*streams(problem, darts()), step).inner(), state.draw("weight")
            clean = {c: w.detach() for c, w in state.op_weights(state.alpha, draw).items()}
            losses = {}
            for steps in (0, 7):
                p = Perturbation(Constant(0.3), steps).before_inner_step(state, clean, state.alpha, batch)
                losses[steps] = float(state.task_loss(p, batch, draw)[0].detach())
            plain = float(state.task_loss(clean, batch, draw)[0].detach())
            assert losses[7] >= plain - 1e-12
            assert losses[7] > losses[0] or losses[7] == pytest.approx(plain)


@pytest.mark.parametrize("steps", [1, 7])
def test_the_attack_is_projected_sign_ascent(steps: int) -> None:
    """Steps of 2 epsilon / `steps` from the start that RS would have used, written out, clamped to the ball each time."""
    problem = problem_of("toy")
    state = begin(problem, darts())
    batch, draw, epsilon = StepBatches(*streams(problem, darts()), 0).inner(), state.draw("weight"), 0.1
    clean = {c: w.detach() for c, w in state.op_weights(state.alpha, draw).items()}
    p = next(iter(clean.values()))
    delta = (2 * torch.rand(p.shape, generator=draw.generator("perturbation/cell"), dtype=torch.float64) - 1) * epsilon
    for _ in range(steps):
        leaf = normalised(p + delta, p).requires_grad_()
        (grad,) = torch.autograd.grad(state.task_loss(dict.fromkeys(clean, leaf), batch, draw)[0], leaf)
        delta = (leaf.detach() + 2 * epsilon / steps * grad.sign() - p).clamp(-epsilon, epsilon)
    expected = normalised(p + delta, p)
    raised = state.task_loss(dict.fromkeys(clean, expected), batch, draw)[0] > state.task_loss(clean, batch, draw)[0]
    found = Perturbation(Constant(epsilon), steps).before_inner_step(state, clean, state.alpha, batch)
    for w in found.values():
        torch.testing.assert_close(w, expected if raised else p)


def test_the_alpha_step_sees_clean_op_weights() -> None:
    """The same gradient as DARTS's, whatever epsilon."""
    problem, grads = problem_of("toy"), []
    for method in (darts(), sdarts_rs(5.0), sdarts_adv(5.0)):
        state = begin(problem, method)
        arch_step(state, method, bilevel(state, method), StepBatches(*streams(problem, method), 0))
        grads.append(state.alpha["cell/alpha"].grad)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_epsilon_grows_tenfold() -> None:
    (callback,) = sdarts_rs().callbacks
    assert isinstance(callback, Perturbation)
    assert callback.epsilon == Linear(0.03, 0.3)
    (callback,) = sdarts_adv().callbacks
    assert callback == Perturbation(Linear(0.03, 0.3), 7)


def test_random_and_adversarial_are_not_the_same() -> None:
    assert_other_search(sdarts_adv(), sdarts_rs())
