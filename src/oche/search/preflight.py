"""Measures what a search will cost before it starts: parameters, memory, time. Refuses one that does not fit."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from oche.errors import UserError
from oche.fast import coverage
from oche.optim import average
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import FirstOrder
from oche.search.loop import steps
from oche.search.method import Method
from oche.search.state import Problem, SearchState, quiet
from oche.spaces.cost import parameters

LARGE = 64 * 64
"""Pixels above which fewer images are measured, so that measuring itself fits into memory."""

LONG = 2.0
"""Seconds. A first step that takes longer counts; after a shorter one a second is measured, warm."""


@dataclass(frozen=True)
class Estimate:
    """What a search will cost: weights in the supernet, those of them that learn, peak memory in MiB, seconds per step and steps.

    `cells` says how the supernet's cells run: "kernels", "portable: why", or "plain: why", each with how many do.
    """

    parameters: int
    trainable: int
    memory_mib: float
    step_seconds: float
    steps: int
    cells: dict[str, int]

    @property
    def seconds(self) -> float:
        return self.step_seconds * self.steps


def estimate(problem: Problem, method: Method) -> Estimate:
    """Measures one step of a throw-away copy of the search. Raises UserError where it would not fit into memory."""
    problem = quiet(problem)
    state = begin(problem, method)
    count, device = problem.fabric.world_size, problem.fabric.device
    need, free = memory_bytes(state, problem, method), free_bytes(device) / (count if device.type == "cpu" else 1)
    (short,) = average(problem.fabric, [torch.tensor(float(need > free))])
    if short > 0:  # in any process
        least = memory_bytes(state, replace(problem, batch=2 * count), method)
        share = 2 + int((0.8 * free - least) / max(need - least, 1.0) * (problem.share - 2)) if free > least else 0
        fits = count * share
        smaller = f"--batch {fits}, or a smaller space" if 2 <= fits < problem.batch else "a smaller space"
        raise UserError(
            f"This search needs about {need / 2**30:.1f} GiB with a batch of {problem.batch}, and {free / 2**30:.1f} GiB are free: "
            f"try {smaller} such as --set space.channels=8."
        )
    step = _step_seconds(state, problem, method)
    total = parameters(state.supernet)
    cells = dict(Counter(coverage(state.supernet).values()))
    return Estimate(total, sum(t.numel() for t in state.theta.values()), need / 2**20, step, state.steps, cells)


def memory_bytes(state: SearchState, problem: Problem, method: Method) -> float:
    """Peak memory of a step: what the two losses keep for their backward passes, a fifth more for what passes through, and the weights.

    Measured on batches of 16 and 32 (fewer may not fill the kernels' vectors), 2 and 4 for large images, and extrapolated to the
    batch; first order keeps one loss at a time, unrolling about three. Recomputed cells are kept one at a time; the first ones
    are the largest, so it counts twice the mean.
    """
    few = 16 if problem.data.size[0] * problem.data.size[1] <= LARGE else 2
    small, large = (_kept_bytes(state, problem, method, batch) for batch in (few, 2 * few))
    per_image = (large - small) / few
    kept = max(0.0, small + per_image * (problem.share - few))
    weights = sum(p.numel() * p.element_size() for p in state.supernet.parameters())
    passes = 1 if isinstance(method.arch_gradient, FirstOrder) else 3
    share = min(1.0, 2 / len(state.supernet.body.cells)) if problem.recompute else 1.0
    return 1.2 * passes * kept * share + 4 * weights


def free_bytes(device: torch.device) -> float:
    """Memory that a new allocation could get: the accelerator's, or the machine's within the process's own limits."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        limits += [
            float(line.split()[1]) * 1024
            for line in meminfo.read_text().splitlines()
            if line.startswith("MemAvailable")
        ]
    if group.exists() and group.read_text().strip().isdigit():
        limits.append(float(group.read_text()))
    return min(limits)


def _kept_bytes(state: SearchState, problem: Problem, method: Method, batch: int) -> float:
    """Bytes that autograd keeps of one weight loss on `batch` images, each storage counted once."""
    weights, _ = streams(replace(problem, batch=batch * problem.fabric.world_size), method)
    storages: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in state.supernet.parameters()}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes())
        return t

    draw = state.draw("weight")
    state.supernet.recompute = False  # its hooks would hide what a cell keeps from these
    eager = torch.compiler.set_stance("force_eager")  # no program is made for batches of these sizes
    with eager, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss, _ = state.task_loss(state.op_weights(state.alpha, draw), weights.at(0), draw)
    del loss
    state.supernet.recompute = problem.recompute
    return float(sum(storages.values()))


def _step_seconds(state: SearchState, problem: Problem, method: Method) -> float:
    weights, arch = streams(problem, method)
    losses = bilevel(state, method)
    seconds = 0.0
    for callback in method.callbacks:
        callback.on_epoch_start(state)
    for i in range(2):
        started = time.perf_counter()
        now = StepBatches(weights, arch, i)
        steps(state, method, losses, now, True)
        if problem.fabric.device.type == "cuda":
            torch.cuda.synchronize(problem.fabric.device)
        (mean,) = average(problem.fabric, [torch.tensor(time.perf_counter() - started, dtype=torch.float64)])
        seconds = float(mean)  # the same in all processes, which have to do the same
        if seconds > LONG:
            break
    return seconds
