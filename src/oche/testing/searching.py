"""Checks of methods and searchers: what they find, that the seed decides it, and that a killed search ends as an unbroken one."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from oche import config
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell
from oche.methods.evaluators import Scorer
from oche.run import Run
from oche.search.checkpoint import dumps, table
from oche.search.searcher import SearcherLike, as_searcher
from oche.search.state import Problem, SearchState
from oche.testing.noise import assert_true, noise_problem

MEASURED = ("seconds", "images_per_second", "memory_mib", "checkpoint_share")
"""What a log measures anew in every run."""


def check_method(method: SearcherLike, problem: Problem | None = None, *, kill_every: int | None = 3) -> None:
    """Checks a method, or a searcher around one: what `check_searcher` checks, and that weights and alpha stay finite.

    Also that the seed reaches the weights, and that the settings survive being written to run.toml and read again.
    """
    name, problem = as_searcher(method).name, problem or noise_problem()
    assert_true(as_searcher(method).method is not None, f"{name} has no method: check it with check_searcher.")
    again = config.restore(method, config.loads(config.dumps(config.describe(method)), name), name)
    assert_true(again == method, f"{name} is another method once it was written to run.toml and read again.")
    state = _checked(method, problem, kill_every)
    _, other = as_searcher(method).run(replace(problem, seed=problem.seed + 1))
    assert_true(state is not None, f"{name} has a method, so its run must return the state that the search ended in.")
    assert state is not None
    assert other is not None
    wrong = [path for path, t in flat(_saved(state)) if isinstance(t, Tensor) and not torch.isfinite(t).all()]
    assert_true(not wrong, f"{name} ends with values that are not finite: {', '.join(wrong[:3])}.")
    entropy = state.entropy()
    assert_true(-1e-9 <= entropy <= 1 + 1e-9, f"{name}: the strengths' entropy is {entropy}; it must lie in [0, 1].")
    same = all(torch.equal(t, other.theta[n]) for n, t in state.theta.items() if n in other.theta)
    assert_true(not same, f"{name} learns the same weights with another seed.")


def check_searcher(searcher: SearcherLike, problem: Problem | None = None, *, kill_every: int | None = 3) -> None:
    """Checks whatever searches: it finds a genotype of the space, only the seed decides, and a killed search ends as an unbroken one.

    `problem` is `noise_problem(space)` for a space of your own; by default that of a toy space. The search is killed after every
    `kill_every` steps or queries (None: not at all); 1 is too few for steps, whose checkpoint is written after they are told of. An
    ask/tell searcher without an evaluator gets one that costs nothing; the number of its queries and its result are checked too.
    """
    problem = problem or noise_problem()
    if isinstance(searcher, AskTell):
        searcher = replace(searcher, evaluator=searcher.evaluator or _Arbitrary())
    _checked(searcher, problem, kill_every)
    built = as_searcher(searcher)
    if built.method is None and problem.space.cardinality() >= 10:
        found = {str(built.run(replace(problem, seed=seed))[0]) for seed in range(4)}
        told = {} if len(found) > 1 or not isinstance(searcher, AskTell) else _queried(searcher, problem)
        assert_true(
            len(found) > 1 or len(set(told.values())) > 1,
            f"{built.name} does the same with four seeds: take randomness from the problem's seed.",
        )


def _checked(searcher: SearcherLike, problem: Problem, kill_every: int | None) -> SearchState | None:
    """The checks of all searchers; the state that the search ends in."""
    built = as_searcher(searcher)
    with tempfile.TemporaryDirectory() as folder:
        whole, again, broken = (_new_run(Path(folder) / name) for name in ("whole", "again", "broken"))
        genotype, state = built.run(replace(problem, run=whole))
        problem.space.check(genotype)
        assert_true(whole.has(Run.GENOTYPE), f"{built.name} did not write {Run.GENOTYPE} to its run.")
        written = Genotype.from_json(whole.read(Run.GENOTYPE).decode())
        assert_true(written == genotype, f"{built.name} wrote another genotype than it returned.")
        if isinstance(searcher, AskTell):
            _check_queries(searcher, whole)
        _, repeated = built.run(replace(problem, run=again if state is None else None))
        if state is None or repeated is None:
            first, second = _content(whole), _content(again)
        else:
            first, second = (_by_path(table(replace(ended, lines=0)), Run.STATE) for ended in (state, repeated))
        _assert_same(built.name, "a second run with the same seed", first, second)
        if kill_every is not None:
            kills = _run_with_kills(searcher, replace(problem, run=broken, checkpoint_every=1), kill_every)
            _assert_same(built.name, f"a run that was killed {kills} times", _content(whole), _content(broken))
    return state


def _queried(searcher: AskTell, problem: Problem) -> dict[int, str]:
    """Seed -> all cells that the searcher asks for: with many queries the best one may be the same for every seed."""
    asked: dict[int, str] = {}
    for seed in range(4):
        cells: list[str] = []

        def listener(event: str, record: Mapping[str, object], cells: list[str] = cells) -> None:
            cells += [str(record["queried"])] if event == "query" else []

        searcher.run(replace(problem, seed=seed, listener=listener))
        asked[seed] = " ".join(cells)
    return asked


def _check_queries(searcher: AskTell, run: Run) -> None:
    asked = [record for record in run.records() if record.get("kind") == "query"]
    scores = [float(str(record["score"])) for record in asked]
    assert_true(
        0 < len(asked) <= searcher.queries,
        f"{searcher.name} asked {len(asked)} times, with {searcher.queries} queries.",
    )
    found = Genotype.from_json(run.read(Run.GENOTYPE).decode())
    cells = [Genotype.parse(str(record["queried"]), found.space) for record in asked]
    best = str(max(zip(cells, scores, strict=True), key=lambda pair: (pair[0].connected, pair[1]))[0])
    assert_true(str(found) == best, f"{searcher.name} found {found}, but {best} has the best score.")


@dataclass(frozen=True)
class _Arbitrary:
    """An evaluator that costs nothing: a score that belongs to the cell and means nothing."""

    def ready(self, problem: Problem, watch: Sequence[object]) -> Scorer:
        """Nothing to make ready."""
        return lambda genotype: float(int(genotype.hash[:6], 16))


class _Killed(Exception):
    """Ends a search as a kill would."""


def _run_with_kills(searcher: SearcherLike, problem: Problem, every: int) -> int:
    """Carries on until the search is done, killed after so many steps or queries each time; how often it was killed."""
    for kills in range(100):
        left = [every]

        def listener(event: str, record: Mapping[str, object], left: list[int] = left) -> None:
            left[0] -= event in ("step", "query")
            if left[0] == 0:
                raise _Killed

        try:
            as_searcher(searcher).run(replace(problem, listener=listener))
            return kills
        except _Killed:
            continue
    raise AssertionError(f"{as_searcher(searcher).name} does not get ahead when it is killed every {every} steps.")


def _assert_same(name: str, what: str, first: Mapping[str, object], second: Mapping[str, object]) -> None:
    differs = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    assert_true(
        not differs,
        f"{name}: {what} differs in {', '.join(differs[:3])}. Take random numbers from `counted(seed, ...)` or `draw.generator(...)`, "
        "and keep what must be remembered in `state.memory`.",
    )


def _content(run: Run) -> dict[str, object]:
    """All that a run keeps, but for what was measured: tensors by bytes."""
    found: dict[str, object] = {}
    for n, record in enumerate(run.records()):
        found |= {f"log line {n + 1}: {key}": value for key, value in record.items() if key not in MEASURED}
    for path in sorted(run.path.rglob("*.pt")):
        saved = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        found |= _by_path(saved, path.name)
    for path in sorted(run.path.rglob("genotype*.json")):
        found[path.name] = path.read_bytes()
    return found


def _by_path(tree: object, name: str) -> dict[str, object]:
    """The leaves of a tree by their paths, tensors as bytes."""
    leaves = flat(tree, name)
    return {k: v.detach().cpu().contiguous().numpy().tobytes() if isinstance(v, Tensor) else v for k, v in leaves}


def flat(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, leaf) of a tree of dicts and lists."""
    if isinstance(tree, Mapping):
        for key, leaf in tree.items():
            yield from flat(leaf, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for n, leaf in enumerate(tree):
            yield from flat(leaf, f"{path}/{n}")
    else:
        yield path, tree


def _saved(state: SearchState) -> object:
    """The state as a checkpoint gives it back, read without unpickling code."""
    return torch.load(io.BytesIO(dumps(state)), weights_only=True)


def _new_run(path: Path) -> Run:
    run = Run.create(path)
    run.write(Run.CONFIG, b"")
    return run
