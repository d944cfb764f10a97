"""Splits of the training images: the weights' part and alpha's, fixed or drawn anew every epoch.

    fixed S0, full S1, redrawn S2, unequal S3, group S4, one_level S5, until_freeze S6, swap S7

are the arms of a study of splits (`--set split=NAME`). The numbers are ours: "The devil is in discretization discrepancy"
(arXiv 2405.16610) tells in its abstract that a new way to split the data helps, and we could not read which one that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from oche.base import counted
from oche.data.images import ImageSet
from oche.errors import UserError


@dataclass(frozen=True, eq=False)
class Parts:
    """The images for the weight steps and those for the architecture steps; `arch` None: each takes the weights' own batch.

    `anew`: they are this epoch's alone, so their batches begin anew with it.
    """

    weights: ImageSet
    arch: ImageSet | None
    anew: bool = False


class Split(Protocol):
    """(training images, seed, number of the epoch) -> who sees which of them in that epoch."""

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts: ...


@dataclass(frozen=True)
class Fractions:
    """S0: disjoint stratified parts of the training images, the same throughout: one for the weights, one for the architecture.

    DARTS and most of its successors give each a half (`halves()`). Unequal parts (S3) are `Fractions(0.8)`, where `arch` None is all
    the rest. PC-DARTS on ImageNet takes 10 % of every class for the weights and 2.5 % for the architecture: `Fractions(0.1, 0.025)`;
    what is left is not used in the search.

    Raises:
        UserError: a fraction is not above 0, or together they exceed 1.
    """

    weights: float = 0.5
    arch: float | None = None

    def __post_init__(self) -> None:
        weights, arch = self.shares
        if not (weights > 0 and arch > 0 and weights + arch <= 1 + 1e-9):
            raise UserError(f"Fractions(weights={weights}, arch={arch}) must both be above 0 and add up to at most 1.")

    @property
    def shares(self) -> tuple[float, float]:
        """The parts of the weights and of the architecture."""
        return self.weights, 1 - self.weights if self.arch is None else self.arch

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts:
        """Raises UserError where a class has too few images to be in both."""
        return _parts(train, self.shares, seed, "search")


@dataclass(frozen=True)
class Whole:
    """S1: all training images for the weights and for alpha, each in an order of its own (SSR).

    Also for single-level methods (SNAS), and searches without alpha (RLNAS).
    """

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts:
        return Parts(train, train)


@dataclass(frozen=True)
class Redrawn:
    """S2: as `Fractions`, drawn anew every epoch: over time the weights see every image, and in no epoch what alpha sees."""

    weights: float = 0.5

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts:
        return replace(_parts(train, Fractions(self.weights).shares, seed, f"search/{epoch}"), anew=True)


@dataclass(frozen=True)
class ByGroup:
    """S4: the share `weights` of the groups (cities, films) for the weights, whole groups for alpha, so that it sees other places.

    The number of groups is rounded; each side gets at least one. Which ones depends on the seed alone.
    """

    weights: float = 0.75

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts:
        """Raises UserError where the images are of no groups, or of a single one."""
        names = [] if train.groups is None else sorted(set(train.groups.tolist()))
        if train.groups is None or len(names) < 2:
            raise UserError(
                "A split by group needs images of at least two groups, as the cities of Cityscapes or the films of CamVid; "
                "these have none: choose another split."
            )
        order = torch.randperm(len(names), generator=counted(seed, "split", "groups")).tolist()
        count = min(max(int(self.weights * len(names) + 0.5), 1), len(names) - 1)
        mine = torch.isin(train.groups, torch.tensor([names[i] for i in order[:count]]).to(train.groups))
        return Parts(train.subset(mine.nonzero().flatten()), train.subset((~mine).nonzero().flatten()))


@dataclass(frozen=True)
class OneLevel:
    """S5: all training images for the weights, and each architecture step takes the batch of the weight step beside it.

    With `single_level=true` one backward pass serves both (GOLD-NAS).
    """

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts:
        return Parts(train, None)


@dataclass(frozen=True)
class UntilFreeze:
    """S6: `before`, until a single-stage search freezes its architecture; from then on `Released`.

    In a search that never freezes alpha it is `before`.
    """

    before: Split = Fractions()

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts:
        return self.before(train, seed, epoch)


@dataclass(frozen=True)
class Released:
    """All training images for the weights, each once per epoch but for those that fill up its last batch; there is no alpha to step."""

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts:
        return Parts(train, None, anew=True)


@dataclass(frozen=True)
class Swapped:
    """S7: fixed halves, swapped every epoch. Of an odd number the weights get the greater one first."""

    def __call__(self, train: ImageSet, seed: int, epoch: int = 0) -> Parts:
        parts = _parts(train, Fractions().shares, seed, "search")
        assert parts.arch is not None
        return Parts(parts.arch, parts.weights, anew=True) if epoch % 2 else replace(parts, anew=True)


SPLITS: dict[str, Split] = {
    "fixed": Fractions(),
    "full": Whole(),
    "redrawn": Redrawn(),
    "unequal": Fractions(0.8),
    "group": ByGroup(),
    "one_level": OneLevel(),
    "until_freeze": UntilFreeze(),
    "swap": Swapped(),
}
"""By name, for `--set split=NAME`."""


def halves() -> Fractions:
    """Fractions(0.5): half the images each, as in DARTS."""
    return Fractions()


def _parts(train: ImageSet, shares: tuple[float, float], seed: int, purpose: str) -> Parts:
    weights, arch = stratified(train.targets, shares, seed, purpose)
    return Parts(train.subset(weights), train.subset(arch))


def stratified(
    targets: Tensor, shares: Sequence[float], seed: int, purpose: str, classes: Sequence[str] = ()
) -> tuple[Tensor, ...]:
    """Positions of disjoint parts, sorted: of the n images of a class, part k gets b(k) to b(k+1) of a permutation.

    b(k) = floor(n (shares[0] + ... + shares[k-1]) + 1/2), so that no image is in two parts and each part is within one
    image of its share. The permutation depends on (seed, purpose, class) and on nothing else.

    Args:
        targets: (N,) class numbers; of (N, K) labels or numbers all images are of one class.
        shares: of every class, one for each part; their sum is at most 1.
        classes: names for the error message.

    Raises:
        UserError: a part would have no image of some class.
    """
    targets = targets.cpu() if targets.ndim == 1 else torch.zeros(len(targets), dtype=torch.int64)
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
