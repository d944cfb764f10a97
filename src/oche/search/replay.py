"""Replays a step on an NVIDIA GPU as a CUDA graph, instead of launching it piece by piece.

A step of a supernet is thousands of small operations, so launching them costs more than running them. A graph holds the step's operations
with their addresses and constants, and is launched as one. So whatever differs between steps has to lie in a tensor: batches are copied
into buffers, the learning rate is a tensor (`optim`), meters are read out and added after the replay. A step that asks its
draw for noise, for how far the search is, or for the learning rate as a number would be frozen at the moment of capture; its draw
refuses (`base.Still`), and the step runs as it is, as does one whose candidates are masked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from oche.base import Batch, NotRepeatable
from oche.search.bilevel import Batches
from oche.search.callbacks import enters
from oche.search.method import Method
from oche.search.state import SearchState

log = logging.getLogger(__name__)

Step = Callable[[Batches], None]

WARM = 3
"""Steps before the capture: by then optimisers have their buffers, and libraries have chosen their algorithms."""


def replayed(pair: tuple[Step, Step], state: SearchState, method: Method) -> tuple[Step, Step]:
    """The architecture and the weight step as CUDA graphs, where one NVIDIA GPU takes steps that can be captured; else as they are."""
    fabric = state.problem.fabric
    if fabric.device.type != "cuda" or fabric.world_size > 1 or not capturable(method):
        return pair
    recorder = CudaRecorder(fabric.device)
    arch, weight = pair
    return Replayed(arch, state, recorder), Replayed(weight, state, recorder)


def capturable(method: Method) -> bool:
    """True if both steps can be captured: no term or callback looks inside, and the method is not single-level."""
    added = method.inner_terms or method.outer_terms or any(map(enters, method.callbacks))
    return not added and not method.single_level


class Recorder(Protocol):
    """`warm` runs a call where captures may follow; `record` returns what repeats a call, with the tensors it used."""

    def warm(self, call: Callable[[], None]) -> None: ...
    def record(self, call: Callable[[], None]) -> Callable[[], None]: ...


class CudaRecorder:
    """CUDA graphs that share one pool of memory, since only one of a search's graphs runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm(self, call: Callable[[], None]) -> None:
        """Runs it on a stream of its own, as torch asks for before a capture."""
        here = torch.cuda.current_stream(self.device)
        self.side.wait_stream(here)
        with torch.cuda.stream(self.side):
            call()
        here.wait_stream(self.side)

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Captures the call, which computes nothing yet. The memory of the warm steps is given back first: a graph has its own."""
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            call()
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass
class _Buffers:
    """A step's batches: passes them on and keeps copies, or hands the copies out once `fixed`."""

    now: Batches
    kept: dict[int | None, Batch] = field(default_factory=dict)  # the inner ones by how far ahead; None: the outer one
    fixed: bool = False

    def inner(self, ahead: int = 0) -> Batch:
        return self._of(ahead)

    def outer(self) -> Batch:
        return self._of(None)

    def _of(self, ahead: int | None) -> Batch:
        if not self.fixed and ahead not in self.kept:
            batch = _batch(self.now, ahead)
            self.kept[ahead] = Batch(batch.images.clone(), batch.targets.clone())
        return self.kept[ahead]

    def fill(self, now: Batches) -> None:
        for ahead, kept in self.kept.items():
            batch = _batch(now, ahead)
            kept.images.copy_(batch.images)
            kept.targets.copy_(batch.targets)


def _batch(now: Batches, ahead: int | None) -> Batch:
    return now.outer() if ahead is None else now.inner(ahead)


class Replayed:
    """`step`, run as it is a few times, then captured, then replayed: the same results, bit for bit."""

    def __init__(self, step: Step, state: SearchState, recorder: Recorder) -> None:
        self.step, self.state, self.recorder = step, state, recorder
        self.taken, self.plain = 0, False
        self.buffers: _Buffers | None = None
        self.replay: Callable[[], None] | None = None
        self.sums: dict[str, Tensor] = {}

    def __call__(self, now: Batches) -> None:
        if not self.plain and self.state.mask:
            self._give_up("candidates are masked")
        if self.plain:
            self.step(now)
        elif self.taken < WARM:
            self._warm(now)
        else:
            self._replay(now)

    def _warm(self, now: Batches) -> None:
        self.taken += 1
        meters, self.state.still = dict(self.state.meters), True
        self.buffers = _Buffers(now)
        try:
            self.recorder.warm(lambda: self.step(self.buffers or now))
        except NotRepeatable as reason:  # raised by a forward pass, before anything has changed
            self._give_up(str(reason))
            self.state.meters, self.state.still = meters, False
            self.step(now)
        finally:
            self.state.still = False

    def _replay(self, now: Batches) -> None:
        assert self.buffers is not None
        self.buffers.fill(now)
        if self.replay is None:
            meters, self.state.meters = self.state.meters, {}
            self.state.still = self.buffers.fixed = True
            try:
                self.replay = self.recorder.record(lambda: self.step(self.buffers or now))
                self.sums = self.state.meters
            except RuntimeError as error:  # CUDA's word for an operation that no graph can hold
                self._give_up(str(error).splitlines()[0])
            finally:
                self.state.meters, self.state.still = meters, False
        if self.replay is None:
            self.step(now)
            return
        self.replay()
        self.state.meter(**{name: t.clone() for name, t in self.sums.items()})  # the next replay overwrites them

    def _give_up(self, reason: str) -> None:
        log.info("steps run without CUDA graphs: %s", reason)
        self.plain, self.replay, self.buffers, self.sums = True, None, None, {}
