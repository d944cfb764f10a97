"""Second derivatives of the compiled cells against those of the plain cell, which torch differentiates twice by itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oche.base import Draw
from oche.fast import accelerate, coverage
from oche.fast.backends.native import kernels
from oche.fast.kernels import packed_op
from oche.search.bilevel import ArchGradient, FiniteDifference, Unrolled
from oche.spaces.darts import DARTS_OPS
from oche.spaces.edges import WeightedSum
from oche.spaces.networks import Cell
from unit.fast.cells import Sample, assert_same, fused, sample
from unit.fast.networks import SPACE, arch_gradient

pytestmark = pytest.mark.skipif(kernels() is None, reason="no compiler on this machine")

MODES = [
    frozenset(m)
    for m in ({"inputs", "w", "theta"}, {"theta", "w"}, {"inputs", "w"}, {"inputs", "theta"}, {"w"}, {"theta"})
]


def product(cell: Cell, s: Sample, learns: frozenset[str], seed: int) -> dict[str, Tensor]:
    """Gradients of <gradients of the cell, random directions> in everything that the gradients depend on."""
    inputs = [x.detach().requires_grad_("inputs" in learns) for x in s.inputs]
    w = s.w.detach().clone().requires_grad_("w" in learns)
    for p in cell.parameters():
        p.requires_grad_("theta" in learns)
    out = cell.mixed(inputs, w, Draw(3))
    rng = torch.Generator().manual_seed(seed)
    grad = torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out.dtype).requires_grad_()
    named = {"input 0": inputs[0], "input 1": inputs[1], "w": w, **dict(cell.named_parameters())}
    leaves = {name: t for name, t in named.items() if t.requires_grad}
    g = torch.autograd.grad(out, list(leaves.values()), grad, create_graph=True, materialize_grads=True)
    along = [torch.randn(t.shape, generator=rng, dtype=torch.float64).to(t.dtype) for t in g]
    found = torch.autograd.grad(g, [*leaves.values(), grad], along, materialize_grads=True)
    return dict(zip([*leaves, "out"], found, strict=True))


@pytest.mark.parametrize("learns", MODES, ids=lambda m: "+".join(sorted(m)))
@pytest.mark.parametrize("stride", [1, 2])
def test_darts_cell(learns: frozenset[str], stride: int) -> None:
    s = sample(DARTS_OPS, stride=stride)
    f = fused(s.cell)
    assert f.tier == "kernels"
    assert_same(product(f, s, learns, 0), product(s.cell, s, learns, 0), 1e-9)


@given(
    ops=st.lists(st.sampled_from([*DARTS_OPS[1:4], "noise"]), max_size=3, unique=True),
    depthwise=st.lists(st.sampled_from([*DARTS_OPS[4:], "sep_conv_7x7"]), min_size=1, max_size=3, unique=True),
    channels=st.sampled_from([2, 3, 4, 8, 16, 20]),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    batch=st.sampled_from([2, 4]),
    stride=st.sampled_from([1, 2]),
    affine=st.booleans(),
    concat=st.booleans(),
    learns=st.sampled_from(MODES),
    zeros=st.integers(0, 2**20 - 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
def test_random_cells(
    ops: list[str],
    depthwise: list[str],
    channels: int,
    size: tuple[int, int],
    batch: int,
    stride: int,
    affine: bool,
    concat: bool,
    learns: frozenset[str],
    zeros: int,
    seed: int,
) -> None:
    if batch * -(-size[0] // stride) * -(-size[1] // stride) < 8:
        batch = 4  # batch statistics of few values say nothing: their gradients are rounding errors
        size = (max(size[0], 3), max(size[1], 3))
    names = [*ops, *depthwise]
    s = sample(names, channels=channels, size=size, batch=batch, stride=stride, affine=affine, concat=concat, seed=seed)
    with torch.no_grad():
        for i in range(s.w.numel()):
            if zeros >> (i % 20) & 1 and i != s.w.numel() - 1:
                s.w.view(-1)[i] = 0.0
    f = fused(s.cell)
    assert f.tier == "kernels"
    assert_same(product(f, s, learns, seed), product(s.cell, s, learns, seed), 1e-8)


def test_third_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms are spelled out: torch's own takes its statistics for constants in its third derivative."""

    def normed(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        scale, shift = (t.view(-1, 1, 1) for t in (norm.weight, norm.bias))
        return scale * (x - mean) / (variance + norm.eps).sqrt() + shift

    monkeypatch.setattr(nn.BatchNorm2d, "forward", normed)
    s = sample(("skip_connect", "sep_conv_3x3", "max_pool_3x3"), channels=2, size=(4, 3))

    def third(cell: Cell) -> dict[str, Tensor]:
        w = s.w.clone().requires_grad_()
        theta = dict(cell.named_parameters())
        out = cell.mixed(s.inputs, w, Draw(3))
        g = torch.autograd.grad(out.sin().sum(), list(theta.values()), create_graph=True)
        (h,) = torch.autograd.grad([t.sin().sum() for t in g], w, create_graph=True)
        found = torch.autograd.grad(h.sin().sum(), [w, *theta.values()], materialize_grads=True)
        return dict(zip(["w", *theta], found, strict=True))

    assert_same(third(fused(s.cell)), third(s.cell), 1e-7)


def test_other_passes_between_and_products_again() -> None:
    """Values that the forward pass kept are given up in between and computed again."""
    s = sample(DARTS_OPS)
    s.cell.requires_grad_(True)

    def products(cell: Cell) -> dict[str, Tensor]:
        w = s.w.clone().requires_grad_()
        theta = list(cell.parameters())
        loss = cell.mixed(s.inputs, w, Draw(3)).square().sum()
        g = torch.autograd.grad(loss, theta, create_graph=True)
        other = cell.mixed([2 * x + 1 for x in s.inputs], w, Draw(3)).square().sum()
        torch.autograd.grad(other, theta)
        found = [
            torch.autograd.grad(g, w, [t.detach() * k for t in g], retain_graph=True, materialize_grads=True)[0]
            for k in (1.0, 2.0)
        ]
        (plain,) = torch.autograd.grad(loss, w)
        return {"w": torch.stack([*found, plain])}

    assert_same(products(fused(s.cell)), products(s.cell), 1e-9)


@pytest.mark.parametrize("asked", ["w", "theta"])
def test_weight_gradients_only_where_they_are_asked_for(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s = sample(DARTS_OPS)
    f = fused(s.cell).requires_grad_(True)
    w = s.w.clone().requires_grad_()
    theta = list(f.parameters())
    g = torch.autograd.grad(f.mixed(s.inputs, w, Draw(3)).square().sum(), theta, create_graph=True)
    seen: list[tuple[str, bool]] = []
    invoke = packed_op.invoke

    def spy(way: str, *arguments: object) -> None:
        seen.append((way, arguments[-5] is not None))
        invoke(way, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packed_op, "invoke", spy)
    torch.autograd.grad(g, w if asked == "w" else theta, [t.detach() for t in g])
    assert seen == [("second", asked == "theta"), ("backward", asked == "theta")]


def test_a_cell_runs_again_only_where_its_memory_was_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    s = sample(DARTS_OPS, size=(9, 7))
    f = fused(s.cell)
    w = s.w.clone().requires_grad_()
    theta = list(f.requires_grad_(True).parameters())
    seen: list[str] = []
    invoke = packed_op.invoke

    def spy(way: str, *arguments: object) -> None:
        seen.append(way)
        invoke(way, *arguments)  # type: ignore[arg-type]

    def product(g: Sequence[Tensor]) -> Tensor:
        return torch.autograd.grad(g, w, [t.detach() for t in g], retain_graph=True)[0]

    g = torch.autograd.grad(f.mixed(s.inputs, w, Draw(3)).square().sum(), theta, create_graph=True)
    monkeypatch.setattr(packed_op, "invoke", spy)
    first, again = product(g), product(g)
    assert seen == ["second", "backward"] * 2
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    seen.clear()
    others = [
        f.mixed([k * x for x in s.inputs], w, Draw(3)).square().sum() for k in (2, 3)
    ]  # as many as a product takes
    torch.autograd.grad(others, theta)
    torch.testing.assert_close(product(g), first, rtol=0, atol=0)
    assert seen == ["forward", "forward", "backward", "backward", "forward", "second", "backward"]


# ------------------------------------------------------------------ whole networks


@pytest.mark.parametrize("how", [Unrolled(), FiniteDifference()], ids=["exact", "finite"])
@pytest.mark.parametrize("affine", [False, True])
def test_architecture_gradient_of_a_network(how: ArchGradient, affine: bool) -> None:
    torch.manual_seed(0)
    plain = SPACE.supernet(WeightedSum(), affine=affine).double()
    mine = accelerate(copy.deepcopy(plain))
    assert set(coverage(mine).values()) == {"kernels"}
    got, wanted = arch_gradient(mine, how), arch_gradient(plain, how)
    for name, t in wanted.items():
        torch.testing.assert_close(got[name], t, rtol=1e-7, atol=1e-9 * float(t.abs().max()))
