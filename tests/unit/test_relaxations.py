"""Relaxations against their formulas in plain Python, and what holds for each of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oche.base import Draw, Group, counted
from oche.search.relaxations import EdgeNormalised, Gated, Relaxation, Sigmoid, Softmax, masked_softmax
from oche.spaces import SPACES
from reference.derivation import shares, softmax

DRAW = Draw(seed=1)
GROUPS = {f"{name} {group.name}": group for name, cls in SPACES.items() for group in cls().groups}
UNEVEN = Group(
    "uneven", ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), (("a", "b"), ("a",), ("a", "b", "c"), ("c", "b"), ("b",))
)
GROUPS["uneven"] = UNEVEN
RELAXATIONS: list[Relaxation] = [
    Softmax(),
    EdgeNormalised(),
    EdgeNormalised(Softmax(1.0), 1.0),
    Sigmoid(1e-3),
    Sigmoid(1e-3, normalised=True),
    Gated(),
]
seeds = st.integers(0, 2**31)


def draw_alpha(relaxation: Relaxation, group: Group, seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Alpha of the right names and shapes, with arbitrary values."""
    fresh = relaxation.init(group, counted(0))
    return {
        name: (scale * torch.randn(t.shape, generator=counted(seed, name), dtype=torch.float64)).requires_grad_()
        for name, t in fresh.items()
    }


@pytest.mark.parametrize("name", GROUPS)
@given(seed=seeds)
def test_softmax_equals_the_formula(name: str, seed: int) -> None:
    group = GROUPS[name]
    alpha = draw_alpha(Softmax(), group, seed)
    w = Softmax()(alpha, group, DRAW).detach()
    rows = alpha[f"{group.name}/alpha"].tolist()
    for e, ops in enumerate(group.ops):
        expected = softmax(rows[e][: len(ops)]) + [0.0] * (group.width - len(ops))
        assert w[e].tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("target", [0.88, 0.5, 0.1])
@pytest.mark.parametrize("name", ["nb201 cell", "darts normal"])
def test_alpha_can_begin_with_a_mean_entropy(name: str, target: float) -> None:
    """By the formula, in plain Python; the draw is the one that has a scale."""
    group = GROUPS[name]
    alpha = Softmax(entropy=target).init(group, counted(7))[f"{group.name}/alpha"]
    plain = Softmax(1.0).init(group, counted(7))[f"{group.name}/alpha"]
    assert torch.allclose(alpha / alpha.norm(), plain / plain.norm())
    found = []
    for row, ops in zip(alpha.tolist(), group.ops, strict=True):
        p = softmax(row[: len(ops)])
        found.append(-sum(x * math.log(x) for x in p if x > 0) / math.log(len(ops)))
    assert sum(found) / len(found) == pytest.approx(target, abs=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
def test_sigmoid_equals_the_formula(normalised: bool) -> None:
    alpha = draw_alpha(Sigmoid(), UNEVEN, 3)
    w = Sigmoid(normalised=normalised)(alpha, UNEVEN, DRAW).detach()
    for row, got, ops in zip(alpha["uneven/alpha"].tolist(), w.tolist(), UNEVEN.ops, strict=True):
        p = [1 / (1 + math.exp(-a)) for a in row[: len(ops)]]
        total = sum(p) if normalised else 1.0
        assert got == pytest.approx([x / total for x in p] + [0.0] * (3 - len(ops)), abs=1e-14)


@given(seed=seeds)
def test_edge_normalisation_equals_the_authors_code(seed: int) -> None:
    group, _ = SPACES["darts"]().groups
    alpha = draw_alpha(EdgeNormalised(), group, seed)
    w = EdgeNormalised()(alpha, group, DRAW).detach()
    for e, share in enumerate(shares(alpha["normal/beta"].tolist())):
        expected = [share * p for p in softmax(alpha["normal/alpha"][e].tolist())]
        assert w[e].tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", GROUPS)
def test_edge_normalised_weights_of_a_node_sum_to_one(name: str) -> None:
    group = GROUPS[name]
    w = EdgeNormalised()(draw_alpha(EdgeNormalised(), group, 3), group, DRAW).detach()
    for edges in group.into().values():
        assert float(w[edges].sum()) == pytest.approx(1.0)


def test_edge_normalisation_survives_large_parameters() -> None:
    alpha = {"uneven/alpha": torch.zeros(5, 3), "uneven/beta": torch.tensor([1e4, 0.0, -1e4, 1e4, 0.0])}
    w = EdgeNormalised()(alpha, UNEVEN, DRAW).sum(-1)
    assert w.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("relaxation", RELAXATIONS, ids=repr)
@pytest.mark.parametrize("name", GROUPS)
def test_every_relaxation(relaxation: Relaxation, name: str) -> None:
    """Shapes and names, reproducible starts, zero where masked, differentiable, strength without noise."""
    group = GROUPS[name]
    alpha = relaxation.init(group, counted(7))
    assert all(key.startswith(f"{group.name}/") for key in alpha)
    assert alpha[f"{group.name}/alpha"].shape == (len(group.edges), group.width)
    assert all(torch.equal(t, relaxation.init(group, counted(7))[key]) for key, t in alpha.items())
    assert any(not torch.equal(t, relaxation.init(group, counted(8))[key]) for key, t in alpha.items())
    alpha = draw_alpha(relaxation, group, 5)
    w = relaxation(alpha, group, DRAW)
    assert w.shape == (len(group.edges), group.width)
    assert torch.equal(w == 0, ~group.valid())
    assert torch.equal(relaxation.strength(alpha, group, DRAW), relaxation.strength(alpha, group, Draw(2, 5, "alpha")))
    grads = torch.autograd.grad((w * torch.rand(w.shape, generator=counted(1))).sum(), list(alpha.values()))
    assert all(torch.isfinite(g).all() for g in grads)
    assert any(g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("relaxation", RELAXATIONS, ids=repr)
def test_gradients_by_finite_differences(relaxation: Relaxation) -> None:
    alpha = draw_alpha(relaxation, UNEVEN, 2)
    mask = {"uneven": torch.tensor([[True, False, True], [True] * 3, [False, True, True], [True] * 3, [False] * 3])}

    def weights(*tensors: torch.Tensor) -> torch.Tensor:
        return relaxation(dict(zip(alpha, tensors, strict=True)), UNEVEN, Draw(1, mask=mask))

    assert torch.autograd.gradcheck(weights, tuple(alpha.values()))
    assert torch.autograd.gradgradcheck(weights, tuple(alpha.values())), "second-order methods differentiate twice"


@given(seed=seeds, data=st.data())
def test_masked_softmax_is_a_softmax_over_what_is_left(seed: int, data: st.DataObject) -> None:
    group, _ = SPACES["s3"]().groups
    alive = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=14, max_size=14)))
    logits = torch.randn(14, 3, generator=counted(seed), dtype=torch.float64)
    w = masked_softmax(logits, group, Draw(0, mask={"normal": alive}))
    for e in range(14):
        left = [o for o in range(3) if alive[e, o]]
        p = dict(zip(left, softmax([float(logits[e, o]) for o in left]), strict=True)) if left else {}
        assert w[e].tolist() == pytest.approx([p.get(o, 0.0) for o in range(3)], abs=1e-14)
    untouched = masked_softmax(logits, group, Draw(0, mask={"reduce": alive}))
    assert torch.equal(untouched, logits.softmax(-1)), "another group's mask"


@pytest.mark.parametrize("relaxation", RELAXATIONS, ids=repr)
def test_a_mask_cannot_revive_what_an_edge_never_had(relaxation: Relaxation) -> None:
    alpha = draw_alpha(relaxation, UNEVEN, 6)
    everything = Draw(1, mask={"uneven": torch.ones(5, 3, dtype=torch.bool)})
    assert torch.equal(relaxation(alpha, UNEVEN, everything), relaxation(alpha, UNEVEN, DRAW))


def test_the_start_is_small_and_normal() -> None:
    """1e-3 N(0, 1), as in the authors' code."""
    group, _ = SPACES["darts"]().groups
    rows = [Softmax().init(group, counted(i))["normal/alpha"] for i in range(50)]
    values = torch.cat(rows).flatten().double() * 1e3
    n = len(values)
    assert abs(float(values.mean())) < 4 / math.sqrt(n)
    assert abs(float(values.var()) - 1) < 4 * math.sqrt(2 / n)
    betas = torch.cat([EdgeNormalised().init(group, counted(i))["normal/beta"] for i in range(200)]).double() * 1e3
    assert abs(float(betas.var()) - 1) < 4 * math.sqrt(2 / len(betas))


def test_alpha_and_beta_start_from_different_numbers() -> None:
    group, _ = SPACES["darts"]().groups
    alpha = EdgeNormalised().init(group, counted(0))
    assert not set(alpha["normal/alpha"].flatten().tolist()) & set(alpha["normal/beta"].tolist())
