"""Compiles portable cells with `torch.compile`; cells of one structure share a program.

A program is `run_portable`, forward and backward, with torch's plain formulas where that has fused forms of its own. The cell is an
argument and its weights are inputs: cells of one structure and shape share a program, `functional_call` can give it other weights.
The cell's entries stay outside, for they differ from cell to cell.

A cell runs as it is where a program would be made for little use: without gradients (evaluation, in batches of other sizes), and where an
op weight is exactly zero, since which candidates are skipped would be part of the program. And where none can be made: candidates that draw
random numbers, anything that torch cannot trace, and inside of `torch.compiler.set_stance("force_eager")`, which is for what is
differentiated twice: a program's backward pass has no derivative.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oche.base import Draw
from oche.errors import UserError
from oche.fast.backends.native import compiler_path
from oche.fast.portable.mixed import run_portable
from oche.spaces.networks import Cell
from oche.spaces.ops import Drawn, Zero

log = logging.getLogger(__name__)

FORMS = 64
"""Programs at most: structures and shapes of cells, times which of their inputs ask for gradients. torch's own limit is 8."""

BACKEND = "inductor"


@dataclass
class Program:
    """A cell's program of torch.compile: `candidates` (edge, column) are in the program; `refusal` is why there is none, or empty."""

    candidates: frozenset[tuple[int, int]]
    refusal: str

    @staticmethod
    def of(cell: Cell) -> Program:
        """Nothing is compiled yet."""
        drawn = sorted({type(m).__name__ for m in cell.modules() if isinstance(m, Drawn)})
        computed = frozenset(
            (e, o)
            for incoming in cell._into
            for e, _, key in incoming
            for o, op in enumerate(_ops(cell, key))
            if not isinstance(op, Zero)
        )
        return Program(computed, f"{', '.join(drawn)} draws random numbers" if drawn else "")

    def told(self, tier: str) -> str:
        """The tier of a cell that would run like that, with what becomes of it."""
        kind, _, why = tier.partition(": ")
        if kind == "kernels":
            return tier
        if self.refusal:
            return f"{tier}; not by torch.compile: {self.refusal}"
        return "portable, compiled" + (f": {why}" if why else "")

    def run(self, cell: Cell, states: Sequence[Tensor], w: Tensor, zero: set[tuple[int, int]]) -> Tensor | None:
        """Returns what `run_portable` returns, or None where the cell is to run without a program."""
        if self.refusal or not torch.is_grad_enabled() or zero & self.candidates:
            return None
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            with config.patch(recompile_limit=FORMS):
                return _compiled(BACKEND)(cell, list(states), w)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self.refusal = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning("torch.compile cannot make a program of a cell, which runs portable: %s", error)
            return None


def needs_compiler(device: torch.device) -> None:
    """Raises UserError where torch.compile has no compiler to work with."""
    if device.type == "cpu" and compiler_path() is None:
        raise UserError(
            "--compile needs a C++ compiler, and none was found: install g++, or set CXX; or leave --compile out."
        )


@functools.cache
def _compiled(backend: str) -> Callable[[Cell, list[Tensor], Tensor], Tensor]:
    """Made once: the cells' programs hang on it."""
    made: Callable[[Cell, list[Tensor], Tensor], Tensor] = torch.compile(
        _plain, backend=backend, fullgraph=True, dynamic=False
    )
    return made


STILL = Draw(0)
"""Made here, for torch.compile cannot make one inside a program. Nothing that a program holds draws from it."""


def _plain(cell: Cell, states: list[Tensor], w: Tensor) -> Tensor:
    return run_portable(cell, states, w, set(), STILL)


def _ops(cell: Cell, key: str) -> list[torch.nn.Module]:
    ops = cell.edges[key].ops
    assert isinstance(ops, torch.nn.ModuleDict)
    return list(ops.values())
