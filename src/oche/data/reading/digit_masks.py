"""`digits_masks`: a small data set to segment that needs no file, made of scikit-learn's digits."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from oche.base import counted
from oche.data.reading.files import Head
from oche.data.reading.found import Parts, Wish
from oche.data.reading.listing import Listing
from oche.data.reading.masksets import of_listings

IMAGES, SIDE, SCALE, SHEET = 480, 16, 2, 48
"""Images; pixels a side of each of an image's four fields; how much larger a digit is drawn; images of one group."""

FILLED, INK = 0.75, 5
"""The probability that a field has a digit, and the value (of 16) from which on a pixel is the digit's."""


def read_digits_masks(wish: Wish) -> Parts:
    """480 grey images of 32x32 pixels with one to four digits, and masks of 11 classes: background, 0 to 9.

    The digits are scikit-learn's 8x8 ones, twice as large, each used once and in their order. Of the four fields the first has one,
    the others with probability 0.75. 48 images in a row are a group: their digits were written by few people.
    """
    digits = load_digits()
    filled = torch.rand(IMAGES, 4, generator=counted("digits_masks")) < FILLED
    filled[:, 0] = True
    numbers = torch.where(filled, filled.flatten().cumsum(0).reshape(filled.shape) - 1, -1).numpy()
    pixels = np.zeros((IMAGES, 2 * SIDE, 2 * SIDE, 1), np.uint8)
    labels = np.zeros((IMAGES, 2 * SIDE, 2 * SIDE), np.uint8)
    for i, field in np.argwhere(numbers >= 0):
        digit = digits.images[numbers[i, field]]
        drawn = np.kron(digit, np.ones((SCALE, SCALE)))
        y, x = SIDE * (field // 2), SIDE * (field % 2)
        pixels[i, y : y + SIDE, x : x + SIDE, 0] = np.rint(drawn * (255 / 16))
        labels[i, y : y + SIDE, x : x + SIDE] = np.where(drawn >= INK, 1 + digits.target[numbers[i, field]], 0)
    groups = tuple(f"sheet {i // SHEET}" for i in range(IMAGES))
    classes = ("background", *map(str, range(10)))

    names = tuple(f"digits_masks {i}" for i in range(IMAGES))
    listing = Listing(
        names,
        lambda i: Head((2 * SIDE, 2 * SIDE, 1)),
        lambda i: pixels[i],
        mask=lambda i: labels[i],
        mask_names=names,
        groups=groups,
    )
    return of_listings("digits_masks", {"train": listing}, wish, classes, settled=True, layout="built-in", flip=False)
