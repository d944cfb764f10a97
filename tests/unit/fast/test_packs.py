"""Weights that lie in packs: the same search as with each weight by itself, and the same weights under the same names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from oche.base import Alpha, Batch, OpWeights
from oche.fast.backends.native import kernels
from oche.fast.packs import Pack, leaves_out
from oche.methods.darts import darts
from oche.methods.pcdarts import pcdarts
from oche.methods.random_features import rf_darts
from oche.optim import SGD
from oche.schedule import Constant
from oche.search import begin as start
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import FiniteDifference, Unrolled
from oche.search.callbacks import Callback
from oche.search.checkpoint import dumps, loads
from oche.search.loop import search, set_learning_rate, steps
from oche.search.method import Method
from oche.search.relaxations import GumbelSoftmax
from oche.search.state import Problem, SearchState
from oche.search.trainable import BatchNormOnly
from oche.spaces.networks import Supernet
from reference.tiny import tiny_problem

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif(kernels() is None, reason="no compiled kernels: nothing is packed"),
]


def small(channels: int = 4, **settings: object) -> Problem:
    return tiny_problem("darts", epochs=2, count=16, cells=3, channels=channels, nodes=2, **settings)  # type: ignore[arg-type]


def second(how: Unrolled | FiniteDifference) -> Method:
    return replace(darts(), arch_gradient=how)


METHODS: dict[str, Callable[[], Method]] = {
    "darts": darts,
    "vectors are not decayed": lambda: replace(darts(), weight_optimizer=SGD(decay_vectors=False)),
    "pcdarts": lambda: pcdarts(2),
    "rf_darts": rf_darts,
    "exact second order": lambda: second(Unrolled()),
    "finite difference": lambda: second(FiniteDifference()),
}


def everything(state: SearchState) -> dict[str, Tensor]:
    """Weights, their momentum and alpha, by name."""
    momentum = {f"momentum of {n}": state.weight_optimizer.state[p]["momentum_buffer"] for n, p in state.theta.items()}
    return {n: p.detach() for n, p in state.supernet.named_parameters()} | momentum | dict(state.alpha)


def some_steps(problem: Problem, method: Method, count: int = 3, state: SearchState | None = None) -> SearchState:
    state = state or begin(problem, method)
    weights, arch = streams(problem, method)
    losses = bilevel(state, method)
    for _ in range(count):
        set_learning_rate(state, method, weights.steps_per_epoch)
        steps(state, method, losses, StepBatches(weights, arch, state.step), due=True)
        state.step += 1
    return state


def assert_same(one: SearchState, other: SearchState) -> None:
    one.weights.unpack()
    other.weights.unpack()
    a, b = everything(one), everything(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("channels", [4, 6])  # 6: halves of odd width in the reduction cells' states
def test_a_search_takes_the_same_steps(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = some_steps(small(channels), METHODS[name]())
    assert packed.weights.packs
    assert len(packed.weights.tensors) < len(packed.theta) / 2
    monkeypatch.setattr(start, "packable", lambda method: False)
    alone = some_steps(small(channels), METHODS[name]())
    assert not alone.weights.packs
    assert alone.weights.tensors.keys() == alone.theta.keys()
    assert_same(packed, alone)


def test_recomputed_cells_read_packs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(small(), recompute=True)
    packed = some_steps(problem, second(FiniteDifference()))
    assert packed.weights.packs
    monkeypatch.setattr(start, "packable", lambda method: False)
    assert_same(packed, some_steps(problem, second(FiniteDifference())))


def test_a_weight_is_its_part_of_the_pack() -> None:
    state = begin(small(), darts())
    before = {n: p.detach().clone() for n, p in begin(small(), darts()).supernet.named_parameters()}
    inside = [name for pack in state.weights.packs for name in pack.weights]
    own = dict(state.supernet.named_parameters())
    assert len(inside) == len(set(inside))
    assert set(inside) == {n for n in own if ".edges." in n}
    for pack in state.weights.packs:
        assert sum(p.numel() for p in pack.weights.values()) == pack.values.numel()
        for name, p in pack.weights.items():
            assert torch.equal(p, before[name])
            with torch.no_grad():
                p.fill_(3)
        assert (pack.values == 3).all(), "every entry is some weight's"
        with torch.no_grad():
            pack.values.normal_()
        parts = pack.split(pack.values.detach())
        assert all(torch.equal(parts[name], p) for name, p in pack.weights.items())
        assert torch.equal(pack.join(parts), pack.values)


@dataclass(frozen=True)
class Without(Callback):
    """Takes the dilated convolutions' op weights away, in the weight step alone."""

    def before_inner_step(self, state: SearchState, weights: OpWeights, alpha: Alpha, batch: Batch) -> OpWeights:
        (columns,) = {
            tuple(op.startswith("dil_conv") for op in ops) for group in state.space.groups for ops in group.ops
        }
        return {name: w.masked_fill(torch.tensor(columns), 0.0) for name, w in weights.items()}


LEAVING: dict[str, Callable[[], Method]] = {
    "hard samples": lambda: replace(darts(), relaxation=GumbelSoftmax(Constant(1.0), hard=True)),
    "a callback": lambda: replace(darts(), callbacks=(Without(),)),
}


@pytest.mark.parametrize("name", LEAVING)
def test_what_takes_no_part_in_a_step_is_left_as_it_is(name: str) -> None:
    """Neither weight decay nor momentum moves the weights of candidates that took no part."""
    method = LEAVING[name]()
    state = begin(small(), method)
    assert state.weights.packs
    before = {n: p.detach().clone() for n, p in state.supernet.named_parameters()}
    some_steps(state.problem, method, 1, state)
    assert not state.weights.packs
    moved = {n for n, p in state.supernet.named_parameters() if not torch.equal(p, before[n])}
    of_cells = {n for n in before if ".edges." in n}
    assert moved & of_cells
    assert of_cells - moved
    assert not any(state.weight_optimizer.state.get(state.theta[n]) for n in of_cells - moved)


def test_pools_without_weights_leave_packs_alone() -> None:
    state = begin(small(), darts())
    (columns,) = {
        tuple("pool" in op or op == "none" for op in ops) for group in state.space.groups for ops in group.ops
    }
    weights = {
        name: torch.ones(len(group.edges), group.width).masked_fill(torch.tensor(columns), 0.0)
        for group in state.space.groups
        for name in group.cells
    }
    assert not leaves_out(state.supernet, weights)
    assert leaves_out(state.supernet, {name: 0 * w for name, w in weights.items()})


def test_weights_that_stop_learning_lie_by_themselves_and_the_others_momentum_goes_on() -> None:
    state = some_steps(small(), darts(), 1)
    twin = some_steps(small(), darts(), 1)
    twin.weights.unpack()
    momenta = {n: twin.weight_optimizer.state[t]["momentum_buffer"] for n, t in twin.theta.items()}
    state.learn(n for n in state.learns if "dil_conv" not in n)
    assert not state.weights.packs
    assert all(
        torch.equal(state.weight_optimizer.state[t]["momentum_buffer"], momenta[n]) for n, t in state.theta.items()
    )


@pytest.mark.parametrize("packed", [True, False])
def test_a_checkpoint_has_the_weights_names(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(start, "packable", lambda method: False)
    state = some_steps(small(), darts(), 2)
    monkeypatch.undo()
    fresh = begin(small(), darts())
    assert fresh.weights.packs
    assert loads(fresh, dumps(state), torch.device("cpu"))
    assert bool(fresh.weights.packs) == packed, "a search goes on as it was"
    assert len(fresh.weight_optimizer.param_groups[0]["params"]) == len(fresh.weights.tensors)
    for s in (state, fresh):
        some_steps(s.problem, darts(), 2, s)
    a, b = everything_now(state), everything_now(fresh)
    assert all(torch.equal(a[n], b[n]) for n in a)


def everything_now(state: SearchState) -> dict[str, Tensor]:
    state.weights.unpack()
    return everything(state)


def test_packs_follow_weights_that_were_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> SearchState:
        state = begin(small(), darts())
        for p in state.supernet.parameters():
            p.data = p.data.clone() * 2
        return some_steps(state.problem, darts(), 2, state)

    packed = moved()
    assert packed.weights.packs
    monkeypatch.setattr(start, "packable", lambda method: False)
    assert_same(packed, moved())


def test_cells_whose_weights_learn_in_part_are_not_packed() -> None:
    state = begin(small(), replace(rf_darts(), trainable=BatchNormOnly(pool_bn=False)))
    assert not state.weights.packs
    assert {p.values.requires_grad for p in begin(small(), rf_darts()).weights.packs} == {True, False}


def test_after_a_search_every_weight_has_memory_of_its_own() -> None:
    supernet: Supernet = search(small(), darts()).state.supernet
    addresses = [p.untyped_storage().data_ptr() for p in supernet.parameters()]
    assert len(set(addresses)) == len(addresses)
    assert all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in supernet.parameters())


def test_forward_passes_by_name_are_the_same_beside_packs() -> None:
    """Whoever gives weights by their names gets the loss at those, and one at the present weights sees what a step did to them."""
    state = some_steps(small(), darts(), 1)
    weights, _ = streams(state.problem, darts())
    batch, draw = weights.at(0), state.draw("eval")
    op_weights = {name: w.detach() for name, w in state.op_weights(state.alpha, draw).items()}
    assert state.weights.packs

    def losses() -> list[Tensor]:
        theta = {n: p.detach().requires_grad_() for n, p in state.theta.items()}
        found = []
        for given in (None, theta, state.weights.tensors if state.weights.packs else None):
            loss, _ = state.task_loss(op_weights, batch, draw, given)
            found.append(loss.detach())
        grads = torch.autograd.grad(state.task_loss(op_weights, batch, draw, theta)[0], list(theta.values()))
        return [*found, *grads]

    packed = losses()
    packs: tuple[Pack, ...] = state.weights.packs
    assert packs
    state.weights.unpack()
    for a, b in zip(packed, losses(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
