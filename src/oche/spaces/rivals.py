"""Networks that one would pick by hand, scaled in width: what a search must beat. Each is a genotype of a chain.

Sources: MLPerf Tiny (`resnet8`, `ds_cnn`); He et al., CVPR 2016, for 32 pixels (`resnet20`); Sandler et al., CVPR 2018, and Ma et al.,
ECCV 2018, with the strides that chenyaofo/pytorch-cifar-models has for 32 pixels (`mobilenetv2`, `shufflenetv2`); `plain_cnn` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from oche.errors import UserError, unknown
from oche.genotype import Choice, Genotype
from oche.spaces.base import Space
from oche.spaces.chain import ChainSpace
from oche.spaces.cost import Cost, cost


@dataclass(frozen=True)
class Rival:
    """A chain of one operation per stage: `ops`, and the other fields of the space (`sizes`) in which it is a genotype."""

    title: str
    ops: tuple[str, ...]
    sizes: Mapping[str, object]

    @property
    def fields(self) -> dict[str, object]:
        """The fields of its space, but for what the data decide."""
        return {"ops": tuple(dict.fromkeys(self.ops)), **self.sizes}

    @property
    def genotype(self) -> Genotype:
        """Its operations, whatever its width."""
        counts = ChainSpace(**self.fields).layers  # type: ignore[arg-type]
        ops = [op for op, count in zip(self.ops, counts, strict=True) for _ in range(count)]
        return Genotype(ChainSpace.name, {"chain": tuple(Choice(i, i + 1, op) for i, op in enumerate(ops))})

    def network(self, like: Space, channels: int | None = None) -> tuple[ChainSpace, Genotype]:
        """The space and the genotype for the images and outputs of the space `like`, with `channels` channels or its own number."""
        width = {} if channels is None else {"channels": channels}
        bound = ChainSpace(inputs=like.inputs, outputs=like.outputs, size=like.size)
        return replace(bound, **{**self.fields, **width}), self.genotype  # type: ignore[arg-type]


QUARTERS: Mapping[str, object] = {"channels": 64, "widths": (0.25, 0.5, 1.0), "stem": 0.25}
"""16, 32 and 64 channels, in units of the last: the finer the unit, the closer a rival comes to its limits."""


def _resnet(depth: int, **fields: object) -> Rival:
    return Rival(f"ResNet-{depth}", ("residual_3x3",) * 3, {**QUARTERS, "layers": ((depth - 2) // 6,) * 3, **fields})


RIVALS: dict[str, Rival] = {
    "resnet8": _resnet(8, bias=True),
    "resnet20": _resnet(20),
    "mobilenetv2": Rival(
        "MobileNetV2",
        ("mbconv_k3_e1",) + 6 * ("mbconv_k3_e6",),
        {
            "channels": 320,
            "layers": (1, 2, 3, 4, 3, 3, 1),
            "widths": (0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0),
            "strides": (1, 1, 2, 2, 1, 2, 1),
            "stem": 0.1,
            "head": 4.0,
        },
    ),
    "shufflenetv2": Rival(
        "ShuffleNetV2",
        ("shuffle_3x3",) * 3,
        {
            "channels": 464,
            "layers": (4, 8, 4),
            "widths": (0.25, 0.5, 1.0),
            "strides": (2, 2, 2),
            "stem": 24 / 464,
            "head": 1024 / 464,
        },
    ),
    "ds_cnn": Rival(
        "DS-CNN",
        ("ds_conv_3x3",),
        {"channels": 64, "layers": (4,), "widths": (1.0,), "strides": (1,), "stem_stride": 2},
    ),
    "plain_cnn": Rival("plain CNN", ("plain_3x3",) * 3, {**QUARTERS, "layers": (2, 2, 2)}),
}
"""Rivals by name, in the width that they are published in."""


def rival(name: str) -> Rival:
    """Returns the rival of that name. Raises UserError."""
    if name not in RIVALS:
        raise unknown("rival", name, RIVALS)
    return RIVALS[name]


@dataclass(frozen=True)
class Limits:
    """The most parameters and multiply-adds that a network may have; None for as many as it likes."""

    parameters: int | None = None
    multiply_adds: int | None = None

    def keeps(self, price: Cost) -> bool:
        """True if a network of that cost stays within."""
        return (self.parameters is None or price.parameters <= self.parameters) and (
            self.multiply_adds is None or price.multiply_adds <= self.multiply_adds
        )

    def __str__(self) -> str:
        return " and ".join(
            f"{value:,} {what}"
            for value, what in ((self.parameters, "parameters"), (self.multiply_adds, "multiply-adds"))
            if value is not None
        )


MOST_CHANNELS = 8192
"""The widest that a rival is scaled to."""


def fitted(name: str, like: Space, limits: Limits) -> tuple[ChainSpace, Genotype]:
    """Returns the rival in the largest width that keeps the limits, or without limits in its own. Raises UserError where none does."""
    made = rival(name)
    if limits == Limits():
        return made.network(like)
    low, high = 0, MOST_CHANNELS + 1  # kept with `low` channels, not with `high`; costs grow with the width
    guess, step = _guess(made, like, limits), 1
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        if limits.keeps(cost(*made.network(like, guess))):
            low, guess = guess, guess + step if high > MOST_CHANNELS else (guess + high) // 2
        else:
            high, guess = guess, guess - step if low == 0 else (low + guess) // 2
        step *= 2
    if low == 0:
        price = cost(*made.network(like, 1))
        raise UserError(
            f"{made.title} has {price.parameters:,} parameters and {price.multiply_adds:,} multiply-adds in its smallest width, "
            f"which is more than {limits}: allow more, or take another of {', '.join(RIVALS)}."
        )
    return made.network(like, low)


def _guess(made: Rival, like: Space, limits: Limits) -> int:
    """About as many channels as the limits allow: costs grow with the square of the width."""
    space, genotype = made.network(like)
    price = cost(space, genotype)
    pairs = ((limits.parameters, price.parameters), (limits.multiply_adds, price.multiply_adds))
    return int(space.channels * min((limit / paid) ** 0.5 for limit, paid in pairs if limit is not None))
