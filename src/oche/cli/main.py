"""The command line: words around the verbs of `oche.api`. Importing this loads no torch, so `--help` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong usage (one sentence says what), 130 interrupted (what was done is kept).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table

from oche import own
from oche.api.folders import genotype_of
from oche.api.terminal import Show, console, rows_table
from oche.cli.bench import bench
from oche.cli.boundary import guarded, running
from oche.cli.completion import values
from oche.cli.flags import flags
from oche.cli.latency import latency
from oche.cli.lists import LISTS
from oche.cli.show import show_found, show_latency, show_score, show_trained
from oche.cli.started import age
from oche.cli.study import study
from oche.cli.typed import goes_alone, is_given, speak_aside
from oche.cli.waiting import wait_briefly
from oche.config import assignment
from oche.errors import UserError, unknown
from oche.plan.processes import FOLLOWS, rank
from oche.plan.request import Request, TrainRequest, recorded_request, requested, written
from oche.run import Run

if TYPE_CHECKING:
    from oche.api.train import Trained
    from oche.plan.resolve import Plan

app = typer.Typer(
    help="Differentiable neural architecture search that does not collapse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

STARTED = time.monotonic() - age()
"""When the command began, by the monotonic clock, Python's own beginning included."""

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 or mps.", autocompletion=values("device"))]
Resume = Annotated[Path | None, typer.Option(help="Carry on with an interrupted run.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run the code that the file of --config names, without asking.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ResultAsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object; all else goes to stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print what the live view, the log and probes took of the run.")
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"oche {version('oche')}")
        raise typer.Exit()


@app.callback()
def oche(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Differentiable neural architecture search that does not collapse."""


# ------------------------------------------------------------------ search and train


@app.command()
@flags(Request)
def search(
    context: typer.Context,
    request: Request,
    config: Annotated[
        Path | None, typer.Option(help="Repeat the search of this run.toml, or run the file of `oche init`.")
    ] = None,
    resume: Resume = None,
    trust: Trust = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, measure a few steps, and stop.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: ResultAsJson = False,
) -> None:
    """Search a space for a cell that fits the data, and train it beside random cells."""
    speak_aside(context, as_json)
    show = Show(quiet)
    if resume:
        goes_alone(context, "resume", "devices", "dry_run", "quiet", "verbose", "as_json")
    elif config:
        goes_alone(context, "config", "out", "dry_run", "quiet", "verbose", "trust", "as_json")
    elif request.seeds == 1 and is_given(context, "pick"):
        raise UserError("--pick chooses among several seeds: give `--seeds 4` or so, or leave it out.")
    from oche.api import search as api
    from oche.api.batch import with_batch
    from oche.api.expected import Clock, timed
    from oche.api.resume import reopen
    from oche.plan.resolve import resolve

    if resume:
        plan, run = reopen(resume, devices=request.devices)
    else:
        recorded = None
        if config:
            request, recorded = _repeated(config, request.out, trust)
        plan, run = with_batch(resolve(request, recorded)), None
        if config:
            _note_changed_data(config, plan)
    # what --time has chosen is recorded, and holds where a run is repeated or carried on
    clock = None if resume or config else Clock.of(request.time, STARTED)
    plan, expected = timed(plan, clock, trainings=not quiet)
    show.preflight(plan, expected, str(run.path if run else request.out or api.default_folder(plan)))
    if dry_run:
        if as_json:
            print(json.dumps(plan.table()))
        return
    run = run or api.start(plan, request.out)
    running("search", run.path)
    with show.search(plan, expected):
        found = api.carry_out(plan, run, show.listen, clock)
    show_found(found, as_json)
    if verbose:
        show.verbose()


def _note_changed_data(path: Path, plan: Plan) -> None:
    """Prints what has changed in the data since the run.toml was written, where the run beside it recorded that."""
    from oche.api.pinned import changes, meanings_unrecorded

    folder = path.parent
    found = changes(Run(folder), plan.data) if path.name == Run.CONFIG and Run(folder).has(Run.CONFIG) else None
    if path.name == Run.CONFIG and Run(folder).changed(Run.CONFIG):
        console.print(f"WARNING  {path} was edited after oche wrote it.", soft_wrap=True)
    for said in found or ():
        console.print(f"WARNING  the data are not those of {folder}: {said}", soft_wrap=True)
    for said in meanings_unrecorded(Run(folder), plan.data) if found is not None else ():
        console.print(f"WARNING  {said}", soft_wrap=True)


def _repeated(path: Path, out: str | Path | None, trust: bool) -> tuple[Request, Mapping[str, object] | None]:
    """The request of a run.toml and its table, None where it holds the request alone.

    Says where a file has changed, and asks before code from a file is run.
    """
    request, table = recorded_request(path)
    for changed in own.changed(table or {}):
        console.print(f"WARNING  {changed} has changed since {path} was written.", soft_wrap=True)
    if (code := sorted(set(own.names_in(written(request))))) and not (
        trust or os.environ.get(FOLLOWS)
    ):  # the first process has asked
        if not sys.stdin.isatty():
            raise UserError(f"{path} runs code from {', '.join(code)}: read it, then repeat with `--trust`.")
        if not typer.confirm(f"{path} runs code from {', '.join(code)}. Run it?"):
            raise UserError("Nothing was run.")
    return replace(request, out=out), table


@app.command()
@flags(TrainRequest)
def train(
    context: typer.Context,
    request: TrainRequest,
    resume: Resume = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: ResultAsJson = False,
) -> None:
    """Train a genotype's network, from scratch or with the weights of a run's network."""
    speak_aside(context, as_json)
    show = Show(quiet)
    if resume:
        goes_alone(
            context,
            "resume",
            "devices",
            "quiet",
            "verbose",
            "as_json",
            longer=f"; to train longer, `oche train {resume} --more N`",
        )
        if isinstance(requested(Run.open(resume))[0], Request):
            raise UserError(f"{resume} is a search; carry on with it by `oche search --resume {resume}`.")
        from oche.api.resume import resume as carry_on

        running("train", resume)
        with show.training():
            show_trained(cast("Trained", carry_on(resume, devices=request.devices, listener=show.listen)), as_json)
        if verbose:
            show.verbose()
        return
    if not request.genotype:
        raise UserError(
            "`oche train` needs a genotype: a search's folder, a genotype file or string, a rival's name, or `--resume RUN`."
        )
    from oche.api import train as api
    from oche.api.expected import Clock

    plan = api.plan_training(request).measured().in_time(Clock.of(request.time, STARTED))
    run = plan.start(request.out)
    running("train", run.path)
    show.training_plan(plan.training, run)
    with show.training(plan.training.protocol.epochs):
        trained = api.finish_training(plan.training, run, plan.request, show.listen)
    show_trained(trained, as_json)
    if verbose:
        show.verbose()


# ------------------------------------------------------------------ after a run


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run with a trained network.")],
    data: Annotated[str | None, typer.Option(help="Default: the run's own test images.")] = None,
    checkpoint: Annotated[
        str, typer.Option(help="kept, or of a training last or best.", autocompletion=values("checkpoint"))
    ] = "kept",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a trained network on test images."""
    from oche.api import inference
    from oche.api.pinned import unrecorded
    from oche.training.export import load_network

    score = inference.evaluate_run(run, data=data, checkpoint=checkpoint, device=device)
    show_score(score, load_network(Run.open(run)), as_json, unrecorded(Run.open(run)) if data is None else None)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run with a trained network.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", readable=False)],
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
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="pt2, onnx or int8; the first two by default.", autocompletion=values("formats")),
    ] = None,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write an int8 network that loses over a point.")
    ] = False,
) -> None:
    """Write a trained network as .pt2 and ONNX, each checked against the network, or quantised to int8."""
    from oche.api.int8 import export as write
    from oche.training.export import FORMATS, load_network

    for path in write(Run.open(run), formats or FORMATS, allow_loss=allow_loss):
        console.print(f"{path}  {path.stat().st_size / 2**20:.2f} MiB, checked", soft_wrap=True)
    show_latency(load_network(Run.open(run)).card)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run; of several, one page shows them side by side.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page of a run that is still going, on this machine alone.")
    ] = False,
    port: Annotated[int, typer.Option(help="The port of --watch; 0 takes a free one.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The page of several runs. Default: side_by_side.html.")] = None,
) -> None:
    """Write a run's report.html and figures anew, show several runs side by side, or watch one."""
    from oche.cli.report import show_reports

    show_reports(runs, watch, port, out)


@app.command()
def draw(
    genotype: Annotated[str, typer.Argument(help="A run's folder, a genotype file, string, or published name.")],
    out: Annotated[Path | None, typer.Option(help="An .svg or .png file; without it, text.")] = None,
    space: Annotated[str | None, typer.Option(help="The space of a genotype that does not say it.")] = None,
) -> None:
    """Draw a genotype's cells."""
    from oche.report.draw import draw as picture
    from oche.report.draw import draw_text

    parsed, _ = genotype_of(genotype, space)
    if out is None:
        console.print(draw_text(parsed))
    else:
        out.write_bytes(picture(parsed, out.suffix.removeprefix(".")))
        console.print(str(out))


@app.command(name="list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, spaces, ops, data, budgets, protocols, genotypes or rivals.", autocompletion=values("kind")
        ),
    ] = "methods",
    as_json: AsJson = False,
) -> None:
    """List what there is by name."""
    if kind not in LISTS:
        raise unknown("list", kind, LISTS)
    entries = LISTS[kind]()
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
def init(
    data: Annotated[str, typer.Argument(help="As for `oche search --data`.")],
    out: Annotated[Path, typer.Option(help="The file.")] = Path("search.toml"),
) -> None:
    """Write a commented TOML file of a search on these data, for `oche search --config`, and a schema for editors."""
    from oche.cli.init import write_config

    for path in write_config(data, out):
        console.print(str(path), soft_wrap=True)
    console.print(f"Next: edit {out}, then oche search --config {out}", soft_wrap=True)


@app.command()
def cite(method: Annotated[str, typer.Argument(help="As for `oche search`.", autocompletion=values("method"))]) -> None:
    """Print the BibTeX entries of a method's papers."""
    from oche.methods.papers import cite as entries_of
    from oche.plan.named import searcher_named

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


app.command()(latency)
app.add_typer(bench, name="bench")
app.add_typer(study, name="study")


def main() -> None:
    """Runs the command line; see `boundary` for how it ends."""
    wait_briefly()
    console.quiet = rank() != 0  # of several processes, one speaks
    guarded(app)


if __name__ == "__main__":
    main()
