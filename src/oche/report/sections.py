"""Further sections of a report: how well each class is told, what became of the data, and what to cite."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files

from oche.report.figures import Record
from oche.run import Run

MOST = 40
"""Classes that are listed, the worst first, and pairs of them."""

READABLE = 20
"""Classes up to which a confusion matrix can be read as a picture."""

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


def class_scores(records: Sequence[Record]) -> Table | None:
    """Per class, from the last confusion matrix of images: how many of its images are found, and how many so named are right.

    The worst come first; None without a matrix, and for masks, whose classes have their IoU.
    """
    found = [r for r in records if r.get("kind") == "confusion"]
    masks = any(r.get("kind") == "class" for r in records)
    matrix, classes = (found[-1].get("matrix"), found[-1].get("classes")) if found else (None, None)
    if masks or not isinstance(matrix, list) or not isinstance(classes, list) or len(matrix) != len(classes):
        return None
    named = [sum(column) for column in zip(*matrix, strict=True)]
    rows = []
    for n, row in enumerate(matrix):
        total, right = sum(row), row[n]
        mistaken = max((k for k in range(len(row)) if k != n), key=lambda k: row[k], default=n)
        taken = f"{classes[mistaken]} ({row[mistaken]:g})" if mistaken != n and row[mistaken] else ""
        recall, precision = right / total if total else None, right / named[n] if named[n] else None
        rows.append(
            (
                2.0 if recall is None else recall,
                [str(classes[n]), f"{total:g}", _share(recall), _share(precision), taken],
            )
        )
    rows.sort(key=lambda pair: pair[0])
    return ["class", "test images", "found %", "right where named %", "most often taken for"], [
        cells for _, cells in rows[:MOST]
    ]


def confused(records: Sequence[Record]) -> Table | None:
    """The pairs of classes that are most often taken for one another, from the last confusion matrix of more than `READABLE` classes."""
    found = [r for r in records if r.get("kind") == "confusion"]
    matrix, classes = (found[-1].get("matrix"), found[-1].get("classes")) if found else (None, None)
    if not isinstance(matrix, list) or not isinstance(classes, list) or not READABLE < len(matrix) == len(classes):
        return None
    pairs = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count]
    worst = heapq.nsmallest(MOST, pairs, key=lambda pair: (-pair[0], *pair[1:]))
    totals = [sum(row) for row in matrix]
    rows = [[str(classes[i]), str(classes[j]), f"{count:g}", _share(count / totals[i])] for count, i, j in worst]
    return (["is", "taken for", "how often", "% of the class"], rows) if rows else None


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def data_facts(run: Run) -> list[tuple[str, str]]:
    """What was found in the data and what became of it, from the ledger in the run's folder; empty without one."""
    try:
        table = json.loads(run.read("ledger.json")) if run.has("ledger.json") else {}
    except ValueError:
        return []
    if not isinstance(table, dict):
        return []
    rows = [("layout", str(table["layout"]))] if table.get("layout") else []
    fates = table.get("fates")
    for fate in fates if isinstance(fates, list) else ():
        if isinstance(fate, dict):
            rows.append((str(fate.get("became", "")), f"{fate.get('count', '')} {fate.get('what', '')}"))
    notes = table.get("notes")
    return rows + [("note", str(note)) for note in (notes if isinstance(notes, list) else ())]


def front_cells(run: Run) -> list[Record]:
    """The cells of a search that asks for several things at once which no other beats in all of them; empty without such a file."""
    try:
        table = json.loads(run.read(Run.FRONT)) if run.has(Run.FRONT) else {}
    except ValueError:
        return []
    cells = table.get("cells") if isinstance(table, dict) else None
    return [{**cell, "kind": "front"} for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []


def citations(config: Mapping[str, object]) -> str:
    """The BibTeX entries of the papers that the run's method rests on, "" where it names none."""
    text = files("oche").joinpath("methods/papers.bib").read_text(encoding="utf-8")  # its package would import torch
    entries = {
        key: entry for entry, key in re.findall(r"^(@\w+\{([^,]+),.*?^\})", text, flags=re.MULTILINE | re.DOTALL)
    }
    return "\n\n".join(entries[key] for key in dict.fromkeys(_papers(config.get("method"))) if key in entries)


def _papers(table: object) -> Iterator[str]:
    if isinstance(table, dict):
        listed = table.get("papers")
        yield from map(str, listed if isinstance(listed, list) else ())
        for value in table.values():
            yield from _papers(value)
