"""Frozen weights stay frozen, bit for bit, and no step computes a gradient that it would throw away.

Gradients are counted where they are made: a dispatch mode sees every backward kernel, with the mask that says which of its
gradients were asked for. And since a graph for alpha costs memory even where no gradient is taken, what enters the supernet
is looked at too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from oche.fast.backends.native import kernels
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.methods.darts import darts, darts_2nd
from oche.methods.pcdarts import pcdarts
from oche.methods.random_features import random_features, rf_darts, rf_pcdarts
from oche.search import begin as start
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.bilevel import FiniteDifference, Unrolled
from oche.search.loop import arch_step, search, weight_step
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from oche.search.trainable import BatchNormOnly, ClassifierOnly, WeightSubset
from oche.watch.probes import discretisation_gap
from reference.tiny import tiny_problem

aten = torch.ops.aten


@pytest.fixture
def _plain_supernet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions can be counted in the plain supernet only; tests/unit/fast has the gradient modes of the fused one."""
    monkeypatch.setattr(start, "accelerate", lambda supernet, compile: supernet)


class Backwards(TorchDispatchMode):
    """Counts the gradients that backward kernels are asked for, by what they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet is aten.convolution_backward:
            self.seen["convolution"] += 1
            self.seen["convolution's input"] += args[-1][0]
            self.seen["convolution's weight"] += args[-1][1]
        elif packet is aten.native_batch_norm_backward:
            self.seen["batch norm"] += 1
            self.seen["batch norm's weight"] += args[-1][1] or args[-1][2]
        elif packet is aten._softmax_backward_data:
            self.seen["alpha"] += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Entered:
    """The arguments of one supernet forward: whether its weights and op weights carry a graph."""

    weights: bool
    frozen: bool
    op_weights: bool


@contextmanager
def watched(state: SearchState) -> Iterator[list[Entered]]:
    """Every forward of the supernet, with the weights that functional_call puts in."""
    seen: list[Entered] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        given = dict(module.named_parameters()) | dict(module.named_buffers())
        inside = {name: pack.name for pack in state.weights.packs for name in pack.weights if pack.name in given}
        parameters = {name: given[inside.get(name, name)] for name, _ in module.named_parameters()}
        seen.append(
            Entered(
                weights=any(t.requires_grad for n, t in parameters.items() if n in state.learns),
                frozen=any(t.requires_grad for n, t in parameters.items() if n not in state.learns),
                op_weights=any(t.requires_grad for t in inputs[1].values()),
            )
        )

    handle = state.supernet.register_forward_pre_hook(look)
    yield seen
    handle.remove()


@dataclass
class Seen:
    state: SearchState
    backwards: Counter[str]
    forwards: list[Entered]


def one_step(problem: Problem, method: Method, which: str) -> Seen:
    """The named step alone, counted."""
    state = begin(problem, method)
    weights, arch = streams(problem, method)
    losses, now = bilevel(state, method), StepBatches(weights, arch, 0)
    with watched(state) as forwards, Backwards() as counter:
        if which == "alpha":
            arch_step(state, method, losses, now)
        else:
            weight_step(state, method, losses, now)
    return Seen(state, counter.seen, forwards)


def nb201() -> Problem:
    return tiny_problem("nb201", epochs=2, count=16, cells=1, channels=4)


def small_darts() -> Problem:
    return tiny_problem("darts", epochs=2, count=16, cells=3, channels=4, nodes=1)


SPACES: dict[str, Callable[[], Problem]] = {"nb201": nb201, "darts": small_darts}
FIRST_ORDER: dict[str, Callable[[], Method]] = {
    "darts": darts,
    "pcdarts": lambda: pcdarts(2),
    "rf_darts": rf_darts,
    "rf_darts, classifier trained": lambda: rf_darts(classifier=True),
    "rf_pcdarts": lambda: rf_pcdarts(2),
}
every_space = pytest.mark.parametrize("space", SPACES)
every_method = pytest.mark.parametrize("name", FIRST_ORDER)


# ---------------------------------------------------------------------- bit-identical

SWITCHES: dict[str, Callable[[], Method]] = {
    "literal": rf_darts,
    "classifier": lambda: rf_darts(classifier=True),
    "stem": lambda: random_features(darts(), stem=True),
    "without pool norms": lambda: random_features(darts(), pool_bn=False),
    "binary": lambda: rf_darts(initialiser="binary"),
    "partial channels": lambda: replace(rf_pcdarts(2), arch_start=0.0),
    "second order": lambda: random_features(darts_2nd()),
    "finite difference": lambda: random_features(darts_2nd(finite_difference=True)),
    "classifier alone": lambda: replace(darts(), trainable=ClassifierOnly()),
    "classifier alone, uniform gamma": lambda: replace(darts(), trainable=ClassifierOnly("uniform", "orthogonal")),
}


@every_space
@pytest.mark.parametrize("switch", SWITCHES)
def test_frozen_tensors_are_bit_identical_after_a_search(space: str, switch: str) -> None:
    problem, method = SPACES[space](), SWITCHES[switch]()
    before = {name: t.detach().clone() for name, t in begin(problem, method).supernet.named_parameters()}
    state = search(problem, method).state
    after = dict(state.supernet.named_parameters())
    frozen = set(before) - state.learns
    assert frozen
    assert {name for name in frozen if not torch.equal(before[name], after[name])} == set()
    moved = {name for name in state.learns if not torch.equal(before[name], after[name])}
    assert moved == state.learns, "weight decay alone moves every weight that learns; a bias gets gradients here"
    for name, t in state.alpha.items():
        assert not torch.equal(t.detach(), state.trajectory[name][0]), f"{name} did not move"
    assert all(after[name].grad is None for name in frozen), "a frozen weight has a gradient"
    assert not any(
        t is p for g in state.weight_optimizer.param_groups for p in g["params"] for t in map(after.get, frozen)
    )


@every_space
def test_every_convolution_is_frozen_and_every_batch_norm_learns(space: str) -> None:
    state = begin(SPACES[space](), rf_darts())
    kinds = {"conv": 0, "norm": 0}
    for path, module in state.supernet.named_modules():
        if isinstance(module, nn.Conv2d):
            kinds["conv"] += 1
            assert f"{path}.weight" not in state.learns
            assert not module.weight.requires_grad
        if isinstance(module, nn.BatchNorm2d):
            kinds["norm"] += 1
            assert {f"{path}.weight", f"{path}.bias"} <= state.learns, f"{path} is not affine"
    assert min(kinds.values()) > 10
    assert not any("classifier" in name for name in state.learns)


@every_space
def test_the_ablations_controls_train_the_classifier_alone(space: str) -> None:
    plain = begin(SPACES[space](), replace(darts(), trainable=ClassifierOnly()))
    uniform = begin(SPACES[space](), replace(darts(), trainable=ClassifierOnly("uniform")))
    assert plain.learns == uniform.learns == {"body.classifier.weight", "body.classifier.bias"}
    gammas = []
    for state in (plain, uniform):
        norms = [m for m in state.supernet.modules() if isinstance(m, nn.BatchNorm2d)]
        gammas.append(torch.cat([m.weight.flatten() for m in norms if m.affine]))
        assert all(not m.bias.any() for m in norms if m.affine)
        assert all(m.affine for m in norms) == (state is uniform)
    assert torch.equal(gammas[0], torch.ones_like(gammas[0]))
    assert gammas[1].min() >= 0
    assert gammas[1].max() < 1
    assert abs(float(gammas[1].mean()) - 0.5) < 0.1
    again = begin(SPACES[space](), replace(darts(), trainable=ClassifierOnly("uniform")))
    assert all(
        torch.equal(t, p) for t, p in zip(again.supernet.parameters(), uniform.supernet.parameters(), strict=True)
    )
    for name, t in plain.supernet.named_parameters():  # the same convolutions in both
        if t.dim() == 4:
            assert torch.equal(t, uniform.supernet.get_parameter(name))


@every_space
def test_a_subset_trains_as_many_weights_as_batch_norm_has(space: str) -> None:
    problem, method = SPACES[space](), replace(darts(), trainable=WeightSubset())
    plain = begin(problem, darts()).supernet
    state = begin(problem, method)
    before = {name: module.weight.detach().clone() for name, module in convolutions(state.supernet)}
    assert all(torch.equal(before[name], module.weight) for name, module in convolutions(plain)), "drawn as ever"
    norms = [m for m in begin(problem, rf_darts()).supernet.modules() if isinstance(m, nn.BatchNorm2d)]
    chosen = [t for name, t in state.theta.items() if "classifier" not in name]
    assert sum(t.numel() for t in chosen) == sum(2 * m.num_features for m in norms)
    assert {name for name in state.learns if "classifier" in name} == {"body.classifier.weight", "body.classifier.bias"}
    after = dict(convolutions(search(problem, method).state.supernet))
    moved = sum(int((after[name].weight != kernel).sum()) for name, kernel in before.items())
    assert 0.9 * sum(t.numel() for t in chosen) < moved <= sum(t.numel() for t in chosen)
    for name, kernel in before.items():
        entries = torch.ones_like(kernel, dtype=torch.bool).flatten()
        entries[after[name].parametrizations.weight[0].index] = False
        fixed = after[name].weight.detach().flatten()[entries]
        assert torch.equal(fixed, kernel.flatten()[entries]), "a weight outside the subset moved"
    norm = [t for name, t in begin(problem, method).supernet.named_parameters() if name not in state.learns]
    end = search(problem, method).state.supernet
    still = [t for name, t in end.named_parameters() if name not in state.learns]
    assert all(torch.equal(a, b) for a, b in zip(norm, still, strict=True))


def convolutions(supernet: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, module in supernet.named_modules():
        if isinstance(module, nn.Conv2d):
            yield name, module


@every_space
def test_a_subset_gives_the_same_in_fused_cells(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, method = SPACES[space](), replace(darts(), trainable=WeightSubset())
    fused = search(problem, method).state
    monkeypatch.setattr(start, "accelerate", lambda supernet, compile: supernet)
    plain = search(problem, method).state
    for name, t in plain.alpha.items():
        torch.testing.assert_close(fused.alpha[name], t, rtol=1e-3, atol=1e-5)


def test_the_gap_of_a_subset_inherits_the_kernels_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference: the same kernels as plain parameters."""
    problem = nb201()
    state = search(problem, replace(darts(), trainable=WeightSubset())).state
    taken: list[dict[str, torch.Tensor]] = []
    inherit = type(problem.space).inherit

    def look(self: object, network: nn.Module, theta: dict[str, torch.Tensor], batches: object) -> None:
        inherit(problem.space, network, theta, batches)  # type: ignore[arg-type]
        taken.append(dict(network.named_parameters()))

    monkeypatch.setattr(type(problem.space), "inherit", look)
    cell = Genotype.parse(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"
    )
    discretisation_gap(state, problem, cell)
    kernels = {name: module.weight for name, module in convolutions(state.supernet)}
    copied = [n for n, t in taken[0].items() if t.dim() == 4]
    assert copied
    for name in copied:
        assert torch.equal(taken[0][name], kernels[name.replace(".mixed.ops.", ".ops.").removesuffix(".weight")])


# ---------------------------------------------------------------------- nothing for the bin


@every_space
@every_method
def test_the_alpha_step_computes_no_weight_gradient(space: str, name: str) -> None:
    seen = one_step(SPACES[space](), FIRST_ORDER[name](), "alpha")
    assert seen.backwards["alpha"] > 0, "the counter sees nothing"
    assert seen.backwards["convolution"] > 0
    assert seen.backwards["convolution's weight"] == 0
    if kernels() is not None:  # plain torch's sums into nodes take alpha's own derivative from the same operation
        assert seen.backwards["batch norm's weight"] == 0
    assert seen.forwards == [Entered(weights=False, frozen=False, op_weights=True)]
    assert all(p.grad is None for p in seen.state.supernet.parameters())


@every_space
@every_method
def test_the_weight_step_computes_no_alpha_gradient(space: str, name: str) -> None:
    seen = one_step(SPACES[space](), FIRST_ORDER[name](), "weight")
    assert seen.backwards["batch norm's weight"] > 0, "the counter sees nothing"
    assert seen.backwards["alpha"] == 0
    assert seen.forwards == [Entered(weights=True, frozen=False, op_weights=False)]
    assert all(t.grad is None for t in seen.state.alpha.values())


@pytest.mark.usefixtures("_plain_supernet")
@every_space
def test_frozen_convolutions_get_no_gradient_and_trained_ones_do(space: str) -> None:
    convolutions = sum(isinstance(m, nn.Conv2d) for m in begin(SPACES[space](), darts()).supernet.modules())
    trained = one_step(SPACES[space](), darts(), "weight").backwards
    assert trained["convolution's weight"] == trained["convolution"] == convolutions
    frozen = one_step(SPACES[space](), rf_darts(), "weight").backwards
    assert frozen["convolution"] > 0, "gradients still pass through to the batch norms before"
    assert frozen["convolution's weight"] == 0


@pytest.mark.usefixtures("_plain_supernet")
@every_space
def test_the_frozen_stem_is_not_even_passed_through(space: str) -> None:
    """Every convolution but the stem's first has a batch norm before it: that one needs no backward at all."""
    convolutions = sum(isinstance(m, nn.Conv2d) for m in begin(SPACES[space](), rf_darts()).supernet.modules())
    assert one_step(SPACES[space](), rf_darts(), "weight").backwards["convolution"] == convolutions - 1
    assert one_step(SPACES[space](), rf_darts(), "alpha").backwards["convolution"] < convolutions


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("arch_gradient", [Unrolled(), FiniteDifference()], ids=lambda g: type(g).__name__)
def test_second_order_needs_weight_gradients_and_only_of_what_learns(
    arch_gradient: Unrolled | FiniteDifference, frozen: bool
) -> None:
    """The declared exception: the alpha step takes weight gradients, but none of a frozen convolution."""
    method = replace(darts(), arch_gradient=arch_gradient)
    seen = one_step(nb201(), random_features(method) if frozen else method, "alpha")
    assert seen.backwards["alpha"] > 0
    assert seen.backwards["batch norm's weight"] > 0
    assert (seen.backwards["convolution's weight"] == 0) == frozen
    assert not any(forward.frozen for forward in seen.forwards)


def test_the_counter_would_notice() -> None:
    """An alpha step whose weights were not detached, with gradients for all: what the tests above must refuse."""
    problem, method = nb201(), darts()
    state = begin(problem, method)
    weights, arch = streams(problem, method)
    losses, now = bilevel(state, method), StepBatches(weights, arch, 0)
    with watched(state) as forwards, Backwards() as counter:
        losses.outer(state.theta, state.alpha, now.outer()).backward()
    assert counter.seen["convolution's weight"] > 0
    assert forwards == [Entered(weights=True, frozen=False, op_weights=True)]


# ---------------------------------------------------------------------- the part itself


def test_random_features_of_every_gradient_method() -> None:
    """`random_features` changes the trainable slot, the name and the citation, and nothing else."""
    for build in METHODS.values():
        base = build()
        if isinstance(base, Method) and not base.name.startswith("rf_"):
            frozen = random_features(base)
            same = replace(frozen, name=base.name, trainable=base.trainable, papers=base.papers)
            assert same == base
            assert isinstance(frozen.trainable, BatchNormOnly)
            assert frozen.name == f"rf_{base.name}"


def test_random_features_need_a_supernet() -> None:
    with pytest.raises(ValueError, match="random_sampling trains none"):
        random_features(METHODS["random_sampling"]())


@pytest.mark.parametrize("initialiser", ["kaiming_normal", "kaiming_uniform", "orthogonal", "binary"])
def test_initialisers_draw_every_convolution_anew_and_nothing_else(initialiser: str) -> None:
    drawn = dict(begin(nb201(), rf_darts(initialiser=initialiser)).supernet.named_parameters())  # type: ignore[arg-type]
    plain = dict(begin(nb201(), rf_darts()).supernet.named_parameters())
    again = dict(begin(nb201(), rf_darts(initialiser=initialiser)).supernet.named_parameters())  # type: ignore[arg-type]
    for name, t in drawn.items():
        assert torch.equal(t, again[name]), "the seed alone decides"
        assert torch.equal(t, plain[name]) == (t.ndim != 4), name
        if t.ndim == 4:
            fan_in = t[0].numel()
            flat = t.detach().flatten(1)
            if initialiser == "binary":
                torch.testing.assert_close(flat.abs(), torch.full_like(flat, (2 / fan_in) ** 0.5))
                assert {-1.0, 1.0} == set(flat.sign().unique().tolist())
            elif initialiser == "kaiming_uniform":
                assert float(flat.abs().max()) <= (6 / fan_in) ** 0.5
            elif initialiser == "kaiming_normal":
                assert 0.5 < float(flat.std()) / (2 / fan_in) ** 0.5 < 1.6
            elif flat.shape[0] <= flat.shape[1]:
                torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), atol=1e-5, rtol=0)
