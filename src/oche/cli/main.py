"""The command line: words around the verbs of `oche.api`. Importing this loads no torch, so `--help` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong usage (one sentence says what), 130 interrupted (what was done is kept).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from oche.cli.bench import bench
from oche.cli.boundary import guarded
from oche.cli.show import TITLES, Show, console, rows_table
from oche.cli.study import study
from oche.config import assignment
from oche.errors import UserError, unknown
from oche.run import Run

app = typer.Typer(
    help="Differentiable neural architecture search that does not collapse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Seed = Annotated[int, typer.Option(help="Everything random depends on this number.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 or mps.")]
Devices = Annotated[int, typer.Option(help="How many processes, one a device.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: 1 for images up to 16x16, else all.")]
Precision = Annotated[str, typer.Option(help="32, or bf16 for mixed precision.")]
Epochs = Annotated[int | None, typer.Option(help="Default: the budget's.")]
BatchSize = Annotated[int | None, typer.Option("--batch", help="Images a step and process. Default: the budget's.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder; an existing one is never overwritten.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="PART.FIELD=VALUE, as often as you like; see docs/settings.md.")
]
Resume = Annotated[Path | None, typer.Option(help="Carry on with an interrupted run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]


# ------------------------------------------------------------------ search and train


@app.command()
def search(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="`oche list methods`, or FILE.py:FUNCTION.")] = "rf_darts",
    space: Annotated[
        str, typer.Option(help="`oche list spaces`. Default: nb201 for classes, grid for masks.")
    ] = "auto",
    data: Annotated[
        str, typer.Option(help="digits, camvid, a folder of images (and masks), an .npz file, a folder of idx files.")
    ] = "digits",
    task: Annotated[str | None, typer.Option(help="classify or segment. Default: what the data is for.")] = None,
    budget: Annotated[str, typer.Option(help="paper, quick or smoke.")] = "quick",
    epochs: Epochs = None,
    batch: BatchSize = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = 1,
    precision: Precision = "32",
    threads: Threads = None,
    compare: Annotated[
        int | None,
        typer.Option(
            help="Random cells to train beside the found one. Default: 3; 0 with --budget paper, or if the search keeps its weights."
        ),
    ] = None,
    compare_seeds: Annotated[int, typer.Option(help="Trainings of each of these cells.")] = 3,
    protocol: Annotated[str, typer.Option(help="How they are trained: `oche list protocols`.")] = "auto",
    seeds: Annotated[int, typer.Option(help="Searches, from --seed on; the best cell by --pick is kept.")] = 1,
    pick: Annotated[
        str | None, typer.Option(help="validation: each seed's cell is trained by --protocol and scored there.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(help="gap, eigenvalue, tau or table, as often as you like: measured after each epoch."),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Less memory, more time: cells run again in the backward pass.")
    ] = False,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="torch.compile the cells that run in plain PyTorch: minutes before the first step."
        ),
    ] = False,
    settings: Settings = None,
    out: Out = None,
    config: Annotated[Path | None, typer.Option(help="Repeat the search of this run.toml.")] = None,
    resume: Resume = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, measure one step, and stop.")] = False,
    quiet: Quiet = False,
) -> None:
    """Search a space for a cell that fits the data, and train it beside random cells."""
    from oche.api import search as api
    from oche.plan.resolve import Request, recorded_request, resolve

    show = Show(quiet)
    if resume:
        _goes_alone(context, "resume", "dry_run", "quiet")
        plan, run = api.reopen(resume)
    elif config:
        _goes_alone(context, "config", "out", "dry_run", "quiet")
        request, table = recorded_request(config)
        plan, run = resolve(request, recorded=table), None
    else:
        if pick and seeds == 1:
            raise UserError("--pick chooses among several seeds: give `--seeds 4` or so, or leave it out.")
        asked = api.with_task(dict(map(assignment, settings or [])), task, data)
        plan = resolve(
            Request(
                method,
                space,
                data,
                budget,
                epochs,
                batch,
                seed,
                device,
                devices,
                precision,
                threads,
                compare,
                compare_seeds,
                protocol,
                asked,
                tuple(probe or ()),
                seeds,
                pick or "validation",
                recompute,
                compile,
            )
        )
        run = None
    show.preflight(plan, out or (run.path if run else None))
    if dry_run:
        return
    run = run or api.start(plan, out)
    with show.search(plan):
        found = api.carry_out(plan, run, show.listen)
    show.found(found)


@app.command()
def train(
    context: typer.Context,
    genotype: Annotated[
        str, typer.Argument(help="A search's folder, a genotype file, string, or published name.")
    ] = "",
    data: Annotated[str | None, typer.Option(help="Default: the search's data.")] = None,
    space: Annotated[str | None, typer.Option(help="The space of a genotype that does not say it.")] = None,
    protocol: Annotated[str, typer.Option(help="`oche list protocols`. Default: quick, for masks segment.")] = "auto",
    epochs: Epochs = None,
    batch: BatchSize = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = 1,
    precision: Precision = "32",
    threads: Threads = None,
    inherit: Annotated[bool, typer.Option("--inherit", help="Begin with the weights of the run's network.")] = False,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = None,
    quiet: Quiet = False,
) -> None:
    """Train a genotype's network, from scratch or with the weights of a run's network."""
    from oche.api import search as api
    from oche.plan.resolve import Request, TrainRequest, requested

    show = Show(quiet)
    if resume:
        _goes_alone(context, "resume", "quiet")
        if isinstance(requested(Run.open(resume))[0], Request):
            raise UserError(f"{resume} is a search; carry on with it by `oche search --resume {resume}`.")
        with show.training():
            trained = api.resume(resume, listener=show.listen)
        assert isinstance(trained, api.Trained)
    else:
        if not genotype:
            raise UserError(
                "`oche train` needs a genotype: a search's folder, a genotype file or string, or `--resume RUN`."
            )
        asked = dict(map(assignment, settings or []))
        request = TrainRequest(
            genotype, space, data, protocol, epochs, batch, seed, device, devices, precision, threads, asked, inherit
        )
        plan = api.plan_training(request)
        run = plan.start(out)
        show.training_plan(plan.training, run)
        with show.training(plan.training.protocol.epochs):
            trained = api.finish_training(plan.training, run, plan.request.threads, show.listen)
    show.trained(trained)


def _goes_alone(context: typer.Context, option: str, *beside: str) -> None:
    """Raises UserError for options that would be ignored, since the recorded run has settled them."""
    for parameter in context.command.params:
        source, name = context.get_parameter_source(parameter.name or ""), parameter.name
        if source is not None and source.name == "COMMANDLINE" and name not in (option, *beside):
            given = max(parameter.opts, key=len)
            raise UserError(
                f"{given} cannot be given with --{option}, which takes everything from that run: leave it out."
            )


# ------------------------------------------------------------------ after a run


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run with a trained network.")],
    data: Annotated[str | None, typer.Option(help="Default: the run's own test images.")] = None,
    checkpoint: Annotated[str, typer.Option(help="kept, or of a training last or best.")] = "kept",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a trained network on test images."""
    from oche.api import inference

    score = inference.evaluate_run(run, data=data, checkpoint=checkpoint, device=device)
    total, counted = sum(map(sum, score.confusion)), "pixels" if score.metric == "miou" else "images"
    if as_json:
        print(json.dumps({**score.metrics, "loss": score.loss, counted: total, "confusion": score.confusion}))
    else:
        metrics = ", ".join(f"{TITLES[name]} {value:.2%}" for name, value in score.metrics.items())
        console.print(f"{metrics}, loss {score.loss:.4f}, on {total} {counted}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run with a trained network.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[
        Path | None, typer.Option(help="Where pictures of masks go. Default: predictions in the run's folder.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Classify images with a trained network, or segment them: then overlays and masks are written."""
    from oche.cli.predict import predict_images

    predict_images(run, images, out, device, as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run with a trained network.")],
    formats: Annotated[list[str] | None, typer.Option("--format", help="pt2 or onnx; both by default.")] = None,
) -> None:
    """Write a trained network as .pt2 and ONNX, each checked against the network."""
    from oche.training.export import FORMATS, export_network

    for path in export_network(Run.open(run), formats or FORMATS):
        console.print(f"{path}  {path.stat().st_size / 2**20:.2f} MiB, checked", soft_wrap=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Any run.")]) -> None:
    """Write a run's report.html and figures anew."""
    from oche.report import render

    console.print(str(render(Run.open(run))), soft_wrap=True)


@app.command()
def draw(
    genotype: Annotated[str, typer.Argument(help="A run's folder, a genotype file, string, or published name.")],
    out: Annotated[Path | None, typer.Option(help="An .svg or .png file; without it, text.")] = None,
    space: Annotated[str | None, typer.Option(help="The space of a genotype that does not say it.")] = None,
) -> None:
    """Draw a genotype's cells."""
    from oche.report.draw import draw as picture
    from oche.report.draw import draw_text

    path = Path(genotype)
    if len(genotype) < 250 and path.is_dir():
        path = Run.open(path).file(Run.GENOTYPE)
    text = path.read_text(errors="replace") if len(genotype) < 250 and path.is_file() else genotype
    from oche.genotype import Genotype

    parsed = Genotype.parse(text, space)
    if out is None:
        console.print(draw_text(parsed), markup=False)
    else:
        out.write_bytes(picture(parsed, out.suffix.removeprefix(".")))
        console.print(str(out))


@app.command(name="list")
def list_(
    kind: Annotated[
        str, typer.Argument(help="methods, spaces, ops, data, budgets, protocols or genotypes.")
    ] = "methods",
    as_json: AsJson = False,
) -> None:
    """List what there is by name."""
    if kind not in _LISTS:
        raise unknown("list", kind, _LISTS)
    entries = _LISTS[kind]()
    if as_json:
        print(json.dumps(entries))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, line in entries.items():
        table.add_row(name, line)
    console.print(table)


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="As for `oche search --data`.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="data.FIELD=VALUE, as for `oche search`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read data as a search would, and say what was found, what became of it, and all that is wrong."""
    from oche.cli.check import check_data

    check_data(data, dict(map(assignment, settings or [])), as_json)


@app.command()
def cite(method: Annotated[str, typer.Argument(help="As for `oche search`.")]) -> None:
    """Print the BibTeX entries of a method's papers."""
    from oche.methods.papers import cite as entries_of
    from oche.plan.resolve import searcher_named

    print(entries_of(searcher_named(method).papers))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say how fast this machine can search, and why: tier, compiler, processor, accelerator, optional packages."""
    from oche.cli.doctor import examine, rows

    found = examine()
    if as_json:
        print(json.dumps(found))
    else:
        console.print(rows_table(rows(found)))


app.add_typer(bench, name="bench")
app.add_typer(study, name="study")


# ------------------------------------------------------------------ lists


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


def _methods() -> dict[str, str]:
    from oche.methods import METHODS

    return {name: _first_line(factory) for name, factory in METHODS.items()}


def _spaces() -> dict[str, str]:
    from oche.spaces import SPACES

    return {name: _first_line(space) for name, space in SPACES.items()}


def _ops() -> dict[str, str]:
    from oche.spaces import SPACES
    from oche.spaces.ops import OPS

    users = {op: [n for n, s in SPACES.items() if any(op in ops for g in s().groups for ops in g.ops)] for op in OPS}
    return {op: "in " + ", ".join(names) if names else "in no space" for op, names in users.items()}


def _data() -> dict[str, str]:
    from oche.data import SETS

    return {name: _first_line(reader) for name, reader in SETS.items()}


def _budgets() -> dict[str, str]:
    return {
        "paper": "as published",
        "quick": "an afternoon's laptop (the default)",
        "smoke": "seconds, to see that everything runs",
    }


def _protocols() -> dict[str, str]:
    from oche.training.protocols import PROTOCOLS

    return {name: f"{p.epochs} epochs, batch {p.batch}; {p.source}" for name, p in PROTOCOLS.items()}


def _genotypes() -> dict[str, str]:
    from oche.genotype import published

    return {name: entry.line for name, entry in published().items()}


_LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "spaces": _spaces,
    "ops": _ops,
    "data": _data,
    "budgets": _budgets,
    "protocols": _protocols,
    "genotypes": _genotypes,
}


def main() -> None:
    """Runs the command line; see `boundary` for how it ends."""
    console.quiet = os.environ.get("LOCAL_RANK", "0") != "0"  # of several processes, one speaks
    guarded(app)


if __name__ == "__main__":
    main()
