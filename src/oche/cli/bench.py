"""`oche bench`: runs a bench, renders it again, and asks a benchmark's table. A thin layer over `oche.bench` and `oche.tables`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oche.api.terminal import console
from oche.cli.completion import values
from oche.config import assignment
from oche.errors import RunFailed, UserError, unknown
from oche.report import attempt
from oche.run import Run
from oche.run.bounded import read_bounded

if TYPE_CHECKING:
    from oche.bench import BenchResult

bench = typer.Typer(help="Compare methods fairly: methods x spaces x data x seeds, resumable.", rich_markup_mode=None)

Benchmark = Annotated[str, typer.Argument(help="A benchmark: nb201.")]
Folder = Annotated[Path | None, typer.Option(help="The benchmark's files. Default: what OCHE_DATA names.")]


@bench.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="A TOML file with the fields of a bench; docs/bench.md.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method or FILE.py:NAME, as often as you like.", autocompletion=values("method")),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="A space or FILE.py:NAME, as often as you like. Default: the table's, or nb201.",
            autocompletion=values("space"),
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A data set, as often as you like.", autocompletion=values("data"))
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="A budget, as often as you like.", autocompletion=values("budget"))
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: the budget's.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:0 or mps.", autocompletion=values("device"))
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="table, train or both. Default: table if there is one, else train.", autocompletion=values("evaluate")
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            help="The table that cells are looked up in: nb201 or FILE.py:NAME.", autocompletion=values("table")
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="A metric of the table, the most important first. Default: the test metric, and the one that selects."
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(help="The metric that selects; never a test metric. Default: the table's first that may."),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="gap, eigenvalue, tau or table, as often as you like; measured after each epoch.",
            autocompletion=values("probe"),
        ),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="PART.FIELD=VALUE for all methods.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run this method or arm now and leave the rest; as often as you like.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Trials that run at the same time, each in a process.")] = 1,
    address: Annotated[str | None, typer.Option(help="A Ray cluster's address, or local (extra `ray`).")] = None,
    cpus: Annotated[float | None, typer.Option(help="What a trial takes of the Ray cluster. Default: 1.")] = None,
    gpus: Annotated[float | None, typer.Option(help="The same; 0.5 where two fit on one. Default: 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="The bench's folder; one that exists is carried on with.")] = None,
) -> None:
    """Run what is missing of a bench, and render its table."""
    if context.invoked_subcommand is not None:
        return
    from oche.bench import matrix_from, run_bench

    if config is None and not method:
        raise UserError("A bench needs `--config FILE.toml` or at least one `--method`; see docs/bench.md.")
    lists = {"methods": method, "spaces": space, "data": data, "budgets": budget, "metrics": metric, "probes": probe}
    given: dict[str, object] = {name: tuple(values) for name, values in lists.items() if values}
    given |= {
        "seeds": seeds,
        "epochs": epochs,
        "device": device,
        "evaluate": evaluate,
        "table": table,
        "select": select,
        "cpus": cpus,
        "gpus": gpus,
    }
    matrix = matrix_from(config, {**given, "settings": dict(map(assignment, settings or []))})
    result = run_bench(matrix, out or Path("runs") / f"bench-{matrix.name}", workers, address, _listen, only=only or ())
    attempt(lambda: _print(result), result.folder.path, "oche bench show")
    tell_failures(result)


def tell_failures(result: BenchResult) -> None:
    """Raises RunFailed, which ends the command with 1, where trials failed; what they said has been printed."""
    if result.failures:
        few = ", ".join(list(result.failures)[:3]) + ", ..." * (len(result.failures) > 3)
        raise RunFailed(
            f"{len(result.failures)} trial{'s' * (len(result.failures) > 1)} failed ({few}); the others are kept in "
            f"{result.folder.path}, and the same command tries these again."
        )


@bench.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A bench's folder.")],
    baseline: Annotated[str | None, typer.Option(help="Compare with this method or arm. Default: the bench's.")] = None,
    format_: Annotated[
        str,
        typer.Option("--format", help="What is printed: markdown, latex (booktabs), csv, or pairs (CSV of all pairs)."),
    ] = "markdown",
    figures: Annotated[str, typer.Option(help="svg, or pdf to have the pictures as PDF, too.")] = "svg",
    names: Annotated[
        list[str] | None, typer.Option("--name", help="METHOD=NAME: what a method is called; as often as you like.")
    ] = None,
) -> None:
    """Render a bench anew, from its files alone."""
    from oche.bench import show as render
    from oche.bench.formats import latex, pairs_csv, to_csv
    from oche.bench.render import sheets

    if format_ not in (formats := ("markdown", "latex", "csv", "pairs")):
        raise unknown("format", format_, formats)
    if figures not in ("svg", "pdf"):
        raise unknown("form of figures", figures, ("svg", "pdf"))
    result = render(folder, baseline, figures, _names(names or ()))
    match format_:
        case "latex":
            typer.echo("% \\usepackage{booktabs}\n" + "\n\n".join(map(latex, sheets(result))))
        case "csv" | "pairs":
            typer.echo(to_csv(result) if format_ == "csv" else pairs_csv(result), nl=False)
        case _:
            _print(result)


def _names(given: Sequence[str]) -> dict[str, str]:
    """Raises UserError for what is no METHOD=NAME."""
    for text in given:
        if "=" not in text:
            raise UserError(f"--name {text} is no METHOD=NAME: write --name rf_darts=RF-DARTS.")
    return {method: name for method, _, name in (text.partition("=") for text in given)}


@bench.command()
def query(
    benchmark: Benchmark,
    genotype: Annotated[str, typer.Argument(help="A genotype string, file, published name, or a run's folder.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="A metric, as often as you like. Default: a summary.")
    ] = None,
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look one cell up in a benchmark's table."""
    from oche.genotype import Genotype
    from oche.tables import TABLES

    if benchmark not in TABLES:
        raise unknown("benchmark", benchmark, TABLES)
    path = Path(genotype)
    short = len(genotype) < 250
    if short and path.is_dir():
        path = Run.open(path).file(Run.GENOTYPE)
    text = read_bounded(path).decode(errors="replace") if short and path.is_file() else genotype
    answer = TABLES[benchmark](folder).answer(Genotype.parse(text), metric)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for data, found in answer.items():
        console.print(f"{data}: " + ", ".join(f"{name} {value}" for name, value in found.items()))


@bench.command()
def convert(
    benchmark: Benchmark,
    download: Annotated[Path, typer.Argument(help="The official download.")],
    folder: Annotated[Path, typer.Argument(help="Where the compact file goes.")],
) -> None:
    """Convert a benchmark's official download to the compact form, once."""
    from oche.tables import CONVERTERS

    if benchmark not in CONVERTERS:
        raise unknown("benchmark", benchmark, CONVERTERS)
    console.print(str(CONVERTERS[benchmark](download, folder)), soft_wrap=True)


def _listen(event: str, record: Mapping[str, Any]) -> None:
    if event == "begin":
        console.print(f"{record['missing']} of {record['total']} trials to run, in {record['folder']}", soft_wrap=True)
    elif event == "trial":
        place = f"{record['method']} {record['space']} {record['data']} seed {record['seed']}"
        console.print(f"{place}: {record['value']:.2f} {record['metric']}  {record['genotype']}", soft_wrap=True)
    else:
        console.print(f"failed {record['name']}: {record['reason']}", soft_wrap=True)


def _print(result: BenchResult) -> None:
    """The notes and the first table; the others lie in the folder."""
    from oche.bench.render import to_markdown

    head, first, *_ = to_markdown(result).split("\n## ")
    console.print(f"{head}\n## {first}", soft_wrap=True)
    path = result.folder.path
    console.print(
        f"Everything lies in {path}; open {path / Run.REPORT}, or read {path / result.folder.MARKDOWN}.",
        soft_wrap=True,
    )
