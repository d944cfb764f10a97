"""Masks in the size of their image: windows cover it, and equal one window where the shape is the network's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from oche.base import counted
from oche.data.reading.applied import painted, windows
from oche.data.reading.pixels import centre, resized


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (16, 40), (50, 17), (33, 100), (9, 9)])
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_windows_cover_an_image(shape: tuple[int, int], size: tuple[int, int]) -> None:
    seen = torch.zeros(shape, dtype=torch.int64)
    rows, columns = centre(*shape, size)
    for down, across in windows(*shape, size):
        assert (down.stop - down.start, across.stop - across.start) == (
            rows.stop - rows.start,
            columns.stop - columns.start,
        )
        seen[down, across] += 1
    assert seen.min() >= 1
    assert seen.max() <= 2


def bright(pixels: Tensor) -> Tensor:
    """Scores of three classes by thirds of brightness, (1, H, W, C) uint8 -> (1, 3, H, W)."""
    value = pixels.float().mean(-1)
    return torch.stack([-(value - middle).abs() for middle in (42, 128, 213)], 1)


def test_a_mask_of_the_networks_own_size_is_its_answer() -> None:
    pixels = torch.randint(0, 256, (16, 24, 3), generator=counted(1), dtype=torch.uint8)
    assert_close(painted(pixels, (16, 24), bright), bright(pixels[None]).argmax(1)[0])


def test_one_window_is_the_crop_resized_back() -> None:
    """The scores of all classes at once, resized by PyTorch: a literal reading."""
    pixels = torch.randint(0, 256, (32, 48, 3), generator=counted(2), dtype=torch.uint8)
    scores = bright(resized(pixels[None], (16, 24)))
    wanted = F.interpolate(scores, (32, 48), mode="bilinear", align_corners=False).argmax(1)[0]
    assert_close(painted(pixels, (16, 24), bright), wanted)


@pytest.mark.parametrize("shape", [(16, 57), (61, 16)])
def test_every_pixel_of_a_long_image_is_painted(shape: tuple[int, int]) -> None:
    """Stripes across: each window knows its own, and the halves of an overlap meet without a seam."""
    along = torch.arange(max(shape)) * 3 // max(shape)
    stripes = along.expand(16, -1) if shape[1] > shape[0] else along[:, None].expand(-1, 16)
    pixels = (42 + 85 * stripes).to(torch.uint8)[..., None].contiguous()
    assert_close(painted(pixels, (16, 16), bright), stripes.contiguous())
