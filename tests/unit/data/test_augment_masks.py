"""Images and masks stay aligned: against a loop over images with torch's own resizing, and by a picture that is its own mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from oche.base import counted
from oche.data import Augment, AugmentMasks, Data, ImageSet, Stream, for_search, for_training
from oche.errors import UserError

IGNORE = 255
MEAN, STD = (0.2, 0.4, 0.6), (0.3, 0.2, 0.1)


def pictures(seed: int, count: int = 6, size: tuple[int, int] = (13, 18)) -> tuple[Tensor, Tensor]:
    """Float images (B, H, W, 3) and masks of five classes and ignored pixels."""
    rng = torch.Generator().manual_seed(seed)
    masks = torch.randint(6, (count, *size), generator=rng)
    return torch.rand(count, *size, 3, generator=rng), torch.where(masks == 5, IGNORE, masks).to(torch.uint8)


def literal(augment: AugmentMasks, images: Tensor, masks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """One image after the other: resize, flip, paste into a canvas."""
    noise = torch.rand(8, len(images), generator=rng)
    low, high = augment.scale
    crop_h, crop_w = augment.crop
    outs, labels = [], []
    for b, (image, mask) in enumerate(zip(images, masks, strict=True)):
        factor = low + (high - low) * float(noise[0, b])
        pixels = (image - torch.tensor(MEAN)) / torch.tensor(STD)
        options = {"scale_factor": factor, "recompute_scale_factor": False}
        big = F.interpolate(pixels.permute(2, 0, 1)[None], mode="bilinear", align_corners=False, **options)[0]  # type: ignore[arg-type]
        small = F.interpolate(mask[None, None].float(), mode="nearest-exact", **options)[0, 0].long()  # type: ignore[arg-type]
        if augment.flip and noise[1, b] < 0.5:
            big, small = big.flip(-1), small.flip(-1)
        height, width = small.shape
        start = []
        for extent, crop, u in ((height, crop_h, noise[2, b]), (width, crop_w, noise[3, b])):
            slack = extent - crop
            steps = int(float(u) * (abs(slack) + 1))
            start.append(steps if slack >= 0 else -steps)
        out, label = torch.zeros(3, crop_h, crop_w), torch.full((crop_h, crop_w), IGNORE)
        for i in range(crop_h):
            for j in range(crop_w):
                y, x = i + start[0], j + start[1]
                if 0 <= y < height and 0 <= x < width:
                    out[:, i, j], label[i, j] = big[:, y, x], small[y, x]
        outs.append(out)
        labels.append(label)
    return torch.stack(outs), torch.stack(labels)


@pytest.mark.parametrize("crop", [(13, 18), (8, 30), (40, 5), (1, 1)])
@pytest.mark.parametrize("scale", [(0.5, 2.0), (1.0, 1.0), (0.5, 0.5), (2.0, 2.0)])
@pytest.mark.parametrize("flip", [True, False])
def test_a_batch_is_what_a_loop_over_images_makes(
    crop: tuple[int, int], scale: tuple[float, float], flip: bool
) -> None:
    augment = AugmentMasks(MEAN, STD, crop, scale=scale, flip=flip)
    images, masks = pictures(1)
    batch = augment.batch(images, masks, counted(5))
    wanted, labels = literal(augment, images, masks, counted(5))
    assert torch.equal(batch.targets, labels)
    torch.testing.assert_close(batch.images, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_masks_hold_valid_labels_only(seed: int) -> None:
    augment = AugmentMasks(MEAN, STD, (17, 23), flip=True, jitter=(0.4, 0.4, 0.4, 0.2))
    images, masks = pictures(seed, 16)
    batch = augment.batch(images, masks, counted(seed))
    assert batch.targets.dtype == torch.int64
    assert set(batch.targets.unique().tolist()) <= {0, 1, 2, 3, 4, IGNORE}
    assert torch.isfinite(batch.images).all()


def test_a_picture_that_is_its_own_mask_stays_so() -> None:
    """Blocks of 4x4 pixels of one class each: inside a block the image tells the class, whatever was done to both."""
    rng = torch.Generator().manual_seed(0)
    masks = torch.randint(5, (32, 8, 8), generator=rng).repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = (masks[..., None] / 4).expand(-1, -1, -1, 3).contiguous()
    augment = AugmentMasks((0.0,) * 3, (1.0,) * 3, (32, 32), flip=True)
    batch = augment.batch(images, masks.to(torch.uint8), counted(1))
    valid = batch.targets != IGNORE
    told = (4 * batch.images[:, 0]).round().long()
    assert 0.5 < valid.float().mean() < 1
    assert (told == batch.targets)[valid].float().mean() > 0.85  # pixels between two blocks are mixtures
    assert (told.roll(3, -1) == batch.targets)[valid].float().mean() < 0.5
    assert not batch.images.movedim(1, -1)[~valid].any()


def test_uint8_and_float_images_give_the_same() -> None:
    images, masks = pictures(2)
    bytes_ = (255 * images).to(torch.uint8)
    augment = AugmentMasks(MEAN, STD, (16, 16), flip=True)
    a, b = (augment.batch(i, masks, counted(3)) for i in (bytes_, bytes_.float() / 255))
    torch.testing.assert_close(a.images, b.images, atol=1e-5, rtol=1e-5)
    assert torch.equal(a.targets, b.targets)


def test_noise_is_counted_and_each_image_gets_its_own() -> None:
    augment = AugmentMasks(MEAN, STD, (16, 16), flip=True)
    images, masks = pictures(4, 1)
    images, masks = images.expand(8, -1, -1, -1), masks.expand(8, -1, -1)
    first, again, other = (augment.batch(images, masks, counted(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets, other.targets)
    assert len({t.numpy().tobytes() for t in first.targets}) == 8


def test_a_stream_of_masks() -> None:
    """Batches by number: the same number gives the same pair, images lie on their masks, searches see no jitter."""
    images, masks = pictures(5, 10, (16, 24))
    part = ImageSet.of(images, masks)
    data = Data("p", part, part, part, tuple("abcde"), 3, (16, 24), MEAN, STD, ignore=IGNORE)
    assert (data.task, len(part)) == ("segment", 10)
    stream = Stream(part.subset(torch.arange(5, 10)), 4, 0, "weights", for_search(data))
    a, b = stream.at(3), stream.at(3)
    assert (a.images.shape, a.targets.shape) == ((4, 3, 16, 24), (4, 16, 24))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.targets, b.targets)
    assert "jitter" in for_training(data).describe()
    assert "jitter" not in for_search(data).describe()


def test_impossible_scales_are_refused() -> None:
    with pytest.raises(UserError, match="scale"):
        AugmentMasks(MEAN, STD, (8, 8), scale=(2.0, 0.5))


def test_masks_do_not_pass_what_moves_images_only() -> None:
    images, masks = pictures(6)
    with pytest.raises(ValueError, match="AugmentMasks"):
        Augment(MEAN, STD, flip=True).batch(images, masks, counted(0))
    assert torch.equal(Augment(MEAN, STD).batch(images, masks, counted(0)).targets, masks.long())
