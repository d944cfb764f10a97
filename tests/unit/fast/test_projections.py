"""Projections on the kernels are torch's 1x1 convolutions of pixels, or of means of windows, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.fast.backends.native import kernels
from oche.fast.kernels.node import Term, joined
from oche.fast.kernels.projections import Projection, project, project_back, projection_of
from oche.spaces.blocks import Place
from oche.spaces.nb201 import ResidualReduction

CASES = {  # channels in and out, window, size
    "halved": (16, 32, (2, 2), (8, 8)),
    "cut windows": (8, 16, (2, 2), (7, 5)),
    "odd channels": (5, 7, (3, 2), (9, 4)),
    "along the width": (3, 19, (1, 2), (1, 33)),
    "every pixel": (17, 2, (1, 1), (3, 6)),
}


@pytest.mark.skipif(kernels() is None, reason="no compiled kernels")
@pytest.mark.parametrize("mean", [False, True], ids=["first pixels", "means"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_projection_and_its_gradients(
    case: tuple[int, int, tuple[int, int], tuple[int, int]], mean: bool, threads: int
) -> None:
    inputs, outputs, window, size = case
    conv = nn.Conv2d(inputs, outputs, 1, window, bias=False).double()
    x = torch.randn(3, inputs, *size, dtype=torch.float64, requires_grad=True)
    read = F.avg_pool2d(x, window, ceil_mode=True) if mean else x[:, :, :: window[0], :: window[1]]
    expected = F.conv2d(read, conv.weight)
    g = torch.randn_like(expected)
    dx, dweight = torch.autograd.grad(expected, (x, conv.weight), g)
    there = torch.randn_like(x)
    own, added = Projection(conv, window, mean), there.permute(0, 2, 3, 1).contiguous()
    pixels, flow = x.detach().permute(0, 2, 3, 1).contiguous(), g.permute(0, 2, 3, 1).contiguous()
    torch.set_num_threads(threads)
    try:
        found = project(own, pixels, conv.weight.detach())
        learnt = project_back(own, pixels, conv.weight.detach(), flow, added, True)
    finally:
        torch.set_num_threads(1)
    assert_alike(found.permute(0, 3, 1, 2), expected.detach())
    assert_alike(learnt, dweight)
    assert_alike(added.permute(0, 3, 1, 2), there + dx)


@pytest.mark.skipif(kernels() is None, reason="no compiled kernels")
def test_a_drop_path_s_factor_and_a_bias_reach_every_gradient() -> None:
    conv, factor = nn.Conv2d(6, 4, 1, 2).double(), torch.tensor([0.0, 2.5], dtype=torch.float64)
    x = torch.randn(2, 6, 4, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    found = joined([Term(x, factor=factor, projection=Projection(conv, (2, 2)))])
    expected = conv(x) * factor.view(-1, 1, 1, 1)
    assert_alike(found.detach(), expected.detach())
    g = torch.randn_like(expected)
    inputs = (x, conv.weight, conv.bias)
    for own, plain in zip(torch.autograd.grad(found, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True):
        assert_alike(own, plain)


def test_what_is_a_projection() -> None:
    short = ResidualReduction(4, 8).short
    assert projection_of(short, 7, 5) == (short[1], (2, 2), True)  # type: ignore[index]
    shortcut = Place(4, 8, 2, bias=True).shortcut()
    assert projection_of(shortcut, 7, 5) == (shortcut, (2, 2), False)
    pool, conv = nn.AvgPool2d(2), nn.Conv2d(4, 8, 1)
    assert projection_of(nn.Sequential(pool, conv), 8, 6) is not None
    for other, height in [
        (nn.Sequential(pool, conv), 7),  # rows are left out
        (nn.Sequential(nn.AvgPool2d(3, 2), conv), 9),
        (nn.Sequential(nn.AvgPool2d(2, padding=1), conv), 8),
        (nn.Sequential(nn.AvgPool2d(2, divisor_override=3), conv), 8),
        (nn.Sequential(pool, nn.Conv2d(4, 8, 1, 2)), 8),
        (nn.Sequential(nn.MaxPool2d(2), conv), 8),
        (nn.Conv2d(4, 8, 1, groups=2), 8),
        (nn.Conv2d(4, 8, 3), 8),
    ]:
        assert projection_of(other, height, 6) is None


def assert_alike(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
