"""Files from outside are read up to a size that they have no reason to exceed."""

from __future__ import annotations

from collections.abc import Iterator
from gzip import GzipFile
from pathlib import Path
from typing import IO

from oche.errors import UserError

TEXT = 2**26
"""Bytes of a text that people write: settings, a bench, a genotype."""

TABLE = 2**30
"""Bytes of a table that oche writes; the content hashes of a million images take a tenth of it."""

PART = 2**20
"""Bytes that are read at a time."""

LOG = 2**32
"""Bytes of a run's log."""

SUFFIXES = {".json": TABLE, ".toml": TEXT, ".jsonl": LOG}
"""The most bytes of a run's files by suffix. Tensors have no limit of their own: what they claim is compared with what is there."""


def parts_of(file: IO[bytes] | GzipFile, most: int) -> Iterator[bytes]:
    """Its bytes, up to `most` and a part more, in parts: a `read` takes memory for all that it might find before it looks."""
    while most >= 0 and (part := file.read(PART)):
        most -= len(part)
        yield part


def read_bounded(path: Path, most: int = TEXT) -> bytes:
    """A file's bytes. Raises UserError where there are more than `most`, before they are read as far as the file tells."""
    said = path.stat().st_size
    if said <= most:
        with path.open("rb") as file:  # what tells no size, such as a device, is read no further either
            data = b"".join(parts_of(file, most))
        if len(data) <= most:
            return data
    has = f"has {said:,} bytes" if said > most else "goes on"
    raise UserError(f"{path} {has}, and such a file has at most {most:,}: give the right one.")
