"""A run directory as pictures and one self-contained page. Importing this loads neither torch nor matplotlib."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

from oche.errors import NotDrawn
from oche.run import Run

__all__ = ["attempt", "render"]


def render(run: Run) -> Path:
    """Writes `figures/*.svg` and `report.html`, whose path is returned; what the run does not hold yet is left out.

    Args:
        run: a search or a training, finished, still going or killed; `Run.open(path)` gives one.
    """
    from oche.report.page import write

    return write(run)


def attempt(draw: Callable[[], object], folder: Path, command: str) -> None:
    """Draws what tells of a run that has ended; where that fails it warns, since the results are kept and can be drawn again.

    Args:
        draw: writes the report, or prints the tables.
        folder: where the results lie.
        command: what draws them again, and shows the whole error: "oche report".
    """
    try:
        draw()
    except Exception as error:  # noqa: BLE001 - whatever a picture dies of, the results do not
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}".removesuffix(": ")
        said = (
            f"The report could not be drawn ({reason}). All results are kept in {str(folder)!r}; "
            f"`{command} {shlex.quote(str(folder))}` draws it again."
        )
        warnings.warn(said, NotDrawn, stacklevel=2)
