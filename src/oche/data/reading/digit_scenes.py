"""`digits_hard`: a small data set to classify that needs no file, made of scikit-learn's digits; here the choice of a network matters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from oche.base import counted
from oche.data.reading.found import Parts, Wish
from oche.data.reading.stacked import from_arrays

CANVAS, SIDE = 16, 8
"""Pixels a side of an image, and of the digits that are drawn on it."""

PARTS = {"train": (0, 957, 2), "val": (957, 1197, 1), "test": (1197, 1797, 3)}
"""The digits of each part, from and until, and how often each is drawn: stretches of the set, so that no digit is in two parts."""

TURN, SCALE, INK = 30.0, (0.8, 1.2), (0.7, 1.0)
"""Degrees to either side, sizes relative to the digit's own, and the strengths of what is drawn; each uniform."""

SCRAPS, SCRAP = 3, 4
"""Pieces of other digits beside each digit, and their pixels a side."""


def read_digits_hard(wish: Wish) -> Parts:
    """3,954 grey images of 16x16 pixels: a digit somewhere, turned and scaled, among pieces of other digits. 1,914 train, 1,800 test."""
    digits = load_digits()
    arrays = {part: (scenes(digits.images, *of_part), np.tile(digits.target[slice(*of_part[:2])], of_part[2]))
              for part, of_part in PARTS.items()}  # fmt: skip
    classes = tuple(map(str, range(10)))
    return from_arrays("digits_hard", arrays, wish, classes=classes, flip=False, layout="built-in")


def scenes(digits: NDArray[np.float64], first: int, last: int, times: int) -> NDArray[np.uint8]:
    """Digits `first` to `last` (8x8, ink from 0 to 16), each drawn `times` times on a canvas of its own: (N, 16, 16), ink from 0 to 255."""
    own = torch.from_numpy(digits[first:last] / 16).float().repeat(times, 1, 1)
    rng, count = counted("digits_hard", first), len(own)
    turn = math.radians(TURN) * (2 * torch.rand(count, generator=rng) - 1)
    scale = _between(SCALE, torch.rand(count, generator=rng))
    slack = (CANVAS - SIDE) / 2
    places = slack * (2 * torch.rand(count, 2, generator=rng) - 1)
    drawn = placed(own, turn, scale, places) * _between(INK, torch.rand(count, 1, 1, generator=rng))
    for _ in range(SCRAPS):
        other, y, x, row, column = (
            torch.randint(most, (count,), generator=rng).tolist()
            for most in (len(own), *2 * (SIDE - SCRAP + 1,), *2 * (CANVAS - SCRAP + 1,))
        )
        ink = _between(INK, torch.rand(count, generator=rng))
        for i in range(count):
            scrap = ink[i] * own[other[i], y[i] : y[i] + SCRAP, x[i] : x[i] + SCRAP]
            under = drawn[i, row[i] : row[i] + SCRAP, column[i] : column[i] + SCRAP]
            torch.maximum(under, scrap, out=under)
    return (255 * drawn).round().clamp(0, 255).to(torch.uint8).numpy()


def placed(images: Tensor, turn: Tensor, scale: Tensor, places: Tensor) -> Tensor:
    """(N, 8, 8) on canvases (N, 16, 16), bilinear: turned by `turn` (N,) radians, `scale` (N,) times as large, moved by `places` (N, 2).

    A move of (0, 0) leaves the middle of the image on the middle of the canvas; places are pixels to the right and downwards.
    """
    middle = torch.arange(CANVAS) - (CANVAS - 1) / 2
    down, right = torch.meshgrid(middle, middle, indexing="ij")
    x, y = right - places[:, 0, None, None], down - places[:, 1, None, None]
    cos, sin = ((f(turn) / scale)[:, None, None] for f in (torch.cos, torch.sin))
    at = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1) * (
        2 / SIDE
    )  # grid_sample's -1 and 1 are the edges
    return F.grid_sample(images[:, None], at, align_corners=False)[:, 0]


def _between(ends: Sequence[float], share: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * share
