"""The augmentation of a search, a training and an evaluation, by the kind of data."""

from __future__ import annotations

from oche.data.augmentation.augment import NO_JITTER, Augment, Augmentation
from oche.data.augmentation.augment_counts import AugmentCounts
from oche.data.augmentation.augment_masks import AugmentMasks
from oche.data.augmentation.augment_signals import AugmentSignals
from oche.data.images import Data
from oche.errors import UserError

LARGE = 128
IMAGENET_JITTER = (0.4, 0.4, 0.4, 0.2)


def for_search(data: Data) -> Augmentation:
    """The search protocol of DARTS: crop padded by 4 at 32 pixels, in proportion at other sizes; flip; no cutout.

    Masks: scale 0.5 to 2, crop of the image's size, flip (as FasterSeg and Dynamic Routing).
    Counts: flips along both sides.
    Signals: shift by up to an eighth of the length (our choice, the share by which images are cropped), scale and noise.
    """
    if data.ignore is not None:
        return _for_masks(data, NO_JITTER)
    if data.grid is not None:
        return AugmentCounts(data.mean, data.std, data.grid, data.flip)
    if data.things == "signals":
        return _for_signals(data, 0)
    return Augment(data.mean, data.std, pad=_scaled(4, data), flip=data.flip)


def for_training(data: Data, cutout: int = 16, policy: bool = False) -> Augmentation:
    """The retraining protocol of DARTS.

    Below 128 pixels as in the search, with cutout, whose side shrinks in proportion below 32 pixels. From 128 pixels on
    the ImageNet protocol: resized crop, flip, jitter of 0.4 0.4 0.4 0.2, and no cutout. `policy` adds AutoAugment.
    Masks: as in the search, with jitter. Counts: as in the search.
    Signals: as in the search, with a cutout of as large a share as images of 32 pixels lose.
    """
    if data.ignore is not None:
        return _for_masks(data, IMAGENET_JITTER)
    if data.grid is not None:
        if policy:
            raise UserError(
                "AutoAugment's policy turns and shears images, and objects are counted by place in these: "
                "`--set train.policy=false` leaves it out."
            )
        return AugmentCounts(data.mean, data.std, data.grid, data.flip)
    if data.things == "signals":
        if policy:
            raise UserError(
                "AutoAugment's policy turns and recolours images, and these data are signals: `--set train.policy=false` leaves it out."
            )
        return _for_signals(data, round(data.size[1] * (cutout / 32) ** 2))
    if data.size[0] >= LARGE:
        return Augment(data.mean, data.std, flip=data.flip, resized_crop=True, jitter=IMAGENET_JITTER, policy=policy)
    side = cutout if data.size[0] >= 32 else round(cutout * data.size[0] / 32)
    return Augment(data.mean, data.std, pad=_scaled(4, data), flip=data.flip, cutout=side, policy=policy)


def none(data: Data) -> Augment:
    """Normalisation only."""
    return Augment(data.mean, data.std)


def _for_masks(data: Data, jitter: tuple[float, float, float, float]) -> Augmentation:
    assert data.ignore is not None
    return AugmentMasks(data.mean, data.std, data.size, ignore=data.ignore, flip=data.flip, jitter=jitter)


def _for_signals(data: Data, cutout: int) -> Augmentation:
    return AugmentSignals(data.mean, data.std, shift=round(data.size[1] / 8), flip=data.flip, cutout=cutout)


def _scaled(pixels: int, data: Data) -> int:
    return max(1, round(pixels * data.size[0] / 32))
