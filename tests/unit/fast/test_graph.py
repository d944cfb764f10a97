"""Whole cells of a network as one operator take the training step that torch takes: chains, pools, identities, entries, drop path."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from oche.base import Draw, Group
from oche.fast import ordinary, quicken
from oche.fast.backends.native import kernels
from oche.fast.training import QuickCell
from oche.spaces.networks import Cell, Chosen, Paths
from oche.spaces.ops import OPS, FactorizedReduce, ReLUConvBN
from unit.fast.steps import errors

pytestmark = pytest.mark.skipif(kernels() is None, reason="no compiled kernels: modules stay as they are")

Edges = dict[tuple[int, int], str]

NORMAL: Edges = {(0, 2): "sep_conv_3x3", (1, 2): "skip_connect", (0, 3): "dil_conv_3x3", (2, 3): "max_pool_3x3"}
TANGLED: Edges = {
    **NORMAL,
    (1, 3): "avg_pool_3x3",
    (2, 4): "max_pool_3x3",
    (3, 4): "skip_connect",
    (1, 4): "skip_connect",
}
REDUCE: Edges = {
    (0, 2): "max_pool_3x3",
    (1, 2): "sep_conv_5x5",
    (0, 3): "max_pool_3x3",
    (1, 3): "avg_pool_5x5",
    (2, 3): "skip_connect",
}
OUTSIDE: Edges = {(0, 2): "skip_connect", (1, 2): "dil_conv_5x5", (1, 3): "conv_7x1_1x7", (2, 3): "avg_pool_3x3"}
CELLS: dict[str, tuple[Edges, int, bool]] = {  # edges, stride, nodes side by side
    "normal": (NORMAL, 1, True),
    "tangled": (TANGLED, 1, True),
    "tangled, last node": (TANGLED, 1, False),
    "reduction": (REDUCE, 2, True),
    "operations outside": (OUTSIDE, 2, True),
}


def cell_of(edges: Edges, stride: int, concat: bool, channels: int) -> Cell:
    """A cell of these operations in double precision, whose first entry is a chain and whose second one halves nothing."""
    torch.manual_seed(channels)
    group = Group("cell", tuple(sorted(edges)), tuple(tuple(OPS) for _ in edges), 2, ("cell",))
    steps = {edge: stride if edge[0] < 2 else 1 for edge in group.edges}
    ops = [Chosen(edges[e], OPS[edges[e]](channels, steps[e], True)) for e in group.edges]
    entries = [ReLUConvBN(channels + 3, channels, 1, 1, True), FactorizedReduce(5, channels, True)]
    cell = Cell(entries, group, ops, concat)
    for norm in cell.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -1.0, 2.0)
    return cell.double()


def inputs_of(channels: int, batch: int, height: int, width: int) -> list[Tensor]:
    """What the entries read; the second one halves its size."""
    return [
        torch.randn(batch, channels + 3, height, width, dtype=torch.float64) + 0.3,
        torch.randn(batch, 5, 2 * height - 1, 2 * width, dtype=torch.float64),
    ]


def step(cell: Cell, inputs: list[Tensor], factors: Mapping[int, Tensor] = {}) -> dict[str, Tensor]:
    """Output, gradients and running statistics of a training step."""
    given = [x.clone().requires_grad_() for x in inputs]
    out = cell.train()(given, Paths(Draw(0, 0, "train"), factors, False))
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    found = {"out": out.detach(), **{f"input {i}": x.grad for i, x in enumerate(given) if x.grad is not None}}
    found |= {f"gradient of {n}": p.grad for n, p in cell.named_parameters() if p.grad is not None}
    return found | {n: b.clone().double() for n, b in cell.named_buffers()}


def quick(cell: Cell) -> QuickCell:
    """A copy that runs as one operator."""
    own = copy.deepcopy(cell)
    quicken(own)
    assert isinstance(own, QuickCell)
    assert own.graph is not None
    return own


def drops(cell: Cell, batch: int) -> dict[int, Tensor]:
    """A factor for each image of each edge."""
    return {e: (torch.rand(batch, 1, 1, 1) > 0.3).double() / 0.7 for e in sorted(cell.numbers())}


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads instead of one."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("channels", [2, 8, 21])
@pytest.mark.parametrize("name", CELLS)
def test_the_same_step_in_double_precision(name: str, channels: int) -> None:
    edges, stride, concat = CELLS[name]
    cell = cell_of(edges, stride, concat, channels)
    own = quick(cell)
    for batch, height, width in [(1, 7, 6), (3, 8, 9)]:
        inputs = inputs_of(channels, batch, height, width)
        for factors in ({}, drops(cell, batch)):
            for part, error in errors(step(own, inputs, factors), step(cell, inputs, factors)).items():
                assert error < 1e-10, part
            own.zero_grad(), cell.zero_grad()
    paths = Paths(None, {}, False)
    torch.testing.assert_close(own.eval()(inputs, paths), cell.eval()(inputs, paths))


@pytest.mark.parametrize("name", ["tangled", "reduction"])
def test_single_precision_errs_no_more_than_torch(name: str) -> None:
    cell = cell_of(*CELLS[name], channels=12)
    inputs = inputs_of(12, 4, 10, 10)
    exact = step(copy.deepcopy(cell), inputs)
    alone = [x.float() for x in inputs]
    plain, own = (errors(step(one.float(), alone), exact) for one in (copy.deepcopy(cell), quick(cell)))
    for part, error in own.items():
        assert error <= 3 * plain[part] + 1e-6, part


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ["tangled", "reduction"])
def test_threads_change_nothing_but_roundings(name: str) -> None:
    cell = cell_of(*CELLS[name], channels=7)
    inputs = inputs_of(7, 5, 8, 9)
    two = step(quick(cell), inputs)
    torch.set_num_threads(1)
    one = step(quick(cell), inputs)
    assert torch.equal(one["out"], two["out"])
    assert max(errors(two, one).values()) < 1e-13


def test_a_cell_whose_weights_or_inputs_do_not_learn() -> None:
    cell = cell_of(*CELLS["tangled"], channels=6)
    inputs = inputs_of(6, 2, 6, 6)
    cell.requires_grad_(False)
    own = quick(cell)
    assert max(errors(step(own, inputs), step(cell, inputs)).values()) < 1e-10
    assert all(p.grad is None for p in own.parameters())
    for one in (cell, own):
        one.requires_grad_(True)
        one(inputs, Paths(None, {}, False)).square().sum().backward()
    for a, b in zip(cell.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-11)


def test_the_first_of_equal_maxima_takes_the_gradient() -> None:
    """Whole numbers, so that windows have several maxima; one is no number, and is handed on."""
    cell = cell_of(
        {(0, 2): "max_pool_3x3", (1, 2): "sep_conv_3x3", (0, 3): "max_pool_5x5", (2, 3): "max_pool_3x3"}, 2, True, 6
    )
    cell.entries[0] = nn.Identity()
    own = quick(cell)
    inputs = inputs_of(6, 2, 9, 8)
    inputs[0] = torch.randint(0, 3, (2, 6, 9, 8)).double()
    assert max(errors(step(own, inputs), step(cell, inputs)).values()) < 1e-10
    inputs[0][0, 0, 3, 3] = float("nan")
    paths = Paths(None, {}, False)
    assert torch.equal(own(inputs, paths).isnan(), cell(inputs, paths).isnan())


def test_a_cell_that_the_kernels_do_not_know_runs_node_by_node() -> None:
    cell = cell_of({(0, 2): "sep_conv_3x3", (2, 3): "conv_7x1_1x7", (1, 3): "sep_conv_3x3"}, 1, True, 4)
    own = copy.deepcopy(cell)
    quicken(own)
    assert isinstance(own, QuickCell)
    assert own.graph is None
    inputs = inputs_of(4, 3, 7, 6)
    assert max(errors(step(own, inputs), step(cell, inputs)).values()) < 1e-10
    ordinary(own)
    assert type(own) is Cell
