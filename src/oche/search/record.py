"""Writes down what a search has measured: the record of each epoch, the supernet's score, and the result."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from oche.data import ImageSet, batches, none
from oche.genotype import Genotype
from oche.optim import check_finite
from oche.run import Run
from oche.search.checkpoint import checkpoint
from oche.search.connected import connected
from oche.search.limits import hand_out
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from oche.tasks import named
from oche.training.evaluate import Score

STATUS = Path("/proc/self/status")
"""Linux's account of the memory that this process has used."""


@dataclass(frozen=True)
class SearchResult:
    """What a search ends with: the genotype, the state it came from, and one record per epoch."""

    genotype: Genotype
    state: SearchState
    history: tuple[dict[str, object], ...]


def end_epoch(state: SearchState, method: Method, seconds: float, images: int, searching: bool) -> None:
    """Turns the epoch's sums into a record, writes it down, and checkpoints."""
    problem, processes = state.problem, state.problem.fabric.world_size
    state.gather()
    state.meters = {name: processes * value for name, value in state.meters.items()} if processes > 1 else state.meters
    for who, whose in (("weight", "the weights'"), ("arch", "alpha's")):
        check_finite(f"the mean loss on {whose} images", _mean_loss(state, who) or 0.0)
    literal = method.selection(state, problem)
    joined = connected(state, literal)
    genotype = literal if problem.literal else joined
    metric = problem.task.metric
    record: dict[str, object] = {
        "kind": "epoch",
        "epoch": state.epochs_before + state.epoch,
        "step": state.steps_before + state.step,
        "phase": "search" if searching else "warm-up" if method.arch_start < 1 else "weights",
        "weight_loss": _mean_loss(state, "weight"),
        f"weight_{metric}": _score(state, "weight"),
        "arch_loss": _mean_loss(state, "arch"),
        f"arch_{metric}": _score(state, "arch"),
        "entropy": state.entropy(),
        "skips": genotype.skips(),
        "lr": state.weights.rate,
        "genotype": str(genotype),
        **({"cut": str(literal)} if joined != literal else {}),
        "changed": bool(state.genotype) and state.genotype != str(genotype),
        "seconds": seconds,
        "images_per_second": images / seconds,
        "memory_mib": memory_mib(problem.fabric.device),
    }
    begun = time.perf_counter()
    for callback in method.callbacks:
        callback.on_epoch_end(state, record)
    if problem.run and problem.fabric.is_global_zero:
        with state.keeping.timed():
            problem.run.log(record)
            state.keeping.files[Run.genotype(state.epochs_before + state.epoch)] = genotype.to_json().encode()
            state.lines = problem.run.lines()
    problem.listener("watched", {"seconds": time.perf_counter() - begun})
    state.genotype, state.meters = str(genotype), {}
    state.epoch += 1
    state.remember()
    checkpoint(state)
    problem.listener("epoch", record)


def conclude(state: SearchState, stepped: bool, genotype: Genotype) -> SearchResult:
    """Scores the supernet and writes the genotype, last of all: from then on this search is done.

    `stepped`: the search, or one of its stages, has epochs in which its optimiser steps alpha.
    """
    problem = state.problem
    joined = connected(state, genotype)
    cut, genotype = joined != genotype, genotype if problem.literal else joined
    state.weights.unpack()
    val = scored(state, problem, problem.data.val)
    record = {
        "kind": "supernet",
        **named(val.metrics, "val"),
        "val_loss": val.loss,
        **val.honest(problem.task),
        **_moved(state, stepped),
        "checkpoint_share": state.keeping.share,
    }
    if cut:
        record["cut"] = "kept" if problem.literal else "connected"
    if problem.run and problem.fabric.is_global_zero:
        problem.run.log(record)
    problem.listener("supernet", record)
    strengths = {group.name: strength for group, strength in state.strengths()}
    genotype = hand_out(problem, genotype, strengths, {"derived": "literal" if problem.literal else "connected"})
    return SearchResult(genotype, state, tuple(_history(problem)))


@torch.no_grad()
def scored(state: SearchState, problem: Problem, images: ImageSet) -> Score:
    """The scores of the supernet with the present alpha on images without augmentation, batch by batch."""
    draw = state.draw("eval")
    weights = state.op_weights(state.alpha, draw)
    plain = none(problem.data)
    loss, seen, confusion = 0.0, 0, torch.zeros(1, 1, dtype=torch.int64, device=problem.fabric.device)
    for batch in batches(images, problem.batch, plain, problem.fabric.device):
        if len(batch.targets) > 1:  # a batch norm needs more than one image
            mean, counts = state.task_loss(weights, batch, draw)
            loss, confusion = loss + float(mean) * len(batch.targets), confusion + counts
            seen += len(batch.targets)
    rows = tuple(tuple(row) for row in confusion.tolist())
    return Score(problem.task.metric, problem.task.metrics(confusion), loss / max(seen, 1), rows)


def score(state: SearchState, problem: Problem, images: ImageSet) -> tuple[float, float]:
    """(the task's score, loss) of the supernet; see `scored`."""
    found = scored(state, problem, images)
    return found.value, found.loss


# ------------------------------------------------------------------ helpers


def memory_mib(device: torch.device) -> float:
    """The highest memory so far: of the process, or of the accelerator's allocator."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.exists():  # a child's `ru_maxrss` begins with what its parent had
        own = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        if own:
            return int(own[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _mean_loss(state: SearchState, who: str) -> float | None:
    steps = float(state.meters.get(f"{who}_steps", 0.0))
    return float(state.meters[f"{who}_loss"]) / steps if steps else None


def _score(state: SearchState, who: str) -> float | None:
    confusion = state.meters.get(f"{who}_confusion")
    return None if confusion is None else state.problem.task.score(confusion)


def _moved(state: SearchState, stepped: bool) -> dict[str, float]:
    """How far alpha is from where it last began afresh, root mean square over entries; if no step moves it, how far the strengths are."""
    if stepped:
        alphas = [(t - state.began[name]).square().flatten() for name, t in state.now().items()]
        return {"alpha_moved": float(torch.cat(alphas).mean().sqrt())}
    began = replace(state, alpha={name: t.to(state.alpha[name]) for name, t in state.began.items()})
    both = zip(began.strengths(), state.strengths(), strict=True)
    strengths = [(now - first)[group.valid()].square() for (group, first), (_, now) in both]
    return {"strengths_moved": float(torch.cat(strengths).mean().sqrt())}


def _history(problem: Problem) -> Iterator[dict[str, object]]:
    for record in problem.run.records() if problem.run else []:
        if record.get("kind") == "epoch":
            yield record
