"""What a query-based search asks: a table, a supernet trained once for all cells, a brief training of each cell, or none at all.

By the number of networks that are trained (Xie et al., arXiv 2301.05919): `training` trains one per cell (N-shot; few-shot where the
strategy predicts the others, as `bananas` does), `supernet` one for all (one-shot), `zero_cost` none (zero-shot). They score on
validation data, `zero_cost` on train images; none of them sees a test image or a test metric.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from oche.base import Count
from oche.data import Augmentation, Data, for_search, for_training, none
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.methods.random_search_ws import accuracy, random_search_ws
from oche.methods.zero_cost import BLIND, ZeroCost
from oche.run import Run
from oche.search.begin import begin
from oche.search.callbacks import Callback
from oche.search.checkpoint import loads, resume
from oche.search.loop import advance
from oche.search.method import Method
from oche.search.state import Problem
from oche.spaces.fit import fit
from oche.tables import TableLike, table_named
from oche.training.evaluate import evaluate
from oche.training.protocols import BRIEF, PROTOCOLS, Protocol, lengthened
from oche.training.train import Training, retrain

Scorer = Callable[[Genotype], float]
"""The validation score of a cell, in percent where it is an accuracy; more is better."""


class Evaluator(typing.Protocol):
    """Scores cells by validation."""

    def ready(self, problem: Problem, watch: Sequence[Callback]) -> Scorer:
        """Makes ready what the cells are asked of, or takes it from the problem's run. Raises UserError where that is impossible."""
        ...


@dataclass(frozen=True)
class TableScore:
    """Looks cells up in a table: `table` is a name or FILE.py:NAME, its files in `folder` or where OCHE_DATA says.

    `metric` must be one that may select: no test metric, and none of which less is better. `given` is a table as an object, which then
    takes the place of the named one.
    """

    table: str = "nb201"
    metric: str = "cifar10/valid"
    folder: str | None = None
    given: TableLike | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        """The table by its name."""
        return f"the table {self.table if self.given is None else self.given.name}"

    def ready(self, problem: Problem, watch: Sequence[Callback]) -> Scorer:
        """Reads the table."""
        if "test" in self.metric.lower():
            raise UserError(
                f"evaluator.metric={self.metric} would select cells on test data, and what is reported would be too good: "
                "name a validation metric."
            )
        table = table_named(self.table, self.folder) if self.given is None else self.given
        if table.space != problem.space.name:
            raise UserError(
                f"The table {table.name} holds cells of {table.space}, not of {problem.space.name}: search that space, "
                "or choose `--set evaluator=supernet` or `--set evaluator=training`."
            )
        if self.metric not in table.metrics:
            raise unknown(f"metric of the table {table.name}", self.metric, table.metrics)
        if self.metric in table.smaller:
            raise UserError(f"{self.metric} is a cost: name a metric of {table.name} of which more is better.")
        return lambda genotype: float(table.value(genotype, self.metric))


@dataclass(frozen=True)
class SupernetScore:
    """Trains a supernet first, one random cell per step, for the epochs of the search; a cell is then scored with its weights.

    As in random search with weight sharing (Li & Talwalkar, arXiv 1902.07638); the score is that of all validation images.
    """

    method: Method = field(default_factory=random_search_ws)

    def ready(self, problem: Problem, watch: Sequence[Callback]) -> Scorer:
        """Trains the supernet, or carries on with its training, or takes the trained one from the run's checkpoint."""
        method = replace(self.method, callbacks=(*self.method.callbacks, *watch))
        state = begin(problem, method)
        run = problem.run
        trained = run is not None and run.has(Run.STATE) and loads(state, run.read(Run.STATE), problem.fabric.device)
        if not trained or state.epoch < problem.epochs:  # else the log goes on with queries, which `resume` cuts off
            resume(state)
            advance(state, method)
        return lambda genotype: 100 * accuracy(state, problem, problem.data.val, genotype)


@dataclass(frozen=True)
class TrainingScore:
    """Trains each cell's network from scratch and scores it: `protocol`, or the brief one that fits the data.

    The network is that of the searched size, or under limits the one that would be handed out: as wide as they allow.
    `epochs` are those of each training, by default the protocol's for so many images. The protocol of the comparison after the search
    is another matter: published ones are too long for every query.
    """

    protocol: str | None = None
    epochs: Count | None = None

    def ready(self, problem: Problem, watch: Sequence[Callback]) -> Scorer:
        """Only looks the protocol up."""
        space, data, fabric, task = problem.built or problem.space, problem.data, problem.fabric, problem.task
        protocol = self.trains(space.task, len(data.train))

        def score(genotype: Genotype) -> float:
            fitted = fit(space, genotype, problem.limits)
            training = Training(fitted.space, fitted.genotype, data, protocol, problem.seed, fabric, task=task)
            return 100 * evaluate(retrain(training), data.val, none(data), fabric, task).value

        return score

    def trains(self, task: str, images: int) -> Protocol:
        """The protocol of each training on so many images. Raises UserError."""
        protocol = PROTOCOLS[self.named(task)]
        return lengthened(protocol, images) if self.epochs is None else replace(protocol, epochs=self.epochs)

    def named(self, task: str) -> str:
        """The name of its trainings' protocol. Raises UserError."""
        name = self.protocol or BRIEF[task]
        if name not in PROTOCOLS:
            raise unknown("protocol", name, PROTOCOLS)
        return name


EVALUATORS: dict[str, Evaluator] = {
    "table": TableScore(),
    "supernet": SupernetScore(),
    "training": TrainingScore(),
    "zero_cost": ZeroCost(),
}
"""By name, for `--set evaluator=table`."""

WORDS: dict[type, str] = {
    SupernetScore: "a supernet that is trained first on the train images, on validation images",
    TrainingScore: "a brief training of each on the train images, on validation images",
}
"""The evaluators in words; a table's and a score's are their own."""


def in_words(evaluator: Evaluator) -> str:
    """The evaluator in words, its type's name if it is the user's own."""
    if isinstance(evaluator, TableScore):
        return f"{evaluator.metric} of {evaluator.title}, whose networks are not trained on this data"
    if isinstance(evaluator, ZeroCost):
        given = BLIND.get(evaluator.score, "train images")
        return f"{evaluator.score}, a zero-cost score, of networks that are not trained, on {given}"
    return WORDS.get(type(evaluator), type(evaluator).__name__)


def takes_epochs(evaluator: Evaluator) -> bool:
    """True where an evaluator may train for the search's own epochs and batch, unlike tables, trainings and scores at the start."""
    return not isinstance(evaluator, TableScore | TrainingScore | ZeroCost)


def length_in_words(evaluator: Evaluator, queries: int, epochs: int, batch: int) -> str:
    """How long a search is that asks it: queries, and epochs where something may be trained for as many."""
    if isinstance(evaluator, TableScore):
        return f"{queries:,} queries of {evaluator.title}"
    if not takes_epochs(evaluator):
        return f"{queries:,} queries"
    first = " of a supernet" if isinstance(evaluator, SupernetScore) else ""
    return f"{queries:,} queries, {epochs} epoch{'s' * (epochs != 1)}{first}, batch {batch}"


def augmentation(evaluator: Evaluator, data: Data, task: str) -> Augmentation | None:
    """What the images go through on which cells are scored; None where no network is trained on them."""
    if isinstance(evaluator, TableScore | ZeroCost):
        return None
    if isinstance(evaluator, TrainingScore):
        protocol = PROTOCOLS[evaluator.named(task)]
        return for_training(data, protocol.cutout, protocol.policy)
    return for_search(data)


def images_in_words(evaluator: Evaluator, data: Data, task: str) -> str:
    """What becomes of the images that cells are scored with; a table needs none."""
    if isinstance(evaluator, TableScore):
        return f"none, {evaluator.title} answers"
    if isinstance(evaluator, ZeroCost) and evaluator.score in BLIND:
        return f"none, {evaluator.score} takes {BLIND[evaluator.score]}"
    done = (augmentation(evaluator, data, task) or none(data)).describe()
    if isinstance(evaluator, ZeroCost):
        return f"{min(evaluator.images, len(data.train))} train images, {done}"
    if isinstance(evaluator, TrainingScore):
        protocol = evaluator.trains(task, len(data.train))
        epochs = f"{protocol.epochs} epoch{'s' * (protocol.epochs != 1)}"
        return f"{done}; each training {epochs}, batch {protocol.batch} ({evaluator.named(task)})"
    return done
