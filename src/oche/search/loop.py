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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oche.base import Alpha, Batch, NotRepeatable, Params, counted
from oche.data import ImageSet, Stream, batches, none
from oche.fast import accelerate, leaves_out
from oche.genotype import Genotype
from oche.optim import average, set_rate
from oche.run import Run
from oche.search.bilevel import Batches, Bilevel, detached
from oche.search.callbacks import InnerStep, OuterStep, enters, sees_weights
from oche.search.graphs import CudaRecorder, Recorded, Step
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from oche.tasks import named

STATUS = Path("/proc/self/status")
"""Where Linux says what this process has used."""


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
    resume(state)
    advance(state, method)
    return conclude(state, method, method.selection(state, problem))


def advance(state: SearchState, method: Method) -> None:
    """The epochs that are left."""
    problem = state.problem
    steps_per_epoch = streams(problem, method)[0].steps_per_epoch
    losses = bilevel(state, method)
    graphs = recorded(state, method, losses)

    while state.epoch < problem.epochs:
        for callback in method.callbacks:
            callback.on_epoch_start(state)
        state.settle()
        if state.stop:
            break
        started, first = time.perf_counter(), state.step
        searching = state.epoch >= method.arch_start * problem.epochs
        begun = state.steps_before + state.epoch * steps_per_epoch
        weights, arch = streams(problem, method, state.epochs_before + state.epoch, begun)
        while state.step < (state.epoch + 1) * steps_per_epoch:
            set_learning_rate(state, method, steps_per_epoch)
            now = StepBatches(weights, arch, state.steps_before + state.step)
            due = searching and arch_due(method, state.step)
            steps(state, method, losses, now, due, graphs)
            state.step += 1
            problem.listener("step", {"step": state.step, "steps": state.steps, "epoch": state.epoch})
            if state.step % problem.checkpoint_every == 0:
                checkpoint(state)
        end_epoch(state, method, time.perf_counter() - started, (state.step - first) * problem.batch, searching)


# ------------------------------------------------------------------ the two steps


def arch_due(method: Method, step: int) -> bool:
    """Whether alpha steps at this step: it begins a round of `arch_every`, or ends one where the weights go first."""
    return (step if method.arch_first else step + 1) % method.arch_every == 0


def steps(
    state: SearchState,
    method: Method,
    losses: Bilevel,
    now: StepBatches,
    due: bool,
    graphs: tuple[Step, Step] | None = None,
) -> None:
    """The architecture step, where it is `due`, and the weight step, in the method's order or together; from `graphs` if given."""
    joint = due and method.single_level
    arch, weight = graphs or (
        partial(arch_step, state, method, losses),
        partial(weight_step, state, method, losses, joint=joint),
    )
    if due and method.arch_first and not method.single_level:
        arch(now)
    weight(now)
    if due and not method.arch_first:
        arch(now.after())


def recorded(state: SearchState, method: Method, losses: Bilevel) -> tuple[Step, Step] | None:
    """Both steps, replayed from graphs: on one NVIDIA GPU, where the method's steps can be."""
    fabric = state.problem.fabric
    if fabric.device.type != "cuda" or fabric.world_size > 1 or not recordable(method):
        return None
    recorder = CudaRecorder(fabric.device)
    arch, weight = (partial(step, state, method, losses) for step in (arch_step, weight_step))
    return Recorded(arch, state, recorder), Recorded(weight, state, recorder)


def recordable(method: Method) -> bool:
    """Whether each of the two steps is the same at every time: nobody looks into them, and they are two."""
    added = method.inner_terms or method.outer_terms or any(map(enters, method.callbacks))
    return not added and not method.single_level


def packable(method: Method) -> bool:
    """Whether nobody is handed weights or their gradients by name."""
    return not (method.inner_terms or method.outer_terms or any(map(sees_weights, method.callbacks)))


def arch_step(state: SearchState, method: Method, losses: Bilevel, now: Batches) -> None:
    """One step of alpha along the method's architecture gradient."""
    kept: Params = {}
    loss, grads = method.arch_gradient(replace(losses, keep=kept.update), state.leaves, state.alpha, now)
    grads, kept = averaged(losses, grads), averaged(losses, kept)
    step_alpha(state, method, grads, OuterStep(loss, kept))


def weight_step(state: SearchState, method: Method, losses: Bilevel, now: Batches, *, joint: bool = False) -> None:
    """One step of the weights that learn. Alpha is a constant here, unless a `joint` step takes it along (single level)."""
    draw, batch = state.draw("weight"), now.inner()
    alpha = state.alpha if joint else detached(state.alpha)
    weights = state.op_weights(alpha, draw)
    for callback in method.callbacks:
        weights = callback.before_inner_step(state, weights, alpha, batch)
    if state.packs and leaves_out(state.supernet, weights):
        state.unpack()  # what takes no part in a step is left as it is by that step
    theta = state.leaves
    loss, confusion = state.task_loss(weights, batch, draw, theta if state.packs else None)
    state.meter(weight_loss=loss, weight_confusion=confusion, weight_steps=1.0)
    for term in method.inner_terms + (method.outer_terms if joint else ()):
        loss = loss + term(state, theta, alpha, batch)
    leaves = {cell: w for cell, w in weights.items() if w.is_leaf and w.requires_grad}
    grads = derivatives(loss, theta, leaves, alpha if joint else {})
    by_weight, by_leaf, by_alpha = (averaged(losses, tree) for tree in grads)
    for callback in method.callbacks:
        by_weight = callback.after_inner_backward(state, by_weight, InnerStep(weights, alpha, batch, draw, by_leaf))
    for name, t in theta.items():
        t.grad = by_weight.get(name)
    if method.clip is not None:
        torch.nn.utils.clip_grad_norm_(theta.values(), method.clip, foreach=True)
    state.weight_optimizer.step()
    state.weight_optimizer.zero_grad()  # as large as the weights, and of no more use
    if joint:
        state.meter(arch_loss=loss, arch_confusion=confusion, arch_steps=1.0)
        step_alpha(state, method, by_alpha, OuterStep(loss.detach()))


def step_alpha(state: SearchState, method: Method, grads: Alpha, outer: OuterStep) -> None:
    """Lets the callbacks see alpha's gradients, clips them where the method does, and steps."""
    for callback in method.callbacks:
        grads = callback.after_outer_backward(state, grads, outer)
    for name, t in state.alpha.items():
        t.grad = grads.get(name)
    if method.arch_clip is not None:
        torch.nn.utils.clip_grad_norm_(state.alpha.values(), method.arch_clip)
    state.arch_optimizer.step()


def bilevel(state: SearchState, method: Method) -> Bilevel:
    """The two losses of this search as pure functions of (theta, alpha)."""
    state.settle()

    def inner(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("weight")
        loss, _ = state.task_loss(state.op_weights(alpha, draw), batch, draw, theta)
        return sum((term(state, theta, alpha, batch) for term in method.inner_terms), loss)

    def outer(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("alpha")
        loss, confusion = state.task_loss(state.op_weights(alpha, draw), batch, draw, theta)
        state.meter(arch_loss=loss, arch_confusion=confusion, arch_steps=1.0)
        return sum((term(state, theta, alpha, batch) for term in method.outer_terms), loss)

    def descend(theta: Params, grads: Params) -> Params:
        if theta.keys() != state.leaves.keys():  # somebody has them one by one
            state.unpack()
        return method.weight_optimizer.look_ahead(theta, grads, state.weight_optimizer)

    def rate() -> float:
        if state.still:
            raise NotRepeatable("the step asks for the learning rate")
        return float(state.weight_optimizer.param_groups[0]["lr"])

    mean, draw = partial(average, state.problem.fabric), partial(state.draw, "alpha")
    return Bilevel(inner, outer, descend, mean, rate, draw, meter=state.meter)


def derivatives(loss: Tensor, *trees: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """d loss / d tree for each tree, from one backward pass, without the entries that the loss does not depend on."""
    grads = iter(torch.autograd.grad(loss, [t for tree in trees for t in tree.values()], allow_unused=True))
    for tree in trees:
        yield {name: grad for name, grad in zip(tree, grads, strict=False) if grad is not None}


def averaged(losses: Bilevel, tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over processes."""
    return dict(zip(tree, losses.mean(list(tree.values())), strict=True))


# ------------------------------------------------------------------ before and after the steps


def begin(
    problem: Problem, method: Method, mask: Mapping[str, Tensor] | None = None, before: SearchState | None = None
) -> SearchState:
    """A fresh state: everything random in it depends on the seed alone, and on the number of the stage that it follows, `before`.

    Candidates that `mask` leaves out are not built.
    """
    device, stage = problem.fabric.device, [f"stage {before.stage + 1}"] if before else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted(problem.seed, "weights", *stage).initial_seed())
        supernet = problem.space.supernet(method.edge, affine=method.trainable.affine, mask=mask or {})
    supernet.recompute = problem.recompute
    method.trainable.prepare(supernet, counted(problem.seed, "initialiser", *stage))
    supernet.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    accelerate(supernet, problem.compile)
    learns = method.trainable(supernet)
    for name, p in supernet.named_parameters():
        p.requires_grad_(name in learns)
    alpha: Alpha = {}
    for group in problem.space.groups:
        fresh = method.relaxation.init(group, counted(problem.seed, "alpha", group.name, *stage))
        alpha |= {name: t.to(device).requires_grad_() for name, t in fresh.items()}
    weights, arch = streams(problem, method)
    state = SearchState(
        problem=problem,
        supernet=supernet,
        relaxation=method.relaxation,
        learns=learns,
        alpha=alpha,
        weight_optimizer=method.weight_optimizer([p for n, p in supernet.named_parameters() if n in learns]),
        arch_optimizer=method.arch_optimizer(list(alpha.values())),
        arch_images=arch.images,
        steps=problem.epochs * weights.steps_per_epoch,
        mask=dict(mask or {}),
    )
    if before:
        state.stage, state.lines, state.genotype = before.stage + 1, before.lines, before.genotype
        state.steps_before, state.epochs_before = before.steps_before + before.step, before.epochs_before + before.epoch
    shapes = {name: t.shape for name, t in alpha.items()}
    if before and {name: rows[0].shape for name, rows in before.trajectory.items()} == shapes:
        state.trajectory = {name: list(rows) for name, rows in before.trajectory.items()}
    else:
        remember(state)
    if packable(method):
        state.pack()
    return state


def streams(problem: Problem, method: Method, epoch: int = 0, begun: int = 0) -> tuple[Stream, Stream]:
    """The two streams of batches in an epoch that begins with the step number `begun`: the weights' images and alpha's.

    They are endless, and the same in every epoch unless the split draws its parts anew. They are one where alpha takes the weights'
    batches. An epoch has as many steps as the weights' images of the first one need.
    """
    fabric = problem.fabric
    labelled = method.targets(problem.data.train, len(problem.data.classes), problem.seed)
    parts = method.split(labelled, problem.seed, epoch)

    def stream(images: ImageSet, purpose: str) -> Stream:
        return Stream(
            images,
            problem.batch,
            problem.seed,
            f"{purpose}/{epoch}" if parts.anew else purpose,
            problem.augment,
            fabric.device,
            fabric.global_rank,
            fabric.world_size,
            begun if parts.anew else 0,
        )

    weights = stream(parts.weights, "weights")
    return weights, weights if parts.arch is None else stream(parts.arch, "arch")


@dataclass
class StepBatches:
    """The two batches of one step, each made when first asked for; one batch where the two streams are one.

    `done` counts the weight steps of this step that have been done.
    """

    weights: Stream
    arch: Stream
    step: int
    done: int = 0
    kept: dict[int, Batch] = field(default_factory=dict)

    def inner(self, ahead: int = 0) -> Batch:
        number = self.done + ahead
        if number not in self.kept:
            self.kept[number] = self.weights.at(self.step + number)
        return self.kept[number]

    def outer(self) -> Batch:
        return self.inner(-self.done) if self.arch is self.weights else self.arch.at(self.step)

    def after(self) -> StepBatches:
        """The same step behind its weight step: the next one's batch is the inner one."""
        return replace(self, done=self.done + 1)


def set_learning_rate(state: SearchState, method: Method, steps_per_epoch: int) -> None:
    """The schedule's value at this epoch, or at this step."""
    start, end = state.span
    done = state.step / state.steps if method.lr_by_step else (state.step // steps_per_epoch) / state.problem.epochs
    set_rate(state.weight_optimizer, method.weight_lr(start + (end - start) * done))


def end_epoch(state: SearchState, method: Method, seconds: float, images: int, searching: bool) -> None:
    """Turns the epoch's sums into a record, writes it down, and checkpoints."""
    problem = state.problem
    genotype = method.selection(state, problem)
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
        "lr": float(state.weight_optimizer.param_groups[0]["lr"]),
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
        problem.run.write(Run.genotype(state.epochs_before + state.epoch), genotype.to_json().encode())
        state.lines = problem.run.lines()
    state.genotype, state.meters = str(genotype), {}
    state.epoch += 1
    remember(state)
    checkpoint(state)
    problem.listener("epoch", record)


def conclude(state: SearchState, method: Method, genotype: Genotype) -> SearchResult:
    """Scores the supernet and writes the genotype, last of all: from then on this search is done."""
    problem = state.problem
    state.unpack()
    metrics, loss = metrics_of(state, problem, problem.data.val)
    record = {"kind": "supernet", **named(metrics, "val"), "val_loss": loss, "alpha_moved": _moved(state)}
    if problem.run and problem.fabric.is_global_zero:
        problem.run.log(record)
        problem.run.write(Run.GENOTYPE, genotype.to_json().encode())
    problem.listener("supernet", record)
    return SearchResult(genotype, state, tuple(_history(problem)))


def remember(state: SearchState) -> None:
    """Adds alpha as it stands to the trajectory."""
    for name, t in state.alpha.items():
        state.trajectory.setdefault(name, []).append(t.detach().cpu().clone())


def checkpoint(state: SearchState) -> None:
    """All that resuming needs, written atomically; and the trajectory of alpha for whoever draws it."""
    problem = state.problem
    if problem.run and problem.fabric.is_global_zero:
        arrays = {name: torch.stack(rows).numpy() for name, rows in state.trajectory.items()}
        rows, last = min(map(len, arrays.values()), default=1), state.epochs_before + state.epoch
        for group in state.space.groups:
            arrays[f"ops/{group.name}"] = np.array(json.dumps(group.ops))
            arrays[f"edges/{group.name}"] = np.array(group.edges)
        buffer = io.BytesIO()
        np.savez(buffer, epoch=np.arange(last - rows + 1, last + 1), **arrays)  # type: ignore[arg-type]
        problem.run.write(Run.ALPHAS, buffer.getvalue())
        problem.run.write(Run.STATE, state.dumps())


def resume(state: SearchState) -> bool:
    """Takes over the run's checkpoint if there is one, and cuts the log back to what that checkpoint had seen."""
    problem = state.problem
    if problem.run is None:
        return False
    taken = problem.run.has(Run.STATE) and state.loads(problem.run.read(Run.STATE), problem.fabric.device)
    if problem.fabric.is_global_zero:
        problem.run.rewind(state.lines)
    return taken


@torch.no_grad()
def metrics_of(state: SearchState, problem: Problem, images: ImageSet) -> tuple[dict[str, float], float]:
    """(the task's metrics, loss) of the supernet with the present alpha on images without augmentation, batch by batch."""
    draw = state.draw("eval")
    weights = state.op_weights(state.alpha, draw)
    plain = none(problem.data)
    loss, seen, confusion = 0.0, 0, torch.zeros(1, 1, dtype=torch.int64, device=problem.fabric.device)
    for batch in batches(images, problem.batch, plain, problem.fabric.device):
        if len(batch.targets) > 1:  # batch statistics of one image are no statistics
            mean, counts = state.task_loss(weights, batch, draw)
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


def _moved(state: SearchState) -> float:
    """How far alpha is from where it began: the root mean square over its entries."""
    squares = [(rows[-1] - rows[0]).square().flatten() for rows in state.trajectory.values()]
    return float(torch.cat(squares).mean().sqrt())


def _history(problem: Problem) -> Iterator[dict[str, object]]:
    for record in problem.run.records() if problem.run else []:
        if record.get("kind") == "epoch":
            yield record
