"""DARTS-V1 and DARTS-V2 of AutoDL-Projects, step by step, against `--budget paper` in nb201: float64, to 1e-10.

The transcription knows the network as a function of its weights and alpha; its order, look-ahead, difference and optimisers are the
scripts' own (exps/NAS-Bench-201-algos @ f46486e), but for the clipped norm, which takes in alpha's gradient there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oche.base import Batch
from oche.optim import SGD
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.loop import set_learning_rate, steps
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from reference.tiny import tiny_data, tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


def published(name: str, **options: object) -> Method:
    """The settings that `oche search NAME --space nb201 --budget paper` steps with."""
    settings = {f"method.{key}": value for key, value in options.items()}
    found = resolve(Request(name, space="nb201", data=tiny_data(), budget="paper", settings=settings)).searcher
    assert isinstance(found, Method)
    return found


class Script:
    """The search functions of DARTS-V1.py and DARTS-V2.py: plain torch, two optimisers, one network."""

    def __init__(self, state: SearchState) -> None:
        self.state = state
        self.names = [name for name, _ in state.supernet.named_parameters()]
        self.weights = [p.detach().clone().requires_grad_() for _, p in state.supernet.named_parameters()]
        self.alphas = state.alpha["cell/alpha"].detach().clone().requires_grad_()
        self.w_optimizer = torch.optim.SGD(self.weights, 0.025, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.a_optimizer = torch.optim.Adam([self.alphas], lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def loss(self, weights: list[Tensor], alphas: Tensor, batch: Batch) -> Tensor:
        op_weights = self.state.op_weights({"cell/alpha": alphas}, self.state.draw("alpha"))
        theta = dict(zip(self.names, weights, strict=True))
        return self.state.task_loss(op_weights, batch, self.state.draw("alpha"), theta)[0]

    def weight_step(self, base: Batch) -> None:
        self.w_optimizer.zero_grad()
        self.loss(self.weights, self.alphas, base).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 5)
        self.w_optimizer.step()

    def first_order(self, base: Batch, arch: Batch) -> None:
        """DARTS-V1.py, lines 51 to 73."""
        self.weight_step(base)
        self.a_optimizer.zero_grad()
        self.loss(self.weights, self.alphas, arch).backward()
        self.a_optimizer.step()

    def second_order(self, base: Batch, arch: Batch) -> None:
        """DARTS-V2.py, lines 48 to 112 and 139 to 167."""
        lr, decay = (self.w_optimizer.param_groups[0][key] for key in ("lr", "weight_decay"))
        grads = torch.autograd.grad(self.loss(self.weights, self.alphas, base), self.weights)
        buffers = [self.w_optimizer.state[w].get("momentum_buffer", torch.zeros_like(w)) for w in self.weights]
        unrolled = [
            (w - lr * (0.9 * b + g + decay * w)).detach().requires_grad_()
            for w, b, g in zip(self.weights, buffers, grads, strict=True)
        ]
        dalpha, *vector = torch.autograd.grad(self.loss(unrolled, self.alphas, arch), [self.alphas, *unrolled])
        r = 1e-2 / torch.cat([v.reshape(-1) for v in vector]).norm()
        sides = []
        for sign in (1, -1):
            there = [(w + sign * r * v).detach() for w, v in zip(self.weights, vector, strict=True)]
            sides.append(torch.autograd.grad(self.loss(there, self.alphas, base), self.alphas)[0])
        self.alphas.grad = dalpha - lr * (sides[0] - sides[1]) / (2 * r)
        self.a_optimizer.step()
        self.weight_step(base)


CASES: dict[str, tuple[Callable[[], Method], Callable[[Script, Batch, Batch], None]]] = {
    "DARTS-V1": (lambda: published("darts"), Script.first_order),
    "DARTS-V2": (lambda: published("darts_2nd", finite_difference=True), Script.second_order),
}


def small() -> Problem:
    return tiny_problem("nb201", epochs=1, count=8, channels=4, cells=1)


@pytest.mark.parametrize("name", CASES)
def test_two_steps_equal_the_script(name: str) -> None:
    make, literal = CASES[name]
    method, problem = make(), small()
    script = Script(begin(problem, method))
    weights, arch = streams(problem, method)
    assert weights.steps_per_epoch == 2
    for step in range(2):
        literal(script, weights.at(step), arch.at(step))
    state = two_steps(problem, method)
    assert_same(state, script)


def two_steps(problem: Problem, method: Method) -> SearchState:
    """Two steps of the loop, in one epoch's learning rate."""
    state = begin(problem, method)
    weights, arch = streams(problem, method)
    losses = bilevel(state, method)
    for step in range(2):
        set_learning_rate(state, method, 2)
        steps(state, method, losses, StepBatches(weights, arch, step), due=True)
        state.step += 1
    return state


def assert_same(state: SearchState, script: Script) -> None:
    for (name, p), w in zip(state.supernet.named_parameters(), script.weights, strict=True):
        torch.testing.assert_close(p.detach(), w.detach(), rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(state.alpha["cell/alpha"].detach(), script.alphas.detach(), rtol=0, atol=1e-10)


def test_the_other_order_and_the_other_look_ahead_are_seen() -> None:
    """The comparison above would notice: it fails for weights first, and for a look-ahead with Nesterov."""

    make, literal = CASES["DARTS-V2"]
    method, problem = make(), small()
    assert isinstance(method.weight_optimizer, SGD)
    script = Script(begin(problem, method))
    weights, arch = streams(problem, method)
    for step in range(2):
        literal(script, weights.at(step), arch.at(step))
    for wrong in (
        replace(method, arch_first=False),
        replace(method, weight_optimizer=replace(method.weight_optimizer, nesterov_ahead=True)),
    ):
        with pytest.raises(AssertionError):
            assert_same(two_steps(problem, wrong), script)
