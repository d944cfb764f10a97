"""Mixed precision: what stays in single precision under autocast, and how near the cells stay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from oche.base import Alpha, Draw, Group
from oche.fast import coverage
from oche.fast.backends.native import kernels
from oche.fast.portable.combine import Moments
from oche.methods.darts import darts
from oche.plan.machine import fabric_for
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import gradient
from oche.search.loop import search
from oche.search.relaxations import Softmax
from oche.search.state import Problem
from oche.spaces.darts import DARTS_OPS
from oche.spaces.edges import EdgeFactory, PartialChannels, WeightedSum
from oche.spaces.ops import BatchNorm, batch_norm
from reference.tiny import tiny_problem
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


# ------------------------------------------------------------------ searches

HALVES: list[tuple[str, dict[str, int], EdgeFactory]] = [
    ("nb201", {"cells": 1, "channels": 8}, WeightedSum()),
    ("darts", {"cells": 3, "channels": 8}, WeightedSum()),
    ("darts", {"cells": 3, "channels": 8}, PartialChannels(4)),
]
KINDS = ["nb201", "darts", "pcdarts"]


@pytest.fixture(params=["kernels", "portable"])
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiers in which the cells of a search run."""
    if request.param == "portable":
        monkeypatch.setattr("oche.fast.cell.kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no compiler on this machine")
    return str(request.param)


def problem_of(space: str, settings: dict[str, int], precision: str) -> Problem:
    problem = tiny_problem(space, batch=16, count=64, **settings)
    return replace(problem, fabric=fabric_for("cpu", precision=precision))


@dataclass(frozen=True)
class Seen(Softmax):
    """A softmax that notes what it is given and where it runs."""

    dtypes: list[torch.dtype] = field(default_factory=list)
    halves: list[bool] = field(default_factory=list)

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        w = super().__call__(alpha, group, draw)
        self.dtypes.append(w.dtype)
        self.halves.append(torch.is_autocast_enabled("cpu"))
        return w


def alpha_gradient(space: str, settings: dict[str, int], edge: EdgeFactory, precision: str, tier: str) -> Tensor:
    """Alpha's gradient of a fresh supernet's first outer loss, as one vector; alpha of unit variance, so that no gradient is near zero."""
    relaxation = Seen(scale=1.0)
    problem = problem_of(space, settings, precision)
    method = replace(darts(), edge=edge, relaxation=relaxation)
    state = begin(problem, method)
    assert all(said.startswith(tier) for said in coverage(state.supernet).values())
    weights, arch = streams(problem, method)
    loss = bilevel(state, method).outer(state.theta, state.alpha, StepBatches(weights, arch, 0).outer())
    grads = gradient(loss, state.alpha)
    assert loss.dtype == torch.float32
    assert {t.dtype for t in grads.values()} | set(relaxation.dtypes) == {torch.float32}
    assert not any(relaxation.halves)
    return torch.cat([t.flatten() for t in grads.values()])


@pytest.mark.slow
@pytest.mark.parametrize(("space", "settings", "edge"), HALVES, ids=KINDS)
def test_alpha_s_gradient_is_near_that_of_single_precision(
    space: str, settings: dict[str, int], edge: EdgeFactory, tier: str
) -> None:
    """To a fifth of its length: 0.06 to 0.12 here, and 0.04 to 0.14 in plain cells under autocast, whose ReLUs change their signs too."""
    wanted = alpha_gradient(space, settings, edge, "32", tier)
    got = alpha_gradient(space, settings, edge, "bf16", tier)
    assert float((got - wanted).norm() / wanted.norm()) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("space", "settings", "edge"), HALVES, ids=KINDS)
def test_a_search_in_bf16_ends(space: str, settings: dict[str, int], edge: EdgeFactory, tier: str) -> None:
    result = search(problem_of(space, settings, "bf16"), replace(darts(), edge=edge, arch_start=0.0))
    assert all(bool(t.isfinite().all()) and t.dtype == torch.float32 for t in result.state.alpha.values())
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in result.state.supernet.parameters())
    assert all(not torch.equal(rows[0], rows[-1]) for rows in result.state.trajectory.values())


@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last])
def test_a_fused_node_s_statistics_of_bf16_values_are_in_single_precision(kind: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (3 + 0.1 * torch.randn(8, 4, 8, 8)).to(torch.bfloat16).contiguous(memory_format=kind)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    with torch.autocast("cpu", torch.bfloat16):
        got = Moments(kernels()).of(x)
    for t, wanted in zip(got, (mean, variance), strict=True):
        assert t.dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(t.double(), wanted, rtol=1e-4, atol=0.0)
