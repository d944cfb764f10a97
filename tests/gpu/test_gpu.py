"""The GPU tier against the CPU's plain supernet: outputs, gradients, kernels, graphs, a whole search."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from oche.base import Draw, counted
from oche.data import Augment
from oche.fast import accelerate, coverage
from oche.fast.backends.device import accelerator, check
from oche.fast.portable.combine import Moments, Term, combine, plain_combine
from oche.fast.portable.separable import plain_separable, separable
from oche.methods import METHODS
from oche.search import loop
from oche.search.loop import search
from oche.search.method import Method
from oche.search.replay import Replayed
from oche.search.state import Problem
from oche.search.trainable import BatchNormOnly
from oche.spaces import SPACES
from oche.spaces.edges import EdgeFactory, PartialChannels, WeightedSum
from reference.tiny import tiny_problem


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=counted(seed, *shape), dtype=torch.float64).to(dtype)


def off(got: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float(
        (got.detach().cpu().double() - wanted.detach().cpu().double()).abs().max() / wanted.abs().max().clamp_min(1e-30)
    )


def test_triton_is_used_and_right(device: torch.device) -> None:
    pytest.importorskip("triton")
    assert check(device) == []
    assert accelerator(device) is not None


@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (3, 17, 5, 3), (64, 64, 8, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_combine(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    pytest.importorskip("triton")
    n, kernels = 5, accelerator(device)
    assert kernels is not None
    values = [
        noise(*shape, seed=t, dtype=dtype).to(device, memory_format=torch.channels_last).requires_grad_()
        for t in range(n)
    ]
    norms = [nn.BatchNorm2d(shape[1], affine=t != 1).to(device) if t != 2 else None for t in range(n)]
    weights = torch.linspace(0.1, 0.5, n, device=device, requires_grad=True)
    leaves = [*values, weights, *(p for norm in norms if norm is not None for p in norm.parameters())]
    got = combine([Term(value, weights[t], norms[t]) for t, value in enumerate(values)], Moments(kernels))
    plain = {id(leaf): leaf.detach().double().requires_grad_() for leaf in leaves}
    wanted = plain_combine(
        [(norm is not None, 1e-5) for norm in norms],
        plain[id(weights)],
        [plain[id(value)] for value in values],
        [plain.get(id(norm.weight)) if norm is not None else None for norm in norms],
        [plain.get(id(norm.bias)) if norm is not None else None for norm in norms],
    )
    grad = noise(*shape, seed=9).to(device)
    assert off(got, wanted) < tolerance
    right = torch.autograd.grad(wanted, list(plain.values()), grad.double())
    for mine, other in zip(torch.autograd.grad(got, leaves, grad.to(got.dtype)), right, strict=True):
        assert off(mine, other) < tolerance


@pytest.mark.parametrize(
    "case", [(64, 16, 32, 3, 1, 1), (8, 32, 17, 5, 2, 2), (4, 70, 9, 3, 2, 1), (64, 64, 8, 5, 1, 2)], ids=str
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_separable(device: torch.device, case: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    pytest.importorskip("triton")
    batch, channels, size, k, stride, dilation = case
    shapes = ((batch, channels, size, size), (channels, 1, k, k), (channels, channels, 1, 1))
    leaves = [noise(*shape, dtype=dtype).to(device).requires_grad_() for shape in shapes]
    plain = [t.detach().double().requires_grad_() for t in leaves]
    y, mean, variance = separable(leaves[0], leaves[1], leaves[2], stride, dilation)
    wanted = plain_separable(plain[0], plain[1], plain[2], stride, dilation)
    assert off(y, wanted) < tolerance
    assert off(variance, y.double().var((0, 2, 3), correction=0)) < 1e-5
    assert off(mean, y.double().mean((0, 2, 3))) < 1e-4
    grad = noise(*wanted.shape, seed=3).to(device)
    right = torch.autograd.grad(wanted, plain, grad.double())
    for mine, other in zip(torch.autograd.grad(y, leaves, grad.to(dtype)), right, strict=True):
        assert off(mine, other) < tolerance


@pytest.mark.parametrize("space", ["darts", "nb201", "s1"])
@pytest.mark.parametrize("edge", [WeightedSum(), PartialChannels(2)], ids=["sum", "partial"])
def test_a_supernet_equals_the_cpus_plain_one(device: torch.device, space: str, edge: EdgeFactory) -> None:
    """Outputs and every gradient, the CPU's in double precision: each kind's median error, as single precision allows."""
    bound = SPACES[space](channels=8, cells=3 if space != "nb201" else 1, size=(16, 16))
    torch.manual_seed(0)
    plain = bound.supernet(edge, affine=True)
    fast = accelerate(copy.deepcopy(plain).to(device=device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    assert all(how == "triton" or "no Triton" in how for how in coverage(fast).values())

    def outcome(net: nn.Module, where: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        alpha = [
            noise(len(g.edges), g.width, seed=i).to(where, dtype).requires_grad_() for i, g in enumerate(bound.groups)
        ]
        weights = bound.spread({g.name: a.softmax(-1) for g, a in zip(bound.groups, alpha, strict=True)})
        images = noise(8, 3, 16, 16, seed=5).to(where, dtype)
        outputs, _ = net(images, weights, Draw(0))
        leaves = [*alpha, *net.parameters()]
        return [outputs, *torch.autograd.grad(outputs.square().sum(), leaves, materialize_grads=True)]

    wanted = outcome(copy.deepcopy(plain).double(), "cpu", torch.float64)
    single = sorted(off(a, b) for a, b in zip(outcome(plain, "cpu", torch.float32), wanted, strict=True))
    found = sorted(off(a, b) for a, b in zip(outcome(fast, device, torch.float32), wanted, strict=True))
    assert found[len(found) // 2] < 3 * single[len(single) // 2] + 1e-6


def on(device: torch.device, problem: Problem) -> Problem:
    """The same problem on the GPU."""
    fabric = Fabric(accelerator="cuda", devices=[device.index or 0])
    return replace(problem, fabric=fabric, data=problem.data.to(device))


def test_batches_are_the_cpus(device: torch.device) -> None:
    """The same images and the same augmentation, up to the last bit of the normalisation."""
    problem = tiny_problem()
    problem = replace(problem, augment=Augment(problem.data.mean, problem.data.std, pad=1, flip=True, cutout=2))
    method = Method()
    for mine, theirs in zip(loop.streams(on(device, problem), method), loop.streams(problem, method), strict=True):
        for i in range(20):
            assert torch.equal(mine.at(i).targets.cpu(), theirs.at(i).targets)
            torch.testing.assert_close(mine.at(i).images.cpu(), theirs.at(i).images, rtol=1e-6, atol=1e-6)


METHOD_NAMES = ["darts", "rf_darts", "darts_2nd"]


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_replayed_steps_equal_launched_ones(device: torch.device, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Weights and alpha after a search, to what atomics in cuDNN may change."""
    method = METHODS[name]()
    assert isinstance(method, Method)
    problem = on(device, tiny_problem(epochs=4))
    made: list[Replayed] = []
    plain = loop.replayed

    def watched(*arguments: object) -> object:
        made.extend(plain(*arguments))  # type: ignore[arg-type]
        return tuple(made)

    monkeypatch.setattr(loop, "replayed", watched)
    replayed = search(problem, method)
    assert [step.replay is not None for step in made] == [True, True], "a step fell back"
    monkeypatch.setattr(loop, "replayed", lambda pair, *_: pair)
    launched = search(problem, method)
    assert replayed.genotype == launched.genotype
    for theirs, mine in zip(launched.state.theta.values(), replayed.state.theta.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    for name_, t in launched.state.alpha.items():
        torch.testing.assert_close(replayed.state.alpha[name_], t, rtol=1e-3, atol=1e-4)


def test_a_step_never_makes_the_host_wait(device: torch.device) -> None:
    """CUDA's own word for it: synchronising calls are errors while the step runs."""
    problem, method = on(device, tiny_problem()), Method(trainable=BatchNormOnly())
    state = loop.begin(problem, method)
    losses = loop.bilevel(state, method)
    weights, arch = loop.streams(problem, method)
    for i in range(4):
        torch.cuda.set_sync_debug_mode("error" if i > 1 else "default")
        try:
            now = loop.StepBatches(weights, arch, i)
            loop.arch_step(state, method, losses, now)
            loop.weight_step(state, method, losses, now)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_short_search_finds_the_cpus_genotype(device: torch.device) -> None:
    problem, method = tiny_problem(epochs=3), Method()
    mine, theirs = search(on(device, problem), method), search(problem, method)
    assert mine.genotype == theirs.genotype
    for name, rows in theirs.state.trajectory.items():
        torch.testing.assert_close(mine.state.trajectory[name][-1], rows[-1], rtol=1e-2, atol=1e-4)
