"""Networks that one would pick by hand, scaled in width: what a search must beat. Each is a genotype of a chain, for masks of a grid.

Sources: MLPerf Tiny (`resnet8`, `ds_cnn`); He et al., CVPR 2016, for 32 pixels (`resnet20`); Sandler et al., CVPR 2018, and Ma et al.,
ECCV 2018, with the strides that chenyaofo/pytorch-cifar-models has for 32 pixels (`mobilenetv2`, `shufflenetv2`); `plain_cnn` and
`plain_fcn` are ours. `unet` has Ronneberger et al.'s shape (MICCAI 2015), two convolutions per resolution and features carried across, from
stride 4 on; on the way back it sums where theirs concatenates, as LinkNet does. Rivals of signals are the chains with the same layers,
widths and strides along time, a kernel of 3 in the place of 3x3: our choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log

from oche.errors import UserError, unknown
from oche.genotype import Choice, Genotype
from oche.spaces.base import Space
from oche.spaces.chain import ChainSpace
from oche.spaces.cost import priced
from oche.spaces.fit import least_width, widest, width_of, with_width
from oche.spaces.grid import GridSpace
from oche.spaces.limits import Limits, Pricer
from oche.spaces.signals import SignalSpace


@dataclass(frozen=True)
class Rival:
    """A network: its `genotype`, the type of its `space`, and that space's `fields`, but for what the data decide.

    `signals` is its one-dimensional form, where it has one.
    """

    title: str
    space: type[Space]
    fields: Mapping[str, object]
    genotype: Genotype
    signals: Rival | None = None

    def form(self, flat: bool) -> Rival:
        """The rival itself, or where `flat` its form for signals. Raises UserError where it has none."""
        if flat and self.signals is None:
            having = ", ".join(name for name, rival in RIVALS.items() if rival.signals)
            raise UserError(f"{self.title} is not for signals: choose among {having}.")
        return self.signals if flat and self.signals else self

    def network(self, like: Space, channels: int | None = None) -> tuple[Space, Genotype]:
        """The space and the genotype for the images, or signals, and outputs of the space `like`, with `channels` channels or its own."""
        if like.flat and not self.space.flat:
            return self.form(True).network(like, channels)
        width = {} if channels is None else {"channels": channels}
        bound = self.space(inputs=like.inputs, outputs=like.outputs, size=like.size, density=like.density)
        return replace(bound, **{**self.fields, **width}), self.genotype  # type: ignore[arg-type]


def _chain(title: str, ops: tuple[str, ...], sizes: Mapping[str, object]) -> Rival:
    """A chain of one operation per stage, for images and for signals."""
    flat = tuple(re.sub(r"(\d)x\1", r"\1", op) for op in ops)
    signals = _layers(f"1-D {title}", SignalSpace, flat, {"stem_kernel": 3, **sizes})
    return replace(_layers(title, ChainSpace, ops, sizes), signals=signals)


def _layers(title: str, space: type[ChainSpace], ops: tuple[str, ...], sizes: Mapping[str, object]) -> Rival:
    given = {"ops": tuple(dict.fromkeys(ops)), **sizes}
    counts = space(**given).layers  # type: ignore[arg-type]
    layers = [op for op, count in zip(ops, counts, strict=True) for _ in range(count)]
    choices = {"chain": tuple(Choice(i, i + 1, op) for i, op in enumerate(layers))}
    return Rival(title, space, given, Genotype(space.name, choices))


def _grid(title: str, rows: tuple[tuple[str, ...], ...], channels: int) -> Rival:
    """A grid with an operation for each layer in each of the `rows`, which are its strides 4, 8, ...; "" where there is no node.

    A row's first node reads the node above and before it, each later one the node before it.
    """
    ops = tuple(dict.fromkeys(op for row in rows for op in row if op))
    given = {"channels": channels, "layers": len(rows[0]), "levels": len(rows), "ops": ops}
    space = GridSpace(**given)  # type: ignore[arg-type]
    number = {(node.layer, node.level): n for n, node in enumerate(space.nodes(), start=1)} | {(0, 0): 0}
    choices: list[Choice] = []
    for (layer, level), n in number.items():
        op = rows[level][layer - 1] if n else ""
        if op:
            first = level > 0 and not rows[level][layer - 2]
            source = number[layer - 1, level - first]
            choices += [Choice(2 * source, 2 * n - 1, "connect"), Choice(2 * n - 1, 2 * n, op)]
    return Rival(title, GridSpace, given, Genotype(GridSpace.name, {"grid": tuple(sorted(choices, key=_by_edge))}))


def _by_edge(choice: Choice) -> tuple[int, int]:
    return choice.target, choice.source


QUARTERS: Mapping[str, object] = {"channels": 64, "widths": (0.25, 0.5, 1.0), "stem": 0.25}
"""16, 32 and 64 channels, in units of the last: the finer the unit, the closer a rival comes to its limits."""


def _resnet(depth: int, **fields: object) -> Rival:
    return _chain(f"ResNet-{depth}", ("residual_3x3",) * 3, {**QUARTERS, "layers": ((depth - 2) // 6,) * 3, **fields})


RIVALS: dict[str, Rival] = {
    "resnet8": _resnet(8, bias=True),
    "resnet20": _resnet(20),
    "mobilenetv2": _chain(
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
    "shufflenetv2": _chain(
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
    "ds_cnn": _chain(
        "DS-CNN",
        ("ds_conv_3x3",),
        {"channels": 64, "layers": (4,), "widths": (1.0,), "strides": (1,), "stem_stride": 2},
    ),
    "plain_cnn": _chain("plain CNN", ("plain_3x3",) * 3, {**QUARTERS, "layers": (2, 2, 2)}),
    "plain_fcn": _grid("plain FCN", (("plain_3x3",) * 2,), 16),
    "unet": _grid(
        "U-Net",
        (
            ("plain_3x3", *("skip_connect",) * 4),
            ("", "plain_3x3", "plain_3x3", "skip_connect", "skip_connect"),
            ("", "", "", "plain_3x3", "plain_3x3"),
        ),
        16,
    ),
}
"""Rivals by name, in the width that they are published in."""

AUTO, NONE = "auto", "none"

FAMILY = {"classify": ("resnet20", "resnet8"), "segment": ("unet", "plain_fcn")}
"""What one would pick first: below 40 M multiply-adds no mobile network is better (chenyaofo/pytorch-cifar-models); for masks these two."""


def names(asked: str) -> tuple[str, ...]:
    """The rivals that are asked for: `auto`, none, or names with commas between them. Raises UserError.

    >>> names("resnet8, ds_cnn"), names("none"), names("auto")
    (('resnet8', 'ds_cnn'), (), ('auto',))
    """
    found = () if asked == NONE else tuple(name.strip() for name in asked.split(","))
    if found != (AUTO,):
        for name in found:
            if name not in RIVALS:
                raise unknown("rival", name, [*RIVALS, AUTO, NONE])
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Contenders:
    """Rivals by name as wide as limits allow, and why others that were asked for are not among them."""

    networks: Mapping[str, tuple[Space, Genotype]]
    left_out: tuple[str, ...] = ()


def contenders(asked: tuple[str, ...], like: Space, limits: Limits, price: Pricer | None = None) -> Contenders:
    """The rivals that were asked for at the greatest width that keeps the limits, for the images and outputs of the space `like`.

    `auto` stands for the one of the family whose published width is changed least, the deeper one if both are changed alike.
    """
    price = price or priced(limits)
    found: dict[str, tuple[Space, Genotype]] = {}
    left_out: dict[str, str] = {}
    for name in FAMILY[like.task] if asked == (AUTO,) else asked:
        space, genotype = RIVALS[name].network(like)
        fitting = widest(space, genotype, limits, price)
        if fitting is None:
            least = price(with_width(space, least_width(space)), genotype)
            left_out[name] = (
                f"{RIVALS[name].form(like.flat).title} is left out: at its narrowest it has {limits.words(least)}"
            )
        else:
            found[name] = (fitting, genotype)
    if asked == (AUTO,) and found:
        best = min(found, key=lambda name: abs(log(scale(name, found[name][0]))))
        return Contenders({best: found[best]})
    return Contenders(found, tuple(left_out.values()))


def scale(name: str, space: Space) -> float:
    """A rival's width in this space, relative to the published one."""
    own, published = width_of(space), width_of(RIVALS[name].network(space)[0])
    assert own is not None
    assert published is not None
    return own / published
