"""Foretells a network's latency as the sum of its kernels', from a table that is measured on this machine or read from a file.

A table is JSON:

    {"format": "oche latency table 1", "device": "Raspberry Pi 4", "runtime": "onnxruntime 1.22",
     "call_ms": 0.02, "kernels_ms": {"conv 16x32x32 32x16x16 k3x3 s2x2 d1x1 g1 relu": 0.31, ...}}

A kernel's name has its kind, the shapes that it reads (joined by +), the shape that it makes, kernel, stride, dilation and groups
(`depthwise`: as many as channels), and what is folded into it (`oche.spaces.kernels`). A kernel that a file lacks is charged what the
nearest one of its sort takes, in proportion to their work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from oche.errors import UserError
from oche.genotype import Genotype
from oche.spaces.base import Space
from oche.spaces.kernels import Kernel, Shape, kernels, of_operation

FORMAT = "oche latency table 1"
LARGEST, MOST = 32 * 2**20, 200_000
"""Bytes that a table's file may take, and kernels that it may have."""


@dataclass(eq=False)
class Latencies:
    """Milliseconds of each kernel on a device, and of calling the runtime. `measure` is there for this machine; `source` names a file."""

    device: str
    runtime: str
    call: float
    kernels: dict[str, float]
    measure: Callable[[Kernel], float] | None = field(default=None, repr=False)
    source: str = ""

    @property
    def here(self) -> bool:
        """True if it is this machine's, so that what it foretells can be measured."""
        return self.measure is not None

    def of(self, kernel: Kernel) -> float:
        """The milliseconds of a kernel. Raises UserError where a file has none of its sort."""
        name = str(kernel)
        if name not in self.kernels:
            self.kernels[name] = self.measure(kernel) if self.measure else self._nearest(kernel)
        return self.kernels[name]

    def of_network(self, space: Space, genotype: Genotype) -> float:
        """The milliseconds of `space.network(genotype)` for one image, its normalisation and the call included."""
        with torch.device("meta"):
            network = space.network(genotype)
        return self.call + sum(map(self.of, kernels(network, space.inputs, space.size)))

    def of_module(self, module: nn.Module, shape: Shape) -> float:
        """The milliseconds of a module on the meta device by itself, for an input (C, H, W)."""
        return sum(map(self.of, of_operation(module, shape)))

    def _nearest(self, kernel: Kernel) -> float:
        """In proportion to its work, what the kernel of the same sort takes that is nearest; without what is folded in, if need be."""
        known = [(Kernel.parse(name), ms) for name, ms in self.kernels.items()]
        alike = [pair for pair in known if pair[0].sort == kernel.sort]
        alike = alike or [pair for pair in known if pair[0].sort[:2] == kernel.sort[:2]]
        if not alike:
            raise UserError(
                f"The latency table {self.source or self.device} has nothing like the operation {str(kernel)!r}: write it anew on that "
                "device, for the same space, with `oche latency`."
            )
        other, ms = min(alike, key=lambda pair: abs(math.log(pair[0].work() / kernel.work())))
        return ms * kernel.work() / other.work()

    def plain(self) -> dict[str, object]:
        """The table as JSON has it."""
        return {
            "format": FORMAT,
            "device": self.device,
            "runtime": self.runtime,
            "call_ms": round(self.call, 7),
            "kernels_ms": {name: round(ms, 7) for name, ms in sorted(self.kernels.items())},
        }


def read_table(path: Path) -> Latencies:
    """The table in a file. Raises UserError where it is none, or too large, or holds what is no latency."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(
                f"{path} takes more than {LARGEST // 2**20} MiB, too much for a latency table: give another file."
            )
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"The latency table {path} cannot be read ({error.strerror}): `oche latency` writes one."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON ({error}); expected a latency table, which `oche latency` writes."
        ) from None
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise UserError(
            f'{path} is no latency table: expected an object with "format": "{FORMAT}", as `oche latency` writes it.'
        )
    known = table.get("kernels_ms")
    if not isinstance(known, Mapping) or not 0 < len(known) <= MOST:
        raise UserError(
            f"{path} has no kernels_ms, or too many: expected an object of 1 to {MOST:,} names with milliseconds."
        )
    call = _milliseconds(table.get("call_ms", 0.0), "call_ms", path)
    found = {str(name): _milliseconds(ms, f"kernels_ms of {name!r}", path) for name, ms in known.items()}
    for name in found:
        try:
            Kernel.parse(name).work()
        except (ValueError, IndexError, ZeroDivisionError):
            raise UserError(
                f"{path} has the kernel {name!r}, which is no name such as 'relu 16x32x32 16x32x32'."
            ) from None
    return Latencies(str(table.get("device", "?")), str(table.get("runtime", "?")), call, found, source=str(path))


def _milliseconds(value: object, what: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise UserError(f"{path} has {value!r} as {what}; expected milliseconds, a number from 0 on.")
    return float(value)
