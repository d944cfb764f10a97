"""Every part that the contracts try in every combination: a new part adds one row here, and is held to all of them."""

from __future__ import annotations

from oche.methods import method_named
from oche.methods.drnas import Dirichlet
from oche.methods.idarts import ImplicitNeumann
from oche.methods.zarts import Trials
from oche.schedule import Constant
from oche.search.bilevel import ArchGradient, FiniteDifference, FirstOrder, Unrolled
from oche.search.relaxations import EdgeNormalised, Gated, GumbelSoftmax, Relaxation, Sigmoid, Softmax
from oche.search.searcher import SearcherLike
from oche.search.selection import Keep, PerEdgeArgmax, Selection, TopK
from oche.search.trainable import AllWeights, BatchNormOnly, ClassifierOnly, Trainable, WeightSubset
from oche.spaces.attention import AttendedChannels
from oche.spaces.edges import (
    AuxiliarySkip,
    DropPath,
    EdgeFactory,
    Normed,
    PartialChannels,
    SampledOps,
    SkipDropout,
    WeightedSum,
)

RELAXATIONS: tuple[Relaxation, ...] = (
    Softmax(),
    EdgeNormalised(),
    Sigmoid(),
    Gated(),
    GumbelSoftmax(Constant(1.0)),
    GumbelSoftmax(Constant(1.0), hard=True),
    Dirichlet(),
)

EDGE_TYPES: tuple[EdgeFactory, ...] = (
    WeightedSum(),
    PartialChannels(2),
    PartialChannels(1),
    AttendedChannels(2),
    SampledOps(),
    AuxiliarySkip(),
    DropPath(rate=Constant(0.3)),
    DropPath(rate=Constant(0.3), whole=False),
    SkipDropout(rate=Constant(0.3)),
    Normed(),
)

ARCH_GRADIENTS: tuple[ArchGradient, ...] = (
    FirstOrder(),
    FirstOrder(keep_theta=True),
    Unrolled(),
    FiniteDifference(),
    ImplicitNeumann(terms=1),
)

TRIED: tuple[ArchGradient, ...] = (Trials(samples=1, steps=1),)
"""Steps of alpha that are no derivative: an outer term has a say in them, but not by its own."""

TRAINABLES: tuple[Trainable, ...] = (
    AllWeights(),
    AllWeights(affine=True),
    BatchNormOnly(),
    BatchNormOnly(classifier=True, stem=True, pool_bn=False, initialiser="orthogonal"),
)

CONTROLS: tuple[Trainable, ...] = (ClassifierOnly(), ClassifierOnly("uniform"), WeightSubset())
"""Few weights learn: no part of the cross product."""

SELECTIONS: tuple[Selection, ...] = (TopK(), PerEdgeArgmax(), Keep())

SMALL: dict[str, dict[str, object]] = {
    "toy": {},
    "nb201": {"channels": 4, "cells": 1},
    "darts": {"channels": 4, "cells": 3, "nodes": 2},
    "sase": {"channels": 4, "layers": (1, 1)},
    "stages": {"channels": 4, "cells": 5, "nodes": 1},
    **{name: {"channels": 4, "cells": 3, "nodes": 1} for name in ("s2", "s3", "s4")},
    "s1": {"channels": 4, "cells": 2},
    "grid": {"channels": 4, "layers": 2, "levels": 2},
    "chain": {
        "channels": 4,
        "layers": (2, 1),
        "widths": (1.0, 2.0),
        "strides": (1, 2),
        "ops": ("skip_connect", "residual_3x3", "mbconv_k3_e2"),
    },
    "signal": {
        "channels": 4,
        "layers": (2, 1),
        "widths": (1.0, 2.0),
        "strides": (1, 2),
        "ops": ("skip_connect", "residual_3", "mbconv_k5_e2"),
    },
}
"""Each space in a size for tests."""

OPTIONS: dict[str, dict[str, object]] = {
    "distilled_darts": {"lessons": 1},
    "pcdarts": {"K": 2},
    "rf_pcdarts": {"K": 2},
    **{name: {"queries": 5} for name in ("svge", "oncenas", "dnas")},
}
"""What makes a method fit the small spaces, where that is not its defaults."""

EPOCHS: dict[str, dict[str, int]] = {
    "drnas_progressive": dict.fromkeys(SMALL, 2),
    "pdarts": dict.fromkeys(SMALL, 3),
    "progressive_channels": dict.fromkeys(SMALL, 3),
    "ista_nas_one_stage": dict.fromkeys(SMALL, 2),
    "rdarts_pick": dict.fromkeys(SMALL, 4),
    "darts_pt": {
        "toy": 3,
        "nb201": 6,
        "darts": 6,
        "s1": 17,
        "s2": 2,
        "s3": 2,
        "s4": 2,
        "grid": 10,
        "sase": 6,
        "stages": 6,
        "chain": 4,
        "signal": 4,
    },
    "gm_nas": dict.fromkeys(SMALL, 3),
    "ddpnas": {
        "toy": 5,
        "nb201": 14,
        "darts": 35,
        "sase": 14,
        "stages": 35,
        "s1": 2,
        "s2": 2,
        "s3": 5,
        "s4": 2,
        "chain": 5,
        "signal": 5,
    },
}
"""The fewest epochs that a method takes in each small space, where one does not do."""


def small(name: str) -> SearcherLike:
    """The method with its options above."""
    return method_named(name, OPTIONS.get(name, {}))


def epochs(name: str, space: str) -> int:
    """The fewest that it takes."""
    return EPOCHS.get(name, {}).get(space, 1)
