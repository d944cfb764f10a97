"""Trains cells from scratch beside each other and keeps ever fewer of them, by validation images: GM-NAS's halving, R-DARTS's pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oche.data import none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.search.state import Problem
from oche.training.evaluate import evaluate
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, begin, stream_of, train_epoch


def race(problem: Problem, cells: Sequence[Genotype], protocol: str, until: Sequence[int], keep: Sequence[int]) -> int:
    """The number of the cell that is left: after `until[i]` epochs `keep[i]` cells go on, those with the best `smoothed` scores.

    The protocol runs over `until[-1]` epochs. Writes a line per cell and rung into the log. Equal cells are trained once.
    """
    if len(until) != len(keep) or list(until) != sorted(set(until)) or until[0] < 1 or keep[-1] != 1:
        raise UserError(f"A race needs growing numbers of epochs and one cell in the end; given {until=} and {keep=}.")
    own = replace(PROTOCOLS[protocol], epochs=until[-1])
    trainings = {
        n: Training(problem.space, cell, problem.data, own, problem.seed, problem.fabric, task=problem.task)
        for n, cell in enumerate(cells)
        if cell not in cells[:n]
    }
    states = {n: begin(training) for n, training in trainings.items()}
    scores: dict[int, list[float]] = {n: [] for n in states}
    for rung, (epochs, left) in enumerate(zip(until, keep, strict=True)):
        since = until[rung - 1] if rung else 0
        for n, state in states.items():
            training = trainings[n]
            stream = stream_of(training)
            while state.epoch < epochs:
                train_epoch(state, training, stream)
                state.epoch += 1
                found = evaluate(state.network, problem.data.val, none(problem.data), problem.fabric, problem.task)
                scores[n].append(found.value)
            tell(problem, n, cells[n], epochs, scores[n][-1])
        ranked = sorted(states, key=lambda n: -smoothed(scores[n][since:]))  # stable: the first of equals
        states = {n: states[n] for n in sorted(ranked[:left])}
    return next(iter(states))


def smoothed(values: Sequence[float]) -> float:
    """a_n of a_i = (i a_{i-1} / 10 + 9 v_i / 10) / (i + 1), i from 0: nearly the last value (GM-NAS, successive_halving.py:88-93)."""
    average = 0.0
    for i, value in enumerate(values):
        average = (average * i * 0.1 + value * 0.9) / (i + 1)
    return average


def tell(problem: Problem, number: int, cell: Genotype, epochs: int, score: float) -> None:
    """One line of the log."""
    record = {"kind": "race", "cell": number, "genotype": str(cell), "epochs": epochs}
    record[f"val_{problem.task.metric}"] = score
    if problem.run and problem.fabric.is_global_zero:
        problem.run.log(record)
    problem.listener("race", record)
