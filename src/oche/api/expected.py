"""What a search will take, measured before it begins: memory, seconds by part, and the epochs that fit into `--time`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from oche.api.limits import cpu_threads, gradients
from oche.api.problems import problem_of, training_of
from oche.base import counted
from oche.errors import UserError
from oche.methods.ask_tell import AskTell
from oche.plan.resolve import Plan
from oche.plan.within import OVER, Parts, epochs_within, nearest, seconds_of
from oche.search.preflight import Estimate, check_memory, estimate
from oche.search.searcher import as_searcher
from oche.search.selection import kept
from oche.search.stages import Staged
from oche.spaces.cost import cost
from oche.spaces.sampling import sample
from oche.training.compare import random_cells, rivals_of
from oche.training.memory import refuse_if_too_large
from oche.training.pace import Pace, pace
from oche.training.protocols import Protocol
from oche.training.train import Training

ENDING = 10.0
"""Seconds for exporting the network and writing the report on a quiet machine, about."""

LONG_ENOUGH = 1.0
"""Seconds of work from which on it is told how long a thread is kept waiting."""

ENOUGH = 1 / 3
"""Share of the usual epochs that a time shall leave; a time that leaves less has less compared. Our choice."""


@dataclass(frozen=True)
class Expected:
    """What a search and its comparison will take. `search` is None where nothing is searched by steps.

    `training` is the pace of all `trainings` together, the largest of which takes `training_mib`; `searches` run one after the other.
    `reduced` says what a time that is short has left of the comparison.
    """

    search: Estimate | None = None
    training: Pace = Pace(0.0, 0.0)
    trainings: int = 0
    searches: int = 1
    epochs: tuple[int, int] = (1, 1)
    reduced: str = ""
    training_mib: float = 0.0

    @property
    def memory_mib(self) -> float:
        """Peak memory, of the search or of a training after it."""
        return max(self.search.memory_mib if self.search else 0.0, self.training_mib if self.trainings else 0.0)

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of the search, and of the trainings after it."""
        search = self.search.seconds * self.searches if self.search else 0.0
        return search, self.training.seconds(self.epochs[1]) if self.trainings else 0.0

    def with_epochs(self, epochs: int, training: int) -> Expected:
        """The same for other numbers of epochs."""
        search = self.search and replace(self.search, steps=round(self.search.steps / self.epochs[0] * epochs))
        return replace(self, epochs=(epochs, training), search=search)


def expected_of(plan: Plan, trainings: bool = True) -> Expected:
    """Memory and seconds of a plan, from a few measured steps of each part. Raises UserError if it cannot fit into memory.

    Without `trainings` the search alone is measured.
    """
    return _measured(plan, trainings)[0]


def _measured(plan: Plan, trainings: bool = True) -> tuple[Expected, Paces]:
    with gradients(), cpu_threads(plan.request.threads):
        method = as_searcher(plan.searcher).method
        search = estimate(problem_of(plan), method, _alpha_until(plan)) if method else None
        paces = _before(plan) if trainings and trained(plan) else Paces()
        expected = Expected(search, searches=plan.request.seeds, epochs=(plan.epochs, plan.protocol.epochs))
        return _compared(expected, plan, paces), paces


def _alpha_until(plan: Plan) -> float:
    """The share of the epochs after which alpha stops: where weights are kept, the first stage's; all else of it is tuning."""
    searcher = plan.searcher
    if not isinstance(searcher, Staged) or not searcher.keeps_weights:
        return 1.0
    first = searcher.stages(problem_of(plan), searcher.method, ())
    return first.epochs / plan.epochs if first else 1.0


def fitting(plan: Plan) -> None:
    """Raises UserError where the plan's search, or a training of its comparison, would not fit into memory; measures no time."""
    with gradients(), cpu_threads(plan.request.threads):
        method = as_searcher(plan.searcher).method
        if method:
            check_memory(problem_of(plan), method)
        if trained(plan):
            _training_bytes(plan, _drawn(plan))


def trained(plan: Plan) -> int:
    """How many networks are trained in the comparison, and for picking among several seeds."""
    compared = (not plan.beside_kept) + plan.compare + len(plan.rivals) if plan.compare or plan.rivals else 0
    return compared * plan.compare_seeds + _picked(plan)


def _picked(plan: Plan) -> int:
    """The trainings of several seeds' cells, of which one is picked."""
    return plan.request.seeds if plan.request.seeds > 1 and not as_searcher(plan.searcher).keeps_weights else 0


@dataclass(frozen=True)
class Paces:
    """The paces of one training of each network that may be compared, and the bytes that the largest takes."""

    found: Pace = Pace(0.0, 0.0)
    drawn: tuple[Pace, ...] = ()
    rivals: tuple[Pace, ...] = ()
    memory: float = 0.0

    def together(self, plan: Plan) -> Pace:
        """The plan's trainings: every network for all seeds of the comparison, and the cells of several searches."""
        seeds = plan.compare_seeds if plan.compare or plan.rivals else 0
        found = [] if plan.beside_kept else [self.found]
        every = [*[*found, *self.drawn[: plan.compare], *self.rivals] * seeds, *[self.found] * _picked(plan)]
        return Pace(sum(p.epoch for p in every), sum(p.once for p in every))


def _compared(expected: Expected, plan: Plan, paces: Paces) -> Expected:
    """What the search will take, with the comparison of the plan."""
    count = trained(plan) if paces.drawn or paces.rivals else 0
    return replace(expected, training=paces.together(plan), trainings=count, training_mib=paces.memory / 2**20)


def _before(plan: Plan) -> Paces:
    """The paces as far as they are known before the search: the costliest random cell stands for the found one, if that is trained."""
    drawn = _drawn(plan)
    need = _training_bytes(plan, drawn)
    if plan.beside_kept:
        return Paces(rivals=_of_rivals(plan, drawn[0]), memory=need)
    paces = [pace(training) for training in drawn]
    found = max(range(len(drawn)), key=lambda n: paces[n].epoch)
    return Paces(paces[found], tuple(paces), _of_rivals(plan, drawn[found]), need)


def _drawn(plan: Plan) -> list[Training]:
    """The trainings of the comparison's random cells, or of one that stands for the found cell: of all candidates if they are kept."""
    if plan.beside_kept:
        every = kept(plan.space, ((group, group.valid().double()) for group in plan.space.groups))
        return [training_of(plan, plan.space, every)]
    any_cell = sample(plan.space, counted(plan.request.seed, "compare", 1))
    base = training_of(plan, plan.space, any_cell)
    return [replace(base, genotype=cell, space=space) for _, cell, space in random_cells(base, max(1, plan.compare))]


def _training_bytes(plan: Plan, drawn: Sequence[Training]) -> float:
    """The bytes that the largest training of the comparison takes, by its activations. Raises UserError where that does not fit."""
    rivals = [replace(drawn[0], space=s, genotype=g) for s, g in rivals_of(drawn[0], plan.rivals).networks.values()]
    candidates = rivals if plan.beside_kept else [*drawn, *rivals]
    if not candidates:  # no rival is so small
        return 0.0
    largest = max(candidates, key=lambda training: cost(training.space, training.genotype).memory)
    return refuse_if_too_large(largest, "A training of the comparison (--compare, --rivals)", "--set train.batch=")


def _of_rivals(plan: Plan, found: Training) -> tuple[Pace, ...]:
    networks = rivals_of(found, plan.rivals).networks.values()
    return tuple(pace(replace(found, space=s, genotype=g)) for s, g in networks)


# ------------------------------------------------------------------ --time


@dataclass(frozen=True)
class Clock:
    """A command that began at `begun` (`time.monotonic()`) and shall take `seconds`; its thread had `worked` so long by then."""

    seconds: float
    begun: float
    worked: float = 0.0

    @classmethod
    def of(cls, given: str | float | None, begun: float | None = None) -> Clock | None:
        """The clock of an option `--time`, which runs from now on, or since the process has `begun`; None without one. Raises UserError."""
        seconds = seconds_of(given)
        if seconds is None:
            return None
        return cls(seconds, begun, 0.0) if begun is not None else cls(seconds, time.monotonic(), time.thread_time())

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.begun)

    def loaded(self, quiet: float) -> float:
        """Seconds for what takes `quiet` ones where nothing else runs: as much longer as this thread has been kept waiting so far.

        What comes last, exports and the report, cannot be measured beforehand; a processor shared by ten makes it ten times as long.
        """
        passed, worked = time.monotonic() - self.begun, time.thread_time() - self.worked
        return quiet * max(1.0, passed / worked) if worked >= LONG_ENOUGH else quiet


def timed(plan: Plan, clock: Clock | None, trainings: bool = True) -> tuple[Plan, Expected]:
    """The plan with the epochs that fill the clock's time best, and what it will take. Raises UserError where it is too short.

    Where these would be less than `ENOUGH` of the usual ones, less is compared, as far as that was not given. Without a clock the plan
    stays as it is, and the `trainings` need not be measured.
    """
    if clock is None:
        return plan, expected_of(plan, trainings)
    if isinstance(plan.searcher, AskTell):
        raise UserError(
            f"--time chooses epochs, and {plan.searcher.name} asks for cells instead: leave it out, and set their number "
            f"(--set queries={plan.searcher.queries})."
        )
    expected, paces = _measured(plan)
    begun, given = clock.seconds - clock.left, (plan.request.epochs is not None, given_epochs(plan))
    possible = [_with(plan, cells, seeds) for cells, seeds in _comparisons(plan)]
    ending = clock.loaded(ENDING)

    def fill(n: int) -> tuple[int, int]:
        parts = _parts(_compared(expected, possible[n], paces), begun, ending)
        return epochs_within(clock.seconds, parts, expected.epochs, given, _fewest(plan), _less(possible[n]))

    n, epochs = plan.fabric.broadcast(_enough(fill, len(possible), expected.epochs))
    plan = possible[n]
    chosen = replace(plan, epochs=epochs[0], protocol=replace(plan.protocol, epochs=epochs[1]))
    return chosen, replace(_compared(expected, plan, paces), reduced=_reduced(possible[0], n)).with_epochs(*epochs)


def _enough(fill: Callable[[int], tuple[int, int]], count: int, usual: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """The first of `count` comparisons, from the largest down, that leaves enough epochs, else the smallest; and its epochs."""
    for n in range(count - 1):
        try:
            epochs = fill(n)
        except UserError:  # too short for this one
            continue
        if min(chosen / before for chosen, before in zip(epochs, usual, strict=True)) >= ENOUGH:
            return n, epochs
    return count - 1, fill(count - 1)


def _with(plan: Plan, cells: int, seeds: int) -> Plan:
    return replace(plan, request=replace(plan.request, compare=cells, compare_seeds=seeds))


def _less(plan: Plan) -> str:
    """What to add to the refusal of a short time where the comparison that was asked for may be smaller."""
    larger = [
        name for name, value in (("--compare", plan.compare), ("--compare-seeds", plan.compare_seeds)) if value > 1
    ]
    return f", or compare less: {' '.join(f'{name} 1' for name in larger)}" if larger and trained(plan) else ""


def _reduced(usual: Plan, n: int) -> str:
    """What the table says where less is compared than is usual."""
    if not n:
        return ""
    return (
        f"so that enough epochs are left, less is compared than the usual {usual.compare} random cells and {usual.compare_seeds} seeds; "
        "`--compare` and `--compare-seeds` set it"
    )


def _parts(expected: Expected, begun: float, ending: float) -> Parts:
    """Seconds per epoch of the search and of all trainings, and of all else: what has passed since it was `begun`, and the `ending`."""
    return Parts(
        expected.seconds[0] / expected.epochs[0],
        expected.training.epoch if expected.trainings else 0.0,
        expected.training.once + ending * (expected.trainings > 0) + begun,
    )


def _comparisons(plan: Plan) -> list[tuple[int, int]]:
    """Random cells and seeds each, from what is usual down to one of each; what was given stays.

    First there are fewer cells, since with fewer than three seeds nothing is said about chance.
    """
    cells, seeds = plan.compare, plan.compare_seeds
    found = [(cells, seeds)]
    if "compare" in plan.free:
        found += [(fewer, seeds) for fewer in range(cells - 1, 0, -1)]
    if "compare_seeds" in plan.free and seeds > 1 and trained(plan):
        found += [(found[-1][0], 1)]
    return found


def in_time(plan: Plan, training: Training, clock: Clock | None) -> Protocol:
    """The protocol of the comparison, with the epochs that end nearest to the clock's time, measured on the networks that are trained.

    What the run's log has is kept; without a clock, or where the epochs were given, the plan's protocol holds.
    """
    run, protocol = training.run, plan.protocol
    records: Sequence[Mapping[str, object]] = run.records() if run else ()
    for record in records:
        if record.get("kind") == "time" and "seed" not in record:
            return replace(protocol, epochs=int(str(record["train_epochs"])))
    if clock is None or given_epochs(plan) or any(record.get("kind") == "trained" for record in records):
        return protocol
    cells = [replace(training, genotype=cell, space=space) for _, cell, space in random_cells(training, plan.compare)]
    one = replace(plan, request=replace(plan.request, seeds=1))  # several seeds' cells have been trained by now
    own = Pace(0.0, 0.0) if plan.beside_kept else pace(training)
    found = Paces(own, tuple(pace(cell) for cell in cells), _of_rivals(plan, training)).together(one)
    left = clock.left
    epochs = nearest(found.epoch, left - found.once - clock.loaded(ENDING), OVER * clock.seconds)
    epochs = plan.fabric.broadcast(epochs)
    record = {
        "kind": "time",
        "seconds": clock.seconds,
        "left": left,
        "train_epochs": epochs,
        "planned": protocol.epochs,
    }
    if run and plan.fabric.is_global_zero:
        run.log(record)
    training.listener("time", record)
    return replace(protocol, epochs=epochs)


def _fewest(plan: Plan) -> int:
    """The fewest epochs of a search in which alpha steps."""
    method = as_searcher(plan.searcher).method
    start = method.arch_start if method else 0.0
    return next((n for n in range(1, plan.epochs) if n - 1 >= start * n), plan.epochs)


def given_epochs(plan: Plan) -> bool:
    """True if the epochs of the comparison's trainings were given."""
    return "train.epochs" in plan.request.settings
