"""All that changes in a search, and all that is checkpointed; and the problem, which does not change."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from oche.base import Alpha, Batch, Draw, Group, OpWeights, Params, Still
from oche.data import Augmentation, Data, ImageSet
from oche.errors import UserError
from oche.fast import Pack, packs
from oche.optim import set_rate
from oche.run import Listener, Run, damaged, silent
from oche.search.relaxations import Relaxation
from oche.spaces import Space, Supernet
from oche.tasks import Task


@dataclass(frozen=True)
class Problem:
    """What is searched, on which images, for how long: everything about a search but the method.

    `run` is where it is kept (None: nowhere), `checkpoint_every` the number of steps between checkpoints besides those at
    every epoch's end. `recompute` runs each cell again in its backward pass instead of keeping what it computed: less memory, more time.
    `compile` has torch.compile make programs of the cells that no kernels of ours compute: minutes before the first step.
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
    checkpoint_every: int = 100
    listener: Listener = silent
    recompute: bool = False
    compile: bool = False


@dataclass
class SearchState:
    """The supernet with its weights, alpha, both optimisers, and where the search stands.

    `problem` is what is searched and `arch_images` alpha's part of its images: references, no part of a checkpoint.
    `learns` names the weights that learn (`learn` changes it);
    `mask` the candidates that remain in groups that lost some; `memory` is the callbacks' own; `meters` sums what the running epoch has
    seen. `step` and `epoch` count within the search, or within its stage number `stage`, which began after `steps_before` steps and
    `epochs_before` epochs of the stages before it and runs `progress` through `span`. `still` is set while a step is recorded
    (`graphs`). While `packs` are there, compiled cells' weights lie in them.
    """

    problem: Problem
    supernet: Supernet
    relaxation: Relaxation
    learns: frozenset[str]
    alpha: Alpha
    weight_optimizer: torch.optim.Optimizer
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
    genotype: str = ""
    still: bool = False
    packs: tuple[Pack, ...] = ()

    # ------------------------------------------------------------------ views

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.problem.space

    @property
    def progress(self) -> float:
        """How much of the search is done, in [0, 1], or in the `span` that its stage has of it."""
        start, end = self.span
        return start + (end - start) * (self.step / max(self.steps, 1))

    @property
    def theta(self) -> Params:
        """The weights that learn, by name, in the supernet's order: the parameters themselves, not copies."""
        return {name: p for name, p in self._named if name in self.learns}

    @cached_property
    def leaves(self) -> Params:
        """What a step differentiates and the optimiser holds: `theta`, but one tensor for all weights that lie in a pack."""
        inside = {name for pack in self.packs for name in pack.weights}
        packed = {pack.name: pack.values for pack in self.packs if pack.values.requires_grad}
        return packed | {name: p for name, p in self.theta.items() if name not in inside}

    @cached_property
    def _named(self) -> list[tuple[str, Tensor]]:
        """All weights by name; looked up once, since the modules are many and never exchanged."""
        return list(self.supernet.named_parameters())

    def draw(self, phase: str) -> Draw:
        """What this step's forward passes and relaxations may know."""
        kind = Still if self.still else Draw
        return kind(self.problem.seed, self.steps_before + self.step, phase, self.progress, self.mask)

    def op_weights(self, alpha: Alpha, draw: Draw) -> OpWeights:
        """Every cell's (E, O) multipliers."""
        return self.space.spread({group.name: self.relaxation(alpha, group, draw) for group in self.space.groups})

    def task_loss(
        self, weights: OpWeights, batch: Batch, draw: Draw, theta: Params | None = None
    ) -> tuple[Tensor, Tensor]:
        """(task loss, confusion matrix) of the supernet under these op weights; `theta` replaces its weights, None leaves them.

        `theta` has the names of `theta`, of some of them, or those of `leaves`.
        """
        images = batch.images.to(next(self.supernet.parameters()).dtype)
        if theta is not None and self.packs and theta.keys() == self.leaves.keys():
            theta = {pack.name: pack.values for pack in self.packs} | theta
        with self.problem.fabric.autocast():
            if theta is None:
                outputs, _ = self.supernet(images, weights, draw)
            else:
                outputs, _ = torch.func.functional_call(
                    self.supernet, theta, (images, weights, draw), tie_weights=False
                )
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

    # ------------------------------------------------------------------ what may change in mid-search

    def learn(self, names: Iterable[str]) -> None:
        """From now on these weights learn and no others. One that is frozen loses its momentum; the others' goes on."""
        own = dict(self.supernet.named_parameters())
        self.learns = frozenset(names)
        if not self.learns or self.learns - own.keys():
            raise ValueError(f"expected names of the supernet's weights; given {sorted(self.learns - own.keys())}.")
        self.unpack()
        for name, p in own.items():
            p.requires_grad_(name in self.learns)
            if name not in self.learns:
                p.grad = None  # else torch would go on stepping it
                self.weight_optimizer.state.pop(p, None)
        self._hold()

    def pack(self) -> None:
        """From now on the weights of compiled cells lie in `packs`, if the optimiser treats all entries of a tensor alike."""
        if not isinstance(self.weight_optimizer, torch.optim.SGD):
            return
        self.packs = packs(self.supernet)
        state = self.weight_optimizer.state
        for pack in self.packs:
            moving = {name: state.pop(p, {}).get("momentum_buffer") for name, p in pack.weights.items()}
            there = {name: t for name, t in moving.items() if t is not None}
            if there:
                state[pack.values]["momentum_buffer"] = pack.join(there)
        self._hold()

    def unpack(self) -> None:
        """Every weight is a tensor of its own again, its momentum with it."""
        state = self.weight_optimizer.state
        for pack in self.packs:
            momentum = state.pop(pack.values, {}).get("momentum_buffer")
            if momentum is not None:
                for name, part in pack.split(momentum).items():
                    state[pack.weights[name]]["momentum_buffer"] = part
            pack.lift()
        self.packs = ()
        self._hold()

    def settle(self) -> None:
        """Packs anew if somebody moved weights out of their packs, to another precision say."""
        if not all(pack.intact for pack in self.packs):
            self.unpack()
            self.pack()

    def _hold(self) -> None:
        """The optimiser steps what are leaves now."""
        self.__dict__.pop("leaves", None)
        (group,) = self.weight_optimizer.param_groups
        group["params"] = list(self.leaves.values())

    @torch.no_grad()
    def take_over(self, earlier: SearchState, fit: Fit) -> None:
        """Weights and their optimiser's state of an earlier stage, by name, each as `fit(name, tensor, shape)` makes it.

        What `fit` returns None for, and what the earlier stage did not have, stays as it was drawn.
        """
        packed = bool(self.packs)
        self.unpack()
        earlier.unpack()
        own, old = dict(self.supernet.named_parameters()), dict(earlier.supernet.named_parameters())
        for name, p in own.items():
            weight = fit(name, old[name].detach(), p.shape) if name in old else None
            if weight is None:
                continue
            p.copy_(weight)
            if name not in self.learns:
                continue
            for key, t in earlier.weight_optimizer.state.get(old[name], {}).items():
                like = isinstance(t, Tensor) and t.shape == old[name].shape
                moved = fit(name, t, p.shape) if like else t
                self.weight_optimizer.state[p][key] = moved.clone() if isinstance(moved, Tensor) else moved
        if packed:
            self.pack()

    # ------------------------------------------------------------------ checkpoints

    def dumps(self) -> bytes:
        """Everything that changes, as the bytes of a file that `loads` reads without unpickling code."""
        table = {
            "weights": dict(self.supernet.named_parameters()),
            "alpha": self.alpha,
            "learns": sorted(self.learns),
            "packed": bool(self.packs),
            "weight_optimizer": _split(_by_name(self.weight_optimizer, self.leaves), self.packs, self.theta),
            "arch_optimizer": _by_name(self.arch_optimizer, self.alpha),
            "stage": self.stage,
            "counters": [self.step, self.epoch, self.lines, int(self.stop)],
            "tensors": [self.mask, self.memory, self.meters],
            "trajectory": self.trajectory,
            "genotype": self.genotype,
        }
        buffer = io.BytesIO()
        torch.save(table, buffer)
        return buffer.getvalue()

    @torch.no_grad()
    def loads(self, data: bytes, device: torch.device) -> bool:
        """Takes over a checkpoint of the same problem and method. Raises UserError where it is damaged or of another one.

        False, and nothing taken, where it is of another stage: it was written before this stage's first.
        """
        with damaged():
            table = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        if "alpha" not in table:
            raise UserError("The checkpoint state.pt is not a search's, so no search can be resumed from it.")
        if table["stage"] != self.stage:
            return False
        self.unpack()
        own = dict(self.supernet.named_parameters())
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in table["weights"].items()} or set(
            self.alpha
        ) != set(table["alpha"]):
            raise UserError(
                "The checkpoint state.pt is of another space or method than this run's settings: it cannot be resumed."
            )
        for name, t in table["weights"].items():
            own[name].copy_(t)
        for name, t in table["alpha"].items():
            self.alpha[name].copy_(t)
        self.learn(table["learns"])
        _restore(self.weight_optimizer, self.theta, table["weight_optimizer"])
        _restore(self.arch_optimizer, self.alpha, table["arch_optimizer"])
        if table.get("packed"):
            self.pack()
        self.step, self.epoch, self.lines = table["counters"][:3]
        self.stop = bool(table["counters"][3])
        self.mask, self.memory, self.meters = table["tensors"]
        self.trajectory, self.genotype = table["trajectory"], table["genotype"]
        return True


Fit = Callable[[str, Tensor, torch.Size], Tensor | None]
"""How a tensor of one stage becomes that of the next: (weight's name, its value or momentum, new shape) -> tensor, or None."""


def same_shape(name: str, t: Tensor, shape: torch.Size) -> Tensor | None:
    """Takes over what has kept its shape."""
    return t if t.shape == shape else None


def _by_name(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """An optimiser's state dict, its tensors' numbers replaced by their names."""
    table, names = optimizer.state_dict(), list(tensors)
    return {"groups": table["param_groups"], "state": {names[n]: own for n, own in table["state"].items()}}


def _split(table: dict[str, Any], packs: Sequence[Pack], theta: Mapping[str, Tensor]) -> dict[str, Any]:
    """`_by_name`'s table with each weight's part of a pack's momentum, as if there were no packs."""
    state = dict(table["state"])
    for pack in packs:
        for key, t in state.pop(pack.name, {}).items():
            for name, part in pack.split(t).items() if isinstance(t, Tensor) else ():
                state.setdefault(name, {})[key] = part
    return {"groups": [{**group, "params": list(range(len(theta)))} for group in table["groups"]], "state": state}


def _restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], table: Mapping[str, Any]) -> None:
    numbers = {name: n for n, name in enumerate(tensors)}
    state = {numbers[name]: own for name, own in table["state"].items()}
    (group,) = optimizer.param_groups
    device: dict[str, object] = {key: group[key] for key in ("foreach", "fused", "capturable") if key in group}
    optimizer.load_state_dict({"param_groups": table["groups"], "state": state})
    optimizer.param_groups[0].update(device)  # how this device steps; what a step is, the checkpoint says
    set_rate(optimizer, float(table["groups"][0]["lr"]))


def quiet(problem: Problem) -> Problem:
    """Returns the problem without a run's folder and without a listener."""
    return replace(problem, run=None, listener=silent)
