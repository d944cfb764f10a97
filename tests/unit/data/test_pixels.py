"""Pixels of any layout, scale, size and depth against Pillow and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.testing import assert_close

from oche.base import counted
from oche.data.contract import PixelRule, decided
from oche.data.reading.pixels import channels_last, common_size, resized, with_channels

COLOUR = torch.randint(0, 256, (4, 20, 30, 3), generator=counted("colour"), dtype=torch.uint8)


def smooth(height: int, width: int) -> torch.Tensor:
    """(1, H, W, 3) uint8 without sharp edges, so that two resampling codes agree closely."""
    ys, xs = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
    return (torch.stack([ys.sin(), xs.cos(), (xs * ys).sin()], dim=-1)[None] * 100 + 128).to(torch.uint8)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 9, 8), (5, 9, 8, 1)),
        ((5, 9, 8, 3), (5, 9, 8, 3)),
        ((5, 3, 9, 8), (5, 9, 8, 3)),
        ((5, 1, 9, 8), (5, 9, 8, 1)),
        ((5, 4, 9, 4), (5, 4, 9, 4)),  # both fit: the last axis wins
        ((5, 13, 16, 20), (5, 16, 20, 13)),  # of other numbers, the axis shorter than the image's two
        ((5, 16, 20, 13), (5, 16, 20, 13)),
    ],
)
def test_layouts_are_told_apart(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    got = channels_last(array, "x")
    assert got.shape == expected
    if shape[1] == 3:
        assert_close(got[2, 5, 6], array[2, :, 5, 6])


def scaled(arrays: list[NDArray[np.generic]]) -> tuple[list[torch.Tensor], PixelRule]:
    """Arrays by the rule that the first decides."""
    first = arrays[0]
    whole = bool(np.array_equal(first, np.round(first)))
    rule = decided(float(first.min()), float(first.max()), sorted({a.dtype.name for a in arrays}), whole)
    return [rule.apply(array, as_bytes=rule.whole_bytes) for array in arrays], rule


@pytest.mark.parametrize(
    ("array", "expected", "scale"),
    [
        (np.array([[0, 255]], np.uint8), torch.tensor([[0, 255]], dtype=torch.uint8), 255),
        (np.array([[0, 7]], np.int64), torch.tensor([[0, 7]], dtype=torch.uint8), 255),
        (np.array([[0.0, 0.5]]), torch.tensor([[0.0, 0.5]]), 1),
        (np.array([[0.0, 51.0]], np.float32), torch.tensor([[0.0, 0.2]]), 255),
        (np.array([[False, True]]), torch.tensor([[0.0, 1.0]]), 1),
        (np.array([[-2.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.5, 1.0]]), 4),
        (np.array([[0, 1023, 4000]], np.uint16), torch.tensor([[0.0, 1023 / 4095, 4000 / 4095]]), 4095),
        (np.array([[0, 65535]], np.uint16), torch.tensor([[0.0, 1.0]]), 65535),
        (np.array([[0, 1_000_000]], np.int32), torch.tensor([[0.0, 1e6 / (2**20 - 1)]]), 2**20 - 1),
        (np.array([[0.5, 2000.5]], np.float32), torch.tensor([[0.5 / 2000.5, 1.0]]), 2000.5),
        (np.array([[5, 5]], np.uint16), torch.tensor([[5, 5]], dtype=torch.uint8), 255),
    ],
)
def test_numbers_of_any_scale(array: NDArray[np.generic], expected: torch.Tensor, scale: float) -> None:
    (got,), rule = scaled([array])
    assert_close(got, expected)
    assert rule.scale == scale
    assert rule.depth == array.dtype.name


def test_all_parts_are_put_on_one_scale() -> None:
    """A test part whose values happen to lie below 1 is divided by 255 too."""
    (first, second), _ = scaled([np.array([[0.0, 255.0]]), np.array([[0.0, 1.0]])])
    assert_close(first, torch.tensor([[0.0, 1.0]]))
    assert_close(second, torch.tensor([[0.0, 1 / 255]]))


@pytest.mark.parametrize(
    ("rule", "low", "high", "depth", "said"),
    [
        (PixelRule(), 0, 255, "uint8", None),
        (PixelRule(), 0, 90, "uint8", None),
        (PixelRule(), 0, 65535, "uint16", "values up to 65535"),
        (PixelRule(scale=4095.0, high=3900.0, depth="uint16"), 10, 4000, "uint16", None),
        (PixelRule(scale=4095.0, high=3900.0, depth="uint16"), 0, 65535, "uint16", "values up to 65535"),
        (PixelRule(scale=4095.0, high=3900.0, depth="uint16"), 0, 255, "uint8", "uint8 values up to 255"),
        (PixelRule(scale=1.0, high=1.0, depth="float32"), 0, 255, "uint8", "values up to 255"),
        (PixelRule(offset=-1.0, scale=2.0, low=-1.0, high=1.0, depth="float32"), -3, 1, "float32", "values down to -3"),
    ],
)
def test_a_range_that_training_never_saw_is_said(
    rule: PixelRule, low: float, high: float, depth: str, said: str | None
) -> None:
    odd = rule.strange(low, high, depth)
    assert odd is None if said is None else said in str(odd)


def test_grey_is_pillows() -> None:
    expected = [np.asarray(Image.fromarray(image.numpy()).convert("L")) for image in COLOUR]
    assert_close(with_channels(COLOUR, 1, "x")[..., 0], torch.from_numpy(np.stack(expected)))
    assert_close(with_channels(COLOUR.float(), 1, "x").round(), with_channels(COLOUR, 1, "x").float(), atol=1, rtol=0)


def test_grey_becomes_colour_by_repetition_and_alpha_is_dropped() -> None:
    assert_close(with_channels(COLOUR[..., :1], 3, "x"), COLOUR[..., [0, 0, 0]])
    assert_close(with_channels(COLOUR[..., [0, 1, 2, 0]], 3, "x"), COLOUR)


@pytest.mark.parametrize(
    ("size", "box"),  # (left, top, right, bottom): the largest window of that shape in 30 x 50, whole pixels, centred
    [((16, 16), (10, 0, 40, 30)), ((10, 24), (0, 4, 50, 25)), ((40, 40), (10, 0, 40, 30)), ((30, 20), (15, 0, 35, 30))],
)
def test_resizing_is_pillows_crop_and_resize(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    images = smooth(30, 50)
    expected = Image.fromarray(images[0].numpy()).crop(box).resize(size[::-1], Image.Resampling.BILINEAR)
    got = resized(images, size)[0]
    assert got.dtype == torch.uint8
    assert_close(got.int(), torch.from_numpy(np.array(expected)).int(), atol=1, rtol=0)


def test_resizing_to_the_same_size_is_nothing() -> None:
    assert resized(COLOUR, (20, 30)) is COLOUR


@pytest.mark.parametrize(
    ("sizes", "wanted", "expected"),
    [
        ([(28, 30)] * 3, None, (28, 30)),  # as they are
        ([(20, 30), (22, 50), (21, 44)], None, (24, 48)),  # medians 21 and 44, to multiples of 8
        ([(20, 30)], 12, (12, 12)),
    ],
)
def test_the_common_size(sizes: list[tuple[int, int]], wanted: int | None, expected: tuple[int, int]) -> None:
    got, notes = common_size(sizes, wanted)
    assert got == expected
    assert bool(notes) == (set(sizes) != {expected})
