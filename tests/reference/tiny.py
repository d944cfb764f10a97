"""Problems small enough for a test: seeded noise images, no augmentation, any space."""

from __future__ import annotations

import torch

from oche.data import Augment, Data, ImageSet
from oche.spaces import SPACES, Space
from oche.state import Problem
from oche.tasks import Classify


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


def tiny_space(name: str, data: Data, **settings: object) -> Space:
    """The space of that name, bound to the data."""
    return SPACES[name](inputs=data.channels, outputs=len(data.classes), size=data.size, **settings)  # type: ignore[arg-type]


def tiny_problem(
    space: str = "toy", *, epochs: int = 1, batch: int = 4, seed: int = 3, count: int = 24, **settings: object
) -> Problem:
    """A problem on tiny_data: 3 steps an epoch at the defaults."""
    data = tiny_data(count)
    plain = Augment(data.mean, data.std)
    return Problem(tiny_space(space, data, **settings), data, Classify(), plain, epochs, batch, seed)
