"""search(): the one loop that runs every differentiable method. Read this first.

A step is an architecture step on one half of the images and a weight step on the other. Nothing here knows the name of a
method, a space or a device: what differs sits in the method's slots.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from oche.base import Alpha, Batch, Draw, OpWeights, Params, counted
from oche.bilevel import Bilevel, average, detached
from oche.data import ImageSet, Stream, batches, none
from oche.fast import accelerate
from oche.genotype import Genotype
from oche.method import Method
from oche.run import Run
from oche.state import Problem, SearchState
from oche.tasks import named


@dataclass(frozen=True)
class SearchResult:
    """What a search ends with: the genotype, the state it came from, and one record an epoch."""

    genotype: Genotype
    state: SearchState
    history: tuple[dict[str, object], ...]


def search(problem: Problem, method: Method) -> SearchResult:
    """Searches `problem.space` with `method`. Continues from the run's checkpoint if there is one.

    Raises UserError where the checkpoint is damaged or of other settings.
    """
    state = begin(problem, method)
    resume(state, problem)
    weights, arch = streams(problem, method)
    losses = bilevel(state, problem, method)

    while state.epoch < problem.epochs:
        for callback in method.callbacks:
            callback.on_epoch_start(state)
        if state.stop:
            break
        started, first = time.perf_counter(), state.step
        searching = state.epoch >= method.arch_start * problem.epochs
        while state.step < (state.epoch + 1) * weights.steps_per_epoch:
            set_learning_rate(state, problem, method, weights.steps_per_epoch)
            now = StepBatches(weights, arch, state.step)
            if method.arch_first and searching and state.step % method.arch_every == 0:
                arch_step(state, method, losses, now)
            weight_step(state, problem, method, losses, now)
            if not method.arch_first and searching and state.step % method.arch_every == 0:
                arch_step(state, method, losses, now)
            state.step += 1
            problem.listener("step", {"step": state.step, "steps": state.steps, "epoch": state.epoch})
            if state.step % problem.checkpoint_every == 0:
                checkpoint(state, problem)
        end_epoch(
            state, problem, method, time.perf_counter() - started, (state.step - first) * problem.batch, searching
        )

    genotype = method.selection(state, problem)
    metrics, loss = metrics_of(state, problem, problem.data.val)
    record = {"kind": "supernet", **named(metrics, "val"), "val_loss": loss, "alpha_moved": _moved(state)}
    if problem.run and problem.fabric.is_global_zero:
        problem.run.log(record)
        problem.run.write(Run.GENOTYPE, genotype.to_json().encode())  # last: from now on this search is done
    problem.listener("supernet", record)
    return SearchResult(genotype, state, tuple(_history(problem)))


# ------------------------------------------------------------------ the two steps


def arch_step(state: SearchState, method: Method, losses: Bilevel, now: StepBatches) -> None:
    """One step of alpha along the method's architecture gradient."""
    _, grads = method.arch_gradient(losses, state.theta, state.alpha, now)
    for t, grad in zip(state.alpha.values(), losses.mean(list(grads.values())), strict=True):
        t.grad = grad
    state.arch_optimizer.step()


def weight_step(state: SearchState, problem: Problem, method: Method, losses: Bilevel, now: StepBatches) -> None:
    """One step of the weights that learn; alpha is a constant here."""
    theta, alpha, draw = state.theta, detached(state.alpha), state.draw("weight")
    batch, weights = now.inner(), state.op_weights(alpha, draw)
    for callback in method.callbacks:
        weights = callback.before_inner_step(state, weights, alpha, batch)
    loss, confusion = task_loss(state, problem, None, weights, batch, draw)
    state.meter(weight_loss=loss, weight_confusion=confusion, weight_steps=1.0)
    for term in method.inner_terms:
        loss = loss + term(state, theta, alpha, batch)
    grads = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
    used = {name: grad for name, grad in zip(theta, grads, strict=True) if grad is not None}
    used = dict(zip(used, losses.mean(list(used.values())), strict=True))
    for callback in method.callbacks:
        used = callback.after_inner_backward(state, used)
    for name, t in theta.items():
        t.grad = used.get(name)
    if method.clip is not None:
        torch.nn.utils.clip_grad_norm_(theta.values(), method.clip)
    state.weight_optimizer.step()


def bilevel(state: SearchState, problem: Problem, method: Method) -> Bilevel:
    """The two losses of this search as pure functions of (theta, alpha)."""

    def inner(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("weight")
        loss, _ = task_loss(state, problem, theta, state.op_weights(alpha, draw), batch, draw)
        return sum((term(state, theta, alpha, batch) for term in method.inner_terms), loss)

    def outer(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("alpha")
        loss, confusion = task_loss(state, problem, theta, state.op_weights(alpha, draw), batch, draw)
        state.meter(arch_loss=loss, arch_confusion=confusion, arch_steps=1.0)
        return sum((term(state, theta, alpha, batch) for term in method.outer_terms), loss)

    def descend(theta: Params, grads: Params) -> Params:
        return method.weight_optimizer.look_ahead(theta, grads, state.weight_optimizer)

    return Bilevel(inner, outer, descend, partial(average, problem.fabric))


def task_loss(
    state: SearchState, problem: Problem, theta: Params | None, weights: OpWeights, batch: Batch, draw: Draw
) -> tuple[Tensor, Tensor]:
    """(task loss, confusion matrix) of the supernet; `theta` replaces its weights, None leaves them."""
    images = batch.images.to(next(iter(state.alpha.values())).dtype)
    with problem.fabric.autocast():
        if theta is None:
            outputs, _ = state.supernet(images, weights, draw)
        else:
            outputs, _ = torch.func.functional_call(state.supernet, theta, (images, weights, draw))
    outputs = outputs.to(images.dtype)
    return problem.task.loss(outputs, batch.targets), problem.task.confusion(outputs.detach(), batch.targets)


# ------------------------------------------------------------------ before and after the steps


def begin(problem: Problem, method: Method) -> SearchState:
    """A fresh state: everything random in it depends on the seed alone."""
    device = problem.fabric.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted(problem.seed, "weights").initial_seed())
        supernet = problem.space.supernet(method.edge, affine=method.trainable.affine)
    method.trainable.prepare(supernet, counted(problem.seed, "initialiser"))
    supernet.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":  # elsewhere the fused cells are unmeasured
        accelerate(supernet)
    learns = method.trainable(supernet)
    for name, p in supernet.named_parameters():
        p.requires_grad_(name in learns)
    alpha: Alpha = {}
    for group in problem.space.groups:
        fresh = method.relaxation.init(group, counted(problem.seed, "alpha", group.name))
        alpha |= {name: t.to(device).requires_grad_() for name, t in fresh.items()}
    weights, _ = streams(problem, method)
    state = SearchState(
        space=problem.space,
        supernet=supernet,
        relaxation=method.relaxation,
        learns=learns,
        alpha=alpha,
        weight_optimizer=method.weight_optimizer([p for n, p in supernet.named_parameters() if n in learns]),
        arch_optimizer=method.arch_optimizer(list(alpha.values())),
        seed=problem.seed,
        steps=problem.epochs * weights.steps_per_epoch,
    )
    remember(state)
    return state


def streams(problem: Problem, method: Method) -> tuple[Stream, Stream]:
    """The two endless streams of batches: the weights' images and alpha's."""

    def stream(images: ImageSet, purpose: str) -> Stream:
        fabric = problem.fabric
        return Stream(
            images,
            problem.batch,
            problem.seed,
            purpose,
            problem.augment,
            fabric.device,
            fabric.global_rank,
            fabric.world_size,
        )

    weights, arch = method.split(problem.data.train, problem.seed)
    return stream(weights, "weights"), stream(arch, "arch")


@dataclass
class StepBatches:
    """The two batches of one step, each made when first asked for."""

    weights: Stream
    arch: Stream
    step: int
    kept: Batch | None = None

    def inner(self) -> Batch:
        self.kept = self.kept or self.weights.at(self.step)
        return self.kept

    def outer(self) -> Batch:
        return self.arch.at(self.step)


def set_learning_rate(state: SearchState, problem: Problem, method: Method, steps_per_epoch: int) -> None:
    """The schedule's value at this epoch, or at this step."""
    progress = state.step / state.steps if method.lr_by_step else (state.step // steps_per_epoch) / problem.epochs
    for group in state.weight_optimizer.param_groups:
        group["lr"] = method.weight_lr(progress)


def end_epoch(
    state: SearchState, problem: Problem, method: Method, seconds: float, images: int, searching: bool
) -> None:
    """Turns the epoch's sums into a record, writes it down, and checkpoints."""
    genotype = method.selection(state, problem)
    metric = problem.task.metric
    record: dict[str, object] = {
        "kind": "epoch",
        "epoch": state.epoch,
        "step": state.step,
        "phase": "search" if searching else "warm-up",
        "weight_loss": _mean_loss(state, "weight"),
        f"weight_{metric}": _score(state, problem, "weight"),
        "arch_loss": _mean_loss(state, "arch"),
        f"arch_{metric}": _score(state, problem, "arch"),
        "entropy": state.entropy(),
        "skips": genotype.skips(),
        "lr": state.weight_optimizer.param_groups[0]["lr"],
        "genotype": str(genotype),
        "changed": bool(state.genotype) and state.genotype != str(genotype),
        "seconds": seconds,
        "images_per_second": images * problem.fabric.world_size / seconds,
        "memory_mib": memory_mib(problem.fabric.device),
    }
    for callback in method.callbacks:
        callback.on_epoch_end(state, record)
    if problem.run and problem.fabric.is_global_zero:
        problem.run.log(record)
        problem.run.write(Run.genotype(state.epoch), genotype.to_json().encode())
        state.lines = problem.run.lines()
    state.genotype, state.meters = str(genotype), {}
    state.epoch += 1
    remember(state)
    checkpoint(state, problem)
    problem.listener("epoch", record)


def remember(state: SearchState) -> None:
    """Adds alpha as it stands to the trajectory."""
    for name, t in state.alpha.items():
        state.trajectory.setdefault(name, []).append(t.detach().cpu().clone())


def checkpoint(state: SearchState, problem: Problem) -> None:
    """All that resuming needs, written atomically; and the trajectory of alpha for whoever draws it."""
    if problem.run and problem.fabric.is_global_zero:
        arrays = {name: torch.stack(rows).numpy() for name, rows in state.trajectory.items()}
        for group in state.space.groups:
            arrays |= {
                f"ops/{group.name}": np.array(json.dumps(group.ops)),
                f"edges/{group.name}": np.array(group.edges),
            }
        buffer = io.BytesIO()
        np.savez(buffer, epoch=np.arange(state.epoch + 1), **arrays)  # type: ignore[arg-type]
        problem.run.write(Run.ALPHAS, buffer.getvalue())
        problem.run.write(Run.STATE, state.dumps())


def resume(state: SearchState, problem: Problem) -> None:
    """Takes over the run's checkpoint, and cuts the log back to what that checkpoint had seen."""
    if problem.run is None:
        return
    if problem.run.has(Run.STATE):
        state.loads(problem.run.read(Run.STATE), problem.fabric.device)
    if problem.fabric.is_global_zero:
        problem.run.rewind(state.lines)


@torch.no_grad()
def metrics_of(state: SearchState, problem: Problem, images: ImageSet) -> tuple[dict[str, float], float]:
    """(the task's metrics, loss) of the supernet with the present alpha on images without augmentation, batch by batch."""
    draw = state.draw("eval")
    weights = state.op_weights(state.alpha, draw)
    plain = none(problem.data)
    loss, seen, confusion = 0.0, 0, torch.zeros(1, 1, dtype=torch.int64, device=problem.fabric.device)
    for batch in batches(images, problem.batch, plain, problem.fabric.device):
        if len(batch.targets) > 1:  # batch statistics of one image are no statistics
            mean, counts = task_loss(state, problem, None, weights, batch, draw)
            loss, confusion = loss + float(mean) * len(batch.targets), confusion + counts
            seen += len(batch.targets)
    return problem.task.metrics(confusion), loss / max(seen, 1)


def score(state: SearchState, problem: Problem, images: ImageSet) -> tuple[float, float]:
    """(the task's score, loss) of the supernet; see `metrics_of`."""
    metrics, loss = metrics_of(state, problem, images)
    return metrics[problem.task.metric], loss


# ------------------------------------------------------------------ helpers


def memory_mib(device: torch.device) -> float:
    """The highest memory so far: of the process, or of the accelerator's allocator."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _mean_loss(state: SearchState, who: str) -> float | None:
    steps = float(state.meters.get(f"{who}_steps", 0.0))
    return float(state.meters[f"{who}_loss"]) / steps if steps else None


def _score(state: SearchState, problem: Problem, who: str) -> float | None:
    confusion = state.meters.get(f"{who}_confusion")
    return None if confusion is None else problem.task.score(confusion)


def _moved(state: SearchState) -> float:
    """How far alpha is from where it began: the root mean square over its entries."""
    squares = [(rows[-1] - rows[0]).square().flatten() for rows in state.trajectory.values()]
    return float(torch.cat(squares).mean().sqrt())


def _history(problem: Problem) -> Iterator[dict[str, object]]:
    for record in problem.run.records() if problem.run else []:
        if record.get("kind") == "epoch":
            yield record
