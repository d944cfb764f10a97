"""Augmentation of whole batches where they lie, driven by one generator: (B, H, W, C) -> (B, C, H, W), normalised.

There is no loop over images: crop and flip are one gather, a resized crop is one `grid_sample`, cutout one product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from oche.base import WHOLE, Batch, Part, sent
from oche.data.augmentation.policy import augmented
from oche.data.images import as_targets

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
NO_JITTER = (0.0, 0.0, 0.0, 0.0)


class Augmentation(Protocol):
    """Turns images into a batch: `batch` varies them, `normalise` does not."""

    def batch(self, images: Tensor, targets: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Batch: ...
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
        policy: AutoAugment's policy for CIFAR-10 (`policy.py`), between flip and jitter.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    cutout: int = 0
    resized_crop: bool = False
    jitter: tuple[float, float, float, float] = NO_JITTER
    policy: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
        """(B, H, W, C) uint8, or float32 in [0, 1] -> (B, C, H, W) float32, channels last in memory.

        The result depends on the images and the generator alone. Noise is drawn on the generator's device, so that one
        on the CPU gives the same augmentation everywhere, and for the whole batch of which the images are a `part`.
        """
        noise = sent(part.drawn(torch.rand, (12, len(images)), generator, images=1), images.device)
        flipped = (noise[0] < 0.5) & self.flip
        if self.resized_crop:
            images = _resized_windows(images, noise[1:5], flipped)
        elif self.pad or self.flip:
            images = _windows(images, self.pad, noise[1:3], flipped)
        if self.policy:
            more = part.drawn(torch.rand, (5, len(images)), generator, images=1)
            images = augmented(images, more.to(images.device))
        if any(self.jitter):
            images = jittered(images, self.jitter, noise[5:9])
        pixels = images.flatten(2).to(torch.float32, copy=True)
        rows = _rows(pixels, images, self.mean, self.std)
        if self.cutout:
            _cut(rows, images.shape, self.cutout, noise[9:11], scratch=pixels)
        return _channels_last(rows, images.shape)

    def batch(self, images: Tensor, targets: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Batch:
        """The images varied, their targets as they are. Raises ValueError for masks, unless pixels stay in their places."""
        if targets.ndim > 2 and (self.pad or self.flip or self.resized_crop):
            raise ValueError("masks would not lie on their images any more; AugmentMasks moves both")
        return Batch(self(images, generator, part), as_targets(targets))

    def normalise(self, images: Tensor) -> Tensor:
        """(pixel - mean) / std: (B, H, W, C) -> (B, C, H, W) float32, channels last; enough for evaluation."""
        return normalised(images, self.mean, self.std)

    def describe(self) -> str:
        """A description in a few words.

        >>> Augment((0.5,), (0.2,), pad=4, flip=True).describe()
        'crop of the image padded by 4, flip, normalise'
        """
        steps = {
            "resized crop": self.resized_crop,
            f"crop of the image padded by {self.pad}": self.pad and not self.resized_crop,
            "flip": self.flip,
            "AutoAugment": self.policy,
            "jitter " + " ".join(f"{j:g}" for j in self.jitter): any(self.jitter),
            "normalise": True,
            f"cutout {self.cutout}": self.cutout,
        }
        return ", ".join(step for step, done in steps.items() if done)


@lru_cache(maxsize=32)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], unit: float, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(W C,) scale and shift with x scale + shift = (x / unit - mean) / std for a row of pixels, kept on the device."""
    pairs = [(1 / (unit * s), -m / s) for m, s in zip(mean, std, strict=True)] * width
    scale, shift = torch.tensor(pairs, dtype=torch.float32).T.contiguous().to(device)
    return scale, shift


def _windows(images: Tensor, pad: int, noise: Tensor, flipped: Tensor) -> Tensor:
    """Crops of the padded images, offset uniformly in 0 .. 2 pad down and right, some mirrored: one gather of whole rows.

    A mirrored image is cut out of the mirrored copy, 2 pad - left from its other side.
    """
    count, height, width, channels = images.shape
    padded = F.pad(torch.stack([images, images.flip(2)]), (0, 0, pad, pad, pad, pad))
    tall, wide = padded.shape[2:4]
    top, left = (noise * (2 * pad + 1)).long()
    left = torch.where(flipped, 2 * pad - left, left)
    number = torch.arange(count, device=images.device) + flipped * count
    corner = (number * tall + top) * wide + left
    starts = corner[:, None] + torch.arange(height, device=images.device) * wide
    rows = padded.as_strided((2 * count * tall * wide - width + 1, width * channels), (channels, 1))
    return rows.index_select(0, starts.flatten()).view(images.shape)


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


def _cut(rows: Tensor, shape: torch.Size, side: int, noise: Tensor, scratch: Tensor) -> None:
    """Sets a square of 2 (side // 2) pixels around a pixel drawn uniformly to 0; rows (B, H, W C) of images of the shape.

    `scratch`, of rows' size, is overwritten: fresh memory of that size costs more than the work done in it.
    """
    longest = torch.arange(max(shape[1:3]), device=noise.device)
    centre = (noise * torch.tensor(shape[1:3], device=noise.device)[:, None]).long()
    offset = longest - centre[:, :, None]
    near = ((offset >= -(side // 2)) & (offset < side // 2)).float()
    down, right = near[0, :, : shape[1]], near[1, :, : shape[2]]
    across = right[:, :, None].expand(-1, -1, shape[3]).flatten(1)
    square = torch.mul(down[:, :, None], across[:, None, :], out=scratch.view_as(rows))
    rows.addcmul_(rows, square, value=-1)


def _channels_last(rows: Tensor, shape: torch.Size) -> Tensor:
    """(B, H, W C) -> (B, C, H, W), channels last in memory."""
    return rows.view(shape).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixel - mean) / std: (B, H, W, C) -> (B, C, H, W) float32, channels last."""
    return _channels_last(_rows(images.flatten(2).float(), images, mean, std), images.shape)


def _rows(pixels: Tensor, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalised rows (B, H, W C) of the images' pixels: an inner loop of that length is ten times as fast as one of C."""
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    scale, shift = _affine(mean, std, unit, images.shape[2], images.device)
    return torch.addcmul(shift, pixels, scale)


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
