"""The compiled kernels as operators of torch.library: torch's own check of schemas, aliasing, shapes and registered derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from oche.base import Draw
from oche.fast.backends import rows
from oche.fast.backends.native import kernels
from oche.fast.kernels.entry import ENTRY
from oche.spaces.darts import DARTS_OPS
from oche.spaces.edges import PartialChannels
from oche.spaces.nb201 import NB201_OPS
from unit.fast.cells import Sample, fused, sample

pytestmark = [pytest.mark.slow, pytest.mark.skipif(kernels() is None, reason="no compiler on this machine")]

Arguments = tuple[object, ...]


class _Record(TorchDispatchMode):
    """The first arguments of oche's operators, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Arguments] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "oche":
            self.calls.setdefault(func._opname, tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args))
        return func(*args, **(kwargs or {}))


def recorded(s: Sample, half: bool = False) -> dict[str, Arguments]:
    """The operators that a cell and its derivatives of two orders call; `half`: in single precision under autocast."""
    dtype = torch.float32 if half else torch.float64
    cell = fused(s.cell).to(dtype)
    w = s.w.to(dtype).requires_grad_()
    with _Record() as record:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = cell.mixed([x.to(dtype) for x in s.inputs], w, Draw(3))
        theta = list(cell.parameters())
        g = torch.autograd.grad(out.square().sum(), theta, create_graph=True, materialize_grads=True)
        torch.autograd.grad(g, [w, *theta], [torch.ones_like(t) for t in g], materialize_grads=True)
    return record.calls


def learning(args: Arguments) -> Arguments:
    """The same with tensors of real numbers that require gradients."""
    return tree_map_only(torch.Tensor, lambda t: t.requires_grad_() if t.is_floating_point() else t, args)  # type: ignore[no-any-return]


def check(calls: dict[str, Arguments], derived: set[str]) -> None:
    """`derived` also against tensors without values, traced together with their backward pass."""
    for name, args in calls.items():
        operator = getattr(torch.ops.oche, name).default
        torch.library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))
        if name in derived:
            tests = ("test_autograd_registration", "test_aot_dispatch_dynamic")
            torch.library.opcheck(operator, learning(args), test_utils=tests)


def kept(calls: dict[str, Arguments], gradient: str, at: int) -> torch.dtype:
    """The type of what the gradient's operator reads."""
    values = calls[gradient][at]
    assert isinstance(values, torch.Tensor)
    return values.dtype


def test_depthwise_cells() -> None:
    calls = recorded(sample(DARTS_OPS, channels=16))
    assert calls.keys() == {"packed", "packed_gradient", "packed_second"}
    assert calls["packed_gradient"][2] is True  # derived again
    check(calls, {"packed", "packed_gradient"})


def test_partial_cells() -> None:
    calls = recorded(sample(DARTS_OPS, channels=8, edge=PartialChannels(2)))
    assert calls.keys() == {"partial", "partial_gradient"}
    check(calls, {"partial"})


def test_cells_in_half_precision() -> None:
    """Without pools, and partial cells not traced: what stays in single precision is compared as bfloat16, in which it may be no number."""
    calls = recorded(sample([op for op in DARTS_OPS if "pool" not in op], channels=16), half=True)
    assert kept(calls, "packed_gradient", 3) == torch.bfloat16
    assert kept(calls, "packed_second", 8) == torch.float32
    check(calls, {"packed", "packed_gradient"})
    calls = recorded(sample(DARTS_OPS, channels=8, edge=PartialChannels(2)), half=True)
    assert kept(calls, "partial_gradient", 4) == torch.bfloat16
    check(calls, set())


def test_dense_cells() -> None:
    calls = recorded(sample(NB201_OPS, channels=16, concat=False, pool_norm=False))
    assert calls.keys() == {"dense", "dense_gradient"}
    check(calls, {"dense"})


def test_entries() -> None:
    x, weight, scale = (torch.randn(size, dtype=torch.float64) for size in ((2, 3, 4, 32), (16, 32), (16,)))
    leaves = [t.requires_grad_() for t in (x, weight, scale, scale.clone())]
    with _Record() as record:
        out = ENTRY(*leaves, 1e-5)[0]
        g = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        torch.autograd.grad(g, leaves, [torch.ones_like(t) for t in g])
    assert record.calls.keys() == {"entry", "entry_gradient", "entry_second"}
    check(record.calls, {"entry", "entry_gradient"})


def test_rows() -> None:
    value, table = torch.randn(2, 4, 4, 3, dtype=torch.float64).permute(0, 3, 1, 2), torch.randn(1, 3).double()
    calls = {
        rows.MOMENTS: (value,),
        rows.WEIGHTED: ([value], table, table[0]),
        rows.DOTS: ([value], table, value),
        rows.MAPS: ([value], table, table, table, value, [True]),
    }
    for operator, args in calls.items():
        torch.library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))  # type: ignore[arg-type]
