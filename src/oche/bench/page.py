"""Writes a bench's result: results.csv, pairs.csv, results.md, figures, and report.html, which needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from oche.bench.formats import pairs_csv, to_csv
from oche.bench.pictures import pictures
from oche.bench.render import Sheet, legend, pairs, searches, sheets, to_markdown, trial_table
from oche.bench.result import BenchResult
from oche.run import Run


def write(
    result: BenchResult,
    notes: Sequence[str] = (),
    tables: Sequence[Sheet] = (),
    figures: Mapping[str, bytes] | None = None,
    command: str = "oche bench",
    pdf: bool = False,
) -> Path:
    """Writes all files of the result, with what is given at their head; returns the page's path.

    `command` writes them anew; `pdf` asks for the pictures as PDF, too.
    """
    folder, drawn = result.folder, {**(figures or {}), **pictures(result)}
    for name, data in drawn.items():
        folder.write(f"{Run.FIGURES}/{name}.svg", data)
    for name, data in pictures(result, "pdf").items() if pdf else ():
        folder.write(f"{Run.FIGURES}/{name}.pdf", data)
    folder.write(folder.CSV, to_csv(result).encode())
    folder.write(folder.PAIRS, pairs_csv(result).encode())
    folder.write(folder.MARKDOWN, to_markdown(result, notes, tables).encode())
    headings, rows = trial_table(result)
    page = _template().render(
        title=result.matrix.name,
        done=len(result.finished),
        total=len(result.finished) + len(result.missing),
        notes=[*notes, *result.notes],
        sheets=[*tables, *sheets(result), *pairs(result)],
        searches=searches(result),
        figures={name: Markup(data.decode()[data.decode().index("<svg") :]) for name, data in drawn.items()},
        legend=legend(result),
        trial_headings=headings,
        trial_rows=rows,
        settings=result.matrix.written(),
        folder=str(folder.path),
        command=command,
    )
    folder.write(Run.REPORT, page.encode())
    return folder.file(Run.REPORT)


def _template() -> Template:
    text = files("oche.bench").joinpath("bench.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)
