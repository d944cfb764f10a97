"""Layers of a chain on the kernels against plain ones: a whole supernet, its derivatives, what runs beside them in torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from oche.base import Draw
from oche.fast import accelerate, coverage
from oche.fast.backends.native import kernels
from oche.fast.kernels.mixture import weighted_sum
from oche.fast.kernels.operations import known
from oche.spaces.blocks import Place, Residual
from oche.spaces.chain import CHAIN_OPS, ChainSpace
from oche.spaces.edges import PartialChannels
from oche.spaces.signals import SignalSpace
from unit.fast.mixtures import apart, loss, pair, product, step

pytestmark = pytest.mark.skipif(kernels() is None, reason="no compiled kernels: cells stay as they are")


def space(ops: tuple[str, ...] = CHAIN_OPS, size: tuple[int, int] = (10, 8), **settings: object) -> ChainSpace:
    given: dict[str, object] = {"channels": 3, "layers": (2, 2), "widths": (1, 2), "strides": (1, 2), **settings}
    return ChainSpace(inputs=3, outputs=4, size=size, ops=ops, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("of", "affine"),
    [
        (space(), False),
        (space(), True),
        (space(channels=5, layers=(1, 2), size=(9, 11)), True),
        (space((*CHAIN_OPS, "mbconv_k3_e3_se", "plain_3x3", "shuffle_3x3"), channels=4), True),
        (SignalSpace(inputs=3, outputs=4, size=(1, 40), channels=3, layers=(2, 1, 1)), False),
    ],
)
def test_the_same_step_in_double_precision(of: ChainSpace, affine: bool) -> None:
    plain, own, w, x = pair(of, torch.float64, affine)
    others = [op for op in of.ops if op not in CHAIN_OPS]
    wanted = f"nodes: {', '.join(others)} by PyTorch" if others else "kernels"
    assert of.flat or set(coverage(own).values()) == {wanted}
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
    of = space(layers=(1, 1))
    plain, own, w, x = pair(of, torch.float64)
    for found, exact in zip(product(own, w, x, of), product(plain, w, x, of), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("alone", [*range(len(CHAIN_OPS)), None])
def test_an_operation_of_weight_zero_does_not_run(alone: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a cell is scored with the weights of a supernet; where all are zero, so is the layer."""
    of = space(layers=(2,), widths=(1,), strides=(1,))
    plain, own, w, x = pair(of, torch.float64)
    w = torch.zeros_like(w)
    if alone is not None:
        w[:, alone] = 0.7
    seen = list[int]()
    monkeypatch.setattr("oche.fast.cell.weighted_sum", lambda terms: seen.append(len(terms)) or weighted_sum(terms))  # type: ignore[func-returns-value]
    with torch.no_grad():
        torch.testing.assert_close(loss(own, w, x, of), loss(plain, w, x, of), rtol=1e-10, atol=1e-12)
    adds = alone is not None and CHAIN_OPS[alone].startswith("mbconv")  # its input, too
    assert seen == ([] if alone is None else [1 + adds] * 2)


class Minus(nn.Sequential):
    """What the kernels know, and something more."""

    def forward(self, x: Tensor) -> Tensor:
        return x - super().forward(x)  # type: ignore[no-any-return, no-untyped-call]


class Twice(Residual):
    """As Minus."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_an_operation_of_ones_own_with_known_parts_is_not_taken_for_a_chain() -> None:
    parts = (nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, track_running_stats=False))
    of_batch = Twice(Place(4, 4), 3, 4)
    of_batch.deep[1], of_batch.deep[4] = parts[1], copy.deepcopy(parts[1])
    known_ones = known({"sequence": nn.Sequential(*parts), "own": Minus(*parts), "block": of_batch})
    assert [op.by_torch for op in known_ones.values()] == [False, True, True]
    of_batch.__class__ = Residual  # type: ignore[assignment]
    assert not known({"block": of_batch})["block"].by_torch


def test_under_autocast_a_layer_computes_in_single_precision() -> None:
    _, own, w, _ = pair(space(), torch.float32)
    cell, draw = next(iter(own.body.cells.values())), Draw(0, 0, "weight", 0.0, {})
    x = torch.randn(2, 3, 10, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    exact: Tensor = cell.mixed([x.float()], w[:1], draw)  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16):
        found = cell.mixed([x], w[:1], draw)  # type: ignore[operator]
    assert torch.equal(found, exact)


def test_layers_that_mix_a_part_of_the_channels_are_not_whole_on_the_kernels() -> None:
    supernet = accelerate(space(channels=4).supernet(PartialChannels(K=2), affine=False))
    assert coverage(supernet)["stage1_layer2"].startswith("nodes: ")
