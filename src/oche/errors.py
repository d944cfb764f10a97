"""An error that a user can mend, said in one sentence; the command line prints it and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Says in one sentence what was given, what was expected and what to do."""


class RunFailed(RuntimeError):
    """Says in one sentence why a run that had begun cannot go on, what to do, and what is kept; the command line exits with 1."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does.

    >>> str(unknown("method", "dart", ["darts", "pcdarts"]))
    "There is no method 'dart'; did you mean 'darts'? Known: darts, pcdarts."
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UserError(f"There is no {kind} {name!r}{hint} Known: {', '.join(known)}.")
