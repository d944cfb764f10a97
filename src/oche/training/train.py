"""Trains a genotype's network from scratch, under a protocol."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import save as safetensors_bytes
from torch import nn

from oche.base import Draw, Part, counted
from oche.data import Data, Stream, for_training, none
from oche.errors import UserError
from oche.fast import ordinary, quicken
from oche.genotype import Genotype
from oche.optim import NotFinite, average, check_finite, set_rate
from oche.run import Listener, Run, damaged, other_processes, silent
from oche.spaces import Network, Space
from oche.spaces.limits import Limits
from oche.spaces.synchronised import alone_again, synchronise
from oche.tasks import Classify, Task, named
from oche.training.evaluate import evaluate
from oche.training.finite import check_weights, stepped_back
from oche.training.protocols import Protocol

START, LAST, BEST = (f"checkpoints/{name}.safetensors" for name in ("start", "last", "best"))


@dataclass(frozen=True)
class Training:
    """One network's training, resolved: everything `retrain` needs.

    `start` are the weights it begins with; None draws them. `earlier` are the epochs of the trainings that it goes on from: images come in
    the order that would have followed, and drop path goes on growing. The protocol's batch counts the images of all processes of `fabric`;
    with `sync` batch norm is one over all of them.
    The network keeps the `limits`, as do random ones that it is compared with.
    """

    space: Space
    genotype: Genotype
    data: Data
    protocol: Protocol
    seed: int = 0
    fabric: Fabric = field(default_factory=lambda: Fabric(accelerator="cpu", devices=1))
    run: Run | None = None
    listener: Listener = silent
    task: Task = Classify()
    start: Mapping[str, torch.Tensor] | None = None
    sync: bool = False
    earlier: tuple[int, ...] = ()
    limits: Limits = Limits()


Trunk = Callable[[torch.Tensor, Draw | None, Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor | None]]
"""`Network.trunk`: (images, draw, factors of the edges' outputs) -> (outputs, auxiliary outputs)."""


@dataclass
class TrainState:
    """All that changes while a network trains, and all that is checkpointed; `trunk` is the network's own, or compiled.

    `slower` counts how often the rates were halved (`finite`); `kept` is the last checkpoint, empty before the first.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    trunk: Trunk
    epoch: int = 0
    lines: int = 0
    best: float = -1.0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    slower: int = 0
    kept: bytes = b""


def retrain(training: Training) -> Network:
    """Trains the genotype's network from scratch. Continues from the run's checkpoint if there is one.

    Returns the network with the weights that the protocol keeps, in eval mode. Raises UserError for a genotype of another space or
    a damaged checkpoint, RunFailed where its numbers are not finite at smaller rates either.
    """
    protocol, run = training.protocol, training.run
    state = begin(training)
    resume(state, training)
    stream = stream_of(training)
    while state.epoch < protocol.epochs:
        started = time.perf_counter()
        try:
            loss, value = train_epoch(state, training, stream)
            check_weights(state.network)
        except NotFinite as fault:
            roll_back(state, training, fault)
            continue
        score = evaluate(state.network, training.data.val, none(training.data), training.fabric, training.task)
        record: dict[str, object] = {
            "kind": "train_epoch",
            "epoch": state.epoch,
            "loss": loss,
            training.task.metric: value,
            "val_loss": score.loss,
            **named(score.metrics, "val"),
            "lr": protocol.lr(state.epoch / protocol.epochs) * 0.5**state.slower,
            "seconds": time.perf_counter() - started,
        }
        state.epoch += 1
        if score.value > state.best or not state.best_weights:  # R2 may be below -1
            state.best, state.best_weights = score.value, _weights(state.network)
        if run and training.fabric.is_global_zero:
            run.log(record)
            state.lines = run.lines()
        state.kept = dumps(state, training.fabric.world_size)
        if run and training.fabric.is_global_zero:
            run.flush()
            run.write(LAST, safetensors_bytes(_weights(state.network)))
            run.write(BEST, safetensors_bytes(state.best_weights))
            run.write(Run.STATE, state.kept)  # last: what it counts as done is on the disk
        training.listener("train_epoch", record)
    if protocol.keep == "best":
        state.network.load_state_dict(state.best_weights)
    ordinary(state.network)
    alone_again(state.network)
    return state.network.eval()


def begin(training: Training) -> TrainState:
    """A fresh network and optimiser: everything random in them depends on the seed alone. Raises UserError where `start` does not fit."""
    space, device = training.space, training.fabric.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted(training.seed, "network").initial_seed())
        network = space.network(training.genotype, auxiliary=training.protocol.auxiliary > 0)
    if training.start is not None:
        own = network.state_dict()
        given = {**{name: t for name, t in own.items() if name.startswith("auxiliary.")}, **training.start}
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in given.items()}:
            raise UserError(
                "The weights to begin with are of a network of another size: leave the sizes as they were searched."
            )
        network.load_state_dict(given)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if training.sync and training.fabric.world_size > 1:
        synchronise(network, training.fabric)
    elif device.type == "cpu" and not training.protocol.compile:
        quicken(network)
    trunk = torch.compile(network.trunk, dynamic=False) if training.protocol.compile else network.trunk
    return TrainState(network, training.protocol.optimizer(list(network.parameters())), trunk)


def train_epoch(state: TrainState, training: Training, stream: Stream) -> tuple[float, float]:
    """One pass over the training images: (mean loss without the auxiliary head's, the task's score)."""
    protocol, fabric = training.protocol, training.fabric
    task, network = training.task.smoothed(protocol.label_smoothing), state.network.train()
    before = sum(training.earlier)
    ramp = protocol.drop_path * (before + state.epoch) / (before + protocol.epochs)
    sums = torch.zeros(2, device=fabric.device, dtype=torch.float64)
    confusion = torch.zeros(1, 1, device=fabric.device, dtype=torch.int64)
    first = (before + state.epoch) * stream.steps_per_epoch
    for i in range(first, first + stream.steps_per_epoch):
        within = (i - first) / stream.steps_per_epoch if protocol.lr_by_step else 0.0
        set_rate(state.optimizer, protocol.lr((state.epoch + within) / protocol.epochs) * 0.5**state.slower)
        batch, draw = stream.at(i), Draw(training.seed, i, "train", part=Part(fabric.global_rank, fabric.world_size))
        with fabric.autocast():
            outputs, auxiliary = state.trunk(batch.images, draw, network.drops(batch.images, draw, ramp))
        main = task.loss(outputs.float(), batch.targets)
        loss = main if auxiliary is None else main + protocol.auxiliary * task.loss(auxiliary.float(), batch.targets)
        if fabric.world_size == 1:  # others meet a process's own loss in the gradients
            check_finite("the loss", loss.detach())
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        used = [p for p in network.parameters() if p.grad is not None]
        for p, grad in zip(used, average(fabric, [p.grad for p in used if p.grad is not None]), strict=True):
            p.grad = grad
        if protocol.clip is not None:
            check_finite("the gradient", nn.utils.clip_grad_norm_(used, protocol.clip))
        state.optimizer.step()
        seen = len(batch.targets)
        main = main.detach()
        sums += torch.stack([main * seen, torch.full_like(main, seen)]).to(sums)
        confusion = confusion + task.confusion(outputs.detach(), batch.targets)
    if fabric.world_size > 1:
        sums, confusion = average(fabric, [sums, confusion.double() * fabric.world_size])
        statistics = [t for t in network.buffers() if t.is_floating_point()]
        for t, mean in zip(statistics, average(fabric, statistics), strict=True):
            t.copy_(mean)  # each process's batch norms have seen its own images
    total, count = sums.tolist()
    check_finite("the mean loss", total / count)
    return total / count, task.score(confusion)


# ------------------------------------------------------------------ checkpoints


def dumps(state: TrainState, processes: int = 1) -> bytes:
    """Everything that changes, as the bytes of a file that `resume` reads without unpickling code."""
    buffer = io.BytesIO()
    table = {
        "weights": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "counters": [state.epoch, state.lines],
        "processes": processes,
        "best": state.best,
        "best_weights": state.best_weights,
        "slower": state.slower,
    }
    torch.save(table, buffer)
    return buffer.getvalue()


def resume(state: TrainState, training: Training) -> None:
    """Takes over the run's checkpoint, and cuts the log back to what that checkpoint had seen. Raises UserError if it is damaged."""
    run = training.run
    if run is None:
        return
    wrote = training.fabric.world_size
    if run.has(Run.STATE):
        wrote = take(state, training, run.read(Run.STATE)).get("processes", wrote)
    if training.fabric.is_global_zero:
        run.rewind(state.lines)
    if wrote != training.fabric.world_size:
        record = other_processes(wrote, training.fabric.world_size, training.protocol.batch, training.sync)
        if training.fabric.is_global_zero:
            run.log(record)
            state.lines = run.lines()
        training.listener("processes", record)


def take(state: TrainState, training: Training, kept: bytes) -> dict[str, Any]:
    """Takes over a checkpoint; returns its table. Raises UserError if it is damaged or a search's."""
    with damaged():
        table: dict[str, Any] = torch.load(io.BytesIO(kept), map_location=training.fabric.device, weights_only=True)
    if "optimizer" not in table:
        path = training.run.path if training.run else "This"
        raise UserError(f"{path} holds a search, not a training: `oche train {path}` starts one from it.")
    state.network.load_state_dict(table["weights"])
    state.optimizer.load_state_dict(table["optimizer"])
    state.epoch, state.lines = table["counters"]
    state.best, state.best_weights = table["best"], table["best_weights"]
    state.slower, state.kept = table.get("slower", 0), kept
    return table


def roll_back(state: TrainState, training: Training, fault: NotFinite) -> None:
    """Takes the training back to the end of its last epoch, or its beginning, at half its rates. Raises RunFailed after the last time."""
    slower = state.slower + 1
    record = stepped_back(training.protocol, training.run, state.slower, fault, state.epoch)
    if state.kept:
        take(state, training, state.kept)
    else:
        state.network.load_state_dict(begin(training).network.state_dict())
        state.optimizer.state.clear()
    state.slower = slower
    if training.run and training.fabric.is_global_zero:
        training.run.rewind(state.lines)
        training.run.log(record)
        state.lines = training.run.lines()
    training.listener("rolled_back", record)


def stream_of(training: Training) -> Stream:
    """The training images, varied as the protocol says."""
    fabric, protocol = training.fabric, training.protocol
    augment = for_training(training.data, protocol.cutout, protocol.policy)
    return Stream(
        training.data.train,
        protocol.batch // fabric.world_size,
        training.seed,
        "train",
        augment,
        fabric.device,
        fabric.global_rank,
        fabric.world_size,
    )


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().cpu().contiguous().clone() for name, t in network.state_dict().items()}
