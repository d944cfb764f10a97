"""Mixed precision: what stays in single precision under autocast, and how near the cells stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oche.ops import BatchNorm, batch_norm
from oche.spaces.darts import DARTS_OPS
from unit.fast.cells import sample


def test_statistics_of_bf16_values_are_in_single_precision() -> None:
    """Rounding the result to bf16 costs 2^-9 of a value at most; a mean and deviation in bf16 would cost as much again, and more."""
    torch.manual_seed(0)
    x = (3 + 0.1 * torch.randn(8, 4, 8, 8)).to(torch.bfloat16)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0, keepdim=True)
    wanted = (x.double() - mean) / (variance + 1e-5).sqrt()
    norm = sample(DARTS_OPS, affine=False).cell.edges["0-2"].ops["sep_conv_3x3"][7]  # type: ignore[union-attr, index]
    assert type(norm) is BatchNorm
    for got in (batch_norm(x, None, None, 1e-5), norm(x)):
        assert got.dtype == torch.bfloat16
        off = (got.double() - wanted).abs()
        assert bool((off <= 2**-8 * wanted.abs() + 1e-4).all()), float(off.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_precisions_are_torch_s_to_the_bit(dtype: torch.dtype) -> None:
    norm = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    mine = BatchNorm(4, affine=False, track_running_stats=False)
    x = torch.randn(2, 4, 5, 5, dtype=dtype)
    assert torch.equal(mine(x), norm(x))
    assert torch.equal(batch_norm(x, None, None, norm.eps), norm(x))
