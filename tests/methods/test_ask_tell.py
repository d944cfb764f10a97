"""Query-based search: each strategy against a literal loop, each evaluator against what it stands for, and kills at every query."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from contracts.registry import SMALL
from oche.base import counted
from oche.bench.baselines import best_of
from oche.cli.main import app
from oche.data import none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.methods.ask_tell import AskTell, Strategy, Told
from oche.methods.evaluators import SupernetScore, TableScore, TrainingScore
from oche.methods.local_search import Climb, local_search
from oche.methods.random_search import Uniform, random_search
from oche.methods.random_search_ws import accuracy, random_search_ws
from oche.methods.regularized_evolution import Aging, mutated, regularized_evolution
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import Run
from oche.search.loop import search
from oche.search.searcher import as_searcher
from oche.search.state import Problem
from oche.spaces import SPACES, Space
from oche.spaces.fit import fit, width_of
from oche.spaces.limits import Limits
from oche.spaces.neighbours import neighbours
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace
from oche.training.evaluate import evaluate
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.small_bench import CELLS, ToyTable
from reference.tiny import tiny_problem

STRATEGIES: dict[str, Strategy] = {
    "random": Uniform(),
    "evolution": Aging(4, 2),
    "climb": Climb(),
    "climb, first better": Climb(first_better=True),
}
TABLE = TableScore(metric="digits/valid", given=ToyTable())
NB201 = SPACES["nb201"]()


def bumpy(genotype: Genotype) -> float:
    """A score with many local optima, the same for the same cell."""
    return int(genotype.hash[:4], 16) % 97 + 3.0 * genotype.count("nor_conv_3x3")


def asked(strategy: Strategy, space: Space, queries: int, seed: int = 0) -> list[Genotype]:
    """What the strategy asks for, each ask with all that was told before."""
    told: list[Told] = []
    while len(told) < queries and (cell := strategy.ask(space, told, seed)) is not None:
        told.append(Told(cell, bumpy(cell)))
    return [t.genotype for t in told]


# ---------------------------------------------------------------------- strategies, against loops with a state


def evolution(space: Space, population: int, rivals: int, queries: int, seed: int) -> Iterator[Genotype]:
    """Algorithm 1 of the paper, with a queue."""
    alive: deque[tuple[Genotype, float]] = deque()
    for n in range(queries):
        rng = counted(seed, "regularized evolution", n)
        if len(alive) < population:
            child = sample(space, rng)
        else:
            drawn = [alive[int(i)] for i in torch.randint(population, (rivals,), generator=rng)]
            parent = drawn[0]
            for rival in drawn[1:]:
                parent = rival if rival[1] > parent[1] else parent
            found = mutated(space, parent[0], rng)
            assert found is not None
            child = found
            alive.popleft()
        alive.append((child, bumpy(child)))
        yield child


def climbing(space: Space, first_better: bool, queries: int, seed: int) -> list[Genotype]:
    """Hill climbing with a memory, climb after climb, cut off after so many evaluations."""
    order: list[Genotype] = []
    known: dict[str, float] = {}

    def score(cell: Genotype) -> float:
        if cell.hash not in known:
            order.append(cell)
            known[cell.hash] = bumpy(cell)
        return known[cell.hash]

    number = 0
    while len(order) < queries:
        here = sample(space, counted(seed, "local search", "start", number))
        number += 1
        score(here)
        while True:
            near = list(neighbours(space, here))
            if first_better:
                random = torch.randperm(len(near), generator=counted(seed, "local search", "order", here.hash))
                better = next((near[i] for i in random.tolist() if score(near[i]) > score(here)), None)
            else:
                best = max(near, key=score)
                better = best if score(best) > score(here) else None
            if better is None:
                break
            here = better
    return order[:queries]


@pytest.mark.parametrize("seed", [0, 1])
def test_evolution_is_the_paper_s_loop(seed: int) -> None:
    assert asked(Aging(4, 2), NB201, 40, seed) == list(evolution(NB201, 4, 2, 40, seed))


@pytest.mark.parametrize("first_better", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_local_search_is_a_loop_of_climbs(first_better: bool, seed: int) -> None:
    found = asked(Climb(first_better), NB201, 80, seed)
    assert found == climbing(NB201, first_better, 80, seed)
    assert len({cell.hash for cell in found}) == 80, "what is known is not asked for again"


@pytest.mark.parametrize("strategy", ["random", "climb", "climb, first better"])
def test_a_small_space_is_searched_through_and_no_further(strategy: str) -> None:
    found = asked(STRATEGIES[strategy], ToySpace(), 100)
    assert len(found) == len({cell.hash for cell in found}) == 27


def test_random_search_is_the_best_of_n_by_order_statistics() -> None:
    """A second derivation: the expected test value of the best of five of the table's 27 cells, within four standard errors."""
    table, seeds = ToyTable(), 150
    mean, spread = best_of(table.column("digits/valid"), table.column("digits/test"), 5)[4]
    found = [AskTell("five", Uniform(), TABLE, queries=5).run(tiny_problem(seed=seed))[0] for seed in range(seeds)]
    values = [table.value(cell, "digits/test") for cell in found]
    assert abs(sum(values) / seeds - mean) < 4 * spread / seeds**0.5
    assert abs(sum(values) / seeds - table.column("digits/test").mean()) > 8 * spread / seeds**0.5


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_searches_every_space(strategy: str, name: str) -> None:
    space = SPACES[name](**SMALL[name])  # type: ignore[arg-type]
    found = asked(STRATEGIES[strategy], space, 12)
    assert len(found) == 12
    for cell in found:
        space.check(cell)
    assert found != asked(STRATEGIES[strategy], space, 12, seed=1)


# ---------------------------------------------------------------------- the searcher


class Killed(Exception):
    pass


def killed_after(queries: int) -> Callable[[str, Mapping[str, object]], None]:
    left = [queries]

    def listener(event: str, record: Mapping[str, object]) -> None:
        left[0] -= event == "query"
        if left[0] == 0:
            raise Killed

    return listener


def log(run: Run) -> list[dict[str, object]]:
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second", "memory_mib", "checkpoint_share")}
        for r in run.records()
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_after_every_query_it_ends_the_same(strategy: str, tmp_path: Path) -> None:
    searcher = AskTell(strategy, STRATEGIES[strategy], TABLE, queries=9)
    whole, broken = (Run.create(tmp_path / name) for name in ("whole", "broken"))
    found, state = searcher.run(replace(tiny_problem(), run=whole))
    assert state is None
    for _ in range(9):
        with pytest.raises(Killed):
            searcher.run(replace(tiny_problem(), run=broken, listener=killed_after(1)))
    assert searcher.run(replace(tiny_problem(), run=broken, listener=killed_after(1)))[0] == found
    assert log(broken) == log(whole)
    assert broken.read(Run.GENOTYPE) == whole.read(Run.GENOTYPE)


def test_a_supernet_is_trained_once_and_killed_anywhere(tmp_path: Path) -> None:
    """Killed while the supernet trains, and between queries: the log, the scores and the result are an unbroken run's."""
    searcher = AskTell("climb", Climb(), SupernetScore(), queries=5)
    whole, broken = (Run.create(tmp_path / name) for name in ("whole", "broken"))
    problem = tiny_problem(epochs=2, count=16)
    found, _ = searcher.run(replace(problem, run=whole))

    def at_step(event: str, record: Mapping[str, object]) -> None:
        if (event, record.get("step")) == ("step", 3):
            raise Killed

    with pytest.raises(Killed):
        searcher.run(replace(problem, run=broken, listener=at_step, checkpoint_every=2))
    for kill in (2, 1, 1):
        with pytest.raises(Killed):
            searcher.run(replace(problem, run=broken, listener=killed_after(kill)))
    assert [r["kind"] for r in log(broken)] == ["epoch"] * 2 + ["query"] * 4, "no answer is lost"
    assert searcher.run(replace(problem, run=broken))[0] == found
    assert log(broken) == log(whole)
    assert [r["kind"] for r in log(whole)] == ["epoch"] * 2 + ["query"] * 5


def test_it_finds_the_first_of_the_best_and_says_so_after_every_query(tmp_path: Path) -> None:
    run, table = Run.create(tmp_path / "run"), ToyTable()
    found, _ = AskTell("climb", Climb(), TABLE, queries=20).run(replace(tiny_problem(), run=run))
    scores = [table.value(Genotype.parse(str(r["queried"]), "toy"), "digits/valid") for r in run.records()]
    assert [r["score"] for r in run.records()] == scores
    for n, record in enumerate(run.records(), start=1):
        assert record["query"] == n
        joined = [
            (Genotype.parse(str(r["queried"]), "toy").connected, s) for r, s in zip(run.records(), scores, strict=True)
        ]
        first = joined.index(max(joined[:n]))
        assert record["best"] == scores[first]
        assert record["genotype"] == run.records()[first]["queried"]
    assert str(found) == run.records()[-1]["genotype"]


def test_a_cell_that_lets_nothing_through_is_not_found_unless_it_is_asked_literally() -> None:
    @dataclass(frozen=True)
    class Empty:
        def ready(self, problem: Problem, watch: object) -> Callable[[Genotype], float]:
            return lambda cell: float(cell.count("none"))

    searcher = AskTell("empty", Uniform(), Empty(), queries=27)
    found, _ = searcher.run(tiny_problem())
    literal, _ = searcher.run(replace(tiny_problem(), literal=True))
    assert (found.connected, found.count("none")) == (True, 2)
    assert (literal.connected, literal.count("none")) == (False, 3)


def test_a_known_cell_is_not_evaluated_again_and_counts(tmp_path: Path) -> None:
    calls: list[Genotype] = []

    @dataclass(frozen=True)
    class Counting:
        def ready(self, problem: Problem, watch: object) -> Callable[[Genotype], float]:
            return lambda cell: (calls.append(cell), 1.0)[1]

    @dataclass(frozen=True)
    class Same:
        def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype:
            return CELLS[len(told) % 2]

    run = Run.create(tmp_path / "run")
    found, _ = AskTell("same", Same(), Counting(), queries=5).run(replace(tiny_problem(), run=run))
    assert found == CELLS[0]
    assert calls == CELLS[:2]
    assert len(run.records()) == 5


def test_what_cannot_be_compared_or_chosen_is_a_sentence() -> None:
    @dataclass(frozen=True)
    class Broken:
        def ready(self, problem: Problem, watch: object) -> Callable[[Genotype], float]:
            return lambda cell: float("nan")

    @dataclass(frozen=True)
    class Silent:
        def ask(self, space: Space, told: Sequence[Told], seed: int) -> None:
            return None

    @dataclass(frozen=True)
    class Foreign:
        def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype:
            return Genotype.parse("NB201_9930")

    with pytest.raises(UserError, match="is no number to compare"):
        AskTell("a", Uniform(), Broken()).run(tiny_problem())
    with pytest.raises(UserError, match="asked for no cell at all"):
        AskTell("b", Silent(), TABLE).run(tiny_problem())
    with pytest.raises(UserError, match="not of 'toy'"):
        AskTell("c", Foreign(), TABLE).run(tiny_problem())
    with pytest.raises(UserError, match="at least one query"):
        AskTell("d", Uniform(), TABLE, queries=0)
    assert AskTell("e", Uniform(), TABLE, queries=1).run(tiny_problem())[0] in CELLS, "one is enough"
    for population, rivals in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match=f"at least 1; given {population} and {rivals}"):
            Aging(population, rivals)


def test_a_population_of_one_is_a_walk_of_mutations() -> None:
    """With one cell alive, it is the parent whatever it scores: every cell is a neighbour of the one before it."""
    walk = asked(Aging(1, 1), NB201, 8)
    for before, after in pairwise(walk):
        assert after in list(neighbours(NB201, before))


def test_what_the_docstrings_say_of_the_constants() -> None:
    assert AskTell("any", Uniform()).queries == 100
    assert [build().queries for build in (random_search, regularized_evolution, local_search)] == [100] * 3
    assert regularized_evolution().strategy == Aging(population=10, rivals=3) == Aging()
    assert local_search().strategy == Climb(first_better=False) == Climb()


@pytest.mark.parametrize(
    "name", ["random_search", "regularized_evolution", "local_search", "random_sampling", "largest_cell"]
)
def test_a_searcher_without_a_supernet_of_its_own_hands_out_no_weights(name: str) -> None:
    """So that `oche search` trains what they find, and compares it."""
    searcher = as_searcher(METHODS[name]())
    assert (searcher.method, searcher.keeps_weights) == (None, False)


def test_a_query_says_how_long_it_took(tmp_path: Path) -> None:
    run, began = Run.create(tmp_path / "run"), time.perf_counter()
    AskTell("three", Uniform(), TABLE, queries=3).run(replace(tiny_problem(), run=run))
    whole = time.perf_counter() - began
    seconds = [float(str(record["seconds"])) for record in run.records()]
    assert all(s > 0 for s in seconds)
    assert sum(seconds) <= whole


# ---------------------------------------------------------------------- evaluators


def test_a_table_answers_for_its_own_space_by_what_may_select() -> None:
    with pytest.raises(UserError, match="would select cells on test data"):
        replace(TABLE, metric="digits/test").ready(tiny_problem(), ())
    with pytest.raises(UserError, match="did you mean 'digits/valid'"):
        replace(TABLE, metric="digits/vald").ready(tiny_problem(), ())
    with pytest.raises(UserError, match="is a cost"):
        replace(TABLE, metric="digits/parameters").ready(tiny_problem(), ())
    with pytest.raises(UserError, match="holds cells of toy, not of nb201"):
        TABLE.ready(tiny_problem("nb201"), ())


def test_a_supernet_scores_on_validation_images() -> None:
    """By the weights of a search of its own, from the same seed; the train images, which it has learned, would say something else."""
    problem = tiny_problem(epochs=2)
    score, state = SupernetScore().ready(problem, ()), search(problem, random_search_ws()).state
    parts = (problem.data.val, problem.data.train)
    val, train = ([100 * accuracy(state, problem, part, cell) for cell in CELLS[-6:]] for part in parts)
    assert [score(cell) for cell in CELLS[-6:]] == val != train


def test_a_brief_training_is_scored_on_validation_images() -> None:
    problem = tiny_problem()
    score = TrainingScore("smoke").ready(problem, ())
    cell = CELLS[-1]
    data, fabric, task = problem.data, problem.fabric, problem.task
    network = retrain(Training(problem.space, cell, data, PROTOCOLS["smoke"], problem.seed, fabric, task=task))
    assert score(cell) == 100 * evaluate(network, data.val, none(data), fabric, task).value
    longer = replace(PROTOCOLS["smoke"], epochs=3)
    network = retrain(Training(problem.space, cell, data, longer, problem.seed, fabric, task=task))
    assert (
        TrainingScore("smoke", 3).ready(problem, ())(cell)
        == 100 * evaluate(network, data.val, none(data), fabric, task).value
    )
    with pytest.raises(UserError, match="no protocol"):
        TrainingScore("smok").ready(problem, ())


def test_a_brief_training_under_limits_is_of_the_network_that_would_be_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cells are compared as wide as the limits allow: at the searched width a cheap one would have less than it may take."""
    limits, seen = Limits(parameters=20_000), list[Training]()
    problem = replace(tiny_problem(), limits=limits)
    monkeypatch.setattr("oche.methods.evaluators.retrain", lambda t: seen.append(t) or retrain(t))  # type: ignore[func-returns-value]
    score = TrainingScore("smoke").ready(problem, ())
    for cell in (CELLS[0], CELLS[-1]):
        score(cell)
        fitted, trained = fit(problem.space, cell, limits), seen.pop()
        assert (trained.space, trained.genotype) == (fitted.space, fitted.genotype)
        assert width_of(trained.space) != width_of(problem.space)


def test_a_brief_training_takes_its_least_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 images in batches of 32 are a step per epoch: five steps are five epochs."""
    problem, cell, smoke = tiny_problem(), CELLS[-1], PROTOCOLS["smoke"]
    data, fabric, task = problem.data, problem.fabric, problem.task
    longer = Training(problem.space, cell, data, replace(smoke, epochs=5), problem.seed, fabric, task=task)
    wanted = evaluate(retrain(longer), data.val, none(data), fabric, task)
    monkeypatch.setitem(PROTOCOLS, "smoke", replace(smoke, steps=5))
    seen: list[int] = []
    monkeypatch.setattr(
        "oche.methods.evaluators.retrain",
        lambda t: seen.append(t.protocol.epochs) or retrain(t),  # type: ignore[func-returns-value]
    )
    assert TrainingScore("smoke").ready(problem, ())(cell) == 100 * wanted.value
    assert seen == [5]


# ---------------------------------------------------------------------- options


def planned(method: str, **settings: object) -> AskTell:
    request = Request(method, space="toy", settings={k.replace("__", "."): v for k, v in settings.items()})
    found = resolve(request).searcher
    assert isinstance(found, AskTell)
    return found


def test_evaluator_queries_and_the_rule_s_constants_are_settings() -> None:
    assert planned("random_search").evaluator is None
    found = planned("random_search", method__evaluator="table", evaluator__metric="x/valid", method__queries=7)
    assert found.evaluator == TableScore(metric="x/valid")
    assert found.queries == 7
    assert planned("local_search", method__first_better=True, queries=3).strategy == Climb(True)
    assert planned("regularized_evolution", strategy__population=20).strategy == Aging(20, 3)
    assert planned("random_search", evaluator="training", evaluator__protocol="smoke").evaluator == TrainingScore(
        "smoke"
    )
    with pytest.raises(UserError, match="did you mean 'table'"):
        planned("random_search", evaluator="tabel")
    with pytest.raises(UserError, match="no part 'clip'"):
        planned("random_search", clip=5)


def test_a_table_that_is_handed_over_is_no_setting() -> None:
    """It is an object, for benches and Python: run.toml and messages leave it out."""
    assert "given" not in repr(TABLE)
    with pytest.raises(UserError, match="given"):
        planned("random_search", evaluator="table", evaluator__given="x")


@pytest.mark.parametrize("build", [random_search, regularized_evolution, local_search])
def test_the_named_ones_are_in_the_list(build: Callable[[], AskTell]) -> None:
    assert METHODS[build().name]() == build()


def test_the_command_line_says_who_scores_and_shows_what_got_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each query that found something better, and which images decide."""
    monkeypatch.setattr("oche.api.search.render", lambda run: run.path)
    command = f"search random_search --space toy --budget smoke --set queries=6 --compare 0 --out {tmp_path / 'run'}"
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert (
        "at most 6 cells are scored, by a supernet that is trained first on the train images, on validation images"
        in said
    )
    assert "random_search, 6 queries, 2 epochs of a supernet, batch 16 (smoke" in said
    records = [r for r in Run.open(tmp_path / "run").records() if r["kind"] == "query"]
    assert said.count("best so far") == sum(r["queried"] == r["genotype"] for r in records)


def test_a_table_is_named_by_an_option_of_its_own() -> None:
    found = resolve(Request("random_search", space="toy", table="nb201")).searcher
    assert isinstance(found, AskTell)
    assert found.evaluator == TableScore("nb201")
    other = resolve(
        Request("random_search", space="toy", table="nb201", settings={"evaluator.metric": "x/valid"})
    ).searcher
    assert isinstance(other, AskTell)
    assert other.evaluator == TableScore("nb201", "x/valid")
    for method in ("random_sampling", "auto"):
        with pytest.raises(UserError, match="does neither by itself"):
            resolve(Request(method, space="toy", table="nb201"))
