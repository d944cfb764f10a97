"""A run directory as pictures and one self-contained page. Importing this loads neither torch nor matplotlib."""

from __future__ import annotations

from pathlib import Path

from oche.run import Run

__all__ = ["render"]


def render(run: Run) -> Path:
    """Writes `figures/*.svg` and `report.html`, whose path is returned; what the run does not hold yet is left out.

    Args:
        run: a search or a training, finished, still going or killed; `Run.open(path)` gives one.
    """
    from oche.report.page import write

    return write(run)
