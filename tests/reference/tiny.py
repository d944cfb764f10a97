"""Problems small enough for a test: seeded noise images, no augmentation, any space."""

from __future__ import annotations

import torch

from oche.base import Batch
from oche.data import Augment, Data, ImageSet
from oche.search.state import Problem
from oche.spaces import SPACES, Space
from oche.tasks import Classify, Segment


def tiny_data(count: int = 24, size: tuple[int, int] = (8, 8), channels: int = 2, classes: int = 3) -> Data:
    """`count` images of uniform noise for training and as many to validate, the classes in turn."""
    rng = torch.Generator().manual_seed(7)
    targets = torch.arange(count) % classes

    def part() -> ImageSet:
        return ImageSet.of(torch.rand(count, *size, channels, generator=rng, dtype=torch.float32), targets)

    names = tuple(map(str, range(classes)))
    return Data(
        "noise", part(), part(), part(), names, channels, size, (0.5,) * channels, (0.3,) * channels, flip=False
    )


def tiny_masks(count: int = 24, size: tuple[int, int] = (8, 8), channels: int = 2, classes: int = 3) -> Data:
    """`tiny_data` with a mask for each image: stripes that the first channel shows, and an ignored first row."""
    rng = torch.Generator().manual_seed(8)

    def part() -> ImageSet:
        masks = (torch.arange(size[1]) * classes // size[1] + torch.arange(count)[:, None, None]) % classes
        masks = masks.expand(count, *size).clone()
        images = torch.rand(count, *size, channels, generator=rng)
        images[..., 0] = (images[..., 0] + 2 * masks) / (2 * classes)
        masks[:, 0] = 255
        return ImageSet.of(images, masks.to(torch.uint8))

    names = tuple(map(str, range(classes)))
    return Data(
        "stripes", part(), part(), part(), names, channels, size, (0.5,) * channels, (0.3,) * channels, ignore=255
    )


def tiny_space(name: str, data: Data, **settings: object) -> Space:
    """The space of that name, bound to the data."""
    return SPACES[name](inputs=data.channels, outputs=len(data.classes), size=data.size, **settings)  # type: ignore[arg-type]


def tiny_problem(
    space: str = "toy", *, epochs: int = 1, batch: int = 4, seed: int = 3, count: int = 24, **settings: object
) -> Problem:
    """A problem on tiny_data: 3 steps an epoch at the defaults."""
    dense = SPACES[space].task == "segment"
    data = tiny_masks(count) if dense else tiny_data(count)
    plain = Augment(data.mean, data.std)
    task = Segment() if dense else Classify()
    return Problem(tiny_space(space, data, **settings), data, task, plain, epochs, batch, seed)


class NoBatches:
    """Batches of a problem that has no data, such as a quadratic."""

    def inner(self, ahead: int = 0) -> Batch:
        return Batch(torch.zeros(1), torch.zeros(1))

    def outer(self) -> Batch:
        return self.inner()
