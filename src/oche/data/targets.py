"""Targets of the search's train images: their labels, or something else in their place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from oche.base import counted
from oche.data.images import ImageSet


class Targets(Protocol):
    """(train images, number of classes, seed) -> the same images with the targets that the search sees."""

    def __call__(self, train: ImageSet, classes: int, seed: int) -> ImageSet: ...


@dataclass(frozen=True)
class TrueTargets:
    """The labels as they are."""

    def __call__(self, train: ImageSet, classes: int, seed: int) -> ImageSet:
        return train


@dataclass(frozen=True)
class RandomTargets:
    """Labels drawn once, uniformly, and kept for the run (RLNAS); the validation images keep theirs.

    Labels and numbers (N, K) are those of the images in another order.
    """

    def __call__(self, train: ImageSet, classes: int, seed: int) -> ImageSet:
        if train.targets.ndim == 2:
            order = torch.randperm(len(train), generator=counted(seed, "random targets"))
            return replace(train, targets=train.targets[order.to(train.targets.device)])
        drawn = torch.randint(classes, train.targets.shape, generator=counted(seed, "random targets"))
        return replace(train, targets=drawn.to(train.targets.device))
