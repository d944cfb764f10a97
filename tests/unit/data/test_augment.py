"""Augmentation against literal loops over all that could have been drawn: every output must be one of them.

Images of pixels that are all different make the drawn window and square recognisable from the result alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from oche.base import counted
from oche.data import Augment, Data, ImageSet, for_search, for_training, none
from oche.data.augmentation.augment import AREA, ASPECT

PLAIN = Augment(mean=(0.0,), std=(1.0,))


def gradient(count: int = 200, height: int = 8, width: int = 9) -> Tensor:
    """(count, H, W, 1) float images of pixels 1/(HW+1) .. HW/(HW+1): all different, none black."""
    image = torch.arange(1, height * width + 1) / (height * width + 1)
    return image.view(1, height, width, 1).expand(count, -1, -1, -1).contiguous()


def photographs(count: int = 32, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=counted("photographs"), dtype=torch.uint8)


def data(height: int, flip: bool = True, channels: int = 3) -> Data:
    part = ImageSet.of(torch.zeros(1, height, height, channels, dtype=torch.uint8), torch.tensor([0]))
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Data("d", part, part, part, ("a", "b"), channels, (height, height), mean, std, flip)


def shifted(image: Tensor, pad: int, top: int, left: int, flip: bool) -> Tensor:
    """The literal definition on one image (H, W, C): mirror, surround with black, cut out H x W at (top, left)."""
    height, width, channels = image.shape
    image = image.flip(1) if flip else image
    padded = torch.zeros(height + 2 * pad, width + 2 * pad, channels, dtype=image.dtype)
    padded[pad : pad + height, pad : pad + width] = image
    return padded[top : top + height, left : left + width]


def cut(image: Tensor, side: int, row: int, column: int) -> Tensor:
    """DARTS' Cutout on one image (C, H, W), as written there."""
    height, width = image.shape[1:]
    mask = np.ones((height, width), np.float32)
    y1, y2 = np.clip(row - side // 2, 0, height), np.clip(row + side // 2, 0, height)
    x1, x2 = np.clip(column - side // 2, 0, width), np.clip(column + side // 2, 0, width)
    mask[y1:y2, x1:x2] = 0.0
    return image * torch.from_numpy(mask)


def test_normalise_is_the_formula_and_channels_last() -> None:
    images = photographs()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    got = Augment(mean, std).normalise(images)
    expected = (images.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    assert_close(got, expected.permute(0, 3, 1, 2).float())
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.dtype == torch.float32


def test_floats_and_bytes_give_the_same() -> None:
    augment = Augment((0.5,) * 3, (0.2,) * 3, pad=2, flip=True, cutout=4)
    images = photographs()
    assert_close(augment(images, counted("a")), augment(images.float() / 255, counted("a")))


@pytest.mark.parametrize("flip", [True, False])
def test_crop_and_flip_are_one_of_the_windows(flip: bool) -> None:
    pad = 2
    out = replace(PLAIN, pad=pad, flip=flip)(gradient(), counted("crop")).permute(0, 2, 3, 1)
    image = gradient(1)[0]
    choices = [(t, le, f) for t in range(2 * pad + 1) for le in range(2 * pad + 1) for f in {False, flip}]
    windows = torch.stack([shifted(image, pad, *choice) for choice in choices])
    matches = (out[:, None] == windows[None]).flatten(2).all(2)
    assert matches.sum(1).eq(1).all()
    drawn = [choices[i] for i in matches.int().argmax(1).tolist()]
    assert {t for t, _, _ in drawn} == {le for _, le, _ in drawn} == set(range(2 * pad + 1))
    assert {f for _, _, f in drawn} == {False, flip}


def test_windows_and_mirrors_are_drawn_evenly() -> None:
    """5000 images: each of 9 windows about 1/9, mirrored about 1/2; 5 standard deviations allowed."""
    out = replace(PLAIN, pad=1, flip=True)(gradient(5000), counted("even"))[:, 0]
    image = gradient(1)[0]
    for top in range(3):
        for left in range(3):
            seen = [(out == shifted(image, 1, top, left, f)[..., 0]).flatten(1).all(1).sum() for f in (False, True)]
            assert abs(int(seen[0] + seen[1]) / 5000 - 1 / 9) < 5 * (1 / 9 * 8 / 9 / 5000) ** 0.5
            assert abs(int(seen[0]) / 5000 - 1 / 18) < 5 * (1 / 18 * 17 / 18 / 5000) ** 0.5


@pytest.mark.parametrize("side", [1, 4, 5, 30])
def test_cutout_is_one_of_the_squares(side: int) -> None:
    out = replace(PLAIN, cutout=side)(gradient(500), counted("cutout"))
    image = gradient(1)[0].permute(2, 0, 1)
    squares = torch.stack([cut(image, side, row, column) for row in range(8) for column in range(9)])
    matches = (out[:, None] == squares[None]).flatten(2).all(2)
    assert matches.any(1).all()
    assert matches.any(0).all()  # every centre occurs


def test_cutout_fills_with_zero_after_normalisation() -> None:
    augment = Augment((0.3,), (0.2,), cutout=4)
    out, clean = augment(gradient(), counted("fill")), augment.normalise(gradient())
    assert ((out == clean) | (out == 0)).all()
    assert (out == 0).flatten(1).any(1).all()


def test_padding_is_black_before_normalisation() -> None:
    out = Augment((0.5,), (0.25,), pad=3)(gradient(), counted("black"))
    assert_close(out.min(), torch.tensor(-2.0))


def test_resized_crop_is_a_bilinear_window() -> None:
    """On a linear ramp bilinear interpolation is exact, so the window can be read from the values."""
    height = width = 64
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    ramp = torch.stack([ys / height, xs / width], dim=-1).expand(400, -1, -1, -1)
    out = Augment((0.0, 0.0), (1.0, 1.0), flip=True, resized_crop=True)(ramp, counted("ramp"))
    inner = slice(8, 56)  # away from the border, where pixels are clamped
    tall = (out[:, 0, 55, 32] - out[:, 0, 8, 32]) * height / 47
    wide = (out[:, 1, 32, 55] - out[:, 1, 32, 8]) * width / 47
    assert out[:, 0, inner, inner].std(dim=2).max() < 1e-5  # rows of the ramp stay rows
    assert 0.35 < float((wide < 0).float().mean()) < 0.65
    area, aspect = tall * wide.abs(), wide.abs() / tall
    slack = 1 + 1 / 8  # the sides are rounded to pixels; the smallest is about 16
    assert AREA[0] / slack < float(area.min())
    assert float(area.max()) <= 1
    assert ASPECT[0] / slack < float(aspect.min())
    assert float(aspect.max()) < ASPECT[1] * slack
    assert out.min() > 0
    assert out.max() < 1  # windows lie inside the image
    assert float(area.max() - area.min()) > 0.7


def test_the_whole_window_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oche.data.augmentation.augment.AREA", (1.0, 1.0))
    monkeypatch.setattr("oche.data.augmentation.augment.ASPECT", (1.0, 1.0))
    out = Augment((0.0,) * 3, (1.0,) * 3, resized_crop=True)(photographs(), counted("whole"))
    assert_close(out, photographs().permute(0, 3, 1, 2) / 255, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jitter_stays_in_range_and_differs_by_image(channels: int) -> None:
    images = photographs(1)[..., [0, 1, 2, 0][:channels]].expand(16, -1, -1, -1)
    out = Augment((0.0,) * channels, (1.0,) * channels, jitter=(0.4, 0.4, 0.4, 0.2))(images, counted("jitter"))
    assert out.min() >= 0
    assert out.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in out}) == 16


def test_brightness_multiplies_by_a_factor_between_its_bounds() -> None:
    image = torch.full((500, 8, 8, 3), 0.5)
    out = Augment((0.0,) * 3, (1.0,) * 3, jitter=(0.4, 0.0, 0.0, 0.0))(image, counted("bright"))
    factors = out[:, 0, 0, 0] / 0.5
    assert_close(out, factors[:, None, None, None].expand_as(out) * 0.5, atol=1e-5, rtol=0)
    assert 0.6 <= float(factors.min()) < 0.62
    assert 1.38 < float(factors.max()) <= 1.4


def test_hue_turns_the_colour_wheel_as_pillow_does() -> None:
    """A saturated red turned by h is Pillow's HSV colour of hue h (Pillow has 256 steps, so within 4 of 255)."""
    red = torch.tensor([1.0, 0.0, 0.0]).expand(50, 8, 8, 3)
    out = Augment((0.0,) * 3, (1.0,) * 3, jitter=(0.0, 0.0, 0.0, 0.5))(red, counted("hue"))[:, :, 0, 0]
    wheel = [Image.new("HSV", (1, 1), (hue, 255, 255)).convert("RGB").getpixel((0, 0)) for hue in range(256)]
    distance = torch.cdist(out * 255, torch.tensor(wheel, dtype=torch.float32), p=torch.inf)
    assert float(distance.min(1).values.max()) <= 4
    assert len(set(distance.argmin(1).tolist())) > 30


@pytest.mark.parametrize(
    "augment",
    [
        Augment((0.5,) * 3, (0.2,) * 3, pad=2, flip=True, cutout=6),
        Augment((0.5,) * 3, (0.2,) * 3, flip=True, resized_crop=True, jitter=(0.4, 0.4, 0.4, 0.2)),
    ],
)
def test_only_the_generator_matters(augment: Augment) -> None:
    images, kept = photographs(), photographs()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = augment(images, counted(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(first, augment(images, counted(1)))
    assert not torch.equal(first, augment(images, counted(2)))
    assert torch.equal(images, kept)  # the input is not written to
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_nothing_random_is_normalise() -> None:
    augment = none(data(8))
    assert torch.equal(augment(photographs(), counted(0)), augment.normalise(photographs()))


@pytest.mark.parametrize(("height", "pad", "cutout"), [(8, 1, 4), (28, 4, 14), (32, 4, 16), (64, 8, 16)])
def test_the_protocols_scale_with_the_image(height: int, pad: int, cutout: int) -> None:
    search, training = for_search(data(height)), for_training(data(height))
    assert (search.pad, search.flip, search.cutout) == (pad, True, 0)
    assert training == replace(search, cutout=cutout)


def test_large_images_are_trained_by_the_imagenet_protocol() -> None:
    training = for_training(data(128))
    assert (training.resized_crop, training.jitter, training.cutout) == (True, (0.4, 0.4, 0.4, 0.2), 0)


def test_images_that_must_not_be_mirrored_are_not() -> None:
    assert not for_search(data(8, flip=False)).flip
    assert not for_training(data(128, flip=False)).flip


def test_describe_says_what_is_done() -> None:
    assert for_training(data(32)).describe() == "crop of the image padded by 4, flip, normalise, cutout 16"
    assert for_training(data(224)).describe() == "resized crop, flip, jitter 0.4 0.4 0.4 0.2, normalise"
    assert none(data(32)).describe() == "normalise"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_images_given_are_left_alone(channels: int) -> None:
    """Scratch memory is the augmentation's own, whatever the images' dtype and with nothing but a cutout to do."""
    for images in (torch.rand(4, 8, 8, channels), torch.randint(0, 256, (4, 8, 8, channels), dtype=torch.uint8)):
        before = images.clone()
        Augment((0.4,) * channels, (0.3,) * channels, cutout=4)(images, counted(1))
        assert torch.equal(images, before)
