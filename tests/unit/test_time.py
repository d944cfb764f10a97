"""`--time`: how it is written, which epochs fill it, what is measured for that, and that a run keeps what was chosen."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oche
from oche import config
from oche.api import expected as module
from oche.api import rounds as rounds_module
from oche.api import search as api
from oche.api.expected import Clock, Expected, in_time, timed
from oche.api.problems import training_of
from oche.api.resume import reopen, resume
from oche.api.rounds import Rounds
from oche.api.terminal import Show
from oche.api.train import plan_training
from oche.cli import started
from oche.data import Stream
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan.machine import fabric_for
from oche.plan.request import Request, TrainRequest
from oche.plan.resolve import Plan, resolve
from oche.plan.within import OVER, Parts, epochs_within, nearest, seconds_of
from oche.run import Run
from oche.search.preflight import Estimate
from oche.spaces import Network
from oche.training import pace as measuring
from oche.training.pace import Pace, pace
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, TrainState
from reference.tiny import tiny_data, tiny_space

DATA = tiny_data(12)
CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|"


# ---------------------------------------------------------------------- the numbers


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20m", 1200), ("20 min", 1200), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), (45, 45), ("7", 7)],
)
def test_a_time_is_written_in_many_ways(text: str | int, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["soon", "20x", "-5m", "0", "", "5m!", "m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        seconds_of(text)


@given(st.floats(0.1, 100), st.floats(0.0, 5000), st.floats(0.0, 100))
def test_the_nearest_number_of_epochs(each: float, left: float, over: float) -> None:
    """By trying all: the closest to the seconds that are left, of those that exceed them by no more than `over`; at least 1."""
    allowed = [n for n in range(1, int(left / each) + int(over / each) + 2) if n * each <= left + over] or [1]
    closest = min(abs(n * each - left) for n in allowed)
    found = nearest(each, left, over)
    assert found in allowed
    assert abs(found * each - left) <= closest + 1e-6 * each


@given(
    st.floats(0.05, 20),
    st.floats(0.05, 60),
    st.floats(0, 20),
    st.integers(1, 100),
    st.integers(1, 50),
    st.floats(1, 4000),
)
def test_the_epochs_fill_the_time(
    search: float, training: float, rest: float, usual: int, trained: int, seconds: float
) -> None:
    """Never above the time by more than `OVER` and never below it by an epoch of the search, in about the usual proportion."""
    parts = Parts(search, training, rest)
    if parts.seconds(1, 1) > (1 + OVER) * seconds:
        with pytest.raises(UserError, match="too short"):
            epochs_within(seconds, parts, (usual, trained))
        return
    epochs, each = epochs_within(seconds, parts, (usual, trained))
    fewest = 3
    if parts.seconds(fewest, 1) <= (1 + OVER) * seconds:
        more, fewer = epochs_within(seconds, parts, (usual, trained), fewest=fewest)
        assert more >= fewest
        assert parts.seconds(more, fewer) <= (1 + OVER) * seconds + 1e-6
    assert min(epochs, each) >= 1
    assert parts.seconds(epochs, each) <= (1 + OVER) * seconds + 1e-6
    assert parts.seconds(epochs + 1, each) > seconds - 1e-6 * seconds
    share = (seconds - rest) / (search * usual + training * trained)
    assert abs(each - share * trained) <= 1 or each == 1


def test_epochs_that_are_given_stay() -> None:
    parts = Parts(2.0, 5.0, 10.0)
    assert epochs_within(100, parts, (20, 12), (True, False)) == (20, 10)
    assert epochs_within(100, parts, (20, 12), (False, True)) == (15, 12)
    with pytest.raises(UserError, match="no epochs left to choose"):
        epochs_within(100, parts, (20, 12), (True, True))
    assert epochs_within(100, Parts(0, 5, 10), (20, 12)) == (20, 18)
    with pytest.raises(UserError, match=r"60 s is too short.* about 2 min .*20 of the search and 1 of each training"):
        epochs_within(60, Parts(5.0, 5.0, 10.0), (20, 12), (True, False))


# ---------------------------------------------------------------------- what is measured


def training_for(data: object = DATA, **protocol: object) -> Training:
    space = tiny_space("toy", DATA)
    settings = replace(PROTOCOLS["smoke"], batch=4, **protocol)  # type: ignore[arg-type]
    return Training(space, Genotype.parse(CELL, "toy"), DATA, settings, 5, fabric_for("cpu"))


def test_a_pace_counts_steps_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own on which a step takes 0.2 s, an image 0.01 s and all else nothing: 3 steps per epoch, 12 images a part."""
    now = [100.0]

    def stepping(state: TrainState, training: Training, stream: Stream) -> tuple[float, float]:
        now[0] += 0.2 * stream.steps_per_epoch
        return 0.0, 0.0

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measuring, "train_epoch", stepping)
    monkeypatch.setattr(
        measuring, "evaluate", lambda network, images, *_: now.__setitem__(0, now[0] + 0.01 * len(images))
    )
    found = pace(training_for())
    assert found.epoch == pytest.approx(3 * 0.2 + 12 * 0.01)
    assert found.once == pytest.approx(0.2 + 12 * 0.01)  # the first, cold step, and the test images
    assert found.seconds(7) == pytest.approx(7 * found.epoch + found.once)


def test_one_long_step_among_three_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cold step, then one in a busy moment, then two as all others."""
    now, taken = [100.0], iter([5.0, 9.0, 3.0, 3.0])

    def stepping(*_: object) -> tuple[float, float]:
        now[0] += next(taken)
        return 0.0, 0.0

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measuring, "train_epoch", stepping)
    monkeypatch.setattr(measuring, "evaluate", lambda *_: None)
    assert pace(training_for(epochs=100)).epoch == pytest.approx(3 * 3.0)


def test_measuring_a_pace_leaves_no_trace(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    told: list[str] = []
    run = Run.create(tmp_path / "run")
    found = pace(replace(training_for(), run=run, listener=lambda event, _: told.append(event)))
    assert min(found.epoch, found.once) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert not told
    assert not run.records()


# ---------------------------------------------------------------------- a search


@pytest.fixture
def paces(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds per epoch of a training, as if they had been measured, an epoch of the search taking 2; nothing else takes time."""
    each = [0.5]
    monkeypatch.setattr(module, "pace", lambda training: Pace(each[0], 0.0))
    monkeypatch.setattr(module, "estimate", lambda problem, *_: Estimate(1, 1, 1.0, 2.0, problem.epochs, {}))
    monkeypatch.setattr(module, "ENDING", 0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: 1000.0)
    return each


def plan_for(**options: object) -> Plan:
    given = {
        "space": "toy",
        "data": DATA,
        "budget": "smoke",
        "batch": 6,
        "compare": 1,
        "compare_seeds": 2,
        "protocol": "smoke",
        **options,
    }
    return resolve(Request("darts", **given))  # type: ignore[arg-type]


@pytest.mark.usefixtures("paces")
def test_the_epochs_are_those_that_fill_the_time_and_run_toml_has_them(tmp_path: Path) -> None:
    """2 and 2 are usual; an epoch of the search takes 2 s, one of each of the six trainings 3 s together: 5 s for both, 20 for 100 s."""
    plan, expected = timed(plan_for(time="100s"), Clock(100, 1000.0))
    assert (plan.epochs, plan.protocol.epochs) == (20, 20)
    assert expected.trainings == 6
    assert expected.seconds == pytest.approx((40, 60))
    run = api.start(plan, tmp_path / "run")
    again, _ = reopen(run.path, DATA)
    assert (again.epochs, again.protocol.epochs, again.request.time) == (20, 20, "100s")
    table = config.loads(run.read(Run.CONFIG).decode(), "run.toml")
    assert table["resolved"]["epochs"] == 20  # type: ignore[index]


@pytest.mark.usefixtures("paces")
def test_explicit_epochs_win_and_the_table_says_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    plan, expected = timed(plan_for(time="100s", epochs=5), Clock(100, 1000.0))
    assert (plan.epochs, plan.protocol.epochs) == (5, 30)
    Show(quiet=False).preflight(plan, expected, "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "6 trainings of 30 epochs 90 s" in said
    assert "epochs are chosen for --time 100s; 5 epochs of the search were given" in said
    plan, _ = timed(plan_for(time="100s", settings={"train.epochs": 5}), Clock(100, 1000.0))
    assert (plan.epochs, plan.protocol.epochs) == (42, 5)
    with pytest.raises(UserError, match="no epochs left"):
        timed(plan_for(time="100s", epochs=5, settings={"train.epochs": 5}), Clock(100, 1000.0))


@pytest.mark.usefixtures("paces")
def test_no_time_is_less_than_the_fewest_epochs() -> None:
    with pytest.raises(UserError, match=r"--time 4 s is too short, .*1 of the search and 1 of each training"):
        timed(plan_for(time="4s"), Clock(4, 1000.0))
    late = plan_for(time="9s", settings={"arch_start": 0.5})  # alpha steps from the second epoch on
    with pytest.raises(UserError, match=r"2 of the search and 1 of each training"):
        timed(replace(late, epochs=4), Clock(6, 1000.0))


@pytest.mark.usefixtures("paces")
def test_what_asks_for_cells_takes_no_time_and_random_cells_have_all_of_it() -> None:
    asks = resolve(Request("local_search", space="toy", data=DATA, budget="smoke", time="9m"))
    with pytest.raises(UserError, match="asks for cells instead"):
        timed(asks, Clock(540, 1000.0))
    asked = Request("random_sampling", space="toy", data=DATA, budget="smoke", time="60s", compare=3, compare_seeds=3)
    drawn, _ = timed(resolve(asked), Clock(60, 1000.0))
    assert drawn.protocol.epochs == 8  # of 15 trainings of 0.5 s per epoch each


@pytest.mark.usefixtures("paces")
@pytest.mark.parametrize(
    ("given", "usual", "seconds", "cells", "seeds"),
    [
        ({}, 30, 385, 3, 3),  # 15 trainings of 0.5 s per epoch: a third of 30 search and 30 training epochs takes 95 s
        ({}, 30, 96, 3, 3),
        ({}, 30, 94, 2, 3),  # 12: 80 s
        ({}, 30, 66, 1, 3),  # 9: 65 s
        ({}, 30, 64, 1, 1),  # 3: 35 s
        ({}, 30, 5, 1, 1),  # no longer enough, but the least there is
        ({"compare_seeds": 3}, 30, 20, 1, 3),  # what was given stays
        ({"compare": 3}, 30, 94, 3, 1),
        ({"compare": 3, "compare_seeds": 3}, 30, 20, 3, 3),
        ({"compare": 0}, 30, 20, 0, 3),  # nothing is trained
    ],
)
def test_a_short_time_has_less_compared(
    given: dict[str, object], usual: int, seconds: float, cells: int, seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Down to the first comparison that leaves a third of the usual epochs; by hand, an epoch of the search takes 2 s."""
    asked = {"space": "toy", "data": DATA, "budget": "smoke", "batch": 6, "protocol": "smoke"}
    plan = resolve(Request("darts", **asked, **given, time=f"{seconds}s"))  # type: ignore[arg-type]
    plan = replace(plan, epochs=usual, protocol=replace(plan.protocol, epochs=usual))
    chosen, expected = timed(plan, Clock(seconds, 1000.0))
    assert (chosen.compare, chosen.compare_seeds) == (cells, seeds)
    assert expected.trainings == ((2 + cells) * seeds if cells else 0)
    assert sum(expected.seconds) <= (1 + OVER) * seconds
    request = chosen.table()["request"]
    assert (request["compare"], request["compare_seeds"]) == (cells, seeds)  # type: ignore[index]
    Show(quiet=False).preflight(chosen, expected, "run")
    said = " ".join(capsys.readouterr().out.split())
    assert ("less is compared than the usual 3 random cells and 3 seeds" in said) == bool(expected.reduced)
    assert bool(expected.reduced) == ((cells, seeds) != (plan.compare, plan.compare_seeds))


@pytest.mark.usefixtures("paces")
def test_a_time_that_is_too_short_says_what_could_be_left_out() -> None:
    for options, said in [
        ({}, "at least that$"),
        ({"compare": 3}, "--compare 1$"),
        ({"compare": 2, "compare_seeds": 2}, "--compare 1 --compare-seeds 1$"),
    ]:
        plan = resolve(Request("darts", space="toy", data=DATA, budget="smoke", batch=6, protocol="smoke", **options))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=rf"--time 2 s is too short.*{said.replace('$', '[.]$')}"):
            timed(plan, Clock(2, 1000.0))


def test_the_trainings_epochs_are_chosen_anew_when_the_search_has_ended(tmp_path: Path, paces: list[float]) -> None:
    """They take twice as long as was thought, and of 100 s 40 are left: 6 trainings of 1 s per epoch each get 7, or 6 without exceeding."""
    plan, _ = timed(plan_for(time="100s"), Clock(100, 1000.0))
    run = api.start(plan, tmp_path / "run")
    paces[0] = 1.0
    training = training_of(plan, plan.space, Genotype.parse(CELL, "toy"), run)
    assert in_time(plan, training, None).epochs == 20
    assert in_time(plan, training, Clock(100, 1000.0 - 60)).epochs == 7
    assert [r["train_epochs"] for r in run.records() if r["kind"] == "time"] == [7]
    paces[0] = 9.0
    for clock in (None, Clock(100, 1000.0)):  # resumed, they stay
        assert in_time(plan, training, clock).epochs == 7
    given = plan_for(time="100s", settings={"train.epochs": 3})
    assert in_time(given, replace(training, run=None), Clock(100, 1000.0)).epochs == 3


def test_what_comes_last_takes_longer_where_the_processor_is_shared(
    tmp_path: Path, paces: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This thread worked for 12 of 60 s: 2 s of exports will take 10, and of the 40 s left 30 are for 6 trainings of 1 s per epoch."""
    monkeypatch.setattr(module, "ENDING", 2.0)
    monkeypatch.setattr(module.time, "thread_time", lambda: 12.0)
    clock = Clock(100, 1000.0 - 60)
    assert clock.loaded(2.0) == pytest.approx(10.0)
    assert Clock(100, 1000.0 - 60, worked=11.5).loaded(2.0) == 2.0  # half a second of work tells nothing
    assert Clock(100, 1000.0 - 6).loaded(2.0) == 2.0  # several threads may work longer than the time that passed
    plan, paces[0] = plan_for(time="100s"), 1.0
    training = training_of(plan, plan.space, Genotype.parse(CELL, "toy"), api.start(plan, tmp_path / "run"))
    assert in_time(plan, training, clock).epochs == 5


LOADS = {  # seconds per epoch of a training, by the seconds since the command began, and the epochs with each of three seeds
    "steady": (lambda t: 1.0, [60, 60, 60]),
    "a little slower": (lambda t: 1.03, [60, 60, 60]),
    "slower from the first seed on": (lambda t: 1.0 if t < 90 else 2.0, [60, 30, 15]),
    "slower for the first seed alone": (lambda t: 2.0 if t < 360 else 1.0, [60, 15, 45]),
    "quicker from the second seed on": (lambda t: 1.0 if t < 180 else 0.5, [60, 60, 180]),
}


@pytest.mark.parametrize("load", LOADS)
def test_the_epochs_follow_a_load_that_changes(load: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own: three networks and three seeds are to take 540 s, and do within a tenth, where fixed epochs would not."""
    seconds_at, expected = LOADS[load]
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(rounds_module, "ENDING", 0.0)
    plan = plan_for(compare=1, compare_seeds=3)
    run = api.start(plan, tmp_path / "run")
    training = training_of(plan, plan.space, Genotype.parse(CELL, "toy"), run)
    training = replace(training, protocol=replace(training.protocol, epochs=60))
    rounds, epochs = Rounds(plan, training, Clock(540, 0.0)), list[int]()
    for n in range(3):
        epochs.append(rounds(n))
        for _ in range(3 * epochs[-1]):
            now[0] += seconds_at(now[0])
    assert epochs == expected
    assert abs(now[0] - 540) <= 54
    resumed = Rounds(plan, training, None)  # what was chosen stays
    assert [resumed(n) for n in range(3)] == expected


def test_all_networks_of_a_seed_have_as_many_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    from oche.training import compare as comparing

    asked: list[tuple[int, int]] = []

    def counting(training: Training) -> Network:
        asked.append((training.seed, training.protocol.epochs))
        return training.space.network(training.genotype).eval()

    monkeypatch.setattr(comparing, "retrain", counting)
    comparing.compare(training_for(), cells=1, seeds=3, keep=lambda *_: None, epochs=lambda n: 7 + n)
    assert asked == [(5, 7), (5, 7), (6, 8), (6, 8), (7, 9), (7, 9)]


@pytest.mark.slow
def test_a_timed_search_is_carried_on_with_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "available_formats", tuple)
    options = {"space": "toy", "data": DATA, "budget": "smoke", "compare": 1, "compare_seeds": 1, "rivals": "none"}
    found = oche.search("darts", **options, time="12s", out=tmp_path / "run")  # type: ignore[arg-type]
    (record,) = (r for r in found.run.records() if r["kind"] == "time")
    lines = found.run.records()
    found.run.rewind(next(n for n, r in enumerate(lines) if r["kind"] == "trained"))
    again = resume(found.run.path, DATA)
    assert isinstance(again, api.Found)
    assert again.comparison == found.comparison
    assert again.run.records() == lines
    assert record["left"] < 12  # type: ignore[operator]


# ---------------------------------------------------------------------- a training


def test_a_training_takes_the_epochs_that_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from oche.api import train as of_training

    monkeypatch.setattr(of_training, "pace", lambda _: Pace(2.0, 1.0))
    monkeypatch.setattr(of_training, "ENDING", 0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: 1000.0)
    asked = TrainRequest(CELL, space="toy", data=DATA, protocol="smoke", time="41s")
    plan = plan_training(asked).in_time(Clock.of(asked.time))
    assert plan.training.protocol.epochs == 20
    table = config.loads(plan.start(tmp_path / "run").read(Run.CONFIG).decode(), "run.toml")
    assert table["train"]["epochs"] == 20  # type: ignore[index]
    for more in (replace(asked, epochs=3), replace(asked, settings={"train.epochs": 3})):
        with pytest.raises(UserError, match="no epochs left to choose"):
            plan_training(more).in_time(Clock.of("41s"))
    with pytest.raises(UserError, match=r"--time 2 s is too short.*1 of each training"):
        plan_training(asked).in_time(Clock.of("2s"))


def test_alpha_steps_until_the_freeze_where_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 epochs of a single-stage search 2 warm up, 4 search and 4 tune; a step of alpha takes 0.02 s, one of the weights 0.01."""
    from oche.search import preflight

    now = [0.0]
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(preflight, "steps", lambda *given: now.__setitem__(0, now[0] + (0.03 if given[-1] else 0.01)))
    found = {}
    for method in ("single_stage", "darts"):
        asked = Request(method, space="toy", data=DATA, budget="smoke", epochs=10, batch=6, compare=0, rivals="none")
        search = module.expected_of(resolve(asked), trainings=False).search
        assert search
        found[method] = search.step_seconds
    assert found == {"single_stage": pytest.approx(0.4 * 0.03 + 0.6 * 0.01), "darts": pytest.approx(0.03)}


# ---------------------------------------------------------------------- the bar


def test_the_bar_fills_over_the_whole_command() -> None:
    """It counts expected seconds: 40 of the search, 60 of six trainings; a fifth of the search is 8 of 100, two trainings are 60."""
    show = Show(quiet=False)
    expected = Expected(Estimate(1, 1, 1.0, 1.0, 40, {}), Pace(3.0, 0.0), 6, 1, (2, 20))
    with show.search(plan_for(epochs=2), expected) as bar:
        show.listen("step", {"step": 2, "steps": 10, "epoch": 0})
        assert (bar.tasks[0].completed, bar.tasks[0].total) == (pytest.approx(8), 100)
        for _ in range(2):
            show.listen("trained", {"cell": "found", "seed": 0, "test_accuracy": 0.5, "metric": "accuracy"})
        assert bar.tasks[0].completed == pytest.approx(60)
        for _ in range(4):
            show.listen("trained", {"cell": "found", "seed": 0, "test_accuracy": 0.5, "metric": "accuracy"})
        assert bar.tasks[0].completed == pytest.approx(100)


# ---------------------------------------------------------------------- the beginning


def test_the_time_runs_from_the_beginning_of_the_process() -> None:
    """By two clocks: the process's age, and how long ago the process around it began to start it."""
    told = "import time; time.sleep(0.25); from oche.cli.started import age; print(age())"
    before = time.monotonic()
    seconds = float(subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout)
    if not sys.platform.startswith("linux"):
        assert seconds == 0.0
        return
    assert 0.25 <= seconds <= time.monotonic() - before + 0.02  # a tick is 10 ms


@pytest.mark.parametrize("stat", ["", "1 (a) b) S", "no numbers " * 30])
def test_an_age_that_is_not_told_is_none(stat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started.Path, "read_text", lambda *_, **__: stat)
    assert started.age() == 0.0


def test_a_process_that_did_something_else_before_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ["S", *["0"] * 18, "100"]  # began at tick 100
    monkeypatch.setattr(started.Path, "read_text", lambda *_, **__: f"7 (o) che) {' '.join(fields)}")
    monkeypatch.setattr(started.os, "sysconf", lambda _: 100)
    for now, seconds in ((3.5, 2.5), (1.0 + started.LONGEST + 1, 0.0), (0.5, 0.0)):
        monkeypatch.setattr(started.time, "clock_gettime", lambda _, now=now: now)
        assert started.age() == seconds
