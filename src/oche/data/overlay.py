"""A mask as a picture: a colour for every class, over the image or by palette; and a signal as curves."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

WIDE, TALL, SPREADS = 112, 56, 3.0
"""Pixels of a signal's picture, and how many spreads it reaches up and down from the mean."""


def colours(classes: int) -> Tensor:
    """(classes, 3) uint8, all different up to 256: the bits of a class number, spread over red, green and blue (PASCAL VOC's rule).

    Counted from 1, so that class 0 is not black.

    >>> colours(3).tolist()
    [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    table = torch.zeros(classes, 3, dtype=torch.uint8)
    for c in range(classes):
        for bit in range(8):
            for channel in range(3):
                table[c, channel] |= ((c + 1) >> (3 * bit + channel) & 1) << (7 - bit)
    return table


def shown(pixels: Tensor) -> Tensor:
    """(H, W, C) uint8, or floats in [0, 1] -> (H, W, 1 or 3) uint8 to look at: the first three channels, or the first."""
    pixels = pixels[..., : 3 if pixels.shape[-1] >= 3 else 1]
    return pixels if pixels.dtype == torch.uint8 else (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def plotted(values: Tensor) -> Tensor:
    """(TALL, WIDE, 3) uint8: a curve for each channel of a signal (L, C), whose values are in spreads from the channel's mean."""
    picture = Image.new("RGB", (WIDE, TALL), "white")
    pen = ImageDraw.Draw(picture)
    across = torch.linspace(0, WIDE - 1, len(values)).tolist()
    for channel, colour in zip(values.cpu().T, colours(values.shape[1]).tolist(), strict=True):
        up = ((1 - channel.clamp(-SPREADS, SPREADS) / SPREADS) * (TALL - 1) / 2).tolist()
        pen.line(list(zip(across, up, strict=True)), fill=tuple(colour))
    return torch.from_numpy(np.array(picture))


def overlaid(
    image: Tensor, mask: Tensor, palette: Tensor, share: float = 0.5, ignore: int | None = None
) -> Image.Image:
    """The image (H, W, 1 or 3) uint8 in grey, mixed with this share of the colours of its mask (H, W); `ignore` has no colour."""
    grey = image.float().mean(-1, keepdim=True)
    known = torch.ones_like(mask, dtype=torch.bool) if ignore is None else mask != ignore
    colour = palette[mask.long().where(known, 0)].float()
    mixed = torch.where(known[..., None], (1 - share) * grey + share * colour, grey)
    return Image.fromarray(mixed.round().to(torch.uint8).numpy())


def as_picture(mask: Tensor, palette: Tensor) -> Image.Image:
    """The mask (H, W) itself, class numbers as pixels, with the colours as palette."""
    picture = Image.fromarray(mask.to(torch.uint8).numpy())
    picture.putpalette(palette.flatten().tolist())
    return picture
