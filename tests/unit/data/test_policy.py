"""AutoAugment: each operation against Pillow's own on the same images, and how often each is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from oche.data import Augment
from oche.data.augmentation.policy import CIFAR, OPERATIONS, augmented


def photographs(count: int = 4, height: int = 32, width: int = 28, channels: int = 3) -> Tensor:
    """Smooth images with a narrow range of levels, one of them flat."""
    rng = torch.Generator().manual_seed(5)
    small = torch.rand(count, channels, 5, 5, generator=rng) * 180 + 20
    images = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 255).round()
    images[-1] = 77
    return images.permute(0, 2, 3, 1).contiguous()


def pillow(name: str, image: Image.Image, m: float) -> Image.Image:
    """Pillow's operation at a magnitude in [-1, 1]."""
    grey, (w, h) = (128, 128, 128), image.size
    shift = 150 / 331 * m
    affine = {
        "shear_x": (1, 0.3 * m, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * m, 1, 0),
        "translate_x": (1, 0, shift * w, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift * h),
    }
    enhance = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in affine:
        return image.transform((w, h), Image.Transform.AFFINE, affine[name], fillcolor=grey)
    if name in enhance:
        return enhance[name](image).enhance(1 + 0.9 * m)
    if name == "rotate":
        return image.rotate(30 * m, fillcolor=grey)
    if name == "posterize":
        return ImageOps.posterize(image, round(8 - 4 * abs(m)))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - 256 * abs(m))
    return {"invert": ImageOps.invert, "autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}[name](
        image
    )


@pytest.mark.parametrize("m", [-1.0, -4 / 9, 3 / 9, 7 / 9, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name: str, m: float) -> None:
    x = photographs()
    found = OPERATIONS[name](x, torch.full((len(x),), m))
    for image, new in zip(x, found, strict=True):
        wanted = np.asarray(pillow(name, Image.fromarray(image.numpy().astype(np.uint8)), m)).astype(np.float32)
        off = np.abs(new.numpy() - wanted)
        if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
            assert (off.max(-1) > 0).mean() < 0.01, "a pixel on the border between two may go either way"
        else:
            assert off.max() <= 1
            assert (off > 0).mean() < 0.02


def test_every_image_gets_its_own_pair_as_often_as_the_policy_says() -> None:
    """Over all pairs of 500 copies, the share that changes is at most, and where both surely change it equals, 1 - (1 - p)(1 - q)."""
    copies = 500
    x = photographs(2, 8, 8)[:1].expand(25 * copies, -1, -1, -1).to(torch.uint8)
    noise = torch.rand(5, len(x), generator=torch.Generator().manual_seed(1))
    noise[0] = (torch.arange(len(x)) // copies + 0.5) / 25
    changed = (augmented(x, noise) != x).flatten(1).any(1).view(25, copies).float().mean(1)
    sure = {"invert", "translate_x", "translate_y", "brightness", "shear_y", "sharpness", "contrast"}
    for ((first, p, _), (second, q, _)), share in zip(CIFAR, changed.tolist(), strict=True):
        assert share <= 1 - (1 - p) * (1 - q) + 0.06
        if first in sure and second in sure and (first, second) != ("translate_y", "translate_y"):
            assert share == pytest.approx(1 - (1 - p) * (1 - q), abs=0.07)


def test_it_is_a_step_of_the_augmentation_before_normalisation() -> None:
    x = photographs(8).to(torch.uint8)
    plain = Augment((0.5,) * 3, (0.2,) * 3, pad=2, flip=True)
    policy = Augment((0.5,) * 3, (0.2,) * 3, pad=2, flip=True, policy=True)
    assert policy.describe() == "crop of the image padded by 2, flip, AutoAugment, normalise"

    def rng() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    assert torch.equal(policy(x, rng()), policy(x, rng()))
    first = rng()
    torch.rand(12, 8, generator=first)
    noise = torch.rand(5, 8, generator=first)
    levels = ((plain(x, rng()) * 0.2 + 0.5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    wanted = (augmented(levels, noise).float() / 255 - 0.5) / 0.2
    torch.testing.assert_close(policy(x, rng()), wanted.permute(0, 3, 1, 2))
    torch.testing.assert_close(policy(x.float() / 255, rng()), policy(x, rng()))


@pytest.mark.parametrize("channels", [1, 4])
def test_it_takes_any_number_of_channels(channels: int) -> None:
    x = photographs(50, 12, 8, channels).to(torch.uint8)
    found = augmented(x, torch.rand(5, 50, generator=torch.Generator().manual_seed(2)))
    assert (found.shape, found.dtype) == (x.shape, torch.uint8)
