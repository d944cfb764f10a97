"""Errors that are said in one sentence, by whose fault they are: the user's (exit code 2), or of a run that had begun (1)."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

_SAID = (
    "bad_alloc",
    "can't allocate memory",
    "out of memory",
    "Cannot allocate memory",
    "paging file is too small",
    "can't start new thread",
    "failed to map segment",
)
"""What libraries that have no error of their own for it say."""


class UserError(ValueError):
    """Says in one sentence what was given, what was expected and what to do."""


class RunFailed(RuntimeError):
    """Says in one sentence why a run that had begun cannot go on, what to do, and what is kept; the command line exits with 1."""


class NotDrawn(UserWarning):
    """Says that a run has ended well and its report could not be drawn; what is kept, and what draws it again."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does.

    >>> str(unknown("method", "dart", ["darts", "pcdarts"]))
    "There is no method 'dart'; did you mean 'darts'? Known: darts, pcdarts."
    """
    known = list(known)
    near = nearest(name, known)
    hint = f"; did you mean {near!r}?" if near else "."
    return UserError(f"There is no {kind} {name!r}{hint} Known: {', '.join(known)}.")


def nearest(name: str, known: Iterable[str], likeness: float = 0.4) -> str:
    """The name that is most like one that was typed, "" where none is like it by at least `likeness` in (0, 1].

    >>> nearest("typ", ["type", "cell"]), nearest("typ", ["a"])
    ('type', '')
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)), "")


def ran_out(error: BaseException) -> bool:
    """True for an error that says that memory could not be had."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):  # a library that there is no room for
        return any(m in str(error) for m in _SAID)
    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # the latter is torch's, which is not imported here
        return True
    return isinstance(error, RuntimeError) and any(m in str(error) for m in _SAID)
