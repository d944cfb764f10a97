"""Several labels, or numbers, in place of one class per image: which of them arrays hold, and their targets (N, K)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.data.images import Data
from oche.data.reading.found import Wish
from oche.errors import UserError

VECTORS = ("multilabel", "regress")
"""The tasks that have K targets an image."""


def taught(y: NDArray[np.generic], wish: Wish) -> str:
    """The task that the train labels are for: the one asked for, else by their look.

    Labels of 0 and 1, (N, K), are "multilabel" unless each image has exactly one (one-hot classes); floats that are not all whole, or of
    several columns, are "regress"; all else is "classify".
    """
    if wish.contract is not None:
        return wish.contract.task
    if wish.task is not None:
        return wish.task
    columns = y.shape[1] if y.ndim == 2 else 1
    binary = y.dtype.kind in "buif" and bool(np.isin(y, (0, 1)).all())
    if y.ndim == 2 and columns > 1 and binary:
        return "classify" if bool((y.sum(1) == 1).all()) else "multilabel"
    if y.ndim <= 2 and y.dtype.kind == "f" and (columns > 1 or not np.array_equal(y, np.round(y))):
        return "regress"
    return "classify"


def vectors(
    labels: Mapping[str, NDArray[np.generic]], task: str, names: tuple[str, ...], where: str, wish: Wish
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Part -> targets (N, K), int64 labels or float32 numbers, and the names of the K columns.

    Raises:
        UserError: other shapes, values that are neither 0 nor 1, numbers that are not finite, another count of names.
    """
    if wish.labels is not None:
        raise UserError(f"{where}: data.labels maps classes; to {task} there are none, so leave it out.")
    columns = {part: y[:, None] if y.ndim == 1 else y for part, y in labels.items()}
    first = columns["train"]
    count = first.shape[1] if first.ndim == 2 else 0
    for part, y in columns.items():
        if y.ndim != 2 or y.dtype.kind not in "buif" or y.shape[1] != count or not count:
            raise UserError(
                f"{where} ({part} labels) have shape {y.shape} and type {y.dtype}; to {task} takes numbers of shape (N, K), or (N,) of "
                "one number, with the same K in all parts."
            )
        if task == "multilabel" and not np.isin(y, (0, 1)).all():
            raise UserError(
                f"{where} ({part} labels) hold values other than 0 and 1, so they cannot be used to multilabel."
            )
        if not np.isfinite(y.astype(np.float64)).all():
            raise UserError(f"{where} ({part} labels) hold NaN or infinity; remove these images.")
    if wish.contract is not None:
        names = wish.contract.classes
    names = names or (tuple(map(str, range(count))) if count > 1 else ("target",))
    if len(names) != count:
        raise UserError(
            f"{where} has {len(names)} names in `classes` for {count} columns of labels; give one for each."
        )
    kind = np.int64 if task == "multilabel" else np.float32
    return {part: torch.from_numpy(y.astype(kind)) for part, y in columns.items()}, names


def notes_on(data: Data) -> tuple[str, ...]:
    """Sentences about labels that no or every train image has, or the range of each number."""
    y, names = data.train.targets, data.classes
    if data.task == "multilabel":
        share = y.double().mean(0).tolist()
        always = [repr(name) for name, s in zip(names, share, strict=True) if s in (0.0, 1.0)]
        mean_count = (
            f"Each image has any number of {len(names)} labels, {float(y.sum(1).double().mean()):.2f} on average.",
        )
        return mean_count + (
            (f"All train images have the same value of the label {', '.join(always)}.",) if always else ()
        )
    ends = zip(names, y.amin(0).tolist(), y.amax(0).tolist(), y.double().mean(0).tolist(), strict=True)
    said = tuple(f"{name}: {low:.4g} to {high:.4g} in train, mean {mean:.4g}." for name, low, high, mean in ends)
    still = [name for name, low, high in zip(names, y.amin(0).tolist(), y.amax(0).tolist(), strict=True) if low == high]
    same = (
        (f"All train images have the same number {', '.join(still[:8])}: there is nothing to learn.",) if still else ()
    )
    return same + said[:8] + ((f"... and {len(said) - 8} numbers more.",) if len(said) > 8 else ())


def standardised(data: Data, wish: Wish) -> Data:
    """Numbers less their mean in train, over their standard deviation there, or by what a network was trained with."""
    if wish.contract is not None and wish.contract.target_mean is not None and wish.contract.target_std is not None:
        return data.standardised(wish.contract.target_mean, wish.contract.target_std)
    y = data.train.targets.double()
    std = y.std(0, correction=0)
    return data.standardised(tuple(y.mean(0).tolist()), tuple(std.where(std > 0, 1.0).tolist()))
