"""`oche.resume(...)`: carries on with a search or a training that was interrupted, as its run.toml and its copies of files have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from oche import own
from oche.api.expected import fitting
from oche.api.limits import gradients
from oche.api.pinned import compared
from oche.api.search import Found, carry_out
from oche.api.train import Trained, finish_training
from oche.api.train import fitting as fits
from oche.data import Data
from oche.data.reading.readers import Source
from oche.errors import UserError
from oche.plan.processes import processes
from oche.plan.request import Request, TrainRequest, requested
from oche.plan.resolve import Plan, resolve
from oche.plan.training import resolve_training
from oche.run import Listener, Run, silent
from oche.search.searcher import SearcherLike
from oche.spaces import Space
from oche.spaces.named import register_kept
from oche.tasks import Task
from oche.training.export import CARD
from oche.training.protocols import Protocol
from oche.watch.monitor import Probe

Asked = TypeVar("Asked", Request, TrainRequest)


def resume(
    path: str | Path,
    data: Source | None = None,
    *,
    method: SearcherLike | None = None,
    space: Space | type[Space] | None = None,
    task: Task | None = None,
    protocol: Protocol | None = None,
    probes: Sequence[str | Probe] | None = None,
    settings: Mapping[str, object] | None = None,
    devices: int | None = None,
    listener: Listener = silent,
) -> Found | Trained:
    """Carries on with a search or a training that was interrupted; a finished one is left as it is. Raises UserError.

    `devices` is another number of processes, which share the same batches. What had been handed over as an object is needed again: `data`
    and the other options say which, `settings` a setting's value.
    """
    objects = {
        "data": data, "method": method, "space": space, "task": task, "protocol": protocol, "probes": probes, "settings": settings,
        "devices": devices,
    }  # fmt: skip
    run = Run.open(Path(path))
    request, _ = requested(run)
    if isinstance(request, TrainRequest):
        return _training(run, request, objects, listener)
    with gradients():  # what is read here is trained on
        plan, _ = reopen(path, **objects)
    if not run.has(Run.GENOTYPE):
        fitting(plan)
    return carry_out(plan, run, listener)


def reopen(path: str | Path, data: object = None, **objects: object) -> tuple[Plan, Run]:
    """The plan of an earlier search, to be carried on, with the objects that it had been given. Raises UserError."""
    run = Run.open(Path(path))
    request, table = requested(run)
    if not isinstance(request, Request):
        raise UserError(f"{path} is a training; carry on with it by `oche train --resume {path}`.")
    with own.copies_of(run.path, table):
        plan = resolve(_handed(request, {"data": data, **objects}), table)
    return replace(plan, data=_same(run, plan.data)), run


def _training(run: Run, request: TrainRequest, objects: Mapping[str, object], listener: Listener) -> Trained:
    table = requested(run)[1]
    register_kept(run)
    with own.copies_of(run.path, table), gradients():
        training = resolve_training(_handed(request, objects), recorded=table)
    training = replace(training, data=_same(run, training.data))
    if not run.has(CARD):
        fits(training, request.threads)
    return finish_training(training, run, request, listener)


def _same(run: Run, data: Data) -> Data:
    """The data, with a note where it cannot be told if they are those that the run began with. Raises UserError where they are not."""
    notes = compared(run, data)
    return replace(data, notes=(*data.notes, *notes)) if notes else data


def _handed(request: Asked, objects: Mapping[str, object]) -> Asked:
    """The request with these objects in their places; None is none. Raises UserError for what a training does not have."""
    given: dict[str, Any] = {name: value for name, value in objects.items() if value is not None}
    processes(given.get("devices"))  # told anew, it must be torchrun's
    if isinstance(given.get("settings"), Mapping):
        given["settings"] = {**request.settings, **given["settings"]}
    for name in given:
        if not hasattr(request, name):
            raise UserError(f"A training has no {name} to hand over: leave it out.")
    return replace(request, **given)
