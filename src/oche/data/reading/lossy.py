"""Masks in formats that do not keep every value, JPEG above all: labels are rounded to those that were meant, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from oche.data.reading.labels import REST, Wanted
from oche.errors import UserError

LOSSY = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".heic", ".heif", ".avif"))
NEAR, SHARE = 32, 0.95
"""Masks are black and white where this share of their pixels lies this near to 0 or 255, and some to each."""

SPREAD = 64
"""Difference between the channels of a pixel from which on it is a colour."""

Codes = NDArray[np.int64]


def is_lossy(name: str) -> bool:
    """True if a file cannot be trusted to keep each value, by its name, or of WebP by what it says."""
    suffix = PurePath(name).suffix.lower()
    return suffix in LOSSY or (suffix == ".webp" and _lossy_webp(name))


@cache
def _lossy_webp(name: str) -> bool:
    try:
        with open(name, "rb") as file:
            return b"VP8 " in file.read(4096)
    except OSError:
        return False  # a name inside an archive


def greys(values: NDArray[np.generic], name: str) -> Codes:
    """(H, W) greys of a lossy mask. Raises UserError for one in colours."""
    if values.ndim == 2:
        return values.astype(np.int64)
    parts = values[..., :3].astype(np.int64)
    if parts.size and int((parts.max(-1) - parts.min(-1)).max()) > SPREAD:
        raise UserError(
            f"The mask {name} is in colours, in a format that changes them: save masks as PNG, from their source."
        )
    mean: Codes = np.rint(parts.mean(-1)).astype(np.int64)
    return mean


def counted(codes: Codes) -> NDArray[np.int64]:
    """(256,) pixels of each grey."""
    found: NDArray[np.int64] = np.bincount(codes.clip(0, 255).ravel(), minlength=256)
    return found


def meant(counts: NDArray[np.int64], wanted: Wanted | None, classes: Sequence[str], where: str) -> tuple[Wanted, str]:
    """The labels that lossy masks mean, and a note: those that the user names, or black and white.

    Raises:
        UserError: nothing is said, and they are not black and white; or what is said does not name all values.
    """
    if wanted is not None:
        if odd := [key for key, _ in wanted.entries if key == REST or key.startswith("#")]:
            raise UserError(
                f"{where}: {odd[0]} in data.labels cannot be told from what JPEG does to other labels: name all values, such as "
                "0=ground,255=cell, or save masks as PNG."
            )
        keys = [int(key) for key, _ in wanted.entries]
    else:
        total, dark, light = int(counts.sum()), int(counts[: NEAR + 1].sum()), int(counts[255 - NEAR :].sum())
        if not dark or not light or dark + light < SHARE * total or len(classes) not in (0, 2):
            shown = ", ".join(map(str, np.flatnonzero(counts)[:8]))
            raise UserError(
                f"{where} has masks in a format that changes labels, such as JPEG: they hold {np.count_nonzero(counts)} values ({shown}, "
                "...). Save them as PNG, from their source, or name the values that were meant, to which all are rounded "
                "(`--set data.labels=0=ground,128=cell,255=nucleus`)."
            )
        keys = [0, 255]
        names = tuple(classes) or ("0", "255")
        wanted = Wanted((("0", names[0]), ("255", names[1])))
    said = ", ".join(map(str, sorted(keys)))
    return (
        wanted,
        f"Masks in a format that changes labels, such as JPEG: each value was rounded to the nearest of {said}.",
    )


def rounded(codes: Codes, known: NDArray[np.int64]) -> Codes:
    """Each value's nearest among `known`, which is sorted."""
    nearest: Codes = known[np.searchsorted((known[1:] + known[:-1]) / 2, codes)]
    return nearest
