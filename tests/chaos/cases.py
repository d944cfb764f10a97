"""What is killed: small runs of each kind, how each is carried on, and when two of its folders are equal."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from chaos.dying import SITES, assert_same_run, fresh
from oche.base import counted
from oche.bench import Matrix, run_bench
from oche.bench.result import BenchFolder
from oche.fast.backends import native
from oche.methods import METHODS
from oche.plan.machine import fabric_for
from oche.run import Run, records
from oche.search.loop import search
from oche.search.method import Method
from oche.search.searcher import as_searcher
from oche.spaces.sampling import sample
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.tiny import tiny_data, tiny_problem, tiny_space

Work = Callable[[Run], object]
"""What is done in a run's folder: it begins, or carries on with what lies there."""


@dataclass(frozen=True)
class Case:
    """A kind of run: `work` begins or carries on in a folder that `prepare` has made; `equal` raises AssertionError for two that differ.

    `sites` are where it may be killed, each with the greatest number of the call; `share` of all kills are its own. A `command` is killed
    as a process of its own, a forked child otherwise. `on_disks`: it is run on full and read-only disks too.
    """

    work: Callable[[Path], object]
    prepare: Callable[[Path], object]
    equal: Callable[[Path, Path], None]
    sites: dict[str, int]
    share: float
    command: bool = False
    on_disks: bool = False


CALLS = {site: 12 if "rename" in site else 2 for site in SITES}


def cases(folder: Path) -> dict[str, Case]:
    """All kinds; `folder` takes what they need besides."""
    in_run = partial(Case, prepare=fresh, equal=same_run)
    searches = {f"search {name}": _searched(name) for name in ("darts", "rf_darts", "pcdarts")}
    return {
        **{
            name: in_run(lambda path, work=work: work(Run(path)), sites=CALLS, share=0.1, on_disks=True)
            for name, work in searches.items()
        },
        "search seldom written": in_run(
            lambda path, work=a_search("rf_darts", every=None): work(Run(path)), sites=CALLS, share=0.1, on_disks=True
        ),
        "staged search": in_run(_staged("drnas_progressive"), sites=CALLS, share=0.15),
        "retrain": in_run(lambda path, work=a_training(): work(Run(path)), sites=CALLS, share=0.15, on_disks=True),
        "bench": Case(_bench, _nothing, same_bench, CALLS, 0.15, on_disks=True),
        "import": Case(_command, _planned, same_run, {"import": 4000}, 0.15, command=True),
        "kernel compilation": Case(
            partial(_with_fresh_kernels, compiler=_quick_compiler(folder)),
            _made,
            same_kernels,
            {"compiler call": 4},
            0.1,
        ),
    }


# ---------------------------------------------------------------------- runs


def a_search(name: str, space: str = "toy", *, epochs: int = 6, every: int | None = 2, **settings: object) -> Work:
    """A search of noise images that is checkpointed every other step, or where `every` is None after the first epoch and at the end."""
    problem = tiny_problem(space, epochs=epochs, count=36, **settings)
    problem = replace(problem, checkpoint_every=every, augment=replace(problem.augment, pad=1, flip=True))
    method = METHODS[name]()
    assert isinstance(method, Method)

    def work(run: Run) -> object:
        with run.lock():
            return search(replace(problem, run=run), method)

    return work


def a_training(epochs: int = 5, keep: str = "best") -> Work:
    """The training of a drawn cell of the DARTS space, with everything random that a protocol may have."""
    data = tiny_data(24)
    space = tiny_space("darts", data, cells=3, channels=4)
    genotype = sample(space, counted(5))
    protocol = replace(PROTOCOLS["smoke"], epochs=epochs, batch=8, drop_path=0.3, cutout=16, auxiliary=0.4)
    protocol = replace(protocol, keep="best" if keep == "best" else "last")

    def work(run: Run) -> object:
        with run.lock():
            return retrain(Training(space, genotype, data, protocol, 1, fabric_for("cpu"), run))

    return work


def _searched(name: str) -> Work:
    return a_search(name)


def _staged(name: str) -> Callable[[Path], object]:
    searcher = as_searcher(METHODS[name]())
    problem = replace(tiny_problem("toy", epochs=6, count=24), checkpoint_every=2)

    def work(path: Path) -> object:
        with Run(path).lock():
            return searcher.run(replace(problem, run=Run(path)))

    return work


def same_run(one: Path, other: Path) -> None:
    """Compares two runs' folders."""
    assert_same_run(Run(one), Run(other))


# ---------------------------------------------------------------------- a bench


MATRIX = Matrix(
    methods=("darts",),
    baseline="random_sampling",
    baselines=("random_sampling",),
    spaces=("toy",),
    budgets=("smoke",),
    seeds=2,
    epochs=1,
    batch=256,
    evaluate="train",
    protocol="smoke",
    settings={"train.epochs": 1, "train.batch": 256},
)
CLOCKS = {"seconds", "train_seconds", "memory_mib"}


def _bench(path: Path) -> object:
    return run_bench(MATRIX, path, render=lambda result: None)


def same_bench(one: Path, other: Path) -> None:
    """Compares two benches: their trials' lines, but for times, and their trials' folders."""
    assert lines(one) == lines(other)
    folders = [sorted(p.name for p in (path / BenchFolder.RUNS).iterdir()) for path in (one, other)]
    assert folders[0] == folders[1]
    for name in folders[0]:
        same_run(one / BenchFolder.RUNS / name, other / BenchFolder.RUNS / name)


def lines(path: Path) -> list[dict[str, object]]:
    """A bench's finished trials without what was measured."""
    read = BenchFolder(path).read(BenchFolder.TRIALS).splitlines()
    return [{k: v for k, v in (records.unseal(line) or {}).items() if k not in CLOCKS} for line in read]


def _nothing(path: Path) -> None:
    """A bench makes its own folder."""


# ---------------------------------------------------------------------- a command


def _planned(path: Path) -> None:
    from oche.api.search import start
    from oche.plan.request import Request
    from oche.plan.resolve import resolve

    request = Request("darts", space="toy", budget="smoke", epochs=1, batch=256, compare=0, threads=1, progress=False)
    start(resolve(request), path)


def _command(path: Path) -> object:
    """What `oche search --resume` does, without the pictures."""
    from oche.api import search as api
    from oche.api.resume import reopen

    api.render = lambda run: None  # type: ignore[assignment]
    return api.carry_out(*reopen(path))


# ---------------------------------------------------------------------- kernels


def _quick_compiler(folder: Path) -> Path | None:
    """The system's compiler, told not to optimise: it takes seconds instead of a minute."""
    found = native.compiler_path()
    if found is None:
        return None
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\nexec "{found}" "$@" -O0\n')
    script.chmod(0o755)
    return script


def _with_fresh_kernels(path: Path, compiler: Path | None) -> object:
    """A search with kernels from a cache of its own, compiled first where they are not there yet."""
    if compiler is not None:
        os.environ["CXX"] = str(compiler)
    os.environ["OCHE_CACHE"] = str(path / "cache")
    native.kernels.cache_clear()
    assert native.kernels() is not None
    return a_search("darts", "nb201", epochs=1, channels=8, cells=1)(Run(path / "run"))


def _made(path: Path) -> None:
    path.mkdir()
    fresh(path / "run")


def same_kernels(one: Path, other: Path) -> None:
    """Compares two runs, each with its cache: the same library's name, whole, and nothing else that loads."""
    same_run(one / "run", other / "run")
    names = [sorted(p.name for p in (path / "cache").glob("*.so")) for path in (one, other)]
    assert names[0] == names[1]
    assert len(names[0]) == 1
    assert native._whole(other / "cache" / names[1][0])
