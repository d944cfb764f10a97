"""Images with masks: folders of pairs under their usual names, and how any such listing becomes parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from oche.data.contract import LabelMap
from oche.data.entries import Fate
from oche.data.problems import problems_of, refuse
from oche.data.reading.files import below
from oche.data.reading.folders import folder_fates
from oche.data.reading.found import Filled, Parts, Wish
from oche.data.reading.labels import beside
from oche.data.reading.layouts import Paired, Place, in_one_folder, paired, places
from oche.data.reading.listing import WORKERS, Listing, faults, filled, of_files
from oche.data.reading.masks import IGNORE, by_colour, code_of, decided, palette_of, read_mask
from oche.data.reading.official import ADE_NAMES, said_by_makers
from oche.errors import UserError

Palette = tuple[tuple[int, int, int], ...]


def pair_places(root: Path) -> dict[str, Place]:
    """Part -> where images and masks lie, in two folders or in one; {} where there are no pairs."""
    return places(root) or in_one_folder(root)


def read_pairs(root: Path, found: Mapping[str, Place], wish: Wish) -> Parts:
    """The pairs at these places.

    Files pair up by their path without suffix, `_mask` and the like. `classes.toml` beside the folders maps values and colours to
    classes, `classes.txt` names them, one per line; without either they are the labels that occur in the train masks.

    Raises:
        UserError: all at once, images without masks and masks without images, unreadable files, masks that do not fit.
    """
    if "train" not in found:
        raise UserError(f"{root} has a folder for {min(found)} but none called train; add train beside it.")
    pairs = {part: paired(place) for part, place in found.items()}
    if bare := [sentence for part, place in found.items() for sentence in _unpaired(place, pairs[part])]:
        refuse([*bare, *faults(of_pairs(one.images, one.masks) for one in pairs.values())])
    wanted, names = beside(root)
    every, known = [mask for one in pairs.values() for mask in one.masks], ""
    if wanted is None and not names and wish.labels is None and wish.contract is None:
        wanted, known = said_by_makers(root, every)
    wish = wish if wish.labels else replace(wish, labels=wanted)
    colours, notes = by_colour(every, colours_asked(wish), WORKERS)
    notes = (known, *notes) if known else notes
    listings = {part: of_pairs(one.images, one.masks, colours=colours) for part, one in pairs.items()}
    used = {f"{part} images": one.images for part, one in pairs.items()}
    used |= {"names of classes": (root / ADE_NAMES,)} if known and (root / ADE_NAMES).is_file() else {}
    told = folder_fates(root, {**used, **{f"{part} masks": one.masks for part, one in pairs.items()}})
    palette = () if colours else palette_of(pairs["train"].masks[0])
    parts = of_listings(root.resolve().name, listings, wish, names, palette=palette, told=told)
    if names and parts.classes != names and wish.labels is None and wish.contract is None:
        notes += (
            "The names in classes.txt are of the labels 0, 1, ... and were not used: classes.toml names colours.",
        )
        parts = replace(parts, fates=tuple(fate for fate in parts.fates if fate.what != "names of classes"))
    return replace(parts, notes=(*notes, *parts.notes))


def colours_asked(wish: Wish) -> bool:
    """True if labels are colours, by what a user says or by a network's contract."""
    if wish.contract is not None:
        return wish.contract.labels.colours
    return wish.labels is not None and any(key.startswith("#") for key, _ in wish.labels.entries)


def of_pairs(
    images: Sequence[Path], masks: Sequence[Path], groups: tuple[str, ...] = (), *, colours: bool = False
) -> Listing:
    """A `Listing` of image files with a mask file each; `colours`: palette images hold colours, not labels."""
    return replace(
        of_files(images), mask=lambda i: read_mask(masks[i], colours), mask_names=tuple(map(str, masks)), groups=groups
    )


def of_listings(
    name: str,
    listings: Mapping[str, Listing],
    wish: Wish,
    names: Sequence[str] = (),
    *,
    palette: Palette = (),
    told: tuple[Fate, ...] = (),
    settled: bool = False,
    layout: str = "images and masks",
    flip: bool = True,
) -> Parts:
    """Parts from part -> images with masks; `settled`: the names are of the labels 0, 1, ... and no mask needs to be looked at."""
    classes, labels, notes = tuple(names), LabelMap(), tuple[str, ...]()
    if wish.contract is not None:
        classes, labels = wish.contract.classes, wish.contract.labels
    elif not settled or wish.labels is not None:
        train = listings["train"]
        assert train.mask is not None
        try:
            classes, labels, notes = decided(train.mask, train.mask_names, wish.labels, names, name, train.workers)
        except UserError as error:
            refuse([*problems_of(error), *faults(listings.values())])

    def fill(train: Tensor) -> Filled:
        return filled(listings, name, wish, labels, classes, train=train)

    targets = {part: torch.zeros(len(one), dtype=torch.int64) for part, one in listings.items()}
    colours = _palette(palette, labels, len(classes))
    return Parts(name, targets, fill, classes, flip, notes, IGNORE, labels, colours, told, layout)


def _unpaired(place: Place, found: Paired) -> list[str]:
    """Sentences about files that have no partner, or are two of one name."""
    if not place.images.is_dir() or not (found.images or found.bare_images):
        return [
            f"{place.images} holds no images; expected files such as a.png, and a mask of the same name in {place.masks}."
        ]
    if not found.images and not found.bare_masks:
        held = (
            Counter(path.suffix.lower() or "no suffix" for path in below(place.masks)) if place.masks.is_dir() else {}
        )
        there = f"holds {', '.join(f'{n} {kind} files' for kind, n in list(held.items())[:3])} and" if held else "has"
        return [
            f"{place.masks} {there} no masks for the images in {place.images}: a mask is an image with a label at every pixel."
        ]
    wrong = [f"{first} and {second} have one name; which is it? Rename one." for first, second in found.twice]
    for path in found.bare_images:
        expected = place.masks / path.relative_to(place.images).with_suffix("")
        wrong.append(f"The image {path} has no mask; expected {expected} with a suffix such as .png.")
    for path in found.bare_masks:
        expected = place.images / path.relative_to(place.masks).with_suffix("")
        wrong.append(f"The mask {path} has no image; expected {expected} with a suffix such as .png.")
    return wrong


def _palette(own: Palette, labels: LabelMap, classes: int) -> Palette:
    """A colour for each class, where the masks had some: of a palette, or the colours that were mapped; () otherwise."""
    table = {n: key for key, n in reversed(labels.entries)}
    if labels.colours:
        keys = [table.get(n, "") for n in range(classes)]
        whole = all(key.startswith("#") for key in keys)
        return tuple((int(k[1:3], 16), int(k[3:5], 16), int(k[5:7], 16)) for k in keys) if whole else ()
    at = [code_of(table[n]) if n in table else n for n in range(classes)] if own else []
    return tuple(own[n] for n in at) if at and min(at) >= 0 and max(at) < len(own) else ()
