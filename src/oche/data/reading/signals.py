"""Signals in arrays: (N, channels, length), kept as images of height 1, (N, 1, length, channels).

Their values stay as they are: channels may be of different units, and each is normalised by its own mean and spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oche.data.contract import Contract, PixelRule
from oche.data.reading.found import Pair, Wish
from oche.data.reading.pixels import SMALLEST
from oche.errors import UserError


def are_signals(arrays: Mapping[str, Pair], wish: Wish) -> bool:
    """True for signals: as asked, as a network's contract says, or where (N, C, L) has fewer rows than the smallest image."""
    if wish.contract is not None:
        return wish.contract.signal
    if wish.signals is not None:
        return wish.signals
    return all(x.ndim == 3 and x.shape[1] < SMALLEST <= x.shape[2] for x, _ in arrays.values())


def as_signals(values: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    """(N, C, L), or (N, L) of one channel -> (N, 1, L, C). Raises UserError for other shapes and for fewer than 8 values."""
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise UserError(
            f"{name} has shape {values.shape}; signals need (N, channels, length), or (N, length) of one channel."
        )
    held = values[:, None] if values.ndim == 2 else values
    if held.shape[2] < SMALLEST:
        raise UserError(
            f"{name} has shape {values.shape}: {held.shape[1]} channels of {held.shape[2]} values; signals need (N, channels, length) and "
            f"at least {SMALLEST} values."
        )
    return np.moveaxis(held, 1, 2)[:, None]


def settled_signals(arrays: Mapping[str, NDArray[np.generic]], wish: Wish, name: str) -> tuple[str, ...]:
    """Notes on signals (N, 1, L, C) by part. Raises UserError where parts differ, or where another size or channels are asked for."""
    shapes = {part: (array.shape[3], array.shape[2]) for part, array in arrays.items()}
    channels, length = shapes["train"]
    for part, shape in shapes.items():
        if shape != shapes["train"]:
            raise UserError(
                f"{name} has {part} signals of {shape[0]} channels and {shape[1]} values, and train signals of {channels} and {length}: "
                "cut or resample them to one shape."
            )
    if wish.contract is not None and (channels, length) != (wish.contract.channels, wish.contract.size[1]):
        raise UserError(refusal(channels, length, wish.contract, name))
    if wish.contract is None and (wish.size is not None or wish.channels not in (None, channels)):
        raise UserError(
            f"{name} has signals, which keep their length and channels: leave data.size and data.channels out."
        )
    if channels <= length:
        return ()
    return (f"Signals of {channels} channels and {length} values: they are read as (N, channels, length).",)


def refusal(channels: int, length: int, contract: Contract, whose: str) -> str:
    """The sentence about signals that a network cannot take."""
    return (
        f"{whose} has {channels} channels of {length} values, and the network takes {contract.channels} of {contract.size[1]}: cut or "
        "resample it to that length."
    )


def values_as_they_are(low: float, high: float, depths: list[str]) -> PixelRule:
    """The rule for signals, whose values no scale of their own is chosen for."""
    return PixelRule(
        0.0, 1.0, low, high, max(depths, key=lambda name: (np.dtype(name).kind == "f", np.dtype(name).itemsize))
    )


def read_signal(path: Path, contract: Contract) -> NDArray[np.generic]:
    """The signal in a .npy file, (C, L), or (L,) of one channel, as (1, L, C).

    Raises:
        UserError: the file is none, or holds another number of channels or values than the network takes.
    """
    try:
        if path.suffix.lower() != ".npy":
            raise ValueError("expected a .npy file, as numpy.save writes it")
        held: NDArray[np.generic] = np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"The signal {path} cannot be read: {error}; remove or replace it.") from error
    return one_signal(held, contract, f"The signal {path}")


def one_signal(values: NDArray[np.generic], contract: Contract, whose: str) -> NDArray[np.generic]:
    """(C, L), or (L,) of one channel -> (1, L, C). Raises UserError for another shape than the network takes."""
    if values.ndim not in (1, 2):
        raise UserError(
            f"{whose} has shape {values.shape}; a signal needs (channels, length), or (length,) of one channel."
        )
    held = values[None] if values.ndim == 1 else values
    if held.shape != (contract.channels, contract.size[1]):
        raise UserError(refusal(held.shape[0], held.shape[1], contract, whose))
    return held.T[None]
