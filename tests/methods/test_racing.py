"""Races of trainings: who is left, after how many epochs, against GM-NAS's script; and what R-DARTS's pick searches and keeps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oche.base import counted
from oche.errors import UserError
from oche.methods import racing
from oche.methods.gm_nas import CHOICES, Halving, best_child, gm_nas
from oche.methods.racing import race, smoothed
from oche.methods.rdarts import PICK_BUDGETS, PUBLISHED, STRENGTHS, BestTrained, OnePerStrength, rdarts, rdarts_pick
from oche.optim import SGD
from oche.run import Run
from oche.search.begin import begin
from oche.search.method import Method
from oche.spaces.edges import DropPath
from oche.spaces.sampling import sample
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training
from reference.real import digits, epochs_of, real_problem
from reference.tiny import tiny_problem


def moving_avg_of_list(values: list[float]) -> float:
    """successive_halving.py, lines 88 to 93."""
    avg = 0.0
    for id, val in enumerate(values):
        avg = avg * id * 0.1 + float(val) * 0.9
        avg = avg / (id + 1)
    return avg


def scripted(scores: np.ndarray) -> int:
    """successive_halving.py, lines 115 to 132, and the better of the last two in the end."""
    first = np.array([moving_avg_of_list(list(row[:30])) for row in scores])
    top = np.argpartition(first, -4)[-4:]
    second = np.array([moving_avg_of_list(list(row[30:100])) for row in scores])
    second[[n for n in range(8) if n not in top]] = 0
    top = np.argpartition(second, -2)[-2:]
    return int(max(top, key=lambda n: scores[n][-1]))


def test_the_halving_leaves_what_the_script_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With planted scores; the losers are trained no further than their rung."""
    problem = tiny_problem("nb201", channels=4, cells=1)
    rng, cells = counted(1), []
    while len(cells) < 8:
        cell = sample(problem.space, rng)
        cells += [cell] * (cell not in cells)
    for seed in range(3):
        scores = np.random.default_rng(seed).random((8, 120))
        trained: dict[int, int] = {}
        monkeypatch.setattr(racing, "begin", lambda training: Fake(cells.index(training.genotype)))
        monkeypatch.setattr(racing, "train_epoch", lambda state, training, stream: None)

        def planted(network: int, *rest: object) -> Any:
            epoch = trained.get(network, 0)  # noqa: B023
            trained[network] = epoch + 1  # noqa: B023
            return Score(float(scores[network][epoch]))  # noqa: B023

        monkeypatch.setattr(racing, "evaluate", planted)
        expected = scripted(scores)
        assert race(problem, cells, "darts_cifar", (30, 100, 120), (4, 2, 1)) == expected
        assert sorted(trained.values()) == [30] * 4 + [100] * 2 + [120] * 2
        assert trained[expected] == 120


class Fake:
    """A training that only counts."""

    def __init__(self, number: int) -> None:
        self.network, self.optimizer, self.epoch = number, None, 0


class Score:
    """What an evaluation says."""

    def __init__(self, value: float) -> None:
        self.value = value


def test_the_running_mean_is_nearly_the_last_value() -> None:
    values = [0.3, 0.5, 0.9, 0.2]
    assert smoothed(values) == pytest.approx(moving_avg_of_list(values))
    assert smoothed([0.5]) == pytest.approx(0.45)


def test_a_race_of_real_trainings_ends_and_says_so(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    problem = replace(tiny_problem("nb201", channels=4, cells=1), run=run)
    rng = counted(1)
    one, two = sample(problem.space, rng), sample(problem.space, rng)
    won = race(problem, [one, two, one], "smoke", (1, 2), (2, 1))
    assert won in (0, 1), "equal cells run once"
    told = [r for r in run.records() if r["kind"] == "race"]
    assert [(r["cell"], r["epochs"]) for r in told] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    best = max(r["val_accuracy"] for r in told[2:])
    assert told[2 + won]["val_accuracy"] == best
    with pytest.raises(UserError, match="one cell in the end"):
        race(problem, [one, two], "smoke", (1, 2), (2, 2))
    with pytest.raises(UserError, match="growing numbers of epochs"):
        race(problem, [one, two], "smoke", (0, 2), (2, 1))


def test_gm_nas_chooses_as_it_is_told() -> None:
    assert gm_nas().choose is best_child is CHOICES["validation"]
    assert gm_nas(choose="halving").choose == Halving("darts_cifar", (30, 100, 600), (4, 2, 1))


@pytest.mark.parametrize("regularisation", ["l2", "dp"])
def test_the_pick_searches_once_at_each_strength(regularisation: Any) -> None:
    searcher, problem = rdarts_pick(regularisation), tiny_problem("toy", epochs=11)
    assert isinstance(searcher.method, Method)
    found, epochs, ended = [], [], ()
    while stage := OnePerStrength(regularisation)(problem, searcher.method, ended):
        epochs.append(stage.epochs)
        own = stage.method
        assert isinstance(own.weight_optimizer, SGD)
        found.append(own.edge.rate(1.0) if isinstance(own.edge, DropPath) else own.weight_optimizer.weight_decay)
        ended += (None,)  # type: ignore[assignment]
    published = {"l2": [3e-4, 9e-4, 27e-4, 81e-4], "dp": [0.0, 0.2, 0.4, 0.6]}
    assert found == published[regularisation] == list(STRENGTHS[regularisation])
    assert epochs == [5, 2, 2, 2]
    with pytest.raises(UserError, match="an epoch for each of 4"):
        OnePerStrength()(tiny_problem("toy", epochs=3), searcher.method, ())


@pytest.mark.parametrize("whole", [True, False])
def test_the_pick_s_edges_are_whole_unless_told(whole: bool) -> None:
    for searcher in (rdarts_pick("dp", whole), rdarts_pick("dp") if whole else rdarts_pick("dp", whole=False)):
        method, plan = searcher.method, searcher.stages
        assert isinstance(method.edge, DropPath)
        assert method.edge.whole == plan.whole == whole  # type: ignore[attr-defined]
        assert method.edge.rate(1.0) == 0.2
    assert OnePerStrength("dp").whole
    assert len(STRENGTHS["dp"]) * PUBLISHED["darts"].epochs == PICK_BUDGETS["paper"]["darts"].epochs == 200
    assert PICK_BUDGETS["smoke"]["darts"].epochs == 4


@pytest.mark.parametrize("space", ["toy", "grid"])
def test_the_best_trained_is_picked_by_the_task_s_own_protocol(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def planted(problem: object, cells: object, protocol: str, until: object, keep: object) -> int:
        asked.append((protocol, until, keep))
        return 1

    monkeypatch.setattr(sys.modules[BestTrained.__module__], "race", planted)
    problem = tiny_problem(space, **({"layers": 3, "channels": 4, "levels": 3} if space == "grid" else {}))  # type: ignore[arg-type]
    states = [begin(replace(problem, seed=seed), rdarts()) for seed in (1, 2)]
    cells = [rdarts().selection(state, state.problem) for state in states]
    assert BestTrained()(problem, rdarts(), tuple(states)) == cells[1]
    BestTrained(epochs=7)(problem, rdarts(), tuple(states))
    name = "segment_brief" if space == "grid" else "brief"
    assert asked == [(name, (PROTOCOLS[name].epochs,), (1,)), (name, (7,), (1,))]


@pytest.mark.slow
def test_on_digits_the_pick_keeps_the_best_trained_of_four(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    problem = replace(real_problem("nb201", digits(), 4, listener=epochs_of(told)), run=run)
    searcher = replace(rdarts_pick(), choose=BestTrained("smoke"))
    result = searcher.search(problem)
    races = [r for r in run.records() if r["kind"] == "race"]
    assert len(told) == 4
    assert 1 <= len(races) <= 4
    best = max(races, key=lambda r: r["val_accuracy"])
    assert str(result.genotype) == best["genotype"]
    decays = [r["note"] for r in run.records() if r["kind"] == "stage"]
    assert decays == ["l2 0.0003", "l2 0.0009", "l2 0.0027", "l2 0.0081"]


def test_a_rung_looks_at_its_own_epochs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was far ahead in the first rung loses the second by little; over all epochs it would win."""
    problem = tiny_problem("nb201", channels=4, cells=1)
    rng = counted(1)
    cells = [sample(problem.space, rng), sample(problem.space, rng)]
    scores: tuple[tuple[float, ...], ...] = ((0.9, 0.9, 0.99, 0.50), (0.1, 0.1, 0.10, 0.51))
    trained = [0, 0]

    def planted(network: int, *rest: object) -> Any:
        trained[network] += 1
        return Score(scores[network][trained[network] - 1])

    monkeypatch.setattr(racing, "begin", lambda training: Fake(cells.index(training.genotype)))
    rates: list[float] = []

    def rated(state: Any, training: Training, stream: object) -> None:
        rates.append(training.protocol.lr(state.epoch / training.protocol.epochs))

    monkeypatch.setattr(racing, "train_epoch", rated)
    monkeypatch.setattr(racing, "evaluate", planted)
    assert race(problem, cells, "smoke", (3, 4), (2, 1)) == 1
    lr = PROTOCOLS["smoke"].lr
    assert rates == [lr(e / 4) for e in (0, 1, 2, 0, 1, 2, 3, 3)], "the schedule runs over all rungs"
    assert smoothed(scores[0]) > smoothed(scores[1])
    scores, trained = ((0.1, 0.1), (0.9, 0.9)), [0, 0]
    assert race(problem, cells, "smoke", (1, 2), (1, 1)) == 1, "the first epoch counts"
    assert trained == [1, 2]
