"""A small table, a small matrix, and trials that cost nothing."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oche.bench.matrix import SUPERNET, TRAINED_TEST, TRAINED_VAL
from oche.bench.planned import Trial
from oche.bench.trial import Outcome
from oche.errors import UserError
from oche.genotype import Choice, Genotype

OPS = ("none", "skip_connect", "nor_conv_3x3")
EDGES = ((0, 1), (0, 2), (1, 2))


def cell(*ops: str) -> Genotype:
    return Genotype("toy", {"cell": tuple(Choice(s, t, op) for (s, t), op in zip(EDGES, ops, strict=True))})


CELLS = [cell(*ops) for ops in product(OPS, repeat=3)]


@dataclass(frozen=True)
class ToyTable:
    """The 27 cells: validation accuracy counts convolutions, test accuracy is off by what the validation cannot see."""

    name: str = "toys"
    space: str = "toy"
    metrics: tuple[str, ...] = ("digits/test", "digits/valid", "digits/parameters", "zerocost/digits/score")
    smaller: frozenset[str] = frozenset({"digits/parameters"})

    def column(self, metric: str) -> NDArray[np.float64]:
        return self._columns[metric]

    def value(self, genotype: Genotype, metric: str) -> float:
        if genotype.space != self.space:
            raise UserError("of another space")
        return float(self.column(metric)[CELLS.index(genotype)])

    def genotype(self, index: int) -> Genotype:
        return CELLS[index]

    @cached_property
    def _columns(self) -> dict[str, NDArray[np.float64]]:
        convolutions = np.array([c.count("nor_conv_3x3") for c in CELLS], dtype=float)
        score = convolutions.copy()
        score[0] = np.inf  # no number that may win
        return {
            "digits/valid": 80 + 4 * convolutions + np.arange(27) / 100,
            "digits/test": 79 + 4 * convolutions - np.arange(27) / 10,
            "digits/parameters": 100 * convolutions,
            "zerocost/digits/score": score,
        }


def pretend(trial: Trial, folder: Path) -> Outcome:
    """A trial that depends on its name alone and takes no time."""
    folder.mkdir(parents=True, exist_ok=True)
    start = zlib.crc32(trial.name.encode())
    path = [CELLS[(start + k) % 27] for k in range(3)]
    trained = {TRAINED_TEST: 90 + start % 7, TRAINED_VAL: 91 + start % 5} if trial.train else {}
    epochs = tuple((k + 1, c.count("skip_connect"), str(c)) for k, c in enumerate(path))
    return Outcome(
        str(path[-1]),
        {SUPERNET: 50.0 + start % 40, **trained},
        epochs,
        seconds=1.0,
        parameters=start % 1000,
        multiply_adds=10 + start % 99,
    )


def dies_once(trial: Trial, folder: Path) -> Outcome:
    """`pretend`, whose process is lost at the first try."""
    if not (folder / "tried").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tried").touch()
        os._exit(1)
    return pretend(trial, folder)


def dies(trial: Trial, folder: Path) -> Outcome:
    """The process of the method darts is lost whenever it is started."""
    if trial.method == "darts":
        os._exit(1)
    return pretend(trial, folder)


def dies_once_or_refuses(trial: Trial, folder: Path) -> Outcome:
    """The method darts loses its process at the first try, pcdarts ends with a sentence for the user."""
    if trial.method == "pcdarts":
        raise UserError("It will not.")
    return dies_once(trial, folder)
