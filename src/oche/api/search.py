"""The verbs as functions: `oche.search(...)`, then `.train()`, `.export()`, `.report()` on what it returns.

The command line calls these and adds nothing but words, so whatever it does can be done from Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from oche import config
from oche.api.batch import with_batch
from oche.api.expected import Clock, fitting, in_time, timed
from oche.api.folders import RUNS, begun, fitted
from oche.api.inference import evaluate_run
from oche.api.kept import Kept
from oche.api.limits import alone, cpu_threads, gradients, out_of_memory, together
from oche.api.pick import picked
from oche.api.pinned import pin
from oche.api.problems import problem_of, training_of
from oche.api.rounds import Rounds
from oche.api.telling import asked, telling
from oche.api.terminal import Show
from oche.api.train import Trained, log_test, train
from oche.data import Augmentation, Data, for_search, for_training, none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell
from oche.plan.request import AUTO, Request, options_for_data, verb
from oche.plan.resolve import Plan, resolve
from oche.report import attempt, render
from oche.report.claims import with_verdicts
from oche.run import Listener, Run, silent
from oche.search.inherit import inherited
from oche.search.searcher import as_searcher
from oche.search.state import SearchState
from oche.spaces import Network
from oche.spaces.fit import built
from oche.tasks import named
from oche.training.compare import Comparison, compare
from oche.training.evaluate import Score, evaluate
from oche.training.export import CARD, add_to_card, available_formats, export_network, load_network, save_network
from oche.training.samples import keep_augmented, keep_mistakes


@dataclass(frozen=True, repr=False)
class Found(Kept):
    """What `search` returns: the run's folder, the genotype, and the comparison with random cells and rivals if one was asked for.

    The network is the one trained in the comparison, or the search's own where it keeps its weights (`single_stage`). `data` is there where
    they were handed over as an object.
    """

    genotype: Genotype
    comparison: Comparison | None = None
    data: Data | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Found({self.genotype}, in {self.run.path})"

    @cached_property
    def test(self) -> Score:
        """The network's score on the test images, measured when it is first asked for."""
        return evaluate_run(self.run.path, data=self.data)

    @property
    def history(self) -> list[dict[str, object]]:
        """One record per epoch: losses, accuracies, entropy, skips, genotype."""
        return [record for record in self.run.records() if record.get("kind") == "epoch"]

    def rows(self) -> list[dict[str, object]]:
        """One flat row per epoch, for `pandas.DataFrame(found.rows())`: numbers and texts, those of a table by its name and theirs."""
        return [dict(_flat(record)) for record in self.history]

    def train(self, protocol: str = "auto", **options: object) -> Trained:
        """Trains the found network from scratch, in a run folder of its own; see `oche.train`."""
        return config.build(train, {"genotype": self.run.path, "protocol": protocol, **options}, "train")

    def report(self) -> Path:
        """Writes report.html and figures."""
        return render(self.run)


@verb(Request)
def search(request: Request) -> Found:
    """Searches a space for a cell that fits the data, and trains it beside `compare` random cells and `rivals`.

    A method that keeps its supernet's weights (`single_stage`) is trained already: its network is written and tested as it is, for masks
    beside a rival that is trained once, for as many epochs. `compare`, then 0 unless given, or `compare_seeds` above 1, train its
    architecture from scratch beside the others and leave that network alone.

    Raises UserError.
    """
    clock = Clock.of(request.time)
    with gradients():  # what is read here is trained on
        plan, expected = with_batch(resolve(request)), None
    _check_used(request, plan)
    if clock or request.progress:
        plan, expected = timed(plan, clock)
    else:
        fitting(plan)
    if not request.progress:
        return carry_out(plan, start(plan, request.out), request.listener, clock)
    show = Show(quiet=False)
    show.preflight(plan, expected, str(request.out or default_folder(plan)))
    run = start(plan, request.out)
    with show.search(plan, expected):
        return carry_out(plan, run, show.beside(request.listener), clock)


def _check_used(request: Request, plan: Plan) -> None:
    """Raises UserError for what nothing is trained by, in the search or after it; a bench, whose arms share it, is not asked."""
    given = [f"--{name}" for name in ("epochs", "batch") if getattr(request, name) is not None]
    if given and isinstance(plan.searcher, AskTell) and not plan.searcher.takes_epochs:
        asked = plan.searcher.length(plan.epochs, plan.batch)
        raise UserError(
            f"{plan.searcher.name} asks for {asked} and trains nothing by {' and '.join(given)}: leave out what is not used. "
            "`--set method.queries=N` says how many cells are asked for, with `--set evaluator=training` `--set evaluator.epochs=N` "
            "how long each trains."
        )
    after = [f"--set {path}" for path in request.settings if path.startswith("train.")]
    after += ["--protocol"] * (request.protocol != AUTO) + ["--compare-seeds"] * (request.compare_seeds is not None)
    if after and not plan.compare and not plan.rivals and request.seeds == 1:
        raise UserError(
            f"{' and '.join(after)} would change trainings after the search, and there are none: leave out what is not used, or let "
            "`--compare 3` or `--rivals auto` train something. `oche train RUN` takes the same options."
        )


def default_folder(plan: Plan) -> Path:
    """Where a plan's run goes unless `out` says otherwise."""
    own_name = ":" in str(plan.request.method)
    return RUNS / f"{plan.searcher.name if own_name else str(plan.request.method)}-{plan.space.name}"


def start(plan: Plan, out: str | Path | None = None) -> Run:
    """Makes the run's folder and writes run.toml."""
    run = begun(plan.fabric, Path(out) if out else default_folder(plan), plan.table(), plan.files)
    if plan.fabric.is_global_zero:
        pin(run, plan.data)
        if augment := seen(plan):
            keep_augmented(run, plan.data, augment, plan.request.seed)
    return run


def seen(plan: Plan) -> Augmentation | None:
    """What images go through before networks see them, in the trainings if there are any; None where none is trained."""
    if plan.compare or plan.rivals:
        return for_training(plan.data, plan.protocol.cutout, plan.protocol.policy)
    if isinstance(plan.searcher, AskTell):
        return plan.searcher.augmentation(plan.data, plan.space.task)
    return for_search(plan.data) if as_searcher(plan.searcher).method else None


def carry_out(plan: Plan, run: Run, listener: Listener = silent, clock: Clock | None = None) -> Found:
    """Searches, compares, exports the network, writes the report; what a run already holds is not done again.

    With a `clock` the trainings of the comparison get the epochs that end nearest to its time, measured when the search has ended.
    """
    names = plan.request.track if plan.fabric.is_global_zero and plan.request.seeds == 1 else ()
    with telling(run, names, listener, asked(plan.request)) as told:
        return _carried_out(plan, run, told, clock)


def _carried_out(plan: Plan, run: Run, listener: Listener, clock: Clock | None) -> Found:
    problem, keeps = problem_of(plan, run, listener), as_searcher(plan.searcher).keeps_weights
    with (
        gradients(),
        alone(run, plan.fabric),
        together(run, plan.fabric, "search"),
        out_of_memory(plan.batch),
        cpu_threads(plan.request.threads),
    ):
        if run.has(Run.GENOTYPE) and (run.has(CARD) or not keeps):
            genotype = Genotype.from_json(run.read(Run.GENOTYPE).decode())
        elif plan.request.seeds > 1:

            def one(part: Plan, own: Run) -> tuple[Genotype, Network | None]:
                found = carry_out(part, own, listener)
                return found.genotype, load_network(own).network.to(plan.fabric.device) if keeps else None

            genotype = picked(plan, run, one, listener)
        else:
            genotype, state = as_searcher(plan.searcher).run(problem, plan.callbacks)
            if keeps and state:
                keep_supernet(run, state, genotype)
        comparison, space = None, built(plan.space, fitted(run))
        kept = load_network(run).network.to(plan.fabric.device) if plan.rivals and plan.beside_kept else None
        if plan.compare > 0 or plan.rivals:
            training = training_of(plan, space, genotype, run, listener)
            training = replace(training, protocol=in_time(plan, training, clock))

            def keep(network: Network, test: Score) -> None:
                if plan.fabric.is_global_zero and not keeps:
                    metrics = test.card(plan.task)
                    save_network(run, network, space, genotype, plan.data, metrics, plan.task, limits=plan.limits)
                    log_test(run, plan.data, test, plan.task)
                    keep_mistakes(run, network, plan.data, plan.fabric, plan.task)

            rounds = Rounds(plan, training, clock)
            comparison = compare(
                training,
                cells=plan.compare,
                seeds=plan.compare_seeds,
                keep=keep,
                rivals=plan.rivals,
                epochs=rounds,
                kept=kept,
            )
            comparison = replace(comparison, again=options_for_data(plan.request))
            if plan.fabric.is_global_zero:
                said = with_verdicts(comparison.record())
                if run.has(CARD) and "comparison" not in json.loads(run.read(CARD)):
                    add_to_card(run, {"comparison": said})
                if not _logged(run, "comparison"):
                    run.log(said)
            if plan.fabric.is_global_zero:
                missing = [name for name in available_formats() if not run.has(f"{Run.NETWORK}/model.{name}")]
                export_network(run, missing)
                run.seal()
    if plan.fabric.is_global_zero:
        attempt(lambda: render(run), run.path, "oche report")
    return Found(run, genotype, comparison, plan.data if "data" in plan.objects else None)


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
        log_test(run, problem.data, test, problem.task)
        metrics = test.card(problem.task)
        save_network(run, network, problem.space, genotype, problem.data, metrics, problem.task, limits=problem.limits)
        keep_mistakes(run, network, problem.data, problem.fabric, problem.task)
    problem.listener("network", {**named(val.metrics, "val"), **test.card(problem.task), "metric": test.metric})


def _logged(run: Run, kind: str) -> bool:
    return any(record.get("kind") == kind for record in run.records())


def _flat(record: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """A record without tables within it: {"skips": {"cell": 2}} -> ("skips.cell", 2)."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
