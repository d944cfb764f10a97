"""Nodes of a grid on the kernels against plain ones: a whole supernet, its derivatives, both precisions."""

from __future__ import annotations

import copy

import pytest
import torch

from oche.base import Draw
from oche.fast import accelerate, coverage
from oche.fast.backends.native import kernels
from oche.spaces.edges import PartialChannels
from oche.spaces.grid import GridSpace
from oche.spaces.networks import Cell
from oche.training.memory import kept_bytes
from unit.fast.mixtures import apart, loss, pair, product, step

pytestmark = pytest.mark.skipif(kernels() is None, reason="no compiled kernels: cells stay as they are")


def space(**settings: object) -> GridSpace:
    given = {
        "channels": 3,
        "layers": 2,
        "levels": 3,
        "ops": ("mbconv_k3_e3", "mbconv_k5_e3", "skip_connect"),
        **settings,
    }
    return GridSpace(inputs=3, outputs=4, size=(24, 40), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "affine"),
    [
        ({}, False),
        ({}, True),
        ({"ops": ("mbconv_k3_e3", "mbconv_k3_e3_se")}, False),
        ({"channels": 5, "layers": 1, "ops": ("mbconv_k7_e6",), "reach": 2, "checkpoint": True}, False),
        ({"paths": 0.5}, False),
    ],
)
def test_the_same_step_in_double_precision(settings: dict[str, object], affine: bool) -> None:
    of = space(**settings)
    plain, own, w, x = pair(of, torch.float64, affine)
    assert all("plain" not in how for how in coverage(own).values())
    assert max(apart(step(own, w, x, of), step(plain, w, x, of)).values()) < 1e-10


def test_single_precision_errs_no_more_than_torch() -> None:
    plain, own, w, x = pair(space(), torch.float32)
    exact = step(copy.deepcopy(plain).double(), w.double(), x.double(), space())
    by_torch, here = apart(step(plain, w, x, space()), exact), apart(step(own, w, x, space()), exact)
    assert all(error <= 3 * by_torch[name] + 1e-5 for name, error in here.items())


def test_alpha_alone_has_its_gradient_and_frozen_weights_none() -> None:
    plain, own, w, x = pair(space(), torch.float64)
    for net in (plain, own):
        net.requires_grad_(False)
    found, exact = step(own, w, x, space()), step(plain, w, x, space())
    assert set(found) == {"loss", "w", "x"}
    assert max(apart(found, exact).values()) < 1e-10


def test_a_second_derivative_is_that_of_torch() -> None:
    """A product with the Hessian in the op weights and one node's weights."""
    of = space(layers=1)
    plain, own, w, x = pair(of, torch.float64)
    for found, exact in zip(product(own, w, x, of), product(plain, w, x, of), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)


def test_less_is_kept_and_it_is_counted() -> None:
    """Per chain two wide tensors instead of six; no less is counted, though buffers go back to a pool."""
    given: dict[str, object] = {"channels": 4, "layers": 1, "levels": 2, "ops": ("mbconv_k3_e6",), "head": "topdown"}
    plain, own, w, x = pair(space(**given), torch.float32)
    first, second = (
        kept_bytes(lambda net=net: loss(net, w, x, space(**given)), net.parameters())  # type: ignore[misc]
        for net in (plain, own)
    )
    wide = 4 * 6 * 2 * (4 * 6 * 10 + 8 * 3 * 5)  # bytes of six times the channels at strides 4 and 8, of two images
    assert 2 * wide < second < first - 3.5 * wide


def test_under_autocast_a_node_computes_in_single_precision() -> None:
    _, own, w, _ = pair(space(channels=4, layers=1, ops=("mbconv_k3_e3",)), torch.float32)
    cell, draw = next(iter(own.body.cells.values())), Draw(0, 0, "weight", 0.0, {})
    assert isinstance(cell, Cell)
    x = torch.randn(2, 4, 6, 10).bfloat16().contiguous(memory_format=torch.channels_last)
    exact = cell.mixed([x.float()], w, draw)
    with torch.autocast("cpu", torch.bfloat16):
        found = cell.mixed([x], w, draw)
    assert torch.equal(found, exact)


def test_other_cells_stay_plain() -> None:
    of = space(channels=4)
    supernet = accelerate(of.supernet(PartialChannels(K=2), affine=False))
    assert all(how.startswith("plain") for how in coverage(supernet).values())
