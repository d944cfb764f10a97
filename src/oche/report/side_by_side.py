"""Several runs on one page: their numbers as columns of one table, and their cells beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from oche.errors import UserError
from oche.report import claims
from oche.report.draw import draw
from oche.report.facts import facts, headline, limits
from oche.report.page import config_of, genotype_of, inline, state, subtitle, template
from oche.run import Run


def compared(runs: Sequence[Run]) -> str:
    """The page. Raises UserError for fewer than two runs, or where a file of one is damaged."""
    if len(runs) < 2:
        raise UserError("Runs are shown side by side from two on; `oche report RUN` shows one.")
    columns, cells, rows = [], [], dict[str, dict[int, str]]()
    for n, run in enumerate(runs):
        records, config = run.records(), config_of(run)
        columns.append({"name": str(run.path), "what": subtitle(_asked(config)), "state": state(run, records)})
        for value, what in facts(run, records, config):
            rows.setdefault(what, {}).setdefault(n, value)
        if kept := limits(records):
            rows.setdefault("limits", {})[n] = "; ".join(said for said, _ in kept)
        genotype = genotype_of(run, records)
        cells.append(
            {
                "name": str(run.path),
                "headline": headline(run, records),
                "warnings": claims.warnings(records),
                "svg": Markup(inline(f"cell{n}", draw(genotype))) if genotype is not None else "",
                "genotype": str(genotype) if genotype is not None else "",
            }
        )
    table = [(what, [values.get(n, "") for n in range(len(runs))]) for what, values in rows.items()]
    return template("side_by_side").render(columns=columns, rows=table, cells=cells)


def write_compared(runs: Sequence[Run], out: Path) -> Path:
    """Writes the page. Raises UserError as `compared`, and where the file is there and was not written by oche."""
    if out.exists() and MARK not in _beginning(out):
        raise UserError(f"{out} exists already and is none of oche's pages; choose another file, with `--out FILE`.")
    out.write_text(compared(runs), encoding="utf-8")
    return out


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(2000).decode(errors="replace")


MARK = "runs side by side · oche"
"""The title, by which a page of oche's is known."""


def _asked(config: Mapping[str, object]) -> Mapping[str, object]:
    """Method, space and data as they were asked for, where the run says so."""
    asked = config.get("request")
    if not isinstance(asked, dict):
        return config
    return {**asked, "data": Path(str(asked.get("data", ""))).name}
