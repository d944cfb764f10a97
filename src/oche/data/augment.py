"""Augmentation of whole batches where they lie, driven by one generator: (B, H, W, C) -> (B, C, H, W), normalised.

There is no loop over images: crop and flip are one gather, a resized crop is one `grid_sample`, cutout one mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from oche.base import Batch

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
NO_JITTER = (0.0, 0.0, 0.0, 0.0)


class Augmentation(Protocol):
    """How images become a batch: `batch` varies them, `normalise` does not."""

    def batch(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> Batch: ...
    def normalise(self, images: Tensor) -> Tensor: ...
    def describe(self) -> str: ...


@dataclass(frozen=True)
class Augment:
    """Crop, flip, jitter, normalise, cutout, in this order.

    Attributes:
        mean, std: of each channel, pixels in [0, 1].
        pad: black pixels around the image before a crop of its size at a random place; 0 is off.
        flip: mirrors left to right with probability 1/2.
        cutout: side in pixels of a square filled with 0 after normalisation, centred at a random pixel and clipped at
            the border (DeVries & Taylor, arXiv 1708.04552; as in DARTS, an odd side is rounded down to an even one);
            0 is off.
        resized_crop: a random window of 8 % to 100 % of the area and an aspect between 3/4 and 4/3, stretched to the
            size of the image (Szegedy et al., CVPR 2015; torchvision's RandomResizedCrop, but where that draws again
            when a window is too large, its longer side is clipped, and its place is not rounded to pixels). Takes the
            place of `pad`.
        jitter: brightness, contrast, saturation, hue: factors from 1 - j to 1 + j, and a shift of hue by up to j of a
            full turn, drawn for every image. torchvision shuffles these four; here they come in this order. Saturation
            and hue need 3 channels and are skipped otherwise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    cutout: int = 0
    resized_crop: bool = False
    jitter: tuple[float, float, float, float] = NO_JITTER

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, H, W, C) uint8, or float32 in [0, 1] -> (B, C, H, W) float32, channels last in memory.

        The result depends on the images and the generator alone. Noise is drawn on the generator's device, so that one
        on the CPU gives the same augmentation everywhere.
        """
        noise = torch.rand(12, len(images), generator=generator, device=generator.device).to(images.device)
        flipped = (noise[0] < 0.5) & self.flip
        if self.resized_crop:
            images = _resized_windows(images, noise[1:5], flipped)
        elif self.pad or self.flip:
            images = _windows(images, self.pad, noise[1:3], flipped)
        if any(self.jitter):
            images = jittered(images, self.jitter, noise[5:9])
        out = self.normalise(images)
        return _cut(out, self.cutout, noise[9:11]) if self.cutout else out

    def batch(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> Batch:
        """The images varied, their targets as they are. Raises ValueError for masks, unless pixels stay in their places."""
        if targets.ndim > 1 and (self.pad or self.flip or self.resized_crop):
            raise ValueError("masks would not lie on their images any more; AugmentMasks moves both")
        return Batch(self(images, generator), targets.long())

    def normalise(self, images: Tensor) -> Tensor:
        """(pixel - mean) / std: (B, H, W, C) -> (B, C, H, W) float32, channels last; enough for evaluation."""
        return normalised(images, self.mean, self.std)

    def describe(self) -> str:
        """What is done, in a few words.

        >>> Augment((0.5,), (0.2,), pad=4, flip=True).describe()
        'crop of the image padded by 4, flip, normalise'
        """
        steps = {
            "resized crop": self.resized_crop,
            f"crop of the image padded by {self.pad}": self.pad and not self.resized_crop,
            "flip": self.flip,
            "jitter " + " ".join(f"{j:g}" for j in self.jitter): any(self.jitter),
            "normalise": True,
            f"cutout {self.cutout}": self.cutout,
        }
        return ", ".join(step for step, done in steps.items() if done)


@lru_cache(maxsize=32)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], unit: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(C,) scale and shift with x scale + shift = (x / unit - mean) / std, kept on the device."""
    pairs = [(1 / (unit * s), -m / s) for m, s in zip(mean, std, strict=True)]
    scale, shift = torch.tensor(pairs, dtype=torch.float32).T.contiguous().to(device)
    return scale, shift


def _windows(images: Tensor, pad: int, noise: Tensor, flipped: Tensor) -> Tensor:
    """Crops of the padded images, offset uniformly in 0 .. 2 pad down and right, some mirrored: one gather."""
    count, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    top, left = (noise * (2 * pad + 1)).long()
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns) + left[:, None]
    rows = torch.arange(height, device=images.device) + top[:, None]
    return padded[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _resized_windows(images: Tensor, noise: Tensor, flipped: Tensor) -> Tensor:
    """Random windows stretched to the size of the image, bilinear, some mirrored; float32 in [0, 1]."""
    height, width = images.shape[1:3]
    area = (AREA[0] + (AREA[1] - AREA[0]) * noise[0]) * height * width
    low, high = map(math.log, ASPECT)
    aspect = (low + (high - low) * noise[1]).exp()
    tall = (area / aspect).sqrt().round().clamp(1, height) / height
    wide = (area * aspect).sqrt().round().clamp(1, width) / width
    # affine_grid's coordinates run from -1 to 1: a window of share s has its centre in -(1 - s) .. 1 - s.
    down, right = (1 - tall) * (2 * noise[2] - 1), (1 - wide) * (2 * noise[3] - 1)
    zero = torch.zeros_like(tall)
    across = torch.where(flipped, -wide, wide)
    theta = torch.stack([across, zero, right, zero, tall, down], dim=1).view(-1, 2, 3)
    pixels = _unit(images).permute(0, 3, 1, 2)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


def jittered(images: Tensor, jitter: tuple[float, float, float, float], noise: Tensor) -> Tensor:
    """(B, H, W, C) -> the same in float32, [0, 1]; kornia's functions follow Pillow's definitions."""
    from kornia import enhance  # here, for it takes a second to import and only ImageNet's protocol needs it

    pixels = _unit(images).permute(0, 3, 1, 2)
    brightness, contrast, saturation = (1 + j * (2 * n - 1) for j, n in zip(jitter[:3], noise[:3], strict=True))
    pixels = enhance.adjust_brightness_accumulative(pixels, brightness.clamp(min=0))
    pixels = enhance.adjust_contrast_with_mean_subtraction(pixels, contrast.clamp(min=0))
    if pixels.shape[1] == 3:
        pixels = enhance.adjust_saturation_with_gray_subtraction(pixels, saturation.clamp(min=0))
        pixels = enhance.adjust_hue(pixels, 2 * math.pi * jitter[3] * (2 * noise[3] - 1))
    return pixels.permute(0, 2, 3, 1)


def _cut(images: Tensor, side: int, noise: Tensor) -> Tensor:
    """(B, C, H, W) with a square of 2 (side // 2) pixels set to 0, around a pixel drawn uniformly."""
    rows, columns = (_near(u, extent, side // 2) for u, extent in zip(noise, images.shape[2:], strict=True))
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _near(noise: Tensor, extent: int, half: int) -> Tensor:
    """(B, extent) bool: pixels from c - half to c + half - 1, where c = floor(noise extent)."""
    offset = torch.arange(extent, device=noise.device) - (noise * extent).long()[:, None]
    return (offset >= -half) & (offset < half)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixel - mean) / std: (B, H, W, C) -> (B, C, H, W) float32, channels last."""
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    scale, shift = _affine(mean, std, unit, images.device)
    out = torch.addcmul(shift, images.float(), scale)
    return out.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
