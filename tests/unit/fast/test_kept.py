"""Compiled cells under bf16 autocast: they compute in single precision, and keep in bfloat16 what their backward pass reads later."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oche.base import Draw
from oche.fast import cell as fast_cell
from oche.fast.backends.native import kernels
from oche.fast.kernels import packed_op, partial
from oche.fast.kernels.entry import enter
from oche.fast.kernels.layout import Layout
from oche.fast.kernels.packed import Arguments, Lanes, planned, weights_of
from oche.spaces.darts import DARTS_OPS
from oche.spaces.edges import EdgeFactory, PartialChannels, WeightedSum
from oche.spaces.networks import Cell
from oche.spaces.ops import PoolBN, ReLUConvBN
from unit.fast.cells import Sample, assert_same, errors, fused, outcome, sample
from unit.fast.test_fused_cell import MODES
from unit.fast.test_second import product

pytestmark = pytest.mark.skipif(kernels() is None, reason="no compiler on this machine")

POOLS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect")
EDGES: list[EdgeFactory] = [WeightedSum(), PartialChannels(2)]


class Half(nn.Module):
    """A fused cell under autocast, but for its entries of three channels, which torch would compute in bfloat16."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = fused(cell).float()

    def mixed(self, inputs: list[Tensor], w: Tensor, draw: Draw) -> Tensor:
        def exact(entry: nn.Module, x: Tensor, _: object) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return entry(x)  # type: ignore[no-any-return]

        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            patch.setattr(fast_cell, "enter", exact)
            return self.cell.mixed([x.float() for x in inputs], w.float(), draw)


def in_half(s: Sample, learns: frozenset[str]) -> dict[str, Tensor]:
    """The `outcome` of the fused cell under autocast."""
    found = outcome(Half(s.cell), s, learns, torch.float32)  # type: ignore[arg-type]
    return {name.removeprefix("cell."): t for name, t in found.items()}


def rounding(s: Sample) -> Cell:
    """The plain cell in double precision, in which batch norms of products see them rounded, with the statistics of the unrounded ones."""
    cell = copy.deepcopy(s.cell)

    def rounded(norm: nn.BatchNorm2d, seen: tuple[Tensor], _: Tensor) -> Tensor:
        variance, mean = torch.var_mean(seen[0], (0, 2, 3), correction=0, keepdim=True)
        nearest = seen[0] + (seen[0].to(torch.bfloat16).double() - seen[0]).detach()
        scale, shift = (1.0, 0.0) if not norm.affine else (t.view(-1, 1, 1) for t in (norm.weight, norm.bias))
        return scale * (nearest - mean) / (variance + norm.eps).sqrt() + shift

    for edge in cell.edges.values():
        for op in edge.ops.values():  # type: ignore[union-attr, operator]
            for module in [] if isinstance(op, PoolBN) else op.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.register_forward_hook(rounded)
    return cell


def arguments(s: Sample, chosen: Callable[[str], bool]) -> Arguments:
    """Those of the cell's first edge with some of its candidates, its states taken as they are."""
    cell = fused(s.cell).float()
    layout = cell.layout
    assert isinstance(layout, Layout)
    names = list(cell.edges["0-2"].ops)  # type: ignore[union-attr, arg-type]
    units = [unit for unit in layout.units if unit.edge == 0 and chosen(names[unit.column])]
    states = [x.float() for x in s.inputs]
    place = Lanes.of(*states[0].shape[:2])
    table, plan, extra = planned(layout, units, False, place, states[0], s.w, Draw(3))
    weights = weights_of(layout, units, None, place, states[0])
    return Arguments(
        table, list(plan), layout.eps, s.w.float(), *weights, [place.image(h.detach()) for h in states], extra
    )


# ------------------------------------------------------------------ rounding


@pytest.mark.parametrize(
    ("op", "stride"), [("dil_conv_3x3", 1), ("dil_conv_5x5", 2), ("sep_conv_5x5", 1), ("skip_connect", 2)]
)
@pytest.mark.parametrize("channels", [16, 32, 48, 20, 4])
def test_what_is_kept_is_rounded_as_torch_rounds(op: str, channels: int, stride: int) -> None:
    """A product of the cell's input; the second one of a separable convolution already reads a rounded one."""
    torch.manual_seed(0)
    s = sample(DARTS_OPS, channels=channels, stride=stride, batch=4)
    s = replace(s, inputs=tuple(100 * torch.randn(4, channels, 9, 7).double() for _ in range(2)))  # type: ignore[arg-type]
    given = arguments(s, lambda name: name == op)
    plane = given.plan.kept // (2 if op == "sep_conv_5x5" else 1)
    (_, half, *narrow), (_, whole, *wide) = (packed_op.PACKED(t, *given) for t in (torch.bfloat16, torch.float32))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half[:plane], whole[:plane].to(torch.bfloat16))
    assert len(half) == len(whole) == given.plan.kept
    for t, wanted in zip(narrow, wide, strict=True):
        assert torch.equal(t[0], wanted[0])  # statistics are of what was not rounded yet


def test_ties_overflow_and_what_is_no_number() -> None:
    """Taps and matrix that pass the input on, but for three: one of infinities, two of what is no number."""
    s = sample(DARTS_OPS, channels=16)
    s = replace(s, inputs=(torch.zeros(2, 16, 9, 8),) * 2)
    given = arguments(s, lambda name: name == "dil_conv_3x3")
    depth, point = torch.zeros_like(given.depth).view(9, 16), torch.eye(16)
    depth[4] = 1.0
    point[0, 7] = torch.inf
    point[0, 8:10] = torch.tensor([0x7FC00000, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    bits = torch.randint(0, 0x7F80, (2 * 9 * 8 * 16,), dtype=torch.int32) << 16
    ends = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    values = (bits + ends[torch.arange(len(bits)) % 6]).view(torch.float32).view(2, 9, 8, 16)
    given = given._replace(depth=depth.flatten(), point=point[None], states=[values, values])
    half, whole = (packed_op.PACKED(t, *given)[1] for t in (torch.bfloat16, torch.float32))
    assert torch.equal(half.isnan(), whole.isnan())
    assert bool(half.isnan().any())
    assert bool(half.isinf().any())
    assert torch.equal(half[~half.isnan()], whole.to(torch.bfloat16)[~half.isnan()])


# ------------------------------------------------------------------ values and gradients


@given(
    ops=st.lists(st.sampled_from([*DARTS_OPS, "sep_conv_7x7", "noise"]), min_size=1, max_size=4, unique=True),
    channels=st.sampled_from([4, 6, 8, 16, 20]),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    batch=st.sampled_from([1, 2, 4]),
    stride=st.sampled_from([1, 2]),
    edge=st.sampled_from(EDGES),
    affine=st.booleans(),
    learns=st.sampled_from(MODES),
    zeros=st.integers(0, 2**20 - 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
def test_random_cells(
    ops: list[str],
    channels: int,
    size: tuple[int, int],
    batch: int,
    stride: int,
    edge: EdgeFactory,
    affine: bool,
    learns: frozenset[str],
    zeros: int,
    seed: int,
) -> None:
    """Against the plain cell that rounds: outputs to two roundings. A ReLU that is open here and closed there is seen in gradients."""
    if batch * -(-size[0] // stride) * -(-size[1] // stride) < 32:
        batch, size = 4, (max(size[0], 5), max(size[1], 5))
    depthwise = [*ops, "dil_conv_5x5"] if "dil_conv_5x5" not in ops else ops
    s = sample(depthwise, channels=channels, size=size, batch=batch, stride=stride, affine=affine, seed=seed, edge=edge)
    with torch.no_grad():
        for i in range(s.w.numel()):
            if zeros >> (i % 20) & 1:
                s.w.view(-1)[i] = 0.0
    off = errors(in_half(s, learns), outcome(rounding(s), s, learns))
    assert off.pop("out") < 2**-7
    assert all(error < 0.1 for error in off.values()), off


@pytest.mark.parametrize("edge", EDGES, ids=["all", "partial"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_rounded_terms(edge: EdgeFactory, stride: int) -> None:
    """In the median of five cells: what is left is that a deviation is of rounded terms in its gradient and of unrounded ones here."""
    found: dict[str, list[float]] = {}
    for seed in range(5):
        s = sample(DARTS_OPS, channels=16, size=(8, 8), batch=4, seed=seed, edge=edge, stride=stride)
        for name, error in errors(in_half(s, MODES[-1]), outcome(rounding(s), s)).items():
            found.setdefault(name, []).append(error)
    assert all(median(some) < 2**-9 for some in found.values()), found


def test_pools_and_skips_are_exact() -> None:
    """The gradient of a maximum goes where it goes in single precision: nothing is rounded where no product is kept."""
    s = sample((*POOLS, "dil_conv_3x3"), channels=16, size=(9, 8), batch=4)
    s.w[:, 3] = 0.0
    wanted = outcome(fused(s.cell), s, frozenset({"inputs", "theta"}), torch.float32)
    assert all(torch.equal(t, wanted[name]) for name, t in in_half(s, frozenset({"inputs", "theta"})).items())


def test_output_is_nearer_than_the_portable_tier_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable tier rounds inputs and weights of every product too."""
    s = sample(DARTS_OPS, channels=16, size=(8, 8), batch=4)
    wanted = outcome(s.cell, s, frozenset())["out"]
    mine = in_half(s, frozenset())["out"]
    assert mine.dtype == torch.float32
    monkeypatch.setattr(fast_cell, "kernels", lambda: None)
    other = in_half(s, frozenset())["out"]
    assert float((mine - wanted).norm()) < 0.7 * float((other - wanted).norm())


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize(("edge", "most"), list(zip(EDGES, (0.5, 0.7), strict=True)), ids=["all", "partial"])
def test_half_of_the_memory(edge: EdgeFactory, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial cell's pools and heads stay in single precision."""
    kept: list[Tensor] = []

    def spy(name: str, dtype: torch.dtype, *passed: object) -> None:
        assert isinstance(passed[9], Tensor)
        kept.append(passed[9])
        invoke(name, dtype, *passed)

    invoke = packed_op.invoke
    for module in (packed_op, partial):
        monkeypatch.setattr(module, "invoke", spy)
    s = sample(DARTS_OPS, channels=32, size=(8, 8), edge=edge)
    in_half(s, frozenset())
    outcome(fused(s.cell), s, frozenset(), torch.float32)
    half, whole = kept
    assert half.dtype == torch.bfloat16
    assert whole.dtype == torch.float32
    assert 0.5 <= half.numel() * half.itemsize / (whole.numel() * whole.itemsize) <= most


def test_double_precision_is_kept_whole() -> None:
    s = sample(DARTS_OPS)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(fused(s.cell), s)
    assert_same(got, outcome(s.cell, s))


@pytest.mark.parametrize("edge", EDGES, ids=["all", "partial"])
def test_recomputed_cells_and_a_graph_that_is_kept(edge: EdgeFactory) -> None:
    """Both give the same gradients to the bit."""
    s = sample(DARTS_OPS, channels=16, edge=edge)
    half = Half(s.cell)
    inputs, w = [x.float() for x in s.inputs], s.w.float().requires_grad_()
    leaves = [w, *half.parameters()]

    def loss(again: bool) -> Tensor:
        run = (
            half.mixed(inputs, w, Draw(3))
            if not again
            else checkpoint(half.mixed, inputs, w, Draw(3), use_reentrant=False)
        )
        return run.square().sum()  # type: ignore[no-any-return, union-attr]

    kept = loss(False)
    with torch.autocast("cpu", torch.bfloat16):
        first = torch.autograd.grad(kept, leaves, create_graph=True)
    for other in (torch.autograd.grad(kept, leaves), torch.autograd.grad(loss(True), leaves)):
        assert all(torch.equal(t, wanted) for t, wanted in zip(other, first, strict=True))


# ------------------------------------------------------------------ second derivatives


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("edge", EDGES, ids=["all", "partial"])
def test_second_derivative(edge: EdgeFactory, inside: bool) -> None:
    """The derivative of unrounded terms, along gradients of rounded ones. In the median of five, and also inside of autocast."""
    found: dict[str, list[float]] = {}
    for seed in range(5):
        s = sample(DARTS_OPS, channels=16, size=(8, 8), batch=4, seed=seed, edge=edge)
        wanted = product(s.cell, s, MODES[-1], seed)
        s = replace(s, inputs=tuple(x.float() for x in s.inputs), w=s.w.float())  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            got = product(Half(s.cell), s, MODES[-1], seed)  # type: ignore[arg-type]
        assert all(t.dtype == torch.float32 for t in got.values())
        for name, error in errors({k.removeprefix("cell."): t for k, t in got.items()}, wanted).items():
            found.setdefault(name, []).append(error)
    assert median(found.pop("out")) < 1e-5
    assert all(median(some) < 0.04 for some in found.values()), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_compute_in_single_precision(dtype: torch.dtype) -> None:
    """To the bit what they give without autocast, of an input that may come from a convolution in bfloat16."""
    torch.manual_seed(0)
    entry = ReLUConvBN(32, 16, 1, 1, True)
    for norm in entry.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    x = torch.randn(2, 32, 5, 4).to(dtype).requires_grad_()
    results = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = enter(entry, x if half else x.float(), kernels())
        results.append([out, *torch.autograd.grad(out.sin().sum(), [x, *entry.parameters()])])
    assert results[1][0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
