"""Measures what a search will cost before it starts: parameters, memory, time. Refuses one that does not fit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import fmean, quantiles

import torch

from oche.data.memory import Room
from oche.errors import UserError, ran_out
from oche.fast import coverage
from oche.optim import average
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import FirstOrder
from oche.search.loop import steps
from oche.search.method import Method
from oche.search.record import memory_mib
from oche.search.state import Problem, SearchState, quiet
from oche.spaces.cost import parameters
from oche.training.memory import (
    LARGE,
    PASSING,
    SIDE,
    corner,
    free_room,
    gib,
    kept_bytes,
    least_kept,
    shared_room,
    smaller_images,
    twice,
)

MEASURED, MOST = 0.5, 12
"""Seconds for which warm steps are measured at least, and their number at most; each with a step of alpha and without."""

WITHIN, FEWEST = 0.15, 5
"""More are measured until the middle half of them, of at least so many, lies within this share of their median.

Where steps differ by 40 % either way, nineteen of twenty estimates are within a quarter of the mean then.
"""

SHARE, LONGEST = 0.02, 30.0
"""That goes on for this share of the search, and no longer than so many seconds; one warm step of each kind is always measured."""


@dataclass(frozen=True)
class Estimate:
    """What a search will cost: weights in the supernet, those of them that learn, peak memory in MiB, mean seconds per step, and steps.

    The memory is reckoned from what a loss keeps, or what the measured steps took beyond the process's peak before, if that is more.
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


def estimate(problem: Problem, method: Method, until: float = 1.0) -> Estimate:
    """Measures a few steps of a throw-away copy of the search, in which alpha steps `until` this share of the epochs is over.

    Raises UserError where it would not fit into memory.
    """
    problem = quiet(problem)
    with _refusing(problem) as free:
        before = memory_mib(problem.fabric.device)
        state = begin(problem, method)
        need = _fitting(state, problem, method, free) / 2**20
        step = _step_seconds(state, problem, method, until)
        need = max(need, memory_mib(problem.fabric.device) - before)
    total = parameters(state.supernet)
    cells = dict(Counter(coverage(state.supernet).values()))
    return Estimate(total, sum(t.numel() for t in state.theta.values()), need, step, state.steps, cells)


def check_memory(problem: Problem, method: Method) -> None:
    """Raises UserError where the search would not fit into memory; measures no step."""
    problem = quiet(problem)
    with _refusing(problem) as free:
        _fitting(begin(problem, method), problem, method, free)


@contextmanager
def _refusing(problem: Problem) -> Iterator[Room]:
    """Hands out the room that there is. Raises UserError where memory runs out within."""
    free = free_room(problem.fabric.device)
    try:
        yield free
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise UserError(
            f"This search does not fit into the {gib(free.bytes)} that {free.bound} leaves: try a smaller --batch than {problem.batch}, "
            "or a smaller space such as --set space.channels=8."
        ) from None


def _fitting(state: SearchState, problem: Problem, method: Method, free: Room) -> float:
    """The bytes that the search needs. Raises UserError where that is more than is free, with a batch that fits if one does."""
    count = problem.fabric.world_size
    left = shared_room(problem.fabric, free)
    two = PASSING * least_kept(lambda: _kept_bytes(state, problem, method, 2, SIDE), problem.data.size)
    images = smaller_images(problem.data)
    if two > left:  # so much larger that measuring it might end the process
        height, width = problem.data.size
        raise UserError(
            f"This search needs more than {gib(two)} for two images of {height}x{width}, and {free.bound} leaves {gib(left)}: try {images} "
            "or a smaller space such as --set space.channels=8."
        )
    need = memory_bytes(state, problem, method, left)
    (short,) = average(problem.fabric, [torch.tensor(float(need > left))])
    if short == 0:  # in no process
        return need
    least = memory_bytes(state, replace(problem, batch=2 * count), method, left)
    share = 2 + int((0.8 * left - least) / max(need - least, 1.0) * (problem.share - 2)) if left > least else 0
    fits = count * share
    large = problem.data.size[0] * problem.data.size[1] > LARGE
    first = f"--batch {fits}," if 2 <= fits < problem.batch else images if large else ""
    smaller = f"{first} or a smaller space" if first else "a smaller space"
    raise UserError(
        f"This search needs about {gib(need)} with a batch of {problem.batch}, and {free.bound} leaves {gib(left)}: "
        f"try {smaller} such as --set space.channels=8."
    )


def memory_bytes(state: SearchState, problem: Problem, method: Method, left: float = inf) -> float:
    """Peak memory of a step: what the two losses keep for their backward passes, a fifth more for what passes through, and the weights.

    Measured on batches of 16 and 32 (fewer may not fill the kernels' vectors), 2 and 4 for large images, fewer where those do not fit into
    the `left` bytes, and extrapolated to the batch; first order keeps one loss at a time, unrolling about three. Recomputed cells are
    kept one at a time; the first ones are the largest, so it counts twice the mean.
    """
    few = 16 if problem.data.size[0] * problem.data.size[1] <= LARGE else 2
    few, small, large = twice(lambda batch: _kept_bytes(state, problem, method, batch), few, left)
    per_image = (large - small) / few
    kept = max(0.0, small + per_image * (problem.share - few))
    weights = sum(p.numel() * p.element_size() for p in state.supernet.parameters())
    passes = 1 if isinstance(method.arch_gradient, FirstOrder) else 3
    share = min(1.0, 2 / len(state.supernet.body.cells)) if problem.recompute else 1.0
    return PASSING * passes * kept * share + 4 * weights


def _kept_bytes(state: SearchState, problem: Problem, method: Method, batch: int, side: int | None = None) -> float:
    """Bytes that autograd keeps of one weight loss on `batch` images, or on their corners of `side` pixels, each storage counted once."""
    weights, _ = streams(replace(problem, batch=batch * problem.fabric.world_size), method)
    draw = state.draw("weight")
    state.supernet.recompute = False  # its hooks would hide what a cell keeps from these
    kept = kept_bytes(
        lambda: state.task_loss(state.op_weights(state.alpha, draw), corner(weights.at(0), side), draw)[0],
        state.supernet.parameters(),
    )
    state.supernet.recompute = problem.recompute
    return kept


def _step_seconds(state: SearchState, problem: Problem, method: Method, until: float) -> float:
    """The mean over the steps of the search, of which some have a step of alpha."""
    weights, arch = streams(problem, method)
    losses = bilevel(state, method)
    for callback in method.callbacks:
        callback.on_epoch_start(state)

    def measured(number: int, due: bool) -> float:
        started = time.perf_counter()
        steps(state, method, losses, StepBatches(weights, arch, number), due)
        if problem.fabric.device.type == "cuda":
            torch.cuda.synchronize(problem.fabric.device)
        (mean,) = average(problem.fabric, [torch.tensor(time.perf_counter() - started, dtype=torch.float64)])
        return float(mean)  # the same in all processes, which have to do the same

    first = measured(0, True)  # cold: it makes buffers and fetches pages
    held = ceil(method.arch_start * problem.epochs) / problem.epochs
    shares, seconds = {True: max(0.0, until - held) / method.arch_every}, 0.0
    shares[False] = 1 - shares[True]
    allowed = min(LONGEST, max(2 * MEASURED, SHARE * first * state.steps)) / sum(share > 0 for share in shares.values())
    for due, share in shares.items():
        warm: list[float] = []
        while share > 0 and not _enough(warm, allowed):
            warm.append(measured(len(warm) + 1, due))
        seconds += share * (_middle(warm) if warm else 0.0)
    return seconds


def _enough(warm: list[float], allowed: float) -> bool:
    """True if the middle of these seconds can be relied on, or measuring one more would take longer than allowed."""
    if not warm:
        return False
    if len(warm) >= MOST or sum(warm) + _middle(warm) > allowed:
        return True
    if sum(warm) < MEASURED or len(warm) < FEWEST:
        return False
    low, middle, high = quantiles(warm, n=4, method="inclusive")
    return high - low <= WITHIN * middle


def _middle(seconds: list[float]) -> float:
    """The mean without the quarter of the quickest and the quarter of the slowest, one of each at least where there are three."""
    cut = max(len(seconds) // 4, int(len(seconds) > 2))
    return fmean(sorted(seconds)[cut : len(seconds) - cut])
