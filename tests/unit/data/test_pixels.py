"""Pixels of any layout, scale, size and depth against Pillow and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.testing import assert_close

from oche.base import counted
from oche.data.reading.pixels import channels_last, common_size, resized, scaled, with_channels
from oche.errors import UserError

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
    ],
)
def test_layouts_are_told_apart(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    got = channels_last(array, "x")
    assert got.shape == expected
    if shape[1] == 3:
        assert_close(got[2, 5, 6], array[2, :, 5, 6])


@pytest.mark.parametrize(
    ("array", "expected", "noted"),
    [
        (np.array([[0, 255]], np.uint8), torch.tensor([[0, 255]], dtype=torch.uint8), False),
        (np.array([[0, 7]], np.int64), torch.tensor([[0, 7]], dtype=torch.uint8), False),
        (np.array([[0.0, 0.5]]), torch.tensor([[0.0, 0.5]]), False),
        (np.array([[0.0, 51.0]], np.float32), torch.tensor([[0.0, 0.2]]), False),
        (np.array([[False, True]]), torch.tensor([[0.0, 1.0]]), False),
        (np.array([[-2.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.5, 1.0]]), True),
        (np.array([[0, 1000, 4000]], np.uint16), torch.tensor([[0.0, 0.25, 1.0]]), True),
    ],
)
def test_numbers_of_any_scale(array: NDArray[np.generic], expected: torch.Tensor, noted: bool) -> None:
    (got,), notes = scaled([array], "x")
    assert_close(got, expected)
    assert bool(notes) == noted


def test_all_parts_are_put_on_one_scale() -> None:
    """A test part whose values happen to lie below 1 is divided by 255 too."""
    (first, second), _ = scaled([np.array([[0.0, 255.0]]), np.array([[0.0, 1.0]])], "x")
    assert_close(first, torch.tensor([[0.0, 1.0]]))
    assert_close(second, torch.tensor([[0.0, 1 / 255]]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_numbers_name_the_image(value: float) -> None:
    array = np.zeros((3, 8, 8, 1))
    array[2, 1, 1] = value
    with pytest.raises(UserError, match="x has NaN or infinity in image 2"):
        scaled([array], "x")


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
