"""retrain(): a genotype's network from scratch, under a named protocol; inherited(): with a supernet's weights; evaluate(): its worth.

The protocols are those of the DARTS line (auxiliary head, drop path, cutout, cosine, clip), sizes included, so that a number can be
compared with a paper's; `quick` and `smoke` are ours.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from lightning_fabric import Fabric
from safetensors.torch import save as safetensors_bytes
from torch import nn

from oche.base import Batch, Draw, Params, counted
from oche.data import Augmentation, Data, ImageSet, Stream, batches, for_training, none
from oche.errors import UserError
from oche.fast import ordinary, quicken
from oche.genotype import Genotype
from oche.optim import SGD, set_rate
from oche.run import Run
from oche.schedule import Cosine, Geometric, LinearTail, Schedule
from oche.search.bilevel import average
from oche.search.state import Listener, SearchState, damaged, nobody
from oche.spaces import Network, Space
from oche.tasks import Classify, Task, accuracy, class_iou, named

PIXELS = 2**22
"""In one batch of an evaluation, at most."""

STATISTICS = 500
"""Batches over which running statistics are estimated, at most: one pass over the training images where they are fewer."""

START, LAST, BEST = (f"checkpoints/{name}.safetensors" for name in ("start", "last", "best"))


@dataclass(frozen=True)
class Protocol:
    """How a network is trained from scratch.

    `auxiliary` weighs the auxiliary head's loss, `drop_path` is that probability at the end of a linear ramp, `cutout` a side at 32
    pixels, `policy` adds AutoAugment. `keep` says which weights are the result: the last epoch's, or those of the best validation score.
    `cells`, `channels` and `stem_multiplier` set the network's size (None: as searched). `compile` has torch.compile make one program of
    forward and backward: minutes before the first step (and again where drop path sets in), faster ones after it. `source` says where
    the settings are from.
    """

    epochs: int
    batch: int
    lr: Schedule
    optimizer: SGD = SGD()
    clip: float | None = 5.0
    auxiliary: float = 0.4
    drop_path: float = 0.0
    cutout: int = 0
    policy: bool = False
    label_smoothing: float = 0.0
    keep: Literal["last", "best"] = "last"
    cells: int | None = None
    channels: int | None = None
    stem_multiplier: int | None = None
    compile: bool = False
    source: str = "our choice"


_CIFAR = Protocol(
    600, 96, Cosine(0.025), drop_path=0.2, cutout=16, cells=20, channels=36, source="quark0/darts, CIFAR-10"
)
_BENCHMARK = "antoyang/NAS-Benchmark, CIFAR-10: "
_BASE = replace(_CIFAR, auxiliary=0.0, drop_path=0.0, cutout=0, source=f"{_BENCHMARK}crop and flip alone")
_CUTOUT = replace(_BASE, cutout=16, source=f"{_BENCHMARK}base with cutout")
_POLICY = replace(_CIFAR, policy=True, source=f"{_BENCHMARK}darts_cifar with AutoAugment")
_LONG = replace(_POLICY, epochs=1500, source=f"{_BENCHMARK}autoaugment for 1,500 epochs")

TRICKS: dict[str, Protocol] = {
    "base": _BASE,
    "auxiliary": replace(_BASE, auxiliary=0.4, source=f"{_BENCHMARK}base with the auxiliary head"),
    "drop_path": replace(_BASE, drop_path=0.2, source=f"{_BENCHMARK}base with drop path"),
    "cutout": _CUTOUT,
    "cutout_drop_path": replace(_CUTOUT, drop_path=0.2, source=f"{_BENCHMARK}cutout with drop path"),
    "wide": replace(_CIFAR, channels=50, source=f"{_BENCHMARK}darts_cifar with 50 channels"),
    "autoaugment": _POLICY,
    "long": _LONG,
    "long_wide": replace(_LONG, channels=50, source=f"{_BENCHMARK}long with 50 channels"),
}
"""The ladder of "NAS evaluation is frustratingly hard" (arXiv 1912.12522): each rung is one trick away from another; `darts_cifar`,
cutout, drop path and auxiliary head, is the one between `cutout_drop_path` and `wide`. From foot to top random cells gain 2.9 points."""

PROTOCOLS: dict[str, Protocol] = {
    "quick": Protocol(30, 64, Cosine(0.1), SGD(nesterov=True, weight_decay=5e-4), auxiliary=0.4),
    "brief": Protocol(12, 64, Cosine(0.1), SGD(nesterov=True, weight_decay=5e-4), auxiliary=0.4),
    "smoke": Protocol(2, 32, Cosine(0.1), SGD(nesterov=True, weight_decay=5e-4), auxiliary=0.4),
    "segment": Protocol(60, 8, Cosine(0.05), SGD(weight_decay=5e-4), auxiliary=0.0, keep="best"),
    "segment_brief": Protocol(12, 8, Cosine(0.05), SGD(weight_decay=5e-4), auxiliary=0.0),
    "segment_smoke": Protocol(2, 4, Cosine(0.05), SGD(weight_decay=5e-4), auxiliary=0.0),
    "darts_cifar": _CIFAR,
    "pcdarts_cifar": replace(_CIFAR, drop_path=0.3, source="yuhuixu1993/PC-DARTS, CIFAR-10"),
    "robust_small": replace(_CIFAR, cells=8, channels=16, source="automl/RobustDARTS, S1-S4 at 8 cells of 16 channels"),
    "darts_imagenet": Protocol(
        250,
        128,
        Geometric(0.1, 0.1 * 0.97**250),
        SGD(weight_decay=3e-5),
        label_smoothing=0.1,
        keep="best",
        cells=14,
        channels=48,
        stem_multiplier=1,
        source="quark0/darts, ImageNet",
    ),
    "pcdarts_imagenet": Protocol(
        250,
        1024,
        LinearTail(0.5),
        SGD(weight_decay=3e-5),
        label_smoothing=0.1,
        keep="best",
        cells=14,
        channels=48,
        stem_multiplier=1,
        source="yuhuixu1993/PC-DARTS, ImageNet",
    ),
    "nb201": Protocol(
        200,
        256,
        Cosine(0.1),
        SGD(nesterov=True, weight_decay=5e-4),
        clip=None,
        auxiliary=0.0,
        cells=5,
        channels=16,
        source="NAS-Bench-201, 200 epochs",
    ),
    **TRICKS,
}
"""`oche train --protocol NAME`. Ours train at the searched size; the published ones set their own."""


@dataclass(frozen=True)
class Score:
    """Of a network on images: the task's `metrics` in [0, 1], mean `loss`, and `confusion` (classes, classes), true class by row.

    `value` is the metric that counts: accuracy, or mean IoU.
    """

    metric: str
    metrics: Mapping[str, float]
    loss: float
    confusion: tuple[tuple[int, ...], ...]

    @property
    def value(self) -> float:
        return self.metrics[self.metric]

    @property
    def accuracy(self) -> float:
        """Right answers over all: of images, or of pixels."""
        return accuracy(torch.tensor(self.confusion))

    @property
    def iou(self) -> tuple[float, ...]:
        """Intersection over union of each class; NaN for one that is neither there nor predicted."""
        return tuple(class_iou(torch.tensor(self.confusion)).tolist())


@dataclass(frozen=True)
class Training:
    """One network's training, resolved: everything `retrain` needs. `start` are the weights it begins with, None those it draws."""

    space: Space
    genotype: Genotype
    data: Data
    protocol: Protocol
    seed: int = 0
    fabric: Fabric = field(default_factory=lambda: Fabric(accelerator="cpu", devices=1))
    run: Run | None = None
    listener: Listener = nobody
    task: Task = Classify()
    start: Mapping[str, torch.Tensor] | None = None


Trunk = Callable[[torch.Tensor, Draw | None, Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor | None]]
"""`Network.trunk`: (images, draw, what multiplies each edge's output) -> (outputs, auxiliary outputs)."""


@dataclass
class TrainState:
    """All that changes while a network trains, and all that is checkpointed; `trunk` is the network's own, or compiled."""

    network: Network
    optimizer: torch.optim.Optimizer
    trunk: Trunk
    epoch: int = 0
    lines: int = 0
    best: float = -1.0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)


def retrain(training: Training) -> Network:
    """The genotype's network, trained from scratch. Continues from the run's checkpoint if there is one.

    Returns the network with the weights that the protocol keeps, in eval mode. Raises UserError for a genotype of another space or
    a damaged checkpoint.
    """
    protocol, run = training.protocol, training.run
    state = begin(training)
    resume(state, training)
    stream = _stream(training)
    while state.epoch < protocol.epochs:
        started = time.perf_counter()
        set_rate(state.optimizer, protocol.lr(state.epoch / protocol.epochs))
        loss, value = train_epoch(state, training, stream)
        score = evaluate(state.network, training.data.val, none(training.data), training.fabric, training.task)
        record: dict[str, object] = {
            "kind": "train_epoch",
            "epoch": state.epoch,
            "loss": loss,
            training.task.metric: value,
            "val_loss": score.loss,
            **named(score.metrics, "val"),
            "lr": float(state.optimizer.param_groups[0]["lr"]),
            "seconds": time.perf_counter() - started,
        }
        state.epoch += 1
        if score.value > state.best:
            state.best, state.best_weights = score.value, _weights(state.network)
        if run and training.fabric.is_global_zero:
            run.log(record)
            state.lines = run.lines()
            run.write(LAST, safetensors_bytes(_weights(state.network)))
            run.write(BEST, safetensors_bytes(state.best_weights))
            run.write(Run.STATE, dumps(state))  # last: what it counts as done is on the disk
        training.listener("train_epoch", record)
    if protocol.keep == "best":
        state.network.load_state_dict(state.best_weights)
    ordinary(state.network)
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
    if device.type == "cpu" and not training.protocol.compile:
        quicken(network)
    trunk = torch.compile(network.trunk, dynamic=False) if training.protocol.compile else network.trunk
    return TrainState(network, training.protocol.optimizer(list(network.parameters())), trunk)


def inherited(state: SearchState, genotype: Genotype, count: int = STATISTICS) -> Network:
    """The genotype's network with the weights of a search's supernet, in eval mode.

    Its running statistics are the averages over at most `count` full batches of the training images, as they are when a network is
    evaluated, not augmented (our choice).
    """
    problem, device = state.problem, state.problem.fabric.device
    with torch.random.fork_rng(devices=[]):  # what is drawn is then replaced
        network = problem.space.network(genotype)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    stream = Stream(problem.data.train, problem.batch, problem.seed, "statistics", none(problem.data), device)
    theta: Params = dict(state.supernet.named_parameters())
    dtype = next(iter(theta.values())).dtype
    shown = (stream.at(i) for i in range(min(count, stream.steps_per_epoch)))
    problem.space.inherit(network, theta, (Batch(batch.images.to(dtype), batch.targets) for batch in shown))
    return network.eval()


def train_epoch(state: TrainState, training: Training, stream: Stream) -> tuple[float, float]:
    """One pass over the training images: (mean loss without the auxiliary head's, the task's score)."""
    protocol, fabric = training.protocol, training.fabric
    task, network = training.task.smoothed(protocol.label_smoothing), state.network.train()
    ramp = protocol.drop_path * state.epoch / protocol.epochs
    sums = torch.zeros(2, device=fabric.device, dtype=torch.float64)
    confusion = torch.zeros(1, 1, device=fabric.device, dtype=torch.int64)
    for i in range(state.epoch * stream.steps_per_epoch, (state.epoch + 1) * stream.steps_per_epoch):
        batch, draw = stream.at(i), Draw(training.seed, i, "train")
        with fabric.autocast():
            outputs, auxiliary = state.trunk(batch.images, draw, network.drops(batch.images, draw, ramp))
        main = task.loss(outputs.float(), batch.targets)
        loss = main if auxiliary is None else main + protocol.auxiliary * task.loss(auxiliary.float(), batch.targets)
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        used = [p for p in network.parameters() if p.grad is not None]
        for p, grad in zip(used, average(fabric, [p.grad for p in used if p.grad is not None]), strict=True):
            p.grad = grad
        if protocol.clip is not None:
            nn.utils.clip_grad_norm_(used, protocol.clip)
        state.optimizer.step()
        seen = len(batch.targets)
        main = main.detach()
        sums += torch.stack([main * seen, torch.full_like(main, seen)]).to(sums)
        confusion = confusion + task.confusion(outputs.detach(), batch.targets)
    total, count = sums.tolist()
    return total / count, task.score(confusion)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: ImageSet,
    augment: Augmentation,
    fabric: Fabric,
    task: Task = Classify(),
    batch: int = 256,
) -> Score:
    """Scores a network in eval mode; `augment` normalises (`data.none`). The network's mode is left as it was.

    The loss is the batches' mean, weighted by their images. Large images come in smaller batches, of at most `PIXELS` pixels.
    """
    height, width = images.take(torch.zeros(1, dtype=torch.int64))[0].shape[1:3]
    batch = max(1, min(batch, PIXELS // (height * width)))
    was_training = network.training
    network.eval()
    loss, confusion = 0.0, torch.zeros(1, 1, device=fabric.device, dtype=torch.int64)
    for part in batches(images, batch, augment, fabric.device):
        with fabric.autocast():
            outputs = network(part.images).float()
        loss += float(task.loss(outputs, part.targets)) * len(part.targets)
        confusion = confusion + task.confusion(outputs, part.targets)
    network.train(was_training)
    rows = tuple(tuple(int(n) for n in row) for row in confusion.tolist())
    return Score(task.metric, task.metrics(confusion), loss / len(images), rows)


# ------------------------------------------------------------------ checkpoints


def dumps(state: TrainState) -> bytes:
    """Everything that changes, as the bytes of a file that `resume` reads without unpickling code."""
    buffer = io.BytesIO()
    table = {
        "weights": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "counters": [state.epoch, state.lines],
        "best": state.best,
        "best_weights": state.best_weights,
    }
    torch.save(table, buffer)
    return buffer.getvalue()


def resume(state: TrainState, training: Training) -> None:
    """Takes over the run's checkpoint, and cuts the log back to what that checkpoint had seen. Raises UserError if it is damaged."""
    run = training.run
    if run is None:
        return
    if run.has(Run.STATE):
        with damaged():
            table = torch.load(io.BytesIO(run.read(Run.STATE)), map_location=training.fabric.device, weights_only=True)
        if "optimizer" not in table:
            raise UserError(f"{run.path} holds a search, not a training: `oche train {run.path}` starts one from it.")
        state.network.load_state_dict(table["weights"])
        state.optimizer.load_state_dict(table["optimizer"])
        state.epoch, state.lines = table["counters"]
        state.best, state.best_weights = table["best"], table["best_weights"]
    if training.fabric.is_global_zero:
        run.rewind(state.lines)


def _stream(training: Training) -> Stream:
    fabric, protocol = training.fabric, training.protocol
    augment = for_training(training.data, protocol.cutout, protocol.policy)
    return Stream(
        training.data.train,
        protocol.batch,
        training.seed,
        "train",
        augment,
        fabric.device,
        fabric.global_rank,
        fabric.world_size,
    )


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().cpu().contiguous().clone() for name, t in network.state_dict().items()}
