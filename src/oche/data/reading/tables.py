"""Reads a CSV of `file,label`: classes by name, or several per image, and perhaps a column for the part."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from oche.data.problems import refuse
from oche.data.reading.files import images_below, skipped_for
from oche.data.reading.folders import folder_fates, of_names, refuse_differences
from oche.data.reading.found import Parts, Wish
from oche.data.reading.naming import part_of
from oche.data.reading.several import of_several, separator
from oche.errors import UserError

FILES = frozenset((
    "file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_id", "image_path",
    "image_name", "img", "id", "name",
))  # fmt: skip
LABELS = frozenset((
    "label", "labels", "class", "classes", "class_name", "classname", "target", "category", "categories", "tags",
    "species", "diagnosis",
))  # fmt: skip
PARTS = frozenset((
    "split", "part", "set", "subset", "partition", "fold",
))  # fmt: skip
NAMES = ("labels.csv", "train.csv", "train_labels.csv", "annotations.csv", "metadata.csv")
"""What a CSV may be called in a folder without class folders."""


def table_in(root: Path) -> Path | None:
    """The CSV of a folder: one of `NAMES`, or the only one."""
    found = sorted(path for path in root.glob("*.csv") if not path.name.startswith("."))
    named = [path for name in NAMES for path in found if path.name.lower() == name]
    return named[0] if named else found[0] if len(found) == 1 else None


def read_table(path: Path, wish: Wish) -> Parts:
    """Images named in a CSV, relative to it, with a label each; a column split (or part, set) divides them into train, val and test.

    The columns are found by their names, or else are the first two. A file may lack its suffix. Labels such as "cat|dog" are several
    (`separator`); where that is asked for, an image may have none.

    Raises:
        UserError: no such columns, files that are not there, labels that are missing.
    """
    head, rows = _rows(path)
    files, labels, parts = _column(head, FILES, 0), _column(head, LABELS, 1), _column(head, PARTS, None)
    assert files is not None
    assert labels is not None
    known: dict[str, list[Path]] = {}
    found: dict[str, tuple[list[Path], list[str]]] = {}
    wrong = []
    for number, row in rows:
        if len(row) <= max(files, labels, parts or 0):
            wrong.append(f"{path}, line {number}: {len(row)} columns where the head has {len(head)}.")
            continue
        name, label = row[files].strip(), row[labels].strip()
        part = "train" if parts is None else part_of(row[parts].strip())
        place = _found(path.parent, name, known)
        if part is None:
            wrong.append(f"{path}, line {number}: {row[parts or 0]!r} is no part; expected train, val or test.")
        elif not label and wish.task != "multilabel":
            wrong.append(f"{path}, line {number}: {name} has no label.")
        elif place is None:
            wrong.append(f"{path}, line {number}: there is no file {name} below {path.parent}.")
        elif reason := skipped_for(place):
            wrong.append(f"{path}, line {number}: {name} cannot be read: {reason}.")
        else:
            paths, names = found.setdefault(part, ([], []))
            paths.append(place)
            names.append(label)
    refuse(wrong)
    if "train" not in found:
        raise UserError(f"{path} names no train images; expected lines such as cats/1.png,cat.")
    told = folder_fates(
        path.parent, {f"{part} images": paths for part, (paths, _) in found.items()} | {"table": [path]}
    )
    name, layout = path.parent.resolve().name, f"table {path.name}"
    sign = separator([label for _, names in found.values() for label in names], wish, path)
    if sign is not None:
        return of_several(name, found, sign, wish, told, layout)
    notes = refuse_differences(
        {part: sorted(set(names)) for part, (_, names) in found.items()}, dict.fromkeys(found, path), wish
    )
    return of_names(name, found, wish, notes, told, layout)


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The head, and the other lines with their numbers."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text("latin-1")
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        lines = [(n, row) for n, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if any(row)]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {error}; expected lines such as cats/1.png,cat.") from None
    if not lines or len(lines[0][1]) < 2:
        raise UserError(f"{path} has no two columns; expected lines such as cats/1.png,cat.")
    head = [name.strip().lower() for name in lines[0][1]]
    titled = any(name in FILES | LABELS for name in head)
    return (head, lines[1:]) if titled else ([f"column {n + 1}" for n in range(len(head))], lines)


def _column(head: Sequence[str], names: frozenset[str], otherwise: int | None) -> int | None:
    return next((n for n, name in enumerate(head) if name.replace(" ", "_") in names), otherwise)


def _found(root: Path, name: str, known: dict[str, list[Path]]) -> Path | None:
    """The file of that name, with a suffix if it has none."""
    path = root / name
    if path.is_file():
        return path
    if not known:
        for image in images_below(root):
            known.setdefault(image.name, []).append(image)
            known.setdefault(image.stem, []).append(image)
    places = known.get(Path(name).name, [])
    return places[0] if len(places) == 1 else None
