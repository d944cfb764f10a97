"""Reads a CSV of `file,label`: classes by name, or several per image, and perhaps a column, or a table, for each part."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from oche.data.entries import Fate
from oche.data.problems import refuse
from oche.data.reading.columns import Columns, Sheet, columns_of, plain, sheet_of
from oche.data.reading.files import images_below, skipped_for
from oche.data.reading.folders import folder_fates, of_names, refuse_differences
from oche.data.reading.found import ALIASES, Parts, Wish
from oche.data.reading.labels import beside
from oche.data.reading.naming import part_of, stripped
from oche.data.reading.several import SURE, of_several, separator
from oche.errors import UserError

NAMES = tuple(
    f"{name}.{end}" for name in ("labels", "train", "train_labels", "annotations", "metadata") for end in ("csv", "tsv")
)
"""What a table may be called in a folder without class folders."""

SUFFIXES = ("_labels", "_annotations", "_metadata")
"""What may follow a part in the name of its table."""


def tables_in(root: Path) -> dict[str, Path]:
    """Part -> CSV or TSV of a folder: one of `NAMES`, or the only one; or train.csv, val.csv and test.csv. {} without."""
    found = sorted(p for end in ("csv", "tsv") for p in root.glob(f"*.{end}") if not p.name.startswith("."))
    by_part = {part: path for path in found if (part := part_of(stripped(path.stem, SUFFIXES)))}
    if "train" in by_part and len(by_part) > 1:
        return {part: by_part[part] for part in ALIASES if part in by_part}
    named = [path for name in NAMES for path in found if path.name.lower() == name]
    only = named[:1] or (found if len(found) == 1 else [])
    return {"train": only[0]} if only else {}


def read_table(path: Path, wish: Wish) -> Parts:
    """Images named in a CSV, relative to it, with a label each; a column split (or part, set, is_valid) divides them.

    The columns are found by their names and by what they hold (`columns_of`); columns of 0 and 1 are a label each. A file may lack its
    suffix. Labels such as "cat|dog" are several (`separator`); where that is asked for, an image may have none.

    Raises:
        UserError: no such columns, files that are not there or are named twice, labels that are missing.
    """
    return read_tables({"train": path}, wish)


def read_tables(tables: Mapping[str, Path], wish: Wish) -> Parts:
    """The same of a table per part, all in one folder; one of val or test without labels is left out, and said."""
    root, first = tables["train"].parent, tables["train"]
    known: dict[str, list[Path]] = {}

    def found(name: str) -> Path | None:
        return _found(root, name, known)

    entries, left, used = _Entries(), list[Fate](), []
    known_labels: tuple[str, ...] = ()
    for part, path in tables.items():
        sheet = sheet_of(path, lambda name: found(name) is not None, 2 if part == "train" else 1)
        if part != "train" and sheet.titled and not set(known_labels) & set(map(plain, sheet.head)):
            left.append(Fate("skipped", "a table of images without labels", 1, (str(path),)))
            continue
        columns = columns_of(sheet, lambda name: found(name) is not None)
        known_labels = known_labels or tuple(plain(sheet.head[n]) for n in columns.labels)
        used.append(path)
        entries.add(sheet, columns, part if len(tables) > 1 else "", wish, found)
    refuse(entries.wrong)
    if "train" not in entries.found:
        raise UserError(f"{first} names no train images; expected lines such as cats/1.png,cat.")
    told = folder_fates(
        root, {f"{part} images": paths for part, (paths, _) in entries.found.items()} | {"tables": used}
    )
    if entries.unread:
        left.append(Fate("skipped", "columns of the table", len(entries.unread), tuple(entries.unread)))
    told = (*told, *left)
    name, layout = root.resolve().name, f"table {', '.join(path.name for path in used)}"
    labels = [label for _, names in entries.found.values() for label in names]
    sign = SURE[0] if entries.several else separator(labels, wish, first)
    if sign is not None:
        return of_several(name, entries.found, sign, wish, told, layout)
    _refuse_numbers(labels, first, wish)
    if wish.labels is None and wish.contract is None:
        wish = replace(wish, labels=beside(root)[0])
    notes = refuse_differences(
        {part: sorted(set(names)) for part, (_, names) in entries.found.items()},
        {part: tables.get(part, first) for part in entries.found},
        wish,
    )
    return of_names(name, entries.found, wish, notes, told, layout)


@dataclass
class _Entries:
    """Files and labels by part, from one table or several, and the sentences about what is wrong."""

    found: dict[str, tuple[list[Path], list[str]]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    several: bool = False
    _lines: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def add(self, sheet: Sheet, columns: Columns, part: str, wish: Wish, found: Callable[[str], Path | None]) -> None:
        """Takes over the lines of a table; `part`, if not empty, is the part of all of them."""
        several = len(columns.labels) > 1
        may_lack = several or wish.task == "multilabel"
        needed = max(columns.file, columns.part or 0, 0 if several else columns.labels[0])
        counts = set()
        for number, row in sheet.rows:
            if len(row) <= needed:
                said = f"{len(row)} columns where the head has {len(sheet.head)}."
                self.wrong.append(f"{sheet.path}, line {number}: {said}")
                continue
            name, label = row[columns.file].strip(), columns.label_of(sheet.head, row, SURE[0])
            counts.add(len(label.split(SURE[0])) if label else 0)
            place, of = found(name), part or columns.part_of(row)
            if said := self._wrong(sheet.path, number, place, label or may_lack, of):
                self.wrong.append(f"{sheet.path}, line {number}: {said.replace('{name}', name or 'the file')}")
            elif place is not None and of is not None:
                paths, names = self.found.setdefault(of, ([], []))
                paths.append(place)
                names.append(label)
        self.several = self.several or (several and counts != {1})
        self.unread += [name for name in columns.left if name not in self.unread]

    def _wrong(self, path: Path, number: int, place: Path | None, labelled: object, part: str | None) -> str:
        """What is wrong with a line, where `{name}` stands for its file; "" for nothing."""
        if part is None:
            return "{name} is of no part; expected train, val or test, or 0 and 1 where a column marks a part."
        if not labelled:
            return (
                "{name} has no label; give it one or remove the line. Where images have several labels or none, say "
                "`--set data.task=multilabel`."
            )
        if place is None:
            return f"there is no file {{name}} below {path.parent}."
        if reason := skipped_for(place):
            return f"{{name}} cannot be read: {reason}."
        before = self._lines.setdefault(os.path.normpath(place), (path, number))
        if before == (path, number):
            return ""
        if before[0] == path:
            return f"{{name}} stands in line {before[1]} already; one line per image, several labels divided by |."
        return f"{{name}} stands in {before[0].name}, line {before[1]}, already; an image belongs to one part."


def _refuse_numbers(labels: Sequence[str], path: Path, wish: Wish) -> None:
    """Raises UserError where labels are measured numbers, which are no classes."""
    if wish.task == "classify" or wish.contract is not None:
        return
    different = set(labels)
    broken = [label for label in sorted(different) if not _number(label).is_integer()]
    if len(broken) > len(different) / 2 and len(different) > len(labels) / 2:
        raise UserError(
            f"{path}: the labels are numbers, such as {broken[0]}, and no classes: to regress, give an .npz file of images x and numbers "
            "y; if they are classes after all, say `--task classify`."
        )


def _number(label: str) -> float:
    """The finite number that a label is; 0 for one that is none."""
    try:
        value = float(label)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _found(root: Path, name: str, known: dict[str, list[Path]]) -> Path | None:
    """The file of that name, with a suffix if it has none."""
    if not name:
        return None
    for given in dict.fromkeys((name, name.replace("\\", "/"))):  # as Windows writes them
        try:
            if (root / given).is_file():
                return root / given
        except OSError:  # a text too long for a name
            return None
    if not known:
        for image in images_below(root):
            known.setdefault(image.name, []).append(image)
            known.setdefault(image.stem, []).append(image)
    places = known.get(Path(name.replace("\\", "/")).name, [])
    return places[0] if len(places) == 1 else None
