"""`digits_masks`: the same images every time, and masks that are where the digits are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from oche.data import SETS, Data, load
from oche.data.splits import ByGroup

DIGIT_SIDE, SIDE = 16, 32


@pytest.fixture(scope="module")
def data() -> Data:
    return load("digits_masks")


def test_it_has_a_name_shapes_and_valid_labels(data: Data) -> None:
    assert "digits_masks" in SETS
    assert (data.task, data.size, data.channels, len(data.classes)) == ("segment", (SIDE, SIDE), 1, 11)
    assert len(data.train) + len(data.val) + len(data.test) == 480
    for part in (data.train, data.val, data.test):
        images, masks = part.take(torch.arange(len(part)))
        assert images.shape == (len(part), SIDE, SIDE, 1)
        assert masks.shape == (len(part), SIDE, SIDE)
        assert set(masks.unique().tolist()) == set(range(11))
        assert torch.equal(masks > 0, images[..., 0] >= round(5 * 255 / 16))  # a digit's pixels are where its ink is


def test_it_is_the_same_every_time(data: Data) -> None:
    every = torch.arange(len(data.train))
    for mine, again in zip(data.train.take(every), load("digits_masks").train.take(every), strict=True):
        assert torch.equal(mine, again)


def test_each_field_holds_a_digit_of_its_own(data: Data) -> None:
    """Every field with ink, shrunk by two, is one of scikit-learn's digits under that digit's label, and none comes twice."""
    digits = load_digits()
    known = {
        np.rint(np.asarray(d) * (255 / 16)).astype(np.uint8).tobytes(): int(t)
        for d, t in zip(digits.images, digits.target, strict=True)
    }
    seen = []
    for part in (data.train, data.val, data.test):
        for image, mask in zip(*part.take(torch.arange(len(part))), strict=True):
            assert image[:DIGIT_SIDE, :DIGIT_SIDE].any()
            for y in (0, DIGIT_SIDE):
                for x in (0, DIGIT_SIDE):
                    field = image[y : y + DIGIT_SIDE, x : x + DIGIT_SIDE, 0]
                    if field.any():
                        seen.append(field[::2, ::2].numpy().tobytes())
                        labels = mask[y : y + DIGIT_SIDE, x : x + DIGIT_SIDE].unique()
                        assert labels[labels > 0].tolist() == [1 + known[seen[-1]]]
    assert len(set(seen)) == len(seen)


def test_its_groups_can_be_told_apart(data: Data) -> None:
    parts = ByGroup()(data.train, 0)
    assert parts.arch is not None
    mine, other = (set(part.groups.tolist()) for part in (parts.weights, parts.arch) if part.groups is not None)
    assert mine
    assert other
    assert not mine & other
