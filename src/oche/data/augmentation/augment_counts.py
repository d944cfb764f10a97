"""Augmentation of images in which objects are counted by place: mirrored together with the grid of places, never cropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oche.base import WHOLE, Batch, Part, sent
from oche.data.augmentation.augment import normalised


@dataclass(frozen=True)
class AugmentCounts:
    """Mirrors left to right and upside down, each with probability 1/2 where `flip`, and normalises.

    Nothing is cropped or cut out: objects would leave the image that are still counted. Turning images upside down is our choice, for
    objects seen from above; `--set data.flip=false` leaves both out.

    Attributes:
        mean, std: of each channel.
        grid: rows and columns of the targets (B, rows columns).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    grid: tuple[int, int]
    flip: bool = True

    def batch(self, images: Tensor, targets: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Batch:
        """The images and their places varied; noise is drawn on the generator's device for the whole batch."""
        drawn = sent(part.drawn(torch.rand, (2, len(images)), generator, images=1), images.device)
        places = targets.float().view(-1, *self.grid)
        if self.flip:
            for side, mirrored in enumerate(drawn < 0.5, 1):
                images = torch.where(mirrored[:, None, None, None], images.flip(side), images)
                places = torch.where(mirrored[:, None, None], places.flip(side), places)
        return Batch(self.normalise(images), places.flatten(1))

    def normalise(self, images: Tensor) -> Tensor:
        """(pixel - mean) / std: (B, H, W, C) -> (B, C, H, W)."""
        return normalised(images, self.mean, self.std)

    def describe(self) -> str:
        """A description in a few words.

        >>> AugmentCounts((0.5,), (0.2,), (8, 8)).describe()
        'flip along both sides, normalise'
        """
        return "flip along both sides, normalise" if self.flip else "normalise"
