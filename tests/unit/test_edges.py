"""Edges that wrap another one, or run some of their candidates only, against sums written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from oche.base import Draw
from oche.methods.darts import darts
from oche.schedule import Constant, Linear
from oche.search.begin import begin
from oche.search.loop import search
from oche.spaces.darts import DARTS_OPS
from oche.spaces.edges import (
    AuxiliarySkip,
    DropPath,
    EdgeFactory,
    PartialChannels,
    SampledOps,
    SkipDropout,
    WeightedSum,
)
from oche.spaces.ops import OPS
from reference.tiny import tiny_problem

C = 4
x = torch.rand(3, C, 8, 8, dtype=torch.float64)
w = torch.linspace(0.05, 0.2, len(DARTS_OPS), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def build(factory: EdgeFactory, stride: int = 1) -> nn.Module:
    return factory(DARTS_OPS, C, stride, lambda op, width: OPS[op](width, stride, False))


def at(progress: float, phase: str = "weight", step: int = 0) -> Draw:
    return Draw(1, step, phase, progress)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("inner", [WeightedSum(), PartialChannels(2)])
def test_an_auxiliary_skip_is_added_and_fades(inner: EdgeFactory, stride: int) -> None:
    edge = build(AuxiliarySkip(inner, Linear(1.0, 0.0)), stride)
    torch.manual_seed(0)
    alone = build(inner, stride)
    own = {n: p for n, p in edge.named_parameters() if n.startswith("ops.")}
    assert own.keys() == dict(alone.named_parameters()).keys(), "the candidates keep their names"
    alone.load_state_dict(edge.state_dict(), strict=False)
    skip = x if stride == 1 else edge.skip(x)
    for progress, beta in ((0.0, 1.0), (0.25, 0.75)):
        torch.testing.assert_close(edge(x, w, at(progress)), alone(x, w, at(progress)) + beta * skip)
    assert torch.equal(edge(x, w, at(1.0)), alone(x, w, at(1.0)))


def test_sampled_ops_run_alone() -> None:
    edge = build(SampledOps())
    ran: list[str] = []
    for name, op in edge.ops.items():
        op.register_forward_hook(lambda *_, name=name: ran.append(name))
    one = torch.zeros(len(DARTS_OPS))
    one[4] = 0.7
    torch.testing.assert_close(edge(x, one, at(0)), 0.7 * edge.ops["sep_conv_3x3"](x))
    assert set(ran) == {"sep_conv_3x3"}
    torch.testing.assert_close(edge(x, w, at(0)), build_sum(edge))


def build_sum(edge: nn.Module) -> torch.Tensor:
    return sum((w[o] * op(x) for o, op in enumerate(edge.ops.values())), torch.zeros_like(x))


@pytest.mark.parametrize("wrapper", [DropPath, SkipDropout])
def test_dropout_is_off_at_rate_zero_and_in_evaluation(wrapper: type[DropPath] | type[SkipDropout]) -> None:
    torch.manual_seed(0)
    plain = build(WeightedSum())
    torch.manual_seed(0)
    edge = build(wrapper(rate=Linear(0.0, 0.5)))
    assert torch.equal(edge(x, w, at(0.0)), plain(x, w, at(0.0)))
    assert torch.equal(edge(x, w, at(1.0, "eval")), plain(x, w, at(1.0)))
    assert not torch.equal(edge(x, w, at(1.0)), plain(x, w, at(1.0)))
    assert torch.equal(edge(x, w, at(1.0)), edge(x, w, at(1.0))), "the draw decides, not the clock"
    assert not torch.equal(edge(x, w, at(1.0)), edge(x, w, at(1.0, step=1)))


def test_drop_path_loses_whole_images_of_a_candidate_and_keeps_the_mean() -> None:
    edge = build(DropPath(rate=Constant(0.4), whole=False))
    many = torch.rand(2000, C, 4, 4)
    one = torch.zeros(len(DARTS_OPS))
    one[1] = 1.0  # a max pool
    ratio = edge(many, one, at(0)) / edge.ops["max_pool_3x3"].dropped(many)
    assert set(ratio.flatten().round(decimals=6).unique().tolist()) == {0.0, round(1 / 0.6, 6)}
    per_image = ratio.flatten(1)
    torch.testing.assert_close(per_image.std(1), torch.zeros(2000), atol=1e-9, rtol=0)
    assert abs(float((per_image[:, 0] == 0).double().mean()) - 0.4) < 0.05
    identity = torch.zeros(len(DARTS_OPS))
    identity[3] = 1.0
    assert torch.equal(edge(many, identity, at(0)), many), "an identity is never dropped"


def test_drop_path_loses_whole_mixed_edges_identity_and_all() -> None:
    """One draw for all candidates of an edge, so that an image keeps either their whole sum, scaled up, or nothing."""
    edge = build(DropPath(rate=Constant(0.4)))
    many = torch.rand(2000, C, 4, 4)
    ratio = (edge(many, w, at(0)) / build_like(edge)(many, w, at(0))).flatten(1)
    assert set(ratio.flatten().round(decimals=6).unique().tolist()) == {0.0, round(1 / 0.6, 6)}
    torch.testing.assert_close(ratio.std(1), torch.zeros(2000), atol=1e-9, rtol=0)
    assert abs(float((ratio[:, 0] == 0).double().mean()) - 0.4) < 0.05
    assert torch.equal(edge(many, w, at(0, "eval")), build_like(edge)(many, w, at(0)))


def build_like(edge: nn.Module) -> nn.Module:
    """The plain edge with the same weights."""
    plain = build(WeightedSum())
    plain.load_state_dict(edge.state_dict())
    return plain


def test_skip_dropout_drops_values_of_the_identity_alone() -> None:
    edge = build(SkipDropout(rate=Constant(0.3)))
    many = torch.rand(50, C, 8, 8) + 0.1
    identity = torch.zeros(len(DARTS_OPS))
    identity[3] = 1.0
    ratio = edge(many, identity, at(0)) / many
    assert set(ratio.flatten().round(decimals=6).unique().tolist()) == {0.0, round(1 / 0.7, 6)}
    assert abs(float((ratio == 0).double().mean()) - 0.3) < 0.02
    conv = torch.zeros(len(DARTS_OPS))
    conv[4] = 1.0
    assert torch.equal(edge(many, conv, at(0)), edge.ops["sep_conv_3x3"](many))


@pytest.mark.parametrize("factory", [AuxiliarySkip(), DropPath(), DropPath(whole=False), SkipDropout()], ids=repr)
def test_a_wrapped_supernet_s_weights_are_inherited(factory: EdgeFactory) -> None:
    """Under the network's own names: no weight of a chosen candidate is left as the network drew it."""
    problem = tiny_problem("darts", channels=4, cells=3, nodes=1)
    found = search(problem, replace(darts(), edge=factory))
    network = problem.space.network(found.genotype)
    theta = dict(found.state.supernet.named_parameters())
    problem.space.inherit(network, theta, [])
    from oche.spaces.edges import plain_name

    known = {plain_name(name): t for name, t in theta.items()}
    convolutions = [n for n, p in network.named_parameters() if p.dim() == 4]
    assert convolutions
    for name, p in network.named_parameters():
        if p.dim() == 4:
            assert torch.equal(p, known[name])


def test_wrapped_supernets_have_the_names_of_plain_ones() -> None:
    from oche.spaces.edges import plain_name

    problem = tiny_problem("darts", channels=4, cells=3, nodes=1)
    plain = set(dict(begin(problem, darts()).supernet.named_parameters()))
    for factory in (DropPath(), DropPath(whole=False), SkipDropout(), SampledOps()):
        own = dict(begin(problem, replace(darts(), edge=factory)).supernet.named_parameters())
        assert {plain_name(n) for n in own} == plain
