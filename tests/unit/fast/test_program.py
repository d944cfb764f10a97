"""Cells that are programs of torch.compile, against the same cells in plain torch. Most by a backend that only traces."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from oche.base import Draw
from oche.errors import UserError
from oche.fast import FusedCell, accelerate, coverage
from oche.fast.portable import program
from oche.fast.portable.program import Program
from oche.methods.darts import darts
from oche.methods.idarts import idarts
from oche.optim import Adam
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.begin import begin, streams
from oche.search.bilevel import ArchGradient, FiniteDifference, Unrolled
from oche.search.loop import search
from oche.search.method import Method
from oche.search.preflight import memory_bytes
from oche.search.state import Problem
from oche.spaces import SPACES
from oche.spaces.darts import DARTS_OPS
from oche.spaces.edges import EdgeFactory, PartialChannels, WeightedSum
from oche.spaces.networks import _Mixed
from oche.spaces.ops import OPS
from oche.watch.probes import hessian_eigenvalue, validation_loss
from reference.tiny import tiny_problem
from unit.fast.cells import Sample, assert_same, errors, fused, outcome, sample

pytestmark = [  # what torch itself does while it traces
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FEW = ("none", "skip_connect", "nor_conv_3x3")


@dataclass(eq=False)
class Counting:
    """A backend that traces forward and backward, and counts; what it makes runs operation by operation."""

    made: int = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        self.made += 1
        return aot_eager(graph, inputs)


@pytest.fixture(autouse=True)
def portable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiled kernels, and no program of an earlier test."""
    monkeypatch.setattr("oche.fast.cell.kernels", lambda: None)
    yield
    torch._dynamo.reset()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Counting:
    backend = Counting()
    monkeypatch.setattr(program, "BACKEND", backend)
    return backend


def compiled(s: Sample) -> FusedCell:
    cell = fused(s.cell)
    return FusedCell(cell, Program.of(cell))


# ---------------------------------------------------------------------- one cell


def test_a_program_gives_the_cells_numbers_and_is_shared(quick: Counting) -> None:
    for seed in (0, 1):
        s = sample(FEW[1:], seed=seed)
        cell = compiled(s)
        assert_same(outcome(cell, s), outcome(fused(s.cell), s))
        assert cell.tier == "portable, compiled: no compiled kernels"
    assert quick.made == 1


def test_constant_weights_are_another_program(quick: Counting) -> None:
    s, alone = sample(FEW[1:]), frozenset({"w"})
    cell = compiled(s)
    assert_same(outcome(cell, s, alone), outcome(fused(s.cell), s, alone))
    outcome(cell, s)
    assert quick.made == 2


KINDS = {
    "darts": (DARTS_OPS, None),
    "others": (("mbconv_k5_e3_se", "conv_7x1_1x7", "bottleneck_1x3x1", "nor_conv_1x1"), None),
    "partial": (("sep_conv_5x5", "dil_conv_3x3", "max_pool_3x3", "avg_pool_3x3"), PartialChannels(2)),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_every_candidate_can_be_traced(name: str, stride: int, quick: Counting) -> None:
    ops, edge = KINDS[name]
    s = sample(ops, channels=4, size=(8, 7), stride=stride, edge=edge)
    assert_same(outcome(compiled(s), s), outcome(fused(s.cell), s))
    assert quick.made == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_inductor_gives_the_cells_numbers() -> None:
    s = sample(("dil_conv_3x3", "max_pool_3x3"), channels=4, size=(8, 7), stride=2)
    cell = compiled(s)
    assert_same(outcome(cell, s), outcome(fused(s.cell), s))
    assert cell.tier == "portable, compiled: no compiled kernels"


def test_a_program_can_be_given_other_weights(quick: Counting) -> None:
    s, other = sample(FEW, seed=0), sample(FEW, seed=1)
    weights = {f"cell.{name}": p.detach().requires_grad_() for name, p in other.cell.named_parameters()}
    results = []
    for cell in (compiled(s), fused(s.cell)):
        w = s.w.clone().requires_grad_()
        out = torch.func.functional_call(_Mixed(cell), weights, (s.inputs, w, Draw(3)))
        results.append([out, *torch.autograd.grad(out.sin().sum(), [w, *weights.values()])])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[0][0], other.cell.mixed(s.inputs, s.w, Draw(3)), rtol=1e-10, atol=1e-10)
    assert quick.made == 1


def test_hard_op_weights_skip_candidates_and_make_no_programs(quick: Counting) -> None:
    """But for zeros where there is no candidate, or one that would add nothing."""
    s = sample(FEW)
    cell, constant = compiled(s), frozenset({"inputs", "theta"})
    for e in range(len(s.w)):
        hard = replace(s, w=torch.where(torch.arange(3) == e % 3, s.w, 0.0))
        assert_same(outcome(cell, hard, constant), outcome(fused(s.cell), hard, constant))
    assert quick.made == 0
    harmless = replace(s, w=torch.cat([s.w, torch.zeros(len(s.w), 1, dtype=s.w.dtype)], dim=1))
    harmless.w[:, 0] = 0.0
    assert_same(outcome(cell, harmless, constant), outcome(fused(s.cell), harmless, constant))
    assert quick.made == 1


def test_evaluation_makes_no_programs(quick: Counting) -> None:
    s = sample(FEW)
    with torch.no_grad():
        got = compiled(s).mixed(s.inputs, s.w, Draw(3))
    torch.testing.assert_close(got, s.cell.mixed(s.inputs, s.w, Draw(3)), rtol=1e-10, atol=1e-10)
    assert quick.made == 0


def test_noise_stays_what_it_was(quick: Counting) -> None:
    s = sample((*FEW, "noise"))
    cell = compiled(s)
    assert_same(outcome(cell, s), outcome(fused(s.cell), s), tolerance=1e-15)
    assert cell.tier == "portable: no compiled kernels; not by torch.compile: Noise draws random numbers"
    assert quick.made == 0


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(1, generator=torch.Generator().manual_seed(0), dtype=x.dtype)


def test_what_cannot_be_traced_runs_as_it_is(
    quick: Counting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(OPS, "mine", lambda channels, stride, affine: Untraceable())
    s = sample((*FEW, "mine"))
    cell = compiled(s)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(outcome(cell, s), outcome(fused(s.cell), s))
    assert len([r for r in caplog.records if r.name == program.__name__]) == 1
    assert cell.tier.startswith("portable: no compiled kernels; not by torch.compile: ")
    assert "\n" not in cell.tier


def test_there_is_an_end_to_programs(quick: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "FORMS", 1)
    s = sample(FEW)
    first, second = compiled(s), compiled(s)
    outcome(first, s)
    assert_same(outcome(second, s, frozenset({"w"})), outcome(fused(s.cell), s, frozenset({"w"})))
    assert "not by" in second.tier
    assert "not by" not in first.tier
    assert quick.made == 1


def test_what_cannot_be_compiled_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--compile is for cells of a supernet, and random_sampling has none"):
        resolve(Request("random_sampling", compile=True))
    monkeypatch.setattr(program, "compiler_path", lambda: None)
    with pytest.raises(UserError, match="--compile needs a C\\+\\+ compiler"):
        resolve(Request("darts", compile=True))


def test_cells_in_kernels_stay_there(monkeypatch: pytest.MonkeyPatch, quick: Counting) -> None:
    monkeypatch.undo()
    supernet = accelerate(SPACES["toy"](size=(8, 8)).supernet(WeightedSum(), affine=False), compile=True)
    if set(coverage(supernet).values()) == {"portable, compiled: no compiled kernels"}:
        pytest.skip("no compiler on this machine")
    assert set(coverage(supernet).values()) == {"kernels"}


# ---------------------------------------------------------------------- searches


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same_search(problem: Problem, method: Method) -> None:
    """With programs and without: alpha moves a good way, and to the same place."""
    method = replace(method, arch_start=0.0, arch_optimizer=Adam(lr=0.1))
    plain, mine = search(problem, method), search(replace(problem, compile=True), method)
    assert set(coverage(mine.state.supernet).values()) == {"portable, compiled: no compiled kernels"}
    assert mine.genotype == plain.genotype
    for name in ("weight_loss", "arch_loss"):
        assert [r[name] for r in mine.history] == pytest.approx([r[name] for r in plain.history], rel=1e-8)
    for name, t in plain.state.alpha.items():
        assert float((t.detach() - plain.state.trajectory[name][0]).abs().max()) > 0.1
        torch.testing.assert_close(mine.state.alpha[name], t, rtol=1e-6, atol=1e-6)


TINY = tiny_problem("toy", channels=4, cells=1, count=8, epochs=2)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_a_search_ends_where_it_did(quick: Counting) -> None:
    assert_same_search(TINY, darts())
    assert quick.made == 4  # cells of two widths, in the weights' step and in alpha's


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("double")
def test_a_search_by_inductor_ends_where_it_did() -> None:
    assert_same_search(TINY, darts())


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("gradient", [Unrolled(), FiniteDifference(), idarts().arch_gradient], ids=["2", "fd", "i"])
def test_second_derivatives_are_of_plain_torch(quick: Counting, gradient: ArchGradient) -> None:
    assert_same_search(TINY, replace(darts(), arch_gradient=gradient))
    assert quick.made


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_recomputed_cells_are_programs_too(quick: Counting) -> None:
    assert_same_search(replace(TINY, recompute=True), darts())
    assert quick.made


@pytest.mark.slow
@pytest.mark.parametrize("edge", [WeightedSum(), PartialChannels(4)], ids=["darts", "pcdarts"])
def test_programs_in_bf16_are_as_near_as_cells_are(quick: Counting, edge: EdgeFactory) -> None:
    s = sample(("sep_conv_3x3", "max_pool_3x3", "skip_connect"), channels=8, edge=edge)
    wanted = outcome(s.cell, s)
    with torch.autocast("cpu", torch.bfloat16):
        plain, mine = (outcome(cell, s, dtype=torch.float32) for cell in (fused(s.cell), compiled(s)))
    off, usual = errors(mine, wanted), errors(plain, wanted)
    assert quick.made == 1
    assert all(off[kind] <= 1.5 * usual[kind] + 1e-2 for kind in usual), (off, usual)


def test_measuring_memory_and_curvature_makes_no_programs(quick: Counting) -> None:
    """Programs for batches of other sizes; second derivatives, which programs have not."""
    problem, method = replace(TINY, compile=True), darts()
    state = begin(problem, method)
    assert memory_bytes(state, problem, method) == memory_bytes(begin(TINY, method), TINY, method)
    batch = streams(problem, method)[1].at(0)
    assert hessian_eigenvalue(state, validation_loss(state, problem), batch) != 0.0
    assert quick.made == 0
