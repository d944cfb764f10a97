"""Images with a mask each, from wherever they are read: checked, brought to one size, kept or decoded on demand.

A mask holds a class number 0, 1, ... for every pixel, and 255 where there is none to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from oche.data.images import ImageSet, LazySource, in_parallel
from oche.data.reading.folders import GREY, MEMORY_LIMIT, WORKERS
from oche.data.reading.parts import Parts
from oche.data.reading.pixels import Size, common_size, resized, resized_masks, with_channels
from oche.errors import UserError

IGNORE = 255
"""The label of mask pixels that count nowhere."""


@dataclass(frozen=True)
class Pairs:
    """Images of one part with their masks, by number; `names` are the masks' files, for messages.

    `shape(i)` is the image's (H, W, C), `image(i)` (H, W, C) uint8, `mask(i)` (H, W) integers; `groups` names what each is of.
    """

    names: tuple[str, ...]
    shape: Callable[[int], tuple[int, int, int]]
    image: Callable[[int], Tensor]
    mask: Callable[[int], NDArray[np.generic]]
    groups: tuple[str, ...] = ()


def mask_array(image: Image.Image, name: str) -> NDArray[np.generic]:
    """(H, W) class numbers of a grey or palette image. Raises UserError for a colour image."""
    if image.mode == "LA" or image.mode not in ("P", *GREY):
        raise UserError(
            f"The mask {name} is a colour image; a mask holds one class number a pixel, grey or by palette."
        )
    return np.asarray(image)


def from_pairs(
    name: str, parts: Mapping[str, Pairs], classes: Sequence[str], size: Size | None, channels: int | None
) -> Parts:
    """Parts from part -> images and masks. Without `classes` they are as many as the labels in the train masks, and numbered.

    Raises:
        UserError: a label that no class has, a mask of another size than its image, fewer than two classes.
    """
    count = len(classes) or _count(parts["train"])
    if count < 2:
        raise UserError(
            f"{name}: the train masks know one class only; they must hold class numbers 0, 1, ..., and {IGNORE} to ignore a pixel; "
            f"where {IGNORE} marks an object, write 1 in its place."
        )
    shapes = {part: in_parallel(pairs.shape, range(len(pairs.names)), WORKERS) for part, pairs in parts.items()}
    flat = list(chain.from_iterable(shapes.values()))
    extent, notes = common_size([shape[:2] for shape in flat], size)
    channels = channels or max(shape[2] for shape in flat)
    lazy = len(flat) * extent[0] * extent[1] * (channels + 1) > MEMORY_LIMIT
    if lazy:
        notes += ("The decoded images exceed 4 GiB, so they are decoded on demand and not searched for duplicates.",)
    known = sorted({group for pairs in parts.values() for group in pairs.groups})
    sets = {part: _image_set(pairs, extent, channels, count, known, name, lazy) for part, pairs in parts.items()}
    return Parts(name, sets, tuple(classes) or tuple(map(str, range(count))), notes=notes, ignore=IGNORE)


def _count(pairs: Pairs) -> int:
    """The largest label of all masks, and one; 255 left out."""

    def largest(i: int) -> int:
        labels = pairs.mask(i).astype(np.int64)
        return int(labels[labels != IGNORE].max(initial=-1))

    return 1 + max(in_parallel(largest, range(len(pairs.names)), WORKERS))


def _image_set(
    pairs: Pairs, size: tuple[int, int], channels: int, classes: int, known: Sequence[str], name: str, lazy: bool
) -> ImageSet:
    count = len(pairs.names)
    numbers = {group: n for n, group in enumerate(known)}
    groups = torch.tensor([numbers[group] for group in pairs.groups]) if pairs.groups else None

    def image(i: int) -> Tensor:
        return resized(with_channels(pairs.image(i), channels, name)[None], size)[0]

    def mask(i: int) -> Tensor:
        return resized_masks(_checked(pairs, i, classes)[None], size)[0]

    if lazy:
        zeros = torch.zeros(count, dtype=torch.int64)
        return ImageSet(LazySource(image), zeros, torch.arange(count), LazySource(mask), groups)
    images = torch.empty(count, *size, channels, dtype=torch.uint8)
    masks = torch.empty(count, *size, dtype=torch.uint8)

    def fill(i: int) -> None:
        images[i], masks[i] = image(i), mask(i)

    in_parallel(fill, range(count), WORKERS)
    return ImageSet.of(images, masks, groups)


def _checked(pairs: Pairs, i: int, classes: int) -> Tensor:
    """Mask i, (H, W) uint8. Raises UserError where it does not fit its image or the classes."""
    labels = pairs.mask(i).astype(np.int64)
    height, width, _ = pairs.shape(i)
    if labels.shape != (height, width):
        was = "x".join(map(str, labels.shape))
        raise UserError(f"The mask {pairs.names[i]} has {was} pixels, its image {height}x{width}; they must be equal.")
    strange = labels[(labels != IGNORE) & ((labels < 0) | (labels >= classes))]
    if strange.size:
        raise UserError(
            f"The mask {pairs.names[i]} has the label {int(strange.flat[0])}; the {classes} classes are 0 to {classes - 1}, "
            f"and {IGNORE} ignores a pixel."
        )
    return torch.from_numpy(labels.astype(np.uint8))
