from __future__ import annotations

import copy
from statistics import median

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from oche.base import Draw
from oche.fast import cell as fast_cell
from oche.fast.backends.native import kernels
from oche.fast.kernels.entry import enter
from oche.spaces.darts import DARTS_OPS
from oche.spaces.edges import EdgeFactory, PartialChannels, WeightedSum
from oche.spaces.nb201 import NB201_OPS
from oche.spaces.ops import ReLUConvBN
from unit.fast.cells import assert_same, errors, fused, outcome, sample

MODES = [frozenset(m) for m in ({"w"}, {"theta"}, {"inputs"}, {"inputs", "w", "theta"})]
TIERS = ["portable", "kernels"]


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "portable":
        monkeypatch.setattr(fast_cell, "kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no compiler on this machine")
    return str(request.param)


@pytest.mark.parametrize("learns", MODES, ids=lambda m: "+".join(sorted(m)))
@pytest.mark.parametrize("stride", [1, 2])
def test_darts_cell_equals_the_plain_one(tier: str, learns: frozenset[str], stride: int) -> None:
    s = sample(DARTS_OPS, stride=stride)
    f = fused(s.cell)
    assert (f.tier == "kernels") == (tier == "kernels")
    assert_same(outcome(f, s, learns), outcome(s.cell, s, learns))


@given(
    ops=st.lists(st.sampled_from([*DARTS_OPS, "sep_conv_7x7", "noise"]), min_size=1, max_size=4, unique=True),
    channels=st.sampled_from([1, 3, 4, 8, 16, 20]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.sampled_from([1, 2, 4]),
    stride=st.sampled_from([1, 2]),
    affine=st.booleans(),
    learns=st.sampled_from(MODES),
    zeros=st.integers(0, 2**20 - 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
def test_random_depthwise_cells(
    ops: list[str],
    channels: int,
    size: tuple[int, int],
    batch: int,
    stride: int,
    affine: bool,
    learns: frozenset[str],
    zeros: int,
    seed: int,
) -> None:
    if batch * -(-size[0] // stride) * -(-size[1] // stride) < 4:
        batch = 4  # batch statistics of one or two values say nothing: their gradients are rounding errors
    if stride == 2 and channels == 1:
        channels = 2  # FactorizedReduce halves them
    s = sample(ops, channels=channels, size=size, batch=batch, stride=stride, affine=affine, seed=seed)
    with torch.no_grad():
        for i in range(s.w.numel()):
            if zeros >> (i % 20) & 1:
                s.w.view(-1)[i] = 0.0
    assert_same(outcome(fused(s.cell), s, learns), outcome(s.cell, s, learns), 1e-9)


@given(
    ops=st.lists(st.sampled_from([*NB201_OPS, "conv_7x1_1x7"]), min_size=1, max_size=4, unique=True),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    affine=st.booleans(),
    concat=st.booleans(),
    learns=st.sampled_from(MODES),
    compiled=st.booleans(),
)
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
def test_random_dense_cells(
    ops: list[str],
    channels: int,
    size: tuple[int, int],
    affine: bool,
    concat: bool,
    learns: frozenset[str],
    compiled: bool,
) -> None:
    s = sample(ops, channels=channels, size=size, affine=affine, concat=concat)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(fast_cell, "kernels", lambda: None)
        assert_same(outcome(fused(s.cell), s, learns), outcome(s.cell, s, learns))


@given(
    inputs=st.sampled_from([16, 48, 64, 96, 128]),
    outputs=st.sampled_from([16, 32, 48]),
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    affine=st.booleans(),
    learns=st.sampled_from([(True, True), (True, False), (False, True)]),
)
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
def test_entry_equals_the_module(
    inputs: int, outputs: int, batch: int, size: tuple[int, int], affine: bool, learns: tuple[bool, bool]
) -> None:
    compiled = kernels()
    if compiled is None:
        pytest.skip("no compiler on this machine")
    torch.manual_seed(0)
    module = ReLUConvBN(inputs, outputs, 1, 1, affine).double()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    x = torch.randn(batch, inputs, *size, dtype=torch.float64, requires_grad=learns[0])
    module.requires_grad_(learns[1])
    leaves = [t for t in (x, *module.parameters()) if t.requires_grad]
    results = []
    for out in (enter(module, x, compiled), module(x)):
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)])
        second = sum(t.square().sum() for t in results[-1][1:])
        results[-1] += torch.autograd.grad(second, leaves, retain_graph=True)
        results[-1] += torch.autograd.grad(out.sin().sum(), leaves)
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("learns", MODES, ids=lambda m: "+".join(sorted(m)))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("share", [2, 4])
def test_partial_channels(tier: str, share: int, stride: int, learns: frozenset[str]) -> None:
    s = sample(DARTS_OPS, channels=8, batch=4, stride=stride, edge=PartialChannels(share))
    f = fused(s.cell)
    assert (f.tier == "kernels") == (tier == "kernels")
    assert_same(outcome(f, s, learns), outcome(s.cell, s, learns))


@given(
    ops=st.lists(st.sampled_from([*DARTS_OPS, "sep_conv_7x7", "noise"]), min_size=1, max_size=4, unique=True),
    share=st.sampled_from([2, 3, 4, 8]),
    head=st.sampled_from([2, 3, 4, 8]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.sampled_from([1, 2, 4, 8]),
    stride=st.sampled_from([1, 2]),
    affine=st.booleans(),
    concat=st.booleans(),
    learns=st.sampled_from(MODES),
    zeros=st.integers(0, 2**20 - 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
def test_random_partial_cells(
    ops: list[str],
    share: int,
    head: int,
    size: tuple[int, int],
    batch: int,
    stride: int,
    affine: bool,
    concat: bool,
    learns: frozenset[str],
    zeros: int,
    seed: int,
) -> None:
    if batch * -(-size[0] // stride) * -(-size[1] // stride) < 4:
        batch = 4
    shape = {"channels": share * head, "size": size, "batch": batch, "stride": stride}
    s = sample(ops, **shape, affine=affine, edge=PartialChannels(share), seed=seed, concat=concat)  # type: ignore[arg-type]
    with torch.no_grad():
        for i in range(s.w.numel()):
            if zeros >> (i % 20) & 1:
                s.w.view(-1)[i] = 0.0
    assert_same(outcome(fused(s.cell), s, learns), outcome(s.cell, s, learns), 1e-9)


@pytest.mark.parametrize("edge", [WeightedSum(), PartialChannels(4)], ids=["all", "partial"])
def test_single_precision_is_as_good_as_the_plain_cell(tier: str, edge: EdgeFactory) -> None:
    """Medians over five cells: one batch norm with a scale near zero makes any single one jump."""
    plain: dict[str, list[float]] = {}
    mine: dict[str, list[float]] = {}
    for seed in range(5):
        s = sample(DARTS_OPS, channels=16, size=(8, 8), batch=4, seed=seed, edge=edge)
        exact = outcome(copy.deepcopy(s.cell), s)
        for errors_of, cell in ((plain, copy.deepcopy(s.cell)), (mine, fused(s.cell))):
            for name, error in errors(outcome(cell, s, dtype=torch.float32), exact).items():
                errors_of.setdefault(name, []).append(error)
    for name, found in mine.items():
        assert median(found) < 3 * median(plain[name]) + 1e-6, (name, found, plain[name])


def test_only_w_learns_and_the_rest_keeps_no_gradient(tier: str) -> None:
    s = sample(DARTS_OPS)
    assert set(outcome(fused(s.cell), s, frozenset({"w"}))) == {"out", "w"}
    assert set(outcome(fused(s.cell), s, frozenset())) == {"out"}


@pytest.mark.parametrize("ops", [("skip_connect", "sep_conv_3x3"), ("max_pool_3x3", "dil_conv_3x3", "avg_pool_3x3")])
@pytest.mark.parametrize(
    ("share", "stride", "size"), [(1, 1, (4, 3)), (2, 1, (4, 3)), (2, 2, (4, 3)), (1, 1, (18, 16))]
)
def test_second_derivative(tier: str, ops: tuple[str, ...], share: int, stride: int, size: tuple[int, int]) -> None:
    """The last size is more than one stretch of `CHUNK_BYTES`."""
    s = sample(ops, channels=4, size=size, stride=stride, edge=PartialChannels(share))
    s.cell.requires_grad_(False)
    cells = fused(s.cell), s.cell

    def second(cell: nn.Module) -> list[torch.Tensor]:
        w = s.w.clone().requires_grad_()
        theta = [p.requires_grad_() for p in cell.parameters()]
        out = cell.mixed(s.inputs, w, Draw(3))  # type: ignore[operator]
        g = torch.autograd.grad(out.sin().sum(), theta, create_graph=True)
        return list(torch.autograd.grad([t.sin().sum() for t in g], [w, *theta], materialize_grads=True))

    mine, wanted = second(cells[0]), second(cells[1])
    scale = max(float(t.abs().max()) for t in wanted)
    for got, t in zip(mine, wanted, strict=True):
        torch.testing.assert_close(got, t, rtol=1e-8, atol=1e-10 * scale)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("share", [1, 2])
def test_gradcheck(tier: str, stride: int, share: int) -> None:
    ops = ("skip_connect", "sep_conv_3x3", "avg_pool_3x3")
    s = sample(ops, channels=2 * share, size=(4, 3), stride=stride, edge=PartialChannels(share))
    f = fused(s.cell).requires_grad_(False)
    inputs = [x.clone().requires_grad_() for x in s.inputs]
    w = s.w.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, w: f.mixed((a, b), w, Draw(3)), (*inputs, w), fast_mode=True)


def test_gradgradcheck(tier: str) -> None:
    s = sample(("skip_connect", "sep_conv_3x3"), channels=2, size=(3, 3))
    f = fused(s.cell).requires_grad_(False)
    inputs = [x.clone().requires_grad_() for x in s.inputs]
    w = s.w.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a, b, w: f.mixed((a, b), w, Draw(3)), (*inputs, w), fast_mode=True)


def test_other_weights_by_functional_call(tier: str) -> None:
    s = sample(DARTS_OPS)
    f = fused(s.cell)

    class Mixed(nn.Module):
        def __init__(self, cell: nn.Module) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, w: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.cell.mixed(s.inputs, w, Draw(3))  # type: ignore[operator]
            return out

    theta = {name: torch.rand_like(p) for name, p in Mixed(s.cell).named_parameters()}
    got = torch.func.functional_call(Mixed(f), theta, (s.w,))
    wanted = torch.func.functional_call(Mixed(s.cell), theta, (s.w,))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_any_memory_format(tier: str, memory: torch.memory_format) -> None:
    s = sample(DARTS_OPS)
    wanted = outcome(s.cell, s)
    f = fused(s.cell)
    turned = copy.copy(s)
    object.__setattr__(turned, "inputs", tuple(x.contiguous(memory_format=memory) for x in s.inputs))
    assert_same(outcome(f, turned), wanted)
    strided = tuple(torch.cat([x, x], dim=3)[..., : x.shape[3]] for x in s.inputs)
    object.__setattr__(turned, "inputs", strided)
    assert_same(outcome(f, turned), wanted)


def test_number_of_threads_changes_rounding_only() -> None:
    if kernels() is None:
        pytest.skip("no compiler on this machine")
    s = sample(DARTS_OPS, batch=6)
    f = fused(s.cell)
    before = torch.get_num_threads()
    one = outcome(f, s)
    try:
        torch.set_num_threads(3)
        three, again = outcome(f, s), outcome(f, s)
    finally:
        torch.set_num_threads(before)
    assert_same(three, one, 1e-12)
    assert all(torch.equal(t, again[name]) for name, t in three.items())


def test_a_buffer_in_use_is_not_lent_again() -> None:
    """Two forwards before the first backward, and a backward twice over the same graph."""
    s = sample(DARTS_OPS)
    f = fused(s.cell)
    w = s.w.clone().requires_grad_()
    first = f.mixed(s.inputs, w, Draw(3)).square().sum()
    second = f.mixed([2 * x + 1 for x in s.inputs], w, Draw(3)).square().sum()
    (a,) = torch.autograd.grad(first, w, retain_graph=True)
    (b,) = torch.autograd.grad(first, w)
    torch.autograd.grad(second, w)
    wanted = torch.autograd.grad(s.cell.mixed(s.inputs, w, Draw(3)).square().sum(), w)[0]
    torch.testing.assert_close(a, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(b, wanted, rtol=1e-9, atol=1e-9)


def test_half_precision_autocast(tier: str) -> None:
    """The error stays of the size that bfloat16 has; `test_kept.py` has what the kernels do."""
    s = sample(DARTS_OPS, channels=8, size=(8, 8), batch=4)
    plain, f = s.cell.float(), fused(s.cell).float()
    inputs, w = [x.float() for x in s.inputs], s.w.float()
    exact = plain.mixed(inputs, w, Draw(3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        off = [
            float((c.mixed(inputs, w, Draw(3)).float() - exact.detach()).norm() / exact.detach().norm())
            for c in (f, plain)
        ]
    assert off[0] < 1.5 * off[1] + 1e-3


def test_a_cell_of_nothing_is_zero(tier: str) -> None:
    s = sample(("none",), stride=2)
    assert_same(outcome(fused(s.cell), s), outcome(s.cell, s))
    s = sample(("noise",), stride=2, channels=4, edge=PartialChannels(2))
    s.w.zero_()
    assert_same(outcome(fused(s.cell), s, frozenset({"inputs"})), outcome(s.cell, s, frozenset({"inputs"})))
    s = sample(("none", "sep_conv_3x3"), edge=WeightedSum())
    s.w.zero_()
    assert_same(outcome(fused(s.cell), s, frozenset({"inputs"})), outcome(s.cell, s, frozenset({"inputs"})))
