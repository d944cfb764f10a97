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
from oche.data.reading.several import SURE, of_several, separator
from oche.data.reading.texts import text_of
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
ZERO, ONE = ("0", "0.0"), ("1", "1.0")
NAMES = tuple(
    f"{name}.{end}" for name in ("labels", "train", "train_labels", "annotations", "metadata") for end in ("csv", "tsv")
)
"""What a table may be called in a folder without class folders."""


def table_in(root: Path) -> Path | None:
    """The CSV or TSV of a folder: one of `NAMES`, or the only one."""
    found = sorted(p for end in ("csv", "tsv") for p in root.glob(f"*.{end}") if not p.name.startswith("."))
    named = [path for name in NAMES for path in found if path.name.lower() == name]
    return named[0] if named else found[0] if len(found) == 1 else None


def read_table(path: Path, wish: Wish) -> Parts:
    """Images named in a CSV, relative to it, with a label each; a column split (or part, set) divides them into train, val and test.

    The columns are found by their names, or else are the first two; columns of 0 and 1 are a label each. A file may lack its suffix.
    Labels such as "cat|dog" are several (`separator`); where that is asked for, an image may have none.

    Raises:
        UserError: no such columns, files that are not there or are named twice, labels that are missing.
    """
    head, rows = _rows(path)
    head, rows, columns = _gathered(path, head, rows)
    files, labels, parts = _column(head, FILES, 0), _column(head, LABELS, 1), _column(head, PARTS, None)
    assert files is not None
    assert labels is not None
    may_lack = columns or wish.task == "multilabel"
    named: dict[Path, int] = {}
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
        elif not label and not may_lack:
            wrong.append(f"{path}, line {number}: {name} has no label.")
        elif place is None:
            wrong.append(f"{path}, line {number}: there is no file {name} below {path.parent}.")
        elif reason := skipped_for(place):
            wrong.append(f"{path}, line {number}: {name} cannot be read: {reason}.")
        elif named.setdefault(place, number) != number:
            wrong.append(
                f"{path}, line {number}: {name} stands in line {named[place]} already; one line per image, several labels divided by |."
            )
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
    sign = SURE[0] if columns else separator([label for _, names in found.values() for label in names], wish, path)
    if sign is not None:
        return of_several(name, found, sign, wish, told, layout)
    notes = refuse_differences(
        {part: sorted(set(names)) for part, (_, names) in found.items()}, dict.fromkeys(found, path), wish
    )
    return of_names(name, found, wish, notes, told, layout)


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The head, and the other lines with their numbers."""
    text = text_of(path)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        lines = [(n, row) for n, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if any(row)]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {error}; expected lines such as cats/1.png,cat.") from None
    if not lines or len(lines[0][1]) < 2:
        raise UserError(f"{path} has no two columns; expected lines such as cats/1.png,cat.")
    head = [name.strip() for name in lines[0][1]]
    titled = any(_plain(name) in FILES | LABELS for name in head)
    return (head, lines[1:]) if titled else ([f"column {n + 1}" for n in range(len(head))], lines)


def _gathered(
    path: Path, head: list[str], rows: list[tuple[int, list[str]]]
) -> tuple[list[str], list[tuple[int, list[str]]], bool]:
    """Head and lines in which columns of 0 and 1 are one column of names, divided by |; True if an image has none or several of them.

    Raises:
        UserError: more columns than one that may hold the labels.
    """
    file, part = _column(head, FILES, 0), _column(head, PARTS, None)
    left = [n for n in range(len(head)) if n not in (file, part)]
    whole = [(number, row) for number, row in rows if len(row) >= len(head)]
    if _column(head, LABELS, None) is not None or len(left) < 2 or not whole or _plain(head[file or 0]) not in FILES:
        return head, rows, False
    if any(row[n].strip() not in ("", *ZERO, *ONE) for _, row in whole for n in left):
        raise UserError(
            f"{path} has the columns {', '.join(head)}, and none of them is called label, class or the like: call that of the labels so. "
            "Of several columns of 0 and 1 each is a label."
        )
    gathered = []
    for number, row in rows:
        kept = [row[n] for n in (file, part) if n is not None and n < len(row)]
        gathered.append(
            (number, [*kept, SURE[0].join(head[n] for n in left if n < len(row) and row[n].strip() in ONE)])
        )
    counts = [sum(row[n].strip() in ONE for n in left) for _, row in whole]
    return [head[n] for n in (file, part) if n is not None] + ["label"], gathered, set(counts) != {1}


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_")


def _column(head: Sequence[str], names: frozenset[str], otherwise: int | None) -> int | None:
    return next((n for n, name in enumerate(head) if _plain(name) in names), otherwise)


def _found(root: Path, name: str, known: dict[str, list[Path]]) -> Path | None:
    """The file of that name, with a suffix if it has none."""
    path = root / name
    if not path.is_file() and "\\" in name:  # as Windows writes them
        name = name.replace("\\", "/")
        path = root / name
    if path.is_file():
        return path
    if not known:
        for image in images_below(root):
            known.setdefault(image.name, []).append(image)
            known.setdefault(image.stem, []).append(image)
    places = known.get(Path(name).name, [])
    return places[0] if len(places) == 1 else None
