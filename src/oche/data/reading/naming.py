"""What the names of folders and files mean: parts, images, masks, and the suffixes that tell a mask from its image."""

from __future__ import annotations

import re
from collections.abc import Sequence

from oche.data.reading.found import ALIASES

IMAGES = frozenset((
    "images", "image", "imgs", "img", "img_dir", "image_dir", "jpegimages", "photos", "photo", "pictures", "inputs",
    "input", "rgb", "leftimg8bit",
))  # fmt: skip
MASKS = frozenset((
    "masks", "mask", "mask_dir", "annotations", "annotation", "annots", "annot", "ann_dir", "anns", "ann", "labels",
    "label", "label_dir", "gt", "gts", "gt_dir", "ground_truth", "groundtruth", "ground_truths", "segmentation",
    "segmentations", "segmentationclass", "segmentation_masks", "seg", "segs", "targets", "target", "labelids",
))  # fmt: skip
MASK_SUFFIXES = (
    "_mask", "_masks", "_gt", "_gts", "_label", "_labels", "_seg", "_segmentation", "_annotation", "_ann", "_target",
    "_groundtruth", "_ground_truth", "_labelids", "_l", "_p",
)  # fmt: skip
IMAGE_SUFFIXES = ("_image", "_img", "_rgb", "_sat", "_photo", "_input", "_x", "_0000")


def plain(name: str) -> str:
    """A name as it is compared: lower case, words joined by underscores."""
    return name.lower().replace("-", "_").replace(" ", "_")


def part_of(name: str) -> str | None:
    """The part that a folder's name means.

    >>> part_of("Training"), part_of("VALID"), part_of("cat")
    ('train', 'val', None)
    """
    name = plain(name)
    return next((part for part, aliases in ALIASES.items() if name in aliases), None)


def part_within(name: str) -> tuple[str, str] | None:
    """The part that one word of a folder's name means, and the rest of the name; None where no word or several do.

    >>> part_within("seg_train"), part_within("Val2017"), part_within("trainer"), part_within("testA")
    (('train', 'seg'), ('val', '2017'), None, ('test', 'a'))
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+|\d+", apart.lower())
    found = [(part, n) for n, word in enumerate(words) if (part := part_of(word))]
    if len(found) != 1:
        return None
    part, at = found[0]
    return part, " ".join(words[:at] + words[at + 1 :])


DIVIDING = frozenset((
    "fold", "split", "part", "subset", "labeled", "labelled", "unlabeled", "unlabelled", "unsupervised", "holdout", "trainval", "extra",
))  # fmt: skip
"""Words for pieces of a set that are neither train, val nor test."""


def divides(name: str) -> bool:
    """True if a folder's name is that of a piece of a set: it begins with a part's name, or is a word such as fold, with a number.

    >>> divides("train-full"), divides("Fold 3"), divides("unlabeled"), divides("cats"), divides("folding chair")
    (True, True, True, False, False)
    """
    words = re.findall(r"[^\W\d_]+|\d+", name.lower())
    pieces = bool(words) and not name.isdigit() and all(word in DIVIDING or word.isdigit() for word in words)
    return pieces or (len(words) > 1 and part_of(words[0]) is not None)


def kind_of(name: str) -> tuple[str | None, str | None]:
    """The part and the kind ("images", "masks") that a folder's name means.

    >>> kind_of("Images"), kind_of("trainannot"), kind_of("masks_val"), kind_of("Test"), kind_of("cats")
    ((None, 'images'), ('train', 'masks'), ('val', 'masks'), ('test', None), (None, None))
    """
    name = plain(name)
    for kind, names in (("images", IMAGES), ("masks", MASKS)):
        if name in names:
            return None, kind
    if part := part_of(name):
        return part, None
    for end, part in (("tr", "train"), ("ts", "test")):  # nnU-Net: imagesTr, labelsTs
        for kind, names in (("images", IMAGES), ("masks", MASKS)):
            if name.endswith(end) and name[:-2] in names:
                return part, kind
    for part, aliases in ALIASES.items():
        for alias in aliases:
            for rest in (name.removeprefix(alias), name.removesuffix(alias)):
                if rest != name:
                    for kind, names in (("images", IMAGES), ("masks", MASKS)):
                        if rest.strip("_") in names:
                            return part, kind
    return None, None


MASK_PREFIXES = (
    "mask_",
    "masks_",
    "gt_",
    "label_",
    "labels_",
    "seg_",
    "segmentation_",
    "annotation_",
    "ann_",
    "target_",
)
IMAGE_PREFIXES = ("image_", "img_", "rgb_", "photo_", "input_", "sat_")


def bare(stem: str, suffixes: Sequence[str], prefixes: Sequence[str]) -> str:
    """The stem without one of the suffixes, else without one of the prefixes, in lower case."""
    if (found := stripped(stem, suffixes)) != stem:
        return found.lower()
    start = plain(stem)
    cut = next((len(prefix) for prefix in prefixes if start.startswith(prefix) and len(start) > len(prefix)), 0)
    return stem[cut:].lower()


def stripped(stem: str, suffixes: Sequence[str]) -> str:
    """The stem without the first of the suffixes that it ends with, in any case and with - for _."""
    end = plain(stem)
    for suffix in suffixes:
        if end.endswith(suffix) and len(end) > len(suffix):
            return stem[: -len(suffix)]
    return stem
