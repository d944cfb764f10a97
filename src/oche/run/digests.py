"""Digests of a run's files: a file that was damaged or edited after oche wrote it is found when it is read.

`digests.json` holds the SHA-256 of every covered file. It names the new content before the file is replaced, and the old one beside it
until that has happened, so a process killed in between leaves a file whose digest is known. One process at a time writes to a run
(`lock`); files that others may write, the report and exported models, are not covered. A run from before digests has none, and nothing
is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from oche.errors import UserError

FILE = "digests.json"
COVERED = frozenset((".toml", ".pt", ".npz", ".safetensors", ".json"))
OTHERS = frozenset(("figures",))
"""Folders whose files are pictures: written by `oche report`, perhaps beside a running search."""

Digests = dict[str, list[str]]
"""A file's name -> the digests that it may have, the newest first; several while it is being replaced."""


def covered(name: str) -> bool:
    """True if a file of that name has a digest.

    >>> covered("stages/0.pt"), covered("report.html"), covered("network/model.onnx")
    (True, False, False)
    """
    path = PurePosixPath(name)
    return path.suffix in COVERED and path.parts[0] not in OTHERS and name != FILE


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def parse(data: bytes, where: str) -> Digests:
    """The content of `digests.json`. Raises UserError where it is damaged."""
    try:
        table = json.loads(data)
        if not all(isinstance(ds, list) and all(isinstance(d, str) for d in ds) for ds in table.values()):
            raise ValueError("expected lists of digests")
    except (ValueError, AttributeError, RecursionError):
        raise UserError(
            f"{where} is damaged, so this run's files cannot be checked; take the folder from a backup, "
            "or delete that file to go on without checks."
        ) from None
    return dict(table)


def render(digests: Mapping[str, list[str]]) -> bytes:
    """The bytes of `digests.json`."""
    return json.dumps(digests, indent=1, sort_keys=True).encode()


def check(name: str, data: bytes, digests: Digests, where: str) -> bytes:
    """The content. Raises UserError where it is not what oche wrote under that name."""
    known = digests.get(name)
    if known and digest(data) not in known:
        raise UserError(
            f"{where} is not what oche wrote there: it was damaged or edited since. Take it from a backup, or start the run anew."
        )
    return data
