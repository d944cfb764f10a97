"""Triton's kernels, run by its interpreter on the CPU, against what torch computes; and compiled for GPUs that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oche.base import counted
from oche.fast.backends.device import Triton, accelerator, check
from oche.fast.portable.combine import Moments, Term, combine, plain_combine
from oche.fast.portable.separable import plain_separable, run_separable, separable
from oche.spaces import SPACES
from unit.fast.cells import EDGES, assert_same, fused, outcome, sample

triton = pytest.importorskip("triton")

from oche.fast.backends import rows, triton_rows, triton_separable  # noqa: E402  (these import triton)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2}
ON_CPU = torch.device("cpu")
SHAPES = [(2, 5, 7, 6), (1, 1, 1, 1), (3, 17, 5, 3), (5, 70, 9, 9), (1, 64, 3, 3)]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(shape, generator=counted(seed, *shape), dtype=torch.float64)
    return values.to(dtype).contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values.to(dtype)


def assert_near(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    got, wanted = got.detach(), wanted.detach()
    scale = max(float(wanted.abs().max()), 1e-30)
    assert got.shape == wanted.shape
    assert float((got.double() - wanted.double()).abs().max()) <= TOLERANCE[dtype] * scale


def test_the_interpreter_runs_them_where_there_is_no_gpu() -> None:
    assert check(ON_CPU) == []
    assert accelerator(ON_CPU) is None, "Triton is for accelerators; here it is only interpreted"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value = noise(*shape, dtype=dtype) * 0.1 + 3  # a mean far above the deviation
    mean, variance = triton_rows.moments(value, shape[1])
    wide = value.double()
    assert_near(mean, wide.mean((0, 2, 3)), dtype)
    assert float((variance - wide.var((0, 2, 3), correction=0)).abs().max()) < (
        1e-12 if dtype == torch.float64 else 1e-6
    )


def test_moments_of_many_tiles_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_rows, "TILE", 8)
    value = noise(3, 5, 7, 5)  # 105 tiles of one row, merged 64 at a time
    mean, variance = triton_rows.moments(value, 5)
    assert_near(mean, value.mean((0, 2, 3)), torch.float64)
    assert_near(variance, value.var((0, 2, 3), correction=0), torch.float64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_dots_and_maps(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The second value is the first half of a wider tensor's channels, as a partial-channel cell hands them over."""
    channels, wide = shape[1], torch.promote_types(dtype, torch.float32)
    parent = noise(shape[0], 2 * channels, *shape[2:], seed=2, dtype=dtype)
    values = [
        noise(*shape, seed=1, dtype=dtype),
        rows.as_rows(parent[:, :channels]),
        noise(*shape, seed=3, dtype=dtype),
    ]
    grad = noise(*shape, seed=4, dtype=dtype)
    a, b, e = (noise(3, channels, seed=5 + i, dtype=wide) for i in range(3))
    column = [t.double()[:, None, :, None, None] for t in (a, b, e)]
    stacked = torch.stack(values).double()
    kernels = Triton()
    got = rows.weighted(kernels, values, a, b[0])
    assert got.dtype == dtype
    assert_near(got, (column[0] * stacked).sum(0) + column[1][0], dtype)
    found = rows.dots(kernels, values, b, grad)
    accurate = dtype if dtype == torch.float64 else torch.float32
    assert_near(found[:3], (grad.double() * (stacked - column[1])).sum((1, 3, 4)), accurate)
    assert_near(found[3], grad.double().sum((0, 2, 3)), accurate)
    mapped = rows.maps(kernels, values, a, b, e, grad, [True, False, True])
    wanted = column[0] * grad.double() + column[1] + column[2] * stacked
    assert mapped[1] is None
    for t in (0, 2):
        assert mapped[t] is not None
        assert_near(mapped[t], wanted[t], dtype)  # type: ignore[arg-type]


def test_nothing_is_computed_where_nothing_is_needed() -> None:
    value, table = noise(2, 3, 4, 4), noise(1, 3)
    assert rows.maps(Triton(), [value], table, table, table, value, [False]) == [None]


# ---------------------------------------------------------------------- as the sum into a node


@pytest.mark.slow
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(2, 9)),
    kinds=st.lists(st.sampled_from(["affine", "plain", "none"]), min_size=1, max_size=4),
)
def test_random_sums_equal_the_plain_formula(
    seed: int, channels: int, size: tuple[int, int, int], kinds: list[str]
) -> None:
    assert_combines(seed, channels, size, kinds)


def test_combine_equals_the_plain_formula() -> None:
    assert_combines(1, 5, (2, 3, 4), ["affine", "plain", "none"])


def assert_combines(seed: int, channels: int, size: tuple[int, int, int], kinds: list[str]) -> None:
    """Outputs, and gradients of values, op weights, scales and shifts."""
    batch, height, width = size
    n = len(kinds)
    values = [noise(batch, channels, height, width, seed=seed + t).requires_grad_() for t in range(n)]
    weights = noise(n, seed=seed).requires_grad_()
    norms = [None if kind == "none" else nn.BatchNorm2d(channels, affine=kind == "affine").double() for kind in kinds]
    for norm in norms:
        for p in norm.parameters() if norm is not None else ():
            nn.init.normal_(p, 1.0)
    scales = [None if norm is None else norm.weight for norm in norms]
    shifts = [None if norm is None else norm.bias for norm in norms]
    leaves = [*values, weights, *(t for t in (*scales, *shifts) if t is not None)]
    grad = noise(batch, channels, height, width, seed=seed + 99)
    spec = [(norm is not None, 1e-5) for norm in norms]
    wanted = plain_combine(spec, weights, values, scales, shifts)
    terms = [Term(value, weights[t], norms[t]) for t, value in enumerate(values)]
    got = combine(terms, Moments(Triton()))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    got_grads = torch.autograd.grad(got, leaves, grad)
    for found, right in zip(got_grads, torch.autograd.grad(wanted, leaves, grad), strict=True):
        scale = 1 + float(right.abs().max())
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-8 * scale)


def test_combine_under_autocast_keeps_statistics_in_single_precision() -> None:
    """bf16 candidates beside an fp32 state, fp32 op weights: the result and its gradients have their dtypes and are near."""
    values = [noise(4, 6, 8, 8, seed=1, dtype=torch.bfloat16), noise(4, 6, 8, 8, seed=2, dtype=torch.float32)]
    values = [value.requires_grad_() for value in values]
    norm, weights = nn.BatchNorm2d(6), torch.tensor([0.3, 0.7], requires_grad=True)
    got = combine([Term(values[0], weights[0], norm), Term(values[1], weights[1])], Moments(Triton()))
    leaves = [*values, weights, norm.weight, norm.bias]
    assert got.dtype == torch.float32
    found = torch.autograd.grad(got, leaves, noise(4, 6, 8, 8, seed=3, dtype=torch.float32))
    assert [t.dtype for t in found] == [t.dtype for t in leaves]
    plain = [t.detach().double().requires_grad_() for t in leaves]
    wanted = plain_combine([(True, 1e-5), (False, 0.0)], plain[2], plain[:2], [plain[3], None], [plain[4], None])
    assert_near(got, wanted, torch.float32)
    for mine, right in zip(found, torch.autograd.grad(wanted, plain, noise(4, 6, 8, 8, seed=3)), strict=True):
        assert_near(mine, right, torch.bfloat16 if mine.dtype == torch.bfloat16 else torch.float32)


def test_combine_is_twice_differentiable() -> None:
    value, weights = noise(2, 1, 2, 2).requires_grad_(), noise(1).requires_grad_()
    norm = nn.BatchNorm2d(1, affine=False).double()

    def total(v: Tensor, w: Tensor) -> Tensor:
        return combine([Term(v, w[0], norm)], Moments(Triton()))

    assert torch.autograd.gradgradcheck(total, (value, weights))


def test_the_operators_keep_torchs_contract() -> None:
    """Schema, aliasing and what the compiler is told of shapes, by torch's own check."""
    value, table = noise(2, 3, 4, 4), noise(1, 3)
    torch.library.opcheck(triton_rows.moments, (value, 3), test_utils=("test_schema", "test_faketensor"))
    for operator, given_ in {
        triton_rows.weighted: ([value], [3], table, table[0]),
        triton_rows.dots: ([value], [3], table, value),
        triton_rows.maps: ([value], [3], table, table, table, value, [True]),
    }.items():
        torch.library.opcheck(operator, given_, test_utils=("test_schema", "test_faketensor"))


# ---------------------------------------------------------------------- depthwise-separable convolutions

SEPARABLE = [  # batch, channels in and out, height, width, kernel, stride, dilation
    (2, 5, 5, 7, 6, 3, 1, 1),
    (2, 5, 9, 7, 6, 3, 2, 1),
    (1, 70, 17, 5, 3, 3, 1, 2),
    (3, 16, 16, 9, 9, 5, 2, 2),
    (1, 4, 4, 8, 8, 5, 1, 2),
    (1, 1, 1, 1, 1, 3, 1, 1),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", SEPARABLE, ids=str)
def test_separable_equals_torchs_convolutions(case: tuple[int, ...], dtype: torch.dtype) -> None:
    """Output, statistics, and the gradients of input and both weights; the input is part of a wider tensor's channels."""
    batch, channels, outputs, height, width, k, stride, dilation = case
    x = noise(batch, channels + 3, height, width, dtype=dtype)[:, :channels].requires_grad_()
    depth = (noise(channels, 1, k, k, seed=1, dtype=dtype) / k).contiguous().requires_grad_()
    point = (noise(outputs, channels, 1, 1, seed=2, dtype=dtype) / channels**0.5).contiguous().requires_grad_()
    leaves = (x, depth, point)
    y, mean, variance = separable(*leaves, stride, dilation)
    plain = [t.detach().double().requires_grad_() for t in leaves]
    wanted = plain_separable(plain[0], plain[1], plain[2], stride, dilation)
    assert y.dtype == dtype
    assert_near(y, wanted, dtype)
    assert_near(mean, y.detach().double().mean((0, 2, 3)), dtype if dtype == torch.float64 else torch.float32)
    assert_near(variance + 1, y.detach().double().var((0, 2, 3), correction=0) + 1, torch.float32)
    grad = noise(*wanted.shape, seed=3, dtype=dtype)
    found = torch.autograd.grad(y, leaves, grad)
    for mine, right in zip(found, torch.autograd.grad(wanted, plain, grad.double()), strict=True):
        assert mine.dtype == dtype
        assert_near(mine, right, dtype)


def test_frozen_weights_get_no_gradient_and_cost_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_separable, "to_weights", None)
    x, depth, point = noise(1, 3, 4, 4).requires_grad_(), noise(3, 1, 3, 3), noise(3, 3, 1, 1)
    y, mean, _ = separable(x, depth, point, 1, 1)
    assert not mean.requires_grad
    (dx,) = torch.autograd.grad(y.sum(), [x])
    (wanted,) = torch.autograd.grad(plain_separable(x, depth, point, 1, 1).sum(), [x])
    torch.testing.assert_close(dx, wanted)


def test_separable_is_twice_differentiable() -> None:
    x, depth, point = noise(1, 2, 3, 3), noise(2, 1, 3, 3, seed=1), noise(2, 2, 1, 1, seed=2)

    def product(by: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in (x, depth, point)]
        grads = torch.autograd.grad(by(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g.square().sum() for g in grads), torch.zeros(())), leaves)

    mine = product(lambda *t: separable(*t, 1, 1)[0])
    for found, wanted in zip(mine, product(lambda *t: plain_separable(*t, 1, 1)), strict=True):
        torch.testing.assert_close(found, wanted)


def test_separable_operators_keep_torchs_contract() -> None:
    x, depth, point = noise(1, 3, 4, 4), noise(3, 1, 3, 3), noise(2, 3, 1, 1)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(triton_separable.forward, (x, 3, depth, point, 2, 1), test_utils=tests)
    torch.library.opcheck(triton_separable.to_input, (x, 3, depth, x, 1, 1), test_utils=tests)
    torch.library.opcheck(triton_separable.to_weights, (x, 3, depth, x, 1, 1), test_utils=tests)


QUICK = ["max_pool_3x3", "skip_connect", "sep_conv_3x3"]


@pytest.mark.parametrize(
    ("ops", "stride"), [(QUICK, 2)] + [pytest.param(None, s, marks=pytest.mark.slow) for s in (1, 2)]
)
def test_a_whole_cell_equals_the_plain_one(monkeypatch: pytest.MonkeyPatch, ops: list[str] | None, stride: int) -> None:
    """The DARTS candidates (None: all), through the kernels of an accelerator: every output and gradient."""
    chosen = ops or SPACES["darts"]().groups[0].ops[0]
    s = (
        sample(chosen, channels=2, size=(3, 4), stride=stride)
        if ops
        else sample(chosen, channels=4, size=(5, 6), stride=stride)
    )
    wanted = outcome(s.cell, s)
    made = fused(s.cell)
    monkeypatch.setattr("oche.fast.cell.kernels", Triton)
    used = []
    monkeypatch.setattr("oche.fast.portable.mixed.run_separable", lambda op, x: used.append(op) or run_separable(op, x))
    assert_same(outcome(made, s), wanted)
    assert len(used) == sum("conv" in op for op in chosen) * len(EDGES)


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """Down to machine code of an H100 or H200, whose compiler comes with Triton; whether it runs there is for tests/gpu to say."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [
        re.findall(r"@triton.jit\ndef (\w+)", Path(str(m.__file__)).read_text())
        for m in (triton_rows, triton_separable)
    ]
    assert set(done.stdout.split()) == {*kernels[0], *kernels[1]} - {"_source"}, "one is not compiled here"
