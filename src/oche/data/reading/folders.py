"""Reads folders of image files: one folder per class, or train/, val/ and test/ with one folder per class each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from oche.data.entries import Fate, fates
from oche.data.problems import refuse
from oche.data.reading.classes import classes_of, numbered
from oche.data.reading.files import below, folders_in, images_below, skipped_for
from oche.data.reading.found import ALIASES, Filled, Parts, Wish
from oche.data.reading.labels import FILE, LINES, beside
from oche.data.reading.listing import filled, of_files
from oche.data.reading.naming import divides, part_of, part_within
from oche.data.reading.pairing import refuse_pairs
from oche.data.reading.texts import spelled
from oche.errors import UserError

DEEPEST = 8
"""Folders with one folder in each that are looked through for those of classes."""


def read_folder(root: Path, wish: Wish) -> Parts:
    """Images below `root`; classes are named by their folders and numbered in the order of the sorted names.

    Folders called train, val and test, or the like in any case (`ALIASES`), are parts; otherwise every folder is a class. Below a class
    folder, images may lie at any depth. Grey files stay grey unless colour ones are among them. Images are turned as their EXIF tag
    says, then brought to one size (`pixels`). What is not read is counted and named in the ledger.

    Raises:
        UserError: no class folders, folders that look like images and masks, a class without images, parts of different classes,
            unreadable images.
    """
    folders = part_folders(root)
    found = {part: _class_names(folder) for part, folder in folders.items()}
    if folders == {"train": root} and len(found["train"]) == 1 and folders_in(only := root / found["train"][0]):
        raise UserError(
            f"{root} holds one folder only, which would be one class: give {only} if the folders in it are the classes, or the parts."
        )
    if wish.task != "classify":
        for folder in folders.values():
            refuse_pairs(folder)
            _refuse_pieces(folder, found[next(part for part in folders if folders[part] == folder)])
    wanted, listed = beside(root)
    wish = wish if wish.labels or wish.contract else replace(wish, labels=wanted)
    missing = refuse_differences(found, folders, wish)
    files: dict[str, tuple[list[Path], list[str]]] = {}
    empty = []
    for part, folder in folders.items():
        paths, names = files.setdefault(part, ([], []))
        for name in found[part]:
            images = images_below(folder / name)
            if not images:
                empty.append(_without_images(folder / name))
            paths += images
            names += [name] * len(images)
    refuse(empty)
    told = folder_fates(root, {f"{part} images": paths for part, (paths, _) in files.items()})
    if listed:
        told = tuple(fate for fate in told if fate.what != "names of classes" or wanted)
        missing += ("The names in classes.txt were not used: classes are called as their folders are.",)
    return of_names(root.resolve().name, files, wish, missing, told, "folders of classes")


def _refuse_pieces(root: Path, names: Sequence[str]) -> None:
    """Raises UserError where folders are pieces of a set, by their names or for they hold the same class folders, and no classes."""
    if sum(map(divides, names)) == len(names) > 1:
        raise UserError(
            f"{root} holds the folders {', '.join(names[:4])}, which are called like parts of a set, not like classes: call them train, "
            "val and test, or give one of them; if they are classes after all, say `--task classify`."
        )
    inside = [frozenset(_inner_names(root / name)) for name in names]
    if len(names) > 1 and len(inside[0]) > 1 and len(set(inside)) == 1:
        shown = ", ".join(sorted(inside[0])[:4])
        raise UserError(
            f"{root} holds the folders {', '.join(names[:4])}, and each of them the same folders {shown}: which are the classes? If it is "
            "the inner ones, call the outer ones train, val and test, or join them; if it is the outer ones, say `--task classify`."
        )


def _inner_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, or in the only one in it, that hold images."""
    inner = folders_in(folder)
    for _ in range(DEEPEST):
        inner = folders_in(inner[0]) if len(inner) == 1 else inner
    return [one.name for one in inner if images_below(one)]


def _without_images(folder: Path) -> str:
    """The sentence about a class folder without images, and what it holds instead."""
    held = Counter(f"of {path.suffix}" if path.suffix else "without suffix" for path in below(folder) if path.is_file())
    if not held:
        return f"The class folder {folder} holds no images; add some, or remove the folder."
    shown = ", ".join(f"{count} {kind}" for kind, count in held.most_common(3))
    return f"The class folder {folder} holds no images, but files ({shown}): save images as PNG, TIFF or .npy, with that suffix."


def of_names(
    name: str,
    files: Mapping[str, tuple[Sequence[Path], Sequence[str]]],
    wish: Wish,
    notes: tuple[str, ...] = (),
    told: tuple[Fate, ...] = (),
    layout: str = "",
) -> Parts:
    """Parts from part -> (files, names of their classes)."""
    keys = {part: np.array(list(map(spelled, names)), dtype=np.str_) for part, (_, names) in files.items()}
    classes, labels, more = classes_of(keys, wish, (), name)
    listings, targets = {}, {}
    for part, (paths, _) in files.items():
        numbers = numbered(keys[part], classes, labels, f"{name} ({part} labels)")
        kept = (numbers >= 0).nonzero().flatten()
        targets[part] = numbers[kept]
        listings[part] = of_files([paths[i] for i in kept.tolist()], targets[part].tolist(), alpha=wish.channels == 4)

    def fill(train: Tensor) -> Filled:
        return filled(listings, name, wish, classes=classes, train=train)

    return Parts(name, targets, fill, classes, notes=notes + more, labels=labels, fates=told, layout=layout)


def part_folders(root: Path) -> dict[str, Path]:
    """Part -> folder; {"train": root} where there are class folders only. Raises UserError for a part without train, or twice."""
    found: dict[str, Path] = {}
    for folder in folders_in(root):
        if part := part_of(folder.name):
            if part in found:
                raise UserError(
                    f"{root} has both {found[part].name} and {folder.name} for {part}; which is it? Rename one."
                )
            found[part] = folder
    found = found or _parts_within(root)
    if found and "train" not in found:
        raise UserError(
            f"{root} has a folder for {min(found)} but none called train; add train/ beside it, or rename the folder if it is a class."
        )
    return {part: _inner(found[part]) for part in ALIASES if part in found} or {"train": root}


def _parts_within(root: Path) -> dict[str, Path]:
    """Part -> folder where names hold a part, such as seg_train and seg_test, and are equal but for it; {} without train or another.

    Raises:
        UserError: several such groups.
    """
    groups: dict[str, dict[str, Path]] = {}
    for folder in folders_in(root):
        if within := part_within(folder.name):
            part, rest = within
            groups.setdefault(rest, {}).setdefault(part, folder)
    whole = [group for group in groups.values() if "train" in group and len(group) > 1]
    if len(whole) > 1:
        raise UserError(
            f"{root} holds several folders of train images, {' and '.join(group['train'].name for group in whole)}; which is it? Give a "
            "folder that holds one of them and its val or test."
        )
    return whole[0] if whole else {}


def _inner(folder: Path) -> Path:
    """The folder, or the only one in it where that has the same name, as archives unpacked into a folder leave it."""
    inner = folders_in(folder)
    return inner[0] if len(inner) == 1 and inner[0].name == folder.name and folders_in(inner[0]) else folder


def refuse_differences(found: Mapping[str, Sequence[str]], folders: Mapping[str, Path], wish: Wish) -> tuple[str, ...]:
    """Notes about classes that val or test lack. Raises UserError for those, unless they are allowed, and for classes train lacks."""
    known = list(map(spelled, found["train"]))
    if wish.contract:
        known = list(wish.contract.labels.table) or list(wish.contract.classes)
    wrong, notes = [], []
    for part, given in found.items():
        names = list(map(spelled, given))
        more, fewer = sorted(set(names) - set(known)), sorted(set(known) - set(names))
        if more and wish.contract:
            wrong.append(
                f"{folders[part]} has the class {more[0]!r}, which the network was not trained on; leave it out."
            )
        elif more and not wish.labels:
            wrong.append(
                f"{folders[part]} and {folders['train']} differ in the class {more[0]!r}; all parts need the same classes, those of train."
            )
        if fewer and part != "train":
            said = f"{folders[part]} holds no image of the class {', '.join(map(repr, fewer[:8]))}"
            if wish.missing or wish.contract:
                notes.append(f"{said}.")
            else:
                wrong.append(
                    f"{said}, so {folders[part]} and {folders['train']} differ in the class {fewer[0]!r}; "
                    "`--set data.missing=true` allows that."
                )
    refuse(wrong)
    return tuple(notes)


def folder_fates(root: Path, used: Mapping[str, Sequence[Path]]) -> tuple[Fate, ...]:
    """What became of every file below `root`: used, as what, or skipped, and why."""
    told = [Fate("used", what, len(paths), tuple(map(str, paths[:3]))) for what, paths in used.items()]
    named = [root / name for name in (*LINES, FILE) if (root / name).is_file()]
    told += [Fate("used", "names of classes", len(named), tuple(map(str, named)))] if named else []
    taken = {path for paths in used.values() for path in paths} | set(named)
    left = [(str(path), _reason(path)) for path in below(root) if path not in taken]
    return (*told, *fates("skipped", left))


def _reason(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "broken link"
    if path.is_dir():
        return "hidden folder"
    return skipped_for(path) or "an image that no class or part holds"


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(below.name for below in folders_in(folder))
    if not names:
        raise UserError(
            f"{folder} holds no folders; expected one folder of images for each class, images/ and masks/, or a labels.csv."
        )
    if twice := [name for name, count in Counter(map(spelled, names)).items() if count > 1]:
        raise UserError(
            f"{folder} holds two folders called {twice[0]!r}, one of them in another encoding: rename or join them."
        )
    return names
