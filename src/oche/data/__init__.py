"""Data sets and how their images reach the device: reading, splitting, augmentation, batches.

    data = load("digits").to(device)
    parts = halves()(data.train, seed)
    stream = Stream(parts.weights, 64, seed, "weight", for_search(data), device)
    batch = stream.at(0)

What a data set is (`images`), how any pixels get one form (`pixels`), how a source is read (`readers`, with `arrays`,
`folders`, `masksets` with `masks`, `digit_masks`, `torchsets`), how it is completed (`parts`) and what is worth knowing about it
(`facts`), who sees which images (`splits`) and what it is told of them (`targets`), how images are varied (`augment`, `augment_masks`,
`recipes`), in which order they come (`stream`).
"""

from oche.data.augmentation.augment import Augment, Augmentation
from oche.data.augmentation.augment_masks import AugmentMasks
from oche.data.augmentation.augment_signals import AugmentSignals
from oche.data.augmentation.recipes import for_search, for_training, none
from oche.data.images import ArraySource, Data, ImageSet, LazySource, Source
from oche.data.reading.readers import SETS, load
from oche.data.splits import SPLITS, Fractions, Parts, Released, Split, UntilFreeze, Whole, halves
from oche.data.stream import Stream, batches
from oche.data.targets import RandomTargets, Targets, TrueTargets

__all__ = [
    "SETS",
    "SPLITS",
    "ArraySource",
    "Augment",
    "AugmentMasks",
    "AugmentSignals",
    "Augmentation",
    "Data",
    "Fractions",
    "ImageSet",
    "LazySource",
    "Parts",
    "RandomTargets",
    "Released",
    "Source",
    "Split",
    "Stream",
    "Targets",
    "TrueTargets",
    "UntilFreeze",
    "Whole",
    "batches",
    "for_search",
    "for_training",
    "halves",
    "load",
    "none",
]
