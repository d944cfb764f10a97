"""The verbs as functions: `oche.search(...)`, then `.train()`, `.export()`, `.report()` on what it returns.

The command line calls these and adds nothing but words, so whatever it does can be done from Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors.torch import load as safetensors_load

from oche import config
from oche.api.pick import picked
from oche.data import Data, for_search, none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan.resolve import (
    Plan,
    Request,
    TrainRequest,
    requested,
    resolve,
    resolve_training,
    searched_size,
    threads_for,
    training_table,
)
from oche.report import render
from oche.run import Listener, Run, silent
from oche.search.inherit import inherited
from oche.search.preflight import Estimate, estimate
from oche.search.searcher import as_searcher
from oche.search.state import Problem, SearchState
from oche.spaces import Network
from oche.tasks import named
from oche.training.compare import Comparison, compare
from oche.training.evaluate import Score, evaluate
from oche.training.export import (
    CARD,
    FORMATS,
    WEIGHTS,
    Deployed,
    available_formats,
    export_network,
    load_network,
    save_network,
)
from oche.training.train import START, Training, retrain
from oche.training.train import begin as begin_training

RUNS = Path("runs")
"""Where runs go unless `out` says otherwise."""


@dataclass(frozen=True)
class Found:
    """What `search` returns: the run's folder, the genotype, and the comparison with random cells if one was asked for."""

    run: Run
    genotype: Genotype
    comparison: Comparison | None = None

    @property
    def history(self) -> list[dict[str, object]]:
        """One record an epoch: losses, accuracies, entropy, skips, genotype."""
        return [record for record in self.run.records() if record.get("kind") == "epoch"]

    def train(self, protocol: str = "auto", **options: object) -> Trained:
        """Trains the found network from scratch, in a run folder of its own; see `oche.train`."""
        return config.build(train, {"genotype": self.run.path, "protocol": protocol, **options}, "train")

    def export(self, formats: Sequence[str] = FORMATS) -> list[Path]:
        """Writes `.pt2` and ONNX files of the network: the one trained in the comparison, or the search's own where it keeps weights."""
        return export_network(self.run, formats)

    def report(self) -> Path:
        """Writes report.html and figures."""
        return render(self.run)


@dataclass(frozen=True)
class Trained:
    """What `train` returns: the run's folder and the test score of the weights that its protocol keeps."""

    run: Run
    test: Score

    def export(self, formats: Sequence[str] = FORMATS) -> list[Path]:
        """Writes `.pt2` and ONNX files."""
        return export_network(self.run, formats)

    def network(self) -> torch.nn.Module:
        """The trained network, a plain module: images (B, C, H, W) in [0, 1] -> class scores."""
        loaded = load_network(self.run)
        return Deployed(loaded.network, loaded.augment.mean, loaded.augment.std).eval()


# ------------------------------------------------------------------ search


def search(
    method: str = "rf_darts",
    *,
    space: str = "auto",
    data: str | Data = "digits",
    task: str | None = None,
    budget: str = "quick",
    epochs: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    precision: str = "32",
    threads: int | None = None,
    compare: int | None = None,
    compare_seeds: int = 3,
    protocol: str = "auto",
    settings: Mapping[str, object] | None = None,
    probes: Sequence[str] = (),
    seeds: int = 1,
    pick: str = "validation",
    recompute: bool = False,
    compile: bool = False,
    out: str | Path | None = None,
    listener: Listener = silent,
) -> Found:
    """Searches a space for a cell that fits the data, and trains it beside `compare` random cells (None: 3).

    A method that keeps its supernet's weights (`single_stage`) is trained already: its network is written and tested as it is, and
    `compare`, then 0 unless given, trains its architecture from scratch beside the random cells and leaves that network alone.

    `task` ("classify", "segment") says what the data is for, where it could be either; `space` and `protocol` follow it unless named.
    `method`, `space`, `budget`, `protocol` are names (`oche list ...`), `data` a name, a path or a `Data`; `settings` are assignments such
    as `{"space.cells": 3, "trainable.classifier": True}`; `probes` are measured after each epoch, see `oche.watch`. Of several `seeds`,
    `seed` and those after it, the cell is picked that is best on validation images when trained (`oche.api.pick`). `recompute` trades time
    for memory: each cell runs again in its backward pass instead of keeping what it computed. `compile` has torch.compile make
    programs of the cells that no kernels of ours compute, which takes minutes before the first step. `out` is the run's folder,
    `runs/METHOD-SPACE` by default; an existing one is never overwritten. Raises UserError for anything unknown or impossible.
    """
    request = Request(
        method, space, data if isinstance(data, str) else data.name, budget, epochs, batch, seed, device, devices, precision, threads,
        compare, compare_seeds, protocol, with_task(settings or {}, task, data), tuple(probes), seeds, pick, recompute, compile,
    )  # fmt: skip
    plan = resolve(request, data if isinstance(data, Data) else None)
    return carry_out(plan, start(plan, out), listener)


def with_task(settings: Mapping[str, object], task: str | None, data: str | Data) -> dict[str, object]:
    """Settings that read the data for this task. Raises UserError where data that is already read is for another."""
    if task is None or isinstance(data, Data):
        if task not in (None, data.task if isinstance(data, Data) else None):
            raise UserError(
                f"The data is to {data.task if isinstance(data, Data) else ''}, not to {task}: leave the task out."
            )
        return dict(settings)
    return {**settings, "data.task": task}


def start(plan: Plan, out: str | Path | None = None) -> Run:
    """Makes the run's folder and writes run.toml."""
    name = plan.searcher.name if ":" in plan.request.method else plan.request.method
    return begun(plan.fabric, Path(out) if out else RUNS / f"{name}-{plan.request.space}", plan.table())


def begun(fabric: Fabric, path: Path, table: Mapping[str, object]) -> Run:
    """A new run with its run.toml; of several processes one makes the folder, and all get to know its name."""
    made = ""
    if fabric.is_global_zero:
        run = Run.create(path)
        run.write(Run.CONFIG, config.dumps(table).encode())
        made = str(run.path)
    return Run(Path(str(fabric.broadcast(made))))


def reopen(path: str | Path, data: Data | None = None) -> tuple[Plan, Run]:
    """The plan of an earlier search, to be carried on. `data` is needed where it had been given as an object. Raises UserError."""
    run = Run.open(Path(path))
    request, table = requested(run)
    if not isinstance(request, Request):
        raise UserError(f"{path} is a training; carry on with it by `oche train --resume {path}`.")
    return resolve(request, data, table), run


def resume(path: str | Path, data: Data | None = None, listener: Listener = silent) -> Found | Trained:
    """Carries on with a search or a training that was interrupted; a finished one is left as it is. Raises UserError."""
    run = Run.open(Path(path))
    request, table = requested(run)
    if isinstance(request, TrainRequest):
        return finish_training(resolve_training(request, data, recorded=table), run, request.threads, listener)
    return carry_out(resolve(request, data, table), run, listener)


def problem_of(plan: Plan, run: Run | None = None, listener: Listener = silent) -> Problem:
    """The search that a plan describes."""
    return Problem(
        space=plan.space,
        data=plan.data.to(plan.fabric.device),
        task=plan.task,
        augment=for_search(plan.data),
        epochs=plan.epochs,
        batch=plan.batch,
        seed=plan.request.seed,
        fabric=plan.fabric,
        run=run,
        listener=listener,
        recompute=plan.request.recompute,
        compile=plan.request.compile,
    )


def measured(plan: Plan) -> Estimate | None:
    """Memory and time of a plan, from one measured step; None where nothing is searched by steps. Raises UserError if it cannot fit."""
    with cpu_threads(plan.request.threads):
        method = as_searcher(plan.searcher).method
        return estimate(problem_of(plan), method) if method else None


def carry_out(plan: Plan, run: Run, listener: Listener = silent) -> Found:
    """Searches, compares, exports the network, writes the report; what a run already holds is not done again."""
    problem, keeps = problem_of(plan, run, listener), as_searcher(plan.searcher).keeps_weights
    with out_of_memory(plan.batch), cpu_threads(plan.request.threads):
        if run.has(Run.GENOTYPE) and (run.has(CARD) or not keeps):
            genotype = Genotype.from_json(run.read(Run.GENOTYPE).decode())
        elif plan.request.seeds > 1:

            def one(part: Plan, own: Run) -> tuple[Genotype, Network | None]:
                found = carry_out(part, own, listener)
                return found.genotype, load_network(own).network.to(plan.fabric.device) if keeps else None

            genotype = picked(plan, run, one, listener)
        else:
            genotype, state = as_searcher(plan.searcher).run(problem, plan.watch.callbacks())
            if keeps and state:
                keep_supernet(run, state, genotype)
        comparison = None
        if plan.compare > 0:
            training = Training(
                plan.space,
                genotype,
                problem.data,
                plan.protocol,
                plan.request.seed,
                plan.fabric,
                run,
                listener,
                plan.task,
            )

            def keep(network: Network, score: float) -> None:
                if plan.fabric.is_global_zero and not keeps:
                    metrics = {f"test_{plan.task.metric}": score}
                    save_network(run, network, plan.space, genotype, plan.data, metrics)

            comparison = compare(training, cells=plan.compare, seeds=plan.request.compare_seeds, keep=keep)
            if plan.fabric.is_global_zero and not _logged(run, "comparison"):
                run.log(comparison.record())
            if plan.fabric.is_global_zero:
                missing = [name for name in available_formats() if not run.has(f"{Run.NETWORK}/model.{name}")]
                export_network(run, missing)
    if plan.fabric.is_global_zero:
        render(run)
    return Found(run, genotype, comparison)


def keep_supernet(run: Run, state: SearchState, genotype: Genotype) -> None:
    """Writes the network that a search's supernet is, with its validation and test scores."""
    problem = state.problem
    network, plain = inherited(state, genotype), none(problem.data)
    val, test = (
        evaluate(network, part, plain, problem.fabric, problem.task) for part in (problem.data.val, problem.data.test)
    )
    if problem.fabric.is_global_zero:
        record = {"kind": "network", **named(val.metrics, "val"), "val_loss": val.loss}
        run.log(record)
        log_test(run, problem.data, test)
        save_network(run, network, problem.space, genotype, problem.data, named(test.metrics, "test"))
    problem.listener("network", {**named(val.metrics, "val"), **named(test.metrics, "test")})


# ------------------------------------------------------------------ train


def train(
    genotype: str | Path,
    *,
    data: str | Data | None = None,
    space: str | None = None,
    protocol: str = "auto",
    epochs: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    precision: str = "32",
    threads: int | None = None,
    inherit: bool = False,
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    listener: Listener = silent,
) -> Trained:
    """Trains a genotype's network on the train images, from scratch, and scores it on the test images.

    With `inherit` it begins with the weights of the network in the run's folder instead (training on).
    `genotype` is a search's folder (whose data and space are taken over), a genotype file, a published string, or the name of a
    published cell; `protocol` is one of `oche list protocols`. Raises UserError.
    """
    request = TrainRequest(
        str(genotype), space, data if isinstance(data, str) else None, protocol, epochs, batch, seed, device, devices, precision, threads,
        dict(settings or {}), inherit,
    )  # fmt: skip
    plan = plan_training(request, data if isinstance(data, Data) else None)
    return finish_training(plan.training, plan.start(out), plan.request.threads, listener)


@dataclass(frozen=True)
class TrainPlan:
    """A request to train, resolved, before its folder exists; `start` is the file of the weights to begin with, if there is one."""

    request: TrainRequest
    training: Training
    name: str
    start_with: bytes | None = None

    def start(self, out: str | Path | None = None) -> Run:
        """Makes the run's folder and writes run.toml."""
        training = self.training
        run = begun(training.fabric, Path(out) if out else RUNS / self.name, training_table(self.request, training))
        if training.fabric.is_global_zero:
            run.write(Run.GENOTYPE, training.genotype.to_json().encode())
            if self.start_with is not None:
                run.write(START, self.start_with)
        return run


def plan_training(request: TrainRequest, data: Data | None = None) -> TrainPlan:
    """Resolves what `train` was asked for; from a search's folder, its data and size are taken over. Raises UserError."""
    genotype, source = genotype_of(request.genotype, request.space)
    if request.inherit and source is None:
        raise UserError("Only a run's folder has weights to begin with: name one, or leave `--inherit` out.")
    size, earlier, settings = None, "digits", dict(request.settings)
    if source:
        searched, table = requested(source)
        settings = {k: v for k, v in searched.settings.items() if k.startswith("task.")} | settings
        size, earlier = searched_size(table), searched.data or earlier
        if request.data is None and data is None:  # the search's split too: its images must not be tested on
            own = {k: v for k, v in searched.settings.items() if k.startswith("data.")}
            settings = {"data.seed": searched.seed, **own, **settings}
    name = data.name if data else request.data or earlier
    request = replace(request, genotype=str(genotype), space=genotype.space, data=name, settings=settings)
    training = resolve_training(request, data, size)
    request = replace(request, threads=threads_for(request.threads, training.data))
    start_with = None
    if request.inherit and source:
        training = replace(training, start=load_network(source).network.state_dict())
        begin_training(training)  # refuses weights that do not fit before there is a folder
        start_with = source.read(WEIGHTS)
    return TrainPlan(
        request, training, f"{source.path.name}-train" if source else f"{genotype.space}-train", start_with
    )


def finish_training(training: Training, run: Run, threads: int | None = None, listener: Listener = silent) -> Trained:
    """Trains from wherever the run stands, scores the result on the test images, exports it, writes the report."""
    start = safetensors_load(run.read(START)) if run.has(START) else None
    training = replace(training, run=run, listener=listener, start=start)
    with out_of_memory(training.protocol.batch), cpu_threads(threads):
        network = retrain(training)
        test = evaluate(network, training.data.test, none(training.data), training.fabric, training.task)
    if training.fabric.is_global_zero:
        metrics = named(test.metrics, "test")
        save_network(run, network, training.space, training.genotype, training.data, metrics)
        log_test(run, training.data, test)
        render(run)
    return Trained(run, test)


def log_test(run: Run, data: Data, test: Score) -> None:
    """A trained network's test score: its metrics, of masks each class's IoU, and the confusion matrix."""
    run.log({"kind": "test", **test.metrics, "loss": test.loss})
    for name, iou in zip(data.classes, test.iou, strict=True) if data.ignore is not None else ():
        run.log({"kind": "class", "class": name, "iou": None if isnan(iou) else iou})
    run.log({"kind": "confusion", "classes": list(data.classes), "matrix": [list(row) for row in test.confusion]})


def genotype_of(text: str | Path, space: str | None = None) -> tuple[Genotype, Run | None]:
    """A genotype from a run's folder, a JSON file, a published string or a published cell's name; and the run if it was one."""
    path = Path(text)
    short = len(str(text)) < 250  # a longer one is no path, and asking the file system would fail
    run = Run.open(path) if short and path.is_dir() else None
    if run:
        genotype = Genotype.from_json(run.read(Run.GENOTYPE).decode(errors="replace"))
    else:
        genotype = Genotype.parse(path.read_text(errors="replace") if short and path.is_file() else str(text), space)
    if space and genotype.space != space:
        raise UserError(f"The genotype is of the space {genotype.space!r}, not of {space!r}: leave `--space` out.")
    return genotype, run


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Lets torch use that many threads in between."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def out_of_memory(batch: int) -> Iterator[None]:
    """Turns an allocation that failed into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise  # the CPU's allocator has no error of its own
        raise UserError(
            f"Out of memory with a batch of {batch}: try half of it (--batch {max(2, batch // 2)}); what was done is kept."
        ) from None


def _logged(run: Run, kind: str) -> bool:
    return any(record.get("kind") == kind for record in run.records())
