"""Values that change as a run goes on: each schedule maps progress in [0, 1] to a number.

A schedule is a pure function of progress, so a resumed run and a run of another length need no bookkeeping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from oche.base import Count, Fraction, Natural, Positive, Share
from oche.errors import UserError


class Schedule(Protocol):
    """progress in [0, 1] -> value."""

    def __call__(self, progress: float) -> float: ...


def check_rate(rate: Schedule, where: str) -> None:
    """Raises UserError where a learning rate is negative or not finite at any of 101 points of a run; `where` is what errors call it."""
    for point in range(101):
        value = rate(point / 100)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(
                f"{where}: a learning rate is finite and at least 0 throughout a run; after {point} % of it this one is {value:g}."
            )


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """start + (end - start) * progress."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Ramp:
    """0 until `start`, then straight up to `value` at `end`, and that from there on: what grows late, or only in a part of the run."""

    value: float
    start: Share = 0.0
    end: Share = 1.0

    def __call__(self, progress: float) -> float:
        if progress >= self.end:
            return self.value
        return self.value * max(0.0, progress - self.start) / (self.end - self.start)


@dataclass(frozen=True)
class Poly:
    """start (1 - progress)^power, the usual schedule in segmentation."""

    start: float
    power: Positive = 0.9

    def __call__(self, progress: float) -> float:
        return float(self.start * (1 - progress) ** self.power)


@dataclass(frozen=True)
class Cosine:
    """end + (start - end) (1 + cos(pi progress)) / 2 (SGDR without restarts, Loshchilov & Hutter, ICLR 2017).

    In the first `warm_up` of the run it is start min(1, warm_up_from + progress / warm_up) instead (PC-DARTS and DrNAS on ImageNet: 0.2,
    0.4, ..., 1 times the start in 5 of 50 epochs, that is warm_up=0.1). `ramp="cosine"` multiplies the cosine by a ramp that goes from
    warm_up_from to 1 in the warm-up.

    >>> Cosine(0.025, 0.001)(0.0)
    0.025
    """

    start: float
    end: float = 0.0
    warm_up: Share = 0.0
    warm_up_from: Share = 0.2
    ramp: Literal["start", "cosine"] = "start"

    def __call__(self, progress: float) -> float:
        value = self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2
        if progress >= self.warm_up:
            return value
        if self.ramp == "cosine":
            return value * (self.warm_up_from + (1 - self.warm_up_from) * progress / self.warm_up)
        return self.start * min(1.0, self.warm_up_from + progress / self.warm_up)


@dataclass(frozen=True)
class Triangle:
    """A straight line from `rise` times `start` up to `start` at `top` of the run, and another one down to 0 at its end.

    The shape is that of short trainings (KellerJordan/cifar10-airbench); its corners are our choice.

    >>> [round(Triangle(0.2)(x), 3) for x in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.04, 0.12, 0.2, 0.1, 0.0]
    """

    start: float
    rise: Share = 0.2
    top: Fraction = 0.2

    def __call__(self, progress: float) -> float:
        if progress < self.top:
            return self.start * (self.rise + (1 - self.rise) * progress / self.top)
        return self.start * (1 - progress) / (1 - self.top)


@dataclass(frozen=True)
class LinearTail:
    """Linear descent to zero after a warm-up, with a gentler slope in the last `tail` of `epochs` epochs (PC-DARTS on ImageNet).

    In epoch e of E: start (E - tail - e) / (E - tail), and in the tail start (E - e) / ((E - tail) tail); while e is in the warm-up,
    that value times (e + 1) / warm_up.
    """

    start: float
    epochs: Count = 250
    tail: Count = 5
    warm_up: Natural = 5

    def __call__(self, progress: float) -> float:
        epoch, body = progress * self.epochs, self.epochs - self.tail
        left = self.epochs - epoch
        value = (body - epoch) / body if left > self.tail else left / (body * self.tail)
        return self.start * value * (min(1.0, (epoch + 1) / self.warm_up) if self.warm_up else 1.0)


@dataclass(frozen=True)
class Geometric:
    """start * (end / start) ** progress: the same factor at each step (DARTS on ImageNet: x0.97 per epoch)."""

    start: Positive
    end: Positive

    def __call__(self, progress: float) -> float:
        return float(self.start * (self.end / self.start) ** progress)
