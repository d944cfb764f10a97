"""Random cells for the tests of `oche.fast`, and how a fused one is compared with the plain one it was made from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oche.base import Draw, Group
from oche.fast.cell import FusedCell
from oche.spaces.base import with_pool_norm
from oche.spaces.edges import EdgeFactory, WeightedSum
from oche.spaces.networks import Body, Cell, Supernet
from oche.spaces.ops import OPS, ReLUConvBN

EDGES = ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


class _Lonely(Body):
    """A body of one cell, since a supernet is what switches running statistics off and names the noise."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({"cell": cell})

    def forward(self, x: Tensor, run_cell: object) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError


@dataclass(frozen=True)
class Sample:
    """A plain cell of two inputs and two nodes, what goes into it, and the weights (E, O) of its candidates."""

    cell: Cell
    inputs: tuple[Tensor, Tensor]
    w: Tensor


def sample(
    ops: Sequence[str],
    *,
    channels: int = 5,
    size: tuple[int, int] = (7, 6),
    batch: int = 2,
    stride: int = 1,
    affine: bool = True,
    edge: EdgeFactory | None = None,
    seed: int = 0,
    concat: bool = True,
    pool_norm: bool = True,
) -> Sample:
    torch.manual_seed(seed)
    group = Group("cell", EDGES, (tuple(ops),) * len(EDGES), 2, ("cell",))
    edge = edge or WeightedSum()
    edges = [
        edge(
            ops,
            channels,
            stride if s < 2 else 1,
            lambda op, c, at=stride if s < 2 else 1: (with_pool_norm if pool_norm else _bare)(op, c, at, affine),
        )
        for s, _ in EDGES
    ]
    cell = Cell([ReLUConvBN(3, channels, 1, 1, affine) for _ in range(2)], group, edges, concat=concat).double()
    Supernet(_Lonely(cell))
    with torch.no_grad():
        for p in cell.parameters():
            if p.dim() == 1:
                p.normal_(1.0, 0.5)
    inputs = tuple(torch.randn(batch, 3, *size, dtype=torch.float64) for _ in range(2))
    return Sample(cell, (inputs[0], inputs[1]), torch.rand(len(EDGES), len(ops), dtype=torch.float64))


def _bare(op: str, channels: int, stride: int, affine: bool) -> nn.Module:
    """A candidate as NAS-Bench-201 has it: no batch norm behind a pool."""
    return OPS[op](channels, stride, affine)


def fused(cell: Cell) -> FusedCell:
    return FusedCell(copy.deepcopy(cell))


def outcome(
    cell: Cell,
    s: Sample,
    learns: frozenset[str] = frozenset({"inputs", "w", "theta"}),
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """The cell's output and every gradient that is asked for, of a loss with random coefficients."""
    cell = cell.to(dtype)
    inputs = [x.detach().to(dtype).requires_grad_("inputs" in learns) for x in s.inputs]
    w = s.w.detach().to(dtype).requires_grad_("w" in learns)
    for p in cell.parameters():
        p.requires_grad_("theta" in learns)
    out = cell.mixed(inputs, w, Draw(3))
    leaves = {"input 0": inputs[0], "input 1": inputs[1], "w": w, **dict(cell.named_parameters())}
    leaves = {name: t for name, t in leaves.items() if t.requires_grad}
    found = {"out": out.detach()}
    if leaves:
        loss = (
            out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        ).sum()
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        else:  # no candidate is left: a constant
            grads = tuple(torch.zeros_like(t) for t in leaves.values())
        found |= dict(zip(leaves, grads, strict=True))
    return found


def kind(name: str, t: Tensor) -> str:
    """Results that share a scale: a gradient that is zero but for rounding is judged beside its like."""
    return name if name in ("out", "w") or name.startswith("input") else f"parameters of {t.dim()} dimensions"


def errors(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each kind of result, relative to the largest value of the kind."""
    assert got.keys() == wanted.keys()
    scale: dict[str, float] = {}
    off: dict[str, float] = {}
    for name, t in wanted.items():
        assert got[name].shape == t.shape, name
        assert bool(got[name].isfinite().all()), name
        k = kind(name, t)
        scale[k] = max(scale.get(k, 0.0), float(t.abs().max()))
        off[k] = max(off.get(k, 0.0), float((got[name].double() - t.double()).abs().max()))
    return {k: off[k] / max(scale[k], 1e-12) for k in off}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    off = errors(got, wanted)
    assert max(off.values()) < tolerance, off
