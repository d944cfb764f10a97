"""Who sees which images: disjoint parts with the same share of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from oche.base import counted
from oche.data.images import ImageSet
from oche.errors import UserError


class Split(Protocol):
    """(training images, seed) -> (images for the weight steps, images for the architecture steps)."""

    def __call__(self, train: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]: ...


@dataclass(frozen=True)
class Fractions:
    """Disjoint stratified parts of the training images: one for the weights, one for the architecture.

    DARTS and most of its successors give each a half (`halves()`). PC-DARTS on ImageNet takes 10 % of every class for
    the weights and 2.5 % for the architecture: `Fractions(0.1, 0.025)`; what is left is not used in the search.

    Raises:
        UserError: a fraction is not above 0, or together they exceed 1.
    """

    weights: float = 0.5
    arch: float = 0.5

    def __post_init__(self) -> None:
        if not (self.weights > 0 and self.arch > 0 and self.weights + self.arch <= 1 + 1e-9):
            raise UserError(
                f"Fractions(weights={self.weights}, arch={self.arch}) must both be above 0 and add up to at most 1."
            )

    def __call__(self, train: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
        """(images for the weight steps, images for the architecture steps).

        Raises:
            UserError: a class has too few images to be in both.
        """
        weights, arch = stratified(train.targets, (self.weights, self.arch), seed, "search")
        return train.subset(weights), train.subset(arch)


@dataclass(frozen=True)
class Whole:
    """All training images for the weights and for alpha: single-level methods (SNAS), and searches without alpha (RLNAS)."""

    def __call__(self, train: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
        return train, train


def halves() -> Fractions:
    """Fractions(0.5, 0.5): half the images each, as in DARTS."""
    return Fractions(0.5, 0.5)


def stratified(
    targets: Tensor, shares: Sequence[float], seed: int, purpose: str, classes: Sequence[str] = ()
) -> tuple[Tensor, ...]:
    """Positions of disjoint parts, sorted: of the n images of a class, part k gets b(k) to b(k+1) of a permutation.

    b(k) = floor(n (shares[0] + ... + shares[k-1]) + 1/2), so that no image is in two parts and each part is within one
    image of its share. The permutation depends on (seed, purpose, class) and on nothing else.

    Args:
        targets: (N,) class numbers.
        shares: of every class, one for each part; their sum is at most 1.
        classes: names for the error message.

    Raises:
        UserError: a part would have no image of some class.
    """
    targets = targets.cpu()
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in sorted(set(targets.tolist())):
        members = torch.nonzero(targets == label).flatten()
        count = len(members)
        shuffled = members[torch.randperm(count, generator=counted(seed, "split", purpose, label))]
        bounds = [0, *(int(count * share + 0.5 + 1e-9) for share in accumulate(shares))]
        if any(start == stop for start, stop in pairwise(bounds)):
            name = repr(classes[label]) if classes else str(label)
            asked = ", ".join(f"{share:.3g}" for share in shares)
            raise UserError(f"Class {name} has {count} images, too few to split into shares of {asked}; add images.")
        for part, (start, stop) in zip(parts, pairwise(bounds), strict=True):
            part.append(shuffled[start:stop])
    return tuple(torch.cat(part).sort().values for part in parts)
