"""Second derivatives of a compiled 1x1 entry against those of its formula, written out and differentiated by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from oche.fast.backends.native import kernels
from oche.fast.kernels import entry

pytestmark = pytest.mark.skipif(kernels() is None, reason="no compiler on this machine")

NAMES = ("x", "weight", "gamma", "beta")
Entry = Callable[..., Tensor]


def compiled(x: Tensor, weight: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    return entry.ENTRY(x, weight, gamma, beta, 1e-5)[0]


def literal(x: Tensor, weight: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    y = x.relu() @ weight.t()
    mean = y.mean((0, 1, 2))
    out = (y - mean) / ((y - mean).square().mean((0, 1, 2)) + 1e-5).sqrt()
    return out if gamma is None or beta is None else gamma * out + beta


def arguments(
    batch: int, size: tuple[int, int], inputs: int, outputs: int, affine: bool = True, seed: int = 0
) -> list[Tensor]:
    """x (B, H, W, C), weight (C', C), and gamma and beta (C',)."""
    rng = torch.Generator().manual_seed(seed)
    shapes = [(batch, *size, inputs), (outputs, inputs), *[(outputs,)] * (2 * affine)]
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def product(of: Entry, tensors: Sequence[Tensor], learns: set[str], along: set[str]) -> dict[str, Tensor]:
    """Gradients of <gradients in `learns`, random directions for those in `along`> in everything that they depend on."""
    named = {name: t.detach().requires_grad_(name in learns) for name, t in zip(NAMES, tensors, strict=False)}
    out = of(*named.values())
    rng = torch.Generator().manual_seed(9)

    def noise(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(out.dtype)

    grad = noise(out.shape).requires_grad_()
    leaves = {name: t for name, t in named.items() if t.requires_grad}
    g = dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad, create_graph=True), strict=True))
    directions = {name: noise(t.shape) for name, t in named.items()}
    asked = [name for name in g if name in along]
    found = torch.autograd.grad(
        [g[name] for name in asked],
        [*leaves.values(), grad],
        [directions[name] for name in asked],
        materialize_grads=True,
    )
    return dict(zip([*leaves, "grad"], found, strict=True))


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    scale = max(float(t.abs().max()) for t in wanted.values())
    for name, t in wanted.items():
        torch.testing.assert_close(got[name], t, rtol=tolerance, atol=tolerance * scale, msg=name)


@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(2, 29), st.integers(2, 29)),  # more rows than are summed together
    inputs=st.sampled_from([16, 48, 64, 96, 128]),
    outputs=st.sampled_from([16, 32, 48, 64]),
    affine=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, phases=[Phase.explicit, Phase.generate])
def test_second_derivative_of_an_entry(
    batch: int, size: tuple[int, int], inputs: int, outputs: int, affine: bool, data: st.DataObject
) -> None:
    tensors = arguments(batch, size, inputs, outputs, affine)
    names = NAMES[: len(tensors)]
    learns = data.draw(st.sets(st.sampled_from(names), min_size=1), label="learns")
    along = data.draw(st.sets(st.sampled_from(sorted(learns)), min_size=1), label="along")
    assert_close(product(compiled, tensors, learns, along), product(literal, tensors, learns, along), 1e-10)


@pytest.mark.parametrize("along", [{"x"}, {"weight"}, {"gamma"}, {"beta"}, {"x", "gamma"}, {"x", "weight"}, set(NAMES)])
@pytest.mark.parametrize("learns", [set(NAMES), {"x", "gamma", "beta"}], ids=["all", "frozen weight"])
def test_second_derivative_along_some_directions(learns: set[str], along: set[str]) -> None:
    tensors, along = arguments(2, (5, 3), 48, 32), along & learns or {"x"}
    assert_close(product(compiled, tensors, learns, along), product(literal, tensors, learns, along), 1e-10)


def test_single_precision_is_as_good_as_plain_torch() -> None:
    plain: dict[str, list[float]] = {}
    mine: dict[str, list[float]] = {}
    for seed in range(5):
        tensors = arguments(4, (16, 16), 48, 16, seed=seed)
        exact = product(literal, tensors, set(NAMES), set(NAMES))
        single = [t.float() for t in tensors]
        for errors_of, of in ((plain, literal), (mine, compiled)):
            got = product(of, single, set(NAMES), set(NAMES))
            for name in exact.keys() - {"beta"}:  # the gradients are linear in it
                error = (got[name].double() - exact[name]).abs().max() / exact[name].abs().max()
                errors_of.setdefault(name, []).append(float(error))
    for name, found in mine.items():
        assert median(found) < 3 * median(plain[name]) + 1e-6, (name, found, plain[name])


def test_gradgradcheck_of_an_entry() -> None:
    tensors = [t.requires_grad_() for t in arguments(1, (3, 2), 16, 16)]
    assert torch.autograd.gradgradcheck(compiled, tensors, fast_mode=True)


def test_third_derivative_of_an_entry() -> None:
    def third(of: Entry) -> dict[str, Tensor]:
        named = dict(zip(NAMES, [t.requires_grad_() for t in arguments(2, (4, 3), 16, 16)], strict=True))
        value: Tensor = of(*named.values()).sin().sum()
        for _ in range(2):
            g = torch.autograd.grad(value, list(named.values()), create_graph=True, materialize_grads=True)
            value = torch.stack([t.sin().sum() for t in g]).sum()
        return dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))

    assert_close(third(compiled), third(literal), 1e-9)


def test_number_of_threads_changes_rounding_only() -> None:
    tensors = arguments(3, (20, 21), 48, 32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            found.append(product(compiled, tensors, set(NAMES), set(NAMES)))
    finally:
        torch.set_num_threads(before)
    assert_close(found[1], found[0], 1e-13)
    assert all(torch.equal(t, found[2][name]) for name, t in found[1].items())


@pytest.mark.parametrize("asked", NAMES)
def test_only_gradients_that_are_asked_for_are_computed(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named = dict(zip(NAMES, [t.requires_grad_() for t in arguments(2, (4, 3), 16, 16)], strict=True))
    out = compiled(*[1.0 * t for t in named.values()])  # none a leaf, of which nobody knows whether it is asked for
    g = torch.autograd.grad(out.square().sum(), list(named.values()), create_graph=True)
    seen: list[tuple[bool, bool]] = []
    second = entry.SECOND

    def spy(*arguments: object) -> object:
        seen.append((arguments[4], arguments[5]))  # type: ignore[arg-type]
        return second(*arguments)

    monkeypatch.setattr(entry, "SECOND", spy)
    torch.autograd.grad(g, named[asked], [torch.ones_like(t) for t in g])
    assert seen == [(asked == "x", asked == "weight")]
