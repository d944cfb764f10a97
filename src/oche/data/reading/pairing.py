"""Folders whose files belong together, images and masks or before and after: they are no classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from oche.data.reading.files import folders_in, head, hidden, images_below, read_image
from oche.data.reading.naming import IMAGE_SUFFIXES, MASK_SUFFIXES, kind_of, stripped
from oche.errors import UserError

FEW, MANY = 32, 64
"""Different values up to which pictures look like masks, and from which on like photographs."""

COMPARED, SIDE = 6, 96
"""Pairs of files that are looked at to tell pairs from classes, and about how many rows and columns of each."""

FOLDERS, FEWEST = 4, 3
"""Folders up to which files of all pairs are looked at, and files that a pair of folders has at least."""

SAMPLES, MOST = 64, 100
"""Folders, and files in each, that are looked at to tell samples from classes."""

ALIKE = 0.8
"""Correlation from which on two pictures show the same."""


def refuse_pairs(root: Path) -> None:
    """Raises UserError where two folders hold the same pictures under the same names: images and masks, or before and after.

    What the folders are called tells it, at any number of them; of up to `FOLDERS`, what the files look like does too.
    """
    folders = folders_in(root)
    _refuse_samples(root, folders)
    by_kind = {folder: kind_of(folder.name)[1] for folder in folders}
    by_name: dict[str, list[Path]] = {}
    for folder in folders:
        by_name.setdefault(stripped(stripped(folder.name, MASK_SUFFIXES), IMAGE_SUFFIXES).lower(), []).append(folder)
    named = [pair for alike in by_name.values() for pair in combinations(alike, 2)]
    kinds = [folder for folder in folders if by_kind[folder]]
    named += [(one, other) for one in kinds[:FOLDERS] for other in folders[: 2 * FOLDERS] if one != other]
    looked = list(combinations(folders, 2)) if len(folders) <= FOLDERS else []
    held: dict[Path, dict[Path, Path]] = {}
    for first, second in dict.fromkeys((*named, *looked)):
        for folder in (first, second):
            if folder not in held:
                held[folder] = {p.relative_to(folder).with_suffix(""): p for p in images_below(folder)}
        a, b = _alike(held[first], held[second])
        names = sorted(a.keys() & b.keys())
        if len(names) < FEWEST or len(names) < 0.9 * max(len(a), len(b)):
            continue
        if (first, second) in named:
            which: str | None = "are called like images and masks"
        else:
            which = _paired(a, b, names[:: max(1, len(names) // COMPARED)][:COMPARED])
        if which:
            raise UserError(
                f"{root} holds the folders {first.name} and {second.name}, whose files pair up by name and {which}: they are no classes. "
                "To segment, call them images and masks; if they are classes after all, say `--task classify`."
            )


def _alike(a: dict[Path, Path], b: dict[Path, Path]) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Both by the same names, where those of one folder are those of the other with an ending, such as 7 and 7_L."""
    for short, long, swapped in ((a, b, False), (b, a, True)):
        if not short or not long or len(short.keys() & long.keys()) >= FEWEST:
            continue
        first = min(short, key=lambda path: (len(path.name), path))
        for other in [path for path in long if path.parent == first.parent and path.name.startswith(first.name)][:MOST]:
            ending = other.name.removeprefix(first.name)
            ended = [(p, f) for p, f in long.items() if ending and p.name.endswith(ending) and p.name != ending]
            cut = {p.with_name(p.name.removesuffix(ending)): f for p, f in ended}
            if len(short.keys() & cut.keys()) >= 0.9 * max(len(short), len(long)):
                return (cut, short) if swapped else (short, cut)
    return a, b


def _refuse_samples(root: Path, folders: Sequence[Path]) -> None:
    """Raises UserError where each folder holds the images and masks of one sample, and not those of a class."""
    samples = []
    for folder in folders[:SAMPLES]:
        entries = [path for path in folder.iterdir() if not hidden(path.name)][:MOST]
        kinds = {kind_of(path.stem if path.is_file() else path.name)[1] for path in entries}
        if {"images", "masks"} <= kinds:
            samples.append(folder)
    if len(samples) >= 2 and 2 * len(samples) > len(folders[:SAMPLES]):
        raise UserError(
            f"{root} holds a folder per sample, each with images and masks, such as {samples[0]}: they are no classes. To segment, put all "
            "images into one folder images and all masks into one folder masks, under the same names; if they are classes after all, say "
            "`--task classify`."
        )


def _paired(a: Mapping[Path, Path], b: Mapping[Path, Path], names: Sequence[Path]) -> str | None:
    """What shows that files of the same names belong together: one looks like the other's mask, or both show the same."""
    try:
        if any(head(a[name]).shape[:2] != head(b[name]).shape[:2] for name in names):
            return None
        pictures = [(_sampled(a[name]), _sampled(b[name])) for name in names]
    except UserError:
        return None
    values = [(_different(one), _different(other)) for one, other in pictures]
    if all(np.array_equal(one, other) for one, other in pictures):
        return None  # the same files in two classes: duplicates, which the ledger tells
    for side in (0, 1):
        if all(v[side] <= FEW for v in values) and sum(v[1 - side] >= MANY for v in values) > len(values) / 2:
            return "look like images and masks"
    small = [(_small(one), _small(other)) for one, other in pictures]
    matched = np.mean([abs(_correlation(one, other)) for one, other in small])
    crossed = np.mean([abs(_correlation(one, small[i - 1][1])) for i, (one, _) in enumerate(small)])
    return "show the same" if matched > ALIKE and matched > crossed + 0.3 else None


def _sampled(path: Path) -> NDArray[np.generic]:
    values = read_image(path)
    step = max(1, max(values.shape[:2]) // SIDE)
    return np.ascontiguousarray(values[::step, ::step])


def _different(values: NDArray[np.generic]) -> int:
    return len(np.unique(values.reshape(-1, values.shape[-1]), axis=0))


def _small(values: NDArray[np.generic]) -> NDArray[np.float64]:
    grey = torch.from_numpy(values.astype(np.float64)).mean(-1)[None, None]
    flat: NDArray[np.float64] = F.adaptive_avg_pool2d(grey, 8).flatten().numpy()
    return flat


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if not (np.isfinite(a).all() and np.isfinite(b).all()):  # such a file is told of where it is read
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0
