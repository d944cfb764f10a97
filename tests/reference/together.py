"""Runs a function in two processes on this machine, and a search in one or two of them, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from oche.data import Augment
from oche.data.augmentation.augment import Augmentation
from oche.search.searcher import SearcherLike, as_searcher
from oche.search.state import Problem, SearchState
from reference.tiny import tiny_problem


def fabric_of(processes: int) -> Fabric:
    """Processes that are forked from this one; the function that they run begins with the fabric."""
    return Fabric(accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto")


def in_two(folder: Path, function: Callable[..., object], *arguments: object) -> tuple[Any, Any]:
    """What `function(fabric, *arguments)` returns in each of two processes."""
    fabric_of(2).launch(_kept, folder, function, torch.get_default_dtype(), *arguments)
    one, other = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    return one, other


def _kept(
    fabric: Fabric, folder: Path, function: Callable[..., object], dtype: torch.dtype, *arguments: object
) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    torch.save(function(fabric, *arguments), folder / f"rank{fabric.global_rank}.pt")


def problem_of(fabric: Fabric, epochs: int, space: str = "toy", sync: bool = True) -> Problem:
    """Noise images, cropped and flipped, in batches of 4: three steps per epoch."""
    found = tiny_problem(space, epochs=epochs, count=24, batch=4)
    augment: Augmentation = Augment(found.data.mean, found.data.std, pad=1, flip=True, cutout=2)
    return replace(found, fabric=fabric, sync=sync, augment=found.augment if space == "grid" else augment)


def searched(
    fabric: Fabric, searchers: Sequence[SearcherLike], epochs: Sequence[int], sync: bool = True
) -> list[dict[str, Any]]:
    """Alpha, the weights, the genotype and the epochs' losses of each search, run to its end."""
    found = []
    for searcher, count in zip(searchers, epochs, strict=True):
        seen: list[dict[str, Any]] = []

        def listen(event: str, record: Any, seen: list[dict[str, Any]] = seen) -> None:
            if event == "epoch":
                seen.append({name: record[name] for name in ("weight_loss", "arch_loss", "entropy", "weight_accuracy")})

        problem = replace(problem_of(fabric, count, sync=sync), listener=listen)
        genotype, state = as_searcher(searcher).run(problem, ())
        found.append({**parts(state), "genotype": str(genotype), "epochs": seen, "dropped": dropped(state)})
    return found


def dropped(state: SearchState | None) -> list[str]:
    """The names of weights of operations that the search dropped."""
    if state is None:
        return []
    lost: list[str] = []
    for cell, rows in state.space.spread({group.name: ~state.alive(group) for group in state.space.groups}).items():
        edges = list(state.supernet.body.cells[cell].edges.items())  # type: ignore[union-attr,arg-type]
        for e, o in rows.nonzero().tolist():
            name, ops = edges[e][0], list(edges[e][1].ops)
            lost += [f"body.cells.{cell}.edges.{name}.ops.{op}." for op in ops[o : o + 1]]
    return [name for name in state.theta if name.startswith(tuple(lost))]


def parts(state: SearchState | None) -> dict[str, Any]:
    """Copies of alpha and the weights."""
    if state is None:
        return {}
    state.weights.unpack()
    return {
        "alpha": {name: t.detach().clone() for name, t in state.alpha.items()},
        "theta": {name: t.detach().clone() for name, t in state.theta.items()},
        "steps": state.steps_before + state.step,
    }
