from __future__ import annotations

import copy
from statistics import median

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from oche.base import Draw
from oche.fast import cell as fast_cell
from oche.fast.backends import buffers
from oche.fast.backends.buffers import Buffers
from oche.fast.backends.native import kernels
from oche.fast.kernels.dense import DenseLayout
from oche.spaces.nb201 import NB201_OPS
from unit.fast.cells import Sample, assert_same, errors, fused, outcome, sample

MODES = [frozenset(m) for m in ({"w"}, {"theta"}, {"inputs"}, {"inputs", "w", "theta"})]
TIERS = ["portable", "kernels"]


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "portable":
        monkeypatch.setattr(fast_cell, "kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no compiler on this machine")
    return str(request.param)


def nb201(**how: object) -> Sample:
    return sample(how.pop("ops", NB201_OPS), concat=False, pool_norm=False, **how)  # type: ignore[arg-type]


@given(
    ops=st.lists(st.sampled_from(NB201_OPS), min_size=1, max_size=5, unique=True),
    channels=st.sampled_from([1, 3, 8, 16, 20, 40]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.sampled_from([1, 2, 5]),
    affine=st.booleans(),
    learns=st.sampled_from(MODES),
    zeros=st.integers(0, 2**20 - 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
def test_random_nb201_cells_equal_the_plain_ones(
    ops: list[str],
    channels: int,
    size: tuple[int, int],
    batch: int,
    affine: bool,
    learns: frozenset[str],
    zeros: int,
    seed: int,
) -> None:
    if kernels() is None:
        pytest.skip("no compiler on this machine")
    if batch * size[0] * size[1] < 4:
        size = (2, 3)  # batch statistics of one or two values say nothing: their gradients are rounding errors
    s = nb201(ops=ops, channels=channels, size=size, batch=batch, affine=affine, seed=seed)
    with torch.no_grad():
        for i in range(s.w.numel()):
            if zeros >> (i % 20) & 1:
                s.w.view(-1)[i] = 0.0
    f = fused(s.cell)
    assert isinstance(f.layout, DenseLayout) == any("conv" in op for op in ops)
    assert_same(outcome(f, s, learns), outcome(s.cell, s, learns), 1e-9)


@pytest.mark.parametrize("learns", MODES, ids=lambda m: "+".join(sorted(m)))
@pytest.mark.parametrize("channels", [8, 16, 48])
def test_nb201_cells_equal_the_plain_ones(tier: str, channels: int, learns: frozenset[str]) -> None:
    s = nb201(channels=channels, size=(11, 8), batch=4)
    f = fused(s.cell)
    assert f.tier.startswith(tier)
    assert_same(outcome(f, s, learns), outcome(s.cell, s, learns))


@pytest.mark.parametrize("channels", [16, 64])
def test_single_precision_is_as_good_as_the_plain_cell(tier: str, channels: int) -> None:
    plain: dict[str, list[float]] = {}
    mine: dict[str, list[float]] = {}
    for seed in range(7):
        s = nb201(channels=channels, size=(8, 8), batch=4, seed=seed)
        exact = outcome(copy.deepcopy(s.cell), s)
        for errors_of, cell in ((plain, copy.deepcopy(s.cell)), (mine, fused(s.cell))):
            for name, error in errors(outcome(cell, s, dtype=torch.float32), exact).items():
                errors_of.setdefault(name, []).append(error)
    for name, found in mine.items():
        assert median(found) < 3 * median(plain[name]) + 1e-6, (name, found, plain[name])


class _Poison(Buffers):
    """Lends buffers full of NaN: whatever is read before it was written shows."""

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        return super().take(size, dtype).fill_(torch.nan)


@pytest.mark.parametrize("channels", [5, 16])
def test_nothing_is_read_before_it_was_written(channels: int) -> None:
    s = nb201(channels=channels, size=(7, 5), batch=4)
    f = fused(s.cell)
    f.pool = buffers._pools["cells"] = _Poison()
    assert_same(outcome(f, s), outcome(s.cell, s))


class _Convolutions(TorchDispatchMode):
    """Counts the convolutions that torch runs, forward."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def test_a_candidate_without_weight_does_not_run(tier: str) -> None:
    """One candidate an edge, as in GDAS: the others' weights are NaN, which would show in the output and in every gradient."""
    s = nb201(channels=8, size=(6, 6), batch=4)
    chosen = [NB201_OPS.index(op) for op in ("nor_conv_3x3", "avg_pool_3x3", "nor_conv_1x1", "none", "skip_connect")]
    s.w.zero_()
    s.w[range(5), chosen] = 1.0
    wanted = outcome(copy.deepcopy(s.cell), s, frozenset({"inputs"}))
    for e, edge in enumerate(s.cell.edges.values()):
        for o, op in enumerate(edge.ops.values()):  # type: ignore[union-attr, arg-type]
            for p in op.parameters() if o != chosen[e] else ():
                p.data.fill_(torch.nan)
    assert_same(outcome(fused(s.cell), s, frozenset({"inputs"})), wanted)
    with _Convolutions() as ran:
        fused(s.cell).mixed(s.inputs, s.w, Draw(3))
    assert ran.count == 2 + (2 if tier == "portable" else 0)  # the two entries; compiled ones do not pass by torch


def test_first_and_second_derivatives(tier: str) -> None:
    s = nb201(channels=2, size=(4, 3))
    f = fused(s.cell)
    inputs = [x.clone().requires_grad_() for x in s.inputs]
    w = s.w.clone().requires_grad_()
    theta = [p for p in f.parameters() if p.dim() == 4][-4:]
    names = {id(p): name for name, p in f.named_parameters()}

    def of(a: Tensor, b: Tensor, w: Tensor, *weights: Tensor) -> Tensor:
        class Mixed(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cell = f

            def forward(self) -> Tensor:
                return f.mixed((a, b), w, Draw(3))

        given = {f"cell.{names[id(p)]}": t for p, t in zip(theta, weights, strict=True)}
        out: Tensor = torch.func.functional_call(Mixed(), given, ())
        return out

    arguments = (*inputs, w, *[p.detach().clone().requires_grad_() for p in theta])
    assert torch.autograd.gradcheck(of, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(of, arguments, fast_mode=True)


def test_second_derivatives_are_those_of_the_plain_cell(tier: str) -> None:
    s = nb201(channels=3, size=(5, 4))

    def second(cell: torch.nn.Module) -> list[Tensor]:
        w = s.w.clone().requires_grad_()
        theta = list(cell.parameters())
        out = cell.mixed(s.inputs, w, Draw(3))  # type: ignore[operator]
        g = torch.autograd.grad(out.sin().sum(), theta, create_graph=True)
        return list(torch.autograd.grad([t.sin().sum() for t in g], [w, *theta], materialize_grads=True))

    mine, wanted = second(fused(s.cell)), second(s.cell)
    scale = max(float(t.abs().max()) for t in wanted)
    for got, t in zip(mine, wanted, strict=True):
        torch.testing.assert_close(got, t, rtol=1e-8, atol=1e-10 * scale)


def test_number_of_threads_changes_rounding_only() -> None:
    if kernels() is None:
        pytest.skip("no compiler on this machine")
    s = nb201(channels=16, batch=6)
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


def test_half_precision_keeps_statistics_and_op_weights_in_single() -> None:
    """Under autocast the convolutions run in bfloat16, whose error is the plain cell's; gradients of w are single precision."""
    s = nb201(channels=16, size=(8, 8), batch=4)
    plain, f = s.cell.float(), fused(s.cell).float()
    inputs = [x.float() for x in s.inputs]

    def run(cell: torch.nn.Module, half: bool) -> tuple[Tensor, Tensor]:
        w = s.w.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = cell.mixed(inputs, w, Draw(3))  # type: ignore[operator]
        (grad,) = torch.autograd.grad(out.float().square().sum(), w)
        assert grad.dtype == torch.float32
        return out.detach().float(), grad

    exact = run(plain, False)
    for got, reference, wanted in zip(run(f, True), run(plain, True), exact, strict=True):
        assert float((got - wanted).norm()) < 1.5 * float((reference - wanted).norm()) + 1e-3 * float(wanted.norm())
