"""One trial: a search in its own run folder, and the training of the cell it found. Called again, it carries on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightning_fabric import Fabric
from torch import Tensor, nn

from oche import config
from oche.api.expected import fitting
from oche.api.folders import fitted, write_table
from oche.api.limits import cpu_threads, gradients, out_of_memory
from oche.api.problems import problem_of
from oche.api.resume import reopen
from oche.bench.identity import changed_files, checksums
from oche.bench.matrix import SUPERNET, SUPERNET_TRAIN, TRAINED_TEST, TRAINED_VAL
from oche.bench.planned import Trial
from oche.data import Data, none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell
from oche.methods.evaluators import TableScore
from oche.plan.request import TrainRequest
from oche.plan.resolve import Plan, resolve
from oche.plan.training import resolve_training, searched_size, training_table
from oche.report.claims import rolled_back
from oche.run import Run
from oche.search.searcher import SearcherLike, as_searcher
from oche.spaces import Space
from oche.spaces.cost import cost
from oche.spaces.fit import built
from oche.tables import TableLike
from oche.tasks import Task
from oche.training.evaluate import evaluate
from oche.training.train import Training, retrain

NUMBERS = (
    "entropy",
    "parameter_free",
    "weight_accuracy",
    "weight_miou",
    "arch_accuracy",
    "arch_miou",
    "eigenvalue",
    "discretisation_gap",
    "kendall_tau",
)
"""Numbers that are kept of each epoch's record, beside skips and the cell."""


@dataclass(frozen=True)
class Outcome:
    """A trial's result in plain values: the cell, what was measured, and (epoch, skips, cell) after every epoch of the search.

    Of a search that asks for cells one by one, `epochs` has (query, skips, cell) after every query.

    `probes` are (epoch, value) by the number's key in the record; `warning` is what the monitor said; `code` has the checksum of each file
    of the user's own, by path.

    `parameters` and `multiply_adds` are those of the network that was judged, or else of the cell at the searched size.
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
    code: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """The evaluation of a search's cell: scores in percent, the network they are of, the seconds it trained, numbers by epoch of search.

    `cells` are the discrete ones after every epoch, where the network is none and the log's are not.
    """

    measured: Mapping[str, float]
    genotype: Genotype
    space: Space
    seconds: float = 0.0
    series: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    cells: tuple[Genotype, ...] = ()


BEST = "best_validation"
"""The best score so far, by query, among the numbers of a trial whose search asks for cells one by one."""

PATIENCE = 100.0
"""Seconds in which a server of shared folders finds out that a machine is lost and lets go of its lock, about."""

After = Callable[[Trial, Plan, Run, Genotype], Judged]
"""Evaluates a search's cell in its run folder. Called again after a kill, it carries on."""


def trained(trial: Trial, plan: Plan, run: Run, genotype: Genotype) -> Judged:
    """The cell's network trained from scratch, if the bench trains."""
    if not trial.train:
        return Judged({}, genotype, built(plan.space, fitted(run)))
    scores, training, seconds = trained_network(plan, run, genotype)
    return Judged(scores, genotype, training.space, seconds)


def run_trial(trial: Trial, folder: Path, after: After = trained) -> Outcome:
    """Searches, then `after`, from wherever the folder stands. Raises UserError where the folder is another trial's, or written to."""
    plan, run = _opened(trial, folder)
    with gradients(), run.lock(PATIENCE), out_of_memory(plan.batch), cpu_threads(plan.request.threads):
        genotype, tail = _searched(plan, run, trial.objects.table)
        judged = after(trial, plan, run, genotype)
    records = run.records()
    epochs = [r for r in records if r.get("kind") == "epoch"]
    queries = [r for r in records if r.get("kind") == "query"]
    supernet = [r for r in records if r.get("kind") == "supernet"][-1:]
    measured = dict(judged.measured)
    if supernet:
        measured[SUPERNET] = 100 * _number(supernet[0], f"val_{plan.task.metric}")
    if epochs:
        measured[SUPERNET_TRAIN] = 100 * _number(epochs[-1], f"weight_{plan.task.metric}")
    price = cost(judged.space, judged.genotype)
    logged = tuple((int(_number(r, "epoch")) + 1, _skips(r), str(r["genotype"])) for r in epochs)
    asked = tuple((int(_number(r, "query")), _skips(r), str(r["genotype"])) for r in queries)
    best = {BEST: tuple((int(_number(r, "query")), _number(r, "best")) for r in queries)} if queries else {}
    return Outcome(
        str(judged.cells[-1] if judged.cells else judged.genotype),
        measured,
        tuple((n, sum(c.skips().values()), str(c)) for n, c in enumerate(judged.cells, start=1)) or asked or logged,
        sum(_number(r, "seconds") for r in epochs) + tail,
        judged.seconds,
        max((_number(r, "memory_mib") for r in epochs), default=None),
        str(plan.fabric.device),
        price.parameters,
        price.multiply_adds,
        {**{key: found for key in NUMBERS if (found := tuple(_series(epochs, key)))}, **best, **judged.series},
        " ".join(
            said for said in (next((str(r["warning"]) for r in epochs if "warning" in r), ""), _back(run)) if said
        ),
        checksums(run),
    )


# ------------------------------------------------------------------ search and training


def _opened(trial: Trial, folder: Path) -> tuple[Plan, Run]:
    """The plan of a new trial, or of an interrupted one as its run.toml has it."""
    if not (folder / Run.CONFIG).is_file():
        plan = resolve(trial.whole)
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(folder)
        write_table(run, plan.table(), plan.files)
        return plan, run
    if others := changed_files(Run(folder)):
        raise UserError(
            f"{folder} holds a trial that began with {', '.join(others)} as it was before it changed: choose another folder, "
            "or remove that one."
        )
    plan, run = reopen(folder, **trial.handed)
    if not trial.same(plan.request):
        raise UserError(f"{folder} holds a search with other settings than this bench's; choose another folder.")
    return plan, run


def _searched(plan: Plan, run: Run, table: TableLike | None = None) -> tuple[Genotype, float]:
    """The found cell, and the seconds that passed after the last epoch, when some methods still choose."""
    if run.has(Run.GENOTYPE):
        return Genotype.from_json(run.read(Run.GENOTYPE).decode()), 0.0
    fitting(plan)
    mark = time.perf_counter()

    def listen(event: str, record: Mapping[str, object]) -> None:
        nonlocal mark
        if event == "epoch":
            mark = time.perf_counter()

    problem = replace(problem_of(plan, run, listen), literal=True)  # a method is judged by its own rule
    genotype, _ = as_searcher(asking(plan.searcher, table)).run(problem, plan.callbacks)
    return genotype, time.perf_counter() - mark


def asking(searcher: SearcherLike, table: TableLike | None) -> SearcherLike:
    """The searcher; if it asks a table and there is one as an object, it asks that one."""
    if table is None or not isinstance(searcher, AskTell) or not isinstance(searcher.evaluator, TableScore):
        return searcher
    return replace(searcher, evaluator=replace(searcher.evaluator, given=table))


def trained_network(
    plan: Plan, run: Run, genotype: Genotype, start: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, float], Training, float]:
    """The cell's network trained in a folder of its own, from scratch or from the weights `start`.

    Its validation and test score (accuracy, mean IoU) in percent, what was trained, and the seconds that took.
    """
    asked = plan.request
    settings = {path: value for path, value in asked.settings.items() if path.startswith(("train.", "task."))}
    request = TrainRequest(
        genotype.to_json(),
        space=genotype.space,
        data=asked.data,
        protocol=asked.protocol,
        seed=asked.seed,
        device=asked.device,
        precision=asked.precision,
        threads=asked.threads,
        settings=settings,
        latency_table=asked.latency_table,
    )
    own = Run(run.file("trained"))
    own.path.mkdir(exist_ok=True)
    size = searched_size({"space": config.describe(built(plan.space, fitted(run)))})
    training = replace(
        resolve_training(replace(request, data=plan.data), size, limits=plan.limits.table()), run=own, start=start
    )
    own.write(Run.CONFIG, config.dumps(training_table(request, training)).encode())
    network = retrain(training)
    seconds = sum(_number(r, "seconds") for r in own.records() if r.get("kind") == "train_epoch")
    return scores_of(network, training.data, training.fabric, training.task), training, seconds


def scores_of(network: nn.Module, data: Data, fabric: Fabric, task: Task) -> dict[str, float]:
    """A network's validation and test score in percent, under the names of a trained one."""
    parts = {TRAINED_VAL: data.val, TRAINED_TEST: data.test}
    return {name: 100 * evaluate(network, images, none(data), fabric, task).value for name, images in parts.items()}


# ------------------------------------------------------------------ helpers


def _back(run: Run) -> str:
    """What is said of numbers that were not finite, in the search and in the training."""
    trained = Run(run.file("trained"))
    return rolled_back([*run.records(), *(trained.records() if trained.has(Run.LOG) else [])])


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
