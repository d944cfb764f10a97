"""The 1x1 convolution of every second pixel: torch's own with stride 2 in value and derivatives, without its fault."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from oche.spaces.ops import Halving


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_it_is_a_1x1_convolution_of_stride_2(size: tuple[int, int]) -> None:
    conv = Halving(3, 5).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64).requires_grad_()
    got, want = conv(x), F.conv2d(x, conv.weight, stride=2)
    torch.testing.assert_close(got, want)
    along = torch.randn_like(want)
    for one, other in zip(
        torch.autograd.grad(got, (x, conv.weight), along),
        torch.autograd.grad(want, (x, conv.weight), along),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


FAULT = """
import torch
from oche.spaces.ops import Halving
torch.set_num_threads(1)
conv = Halving(4, 8).to(memory_format=torch.channels_last)
for _ in range(8):
    x = torch.randn(4, 4, 92, 120).to(memory_format=torch.channels_last)
    conv(x).sum().backward()
"""


@pytest.mark.slow
def test_its_gradient_stays_within_its_memory() -> None:
    """In a process of its own, which torch's convolution of stride 2 brings down."""
    assert subprocess.run([sys.executable, "-c", FAULT], check=False).returncode == 0
