"""The named protocols of a training from scratch.

Those of the DARTS line (auxiliary head, drop path, cutout, cosine, clip) set sizes too, so that a number can be compared with a paper's;
the others are ours. `fast` and `fast_brief`, the defaults for classes, were chosen on validation images of two halves of CIFAR-100's
classes and of digits (docs/results/recipes.md); `quick` and `brief` were the defaults before. `USUAL` and `BRIEF` have the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from oche.base import Count, Fraction, Natural, NonNegative, Positive, Share
from oche.errors import UserError
from oche.optim import SGD
from oche.schedule import Cosine, Geometric, LinearTail, Schedule, Triangle, check_rate


@dataclass(frozen=True)
class Protocol:
    """How a network is trained from scratch.

    `auxiliary` weighs the auxiliary head's loss, `drop_path` is the probability at the end of a linear ramp, `cutout` the side of the hole
    in images of 32 pixels, `policy` adds AutoAugment. `keep` says which weights are the result: the last epoch's, or those of the best
    validation score. With `lr_by_step` the rate moves along `lr` at every step, else once per epoch. `steps` is the least number of
    steps: where there are few images, `lengthened` takes more epochs. `cells`, `channels` and `stem_multiplier` set the size of a network
    of stacked cells (None: as searched). `compile` has torch.compile make one program of forward and backward: minutes before the first
    step (and again where drop path sets in), faster steps after it.
    `source` says where the settings are from.
    """

    epochs: int
    batch: int
    lr: Schedule
    optimizer: SGD = SGD()
    clip: Positive | None = 5.0
    auxiliary: NonNegative = 0.4
    drop_path: Fraction = 0.0
    cutout: Natural = 0
    policy: bool = False
    label_smoothing: Share = 0.0
    keep: Literal["last", "best"] = "last"
    lr_by_step: bool = False
    steps: Natural = 0
    cells: Count | None = None
    channels: Count | None = None
    stem_multiplier: Count | None = None
    compile: bool = False
    source: str = "our choice"

    def __post_init__(self) -> None:
        if self.batch < 2 or self.epochs < 1:
            raise UserError(
                f"A training needs at least one epoch and batches of two images; given epochs={self.epochs}, batch={self.batch}."
            )
        check_rate(self.lr, "train: lr")


def lengthened(protocol: Protocol, images: int) -> Protocol:
    """The protocol with as many epochs of `images` train images as its least number of steps takes, at least its own.

    >>> lengthened(Protocol(30, 64, Cosine(0.1), steps=1000), 640).epochs
    100
    """
    per_epoch = max(1, -(-images // protocol.batch))
    return replace(protocol, epochs=max(protocol.epochs, -(-protocol.steps // per_epoch)))


_CIFAR = Protocol(
    600, 96, Cosine(0.025), drop_path=0.2, cutout=16, cells=20, channels=36, source="quark0/darts, CIFAR-10"
)
_BENCHMARK = "antoyang/NAS-Benchmark, CIFAR-10: "
_BASE = replace(_CIFAR, auxiliary=0.0, drop_path=0.0, cutout=0, source=f"{_BENCHMARK}crop and flip alone")
_CUTOUT = replace(_BASE, cutout=16, source=f"{_BENCHMARK}base with cutout")
_POLICY = replace(_CIFAR, policy=True, source=f"{_BENCHMARK}darts_cifar with AutoAugment")
_LONG = replace(_POLICY, epochs=1500, source=f"{_BENCHMARK}autoaugment for 1,500 epochs")

TRICKS: dict[str, Protocol] = {
    "base": _BASE,
    "auxiliary": replace(_BASE, auxiliary=0.4, source=f"{_BENCHMARK}base with the auxiliary head"),
    "drop_path": replace(_BASE, drop_path=0.2, source=f"{_BENCHMARK}base with drop path"),
    "cutout": _CUTOUT,
    "cutout_drop_path": replace(_CUTOUT, drop_path=0.2, source=f"{_BENCHMARK}cutout with drop path"),
    "wide": replace(_CIFAR, channels=50, source=f"{_BENCHMARK}darts_cifar with 50 channels"),
    "autoaugment": _POLICY,
    "long": _LONG,
    "long_wide": replace(_LONG, channels=50, source=f"{_BENCHMARK}long with 50 channels"),
}
"""The ladder of "NAS evaluation is frustratingly hard" (arXiv 1912.12522): each rung is one trick away from another; `darts_cifar`,
cutout, drop path and auxiliary head, is the one between `cutout_drop_path` and `wide`. From foot to top random cells gain 2.9 points."""

_FAST = Protocol(
    30, 128, Triangle(0.2), SGD(nesterov=True, weight_decay=5e-4), auxiliary=0.0, lr_by_step=True, steps=800
)

PROTOCOLS: dict[str, Protocol] = {
    "fast": _FAST,
    "fast_brief": replace(_FAST, epochs=12, steps=240),
    "quick": Protocol(30, 64, Cosine(0.1), SGD(nesterov=True, weight_decay=5e-4), auxiliary=0.4),
    "brief": Protocol(12, 64, Cosine(0.1), SGD(nesterov=True, weight_decay=5e-4), auxiliary=0.4),
    "smoke": Protocol(2, 32, Cosine(0.1), SGD(nesterov=True, weight_decay=5e-4), auxiliary=0.4),
    "segment": Protocol(60, 8, Cosine(0.05), SGD(weight_decay=5e-4), auxiliary=0.0, keep="best"),
    "segment_brief": Protocol(12, 8, Cosine(0.05), SGD(weight_decay=5e-4), auxiliary=0.0),
    "segment_smoke": Protocol(2, 4, Cosine(0.05), SGD(weight_decay=5e-4), auxiliary=0.0),
    "darts_cifar": _CIFAR,
    "pcdarts_cifar": replace(_CIFAR, drop_path=0.3, source="yuhuixu1993/PC-DARTS, CIFAR-10"),
    "robust_small": replace(_CIFAR, cells=8, channels=16, source="automl/RobustDARTS, S1-S4 at 8 cells of 16 channels"),
    "darts_imagenet": Protocol(
        250,
        128,
        Geometric(0.1, 0.1 * 0.97**250),
        SGD(weight_decay=3e-5),
        label_smoothing=0.1,
        keep="best",
        cells=14,
        channels=48,
        stem_multiplier=1,
        source="quark0/darts, ImageNet",
    ),
    "pcdarts_imagenet": Protocol(
        250,
        1024,
        LinearTail(0.5),
        SGD(weight_decay=3e-5),
        label_smoothing=0.1,
        keep="best",
        cells=14,
        channels=48,
        stem_multiplier=1,
        source="yuhuixu1993/PC-DARTS, ImageNet",
    ),
    "nb201": Protocol(
        200,
        256,
        Cosine(0.1),
        SGD(nesterov=True, weight_decay=5e-4),
        clip=None,
        auxiliary=0.0,
        cells=5,
        channels=16,
        source="NAS-Bench-201, 200 epochs",
    ),
    **TRICKS,
}
"""`oche train --protocol NAME`. Ours train at the searched size; the published ones set their own."""

USUAL = {"classify": "fast", "segment": "segment"}
"""By what is learned, the protocol of a network that is trained to be used: `oche train`."""

BRIEF = {"classify": "fast_brief", "segment": "segment_brief"}
"""By what is learned, the protocol of networks that are trained to be compared: beside a found one, in a bench or a study, or by a search
that scores cells so."""
