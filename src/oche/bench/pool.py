"""Runs trials one after the other in this process, in processes of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from oche.bench.planned import Trial
from oche.bench.spawning import without_a_script
from oche.bench.trial import Outcome
from oche.errors import UserError

Work = Callable[[Trial, Path], Outcome]
"""Carries a trial out in a folder; `run_trial`, or a stand-in of the same kind."""

Done = tuple[Trial, Outcome | BaseException]
"""A trial with its outcome, or with the error that ended it."""

FAILURES = (UserError, RuntimeError, ArithmeticError, MemoryError)
"""Errors that end one trial and let the others go on; any other is a mistake in the program and is raised."""

RETRIES = 3
"""Times that a trial is started again, from its checkpoint, after its process or machine was lost."""


def here(trials: Sequence[Trial], folder: Path, work: Work) -> Iterator[Done]:
    """Runs the trials one after the other, in this process."""
    for trial in trials:
        try:
            done: Outcome | BaseException = work(trial, folder / trial.name)
        except FAILURES as error:
            done = error
        yield trial, done


def in_processes(trials: Sequence[Trial], folder: Path, work: Work, workers: int) -> Iterator[Done]:
    """Runs `workers` trials at a time, each in a fresh process, so that its peak memory is its own and its crash harms no other."""
    pool = ThreadPoolExecutor(workers)
    with without_a_script():
        try:
            futures = {pool.submit(_in_a_process, trial, folder / trial.name, work): trial for trial in trials}
            for future in as_completed(futures):
                yield futures[future], _expected(future.exception()) or future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def on_ray(trials: Sequence[Trial], folder: Path, work: Work, cpus: float, gpus: float) -> Iterator[Done]:
    """Runs the trials as tasks of the cluster that this process is connected to (`cluster`).

    A trial whose worker is lost is tried again. The machines of a cluster need oche, the data at the same path, and, to continue
    interrupted trials, the bench's folder.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(work)
    pending = {task.remote(trial, folder / trial.name): trial for trial in trials}
    while pending:
        (first, *_), _ = ray.wait(list(pending), num_returns=1)
        trial = pending.pop(first)
        try:
            done: Outcome | BaseException = ray.get(first)
        except RayTaskError as error:  # raised inside the trial, or where the worker could not read what it is to do
            if isinstance(error.cause, RayError):
                why = str(error.cause).partition("\n")[0]
                done = UserError(
                    f"A Ray worker could not begin ({why}): its machine needs the modules of this program."
                )
            else:
                done = _expected(error.cause) or error
        except RayError as error:  # the machine was lost once too often
            done = error
        yield trial, done


def _expected(error: BaseException | None) -> BaseException | None:
    """Returns the error if it is one that a trial may end with, and None if there was none; raises any other."""
    if error is not None and not isinstance(error, FAILURES):
        raise error
    return error


def _in_a_process(trial: Trial, folder: Path, work: Work) -> Outcome:
    """Runs the trial in a process of its own, and starts it again if that process is lost."""
    spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
    for _ in range(1 + RETRIES):
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            try:
                return pool.submit(work, trial, folder).result()
            except BrokenProcessPool:
                continue
    raise UserError(f"{trial.name} lost its process {1 + RETRIES} times; the machine may be out of memory.")
