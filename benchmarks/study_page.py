"""Writes a page of results from one or more studies: claims, tables, pictures.

    python benchmarks/study_page.py runs/single_stage_camvid runs/single_stage_cells --out docs/results/single_stage.md

All of it is computed from the studies' files, but for the reading: what stands between the two `reading` comments of an existing page is
kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from results_page import READING, arms, summary

from oche.bench.render import table_lines, trial_table
from oche.bench.result import BenchResult, read
from oche.errors import UserError
from oche.study.claims import judged
from oche.study.pictures import figures as pictures
from oche.study.runner import notes, study_of
from oche.study.tables import sheets


def main() -> None:
    """Reads the command line, writes the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="folders that `oche study` made")
    parser.add_argument("--out", type=Path, required=True, help="the .md to write; figures go into figures/ beside it")
    parser.add_argument("--title", default="Single-stage search: discretisation, entropy, splits")
    given = parser.parse_args()
    try:
        results = [read(path) for path in given.studies]
        kept = READING.search(given.out.read_text()) if given.out.is_file() else None
        text = page(given.title, results, kept.group(1) if kept else "Not written yet.\n", given.out.parent / "figures")
    except UserError as error:
        parser.error(str(error))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text)
    print(given.out)


def page(title: str, results: Sequence[BenchResult], reading: str, figures: Path) -> str:
    """The page as Markdown; writes each picture into `figures`."""
    lines = [f"# {title}", "", f"<!-- reading -->\n{reading}<!-- /reading -->", ""]
    figures.mkdir(parents=True, exist_ok=True)
    for result in results:
        study, name = study_of(result.folder), result.matrix.name
        command = [line.replace("oche bench", f"oche study {study.name}") for line in summary(result)]
        lines += [f"## {name}", "", *command, *(f"- {note}" for note in notes(result)), *arms(result), ""]
        headings, rows = trial_table(result)
        for heading, names, body in (*judged(result, study.roles), *sheets(result), ("Every trial", headings, rows)):
            lines += [f"### {heading}", "", *table_lines(names, body), ""]
        for picture, data in pictures(result).items():
            (figures / f"{name}_{picture}.svg").write_bytes(data)
            lines += [f"![{picture}](figures/{name}_{picture}.svg)"]
        lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
