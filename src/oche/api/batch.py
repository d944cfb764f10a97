"""`--batch auto`: the number of images per step that is quickest per image, by steps that are measured on this machine.

The sizes are powers of two that leave an epoch at least `STEPS` steps and fit into memory. Of those within `NEAR` of the quickest the
smallest is taken, for more steps learn more from as many images. Rates stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from oche.api.limits import cpu_threads, gradients
from oche.api.problems import problem_of
from oche.errors import UserError
from oche.plan.request import AUTO
from oche.plan.resolve import Plan
from oche.search.preflight import estimate
from oche.search.searcher import as_searcher
from oche.training.memory import refuse_if_too_large
from oche.training.pace import pace
from oche.training.train import Training

SIZES = (8, 16, 32, 64, 128, 256, 512)
STEPS, NEAR = 8, 1.1


def with_batch(plan: Plan) -> Plan:
    """The plan with the batch that is quickest where `auto` was asked for; its request has the number. Raises UserError."""
    if plan.request.batch != AUTO:
        return plan
    method = as_searcher(plan.searcher).method
    if method is None:
        raise UserError(
            f"{plan.searcher.name} asks for cells and has no steps to measure: give --batch a number, or leave it out."
        )
    with gradients(), cpu_threads(plan.request.threads):
        found = measured(
            sizes(len(plan.data.train) // 2, plan.fabric.world_size),
            lambda size: estimate(problem_of(replace(plan, batch=size)), method).step_seconds / size,
        )
    size = plan.fabric.broadcast(quick(found))
    says = "; ".join(filter(None, (plan.chosen, words(size, found))))
    return replace(plan, batch=size, request=replace(plan.request, batch=size), chosen=says)


def for_training(training: Training, threads: int | None) -> int:
    """The batch that is quickest for a training. Raises UserError where not even the smallest fits into memory."""

    def seconds(size: int) -> float:
        one = replace(training, protocol=replace(training.protocol, batch=size))
        refuse_if_too_large(one)
        return pace(one).epoch / len(training.data.train)

    with gradients(), cpu_threads(threads):
        found = measured(sizes(len(training.data.train), training.fabric.world_size), seconds)
    return training.fabric.broadcast(quick(found))


def sizes(images: int, processes: int) -> list[int]:
    """The batches to try, smallest first: at least one, all of them shared evenly by the processes.

    >>> sizes(539, 1), sizes(60, 1), sizes(50_000, 3)
    ([8, 16, 32, 64], [8], [24, 48, 96, 192, 384, 768, 1536])
    """
    shared = [size * processes if size % processes else size for size in SIZES]
    return [size for n, size in enumerate(shared) if n == 0 or size * STEPS <= images]


def measured(tried: Sequence[int], seconds: Callable[[int], float]) -> dict[int, float]:
    """Seconds per image by batch, up to the first that does not fit into memory. Raises UserError where the smallest does not."""
    found: dict[int, float] = {}
    for size in tried:
        try:
            found[size] = seconds(size)
        except UserError:
            if not found:
                raise
            break
    return found


def quick(seconds: Mapping[int, float]) -> int:
    """The smallest batch that takes at most `NEAR` times the seconds per image of the quickest.

    >>> quick({8: 3.0, 16: 2.0, 32: 1.05, 64: 1.0, 128: 1.2})
    32
    """
    return min(size for size, each in seconds.items() if each <= NEAR * min(seconds.values()))


def words(size: int, seconds: Mapping[int, float]) -> str:
    """What was chosen, and of what.

    >>> words(16, {8: 0.002, 16: 0.001})
    'batch 16, by images per second: 8: 500, 16: 1,000'
    """
    return f"batch {size}, by images per second: " + ", ".join(f"{n}: {1 / each:,.0f}" for n, each in seconds.items())
