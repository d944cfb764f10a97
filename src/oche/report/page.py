"""The report: one HTML page that needs no other file, told from what lies in the run directory."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from oche.errors import UserError
from oche.genotype import Genotype
from oche.report import claims, samples
from oche.report.draw import draw, draw_text
from oche.report.facts import facts, frames, headline, limits
from oche.report.figures import Comparison, Curves, Record, Strips, plots, untrained
from oche.report.interactive import spec
from oche.report.sections import citations, class_scores, confused, data_facts, front_cells
from oche.report.static import GREY, INK, LINE, PAPER, SOFT, svg
from oche.run import Run

SWAPPED = {INK: "ink", GREY: "grey", LINE: "line", SOFT: "soft", PAPER: "paper"}
"""Colours of the still pictures that follow the page's light or dark scheme."""

FILES = {
    Run.CONFIG: "every resolved value; `oche search --config` repeats the run",
    Run.LOG: "one JSON object per line: losses, metrics, memory, time",
    Run.ALPHAS: "the architecture parameters of every epoch",
    "genotypes": "the cells that each epoch would have chosen",
    Run.GENOTYPE: "the result",
    Run.FRONT: "the cells that no other beats in score and costs at once",
    "samples": "the run's own images on this page: augmented, and the worst mistakes",
    Run.STATE: "all that resuming needs",
    Run.NETWORK: "the trained network with its card",
    Run.FIGURES: "the pictures of this page as SVG",
}
Columns = Mapping[str, tuple[str, float, str]]
"""Key of a record -> (heading, factor, format)."""

EPOCH: Columns = {
    "epoch": ("epoch", 1, "g"),
    "phase": ("phase", 1, ""),
    "weight_loss": ("loss", 1, ".4f"),
    "weight_accuracy": ("accuracy %", 100, ".2f"),
    "weight_miou": ("mIoU %", 100, ".2f"),
    "weight_mean_f1": ("F1 %", 100, ".2f"),
    "weight_r2": ("R2", 1, ".3f"),
    "arch_loss": ("arch. loss", 1, ".4f"),
    "arch_accuracy": ("arch. accuracy %", 100, ".2f"),
    "arch_miou": ("arch. mIoU %", 100, ".2f"),
    "arch_mean_f1": ("arch. F1 %", 100, ".2f"),
    "arch_r2": ("arch. R2", 1, ".3f"),
    "loss": ("loss", 1, ".4f"),
    "accuracy": ("accuracy %", 100, ".2f"),
    "miou": ("mIoU %", 100, ".2f"),
    "mean_f1": ("F1 %", 100, ".2f"),
    "r2": ("R2", 1, ".3f"),
    "val_loss": ("val. loss", 1, ".4f"),
    "val_accuracy": ("val. accuracy %", 100, ".2f"),
    "val_miou": ("val. mIoU %", 100, ".2f"),
    "val_pixel_accuracy": ("val. pixel accuracy %", 100, ".2f"),
    "val_mean_f1": ("val. F1 %", 100, ".2f"),
    "val_r2": ("val. R2", 1, ".3f"),
    "entropy": ("entropy", 1, ".3f"),
    "skips": ("skips", 1, ""),
    "parameter_free": ("without weights %", 100, ".0f"),
    "table_accuracy": ("table %", 1, ".2f"),
    "discretisation_gap": ("gap %", 100, ".1f"),
    "eigenvalue": ("eigenvalue", 1, ".3g"),
    "kendall_tau": ("tau", 1, ".2f"),
    "changed": ("changed", 1, ""),
    "lr": ("learning rate", 1, ".3g"),
    "seconds": ("seconds", 1, ".1f"),
    "images_per_second": ("images/s", 1, ".0f"),
    "memory_mib": ("MiB", 1, ".0f"),
}
TRAINED: Columns = {
    "cell": ("cell", 1, ""),
    "seed": ("seed", 1, ""),
    "test_accuracy": ("test accuracy %", 100, ".2f"),
    "test_miou": ("test mIoU %", 100, ".2f"),
    "test_pixel_accuracy": ("test pixel accuracy %", 100, ".2f"),
    "test_mean_f1": ("test F1 %", 100, ".2f"),
    "test_exact_match": ("test exact match %", 100, ".2f"),
    "test_r2": ("test R2", 1, ".3f"),
    "test_rmse": ("test RMSE", 1, ".4g"),
    "test_mae": ("test MAE", 1, ".4g"),
    "parameters": ("parameters", 1, ",.0f"),
    "multiply_adds": ("multiply-adds", 1, ",.0f"),
    "memory": ("peak of activations KB", 1e-3, ",.1f"),
    "size": ("file KB", 1e-3, ",.0f"),
    "int8_size": ("int8 file KB", 1e-3, ",.0f"),
    "latency": ("latency ms", 1, ".3f"),
    "seconds": ("seconds", 1, ".0f"),
    "genotype": ("genotype", 1, ""),
}
BY_CLASS: Columns = {"class": ("class", 1, ""), "iou": ("test IoU %", 100, ".2f"), "f1": ("test F1 %", 100, ".2f")}


SEED: Columns = {
    "seed": ("seed", 1, "g"),
    "val_accuracy": ("validation accuracy %", 100, ".2f"),
    "test_accuracy": ("test accuracy %", 100, ".2f"),
    "val_miou": ("validation mIoU %", 100, ".2f"),
    "test_miou": ("test mIoU %", 100, ".2f"),
    "val_mean_f1": ("validation F1 %", 100, ".2f"),
    "test_mean_f1": ("test F1 %", 100, ".2f"),
    "val_r2": ("validation R2", 1, ".3f"),
    "test_r2": ("test R2", 1, ".3f"),
    "skips": ("skips", 1, ""),
    "genotype": ("genotype", 1, ""),
}


FRONT: Columns = {
    "query": ("query", 1, "g"),
    "score": ("validation score", 1, ".2f"),
    "latency_ms": ("latency ms", 1, ".2f"),
    "multiply_adds": ("multiply-adds", 1, ",.0f"),
    "parameters": ("parameters", 1, ",.0f"),
    "genotype": ("genotype", 1, ""),
}


def write(run: Run) -> Path:
    """Writes the figures, then the page. Raises UserError where a file of the run is damaged."""
    page, stills = made(run)
    for name, data in stills.items():
        run.write(f"{Run.FIGURES}/{name}.svg", data)
    run.write(Run.REPORT, page.encode(errors="replace"))  # a folder's name may hold any bytes
    return run.file(Run.REPORT)


def made(run: Run) -> tuple[str, dict[str, bytes]]:
    """The page, and its still pictures as SVG by name. Raises UserError where a file of the run is damaged."""
    records, config = run.records(), config_of(run)
    shown = plots(records, run.read(Run.ALPHAS) if run.has(Run.ALPHAS) else None)
    stills = {name: svg(plot) for name, plot in shown.items()}
    genotype = genotype_of(run, records)
    if genotype is not None:
        stills["cells"] = draw(genotype)

    curves = {name: spec(plot) for name, plot in shown.items() if isinstance(plot, Curves)}
    strips = {name: spec(plot) for name, plot in shown.items() if isinstance(plot, Strips)}
    live = curves | strips
    of_epochs = {key: how for key, how in EPOCH.items() if not (key == "entropy" and untrained(records))}
    page = template("report").render(
        title=run.path.resolve().name,
        subtitle=subtitle(config),
        state=state(run, records),
        headline=headline(run, records),
        facts=facts(run, records, config),
        limits=limits(records),
        warnings=claims.warnings(records),
        verdicts=next((claims.verdicts(r) for r in records if r.get("kind") == "comparison"), []),
        genotype=genotype,
        genotype_text=draw_text(genotype) if genotype is not None else "",
        genotype_final=run.has(Run.GENOTYPE),
        frames=[(label, Markup(inline(f"frame{n}", data))) for n, (label, data) in enumerate(frames(run, records))],
        titles={name: plot.title for name, plot in shown.items()},
        stills={name: Markup(inline(name, data)) for name, data in stills.items() if name not in live},
        curves=curves,
        strips=strips,
        front=_table(front_cells(run), "front", FRONT),
        seeds=_table(records, "seed", SEED),
        intervals=isinstance(found := shown.get("comparison"), Comparison) and bool(found.intervals),
        over_images=any(r.get("kind") == "comparison" and r.get("over") == "images" for r in records),
        trained=_table(records, "trained", TRAINED),
        by_class=_table(records, "class", BY_CLASS) or class_scores(records),
        augmented=samples.augmented(run),
        mistakes=samples.mistakes(run),
        legend=samples.legend(run),
        confused=confused(records),
        data=data_facts(run),
        citations=citations(config),
        epochs=[table for kind in ("epoch", "train_epoch") if (table := _table(records, kind, of_epochs))],
        settings=_flat(config),
        files={n: text for n, text in FILES.items() if run.has(n) or (n == Run.FIGURES and stills)},
        folder=str(run.path),
        commands=_commands(run),
        plots=live,
        plotly=Markup(_plotly()) if live else "",
    )
    return page, stills


# ---------------------------------------------------------------------- what the page says


def config_of(run: Run) -> dict[str, object]:
    """The table of run.toml. Raises UserError where it is damaged."""
    try:
        return tomllib.loads(run.read(Run.CONFIG).decode())
    except ValueError as error:
        raise UserError(
            f"{str(run.file(Run.CONFIG))!r} is no TOML ({error}); mend it or take it from a backup."
        ) from None


def genotype_of(run: Run, records: Sequence[Record]) -> Genotype | None:
    """The result; of an unfinished search what its last epoch would have chosen."""
    if run.has(Run.GENOTYPE):
        return Genotype.from_json(run.read(Run.GENOTYPE).decode())
    texts = [str(r["genotype"]) for r in records if r.get("kind") == "epoch" and r.get("genotype")]
    try:
        return Genotype.parse(texts[-1]) if texts else None
    except UserError:  # an epoch may have logged a summary in words
        return None


def subtitle(config: Mapping[str, object]) -> str:
    """The names of method, space and data, be each a string or a table with a name."""
    parts = []
    for key in ("method", "space", "data"):
        value = config.get(key)
        name = value.get("name", value.get("path")) if isinstance(value, dict) else value
        if name is not None:
            parts.append(str(name))
    return " · ".join(parts)


def state(run: Run, records: Sequence[Record]) -> str:
    """How far the run is, in words."""
    kinds = [r.get("kind") for r in records]
    if "test" in kinds or (run.has(Run.GENOTYPE) and "train_epoch" not in kinds):
        return "finished"
    epochs, queries = kinds.count("epoch") + kinds.count("train_epoch"), kinds.count("query")
    if queries:
        return f"unfinished: {queries} quer{'ies' if queries > 1 else 'y'} so far"
    return f"unfinished: {epochs} epoch{'s' * (epochs != 1)} so far" if epochs else "nothing logged yet"


def _table(records: Sequence[Record], kind: str, columns: Columns) -> tuple[list[str], list[list[str]]] | None:
    """Headings and rows of one kind of record, with the columns that hold anything; None without rows."""
    chosen = [r for r in records if r.get("kind") == kind]
    keys = [key for key in columns if any(r.get(key) is not None for r in chosen)]
    rows = [[_cell(r.get(key), *columns[key][1:]) for key in keys] for r in chosen]
    return ([columns[key][0] for key in keys], rows) if rows else None


def _cell(value: object, factor: float, form: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, int | float) and form:
        return format(factor * value, form)
    return "" if value is None else str(value)


def _flat(table: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, str(value))]
    return rows


def _commands(run: Run) -> list[tuple[str, str]]:
    """Suggested next commands, (command, what it does)."""
    path = shlex.quote(str(run.path))
    if run.has(Run.NETWORK):
        return [(f"oche predict {path} IMAGES", "predict with the network"), (f"oche export {path}", "export it")]
    if run.has(Run.GENOTYPE):
        return [(f"oche train {path}", "train the cell from scratch"), (f"oche draw {path}", "draw it")]
    return [(f"oche report {path}", "bring this page up to date")]


# ---------------------------------------------------------------------- how it gets onto the page


def template(name: str) -> Template:
    """A page's template; all that it is given is escaped."""
    environment = Environment(
        loader=FunctionLoader(lambda file: files("oche.report").joinpath(file).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.j2")


def inline(name: str, data: bytes) -> str:
    """An SVG file as an element of the page: ids of its own, colours that follow the page's scheme."""
    text = data.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for colour, variable in SWAPPED.items():
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
