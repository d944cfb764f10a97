"""Augmentation that keeps images and masks aligned, of whole batches where they lie: scale, flip, crop, colour.

A pixel of the result looks up where it comes from: masks by one gather of rows and columns, images by one bilinear `grid_sample`
at the same places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from oche.base import WHOLE, Batch, Part
from oche.data.augmentation.augment import NO_JITTER, jittered, normalised
from oche.errors import UserError


@dataclass(frozen=True)
class AugmentMasks:
    """Scale, flip, crop, jitter, normalise, in this order.

    Attributes:
        mean, std: of each channel, pixels in [0, 1].
        crop: (H, W) of what comes out: a window at a random place of the scaled image; where that is smaller, it lies at a random
            place in the window, and around it the image is the mean and the mask `ignore`.
        ignore: the label of mask pixels that count nowhere.
        scale: the image's sides are multiplied by a number drawn uniformly between these, then rounded down to pixels.
        flip: mirrors left to right with probability 1/2.
        jitter: as of `Augment`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: tuple[int, int]
    ignore: int = 255
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = False
    jitter: tuple[float, float, float, float] = NO_JITTER

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] or min(self.crop) < 1:
            raise UserError(
                f"A crop needs pixels and a scale runs upwards from above 0; given {self.crop}, {self.scale}."
            )

    def batch(self, images: Tensor, targets: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Batch:
        """(B, H, W, C) uint8 or float32 in [0, 1], masks (B, H, W) -> (B, C, *crop) float32 channels last, (B, *crop) int64.

        The result depends on images, masks and the generator alone. Noise is drawn on the generator's device, so that one on the
        CPU gives the same augmentation everywhere, and for the whole batch of which the images are a `part`.
        """
        noise = part.drawn(torch.rand, (8, len(images)), generator, images=1).cpu()
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * noise[0].double()
        flipped = (noise[1] < 0.5) & self.flip
        rows, row_inside = places(images.shape[1], self.crop[0], factor, noise[2], torch.zeros_like(flipped))
        columns, column_inside = places(images.shape[2], self.crop[1], factor, noise[3], flipped)
        inside = (row_inside[:, :, None] & column_inside[:, None, :]).to(images.device)
        masks = _gathered(targets, rows, columns).long().masked_fill_(~inside, self.ignore)
        pixels = jittered(images, self.jitter, noise[4:8].to(images.device)) if any(self.jitter) else images
        sampled = _sampled(normalised(pixels, self.mean, self.std), rows, columns)
        out = sampled.masked_fill_(~inside[:, None], 0.0).contiguous(memory_format=torch.channels_last)
        return Batch(out, masks)

    def normalise(self, images: Tensor) -> Tensor:
        """Varies a batch as `Augment.batch` does: (B, H, W, C) -> (B, C, H, W), of the image's own size."""
        return normalised(images, self.mean, self.std)

    def describe(self) -> str:
        """A description in a few words.

        >>> AugmentMasks((0.5,), (0.2,), (64, 96), flip=True).describe()
        'scale 0.5 to 2, flip, crop of 64x96, normalise'
        """
        steps = {
            f"scale {self.scale[0]:g} to {self.scale[1]:g}": self.scale != (1.0, 1.0),
            "flip": self.flip,
            f"crop of {self.crop[0]}x{self.crop[1]}": True,
            "jitter " + " ".join(f"{j:g}" for j in self.jitter): any(self.jitter),
            "normalise": True,
        }
        return ", ".join(step for step, done in steps.items() if done)


def places(extent: int, crop: int, factor: Tensor, noise: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
    """Along one axis, where each pixel of the crop comes from: (B, crop) float64 coordinates, and (B, crop) bool whether from inside.

    The scaled image has floor(extent factor) pixels; its pixel i has its centre at (i + 1/2) / factor of the original. With that
    many pixels less the crop as slack, the crop starts at a pixel drawn from 0 .. slack, or from slack .. 0 where it is negative.
    """
    scaled = (extent * factor + 1e-9).floor()
    slack = scaled - crop
    start = slack.sign() * (noise.double() * (slack.abs() + 1)).floor()
    i = start[:, None] + torch.arange(crop, device=factor.device)
    inside = (i >= 0) & (i < scaled[:, None])
    i = torch.where(flipped[:, None], scaled[:, None] - 1 - i, i)
    return (i + 0.5) / factor[:, None], inside


def _gathered(masks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, H, W) at the pixels in which the coordinates (B, h), (B, w) lie."""
    row = rows.long().clamp(0, masks.shape[1] - 1).to(masks.device)
    column = columns.long().clamp(0, masks.shape[2] - 1).to(masks.device)
    each = torch.arange(len(masks), device=masks.device)[:, None, None]
    return masks[each, row[:, :, None], column[:, None, :]]


def _sampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) bilinear at the coordinates (B, h), (B, w); beyond the last pixel's centre, that pixel."""
    y = (2 * rows / images.shape[2] - 1).to(images)  # grid_sample's -1 and 1 are the image's edges
    x = (2 * columns / images.shape[3] - 1).to(images)
    count, height, width = len(images), rows.shape[1], columns.shape[1]
    grid = torch.stack([x[:, None].expand(count, height, width), y[:, :, None].expand(count, height, width)], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
