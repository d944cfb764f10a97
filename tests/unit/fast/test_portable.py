"""The plain-torch forms that stand in for torch's slower operators, against those operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oche.base import Draw
from oche.fast.portable.combine import _dot
from oche.fast.portable.depthwise import Geometry, depthwise, thinned
from oche.fast.portable.mixed import _average
from oche.spaces.edges import PartialChannels
from unit.fast.cells import assert_same, fused, outcome, sample


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 1), (2, 4, 1, 3), (3, 2, 2, 2)])
def test_the_average_pool_is_torchs_with_both_derivatives(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(_average(x), wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(_average, (x,))
    assert torch.autograd.gradgradcheck(_average, (x,))


@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("other", ["contiguous", "channels_last", "part"])
def test_dot_products_do_not_depend_on_the_memory_format(kind: torch.memory_format, other: str) -> None:
    torch.manual_seed(0)
    grad = torch.randn(3, 6, 50, 41, dtype=torch.float64).contiguous(memory_format=kind)
    value = torch.randn(3, 12, 50, 41, dtype=torch.float64)
    forms = {
        "contiguous": value[:, :6].contiguous(),
        "channels_last": value[:, :6].contiguous(memory_format=torch.channels_last),
        "part": value.contiguous(memory_format=torch.channels_last)[:, :6],
    }
    wanted = float((grad * value[:, :6]).sum())
    assert float(_dot(grad, forms[other], torch.float64)) == pytest.approx(wanted, rel=1e-10)


GEOMETRIES = [
    (k, Geometry((s, s), (p, p), (d, d)))
    for k in (3, 5, 7)
    for s, p, d in ((1, k // 2, 1), (1, 2 * (k // 2), 2), (2, k // 2, 1), (2, 2 * (k // 2), 2), (2, 3, 2), (3, 0, 1))
]


@pytest.mark.parametrize(("k", "geometry"), GEOMETRIES, ids=str)
def test_a_depthwise_convolution_is_torchs_with_both_derivatives(k: int, geometry: Geometry) -> None:
    """With odd and even sizes, kernels of one to three groups of columns, and on every d-th pixel where that is all it sees."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 14, 15, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(3, 1, k, k, dtype=torch.float64, requires_grad=True)

    def ours(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        if geometry.every > 1:
            return depthwise(thinned(x, geometry.every), taps, geometry.thinned())
        return depthwise(x, taps, geometry)

    def plain(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, taps, None, geometry.stride, geometry.padding, geometry.dilation, groups=3)

    results = []
    for function in (ours, plain):
        z = function(x, taps)
        first = torch.autograd.grad(z.sin().sum(), (x, taps), create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), (x, taps))
        results.append([z, *first, *second])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_only_what_sees_every_other_pixel_is_thinned() -> None:
    assert Geometry((2, 2), (4, 4), (2, 2)).every == 2
    assert Geometry((2, 2), (4, 4), (2, 2)).thinned() == Geometry((1, 1), (2, 2), (1, 1))
    for other in (Geometry((2, 2), (3, 3), (2, 2)), Geometry((1, 1), (4, 4), (2, 2)), Geometry((2, 1), (2, 2), (2, 1))):
        assert other.every == 1
        assert other.thinned() == other


@pytest.mark.parametrize("stride", [1, 2])
def test_partial_cells_hand_channels_last_on(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shuffle that falls back to NCHW costs every convolution of the next cells a copy."""
    monkeypatch.setattr("oche.fast.cell.kernels", lambda: None)
    s = sample(["sep_conv_3x3", "skip_connect"], channels=8, stride=stride, edge=PartialChannels(2))
    cell = fused(s.cell).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in s.inputs]
    out = cell.mixed(inputs, s.w, Draw(3))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, s.cell.mixed(s.inputs, s.w, Draw(3)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_inverted_bottlenecks_end_in_the_nodes_sum(stride: int) -> None:
    s = sample(["mbconv_k5_e3", "mbconv_k3_e3_se", "skip_connect"], channels=4, batch=4, stride=stride)
    assert_same(outcome(fused(s.cell), s), outcome(s.cell, s))
