"""Checkpoints: what a search writes so that a killed one can carry on, and how it carries on."""

from __future__ import annotations

import io
import json

import numpy as np
import torch

from oche.config import RULES
from oche.errors import UserError
from oche.run import Run, damaged, other_processes
from oche.search.state import SearchState
from oche.search.weights import by_name, restore


def checkpoint(state: SearchState) -> None:
    """Writes all that resuming needs, atomically, and the trajectory of alpha for the report."""
    problem = state.problem
    state.gather()
    if problem.run and problem.fabric.is_global_zero:
        problem.run.write(Run.ALPHAS, trajectory(state))
        problem.run.write(Run.STATE, dumps(state))


def resume(state: SearchState) -> bool:
    """Takes over the run's checkpoint if there is one, and cuts the log back to what that checkpoint had seen.

    Returns True if it was taken over. Raises UserError where it is damaged or of other settings.
    """
    problem = state.problem
    if problem.run is None:
        return False
    taken = problem.run.has(Run.STATE) and loads(state, problem.run.read(Run.STATE), problem.fabric.device)
    if problem.fabric.is_global_zero:
        problem.run.rewind(state.lines)
    if taken and state.processes != problem.fabric.world_size:
        record = other_processes(state.processes, problem.fabric.world_size, problem.batch, problem.sync)
        if problem.fabric.is_global_zero:
            problem.run.log(record)
            state.lines = problem.run.lines()
        problem.listener("processes", record)
    return taken


def trajectory(state: SearchState) -> bytes:
    """Alpha after each epoch with the epochs' numbers, the candidates and the edges, as an .npz file."""
    arrays = {name: torch.stack(rows).numpy() for name, rows in state.trajectory.items()}
    rows, last = min(map(len, arrays.values()), default=1), state.epochs_before + state.epoch
    for group in state.space.groups:
        arrays[f"ops/{group.name}"] = np.array(json.dumps(group.ops))
        arrays[f"edges/{group.name}"] = np.array(group.edges)
    buffer = io.BytesIO()
    np.savez(buffer, epoch=np.arange(last - rows + 1, last + 1), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def dumps(state: SearchState) -> bytes:
    """Everything that changes, as the bytes of a file that `loads` reads without unpickling code."""
    weights = state.weights
    table = {
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
    buffer = io.BytesIO()
    torch.save(table, buffer)
    return buffer.getvalue()


@torch.no_grad()
def loads(state: SearchState, data: bytes, device: torch.device) -> bool:
    """Takes over a checkpoint of the same problem and method. Raises UserError where it is damaged or of another one.

    Returns False, and takes nothing, where it is of another stage: it was written before this stage's first.
    """
    with damaged():
        table = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    if "alpha" not in table:
        raise UserError("The checkpoint state.pt is not a search's, so no search can be resumed from it.")
    if table.get("rules", 1) > RULES:
        raise UserError(
            f"The checkpoint state.pt was written under rules {table['rules']}, and this oche knows up to {RULES}: install a later one."
        )
    if table["stage"] != state.stage:
        return False
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
    return True
