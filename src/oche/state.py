"""All that changes in a search, and all that is checkpointed; and the problem, which does not change."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor

from oche.base import Alpha, Draw, Group, OpWeights, Params
from oche.data import Augmentation, Data
from oche.errors import UserError
from oche.relaxations import Relaxation
from oche.run import Run
from oche.spaces import Space, Supernet
from oche.tasks import Task

Listener = Callable[[str, Mapping[str, object]], None]
"""Told ("step", {...}) after every step and ("epoch", record) after every epoch."""


def nobody(event: str, record: Mapping[str, object]) -> None:
    """The listener that does not listen."""


@dataclass(frozen=True)
class Problem:
    """What is searched, on which images, for how long: everything about a search but the method.

    `run` is where it is kept (None: nowhere), `checkpoint_every` the number of steps between checkpoints besides those at
    every epoch's end.
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
    listener: Listener = nobody


@dataclass
class SearchState:
    """The supernet with its weights, alpha, both optimisers, and where the search stands.

    `learns` names the weights that learn; `mask` the candidates that remain in groups that lost some; `memory` is the
    callbacks' own; `meters` sums what the running epoch has seen.
    """

    space: Space
    supernet: Supernet
    relaxation: Relaxation
    learns: frozenset[str]
    alpha: Alpha
    weight_optimizer: torch.optim.Optimizer
    arch_optimizer: torch.optim.Optimizer
    seed: int
    steps: int
    step: int = 0
    epoch: int = 0
    lines: int = 0
    stop: bool = False
    mask: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)
    meters: dict[str, Tensor] = field(default_factory=dict)
    trajectory: dict[str, list[Tensor]] = field(default_factory=dict)
    genotype: str = ""

    # ------------------------------------------------------------------ views

    @property
    def theta(self) -> Params:
        """The weights that learn, by name, in the supernet's order: the parameters themselves, not copies."""
        return {name: p for name, p in self.supernet.named_parameters() if name in self.learns}

    def draw(self, phase: str) -> Draw:
        """What this step's forward passes and relaxations may know."""
        return Draw(self.seed, self.step, phase, self.step / max(self.steps, 1), self.mask)

    def op_weights(self, alpha: Alpha, draw: Draw) -> OpWeights:
        """Every cell's (E, O) multipliers."""
        return self.space.spread({group.name: self.relaxation(alpha, group, draw) for group in self.space.groups})

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

    # ------------------------------------------------------------------ checkpoints

    def dumps(self) -> bytes:
        """Everything that changes, as the bytes of a file that `loads` reads without unpickling code."""
        table = {
            "weights": dict(self.supernet.named_parameters()),
            "alpha": self.alpha,
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "counters": [self.step, self.epoch, self.lines, int(self.stop)],
            "tensors": [self.mask, self.memory, self.meters],
            "trajectory": self.trajectory,
            "genotype": self.genotype,
        }
        buffer = io.BytesIO()
        torch.save(table, buffer)
        return buffer.getvalue()

    @torch.no_grad()
    def loads(self, data: bytes, device: torch.device) -> None:
        """Takes over a checkpoint of the same problem and method. Raises UserError where it is damaged or of another one."""
        with damaged():
            table = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        if "alpha" not in table:
            raise UserError("The checkpoint state.pt is not a search's, so no search can be resumed from it.")
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
        self.weight_optimizer.load_state_dict(table["weight_optimizer"])
        self.arch_optimizer.load_state_dict(table["arch_optimizer"])
        self.step, self.epoch, self.lines = table["counters"][:3]
        self.stop = bool(table["counters"][3])
        self.mask, self.memory, self.meters = table["tensors"]
        self.trajectory, self.genotype = table["trajectory"], table["genotype"]


@contextmanager
def damaged() -> Iterator[None]:
    """Turns what `torch.load` says of a file it cannot read into one sentence."""
    try:
        yield
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or ["end of file"])[0]
        raise UserError(
            f"The checkpoint state.pt is truncated or damaged ({reason}): delete it to start that run anew."
        ) from None


def quiet(problem: Problem) -> Problem:
    """The same problem, kept nowhere and telling nobody."""
    return replace(problem, run=None, listener=nobody)
