"""Problems on real images, small enough for a slow test: digits (8x8), and CIFAR-10 at 16x16 where OCHE_DATA is."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np

from oche.data import Data, for_search, load
from oche.run import Listener, silent
from oche.search.state import Problem
from oche.spaces import SPACES
from oche.tasks import Classify

SMALL: dict[str, dict[str, int]] = {"nb201": {"channels": 8, "cells": 1}, "darts": {"channels": 8, "cells": 3}}
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cifar_npz.py"


def real_problem(
    space: str, data: Data, epochs: int, batch: int = 64, seed: int = 0, listener: Listener = silent, **settings: object
) -> Problem:
    """A search as users have it, with augmentation, in a small supernet."""
    own: dict[str, Any] = {**SMALL[space], **settings}
    built = SPACES[space](inputs=data.channels, outputs=len(data.classes), size=data.size, **own)
    return Problem(built, data, Classify(), for_search(data), epochs, batch, seed, listener=listener)


def epochs_of(told: list[dict[str, Any]]) -> Listener:
    """A listener that adds each epoch's record to the list."""

    def listen(event: str, record: Any) -> None:
        if event == "epoch":
            told.append(dict(record))

    return listen


def digits() -> Data:
    """1,797 images of 8x8 pixels."""
    return load("digits")


def cifar(data_folder: Path, folder: Path, per_class: int = 128) -> Data:
    """CIFAR-10 at 16x16 pixels, with so many train images of each class; written into `folder` on the way."""
    script = runpy.run_path(str(SCRIPT))
    arrays = script["reduced"](script["cifar10"](data_folder / "cifar10", "a"), per_class, 16, 0)
    np.savez(folder / "cifar.npz", **arrays)
    return load(folder / "cifar.npz")
