"""Measures latencies by onnxruntime on one thread: of an ONNX file, and of one kernel within a network.

A kernel alone would be charged for what a network does not do: calling the runtime, and turning tensors into the layout of its
convolutions and back. So it is put between a 1x1 convolution before it and one behind, in graphs of two and of six such branches from
one image, and its latency is a quarter of their difference, less that of a branch without it. Branches have weights of their own, or the
runtime would compute them once. An operation that would be folded into the convolution before it reads that convolution's output together
with a second reader.

Other processes disturb: graphs are run in turns, for several rounds, and of each the median of the quietest round counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oche.spaces.kernels import Kernel, Shape
from oche.training.graph import APART, Array, Graph

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ROUNDS, SECONDS = 7, 0.004
"""Rounds of a measurement, and how long each round of a kernel's graph lasts at least; that of a file lasts ten times as long."""

WAY = 1
"""The version of the way in which kernels are measured: tables of another are measured anew."""

FEW, MANY = 2, 6
"""Branches of the two graphs whose difference is measured."""

NOT_MEASURED = "not measured: pip install 'oche[onnx]'"

Feed = Mapping[str, Array]


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image on one thread: the median of the quietest round, and the tenth and ninetieth per cent over all runs."""

    median: float
    low: float
    high: float
    runs: int

    def table(self) -> dict[str, object]:
        """For a card and a log, with what it was measured by."""
        numbers = {"median_ms": self.median, "low_ms": self.low, "high_ms": self.high, "runs": self.runs}
        return {
            **{k: round(v, 6) for k, v in numbers.items()},
            "batch": 1,
            "threads": 1,
            "runtime": runtime(),
            "processor": processor(),
        }


def can_measure() -> bool:
    """True if onnxruntime and onnx are installed."""
    return all(find_spec(name) for name in ("onnxruntime", "onnx"))


def runtime() -> str:
    """What measures, with its version."""
    return f"onnxruntime {version('onnxruntime')}"


@cache
def processor() -> str:
    """The processor's name."""
    import platform

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def session_of(model: bytes) -> InferenceSession:
    """The model on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def latency_of(model: bytes, shape: Sequence[int]) -> Latency:
    """The latency of an ONNX file for one image of a shape (C, H, W)."""
    session = session_of(model)
    image = np.random.default_rng(0).random((1, *shape), np.float32)
    (rounds,) = _timed([(session, {session.get_inputs()[0].name: image})], 10 * SECONDS)
    every = np.concatenate(rounds)
    low, high = np.percentile(every, (10, 90))
    return Latency(_quietest(rounds), float(low), float(high), len(every))


# ------------------------------------------------------------------ kernels


def of_kernel(kernel: Kernel) -> float:
    """The latency of one kernel within a network, in milliseconds, at least 0."""
    before, behind = kernel.inputs, kernel.output
    if kernel.kind == "gemm":
        return max(0.0, _marginal(kernel))
    if len(behind) == 1:  # a mean: nothing comes behind it
        return max(0.0, _marginal(kernel) - _before(before[0]))
    known = _behind(behind)
    if not kernel.of_image:
        known += sum(map(_before, before)) + (_behind(before[0]) if kernel.kind in APART else 0.0)
    if kernel.kind == "slice":
        return max(0.0, _marginal(kernel) - known - _behind(behind)) / 2
    return max(0.0, _marginal(kernel) - known)


def of_call() -> float:
    """What calling the runtime takes, in milliseconds."""
    graph = Graph()
    graph.outputs.append(graph.node("Relu", [graph.input((1, 1, 1))]))
    (rounds,) = _timed([(session_of(graph.model()), graph.feed)], SECONDS)
    return _quietest(rounds)


@cache
def _before(shape: Shape) -> float:
    """The latency of the 1x1 convolution before a kernel that reads this shape."""
    return _marginal(None, shape) - _behind(shape)


@cache
def _behind(shape: Shape) -> float:
    """The latency of what comes behind a kernel that makes this shape."""

    def build(branches: int) -> Graph:
        graph = Graph()
        x = graph.before(shape)
        for _ in range(branches):
            graph.behind(x, shape)
        return graph

    return _difference(build)


def _marginal(kernel: Kernel | None, shape: Shape = ()) -> float:
    """The latency of one more branch with the kernel; without one, of the convolutions before and behind alone."""

    def build(branches: int) -> Graph:
        graph = Graph()
        for _ in range(branches):
            if kernel is None:
                graph.behind(graph.before(shape), shape)
            else:
                graph.branch(kernel)
        return graph

    return _difference(build)


def _difference(build: Callable[[int], Graph]) -> float:
    graphs = [build(branches) for branches in (FEW, MANY)]
    few, many = _timed([(session_of(graph.model()), graph.feed) for graph in graphs], SECONDS)
    return (_quietest(many) - _quietest(few)) / (MANY - FEW)


def _timed(sessions: Sequence[tuple[InferenceSession, Feed]], seconds: float) -> list[list[Array]]:
    """For each session the milliseconds of its runs, round by round."""
    for session, feed in sessions:
        for _ in range(3):
            session.run(None, dict(feed))
    found: list[list[Array]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for rounds, (session, feed) in zip(found, sessions, strict=True):
            given, runs, start = dict(feed), list[float](), time.perf_counter()
            while len(runs) < 5 or time.perf_counter() - start < seconds:
                at = time.perf_counter()
                session.run(None, given)
                runs.append(time.perf_counter() - at)
            rounds.append(1e3 * np.array(runs))
    return found


def _quietest(rounds: Sequence[Array]) -> float:
    """The least median of the rounds."""
    return min(float(np.median(runs)) for runs in rounds)
