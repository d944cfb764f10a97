"""run_bench() runs the trials that are missing, writes one line for each as it ends, then the tables, the pictures and the page."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from oche import config
from oche.bench.baselines import size_metric
from oche.bench.cluster import cluster
from oche.bench.identity import changed, table_code
from oche.bench.matrix import FREE, Matrix, check
from oche.bench.page import write
from oche.bench.planned import Objects, Trial, trials
from oche.bench.pool import Done, Work, here, in_processes, on_ray
from oche.bench.result import BenchFolder, BenchResult, Finished, finished, matrix_of, read
from oche.bench.settled import settled
from oche.bench.spawning import check_spawning
from oche.bench.tables import facts, values, zero_cost_scores
from oche.bench.trial import Outcome, run_trial
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.plan.processes import launched
from oche.plan.resolve import resolve
from oche.report import attempt
from oche.run import Listener, Run, records, silent
from oche.tables import TableLike, table_named

Render = Callable[[BenchResult], object]
"""Writes the files of a result: `page.write`, or a function that puts more on the page."""


def run_bench(
    matrix: Matrix,
    out: str | Path,
    workers: int = 1,
    address: str | None = None,
    listener: Listener = silent,
    *,
    only: Sequence[str] = (),
    table: TableLike | None = None,
    parts: Mapping[str, object] | None = None,
    work: Work = run_trial,
    render: Render = write,
) -> BenchResult:
    """Runs what is missing of a bench in the folder `out`, and renders the result.

    `workers` processes work at a time; with an `address` the trials are tasks of that Ray cluster ("local": one on this machine).
    A trial that fails is reported and stays missing; the others go on. `only` names the methods and arms to run now, all where it is
    empty; the rest stays missing. `table` takes the place of the matrix's own; `parts` are methods, spaces and data as objects,
    by the names that the matrix has for them. `work` takes the place of `run_trial`, `render` writes the result.
    `listener` is called with ("begin", {total, missing, folder}), `missing` being those to run now, then as each trial ends with
    ("trial", {...}) or ("failed", {name, reason}).
    Raises UserError for a matrix that contradicts itself, or a folder of another bench.
    """
    _check_workers(matrix, workers, address)
    if workers > 1:
        check_spawning((table, parts, work))
    asked = table or _own_table(matrix)
    matrix = settled(matrix, asked)
    check(matrix, asked, parts)
    folder = _fitting(Path(out), matrix)
    everything = trials(matrix, Objects(parts or {}, table))
    for name in only:
        if name not in matrix.searched:
            raise unknown("method or arm of this bench", name, matrix.searched)
    for trial in _one_of_a_kind(_missing(everything, folder, only)):
        resolve(trial.whole)  # a mistake in the last method is told before the first one has run for hours
    found = (
        facts(asked, matrix.looked_up, matrix.selector, matrix.zero_cost or _scores(asked, matrix)) if asked else None
    )
    with cluster(address, matrix.cpus, matrix.gpus), _fresh(folder).lock():
        _write_request(folder, matrix)
        if found is not None:
            folder.write(folder.FACTS, json.dumps(found.table()).encode())
        missing = _missing(everything, folder, only)
        listener("begin", {"total": len(everything), "missing": len(missing), "folder": str(folder.path)})
        on_cluster = address is not None
        ended = _run(missing, folder.file(folder.RUNS).resolve(), matrix, workers, on_cluster, work)
        failures = dict(_kept(ended, folder, matrix, asked, listener))
        result = replace(read(folder.path), failures=failures)
        show_again = "oche study show" if folder.has(BenchFolder.STUDY) else "oche bench show"
        attempt(lambda: render(result), folder.path, show_again)
    return result


def _kept(
    ended: Iterable[Done], folder: BenchFolder, matrix: Matrix, table: TableLike | None, listener: Listener
) -> Iterator[tuple[str, str]]:
    """Writes a line for each trial that succeeds and tells the listener of every trial; yields (name, reason) of those that fail."""
    for trial, outcome in ended:
        if isinstance(outcome, Outcome):
            line = _line(trial, outcome, matrix, table)
            earlier = folder.read(folder.TRIALS) if folder.has(folder.TRIALS) else b""
            folder.write(folder.TRIALS, earlier + records.seal(asdict(line)))
            listener("trial", {**asdict(line), "metric": matrix.reported[0], "value": line.values[matrix.reported[0]]})
        else:
            listener("failed", {"name": trial.name, "reason": str(outcome)})
            yield trial.name, str(outcome)


def show(
    path: str | Path, baseline: str | None = None, figures: str = "svg", names: Mapping[str, str] | None = None
) -> BenchResult:
    """Renders a bench's tables, pictures and page anew, from its files alone.

    Args:
        path: the bench's folder.
        baseline: the method or arm that the others are compared with; the bench's own by default.
        figures: `pdf` writes the pictures as PDF, too.
        names: what methods and arms are called in tables and pictures, `{"rf_darts": "RF-DARTS"}`.

    Raises UserError where there is no bench, no such baseline or method in it, or two would be called the same.
    """
    result = read(Path(path))
    if baseline is not None:
        if baseline not in result.matrix.searched:
            raise unknown("baseline", baseline, result.matrix.searched)
        result = replace(result, matrix=replace(result.matrix, baseline=baseline))
    result = replace(result, names=_called(result, names or {}))
    if result.folder.has(BenchFolder.STUDY):
        raise UserError(f"{str(path)!r} holds a study, whose page says more: `oche study show {path}`.")
    write(result, pdf=figures == "pdf")
    return result


def _called(result: BenchResult, names: Mapping[str, str]) -> Mapping[str, str]:
    """The names, if each is a method's and no two methods are called the same. Raises UserError."""
    searched = result.matrix.searched
    for method in names:
        if method not in searched:
            raise unknown("method", method, searched)
    called = [names.get(method, method) for method in searched]
    if same := [name for name in called if called.count(name) > 1 or not name.strip()]:
        raise UserError(f"Each method needs a name of its own; {same[0]!r} would be none.")
    return dict(names)


# ------------------------------------------------------------------ before the trials


def _check_workers(matrix: Matrix, workers: int, address: str | None) -> None:
    if launched():
        raise UserError("A bench starts processes of its own (`--workers`, `--address`): start it without torchrun.")
    if workers < 1:
        raise UserError(f"A bench needs at least one worker; given {workers}.")
    if address is not None and workers > 1:
        raise UserError(
            "How many trials run at a time on a Ray cluster, `cpus` and `gpus` decide: leave --workers out."
        )
    if address is not None and matrix.device.startswith("cuda") and not matrix.gpus:
        raise UserError(
            f"Ray hides the GPUs from a trial that asks for none: device={matrix.device!r} needs --gpus 1, or a part."
        )


def _own_table(matrix: Matrix) -> TableLike | None:
    """The table that the matrix names, if it looks cells up."""
    named = matrix.table if matrix.evaluate != "train" else None  # the check says what such a matrix contradicts
    return table_named(named, matrix.table_folder) if named is not None else None


def _fitting(path: Path, matrix: Matrix) -> BenchFolder:
    """The folder, if it is new or holds the same bench, whose axes may have grown. Raises UserError for any other."""
    folder = BenchFolder(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{str(path)!r} is a file; a bench needs a folder.")
    if folder.has(Run.CONFIG):
        old, new = matrix_of(folder).written(), matrix.written()
        for name in new.keys() - FREE:
            if old[name] != new[name]:
                raise UserError(
                    f"{str(path)!r} holds a bench with {name}={old[name]!r}, not {new[name]!r}: choose another folder (`--out`)."
                )
    return folder


def _fresh(folder: BenchFolder) -> BenchFolder:
    """The folder, made only now: a mistake leaves nothing that the corrected bench would clash with."""
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def _write_request(folder: BenchFolder, matrix: Matrix) -> None:
    versions = {name: version(name) for name in ("oche", "torch")} | {"python": platform.python_version()}
    folder.write(Run.CONFIG, config.dumps({"bench": matrix.written(), "versions": versions}).encode())


def _missing(everything: Sequence[Trial], folder: BenchFolder, only: Sequence[str]) -> tuple[Trial, ...]:
    """The trials to run now. Raises UserError for one that was done with other settings, files or another version."""
    done = finished(folder)
    for trial in everything:
        old = done.get(trial.name)
        if old and (what := changed(trial, old.asked, old.code, old.version)):
            raise UserError(
                f"{trial.name} was run {what} in this folder, so new rows would not be comparable: choose another folder, or take its line "
                f"out of {BenchFolder.TRIALS} and its folder out of {BenchFolder.RUNS}."
            )
    return tuple(t for t in everything if t.name not in done and (not only or t.method in only))


def _one_of_a_kind(missing: Sequence[Trial]) -> Iterator[Trial]:
    """A trial of each method, space, data and budget."""
    yield from {(t.method, t.space, t.data, t.budget): t for t in reversed(missing)}.values()


def _scores(table: TableLike, matrix: Matrix) -> tuple[str, ...]:
    return zero_cost_scores(table, matrix.metrics[0])


# ------------------------------------------------------------------ the trials


def _run(
    missing: Sequence[Trial], folder: Path, matrix: Matrix, workers: int, on_cluster: bool, work: Work
) -> Iterator[Done]:
    if on_cluster:
        return on_ray(missing, folder, work, matrix.cpus, matrix.gpus)
    return here(missing, folder, work) if workers == 1 else in_processes(missing, folder, work, workers)


def _line(trial: Trial, outcome: Outcome, matrix: Matrix, table: TableLike | None) -> Finished:
    """The trial's line: its outcome, with the table's values of its cell and of each epoch's."""

    def looked_up(cell: str, metrics: Sequence[str]) -> dict[str, float | None]:
        return dict(values(table, Genotype.parse(cell, trial.objects.space(trial.space)), metrics)) if table else {}

    first = matrix.metrics[:1]
    size = size_metric(table, first[0]) if table and first else None
    metrics = (*matrix.looked_up, *([size] if size and size not in matrix.looked_up else []))
    curve = [(epoch, skips, next(iter(looked_up(cell, first).values()), None)) for epoch, skips, cell in outcome.epochs]
    return Finished(
        trial.name,
        trial.method,
        trial.space,
        trial.data,
        trial.budget,
        trial.seed,
        trial.asked(),
        outcome.genotype,
        {**looked_up(outcome.genotype, metrics), **outcome.measured},
        tuple(curve),
        outcome.seconds,
        outcome.train_seconds,
        outcome.memory_mib,
        outcome.device,
        outcome.parameters,
        outcome.multiply_adds,
        outcome.probes,
        outcome.warning,
        {**outcome.code, **table_code(matrix)},
        version("oche"),
    )
