"""The run folder: what lies where in it, how files are replaced, and how damage is found when they are read."""

from oche.run.folder import Run

__all__ = ["Run"]
