"""SIGKILL at any moment, then resume: a search and a training end bit-identical to unbroken ones.

Each attempt is a forked child (no import to pay for) that carries on with the run until something kills it: a clock, or itself at a
chosen system call, between write and rename among them. A seed decides which; when the kills are used up, one more child finishes.
`make chaos` does the same to more kinds of runs, and writes down what became of each.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from chaos.cases import Work, a_search, a_training
from chaos.dying import SITES, assert_same_run, attempt, content, die_at, files, fresh, log
from oche.methods import METHODS
from oche.run import Run
from oche.search.loop import search
from oche.search.method import Method
from reference.tiny import tiny_problem

WAYS = (*SITES, "the clock")


def killed_and_resumed(work: Work, folder: Path, *, kills: int, seed: int) -> Counter[str]:
    """Works in children that are killed, `kills` in all; a run that ends nevertheless is compared, and another one begins.

    Returns what killed how many.
    """
    whole = fresh(folder / "whole")
    work(whole)
    assert Run.STATE in files(whole)
    rng, causes, resumed = random.Random(seed), Counter[str](), 0
    turns = itertools.chain.from_iterable(
        rng.sample(WAYS, len(WAYS)) for _ in itertools.count()
    )  # each as often as the others
    while causes.total() < kills:
        broken, ended = fresh(folder / "broken"), signal.SIGKILL.value
        while ended and causes.total() < kills:
            site = next(turns)
            resumed += broken.has(Run.STATE)
            clock = rng.uniform(0.01, 0.3) if site == "the clock" else None
            arm = None if clock else partial(die_at, site, rng.randint(1, 12 if "rename" in site else 2))
            ended = attempt(partial(work, broken), arm, clock)
            causes[site] += ended == signal.SIGKILL
        if ended:
            assert attempt(partial(work, broken)) == 0
        assert_same_run(whole, broken)
    assert resumed > kills / 4, "most attempts began anew: hardly anything was resumed"
    return causes


# ---------------------------------------------------------------------- a search


def test_a_search_killed_over_and_over_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    causes = Counter[str]()
    for n, name in enumerate(("rf_darts", "darts", "pcdarts")):
        causes += killed_and_resumed(a_search(name), tmp_path / name, kills=5, seed=n)
    assert causes.total() == 15
    assert causes["before rename"] >= 2, "the window between write and rename was hardly hit"
    assert set(causes) == set(WAYS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["darts", "darts_2nd", "pcdarts", "rf_darts", "rf_pcdarts"])
@pytest.mark.parametrize("space", ["nb201", "s4"])  # s4 draws noise in its forward passes
def test_a_larger_search_killed_over_and_over(name: str, space: str, tmp_path: Path) -> None:
    work = a_search(name, space, epochs=4, channels=4, cells=1 if space == "nb201" else 3)
    assert killed_and_resumed(work, tmp_path, kills=20, seed=len(name) + len(space))["before rename"]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))])
def test_a_kill_in_the_last_epoch(site: str, n: int, tmp_path: Path) -> None:
    """From the last steps to the genotype, which is written last: every call there once."""
    work = a_search("rf_darts", epochs=1)
    whole, broken = fresh(tmp_path / "whole"), fresh(tmp_path / "broken")
    replaced, renames = os.replace, list[object]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda source, target: (renames.append(target), replaced(source, target)))
        work(whole)
    assert len(renames) > 9
    ended = attempt(partial(work, broken), partial(die_at, site, len(renames) - n if "rename" in site else n))
    attempt(partial(work, broken))
    assert_same_run(whole, broken)
    assert ended == signal.SIGKILL or "log" in site


def test_a_finished_search_searched_again_changes_nothing(tmp_path: Path) -> None:
    work, run = a_search("darts", epochs=2), fresh(tmp_path / "run")
    work(run)
    before = {name: content(run, name) for name in files(run)}, log(run)
    work(run)
    assert ({name: content(run, name) for name in files(run)}, log(run)) == before


def test_a_resumed_search_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    """It would end the same had it begun anew, only later: the steps that are taken tell."""

    class Interrupted(Exception):
        pass

    steps: list[int] = []

    def stop_at_five(event: str, record: Mapping[str, object]) -> None:
        if event == "step":
            steps.append(int(str(record["step"])))
            if len(steps) == 5:
                raise Interrupted

    method = METHODS["darts"]()
    assert isinstance(method, Method)
    problem = replace(
        tiny_problem("toy", epochs=3), run=fresh(tmp_path / "run"), checkpoint_every=2, listener=stop_at_five
    )
    with pytest.raises(Interrupted):
        search(problem, method)
    search(problem, method)
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]


def test_how_often_it_is_checkpointed_changes_nothing(tmp_path: Path) -> None:
    """But for the number of checkpoints, which is no part of the result."""
    runs = [fresh(tmp_path / name) for name in ("often", "seldom")]
    problem = tiny_problem("toy", epochs=2)
    for run, every in zip(runs, (1, 1000), strict=True):
        method = METHODS["darts"]()
        assert isinstance(method, Method)
        search(replace(problem, run=run, checkpoint_every=every), method)
    assert_same_run(*runs)


def test_the_comparison_would_see_a_difference(tmp_path: Path) -> None:
    """One bit of one weight, one step of alpha's trajectory, one number of the log."""
    one, other = fresh(tmp_path / "one"), fresh(tmp_path / "other")
    a_search("darts", epochs=1)(one)
    a_search("darts", epochs=1)(other)
    assert_same_run(one, other)
    table = torch.load(io.BytesIO(other.read(Run.STATE)), weights_only=True)
    weight = next(t for t in table["weights"].values() if t.dim() == 1).detach()
    weight.view(torch.int32)[0] ^= 1
    buffer = io.BytesIO()
    torch.save(table, buffer)
    other.write(Run.STATE, buffer.getvalue())
    with pytest.raises(AssertionError, match=r"state\.pt"):
        assert_same_run(one, other)


# ---------------------------------------------------------------------- a training


def test_a_training_killed_over_and_over_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    assert killed_and_resumed(a_training(), tmp_path, kills=5, seed=0)["before rename"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_longer_training_killed_over_and_over(seed: int, tmp_path: Path) -> None:
    assert killed_and_resumed(a_training(12), tmp_path, kills=20, seed=seed)["before rename"]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("site", ["before rename", "after rename"])
def test_a_kill_between_the_checkpoints_of_the_last_epoch(site: str, n: int, tmp_path: Path) -> None:
    """An epoch writes three files: whichever is missing, the resumed run must end with all three of the last epoch."""
    work = a_training(1)
    whole, broken = fresh(tmp_path / "whole"), fresh(tmp_path / "broken")
    work(whole)
    assert attempt(partial(work, broken), partial(die_at, site, n)) == signal.SIGKILL
    assert attempt(partial(work, broken)) == 0
    assert_same_run(whole, broken)


# ---------------------------------------------------------------------- the whole command


def test_a_search_with_its_comparison_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `oche.api.search`: search, comparison, network; every record of the log once, in the same order."""
    from oche.api import search as api
    from oche.api.resume import reopen

    monkeypatch.setattr(api, "available_formats", tuple)  # exporting takes seconds, and has tests of its own

    def work(run: Run) -> object:
        return api.carry_out(*reopen(run.path))

    runs = [start(tmp_path / name) for name in ("whole", "broken")]
    work(runs[0])
    rng = random.Random(1)
    kills = 0
    for n in range(3):
        arm = partial(die_at, "before rename" if n % 2 else "after a log line", rng.randint(1, 6))
        kills += attempt(partial(work, runs[1]), arm) > 0
    attempt(partial(work, runs[1]))
    assert kills >= 2
    assert log(runs[0]) == log(runs[1])
    kinds = Counter(str(record["kind"]) for record in log(runs[0]))
    assert kinds == {"epoch": 2, "supernet": 1, "test": 1, "confusion": 1, "trained": 6, "comparison": 1}
    assert files(runs[0]) == files(runs[1])
    for name in ("genotype.json", "network/weights.safetensors", "network/card.json", "alphas.npz", "state.pt"):
        assert content(runs[0], name) == content(runs[1], name), name


def start(path: Path) -> Run:
    from oche.api import search as api
    from oche.plan.request import Request
    from oche.plan.resolve import resolve

    settings = {"train.epochs": 1}
    request = Request(
        "rf_darts",
        space="toy",
        budget="smoke",
        batch=128,
        compare=1,
        compare_seeds=2,
        protocol="smoke",
        settings=settings,
    )
    return api.start(resolve(request), path)


@pytest.mark.slow
def test_the_command_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`oche search` as a process of its own, killed by the clock, and `oche search --resume`."""
    import subprocess
    import sys

    oche = [sys.executable, "-m", "oche.cli.main"]
    arguments = [
        "search",
        "rf_darts",
        "--space",
        "toy",
        "--budget",
        "smoke",
        "--epochs",
        "12",
        "--compare",
        "0",
        "--quiet",
    ]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in conftest: more threads make small tensors many times slower
    subprocess.run([*oche, *arguments, "--out", str(whole)], check=True, capture_output=True)
    child = subprocess.Popen([*oche, *arguments, "--out", str(broken)], stdout=subprocess.DEVNULL)
    while not (broken / Run.STATE).exists():
        assert child.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert not (broken / Run.GENOTYPE).exists(), "it finished before it was killed"
    subprocess.run([*oche, "search", "--resume", str(broken), "--quiet"], check=True, capture_output=True)
    one, other = Run.open(whole), Run.open(broken)
    assert log(one) == log(other)
    for name in (Run.STATE, Run.ALPHAS, Run.GENOTYPE):
        assert content(one, name) == content(other, name), name
