"""Batches by number: endless and shuffled for training, one pass in order for evaluation.

Batch i of a stream is a function of (seed, purpose, i, rank) and of nothing that happened before, so a run resumes from
a number, and no epoch is cut short or begun twice. The ranks' batches i together are batch i of one process with as many images,
augmentation included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from oche.base import Batch, Part, counted, sent
from oche.data.augmentation.augment import Augmentation
from oche.data.images import ImageSet, as_targets


@dataclass(frozen=True, eq=False)
class Stream:
    """An endless sequence of full batches: one permutation of the images per epoch, in turn.

    Batch i of rank r takes entries ((i - first) world + r) batch, ... of that sequence. A batch may lie across the border of two
    epochs, so all are full, even where the part is smaller than a batch; over all ranks, every image is seen exactly
    once per epoch.

    Attributes:
        batch: images per batch and rank.
        purpose: sets apart streams that share a seed ("weight", "alpha").
        first: the number of its first batch, where it does not begin with 0.
        device: where the batches are made; images are best there already (`Data.to`).

    Raises:
        ValueError: no images, a batch below 1, or a rank outside 0 .. world - 1.
    """

    images: ImageSet
    batch: int
    seed: int
    purpose: str
    augment: Augmentation
    device: torch.device | str = "cpu"
    rank: int = 0
    world: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        if not len(self.images) or self.batch < 1 or not 0 <= self.rank < self.world:
            given = f"{len(self.images)} images, batch={self.batch}, rank={self.rank}, world={self.world}"
            raise ValueError(f"{given}: expected some images, a batch of at least 1 and a rank below world.")

    @property
    def steps_per_epoch(self) -> int:
        """Batches of each rank until every image has been seen: ceil(N / (batch world))."""
        return -(-len(self.images) // (self.batch * self.world))

    def at(self, i: int) -> Batch:
        """Batch i = 0, 1, 2, ...: images (batch, C, H, W) augmented and normalised, targets (batch,) or (batch, H, W), on `device`."""
        images, targets = self.images.take(self.positions(i))
        noise = counted(self.seed, i, 0, self.purpose, "augment")
        part = Part(self.rank, self.world)
        return self.augment.batch(sent(images, self.device), sent(targets, self.device), noise, part)

    def positions(self, i: int) -> Tensor:
        """(batch,) positions in `images` of batch i, where the images' numbers lie."""
        count, where = len(self.images), self.images.index.device
        start = ((i - self.first) * self.world + self.rank) * self.batch
        stop = start + self.batch
        pieces = []
        for epoch in range(start // count, (stop - 1) // count + 1):
            order = _permutation(count, self.seed, epoch, self.purpose, where)
            pieces.append(order[max(start - epoch * count, 0) : stop - epoch * count])
        return torch.cat(pieces)


def batches(images: ImageSet, batch: int, augment: Augmentation, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """One pass over all images in order, normalised but not augmented; the last batch may be smaller."""
    for start in range(0, len(images), batch):
        pixels, targets = images.take(torch.arange(start, min(start + batch, len(images))))
        yield Batch(augment.normalise(pixels.to(device)), as_targets(targets.to(device)))


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int, purpose: str, device: torch.device) -> Tensor:
    """Drawn on the CPU, so that every device sees the same order, and sent once per epoch."""
    return sent(torch.randperm(count, generator=counted(seed, epoch, purpose)), device)
