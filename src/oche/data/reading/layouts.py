"""Where images and masks lie: which folders, or files of one folder, pair up under the names that people give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oche.data.reading.files import folders_in, images_below
from oche.data.reading.found import ALIASES
from oche.data.reading.naming import (
    IMAGE_PREFIXES,
    IMAGE_SUFFIXES,
    MASK_PREFIXES,
    MASK_SUFFIXES,
    bare,
    kind_of,
    part_of,
)
from oche.errors import UserError

SHARE = 0.8
"""Share of the images of a folder that must have a mask beside them, called by a suffix, to be pairs."""


@dataclass(frozen=True)
class Place:
    """Images and masks of one part, each in a folder of their own or both in one."""

    images: Path
    masks: Path


@dataclass(frozen=True)
class Paired:
    """Files of one part by name: images with a mask each, images without one, masks without an image."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    bare_images: tuple[Path, ...] = ()
    bare_masks: tuple[Path, ...] = ()
    twice: tuple[tuple[Path, Path], ...] = ()


def places(root: Path) -> dict[str, Place]:
    """Part -> where its images and masks lie; {} where the folders do not have the names of such.

    Raises:
        UserError: two folders that could be the images, or the masks, of one part.
    """
    found = _by_kind(root)
    images, masks = found.get((None, "images"), []), found.get((None, "masks"), [])
    if images and masks:
        return _inside(_one(root, images), _one(root, masks))
    beside: dict[str, Place] = {}
    for part in ALIASES:
        bare = found.get((part, None), [])
        pictures, labels = found.get((part, "images"), bare), found.get((part, "masks"), [])
        below = _by_kind(bare[0]) if len(bare) == 1 else {}
        own, other = below.get((None, "images"), []), below.get((None, "masks"), [])
        if pictures and labels:
            beside[part] = Place(_one(root, pictures), _one(root, labels))
        elif own or other:
            folder = bare[0]
            beside[part] = Place(
                _one(folder, own) if own else folder / "images", _one(folder, other) if other else folder / "masks"
            )
    if any(place.images.is_dir() and place.masks.is_dir() for place in beside.values()):
        return beside
    return {}


def in_one_folder(root: Path) -> dict[str, Place]:
    """Part -> the folder in which images lie beside their masks, `a.jpg` beside `a_mask.png`; {} where they do not."""
    parts = {part: folder for folder in folders_in(root) if (part := part_of(folder.name))}
    found = {part: Place(folder, folder) for part, folder in (parts or {"train": root}).items()}
    for place in found.values():
        pairs = paired(place)
        if not pairs.images or len(pairs.images) < SHARE * (len(pairs.images) + len(pairs.bare_images)):
            return {}
    return found


def paired(place: Place) -> Paired:
    """Files with the same path below both folders, suffixes such as .png and _mask and prefixes such as mask_ left out, in any case."""
    if place.images == place.masks:
        files = images_below(place.images)
        marked = [p for p in files if bare(p.stem, MASK_SUFFIXES, MASK_PREFIXES) != p.stem.lower()]
        return _matched(place, [path for path in files if path not in set(marked)], marked, True)
    own, other = images_below(place.images), images_below(place.masks)
    exact = _matched(place, own, other, False)
    if not exact.bare_images and not exact.bare_masks:
        return exact
    loose = _matched(place, own, other, True)
    return loose if len(loose.images) > len(exact.images) else exact


def _matched(place: Place, own: Sequence[Path], other: Sequence[Path], loose: bool) -> Paired:
    images, first = _by_name(place.images, own, (IMAGE_SUFFIXES, IMAGE_PREFIXES) if loose else None)
    masks, second = _by_name(place.masks, other, (MASK_SUFFIXES, MASK_PREFIXES) if loose else None)
    names = sorted(images.keys() & masks.keys())
    return Paired(
        tuple(images[name] for name in names),
        tuple(masks[name] for name in names),
        tuple(images[name] for name in sorted(images.keys() - masks.keys())),
        tuple(masks[name] for name in sorted(masks.keys() - images.keys())),
        (*first, *second),
    )


def _by_name(
    folder: Path, files: Sequence[Path], ends: tuple[Sequence[str], Sequence[str]] | None
) -> tuple[Mapping[str, Path], list[tuple[Path, Path]]]:
    """Name below the folder -> file, and files of one name; with `ends` without those, and in lower case."""
    found: dict[str, Path] = {}
    twice = []
    for path in files:
        relative = path.relative_to(folder)
        name = relative.with_name(bare(relative.stem, *ends) if ends else relative.stem).as_posix()
        if name in found:
            twice.append((found[name], path))
        found.setdefault(name, path)
    return found, twice


def _inside(images: Path, masks: Path) -> dict[str, Place]:
    """The parts that two folders are divided into, or the two as they are."""
    found = {}
    for folder in (*folders_in(images), *folders_in(masks)):
        if part := part_of(folder.name):
            sides = [next((p for p in folders_in(side) if part_of(p.name) == part), None) for side in (images, masks)]
            found[part] = Place(sides[0] or images / folder.name, sides[1] or masks / folder.name)
    return found or {"train": Place(images, masks)}


def _by_kind(root: Path) -> dict[tuple[str | None, str | None], list[Path]]:
    found: dict[tuple[str | None, str | None], list[Path]] = {}
    for folder in folders_in(root):
        if (key := kind_of(folder.name)) != (None, None):
            found.setdefault(key, []).append(folder)
    return found


def _one(root: Path, folders: Sequence[Path]) -> Path:
    """The folder, of several the one that holds images. Raises UserError where more than one does."""
    holding = [folder for folder in folders if len(folders) == 1 or images_below(folder)]
    if len(holding) > 1:
        names = " and ".join(folder.name for folder in holding)
        raise UserError(f"{root} has {names}, which mean the same; which is it? Rename or move the other.")
    return holding[0] if holding else folders[0]
