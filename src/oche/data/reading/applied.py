"""An image file as a trained network takes it: by the contract of its training, whatever the file holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from oche.data.contract import Contract
from oche.data.reading.files import read_image
from oche.data.reading.pixels import SMALLEST, centre, resized, stretched, with_channels
from oche.data.reading.signals import read_signal
from oche.errors import UserError


@dataclass(frozen=True)
class Applied:
    """An image by a contract's rule, (H, W, C) in its own size, uint8 or float32; `odd` says what training never saw, "" for nothing."""

    pixels: Tensor
    odd: str = ""

    def cropped(self, size: tuple[int, int]) -> Tensor:
        """(1, *size, C): the crop at the centre, resized, as in training."""
        return resized(self.pixels[None], size)


def applied(path: Path, contract: Contract) -> Applied:
    """The image in a file, by the rule for values and with the channels of a contract.

    Raises:
        UserError: the file cannot be read, has NaN or values that are no numbers, or channels that cannot become the contract's.
    """
    if contract.signal:
        return applied_to(read_signal(path, contract), contract, f"The signal {path}")
    return applied_to(read_image(path, contract.channels == 4), contract, f"The image {path}")


def applied_to(values: NDArray[np.generic], contract: Contract, whose: str) -> Applied:
    """As `applied`, for the values (H, W, C) themselves; `whose` begins the sentence of an error."""
    if values.dtype.kind not in "buif":
        raise UserError(f"{whose} has values of the type {values.dtype}; expected integers or floats.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{whose} has NaN or infinity; remove or repair it.")
    if not contract.signal and min(values.shape[:2]) < SMALLEST:
        height, width = values.shape[:2]
        raise UserError(f"{whose} has {height} x {width} pixels; {SMALLEST} x {SMALLEST} is the least.")
    low, high = float(values.min()), float(values.max())
    depth = values.dtype.name
    if contract.signal:
        rule, odd = contract.pixels, contract.pixels.strange(low, high, depth) or ""
    else:
        rule, odd = contract.pixels.met(depth), contract.pixels.odd(low, high, depth)
    fits = rule.whole_bytes and values.dtype.kind in "ui" and low >= 0 and high <= 255
    pixels = with_channels(rule.apply(values, as_bytes=fits), contract.channels, whose.removeprefix("The image "))
    return Applied(pixels, odd)


def windows(height: int, width: int, size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Windows with the shape of `size`, as large as fit, that cover an image with as little overlap as can be.

    >>> windows(10, 25, (8, 8))
    [(slice(0, 10, None), slice(0, 10, None)), (slice(0, 10, None), slice(8, 18, None)), (slice(0, 10, None), slice(15, 25, None))]
    """
    rows, columns = centre(height, width, size)
    return [
        (down, across)
        for down in _along(height, rows.stop - rows.start)
        for across in _along(width, columns.stop - columns.start)
    ]


def painted(pixels: Tensor, size: tuple[int, int], scores: Callable[[Tensor], Tensor]) -> Tensor:
    """(H, W) int64 class numbers for an image (H, W, C) of any size, from a network for images of `size`.

    `scores` maps (1, *size, C) to (1, classes, *size). The image is covered by `windows`; each window's scores are resized, bilinear, to
    its own pixels, and where two overlap each has its half.
    """
    height, width = pixels.shape[:2]
    out = torch.zeros(height, width, dtype=torch.int64)
    edge_down, edge_right = 0, 0
    for rows, columns in windows(height, width, size):
        best = _best(scores(stretched(pixels[None, rows, columns], size))[0].cpu(), rows, columns)
        top = (rows.start + edge_down + 1) // 2 if rows.start else 0
        left = (columns.start + edge_right + 1) // 2 if columns.start else 0
        out[top : rows.stop, left : columns.stop] = best[top - rows.start :, left - columns.start :]
        edge_down, edge_right = rows.stop, columns.stop
    return out


def _best(scores: Tensor, rows: slice, columns: slice) -> Tensor:
    """The class of the greatest score of each pixel of a window, class by class to keep memory low."""
    shape = rows.stop - rows.start, columns.stop - columns.start
    if scores.shape[1:] == shape:
        return scores.argmax(0)
    most, best = torch.full(shape, -math.inf), torch.zeros(shape, dtype=torch.int64)
    for number, one in enumerate(scores.float()):
        larger = F.interpolate(one[None, None], shape, mode="bilinear", align_corners=False)[0, 0]
        best[larger > most] = number
        most = torch.maximum(most, larger)
    return best


def _along(extent: int, window: int) -> list[slice]:
    """Windows along one axis, the first at the beginning and the last at the end."""
    count = math.ceil(extent / window)
    starts = [round(i * (extent - window) / max(count - 1, 1)) for i in range(count)]
    return [slice(start, start + window) for start in starts]
