"""How pixels of any origin become (N, H, W, C), uint8 or float32 in [0, 1], of one size and number of channels.

Every reader goes through these functions, so the same images give the same tensors from a folder and an array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from oche.errors import UserError

Size = int | tuple[int, int]
"""(H, W) in pixels, or one number for a square."""

CHANNELS = (1, 3, 4)
SMALLEST = 8


def channels_last(images: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, H, W, C).

    Four axes are read as NHWC when the last one is 1, 3 or 4, else as NCHW when the second one is.

    Raises:
        UserError: neither fits, there are no images, or they have no pixels.
    """
    if images.ndim not in (3, 4):
        raise UserError(f"{name} has shape {images.shape}; images need (N, H, W), (N, H, W, C) or (N, C, H, W).")
    if 0 in images.shape:
        raise UserError(f"{name} has shape {images.shape}, so it holds no images.")
    if images.ndim == 3:
        return images[..., None]
    if images.shape[3] in CHANNELS:
        return images
    if images.shape[1] in CHANNELS:
        return np.moveaxis(images, 1, 3)
    raise UserError(f"{name} has shape {images.shape}; the last axis (or the second) must be 1, 3 or 4 channels.")


def scaled(arrays: Sequence[NDArray[np.generic]], name: str) -> tuple[list[Tensor], tuple[str, ...]]:
    """Arrays of any number type -> uint8, or float32 in [0, 1], all on one scale; and a note if they were rescaled.

    uint8, and other integers within 0..255, become uint8. Floats in [0, 1] stay, floats in [0, 255] are divided by 255.
    Everything else is mapped linearly from its own range to [0, 1], which the later normalisation makes harmless.

    Raises:
        UserError: not numbers, or NaN or infinity among them.
    """
    if any(array.dtype.kind not in "buif" for array in arrays):
        raise UserError(f"{name} has type {arrays[0].dtype}; images need integers or floats.")
    for array in arrays:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1)))
            raise UserError(f"{name} has NaN or infinity in image {bad}; remove or repair that image.")
    low = float(min(array.min() for array in arrays))
    high = float(max(array.max() for array in arrays))
    whole = all(array.dtype.kind in "bui" for array in arrays)
    if whole and low >= 0 and high <= 255 and not all(array.dtype.kind == "b" for array in arrays):
        return [torch.from_numpy(np.require(array, np.uint8, ("C", "W"))) for array in arrays], ()
    notes: tuple[str, ...] = ()
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255 and not whole:
        low, high = 0.0, 255.0
    else:
        notes = (f"Pixels from {low:g} to {high:g} were rescaled to 0..1.",)
    return [_onto_unit(array, low, high) for array in arrays], notes


def with_channels(images: Tensor, channels: int | None, name: str) -> Tensor:
    """(..., C) -> (..., channels); None leaves them as they are.

    1 -> 3 repeats; 4 -> 3 drops alpha; 3 or 4 -> 1 is ITU-R 601 luma, in Pillow's integer arithmetic for uint8.

    Raises:
        UserError: there is no such conversion.
    """
    have = images.shape[-1]
    if channels is None or channels == have:
        return images
    if channels == 3 and have == 1:
        return images.repeat_interleave(3, dim=-1)
    if channels == 3 and have == 4:
        return images[..., :3].contiguous()
    if channels == 1 and have in (3, 4):
        if images.dtype == torch.uint8:
            red, green, blue = images[..., :3].int().unbind(-1)
            return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[..., None]
        return images[..., :3] @ images.new_tensor([[0.299], [0.587], [0.114]])
    raise UserError(f"{name} has images of {have} channels, which cannot become channels={channels}; choose 1 or 3.")


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W, C) -> (N, *size, C), dtype kept: centre crop to the shape of `size`, then antialiased bilinear.

    The crop is the largest that fits, so nothing is stretched; what is lost is the surplus of the longer side.
    """
    if images.shape[1:3] == size:
        return images
    rows, columns = centre(images.shape[1], images.shape[2], size)
    window = images[:, rows, columns].permute(0, 3, 1, 2)
    out = F.interpolate(window, size, mode="bilinear", antialias=True, align_corners=False)
    return out.permute(0, 2, 3, 1).contiguous()


def resized_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) -> (N, *size): the same window as `resized`, each pixel the label at its centre."""
    if masks.shape[1:] == size:
        return masks
    rows, columns = centre(masks.shape[1], masks.shape[2], size)
    return F.interpolate(masks[:, None, rows, columns], size, mode="nearest-exact")[:, 0]


def extent(size: Size) -> tuple[int, int]:
    """(H, W) of what was asked for."""
    return (size, size) if isinstance(size, int) else size


def centre(height: int, width: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the largest window with the shape of `size` in the middle of an image."""
    scale = max(size[0] / height, size[1] / width)
    crop = max(1, round(size[0] / scale)), max(1, round(size[1] / scale))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return slice(top, top + crop[0]), slice(left, left + crop[1])


def common_size(sizes: Sequence[tuple[int, int]], wanted: Size | None) -> tuple[tuple[int, int], tuple[str, ...]]:
    """The (H, W) that images of these sizes are brought to, and a note if some change.

    `wanted` asks for (H, W), or for a square. Otherwise it is the size they all have, or else the median height and width, each
    rounded to a multiple of 8 so that the network can halve it three times.

    Raises:
        UserError: smaller than 8 x 8.
    """
    different = set(sizes)
    if wanted is not None:
        size = extent(wanted)
    elif len(different) == 1:
        size = sizes[0]
    else:
        height, width = np.median(np.array(sizes), axis=0)
        size = max(SMALLEST, int(height / 8 + 0.5) * 8), max(SMALLEST, int(width / 8 + 0.5) * 8)
    smallest = min(different, key=min)
    if min(size) < SMALLEST or min(smallest) < SMALLEST:
        height, width = size if min(size) < SMALLEST else smallest
        raise UserError(f"Images of {height} x {width} pixels are too small; {SMALLEST} x {SMALLEST} is the least.")
    if different == {size}:
        return size, ()
    why = "as asked" if wanted is not None else "the median; size=N asks for N x N"
    was = "x".join(map(str, sizes[0])) if len(different) == 1 else f"{len(different)} different sizes"
    return size, (f"Images of {was} were cropped at the centre and resized to {size[0]}x{size[1]} ({why}).",)


def _onto_unit(array: NDArray[np.generic], low: float, high: float) -> Tensor:
    """[low, high] -> [0, 1], float32."""
    pixels = array.astype(np.result_type(array.dtype, np.float32))
    if (low, high) != (0.0, 1.0):
        pixels = (pixels - low) / (high - low or 1.0)
    return torch.from_numpy(np.require(pixels, np.float32, ("C", "W")))
