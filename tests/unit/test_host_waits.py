"""Nothing in a step makes the host wait for the device: whole steps, on tensors that have no values to wait for.

On the device `meta` a tensor is a shape without numbers, so `.item()`, `float(t)`, `if t:`, `.tolist()`, `.cpu()`, `nonzero` and boolean
indexing all fail. What would only be slow there, copies from the host into the device within a step, a dispatch mode catches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oche.base import Alpha, Draw, Group
from oche.data import Augment, ImageSet, Parts
from oche.fast.backends.device import Triton
from oche.methods import METHODS
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import FiniteDifference, Unrolled
from oche.search.callbacks import Callback
from oche.search.loop import arch_step, weight_step
from oche.search.method import Method
from oche.search.relaxations import EdgeNormalised, Softmax
from oche.search.state import Problem, SearchState
from oche.spaces.edges import PartialChannels
from reference.tiny import tiny_problem

META = torch.device("meta")


class WithoutValues(Fabric):
    """A fabric whose device holds shapes alone."""

    @property
    def device(self) -> torch.device:
        return META


class NoCopies(TorchDispatchMode):
    """Refuses copies from the host's memory to the device; `waiting` only those for which the host would wait."""

    def __init__(self, waiting: bool = False) -> None:
        super().__init__()
        self.waiting = waiting

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        copied = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        crosses = copied and out.device == META and _on_host([t for t in tree_leaves(args) if isinstance(t, Tensor)])
        patient = self.waiting and bool(kwargs.get("non_blocking"))
        if crosses and not patient:
            raise AssertionError(f"{func} copies from the host to the device within a step")
        return out


class NoLiterals(TorchFunctionMode):
    """Refuses tensors made on the device from Python's numbers, which are copies too."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor)
        if made and out.device == META and not any(isinstance(t, Tensor) and t.device == META for t in args[:1]):
            raise AssertionError(f"{func} copies from the host to the device within a step")
        return out


def _on_host(tensors: Sequence[Tensor]) -> bool:
    return any(t.device.type == "cpu" for t in tensors)


@pytest.fixture(autouse=True)
def _clipped_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch clips all gradients at once on no device without values."""
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda tensors, norm, **_: clip(tensors, norm))


def on_meta(space: str = "toy", **settings: object) -> Problem:
    problem = tiny_problem(space, **settings)  # type: ignore[arg-type]
    augment = Augment(problem.data.mean, problem.data.std, pad=1, flip=True, cutout=2)
    return replace(
        problem, fabric=WithoutValues(accelerator="cpu", devices=1), data=problem.data.to(META), augment=augment
    )


def stepper(problem: Problem, method: Method) -> Callable[[int], None]:
    """Returns a function that takes both steps on the i-th batches, which are made beforehand."""
    method = replace(method, split=everything)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchState, "remember", lambda state: None)  # it copies alpha to the host, once an epoch
        state = begin(problem, method)
    losses, (weights, arch) = bilevel(state, method), streams(problem, method)

    def run(i: int) -> None:
        now = StepBatches(weights, arch, i)
        fixed = Fixed(now.inner(), now.outer())
        with (
            nullcontext() if i == 0 else NoCopies(),
            nullcontext() if i == 0 else NoLiterals(),
        ):  # the first sends what is sent once
            arch_step(state, method, losses, fixed)
            weight_step(state, method, losses, fixed)

    return run


def everything(train: ImageSet, seed: int, epoch: int = 0) -> Parts:
    return Parts(train, train)


@dataclass
class Fixed:
    first: Any
    second: Any

    def inner(self) -> Any:
        return self.first

    def outer(self) -> Any:
        return self.second


def method_named(name: str) -> Method:
    method = METHODS[name]()
    assert isinstance(method, Method)
    return method


CASES = {
    "darts": (method_named("darts"), "toy", {}),
    "rf_darts": (method_named("rf_darts"), "toy", {}),
    "nb201": (method_named("darts"), "nb201", {"channels": 4, "cells": 1}),
    "candidates differ by edge": (method_named("darts"), "s1", {"channels": 4, "cells": 1}),
    "candidates differ by edge, with reductions": (method_named("darts"), "s1", {"channels": 4, "cells": 3}),
    "edge weights and shares": (
        replace(method_named("darts"), relaxation=EdgeNormalised(), edge=PartialChannels(2)),
        "toy",
        {"channels": 4},
    ),
    "exact second order": (replace(method_named("darts"), arch_gradient=Unrolled()), "toy", {}),
    "finite difference": (replace(method_named("darts"), arch_gradient=FiniteDifference()), "toy", {}),
}


SLOW = ("candidates differ by edge, with reductions", "exact second order")


@pytest.mark.parametrize("kernels", ["plain torch", "triton"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_a_step_neither_waits_nor_copies(monkeypatch: pytest.MonkeyPatch, name: str, kernels: str) -> None:
    if kernels == "triton":
        pytest.importorskip("triton")
        monkeypatch.setattr("oche.fast.cell.accelerator", lambda device: Triton())
    method, space, settings = CASES[name]
    run = stepper(on_meta(space, **settings), method)
    run(0)
    run(1)


def test_making_a_batch_does_not_wait_either() -> None:
    """Random numbers come from the host, without the host waiting for their copy."""
    weights, _ = streams(on_meta(), replace(method_named("darts"), split=everything))  # type: ignore[arg-type]
    weights.at(0)
    with NoCopies(waiting=True):
        batch = weights.at(1)
    assert batch.images.device == META
    with pytest.raises(AssertionError), NoCopies():
        weights.at(1)


# ---------------------------------------------------------------------- the guard itself


@dataclass(frozen=True)
class Peeking(Callback):
    look: Callable[[Tensor], object]

    def before_inner_step(self, state: SearchState, weights: Any, alpha: Alpha, batch: Any) -> Any:
        self.look(next(iter(weights.values())))
        return weights


@dataclass(frozen=True)
class Copying(Softmax):
    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        w = super().__call__(alpha, group, draw)
        return w * torch.ones(w.shape).to(w.device)


@dataclass(frozen=True)
class Listing(Softmax):
    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        w = super().__call__(alpha, group, draw)
        return w * torch.tensor([1.0] * group.width, device=w.device)


@pytest.mark.parametrize(
    "look",
    [
        lambda w: w.sum().item(),
        lambda w: float(w.sum()),
        lambda w: bool((w > 0).all()),
        lambda w: w.tolist(),
        lambda w: w.cpu(),
        lambda w: w.nonzero(),
        lambda w: w[w > 0],
        lambda w: torch.equal(w, w + 1),
    ],
    ids=["item", "float", "bool", "tolist", "cpu", "nonzero", "boolean index", "equal"],
)
def test_whoever_looks_at_a_value_is_caught(look: Callable[[Tensor], object]) -> None:
    run = stepper(on_meta(), replace(method_named("darts"), callbacks=(Peeking(look),)))
    with pytest.raises((RuntimeError, NotImplementedError)):
        run(0)


@pytest.mark.parametrize("relaxation", [Copying(), Listing()], ids=["to", "torch.tensor"])
def test_whoever_copies_to_the_device_in_a_step_is_caught(relaxation: Softmax) -> None:
    run = stepper(on_meta(), replace(method_named("darts"), relaxation=relaxation))
    run(0)
    with pytest.raises(AssertionError, match="copies from the host"):
        run(1)
