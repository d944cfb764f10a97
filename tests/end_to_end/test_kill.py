"""SIGKILL at any moment, then resume: a search and a training end bit-identical to unbroken ones.

Each attempt is a forked child (no import to pay for) that carries on with the run until something kills it: a clock, or itself at a
chosen system call, between write and rename among them. A seed decides which; when the kills are used up, one more child finishes.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oche.base import counted
from oche.methods import METHODS
from oche.plan.machine import fabric_for
from oche.run import Run, digests
from oche.search.loop import search
from oche.search.method import Method
from oche.spaces.sampling import sample
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.tiny import tiny_data, tiny_problem, tiny_space

MEASURED = {"seconds", "images_per_second", "memory_mib"}
SITES = ("before rename", "after rename", "half a log line", "after a log line")
WAYS = (*SITES, "the clock")

MANY = int(os.environ.get("OCHE_CHAOS", "1"))
"""How many times as many kills as usual: `make chaos` sets it."""

Work = Callable[[Run], object]
"""What a child does in the run's folder: it begins, or carries on with what lies there."""


# ---------------------------------------------------------------------- dying


def die_at(site: str, n: int) -> None:
    """From now on this process kills itself at the n-th system call of that kind."""
    calls, rename, write = itertools.count(1), os.replace, os.write

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def renamed(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        hit = "rename" in site and next(calls) == n
        if hit and site.startswith("before"):
            assert Path(source).exists()
            die()
        rename(source, target)
        if hit:
            die()

    def written(stream: int, data: bytes) -> int:
        hit = "log" in site and next(calls) == n
        done = write(stream, data[: len(data) // 2] if hit and site.startswith("half") else data)
        if hit:
            die()
        return done

    os.replace, os.write = renamed, written  # type: ignore[assignment]


def attempt(work: Work, run: Run, site: str | None, n: int, seconds: float | None) -> int:
    """Forks a child that works on the run; kills it as asked. Returns the signal that ended it, 0 where it finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other tests left threads idle; a child uses none of theirs
        pid = os.fork()
    if pid == 0:
        code = 3
        try:
            if site:
                die_at(site, n)
            work(run)
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed instead of being killed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def killed_and_resumed(work: Work, folder: Path, *, kills: int, seed: int) -> Counter[str]:
    """Works in children that are killed, `kills` in all; a run that ends nevertheless is compared, and another one begins.

    Returns what killed how many.
    """
    whole = fresh(folder / "whole")
    work(whole)
    assert Run.STATE in files(whole)
    kills *= MANY
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
            ended = attempt(work, broken, None if clock else site, rng.randint(1, 12 if "rename" in site else 2), clock)
            causes[site] += ended == signal.SIGKILL
        if ended:
            assert attempt(work, broken, None, 0, None) == 0
        assert_same_run(whole, broken)
    assert resumed > kills / 4, "most attempts began anew: hardly anything was resumed"
    return causes


# ---------------------------------------------------------------------- being equal


def log(run: Run) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in run.records()]


def flat(tree: object, path: str = "") -> dict[str, object]:
    """A nested checkpoint as path -> bytes of a tensor, or a plain value."""
    if isinstance(tree, torch.Tensor):
        return {path: (str(tree.dtype), tuple(tree.shape), tree.detach().contiguous().numpy().tobytes())}
    if isinstance(tree, dict):
        return {k: v for name, leaf in tree.items() for k, v in flat(leaf, f"{path}/{name}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for n, leaf in enumerate(tree) for k, v in flat(leaf, f"{path}/{n}").items()}
    return {path: tree}


def content(run: Run, name: str) -> object:
    data = run.read(name)
    if name.endswith(".pt"):
        return flat(torch.load(io.BytesIO(data), weights_only=True))
    if name.endswith(".npz"):
        with np.load(io.BytesIO(data)) as arrays:
            return {key: (arrays[key].dtype, arrays[key].shape, arrays[key].tobytes()) for key in arrays.files}
    return data


def files(run: Run) -> set[str]:
    """All but the log and its length in the digests, which hold times, and temporaries, which a killed process may leave behind."""
    found = (path for path in run.path.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return {str(path.relative_to(run.path)) for path in found} - {Run.LOG, digests.FILE}


def assert_same_run(one: Run, other: Run) -> None:
    assert log(one) == log(other)
    assert files(one) == files(other)
    for name in files(one):
        assert content(one, name) == content(other, name), name


def fresh(path: Path) -> Run:
    run = Run.create(path)
    run.write(Run.CONFIG, b"")
    return run


# ---------------------------------------------------------------------- a search


def a_search(name: str, space: str = "toy", *, epochs: int = 6, **settings: object) -> Work:
    problem = tiny_problem(space, epochs=epochs, count=36, **settings)
    problem = replace(problem, checkpoint_every=2, augment=replace(problem.augment, pad=1, flip=True))
    method = METHODS[name]()
    assert isinstance(method, Method)

    def work(run: Run) -> object:
        return search(replace(problem, run=run), method)

    return work


def test_a_search_killed_over_and_over_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    causes = Counter[str]()
    for n, name in enumerate(("rf_darts", "darts", "pcdarts")):
        causes += killed_and_resumed(a_search(name), tmp_path / name, kills=8, seed=n)
    assert causes.total() >= 20
    assert causes["before rename"] >= 2, "the window between write and rename was hardly hit"
    assert set(causes) == set(WAYS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["darts", "darts_2nd", "pcdarts", "rf_darts", "rf_pcdarts"])
@pytest.mark.parametrize("space", ["nb201", "s4"])  # s4 draws noise in its forward passes
def test_a_larger_search_killed_over_and_over(name: str, space: str, tmp_path: Path) -> None:
    work = a_search(name, space, epochs=4, channels=4, cells=1 if space == "nb201" else 3)
    assert killed_and_resumed(work, tmp_path, kills=20, seed=len(name) + len(space))["before rename"]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5])
def test_a_kill_in_the_last_epoch(site: str, n: int, tmp_path: Path) -> None:
    """From the last steps to the genotype, which is written last: every call there once."""
    work = a_search("rf_darts", epochs=1)
    whole, broken = fresh(tmp_path / "whole"), fresh(tmp_path / "broken")
    replaced, renames = os.replace, list[object]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda source, target: (renames.append(target), replaced(source, target)))
        work(whole)
    assert len(renames) > 9
    ended = attempt(work, broken, site, len(renames) - n if "rename" in site else n, None)
    attempt(work, broken, None, 0, None)
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


def a_training(epochs: int = 5, keep: str = "best") -> Work:
    data = tiny_data(24)
    space = tiny_space("darts", data, cells=3, channels=4)
    genotype = sample(space, counted(5))
    protocol = replace(PROTOCOLS["smoke"], epochs=epochs, batch=8, drop_path=0.3, cutout=16, auxiliary=0.4)
    protocol = replace(protocol, keep="best" if keep == "best" else "last")

    def work(run: Run) -> object:
        return retrain(Training(space, genotype, data, protocol, 1, fabric_for("cpu"), run))

    return work


def test_a_training_killed_over_and_over_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    assert killed_and_resumed(a_training(), tmp_path, kills=8, seed=0)["before rename"]


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
    assert attempt(work, broken, site, n, None) == signal.SIGKILL
    assert attempt(work, broken, None, 0, None) == 0
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
    for n in range(6):
        kills += attempt(work, runs[1], "before rename" if n % 2 else "after a log line", rng.randint(1, 6), None) > 0
    attempt(work, runs[1], None, 0, None)
    assert kills >= 4
    assert log(runs[0]) == log(runs[1])
    kinds = Counter(str(record["kind"]) for record in log(runs[0]))
    assert kinds == {"epoch": 2, "supernet": 1, "trained": 4, "comparison": 1}
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
