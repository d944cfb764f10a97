"""Checkpoints: what a search writes so that a killed one can carry on, and how it carries on."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oche.config import RULES
from oche.errors import UserError
from oche.run import Run, damaged, other_processes
from oche.search.keeping import copied
from oche.search.state import SearchState
from oche.search.weights import by_name, restore


def checkpoint(state: SearchState) -> None:
    """Keeps the state: in memory, for a search that has to go back, and on the disk where that is due.

    On the disk are all that resuming needs, written atomically, and the trajectory of alpha for the report. It is due at every call where
    the problem says how often, and else where it takes a small share of the time (`Keeping.due`); `kept` writes the last one.
    """
    problem, keeping = state.problem, state.keeping
    state.gather()
    if problem.run is None:
        return
    with keeping.timed():
        keeping.table, keeping.unsaved = {**copied(table(state)), "trajectory": rows(state)}, True
        if problem.checkpoint_every is not None or keeping.due:
            save(state)


def save(state: SearchState) -> None:
    """Writes the state that was kept last to the disk, with the files of the epochs that led to it."""
    run, keeping = state.problem.run, state.keeping
    if run is None or keeping.table is None or not keeping.unsaved:
        return
    begun = time.perf_counter()
    if state.problem.fabric.is_global_zero:
        run.flush()
        run.write_all(keeping.files, durable=False)  # no run needs them to go on
        run.write_all({Run.ALPHAS: trajectory(state, keeping.table), Run.STATE: saved(keeping.table)})
    keeping.files, keeping.unsaved = {}, False
    keeping.wrote = time.perf_counter()
    keeping.cost = keeping.wrote - begun


@contextmanager
def kept(state: SearchState) -> Iterator[None]:
    """Writes the last state that was kept within to the disk, also where it ends by an error or an interruption."""
    keeping, begun = state.keeping, time.perf_counter()
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            save(state)
        raise
    with keeping.timed():
        save(state)
    keeping.table = None
    keeping.total += time.perf_counter() - begun


def resume(state: SearchState) -> bool:
    """Takes over the run's checkpoint if there is one, and cuts the log back to what that checkpoint had seen.

    Returns True if it was taken over. Raises UserError where it is damaged or of other settings.
    """
    problem = state.problem
    if problem.run is None:
        return False
    problem.fabric.barrier()  # the first one has written what an earlier stage ended with
    taken = problem.run.has(Run.STATE) and loads(state, problem.run.read(Run.STATE), problem.fabric.device)
    problem.fabric.barrier()  # all have read what the first one is about to change
    if problem.fabric.is_global_zero:
        problem.run.rewind(state.lines)
    if taken and state.processes != problem.fabric.world_size:
        record = other_processes(state.processes, problem.fabric.world_size, problem.batch, problem.sync)
        if problem.fabric.is_global_zero:
            problem.run.log(record)
            state.lines = problem.run.lines()
        problem.listener("processes", record)
    if taken:
        state.keeping.table = {**copied(table(state)), "trajectory": rows(state)}
    return taken


def trajectory(state: SearchState, kept: Mapping[str, Any]) -> bytes:
    """Alpha after each epoch of a kept state with the epochs' numbers, the candidates and the edges, as an .npz file."""
    arrays = {name: torch.stack(rows).numpy() for name, rows in kept["trajectory"].items()}
    rows, last = min(map(len, arrays.values()), default=1), state.epochs_before + int(kept["counters"][1])
    for group in state.space.groups:
        arrays[f"ops/{group.name}"] = np.array(json.dumps(group.ops))
        arrays[f"edges/{group.name}"] = np.array(group.edges)
    buffer = io.BytesIO()
    np.savez(buffer, epoch=np.arange(last - rows + 1, last + 1), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def table(state: SearchState) -> dict[str, Any]:
    """Everything that changes, by name: references, no copies."""
    weights = state.weights
    return {
        "rules": RULES,
        "processes": state.problem.fabric.world_size,
        "weights": dict(weights.supernet.named_parameters()),
        "alpha": state.alpha,
        "learns": sorted(weights.learns),
        "packed": bool(weights.packs),
        "weight_optimizer": weights.optimizer_table(),
        "arch_optimizer": by_name(state.arch_optimizer, state.alpha),
        "stage": state.stage,
        "counters": [state.step, state.epoch, state.lines, int(state.stop), state.slower],
        "tensors": [state.mask, state.memory, state.meters],
        "trajectory": state.trajectory,
        "genotype": state.genotype,
    }


def rows(state: SearchState) -> dict[str, list[Tensor]]:
    """The trajectory in lists of its own; its tensors never change."""
    return {name: list(known) for name, known in state.trajectory.items()}


def dumps(state: SearchState) -> bytes:
    """Everything that changes, as the bytes of a file that `loads` reads without unpickling code."""
    return saved(table(state))


def saved(kept: Mapping[str, Any]) -> bytes:
    """A table of a state as the bytes of a file."""
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    return buffer.getvalue()


def loads(state: SearchState, data: bytes, device: torch.device) -> bool:
    """Takes over a checkpoint of the same problem and method. Raises UserError where it is damaged or of another one.

    Returns False, and takes nothing, where it is of another stage: it was written before this stage's first.
    """
    with damaged():
        found = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    if "alpha" not in found:
        raise UserError("The checkpoint state.pt is not a search's, so no search can be resumed from it.")
    if found.get("rules", 1) > RULES:
        raise UserError(
            f"The checkpoint state.pt was written under rules {found['rules']}, and this oche knows up to {RULES}: install a later one."
        )
    if found["stage"] != state.stage:
        return False
    take(state, found)
    return True


@torch.no_grad()
def take(state: SearchState, table: Mapping[str, Any]) -> None:
    """Takes over a table of this stage, whose tensors become the state's own. Raises UserError where it is of another problem or method."""
    weights = state.weights
    weights.unpack()
    own = dict(weights.supernet.named_parameters())
    shapes, given = ({name: t.shape for name, t in tree.items()} for tree in (own, table["weights"]))
    if shapes != given or set(state.alpha) != set(table["alpha"]):
        raise UserError(
            "The checkpoint state.pt is of another space or method than this run's settings: it cannot be resumed."
        )
    for name, t in table["weights"].items():
        own[name].copy_(t)
    for name, t in table["alpha"].items():
        state.alpha[name].copy_(t)
    weights.learn(table["learns"])
    restore(weights.optimizer, weights.theta, table["weight_optimizer"])
    restore(state.arch_optimizer, state.alpha, table["arch_optimizer"])
    if table.get("packed"):
        weights.pack()
    state.processes = table.get("processes", state.problem.fabric.world_size)
    state.step, state.epoch, state.lines = table["counters"][:3]
    state.stop, state.slower = (
        bool(table["counters"][3]),
        sum(table["counters"][4:5]),
    )  # absent before there were rollbacks
    state.mask, state.memory, state.meters = table["tensors"]
    state.trajectory, state.genotype = table["trajectory"], table["genotype"]
