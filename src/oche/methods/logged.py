"""Numbers of a method that change with the epochs, written into the log, so that a reader sees that they move."""

from __future__ import annotations

from dataclasses import dataclass

from oche.schedule import Schedule
from oche.search.callbacks import Callback
from oche.search.state import SearchState


@dataclass(frozen=True)
class Logged(Callback):
    """Writes the schedule's value at the epoch's end into the epoch's record, under `name`."""

    name: str
    schedule: Schedule

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record[self.name] = float(self.schedule(state.progress))
