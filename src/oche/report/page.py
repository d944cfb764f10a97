"""The report: one HTML page that needs no other file, told from what lies in the run directory."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from oche.errors import UserError
from oche.genotype import Genotype
from oche.report import claims
from oche.report.draw import draw, draw_text
from oche.report.figures import Curves, Record, Strips, number, plots
from oche.report.interactive import spec
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


def write(run: Run) -> Path:
    """Writes the figures, then the page. Raises UserError where a file of the run is damaged."""
    records, config = run.records(), _config(run)
    shown = plots(records, run.read(Run.ALPHAS) if run.has(Run.ALPHAS) else None)
    stills = {name: svg(plot) for name, plot in shown.items()}
    genotype = _genotype(run, records)
    if genotype is not None:
        stills["cells"] = draw(genotype)
    for name, data in stills.items():
        run.write(f"{Run.FIGURES}/{name}.svg", data)

    curves = {name: spec(plot) for name, plot in shown.items() if isinstance(plot, Curves)}
    strips = {name: spec(plot) for name, plot in shown.items() if isinstance(plot, Strips)}
    live = curves | strips
    page = _template().render(
        title=run.path.resolve().name,
        subtitle=_subtitle(config),
        state=_state(run, records),
        facts=_facts(records),
        warnings=claims.warnings(records),
        verdicts=next((claims.verdicts(r) for r in records if r.get("kind") == "comparison"), []),
        genotype=genotype,
        genotype_text=draw_text(genotype) if genotype is not None else "",
        genotype_final=run.has(Run.GENOTYPE),
        titles={name: plot.title for name, plot in shown.items()},
        stills={name: Markup(_inline(name, data)) for name, data in stills.items() if name not in live},
        curves=curves,
        strips=strips,
        seeds=_table(records, "seed", SEED),
        trained=_table(records, "trained", TRAINED),
        by_class=_table(records, "class", BY_CLASS),
        epochs=[table for kind in ("epoch", "train_epoch") if (table := _table(records, kind, EPOCH))],
        settings=_flat(config),
        files={name: text for name, text in FILES.items() if run.has(name)},
        folder=str(run.path),
        commands=_commands(run),
        plots=live,
        plotly=Markup(_plotly()) if live else "",
    )
    run.write(Run.REPORT, page.encode())
    return run.file(Run.REPORT)


# ---------------------------------------------------------------------- what the page says


def _config(run: Run) -> dict[str, object]:
    try:
        return tomllib.loads(run.read(Run.CONFIG).decode())
    except ValueError as error:
        raise UserError(
            f"{str(run.file(Run.CONFIG))!r} is no TOML ({error}); mend it or take it from a backup."
        ) from None


def _genotype(run: Run, records: Sequence[Record]) -> Genotype | None:
    """The result; of an unfinished search what its last epoch would have chosen."""
    if run.has(Run.GENOTYPE):
        return Genotype.from_json(run.read(Run.GENOTYPE).decode())
    texts = [str(r["genotype"]) for r in records if r.get("kind") == "epoch" and r.get("genotype")]
    try:
        return Genotype.parse(texts[-1]) if texts else None
    except UserError:  # an epoch may have logged a summary in words
        return None


def _subtitle(config: Mapping[str, object]) -> str:
    """The names of method, space and data, be each a string or a table with a name."""
    parts = []
    for key in ("method", "space", "data"):
        value = config.get(key)
        name = value.get("name", value.get("path")) if isinstance(value, dict) else value
        if name is not None:
            parts.append(str(name))
    return " · ".join(parts)


def _state(run: Run, records: Sequence[Record]) -> str:
    kinds = [r.get("kind") for r in records]
    if "test" in kinds or (run.has(Run.GENOTYPE) and "train_epoch" not in kinds):
        return "finished"
    epochs = kinds.count("epoch") + kinds.count("train_epoch")
    return f"unfinished: {epochs} epoch{'s' * (epochs != 1)} so far" if epochs else "nothing logged yet"


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """The numbers one asks for first, (value, what it is)."""
    facts: list[tuple[str, str]] = []

    def add(kind: str, key: str, text: str, what: str, factor: float = 1.0) -> None:
        values = [value for r in records if r.get("kind") == kind and (value := number(r.get(key))) is not None]
        if values:
            facts.append((text.format(factor * values[-1]), what))

    compared = next((claims.TITLES[str(r["metric"])] for r in records if r.get("metric") in claims.TITLES), "accuracy")
    share, by = ("{:.3f}", 1) if compared == "R2" else ("{:.2f} %", 100)
    add("test", "accuracy", "{:.2f} %", "test accuracy", 100)
    add("test", "miou", "{:.2f} %", "test mIoU", 100)
    add("test", "pixel_accuracy", "{:.2f} %", "test pixel accuracy", 100)
    add("test", "mean_f1", "{:.2f} %", "test F1, mean over labels", 100)
    add("test", "exact_match", "{:.2f} %", "test images with all labels right", 100)
    add("test", "r2", "{:.3f}", "test R2")
    add("test", "rmse", "{:.4g}", "test RMSE")
    add("test", "mae", "{:.4g}", "test MAE")
    add("test", "loss", "{:.4f}", "test loss")
    add("comparison", "found_mean", share, f"test {compared}, found cell", by)
    add("comparison", "random_mean", share, f"test {compared}, random cells", by)
    add("comparison", "relative_improvement", "{:+.2f} %", "relative improvement over random")
    add("supernet", "val_accuracy", "{:.2f} %", "supernet, validation accuracy", 100)
    add("supernet", "val_miou", "{:.2f} %", "supernet, validation mIoU", 100)
    add("supernet", "val_mean_f1", "{:.2f} %", "supernet, validation F1", 100)
    add("supernet", "val_r2", "{:.3f}", "supernet, validation R2")
    for record in [r for r in records if r.get("kind") == "fitted"][-1:]:
        facts += [(f"{100 * share:.0f} %", f"of the limit of {name}") for name, share in claims.shares(record)]
    epochs = [r for r in records if r.get("kind") in ("epoch", "train_epoch")]
    seconds = sum(number(r.get("seconds")) or 0.0 for r in epochs)
    memory = max((number(r.get("memory_mib")) or 0.0 for r in epochs), default=0.0)
    if epochs:
        facts.append((str(len(epochs)), "epochs"))
    if seconds:
        facts.append((duration(seconds), "in epochs"))
    if memory:
        facts.append((f"{memory:,.0f} MiB", "peak memory"))
    return facts


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42.4), duration(3700)
    ('42 s', '1 h 02 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


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


def _template() -> Template:
    text = files("oche.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)


def _inline(name: str, data: bytes) -> str:
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
