"""The estimated cost of a search: counted memory against memory measured at the full batch, and what is refused."""

from __future__ import annotations

import random
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, repeat
from pathlib import Path

import pytest
import torch

import oche
from oche.data.memory import Room
from oche.errors import UserError
from oche.methods import METHODS, random_features
from oche.search import preflight
from oche.search.begin import begin, streams
from oche.search.method import Method
from oche.search.preflight import Estimate, estimate, memory_bytes
from oche.search.state import Problem, SearchState
from oche.training import memory
from oche.training.memory import least_kept
from reference.tiny import tiny_data, tiny_problem, tiny_space

SPACES = {"nb201": {"cells": 1, "channels": 8}, "darts": {"cells": 3, "channels": 4}, "toy": {}}


def method(name: str) -> Method:
    built = METHODS[name]()
    assert isinstance(built, Method)
    return built


def problem(space: str, batch: int = 32) -> Problem:
    return tiny_problem(space, batch=batch, count=64, **SPACES[space])


def kept(state: SearchState, p: Problem, m: Method) -> int:
    """Bytes of all tensors that autograd keeps for one weight loss on a full batch, each storage once, weights left out."""
    weights, _ = streams(p, m)
    own = {t.untyped_storage().data_ptr() for t in state.supernet.parameters()}
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is used twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(t)
        return t

    draw = state.draw("weight")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss, _ = state.task_loss(state.op_weights(state.alpha, draw), weights.at(0), draw)
    assert loss.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["darts", "pcdarts", "rf_darts"])
def test_memory_is_that_of_the_full_batch(name: str, space: str) -> None:
    """Counted on 16 and 32 images, it comes within a tenth of what 64 images keep."""
    p, m = problem(space, 64), method(name)
    state = begin(p, m)
    weights = 4 * sum(t.numel() * 4 for t in state.supernet.parameters())
    said = (memory_bytes(state, p, m) - weights) / 1.2
    assert said == pytest.approx(kept(state, p, m), rel=0.1)


def test_memory_grows_with_the_batch_and_with_unrolling() -> None:
    def need(name: str, batch: int) -> float:
        p, m = problem("toy", batch), method(name)
        return memory_bytes(begin(p, m), p, m)

    assert need("darts", 8) < need("darts", 16) < need("darts", 64)
    assert need("darts", 64) < need("darts_2nd", 64)


def test_random_features_keep_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen convolution's input need not be kept by PyTorch; the kernels keep what they need for both."""
    monkeypatch.setenv("OCHE_FAST", "off")
    p = problem("nb201")
    full, frozen = method("darts"), random_features(method("darts"))
    assert memory_bytes(begin(p, frozen), p, frozen) < memory_bytes(begin(p, full), p, full)


@pytest.mark.parametrize("fast", ["on", "off"])
def test_what_is_measured_is_let_go(fast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved tensor that is its node's own result must not keep the graph, and with it all that the pass has kept.

    What stays after a second measurement is what stayed after the first: weights, batches, buffers.
    """
    monkeypatch.setenv("OCHE_FAST", fast)
    p, m = problem("toy"), method("darts")
    state, seen = begin(p, m), weakref.WeakSet[torch.UntypedStorage]()
    hooks = torch.autograd.graph.saved_tensors_hooks

    def watched(pack: Callable[[torch.Tensor], torch.Tensor], unpack: Callable[[torch.Tensor], torch.Tensor]) -> object:
        def noted(t: torch.Tensor) -> torch.Tensor:
            if t.grad_fn is not None:
                seen.add(t.untyped_storage())
            return pack(t)

        return hooks(noted, unpack)

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", watched)
    stay = []
    for _ in range(2):
        memory_bytes(state, p, m)
        stay.append(len(seen))
    assert stay[0] == stay[1]


@pytest.mark.parametrize(
    ("left", "measured"), [(1e9, 32), (1.2 * 16 * 2, 32), (30.0, 16), (10.0, 8), (5.0, 4), (0.0, 4)]
)
def test_measuring_takes_no_more_than_there_is(left: float, measured: int) -> None:
    """Each image keeps a byte: 32 are measured where 38 bytes are left, 16 where 30 are, and at least 4."""
    asked: list[int] = []

    def keeps(batch: int) -> float:
        asked.append(batch)
        return float(batch)

    images, small, large = memory.twice(keeps, 16, left)
    assert (2 * images, small, large) == (measured, measured / 2, measured)
    assert max(asked) == measured
    assert measured == 4 or memory.PASSING * measured <= left


# ---------------------------------------------------------------------- refusing


@pytest.mark.parametrize("space", ["toy", "darts"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_a_batch_that_is_suggested_fits(space: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    p, m = problem(space, 512), method("darts")
    need = memory_bytes(begin(p, m), p, m)
    monkeypatch.setattr(preflight, "free_room", lambda device: Room(need * share, "this machine"))
    with pytest.raises(UserError, match="GiB") as told:
        estimate(p, m)
    found = re.search(r"--batch (\d+)", str(told.value))
    assert found
    suggested = replace(p, batch=int(found[1]))
    assert 2 <= suggested.batch < 512
    monkeypatch.setattr(preflight, "_step_seconds", lambda *_: 0.0)
    assert estimate(suggested, m).memory_mib * 2**20 <= need * share


def test_where_no_batch_fits_none_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_room", lambda device: Room(1000.0, "`ulimit -v`"))
    with pytest.raises(UserError, match=r"and `ulimit -v` leaves 0.0 GiB: try a smaller space") as told:
        estimate(problem("toy"), method("darts"))
    assert "--batch 1," not in str(told.value), "a search needs batches of two"


def photographs(space: str) -> Problem:
    """Images larger than twice a corner of 32 pixels."""
    data = tiny_data(24, (80, 96))
    return replace(problem(space), data=data, space=tiny_space(space, data, **SPACES[space]))


@pytest.mark.parametrize("space", ["toy", "nb201"])
def test_photographs_are_refused_before_two_are_measured(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From their corners, whose memory is near that of as large a share of the images."""
    p, m = photographs(space), method("darts")
    state = begin(p, m)
    monkeypatch.setattr(memory, "SIDE", 32)
    foretold = least_kept(lambda: preflight._kept_bytes(state, p, m, 2, 32), p.data.size)
    assert foretold == pytest.approx(preflight._kept_bytes(state, p, m, 2), rel=0.15)
    monkeypatch.setattr(memory, "SIDE", 20)
    assert least_kept(lambda: 9.0, (40, 40)) == 0, "no larger than twice as wide: measured whole"

    monkeypatch.setattr(memory, "SIDE", 32)
    monkeypatch.setattr(preflight, "SIDE", 32)
    monkeypatch.setattr(preflight, "memory_bytes", None)  # nothing else is measured
    monkeypatch.setattr(preflight, "free_room", lambda device: Room(foretold, "this machine"))
    with pytest.raises(
        UserError, match=r"for two images of 80x96, and this machine .*: try smaller images, such as --"
    ):
        estimate(p, m)


def test_measuring_that_does_not_fit_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(preflight, "begin", failing)
    with pytest.raises(UserError, match=r"does not fit into the .* GiB that .* leaves: try a smaller --batch than 32"):
        estimate(problem("toy"), method("darts"))


# ---------------------------------------------------------------------- the estimate


@pytest.mark.parametrize("grown", [0.0, 1e6])
def test_the_memory_told_is_what_the_measured_steps_took_if_that_is_more(
    grown: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, m = problem("toy"), method("darts")
    reckoned = memory_bytes(begin(p, m), p, m) / 2**20
    peaks = iter((500.0, 500.0 + grown))
    monkeypatch.setattr(preflight, "memory_mib", lambda device: next(peaks))
    assert estimate(p, m).memory_mib == pytest.approx(max(reckoned, grown))


def test_the_estimate_counts_what_learns() -> None:
    p = problem("nb201")
    full, frozen = (estimate(p, m) for m in (method("darts"), method("rf_darts")))
    assert full.trainable == full.parameters == sum(t.numel() for t in begin(p, method("darts")).supernet.parameters())
    assert 0 < frozen.trainable < frozen.parameters
    assert full.steps == 2  # 33 of 64 images of three classes are for the weights, 32 a batch
    assert 0 < full.step_seconds < 10
    assert Estimate(1, 1, 1.0, 0.5, 8, {}).seconds == 4.0


def test_measuring_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the global generator nor, by a listener or a run, anywhere else."""
    told: list[str] = []
    p = replace(problem("toy"), listener=lambda event, record: told.append(event))
    before = torch.get_rng_state()
    estimate(p, method("darts"))
    assert torch.equal(torch.get_rng_state(), before)
    assert not told


@dataclass
class Clock:
    """A clock of our own, on which each step takes what is given next; with a step of alpha or without."""

    seconds: Iterator[float]
    now: float = 0.0
    steps: list[bool] = field(default_factory=list)

    def step(self, *given: object) -> None:
        self.steps.append(bool(given[-1]))
        self.now += next(self.seconds)


def on_clock(seconds: Iterable[float], monkeypatch: pytest.MonkeyPatch, epochs: int) -> tuple[Clock, float]:
    """The clock after DARTS was estimated on it, and the seconds per step that were said."""
    clock = Clock(iter(seconds))
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(preflight, "steps", clock.step)
    return clock, estimate(replace(problem("toy"), epochs=epochs), method("darts")).step_seconds


@pytest.mark.parametrize("slow", [0, 1, 2])
@pytest.mark.parametrize("length", [0.2, 2.7])
def test_a_moment_in_which_the_machine_is_busy_is_not_believed(
    length: float, slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of three times the time among the first ones: one step gave 25 minutes, and a minute later 9."""
    clock, said = on_clock((length * (3 if n == slow else 1) for n in count()), monkeypatch, epochs=1000)
    assert said == pytest.approx(length, rel=0.25)
    assert len(clock.steps) > preflight.FEWEST


def test_steps_that_spread_are_measured_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    still, _ = on_clock(repeat(0.5), monkeypatch, epochs=1000)
    spread, _ = on_clock((0.3 + 0.4 * (n % 2) for n in count()), monkeypatch, epochs=1000)
    assert len(still.steps) == 1 + preflight.FEWEST < len(spread.steps) <= 1 + preflight.MOST


def test_most_estimates_of_a_load_that_comes_and_goes_are_near_its_mean() -> None:
    """Nineteen of twenty within a quarter, where the steps differ by 40 % either way."""

    def said(seed: int) -> float:
        draws, warm = random.Random(seed), list[float]()
        while not preflight._enough(warm, preflight.LONGEST):
            warm.append(0.5 * draws.uniform(0.6, 1.4))
        return preflight._middle(warm)

    assert sum(abs(said(seed) - 0.5) < 0.25 * 0.5 for seed in range(500)) > 0.95 * 500


def test_measuring_takes_little_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm step is always measured; no more where two in a hundred of the search, or half a minute, would be gone."""
    clock, said = on_clock((9.0 if n == 0 else 3.0 for n in count()), monkeypatch, epochs=2)
    assert (len(clock.steps), said) == (2, 3.0)
    clock, _ = on_clock((20.0 * (1 + n % 3) for n in count()), monkeypatch, epochs=1000)
    assert len(clock.steps) == 2
    clock, _ = on_clock((2.0 * (1 + n % 3) for n in count()), monkeypatch, epochs=1000)
    assert preflight.LONGEST - 6 <= clock.now <= 2 + preflight.LONGEST


def test_steps_without_alpha_count_for_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own on which a step of the weights takes 0.01 s and one of alpha 0.02: alpha has every second step of half."""
    now = [0.0]
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(preflight, "steps", lambda *given: now.__setitem__(0, now[0] + (0.03 if given[-1] else 0.01)))
    found = estimate(replace(problem("toy"), epochs=4), replace(method("darts"), arch_start=0.5, arch_every=2))
    assert found.step_seconds == pytest.approx(0.25 * 0.03 + 0.75 * 0.01)
    half = replace(method("darts"), arch_start=0.25)
    assert estimate(replace(problem("toy"), epochs=4), half, until=0.5).step_seconds == pytest.approx(
        0.25 * 0.03 + 0.75 * 0.01
    )
    assert estimate(replace(problem("toy"), epochs=4), half, until=0.25).step_seconds == pytest.approx(0.01)


# ---------------------------------------------------------------------- wherever a search begins


SMALL: dict[str, object] = {"space": "toy", "budget": "smoke", "epochs": 1, "batch": 6, "compare": 0, "progress": False}


def test_a_quiet_search_is_refused_before_there_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_room", lambda device: Room(1000.0, "`ulimit -v`"))
    with pytest.raises(UserError, match=r"`ulimit -v` leaves 0\.0 GiB"):
        oche.search("darts", data=tiny_data(12), out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_resumed_search_is_refused_unless_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(12)
    monkeypatch.setattr("oche.api.search.render", lambda run: None)
    with pytest.raises(KeyboardInterrupt):
        oche.search("darts", data=data, out=tmp_path / "run", listener=interrupting, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "free_room", lambda device: Room(1000.0, "`ulimit -v`"))
        with pytest.raises(UserError, match=r"`ulimit -v` leaves"):
            oche.resume(tmp_path / "run", data)
    oche.resume(tmp_path / "run", data)
    monkeypatch.setattr(preflight, "free_room", lambda device: Room(1000.0, "`ulimit -v`"))
    oche.resume(tmp_path / "run", data)


def interrupting(event: str, record: object) -> None:
    if event == "step":
        raise KeyboardInterrupt


@pytest.mark.usefixtures("undrawn")
def test_a_trial_of_a_bench_is_refused_and_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_room", lambda device: Room(1000.0, "the control group (cgroup)"))
    matrix = oche.Matrix(
        methods=("darts",), baselines=(), baseline="darts", spaces=("toy",), budgets=("smoke",), seeds=1
    )
    result = oche.bench(matrix, tmp_path / "bench")
    (reason,) = result.failures.values()
    assert "the control group (cgroup) leaves 0.0 GiB" in reason
