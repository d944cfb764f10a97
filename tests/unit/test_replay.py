"""Replayed steps, with a recorder that does on the CPU what a CUDA graph does: it repeats operations with their addresses and constants."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oche import optim
from oche.base import Alpha, Draw, Group, Params
from oche.methods import METHODS
from oche.search import loop
from oche.search.bilevel import Batches, Bilevel, FiniteDifference, Unrolled, detached, gradient
from oche.search.loop import search
from oche.search.method import Method
from oche.search.record import SearchResult
from oche.search.relaxations import Softmax
from oche.search.replay import WARM, Replayed, Step, capturable
from oche.search.state import Problem, SearchState
from oche.watch.named import Watch
from reference.tiny import tiny_problem

Call = Callable[[], None]


class Tape(TorchDispatchMode):
    """Every operation with its arguments and results. Playing it writes into the same results; Python does not run again."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, out in self.operations:
            given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            fresh = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(fresh), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)


@dataclass
class FakeRecorder:
    """Recording runs the call, unlike a graph's, so the first playing is left out."""

    tapes: list[Tape] = field(default_factory=list)
    warmed: int = 0
    fails: bool = False

    def warm(self, call: Call) -> None:
        self.warmed += 1
        call()

    def record(self, call: Call) -> Call:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        tape, first = Tape(), [True]
        with tape:
            call()
        self.tapes.append(tape)

        def replay() -> None:
            if first.pop() if first else False:
                return
            tape.play()

        return replay


def recorded_search(
    monkeypatch: pytest.MonkeyPatch, problem: Problem, method: Method, recorder: FakeRecorder
) -> tuple[SearchResult, list[Replayed]]:
    """The search with both steps recorded, as on a GPU."""
    made: list[Replayed] = []

    def replayed(pair: tuple[Step, Step], state: SearchState, method: Method) -> tuple[Step, Step]:
        made.extend(Replayed(step, state, recorder) for step in pair)
        return made[0], made[1]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "replayed", replayed)
        return search(problem, method), made


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused optimisers with a learning rate that is a tensor, and cells in plain torch (compiled kernels leave no trace on a tape)."""
    monkeypatch.setattr(optim, "on_gpu", lambda tensors: True)
    monkeypatch.setattr("oche.fast.cell.kernels", lambda: None)


def assert_same_search(a: SearchResult, b: SearchResult) -> None:
    assert a.genotype == b.genotype
    for name, t in a.state.supernet.named_parameters():
        assert torch.equal(t, dict(b.state.supernet.named_parameters())[name]), name
    for name, rows in a.state.trajectory.items():
        assert all(torch.equal(x, y) for x, y in zip(rows, b.state.trajectory[name], strict=True)), name


@dataclass(frozen=True)
class Ahead:
    """The gradient at the present weights, on the outer batch and on those of the next two weight steps."""

    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        fixed = detached(theta)
        loss = problem.outer(fixed, alpha, batches.outer())
        for n in (1, 2):
            loss = loss + problem.inner(fixed, alpha, batches.inner(n))
        return loss.detach(), gradient(loss, alpha)


METHODS_THAT_RECORD = {
    "batches ahead": replace(METHODS["darts"](), arch_gradient=Ahead()),
    "darts": METHODS["darts"](),
    "rf_darts": METHODS["rf_darts"](),
    "weights first": replace(METHODS["darts"](), arch_first=False, lr_by_step=True),
    "late and rare": replace(METHODS["darts"](), arch_start=0.5, arch_every=2),
    "exact second order": replace(METHODS["darts"](), arch_gradient=Unrolled()),
    "finite difference": replace(METHODS["darts"](), arch_gradient=FiniteDifference()),
}


@pytest.mark.parametrize("name", METHODS_THAT_RECORD)
def test_a_recorded_search_is_bit_identical(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Weights, the trajectory of alpha, the genotype and the log, while learning rate and batches change at every step."""
    method = METHODS_THAT_RECORD[name]
    assert isinstance(method, Method)
    seen: list[dict[str, object]] = []
    problem = replace(
        tiny_problem(epochs=4), listener=lambda event, record: seen.append(dict(record)) if event == "epoch" else None
    )
    plain = search(problem, method)
    logged, seen[:] = list(seen), []
    recorder = FakeRecorder()
    found, (arch, weight) = recorded_search(monkeypatch, problem, method, recorder)
    assert_same_search(found, plain)
    assert weight.replay is not None
    assert arch.replay is not None or name == "late and rare"
    for mine, wanted in zip(seen, logged, strict=True):
        for key in ("weight_loss", "weight_accuracy", "arch_loss", "arch_accuracy", "lr", "genotype", "entropy"):
            assert mine[key] == wanted[key], key


def test_partial_channels_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edge normalisation copies nothing to the device within a step."""
    method = METHODS["pcdarts"](K=2)
    assert isinstance(method, Method)
    method = replace(method, arch_start=0.0)
    problem = tiny_problem(epochs=2, channels=4)
    found, made = recorded_search(monkeypatch, problem, method, FakeRecorder())
    assert_same_search(found, search(problem, method))
    assert all(step.replay is not None for step in made)


def test_the_first_steps_are_run_and_the_others_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, calls = FakeRecorder(), []
    counted_step = loop.weight_step
    monkeypatch.setattr(loop, "weight_step", lambda *a: (calls.append(1), counted_step(*a))[1])
    problem = tiny_problem(epochs=3)
    found, _ = recorded_search(monkeypatch, problem, METHODS_THAT_RECORD["darts"], recorder)  # type: ignore[arg-type]
    assert found.state.step > WARM + 1
    assert len(calls) == WARM + 1, "the recording runs Python once more, a replay never"
    assert len(recorder.tapes) == 2
    assert recorder.warmed == 2 * WARM


@dataclass(frozen=True)
class Tempered(Softmax):
    """A relaxation that follows the progress, as annealed ones do."""

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return (super().__call__(alpha, group, draw).log() * (1 + draw.progress)).softmax(-1)


@dataclass(frozen=True)
class Noisy(Softmax):
    """A relaxation that draws at every step, as Gumbel's does."""

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        w = super().__call__(alpha, group, draw)
        return w + 0.01 * torch.rand(w.shape, generator=draw.generator("noise"))


@pytest.mark.parametrize("relaxation", [Tempered(), Noisy()], ids=["progress", "generator"])
def test_what_changes_from_step_to_step_is_not_frozen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, relaxation: Softmax
) -> None:
    method, problem = replace(METHODS_THAT_RECORD["darts"], relaxation=relaxation), tiny_problem(epochs=3)  # type: ignore[type-var]
    recorder = FakeRecorder()
    with caplog.at_level(logging.INFO, logger="oche.search.replay"):
        found, _ = recorded_search(monkeypatch, problem, method, recorder)
    assert not recorder.tapes
    said = [r.getMessage() for r in caplog.records if r.name == "oche.search.replay"]
    assert len(said) == 2, "once a kind of step"
    assert "the step asks for the draw's" in said[0]
    assert_same_search(found, search(problem, method))


def test_a_learning_rate_read_as_a_number_is_not_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """iDARTS multiplies by it."""
    method, problem = replace(METHODS["idarts"](), arch_start=0.0, lr_by_step=True), tiny_problem(epochs=3)  # type: ignore[type-var]
    assert isinstance(method, Method)
    found, (arch, weight) = recorded_search(monkeypatch, problem, method, FakeRecorder())
    assert arch.plain
    assert weight.replay is not None
    assert_same_search(found, search(problem, method))


def test_a_recording_that_cuda_refuses_leaves_the_search_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    method, problem = METHODS_THAT_RECORD["darts"], tiny_problem(epochs=2)
    assert isinstance(method, Method)
    found, made = recorded_search(monkeypatch, problem, method, FakeRecorder(fails=True))
    assert all(step.plain for step in made)
    assert_same_search(found, search(problem, method))


def test_masked_candidates_end_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, method = tiny_problem(), METHODS_THAT_RECORD["darts"]
    assert isinstance(method, Method)
    state, recorder = loop.begin(problem, method), FakeRecorder()
    weights, arch = loop.streams(problem, method)
    step = Replayed(partial(loop.weight_step, state, method, loop.bilevel(state, method)), state, recorder)
    for i in range(WARM + 2):
        step(loop.StepBatches(weights, arch, i))
    assert step.replay is not None
    state.mask = {group.name: group.valid() for group in problem.space.groups}
    step(loop.StepBatches(weights, arch, 9))
    assert step.replay is None
    assert step.plain


def test_without_a_gpu_nothing_is_recorded() -> None:
    problem, method = tiny_problem(), METHODS_THAT_RECORD["darts"]
    assert isinstance(method, Method)
    state = loop.begin(problem, method)
    pair = loop.both_steps(state, method, loop.bilevel(state, method))
    assert loop.replayed(pair, state, method) is pair


@pytest.mark.parametrize(
    ("name", "can"), [("darts", True), ("rf_pcdarts", True), ("snas", False), ("darts_aer", False), ("oles", False)]
)
def test_probes_and_the_monitor_do_not_keep_a_search_from_graphs(name: str, can: bool) -> None:
    """Every search from the command line has them; a term, a hook into the steps or a single level does."""
    method = METHODS[name]()
    assert isinstance(method, Method)
    for searched in (method, replace(method, callbacks=(*method.callbacks, *Watch().callbacks()))):
        assert capturable(searched) == can
