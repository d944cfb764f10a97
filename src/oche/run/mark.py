"""The mark of the process that writes to a run: the file `.running`, with its machine, its number and a word of its own.

The run's lock ends with its process, whatever becomes of the mark: a mark that is there when the lock is had is a killed process's. Some
shared folders keep locks on each machine alone, so that two machines get one; each write looks if the mark is still that of its process.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from oche.errors import RunFailed, UserError
from oche.run.bounded import read_bounded

MOST = 4096
"""Bytes of a mark."""

_set: dict[Path, str] = {}
"""The marks that this process has set: the folder's path from the root -> what it wrote there."""


def left(mark: Path) -> str | None:
    """Says which process left the mark behind, as far as it tells, or None where there is none."""
    if not mark.exists():
        return None
    process, machine = _told(mark)
    if machine is None:
        return "the process that wrote to it before"
    return f"process {process} " + ("of this machine" if machine == socket.gethostname() else f"on {machine!r}")


@contextmanager
def marked(mark: Path) -> Iterator[None]:
    """Leaves this process's mark there meanwhile, and takes it away unless it is another process's by then."""
    folder, before = mark.parent.resolve(), dict(_set)
    text = json.dumps({"machine": socket.gethostname(), "process": os.getpid(), "word": secrets.token_hex(8)})
    with suppress(OSError):  # a full disk: the lock holds all the same
        mark.write_text(text, encoding="utf-8")
        _set[folder] = text
    try:
        yield
    finally:
        own = _set.pop(folder, None)
        if folder in before:
            _set[folder] = before[folder]
        with suppress(OSError):
            if own and _content(mark) == own:
                mark.unlink()


def check_own(folder: Path, name: str) -> None:
    """Raises RunFailed where the mark of this process, in the folder or in one that it lies in, is gone or another's."""
    if not _set:
        return
    here = folder.resolve()
    for marked_, text in list(_set.items()):
        if here != marked_ and marked_ not in here.parents:
            continue
        mark = marked_ / name
        if _content(mark) != text:
            process, machine = _told(mark)
            who = "Another process" if machine is None else f"Process {process} on {machine!r}"
            raise RunFailed(
                f"{who} has written to {str(marked_)!r} while this one did: this one stops. Locks do not hold between the machines that "
                "share this folder: write to it from one machine at a time."
            )


def _content(mark: Path) -> str | None:
    """The mark's text, or None where it is not there."""
    try:
        return read_bounded(mark, MOST).decode(errors="replace")
    except (OSError, UserError):
        return None


def _told(mark: Path) -> tuple[int | None, str | None]:
    """The process's number and its machine, None where the mark does not tell."""
    try:
        table = json.loads(_content(mark) or "")
        return int(table["process"]), str(table["machine"])
    except (ValueError, LookupError, TypeError):
        return None, None
