"""One trial: a search in its own run folder, and the training of the cell it found. Called again, it carries on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from oche import config
from oche.api import cpu_threads, out_of_memory, problem_of, reopen
from oche.bench.matrix import SUPERNET, SUPERNET_TRAIN, TRAINED_TEST, TRAINED_VAL, Trial, asked
from oche.cost import cost
from oche.data import none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan import Plan, TrainRequest, resolve, resolve_training, searched_size, training_table
from oche.run import Run
from oche.strategies import find
from oche.train import Training, evaluate, retrain

NUMBERS = (
    "entropy",
    "parameter_free",
    "weight_accuracy",
    "weight_miou",
    "eigenvalue",
    "discretisation_gap",
    "kendall_tau",
)
"""What is kept of each epoch's record, beside skips and the cell."""


@dataclass(frozen=True)
class Outcome:
    """Of a trial, in plain values: the cell, what was measured, and (epoch, skips, cell) after every epoch of the search.

    `probes` are (epoch, value) by the number's key in the record; `warning` is what the monitor said.

    `parameters` and `multiply_adds` are those of the network that was trained, or else of the cell at the searched size.
    """

    genotype: str
    measured: Mapping[str, float] = field(default_factory=dict)
    epochs: tuple[tuple[int, int, str], ...] = ()
    seconds: float = 0.0
    train_seconds: float = 0.0
    memory_mib: float | None = None
    device: str = "cpu"
    parameters: int = 0
    multiply_adds: int = 0
    probes: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    warning: str = ""


def run_trial(trial: Trial, folder: Path) -> Outcome:
    """Searches and trains, from wherever the folder stands. Raises UserError where the folder is of another trial."""
    plan, run = _opened(trial, folder)
    with out_of_memory(plan.batch), cpu_threads(plan.request.threads):
        genotype, tail = _searched(plan, run)
        trained, training = _trained(plan, run, genotype) if trial.train else ({}, None)
    records = run.records()
    epochs = [r for r in records if r.get("kind") == "epoch"]
    supernet = [r for r in records if r.get("kind") == "supernet"][-1:]
    measured = {**trained, **({SUPERNET: 100 * _number(supernet[0], f"val_{plan.task.metric}")} if supernet else {})}
    if epochs:
        measured[SUPERNET_TRAIN] = 100 * _number(epochs[-1], f"weight_{plan.task.metric}")
    price = cost(training.space if training else plan.space, genotype)
    return Outcome(
        str(genotype),
        measured,
        tuple((int(_number(r, "epoch")) + 1, _skips(r), str(r["genotype"])) for r in epochs),
        sum(_number(r, "seconds") for r in epochs) + tail,
        sum(_number(r, "seconds") for r in training.run.records() if r.get("kind") == "train_epoch")
        if training and training.run
        else 0.0,
        max((_number(r, "memory_mib") for r in epochs), default=None),
        str(plan.fabric.device),
        price.parameters,
        price.multiply_adds,
        {key: found for key in NUMBERS if (found := tuple(_series(epochs, key)))},
        next((str(r["warning"]) for r in epochs if "warning" in r), ""),
    )


# ------------------------------------------------------------------ search and training


def _opened(trial: Trial, folder: Path) -> tuple[Plan, Run]:
    """The plan of a new trial, or of an interrupted one as its run.toml has it."""
    if not (folder / Run.CONFIG).is_file():
        plan = resolve(trial.request)
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(folder)
        run.write(Run.CONFIG, config.dumps(plan.table()).encode())
        return plan, run
    plan, run = reopen(folder)
    if asked(plan.request) != trial.asked():
        raise UserError(f"{folder} holds a search with other settings than this bench's; choose another folder.")
    return plan, run


def _searched(plan: Plan, run: Run) -> tuple[Genotype, float]:
    """The found cell, and the seconds that passed after the last epoch, when some methods still choose."""
    if run.has(Run.GENOTYPE):
        return Genotype.from_json(run.read(Run.GENOTYPE).decode()), 0.0
    mark = time.perf_counter()

    def listen(event: str, record: Mapping[str, object]) -> None:
        nonlocal mark
        if event == "epoch":
            mark = time.perf_counter()

    problem = problem_of(plan, run, listen)
    return find(plan.searcher, problem, plan.watch)[0], time.perf_counter() - mark


def _trained(plan: Plan, run: Run, genotype: Genotype) -> tuple[dict[str, float], Training]:
    """Validation and test score (accuracy, mean IoU) in percent of the cell's network, trained from scratch in a folder of its own."""
    asked = plan.request
    settings = {path: value for path, value in asked.settings.items() if path.startswith(("train.", "task."))}
    request = TrainRequest(
        genotype.to_json(),
        genotype.space,
        asked.data,
        asked.protocol,
        seed=asked.seed,
        device=asked.device,
        precision=asked.precision,
        threads=asked.threads,
        settings=settings,
    )
    own = Run(run.file("trained"))
    own.path.mkdir(exist_ok=True)
    training = replace(resolve_training(request, plan.data, searched_size(plan.table())), run=own)
    own.write(Run.CONFIG, config.dumps(training_table(request, training)).encode())
    network, plain = retrain(training), none(training.data)
    parts = {TRAINED_VAL: training.data.val, TRAINED_TEST: training.data.test}
    scores = {name: evaluate(network, images, plain, training.fabric, training.task) for name, images in parts.items()}
    return {name: 100 * score.value for name, score in scores.items()}, training


# ------------------------------------------------------------------ helpers


def _number(record: Mapping[str, object], key: str) -> float:
    value = record[key]
    assert isinstance(value, int | float)
    return float(value)


def _series(epochs: Sequence[Mapping[str, object]], key: str) -> Iterator[tuple[int, float]]:
    """(epoch, value) of the records that have it; the first epoch is 1."""
    for record in epochs:
        if isinstance(record.get(key), int | float):
            yield int(_number(record, "epoch")) + 1, _number(record, key)


def _skips(record: Mapping[str, object]) -> int:
    skips = record["skips"]
    assert isinstance(skips, dict)
    return sum(skips.values())
