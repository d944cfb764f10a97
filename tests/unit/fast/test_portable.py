"""The plain-torch forms that stand in for torch's slower operators, against those operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oche.fast.combine import _dot
from oche.fast.portable import _average


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
    """More values than one piece holds, and a last piece that is shorter."""
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
