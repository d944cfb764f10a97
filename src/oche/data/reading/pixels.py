"""The shape of pixels of any origin: (N, H, W, C) of one size and number of channels; `contract.PixelRule` maps their values.

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

CHANNELS = (1, 3, 4)  # of grey and colour images, and of those with alpha
SMALLEST = 8


def channels_last(images: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, H, W, C).

    Four axes are read as NHWC when the last one is 1, 3 or 4, else as NCHW when the second one is; of other numbers of channels,
    the axis that is shorter than the two of the image.

    Raises:
        UserError: neither fits, there are no images, or they have no pixels.
    """
    if images.ndim not in (3, 4):
        raise UserError(f"{name} has shape {images.shape}; images need (N, H, W), (N, H, W, C) or (N, C, H, W).")
    if 0 in images.shape:
        raise UserError(f"{name} has shape {images.shape}, so it holds no images.")
    if images.ndim == 3:
        return images[..., None]
    _, second, third, last = images.shape
    if last in CHANNELS:
        return images
    if second in CHANNELS or second < min(third, last):
        return np.moveaxis(images, 1, 3)
    if last < min(second, third):
        return images
    raise UserError(
        f"{name} has shape {images.shape}, in which no axis is shorter than the image's two: give (N, H, W, C) or (N, C, H, W) "
        "with fewer channels than rows and columns."
    )


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
    raise UserError(
        f"{name} has images of {have} channels, which cannot become channels={channels}: leave channels out."
    )


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W, C) -> (N, *size, C), dtype kept: centre crop to the shape of `size`, then antialiased bilinear.

    The crop is the largest that fits, so nothing is stretched; what is lost is the surplus of the longer side.
    """
    if images.shape[1:3] == size:
        return images
    rows, columns = centre(images.shape[1], images.shape[2], size)
    return stretched(images[:, rows, columns], size)


def stretched(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W, C) -> (N, *size, C), dtype kept: antialiased bilinear of all pixels, whatever their shape."""
    if images.shape[1:3] == size:
        return images
    out = F.interpolate(images.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True, align_corners=False)
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
