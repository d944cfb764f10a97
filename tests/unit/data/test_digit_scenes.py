"""`digits_hard`: the same images every time, each a digit that was moved, turned and scaled as said."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from oche.data import SETS, load
from oche.data.reading.digit_scenes import CANVAS, PARTS, SIDE, placed, scenes


def test_it_has_a_name_and_parts_that_share_no_digit() -> None:
    assert "digits_hard" in SETS
    data = load("digits_hard")
    assert (data.task, data.size, data.channels, len(data.classes), data.flip) == ("classify", (16, 16), 1, 10, False)
    assert [len(part) for part in (data.train, data.val, data.test)] == [1914, 240, 1800]
    digits = load_digits().target
    for name, part in (("train", data.train), ("val", data.val), ("test", data.test)):
        first, last, times = PARTS[name]
        assert part.targets.tolist() == digits[first:last].tolist() * times
    ends = sorted(PARTS.values())
    assert all(before[1] <= after[0] for before, after in pairwise(ends))


def test_it_is_the_same_every_time_and_no_drawing_is_another() -> None:
    digits = load_digits().images
    once, again = (scenes(digits, 10, 20, 2) for _ in range(2))
    assert (once == again).all()
    assert len({image.tobytes() for image in once}) == 20
    assert (scenes(digits, 11, 21, 2)[:9] != once[1:10]).any()


def one(angle: float = 0.0, scale: float = 1.0, x: float = 0.0, y: float = 0.0) -> Tensor:
    image = torch.from_numpy(load_digits().images[3] / 16).float()[None]
    return placed(image, torch.tensor([math.radians(angle)]), torch.tensor([scale]), torch.tensor([[x, y]]))[0]


def test_a_digit_is_where_it_was_placed() -> None:
    """By slicing, by torch's rot90, and for the scale by the ink, which grows with its square."""
    image, margin = torch.from_numpy(load_digits().images[3] / 16).float(), (CANVAS - SIDE) // 2
    expected = torch.zeros(CANVAS, CANVAS)
    expected[margin : margin + SIDE, margin : margin + SIDE] = image
    torch.testing.assert_close(one(), expected)
    torch.testing.assert_close(one(x=2, y=-3), expected.roll((-3, 2), (0, 1)))
    torch.testing.assert_close(one(angle=90), torch.rot90(expected, -1), atol=1e-5, rtol=0)
    assert float(one(scale=1.2).sum() / image.sum()) == pytest.approx(1.44, rel=0.05)
