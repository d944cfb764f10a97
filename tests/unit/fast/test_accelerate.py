from __future__ import annotations

import copy
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oche.base import Draw
from oche.fast import FusedCell, accelerate, coverage
from oche.fast.backends import buffers
from oche.fast.backends import native as fast_native
from oche.fast.backends.buffers import Buffers
from oche.spaces import SPACES, Space, Supernet
from oche.spaces.edges import PartialChannels, WeightedSum


def _run(supernet: Supernet, space: Space, x: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    outputs, _ = supernet(x, space.spread(w), Draw(5))
    leaves = [*w.values(), *supernet.parameters()]
    return outputs, list(torch.autograd.grad(outputs.sin().sum(), leaves, materialize_grads=True))


@pytest.mark.parametrize("name", ["toy", "nb201", "darts", "s1", "s4"])
def test_whole_supernets_give_the_same(name: str) -> None:
    space = SPACES[name](size=(9, 8), channels=4, cells=1 if name in ("toy", "nb201") else 3)
    torch.manual_seed(0)
    plain = space.supernet(WeightedSum(), affine=True).double()
    fast = accelerate(copy.deepcopy(plain))
    assert list(plain.state_dict()) == list(fast.state_dict())
    assert all(isinstance(cell, FusedCell) for cell in fast.body.cells.values())
    x = torch.randn(4, 3, 9, 8, dtype=torch.float64)
    w = {g.name: torch.rand(len(g.edges), g.width, dtype=torch.float64, requires_grad=True) for g in space.groups}
    (a, grads), (b, wanted) = _run(fast, space, x, w), _run(plain, space, x, w)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    scale = max(float(t.abs().max()) for t in wanted)
    for got, t in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, t, rtol=1e-8, atol=1e-9 * scale)


def test_coverage_says_how_each_cell_runs() -> None:
    space = SPACES["nb201"](size=(8, 8), cells=1, channels=2)
    supernet = space.supernet(WeightedSum(), affine=False)
    assert set(coverage(supernet).values()) == {"plain: not accelerated"}
    said = coverage(accelerate(supernet))
    assert all(text.startswith(("kernels", "portable")) for text in said.values())
    said = coverage(accelerate(space.supernet(PartialChannels(2), affine=False)))
    assert all(text.startswith("portable") or text.endswith("partial channels") for text in said.values())
    network = space.supernet(PartialChannels(1), affine=False)
    for cell in network.modules():
        if isinstance(cell, torch.nn.BatchNorm2d):
            cell.running_mean = torch.zeros(2)
    assert set(coverage(accelerate(network)).values()) == {"plain: batch norm with running statistics"}


def test_no_compiler_means_the_portable_tier_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OCHE_KERNELS", raising=False)
    monkeypatch.setattr(fast_native, "compiler_path", lambda: None)
    fast_native.kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert fast_native.kernels() is None
            assert fast_native.kernels() is None
        assert len(caplog.records) == 1
        space = SPACES["darts"](size=(8, 8), channels=4, cells=3)
        supernet = accelerate(space.supernet(WeightedSum(), affine=False))
        assert set(coverage(supernet).values()) == {"portable: no compiled kernels"}
    finally:
        fast_native.kernels.cache_clear()


def test_a_broken_compiler_means_the_portable_tier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("OCHE_CACHE", str(tmp_path))
    fast_native.kernels.cache_clear()
    try:
        assert fast_native.kernels() is None
    finally:
        fast_native.kernels.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_older_instruction_sets_give_the_same(capability: str) -> None:
    """The suite's cell tests again, in a process whose torch believes in an older processor."""
    if fast_native.kernels() is None:
        pytest.skip("no compiler on this machine")
    names = ("test_fused_cell.py", "test_dense_cell.py", "test_entry.py")
    tests = [str(Path(__file__).with_name(name)) for name in names]
    environment = {**__import__("os").environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-k",
            "darts_cell_equals or random_depthwise or nb201_cells or of_an_entry",
            *tests,
        ],
        env=environment,
        capture_output=True,
        timeout=110,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def test_buffers_are_used_again() -> None:
    pool = Buffers()
    lent = pool.take(8, torch.float32)
    address = lent.data_ptr()
    other = pool.take(8, torch.float32)
    assert other.data_ptr() != address
    del lent
    assert pool.take(8, torch.float32).data_ptr() == address


def test_what_is_held_is_there_once() -> None:
    pool, owner = Buffers(), torch.zeros(1)
    lent = pool.take(8, torch.float32)
    pool.hold(lent, owner)
    assert pool.claim(owner) is lent
    assert pool.claim(owner) is None


@pytest.mark.parametrize("size", [8, 4])
def test_what_is_held_gives_way_to_what_finds_no_other_memory(size: int) -> None:
    pool, owner = Buffers(), torch.zeros(1)
    pool.hold(pool.take(8, torch.float32), owner)
    held, free = pool.held[owner].data_ptr(), pool.take(64, torch.float32).data_ptr()
    lent = pool.scratch(size, torch.float32)
    assert lent.data_ptr() == free
    more = pool.scratch(size, torch.float32)
    assert more.data_ptr() == held
    assert pool.claim(owner) is None


def test_what_is_held_goes_back_with_its_owner() -> None:
    pool, owner = Buffers(), torch.zeros(1)
    pool.hold(pool.take(8, torch.float32), owner)
    del owner
    assert elements(pool) == 8


def test_a_finished_backward_gives_its_buffers_back_though_the_loss_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_pools", {})  # what other tests gave back would count
    if fast_native.kernels() is None:
        pytest.skip("no compiler on this machine")
    space = SPACES["darts"](size=(8, 8), channels=4, cells=3)
    supernet = accelerate(space.supernet(WeightedSum(), affine=False))
    pool = next(cell.pool for cell in supernet.body.cells.values() if isinstance(cell, FusedCell))
    w = {g.name: torch.rand(len(g.edges), g.width, requires_grad=True) for g in space.groups}
    x, held, lent, kept = torch.randn(4, 3, 8, 8), [], [], []
    for _ in range(4):
        loss = supernet(x, space.spread(w), Draw(5))[0].sum()
        lent.append(elements(pool))
        torch.autograd.grad(loss, list(w.values()))
        held.append(loss)
        kept.append(elements(pool))
    assert kept[0] == kept[-1] > 2 * lent[-1]  # most of what a forward pass takes is what the one before has given back


def elements(pool: Buffers) -> int:
    """The buffers that a pool could lend."""
    return sum(t.numel() for free in pool.free.values() for t in free)
