"""The run folder: what lies where in it, how files are replaced, and how damage is found when they are read."""

from oche.run.folder import Listener, Run, damaged, silent

__all__ = ["Listener", "Run", "damaged", "silent"]
