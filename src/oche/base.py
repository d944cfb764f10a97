"""The few types that every part speaks in: ranges of settings, batches, groups of cells, and counted randomness.

Shapes are written in one notation throughout: `B` images, `C` channels, `H W` pixels, `E` edges of a cell, `O` candidate
operations of an edge.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

# ------------------------------------------------------------------ ranges of settings, to which `oche.config` holds every number

Natural = Annotated[int, Ge(0)]
"""0, 1, 2, ..."""

Count = Annotated[int, Ge(1)]
"""1, 2, 3, ..."""

NonNegative = Annotated[float, Ge(0)]
"""At least 0: a weight of a term, a weight decay, a spread."""

Positive = Annotated[float, Gt(0)]
"""Above 0: a temperature, a bound of a norm."""

Share = Annotated[float, Ge(0), Le(1)]
"""From 0 to 1: a share of a run, a probability."""

Fraction = Annotated[float, Ge(0), Lt(1)]
"""From 0 to below 1: a momentum, a share of which something must be left."""

# ------------------------------------------------------------------ tensors by name

Params = dict[str, Tensor]
"""theta: supernet weights by parameter name."""

Alpha = dict[str, Tensor]
"""Architecture parameters, `"group/name"` -> tensor."""

OpWeights = dict[str, Tensor]
"""Cell instance -> (E, O) multipliers of its candidates' outputs."""


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W), float and normalised, with their targets: (B,) class numbers, or (B, H, W) for masks."""

    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Part:
    """The share that process `rank` of `world` has of every batch: the images [rank B, (rank + 1) B) of all world B.

    What is random per image is drawn for the whole batch, so that an image meets the same noise whatever the number of processes.
    """

    rank: int = 0
    world: int = 1

    def drawn(
        self,
        sample: Callable[..., Tensor],
        shape: Sequence[int],
        generator: torch.Generator,
        images: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """This process's part of `sample(shape)` of the whole batch; dimension number `images` of `shape` counts its own images."""
        whole = [size * self.world if d == images else size for d, size in enumerate(shape)]
        noise = sample(whole, generator=generator, device=generator.device, dtype=dtype)
        return noise.narrow(images, self.rank * shape[images], shape[images])


WHOLE = Part()
"""The whole batch: there is one process, or all processes see the same images."""


@dataclass(frozen=True)
class Group:
    """Cells that share architecture parameters, and what may be chosen in them.

    `edges` are (source, target) node numbers; `ops` the candidates of each edge, which may differ by edge: matrices over
    a group are (E, O) with O the longest list, and `valid()` says which entries exist. `keep` is how many incoming edges a
    node keeps after the search (2 in DARTS); None keeps all of them, one op each, `none` included (NAS-Bench-201).
    """

    name: str
    edges: tuple[tuple[int, int], ...]
    ops: tuple[tuple[str, ...], ...]
    keep: int | None = 2
    cells: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """O: the largest number of candidates on an edge."""
        return max(len(ops) for ops in self.ops)

    def valid(self) -> Tensor:
        """(E, O) bool: True where edge e has a candidate o."""
        return torch.tensor([[o < len(ops) for o in range(self.width)] for ops in self.ops])

    def named(self, op: str) -> Tensor:
        """(E, O) bool: True where edge e has that op as its candidate o."""
        return torch.tensor([[o < len(ops) and ops[o] == op for o in range(self.width)] for ops in self.ops])

    def entry(self, source: int, target: int, op: str) -> tuple[int, int]:
        """The (row, column) of a candidate, by edge and name, in an (E, O) matrix."""
        e = self.edges.index((source, target))
        return e, self.ops[e].index(op)

    def into(self) -> dict[int, list[int]]:
        """Target node -> numbers of its incoming edges, in edge order."""
        incoming: dict[int, list[int]] = {}
        for e, (_, target) in enumerate(self.edges):
            incoming.setdefault(target, []).append(e)
        return incoming


@dataclass(frozen=True)
class Draw:
    """All that a forward pass or a relaxation may know besides its inputs; the same draw gives the same noise.

    `phase` is "weight", "alpha" or "eval"; `progress` in [0, 1] is how much of the search is done; `mask` holds, for
    groups that lost candidates during the search, (E, O) bool matrices of those that remain; `part` is whose images these are.
    """

    seed: int
    step: int = 0
    phase: str = "eval"
    progress: float = 0.0
    mask: Mapping[str, Tensor] = field(default_factory=dict)
    part: Part = WHOLE

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator that depends on (seed, step, phase, purpose) alone."""
        return counted(self.seed, self.step, self.phase, purpose, device=device)

    def alive(self, group: Group, device: torch.device | str = "cpu") -> Tensor:
        """(E, O) bool on the device: candidates of the group that exist and are not masked out."""
        valid = _valid(group, torch.device(device))
        return valid & self.mask[group.name].to(device) if group.name in self.mask else valid


class NotRepeatable(Exception):
    """A step asked for something that changes from step to step, so that it cannot be recorded once and replayed."""


class Still(Draw):
    """The draw of a step that is to be replayed: it tells phase and mask, and refuses what differs between steps."""

    def __getattribute__(self, name: str) -> object:
        if name in ("seed", "step", "progress", "generator"):
            raise NotRepeatable(f"the step asks for the draw's {name}")
        return super().__getattribute__(name)


@lru_cache(maxsize=64)
def _valid(group: Group, device: torch.device) -> Tensor:
    """`group.valid()`, sent to the device once."""
    return group.valid().to(device)


def sent(t: Tensor, device: torch.device | str) -> Tensor:
    """t on the device. The host does not wait for the copy: it leaves from page-locked memory, after what was launched before."""
    device = torch.device(device)
    if t.device.type == "cpu" and device.type == "cuda":
        t = t.pin_memory()
    return t.to(device, non_blocking=True)


def counted(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a CRC of the key: randomness is counted, never streamed, so any draw can be repeated.

    >>> torch.equal(torch.rand(2, generator=counted(1, "a")), torch.rand(2, generator=counted(1, "a")))
    True
    """
    text = "/".join(map(str, key)).encode()
    seed = zlib.crc32(text) | (zlib.adler32(text) << 32)  # 64 bits, so that two keys rarely meet
    return torch.Generator(device=device).manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
