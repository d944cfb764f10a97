"""The state of a search: all that changes and is checkpointed, and the problem, which does not change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor

from oche.base import WHOLE, Alpha, Batch, Draw, Group, OpWeights, Params, Part, Still
from oche.data import Augmentation, Data, ImageSet
from oche.optim import average
from oche.run import Listener, Run, silent
from oche.search.keeping import Keeping
from oche.search.relaxations import Relaxation
from oche.search.weights import SupernetWeights
from oche.spaces import Space, Supernet
from oche.spaces.limits import Limits
from oche.tasks import Task


@dataclass(frozen=True)
class Problem:
    """What is searched, on which images, for how long: everything about a search but the method.

    `batch` counts the images of a step over all processes of `fabric`, each of which takes `share` of them; with `sync` batch norm is one
    over all of them. `run` is where it is kept (None: nowhere), `checkpoint_every` the number of steps between checkpoints besides those at
    every epoch's end; None writes one there and every 100 steps only where that takes a small share of the time (`keeping`).
    `recompute` runs each cell again in its backward pass instead of keeping what it computed: less memory, more time.
    `compile` has torch.compile make programs of the cells that no kernels of ours compute: minutes before the first step.
    `rollbacks` is how often the search goes back to its last checkpoint where numbers are no longer finite (`finite`).
    `literal` hands out what the method's rule derives even where no signal can pass through it (`connected`).
    `limits` are kept by the network that is handed out; `built` is the space that it is built in, `space` where that is None (a stage may
    search another). `rehearsal` marks a copy whose steps are measured and thrown away: what has to be learned before them need not be.
    """

    space: Space
    data: Data
    task: Task
    augment: Augmentation
    epochs: int
    batch: int
    seed: int = 0
    fabric: Fabric = field(default_factory=lambda: Fabric(accelerator="cpu", devices=1))
    run: Run | None = None
    checkpoint_every: int | None = None
    listener: Listener = silent
    recompute: bool = False
    compile: bool = False
    rollbacks: int = 3
    literal: bool = False
    sync: bool = False
    limits: Limits = Limits()
    built: Space | None = None
    rehearsal: bool = False

    @property
    def share(self) -> int:
        """Images of a step in this process. Raises ValueError where the batch cannot be shared out evenly."""
        if self.batch % self.fabric.world_size:
            raise ValueError(f"a batch of {self.batch} images cannot be shared by {self.fabric.world_size} processes")
        return self.batch // self.fabric.world_size


@dataclass
class SearchState:
    """The supernet with its weights, alpha, both optimisers, and where the search stands.

    `problem` is what is searched and `arch_images` alpha's part of its images: references, no part of a checkpoint. `mask` holds the
    candidates that remain in groups that lost some; `memory` is the callbacks' own; `meters` sums what the running epoch has seen.
    `step` and `epoch` count within the search, or within its stage number `stage`, which began after `steps_before` steps and
    `epochs_before` epochs of the stages before it and runs `progress` through `span`. `still` is set while a step is captured (`replay`);
    `slower` counts how often the rates were halved (`finite`); so many `processes` wrote the checkpoint that was taken over.
    `began` is alpha as it was last begun afresh: at the search's start, or at that of the last stage that took none over.
    `keeping` is what was kept of it all. Neither is a part of a checkpoint: `began` follows from the problem and the stages before.
    """

    problem: Problem
    weights: SupernetWeights
    relaxation: Relaxation
    alpha: Alpha
    arch_optimizer: torch.optim.Optimizer
    arch_images: ImageSet
    steps: int
    step: int = 0
    epoch: int = 0
    stage: int = 0
    steps_before: int = 0
    epochs_before: int = 0
    span: tuple[float, float] = (0.0, 1.0)
    lines: int = 0
    stop: bool = False
    mask: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)
    meters: dict[str, Tensor] = field(default_factory=dict)
    trajectory: dict[str, list[Tensor]] = field(default_factory=dict)
    began: Alpha = field(default_factory=dict)
    genotype: str = ""
    still: bool = False
    slower: int = 0
    processes: int = 1
    keeping: Keeping = field(default_factory=Keeping)

    # ------------------------------------------------------------------ views

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.problem.space

    @property
    def supernet(self) -> Supernet:
        """The supernet, which holds all weights."""
        return self.weights.supernet

    @property
    def learns(self) -> frozenset[str]:
        """The names of the weights that learn (`learn` changes them)."""
        return self.weights.learns

    @property
    def theta(self) -> Params:
        """The weights that learn, by name: the parameters themselves, not copies."""
        return self.weights.theta

    @property
    def weight_optimizer(self) -> torch.optim.Optimizer:
        """What steps `theta`."""
        return self.weights.optimizer

    @property
    def progress(self) -> float:
        """How much of the search is done, in [0, 1], or in the `span` that its stage has of it."""
        start, end = self.span
        return start + (end - start) * (self.step / max(self.steps, 1))

    def draw(self, phase: str) -> Draw:
        """What this step's forward passes and relaxations may know. In evaluation all processes see the same images."""
        kind, fabric = Still if self.still else Draw, self.problem.fabric
        part = WHOLE if phase == "eval" else Part(fabric.global_rank, fabric.world_size)
        return kind(self.problem.seed, self.steps_before + self.step, phase, self.progress, self.mask, part)

    def op_weights(self, alpha: Alpha, draw: Draw) -> OpWeights:
        """Every cell's (E, O) multipliers."""
        return self.space.spread({group.name: self.relaxation(alpha, group, draw) for group in self.space.groups})

    def task_loss(
        self, weights: OpWeights, batch: Batch, draw: Draw, theta: Params | None = None
    ) -> tuple[Tensor, Tensor]:
        """(task loss, confusion matrix) of the supernet under these op weights; `theta` replaces its weights, None leaves them.

        See `SupernetWeights.outputs` for the names that `theta` may have.
        """
        images = batch.images.to(next(self.supernet.parameters()).dtype)
        with self.problem.fabric.autocast():
            outputs = self.weights.outputs(images, weights, draw, theta)
        outputs, task = outputs.to(images.dtype), self.problem.task
        return task.loss(outputs, batch.targets), task.confusion(outputs.detach(), batch.targets)

    def at(self, epochs: int) -> SearchState:
        """This state with alpha as it stood after so many epochs, for selections and probes that look back."""
        alpha = {name: rows[epochs].to(self.alpha[name]) for name, rows in self.trajectory.items()}
        return replace(self, alpha=alpha)

    def alive(self, group: Group) -> Tensor:
        """(E, O) bool on the CPU: the candidates that exist and remain."""
        return self.draw("eval").alive(group)

    @torch.no_grad()
    def strengths(self) -> Iterator[tuple[Group, Tensor]]:
        """Each group with its noise-free (E, O) strengths, on the CPU."""
        draw = self.draw("eval")
        for group in self.space.groups:
            yield group, self.relaxation.strength(self.alpha, group, draw).cpu()

    def entropy(self) -> float:
        """Mean over edges of the strengths' entropy over its greatest value, log O: 1 is undecided, 0 decided."""
        parts = []
        for group, strength in self.strengths():
            p = strength.double()
            p = p / p.sum(-1, keepdim=True).clamp_min(1e-12)
            most = torch.tensor([max(len(ops), 2) for ops in group.ops]).double().log()
            parts.append(-(p * p.clamp_min(1e-300).log()).sum(-1) / most)
        return float(torch.cat(parts).mean())

    def meter(self, **sums: Tensor | float) -> None:
        """Adds to the running epoch's sums, without waiting for the device."""
        for name, value in sums.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            self.meters[name] = self.meters[name] + value if name in self.meters else value

    def gather(self) -> None:
        """Replaces the running epoch's sums by their mean over processes, which the sums to come may be added to."""
        values = average(self.problem.fabric, list(self.meters.values()))
        self.meters = dict(zip(self.meters, values, strict=True))

    # ------------------------------------------------------------------ what may change in mid-search

    def learn(self, names: Iterable[str]) -> None:
        """From now on these weights learn and no others; see `SupernetWeights.learn`."""
        self.weights.learn(names)

    def remember(self) -> None:
        """Adds alpha as it stands to the trajectory."""
        for name, t in self.now().items():
            self.trajectory.setdefault(name, []).append(t.cpu())

    def now(self) -> Alpha:
        """A copy of alpha as it stands, on its device."""
        return {name: t.detach().clone() for name, t in self.alpha.items()}


def quiet(problem: Problem) -> Problem:
    """Returns the problem for a rehearsal: without a run's folder and without a listener."""
    return replace(problem, run=None, listener=silent, rehearsal=True)
