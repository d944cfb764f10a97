"""The run folder: what lies where in it, how files are replaced, and how damage is found when they are read."""

from oche.run.folder import Listener, Run, damaged, silent
from oche.run.records import other_processes

__all__ = ["Listener", "Run", "damaged", "other_processes", "silent"]
