"""Tells what happens in a run to those who listen: the terminal, trackers, a listener of the user's own; and what that costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

from oche.plan.request import Request, TrainRequest
from oche.run import Listener, Run
from oche.watch.trackers import Tracked

BESIDE, WATCHED = "beside", "watched"
"""Events: what listening and watching have cost of a run; and what the callbacks and the log took of an epoch."""


@dataclass
class Told:
    """Passes events on and counts the seconds that this takes, and those of an epoch's probes, monitor and log."""

    listeners: tuple[Listener, ...]
    seconds: float = 0.0

    def __call__(self, event: str, record: Mapping[str, object]) -> None:
        """Passes an event on."""
        begun = time.perf_counter()
        if event == WATCHED:
            self.seconds += float(str(record["seconds"]))
            return
        for listener in self.listeners:
            listener(event, record)
        self.seconds += time.perf_counter() - begun


@contextmanager
def telling(run: Run, names: Sequence[str], listener: Listener, settings: Mapping[str, object]) -> Iterator[Listener]:
    """A listener for a run's time, which tells the trackers too; at the end, the share of the time that went into it.

    Args:
        run: the run that is told of.
        names: of trackers, `oche.watch.trackers`.
        listener: told of everything, and last of ("beside", {"seconds", "total"}).
        settings: what the run was asked for, for trackers that keep it.
    """
    begun = time.perf_counter()
    tracked = Tracked(run, names, settings)
    told = Told((listener, tracked), seconds=time.perf_counter() - begun)
    try:
        yield told
    finally:
        ended = time.perf_counter()
        tracked.close()
        told.seconds += time.perf_counter() - ended
    listener(BESIDE, {"seconds": told.seconds, "total": time.perf_counter() - begun})


def asked(request: Request | TrainRequest) -> dict[str, object]:
    """The options of a request that differ from their defaults."""
    values = {f.name: (getattr(request, f.name), f.default) for f in fields(request)}
    return {name: value for name, (value, usual) in values.items() if value != usual and not callable(value)}
