"""Chains of convolutions on the kernels take the training step that torch takes: odd sizes, both precisions, any number of threads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from oche.fast.backends.native import kernels
from oche.fast.training import Quick
from oche.spaces.blocks import MBConv, Place
from oche.spaces.ops import OPS, ReLUConvBN
from unit.fast.steps import drawn, errors, quick, step

pytestmark = pytest.mark.skipif(kernels() is None, reason="no compiled kernels: modules stay as they are")

SHAPES = [(1, 7, 5), (3, 8, 9)]
"""Images, rows and columns: a single image, odd sides."""


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads instead of one."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def bottleneck(channels: int, stride: int, kernel: int = 3) -> nn.Sequential:
    """An inverted bottleneck to another number of channels."""
    wide = 3 * channels
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU6(),
        nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU6(),
        nn.Conv2d(wide, channels + 3, 1, bias=False),
        nn.BatchNorm2d(channels + 3, momentum=0.3, eps=1e-3),
    )


BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    **{
        name: lambda channels, stride, name=name: OPS[name](channels, stride, True)  # type: ignore[misc]
        for name in ("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5")
    },
    "bottleneck_3": bottleneck,
    "bottleneck_5": lambda channels, stride: bottleneck(channels, stride, 5),
    "stride_3": lambda channels, stride: (
        nn.Sequential(
            nn.Conv2d(channels, channels, 5, 3 * stride, 2, groups=channels, bias=False), nn.BatchNorm2d(channels)
        )
        if channels > 1
        else OPS["sep_conv_3x3"](channels, stride, True)
    ),
    "entry": lambda channels, stride: ReLUConvBN(channels, 2 * channels + 1, 1, 1, True),
}


@pytest.mark.parametrize("channels", [1, 7, 36])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", BUILDERS)
def test_the_same_step_in_double_precision(name: str, stride: int, channels: int) -> None:
    op = drawn(BUILDERS[name], channels, stride).double()
    own = quick(op)
    for batch, height, width in SHAPES:
        x = torch.randn(batch, channels, height, width, dtype=torch.float64) + 0.3
        for name, error in errors(step(own, x), step(op, x)).items():
            assert error < 1e-10, name
    torch.testing.assert_close(own.eval()(x), op.eval()(x))


@pytest.mark.parametrize("channels", [8, 36, 48])
@pytest.mark.parametrize("name", ["sep_conv_5x5", "dil_conv_3x3", "bottleneck_3", "entry"])
def test_single_precision_errs_no_more_than_torch(name: str, channels: int) -> None:
    op = drawn(BUILDERS[name], channels)
    x = torch.randn(4, channels, 12, 12) + 0.3
    exact = step(copy.deepcopy(op).double(), x.double())
    plain, own = errors(step(copy.deepcopy(op), x), exact), errors(step(quick(op), x), exact)
    for name, error in own.items():
        assert error <= 3 * plain[name] + 1e-6, name


def test_statistics_of_values_far_from_zero() -> None:
    """Variances about a mean a thousand times the deviation, which sums of squares lose in single precision."""
    op = nn.Sequential(nn.Conv2d(5, 5, 1, bias=False), nn.BatchNorm2d(5))
    nn.init.eye_(op[0].weight.view(5, 5).data)  # type: ignore[operator]
    x = torch.randn(4, 5, 9, 7) + 1000
    exact = step(copy.deepcopy(op).double(), x.double())
    assert errors(step(quick(op), x), exact)["1.running_var"] < 1e-5


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ["sep_conv_3x3", "bottleneck_5"])
def test_threads_change_nothing_but_roundings(name: str) -> None:
    op = drawn(BUILDERS[name], 7, 2).double()
    x = torch.randn(5, 7, 8, 9, dtype=torch.float64)
    two = step(quick(op), x)
    torch.set_num_threads(1)
    one = step(quick(op), x)
    assert torch.equal(one["out"], two["out"])
    assert max(errors(two, one).values()) < 1e-14


@pytest.mark.parametrize("se", [False, True])
def test_an_inverted_bottleneck_of_a_space(se: bool) -> None:
    op = drawn(lambda channels, stride: MBConv(Place(channels, channels, stride), 5, 3, se=se), 6).double()
    own = quick(op)
    chains = [part for m in own.modules() if isinstance(m, Quick) for part in m.parts if isinstance(part, tuple)]
    assert [len(chain) for chain in chains] == ([2, 1] if se else [3])
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    assert max(errors(step(own, x), step(op, x)).values()) < 1e-10


def test_what_is_no_number_stays_none() -> None:
    own = quick(nn.Sequential(nn.ReLU6(), nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)))
    x = torch.randn(2, 3, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    assert own.train()(x).isnan().any()


def test_a_part_that_does_not_learn_gets_no_gradient() -> None:
    op = drawn(BUILDERS["bottleneck_3"], 5).double()
    op.requires_grad_(False)
    own = quick(op)
    x = torch.randn(3, 5, 6, 6, dtype=torch.float64)
    assert max(errors(step(own, x), step(op, x)).values()) < 1e-10
    assert all(p.grad is None for p in own.parameters())


def test_an_image_that_asks_for_no_gradient() -> None:
    op = drawn(BUILDERS["sep_conv_3x3"], 5).double()
    own = quick(op)
    x = torch.randn(3, 5, 6, 6, dtype=torch.float64)
    for net in (op, own):
        (net.train()(x) ** 2).sum().backward()
    for a, b in zip(op.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-11)


def test_a_second_derivative_is_refused() -> None:
    own = quick(drawn(BUILDERS["entry"], 4))
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad((own.train()(x) ** 3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()  # type: ignore[no-untyped-call]


def test_one_value_per_channel_is_torch_s_to_refuse() -> None:
    own = quick(drawn(BUILDERS["sep_conv_3x3"], 4, 2))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        own.train()(torch.randn(1, 4, 2, 2))
