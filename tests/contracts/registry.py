"""Every part that the contracts try in every combination: a new part adds one row here, and is held to all of them."""

from __future__ import annotations

from oche.bilevel import ArchGradient, FiniteDifference, FirstOrder, Unrolled
from oche.edges import AuxiliarySkip, DropPath, EdgeFactory, PartialChannels, SampledOps, SkipDropout, WeightedSum
from oche.methods.drnas import Dirichlet
from oche.relaxations import EdgeNormalised, Gated, GumbelSoftmax, Relaxation, Sigmoid, Softmax
from oche.schedule import Constant
from oche.selection import PerEdgeArgmax, Selection, TopK
from oche.trainable import AllWeights, BatchNormOnly, Trainable

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
    SampledOps(),
    AuxiliarySkip(),
    DropPath(rate=Constant(0.3)),
    SkipDropout(rate=Constant(0.3)),
)

ARCH_GRADIENTS: tuple[ArchGradient, ...] = (FirstOrder(), FirstOrder(keep_theta=True), Unrolled(), FiniteDifference())

TRAINABLES: tuple[Trainable, ...] = (
    AllWeights(),
    AllWeights(affine=True),
    BatchNormOnly(),
    BatchNormOnly(classifier=True, stem=True, pool_bn=False, initialiser="orthogonal"),
)

SELECTIONS: tuple[Selection, ...] = (TopK(), PerEdgeArgmax())

SMALL: dict[str, dict[str, int]] = {
    "toy": {},
    "nb201": {"channels": 4, "cells": 1},
    "darts": {"channels": 4, "cells": 3, "nodes": 2},
    **{name: {"channels": 4, "cells": 3, "nodes": 1} for name in ("s2", "s3", "s4")},
    "s1": {"channels": 4, "cells": 2},
    "grid": {"channels": 4, "layers": 2, "levels": 2},
}
"""Each space in a size for tests."""
