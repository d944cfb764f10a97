"""`oche study`: runs a study of single-stage search, and renders it again. A thin layer over `oche.study`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oche.api.terminal import console
from oche.cli.bench import tell_failures
from oche.config import assignment
from oche.report import attempt
from oche.run import Run

if TYPE_CHECKING:
    from oche.bench import BenchResult

QUESTIONS = {
    "discretisation": "What is lost when a supernet is made discrete: argmax, thresholds, paths, and the way there.",
    "entropy": "Penalties on entropy: what the supernet loses, what decoding saves.",
    "protocol": "One stage against decoding and training again, at equal epochs; freeze variants; controls.",
    "split": "Who sees which images, S0 to S7, and whether the search degenerates.",
}

LINES = {
    "begin": "{missing} of {total} trials to run, in {folder}",
    "trial": "{method} {space} {data} seed {seed}: {value:.2f} % {metric}",
    "failed": "failed {name}: {reason}",
}
"""Lines that are printed for a bench's events."""

study = typer.Typer(help="Study single-stage search: arms, seeds, decodings; resumable.", rich_markup_mode=None)


def _command(name: str) -> Callable[..., None]:
    def run(
        config: Annotated[
            Path | None, typer.Option(help="A TOML file with the fields of a study; docs/study.md.")
        ] = None,
        space: Annotated[str | None, typer.Option(help="A space. Default: grid.")] = None,
        data: Annotated[
            str | None, typer.Option(help="A data set. Default: digits_masks, which needs no file.")
        ] = None,
        budget: Annotated[str | None, typer.Option(help="smoke, quick or paper. Default: quick.")] = None,
        seeds: Annotated[int | None, typer.Option(help="How many seeds. Default: 3, or 1 with smoke.")] = None,
        epochs: Annotated[
            int | None, typer.Option(help="Of the whole horizon, all phases. Default: 60, or 5 with smoke.")
        ] = None,
        device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0 or mps.")] = None,
        decoding: Annotated[
            list[str] | None,
            typer.Option(
                help="A decoding to measure instead of the study's own: op, edge@0.5, op+best2, ramp@0.3, path ..."
            ),
        ] = None,
        settings: Annotated[list[str] | None, typer.Option("--set", help="PART.FIELD=VALUE for all arms.")] = None,
        only: Annotated[
            list[str] | None, typer.Option(help="Run this arm now and leave the rest; as often as you like.")
        ] = None,
        workers: Annotated[int, typer.Option(help="Processes that work at a time.")] = 1,
        out: Annotated[
            Path | None, typer.Option(help="The study's folder; one that exists is carried on with.")
        ] = None,
    ) -> None:
        from oche.study import run_study, study_from

        lists = {"spaces": space, "data": data, "budgets": budget}
        given: dict[str, object] = {key: (value,) for key, value in lists.items() if value is not None}
        given |= {"seeds": seeds, "epochs": epochs, "device": device, "settings": dict(map(assignment, settings or []))}
        given["measure"] = {"decodings": tuple(decoding), "sweep": (), "tuned": ()} if decoding else {}
        asked = study_from(name, config, given)
        result = run_study(
            asked, out or Path("runs") / f"study-{asked.matrix.name}", workers, None, _told, only=only or ()
        )
        attempt(lambda: _print(result), result.folder.path, "oche study show")
        tell_failures(result)

    return run


for _name, _question in QUESTIONS.items():
    study.command(_name, help=_question)(_command(_name))


@study.command()
def show(folder: Annotated[Path, typer.Argument(help="A study's folder.")]) -> None:
    """Render a study anew, from its files alone."""
    from oche.study import show as render

    _print(render(folder))


def _told(event: str, record: Mapping[str, object]) -> None:
    from oche.bench.matrix import TRAINED_TEST, TRAINED_VAL

    if event == "trial":
        words = {TRAINED_TEST: "on test images", TRAINED_VAL: "on validation images"}
        record = {**record, "metric": words.get(str(record["metric"]), record["metric"])}
    console.print(LINES[event].format_map(record), soft_wrap=True)


def _print(result: BenchResult) -> None:
    from oche.bench.render import table_lines
    from oche.study import summary

    notes, sheets = summary(result)
    console.print("\n".join(["", *(f"- {note}" for note in notes), ""]), soft_wrap=True)
    for title, headings, rows in sheets:
        console.print("\n".join([title, "", *table_lines(headings, rows), ""]), soft_wrap=True)
    console.print(f"Everything lies in {result.folder.path}; open {result.folder.path / Run.REPORT}.", soft_wrap=True)
