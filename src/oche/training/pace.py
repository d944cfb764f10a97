"""Measures how long a training takes, on a few steps of a network that is thrown away."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median

import torch

from oche.data import ImageSet, none
from oche.optim import average
from oche.run import silent
from oche.training.evaluate import evaluate
from oche.training.train import Training, begin, stream_of, train_epoch

MEASURED = 1.0
"""Seconds for which warm steps are measured, about; at least one is, and no more than an epoch."""

LEAST, SHARE = 3, 0.02
"""Steps longer than that are measured so often, where it takes less than this share of the training: their median counts."""

IMAGES = 512
"""Images of an evaluation that are measured, at most."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a training: per epoch, validation included, and once, for what comes before and after its epochs."""

    epoch: float
    once: float

    def seconds(self, epochs: int) -> float:
        """The whole training, with its score on the test images."""
        return self.once + self.epoch * epochs


def pace(training: Training) -> Pace:
    """The pace of a training on this machine. A protocol that compiles is measured without, which takes longer."""
    training = replace(training, run=None, listener=silent, protocol=replace(training.protocol, compile=False))
    started = time.perf_counter()
    state = begin(training)
    steps, fabric = stream_of(training).steps_per_epoch, training.fabric

    def trained(count: int) -> float:
        few = training.data.train.subset(torch.arange(min(count * training.protocol.batch, len(training.data.train))))
        part = replace(training, data=replace(training.data, train=few))
        before = time.perf_counter()
        train_epoch(state, part, stream_of(part))
        return _mean(training, time.perf_counter() - before)

    trained(1)
    once = time.perf_counter() - started
    one = trained(1)
    count = max(1, min(steps, int(MEASURED / max(one, 1e-6))))
    few = count == 1 and SHARE * steps * training.protocol.epochs >= LEAST - 1
    step = trained(count) / count if count > 1 else median([one, *(trained(1) for _ in range(LEAST - 1) if few)])

    def scored(images: ImageSet) -> float:
        few = images.subset(torch.arange(min(IMAGES, len(images))))
        before = time.perf_counter()
        evaluate(state.network, few, none(training.data), fabric, training.task)
        return _mean(training, time.perf_counter() - before) / len(few)

    image = scored(training.data.val)
    return Pace(steps * step + len(training.data.val) * image, _mean(training, once) + len(training.data.test) * image)


def _mean(training: Training, seconds: float) -> float:
    """The mean over the processes, which have to do the same."""
    (mean,) = average(training.fabric, [torch.tensor(seconds, dtype=torch.float64)])
    return float(mean)
