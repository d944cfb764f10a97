"""Which column of a table holds the files, the labels and the parts: by its name, and by what it holds."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oche.data.reading.naming import part_of
from oche.data.reading.texts import text_of
from oche.errors import UserError

FILES = (
    "file", "filename", "file_name", "filepath", "file_path", "path", "image_path", "image_file", "image_filename", "img_path", "img_file",
    "image_name", "img_name", "fname", "image", "img", "picture", "photo", "image_id", "img_id", "images", "files", "id", "name",
)  # fmt: skip
"""What a column of files is called, the surest first."""

LABELS = (
    "label", "labels", "class", "class_name", "classname", "class_label", "label_name", "labelname", "target", "category", "category_name",
    "classes", "categories", "tags", "species", "breed", "diagnosis", "class_id", "label_id", "category_id", "y",
)  # fmt: skip
"""What a column of labels is called, the surest first."""

PARTS = ("split", "part", "set", "subset", "partition", "fold")
FLAGS = {
    f"is_{alias}": part for alias, part in (("train", "train"), ("valid", "val"), ("val", "val"), ("test", "test"))
}
"""Columns that are true for images of a part; of `is_train`, false means test."""

NUMBERED = ("", "index", "unnamed:_0", "#")
"""Columns that number the lines."""

TRUE, FALSE = frozenset(("1", "1.0", "true", "yes")), frozenset(("", "0", "0.0", "false", "no"))
LOOKED = 20
"""Lines whose values are looked at to tell files from other columns."""


@dataclass(frozen=True)
class Sheet:
    """A table's columns by name and its other lines with their numbers; `titled` is False where the first line has values, too."""

    path: Path
    head: tuple[str, ...]
    rows: tuple[tuple[int, list[str]], ...]
    titled: bool


@dataclass(frozen=True)
class Columns:
    """The numbers of the columns that hold files, labels and parts.

    `labels` are several where each is a label of its own, of 0 and 1. `flag`: the part whose images the column of parts marks; "" where
    it names them. `left` are the names of the columns that nothing reads.
    """

    file: int
    labels: tuple[int, ...]
    part: int | None = None
    flag: str = ""
    left: tuple[str, ...] = ()

    def label_of(self, head: Sequence[str], row: Sequence[str], sign: str) -> str:
        """An image's label; the names of several, divided by the sign."""
        if len(self.labels) == 1:
            return row[self.labels[0]].strip()
        return sign.join(head[n] for n in self.labels if n < len(row) and _word(row[n]) in TRUE)

    def part_of(self, row: Sequence[str]) -> str | None:
        """An image's part; None where the table says what is none."""
        if self.part is None:
            return "train"
        value = _word(row[self.part])
        if not self.flag:
            return part_of(value)
        if value not in TRUE | FALSE:
            return None
        return self.flag if value in TRUE else "test" if self.flag == "train" else "train"


def sheet_of(path: Path, is_file: Callable[[str], bool], least: int = 2) -> Sheet:
    """The lines of a table: commas, semicolons, tabs or bars between the columns, with a head or without.

    Lines of remarks before the head, which begin with #, and Excel's `sep=` are left out.

    Raises:
        UserError: it has fewer columns than `least`, or a quote that is not closed in its line.
    """
    text = text_of(path)
    lines, skipped, sign = text.splitlines(), 0, ""
    while lines and (not lines[0].strip() or lines[0].startswith("#") or re.fullmatch(r'"?sep=."?', lines[0].strip())):
        found = re.fullmatch(r'"?sep=(.)"?', lines[0].rstrip("\r\n"))
        sign = found[1] if found else sign
        lines, skipped = lines[1:], skipped + 1
    first = lines[0] if lines else ""
    delimiter = sign or max(",;\t", key=first.count)
    delimiter = delimiter if delimiter in first or "|" not in first else "|"
    rows = list(_rows(path, text, skipped, delimiter))
    if not rows or max(len(row) for _, row in rows[:LOOKED]) < least:
        raise UserError(f"{path} has no two columns; expected lines such as cats/1.png,cat.")
    head = tuple(name.strip() for name in rows[0][1])
    named = any(plain(name) in (*FILES, *LABELS, *PARTS) for name in head)
    files = [is_file(value.strip()) for value in rows[0][1]]
    later = [[is_file(value.strip()) for value in row] for _, row in rows[1:LOOKED]]
    columns = [sum(row[n] for row in later if n < len(row)) for n in range(len(head))]
    best = columns.index(max(columns))
    titled = not any(files) and (named or (columns[best] > len(later) / 2 and not files[best]))
    if titled:
        return Sheet(path, head, tuple(rows[1:]), True)
    return Sheet(path, tuple(f"column {n + 1}" for n in range(len(head))), tuple(rows), False)


def columns_of(sheet: Sheet, is_file: Callable[[str], bool]) -> Columns:
    """Which column is what: the surest name whose values are files, the surest name for labels, else the only column that is left.

    Raises:
        UserError: no column, or more than one, may hold the labels; a column of parts that names none.
    """
    names = [plain(name) for name in sheet.head]
    whole = [row for _, row in sheet.rows if len(row) >= len(names)]
    file = _files(names, whole, is_file)
    part, flag = _parts(sheet, names, whole, file)
    others = [n for n in range(len(names)) if n not in (file, part)]
    named = [n for label in LABELS for n in others if names[n] == label]
    left = [n for n in others if names[n] not in (*NUMBERED, *FILES, *FLAGS)] or others
    if named:
        labels = named[:1]
    elif len(left) == 1 or not sheet.titled:
        labels = left[:1]
    elif whole and all(_word(row[n]) in TRUE | FALSE for row in whole for n in left):
        labels = left
    else:
        labels = []
    if not labels:
        raise UserError(
            f"{sheet.path} has the columns {', '.join(sheet.head)}, and none of them is called label, class or the like: call that of the "
            "labels so. Of several columns of 0 and 1 each is a label."
        )
    unread = tuple(sheet.head[n] for n in others if n not in labels and names[n] not in NUMBERED)
    return Columns(file, tuple(labels), part, flag, unread)


def plain(name: str) -> str:
    """A column's name as it is compared: words in lower case, joined by underscores.

    >>> plain("ImageID"), plain("Class-Name"), plain("file name")
    ('image_id', 'class_name', 'file_name')
    """
    return re.sub(r"[\s-]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())).lower()


def _rows(path: Path, text: str, skipped: int, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of all lines that are not empty, but for the first `skipped`."""
    found, begun = [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            line, begun = begun + 1, reader.line_num
            if line <= skipped or not any(cell.strip() for cell in row):
                continue
            if any("\n" in cell or "\r" in cell for cell in row):
                raise UserError(
                    f"{path}, line {line}: a quote that begins there is not closed in its line; close or remove it."
                )
            found.append((line, row))
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {error}; expected lines such as cats/1.png,cat.") from None
    return found


def _files(names: Sequence[str], rows: Sequence[Sequence[str]], is_file: Callable[[str], bool]) -> int:
    """The column of files: of those that are called so, and then of all, the first whose values mostly are files."""
    called = [n for name in FILES for n in range(len(names)) if names[n] == name]
    holding = [0] * len(names)
    for row in rows[:LOOKED]:
        for n in range(len(names)):
            holding[n] += is_file(row[n].strip())
    most = len(rows[:LOOKED]) / 2
    return next((n for n in [*called, *range(len(names))] if holding[n] > most), called[0] if called else 0)


def _parts(sheet: Sheet, names: Sequence[str], rows: Sequence[Sequence[str]], file: int) -> tuple[int | None, str]:
    """The column of parts, and the part that it marks with 1; (None, "") without."""
    for n, name in enumerate(names):
        if name in PARTS and n != file:
            values = {row[n].strip() for row in rows}
            known = {value for value in values if part_of(value)}
            if known or name != PARTS[-1]:
                if not known and values:
                    raise UserError(
                        f"{sheet.path}: the column {sheet.head[n]} holds {', '.join(sorted(values)[:8])}, and no part; expected train, val "
                        "and test there, or another name for the column."
                    )
                return n, ""
    marked = [n for n, name in enumerate(names) if name in FLAGS]
    if len(marked) > 1:
        raise UserError(
            f"{sheet.path} marks parts in the columns {', '.join(sheet.head[n] for n in marked)}: give one column split of "
            "train, val and test."
        )
    return (marked[0], FLAGS[names[marked[0]]]) if marked else (None, "")


def _word(value: str) -> str:
    return value.strip().lower()
