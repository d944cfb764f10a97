"""The finite difference of second order against the exact product."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from oche.search.bilevel import FiniteDifference, Unrolled
from oche.spaces.edges import WeightedSum
from oche.spaces.networks import Supernet
from unit.fast.networks import SPACE, arch_gradient


def network() -> Supernet:
    torch.manual_seed(0)
    return SPACE.supernet(WeightedSum(), affine=False).double()


def smooth(module: nn.Module) -> nn.Module:
    """The same with softplus in place of ReLU and average pools in place of max pools: differentiable everywhere."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.Softplus())
        elif isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
        else:
            smooth(child)
    return module


def errors(net: Supernet, radii: list[float]) -> list[float]:
    """Errors of the finite difference with each radius, relative to the exact architecture gradient."""
    exact = arch_gradient(copy.deepcopy(net), Unrolled())
    found = [arch_gradient(copy.deepcopy(net), FiniteDifference(radius)) for radius in radii]
    wanted = torch.cat([t.flatten() for t in exact.values()])
    return [float((torch.cat([t.flatten() for t in got.values()]) - wanted).norm() / wanted.norm()) for got in found]


@pytest.mark.slow
def test_without_kinks_the_finite_difference_converges_as_the_square_of_its_radius() -> None:
    net = network()
    smooth(net)
    first, second, third = errors(net, [1e-1, 1e-2, 1e-3])
    assert third < 1e-6
    assert 80 < first / second < 120
    assert 80 < second / third < 120


@pytest.mark.slow
def test_with_kinks_it_does_not_before_no_unit_changes_sides() -> None:
    """A unit that does adds its jump over twice the step, more the smaller the step; the exact product, almost everywhere, sees none."""
    wide, narrow, none = errors(network(), [1e-2, 1e-3, 1e-6])
    assert narrow > wide > 0.1
    assert none < 1e-8
