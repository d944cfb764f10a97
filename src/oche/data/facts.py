"""Facts about a data set before a run: mean and spread, imbalance, rare classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from oche.base import counted
from oche.data.images import ArraySource, Data, ImageSet

CHUNK = 1024
PIXELS = CHUNK * 64 * 64
SAMPLE = 2048
IMBALANCE = 1.5
LEAST = 1e-6
RARE = 0.02
"""Share of the train pixels below which a class is rare."""

PHOTOGRAPH, PRETRAINED = 128, "5 M"
"""Pixels per side from which on the advice is given (our choice; pre-trained networks have seen 224), and what small ones of them weigh."""


def mean_and_std(train: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1], over all images; and a note if over some only.

    Of images that are decoded on demand a fixed sample of 2,048 is read. A channel that never varies gets std 1.
    """
    positions, notes = torch.arange(len(train)), tuple[str, ...]()
    if not isinstance(train.source, ArraySource) and len(train) > SAMPLE:
        positions = torch.randperm(len(train), generator=counted(len(train), "mean and std"))[:SAMPLE].sort().values
        notes = (f"Mean and std were measured on {SAMPLE} of {len(train)} train images.",)
    sums, count = torch.zeros(2, 1, dtype=torch.float64), 0
    for images in _chunks(train, positions):
        pixels = images.double().flatten(0, 2) / (255 if images.dtype == torch.uint8 else 1)
        sums = sums + torch.stack([pixels.sum(0), pixels.square().sum(0)]).cpu()
        count += len(pixels)
    mean, square = sums / count
    std = (square - mean.square()).clamp(min=0).sqrt()
    if bool((std <= LEAST).any()) and train.take(positions[:1])[0].dtype != torch.uint8:
        small = torch.zeros(1, dtype=torch.float64)  # the difference above has lost what is left of so small a spread
        for images in _chunks(train, positions):
            small = small + (images.double().flatten(0, 2).cpu() - mean).square().sum(0)
        exact = (small / count).sqrt()
        std = torch.where(std > LEAST, std, torch.where(exact > mean.abs() * LEAST, exact, 0.0))
    return tuple(mean.tolist()), tuple(s if s > (LEAST if s > LEAST else 0.0) else 1.0 for s in std.tolist()), notes


def imbalance(train: ImageSet, classes: Sequence[str]) -> tuple[str, ...]:
    """A note when the largest class has at least 1.5 times as many train images as the smallest."""
    counts = torch.bincount(train.targets.cpu(), minlength=len(classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] < IMBALANCE * counts[least]:
        return ()
    things = "signals" if train.take(torch.zeros(1, dtype=torch.int64))[0].shape[1] == 1 else "images"
    extremes = f"{counts[most]} {things} of {classes[most]!r}, {counts[least]} of {classes[least]!r}"
    return (f"Classes are unbalanced in train: {extremes}.",)


def pixel_counts(part: ImageSet, classes: int) -> Tensor:
    """(classes,) int64: how many mask pixels have each class; of images that are decoded on demand, in a fixed sample of 2,048."""
    positions = torch.arange(len(part))
    if not isinstance(part.source, ArraySource) and len(part) > SAMPLE:
        positions = torch.randperm(len(part), generator=counted(len(part), "pixel counts"))[:SAMPLE].sort().values
    counts = torch.zeros(classes, dtype=torch.int64)
    for _, masks in both(part, positions):
        labels = masks.flatten().cpu()
        counts += torch.bincount(labels[labels < classes], minlength=classes)
    return counts


def rare(train: ImageSet, classes: Sequence[str]) -> tuple[str, ...]:
    """Notes about mask classes with no pixel in train, and with less than `RARE` of them."""
    shares = shares_of(train, classes)
    absent = [repr(name) for name, share in shares.items() if share == 0]
    few = [f"{name!r} {share:.1%}" for name, share in shares.items() if 0 < share < RARE]
    notes: tuple[str, ...] = (f"No train pixel has the class {', '.join(absent)}.",) if absent else ()
    ignored = 1 - float(pixel_counts(train, len(classes)).sum()) / max(1, _pixels(train))
    if ignored > 0:
        notes += (f"{ignored:.1%} of the train pixels are ignored: their label is no class.",)
    said = f"Rare classes, in share of the train pixels: {', '.join(few)}; `--set task.dice=1` gives them weight in the loss."
    return notes + ((said,) if few else ())


def _pixels(train: ImageSet) -> int:
    """How many mask pixels `pixel_counts` looks at."""
    height, width = train.take(torch.zeros(1, dtype=torch.int64))[0].shape[1:3]
    lazy = not isinstance(train.source, ArraySource)
    return (min(len(train), SAMPLE) if lazy else len(train)) * height * width


def rare_classes(data: Data) -> list[tuple[str, float]]:
    """(class, share of the train pixels) of the mask classes below `RARE` that are there, the rarest first."""
    if data.ignore is None:
        return []
    shares = data.ledger.shares or shares_of(data.train, data.classes)
    return sorted(((n, s) for n, s in shares.items() if 0 < s < RARE), key=lambda pair: pair[1])


def shares_of(train: ImageSet, classes: Sequence[str]) -> dict[str, float]:
    """Each class's share of the train pixels."""
    counts = pixel_counts(train, len(classes)).double()
    return dict(zip(classes, (counts / counts.sum().clamp_min(1)).tolist(), strict=True))


def fine_tuning(data: Data) -> str:
    """Advice where a network that others have trained on photographs would win; "" where none is made for such images."""
    if data.things != "images" or data.channels != 3 or min(data.size) < PHOTOGRAPH:
        return ""
    return (
        f"these are colour images of {data.size[0]}x{data.size[1]}: if they are photographs and more than {PRETRAINED} parameters are "
        "allowed, fine-tuning a pre-trained network wins; a search pays where a limit lies below that (docs/limits.md)"
    )


def _chunks(part: ImageSet, positions: Tensor | None = None) -> Iterator[Tensor]:
    for images, _ in both(part, positions):
        yield images


def both(part: ImageSet, positions: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and targets, at most `CHUNK` at a time, and fewer of more than 64 x 64 pixels."""
    positions = torch.arange(len(part)) if positions is None else positions
    height, width = part.take(positions[:1])[0].shape[1:3]
    step = max(1, min(CHUNK, PIXELS // (height * width)))
    for start in range(0, len(positions), step):
        yield part.take(positions[start : start + step])
