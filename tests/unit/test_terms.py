"""Terms against closed forms in plain Python, float64."""

from __future__ import annotations

import math

import pytest
import torch

from oche.base import Batch
from oche.schedule import Constant
from oche.search.begin import begin
from oche.search.method import Method
from oche.search.relaxations import EdgeNormalised, Gated
from oche.search.terms import Entropy, InputEntropy, discretisation, log_distance, normalised_entropy
from reference.tiny import tiny_problem

NOTHING = Batch(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([1.0, 1.0, 1.0], 1.0),
        ([2.0, 0.0], 0.0),
        ([1.0, 3.0], (0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / math.log(2)),
    ],
)
def test_normalised_entropy(weights: list[float], wanted: float) -> None:
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    h = normalised_entropy(w)
    assert float(h.detach()) == pytest.approx(wanted, abs=1e-12)
    assert torch.isfinite(torch.autograd.grad(h, w)[0]).all()


def test_the_term_is_the_mean_over_operations_and_gates() -> None:
    problem = tiny_problem("grid", channels=4, layers=2, levels=2)
    state = begin(problem, Method(relaxation=Gated()))
    alpha = {name: torch.randn(t.shape, dtype=torch.float64) for name, t in state.alpha.items()}
    (group,) = problem.space.groups
    ops, gates = [], []
    for e, names in enumerate(group.ops):
        if "connect" in names:
            b = 1 / (1 + math.exp(-float(alpha["grid/beta"][e])))
            gates.append(-(b * math.log(b) + (1 - b) * math.log(1 - b)) / math.log(2))
        else:
            top = [math.exp(float(a)) for a in alpha["grid/alpha"][e][: len(names)]]
            p = [x / sum(top) for x in top]
            ops.append(-sum(x * math.log(x) for x in p) / math.log(len(names)))
    got = Entropy(Constant(0.3), Constant(2.0))(state, {}, alpha, NOTHING)
    assert float(got) == pytest.approx(0.3 * sum(ops) / len(ops) + 2.0 * sum(gates) / len(gates), rel=1e-12)
    assert float(Entropy()(state, {}, alpha, NOTHING)) == 0


# ------------------------------------------------------------------ the forms of SSR and DA2S


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 0.5, 1.3], [3.0, 0.01]])
def test_log_distance_and_its_derivative(weights: list[float]) -> None:
    """-KL(uniform || p) by its definition; d/dw_k = 1 / (O w_k) - 1 / sum w."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    value, count, total = log_distance(w), len(weights), sum(weights)
    divergence = sum((1 / count) * math.log((1 / count) / (x / total)) for x in weights)
    assert float(value.detach()) == pytest.approx(-divergence, abs=1e-12)
    wanted = [1 / (count * x) - 1 / total for x in weights]
    assert torch.autograd.grad(value, w)[0].tolist() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("weights", [[0.2, 0.5, 1.3], [3.0, 0.01]])
def test_the_share_that_is_lost_and_its_derivative(weights: list[float]) -> None:
    """1 - w_m / S, whose derivative is w_m / S^2, less 1 / S at the greatest."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    value, total, most = discretisation(w), sum(weights), max(weights)
    assert value.item() == pytest.approx(1 - most / total)
    wanted = [most / total**2 - (x == most) / total for x in weights]
    assert torch.autograd.grad(value, w)[0].tolist() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [1.0, 4.0], [0.7, 0.1, 0.9, 0.4]])
def test_the_derivative_of_the_normalised_entropy(weights: list[float]) -> None:
    """d/dw_k of H = -sum p ln p is -(ln p_k + H) / sum w."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    p = [x / sum(weights) for x in weights]
    h = -sum(x * math.log(x) for x in p)
    wanted = [-(math.log(x) + h) / sum(weights) / math.log(len(weights)) for x in p]
    assert torch.autograd.grad(normalised_entropy(w), w)[0].tolist() == pytest.approx(wanted, rel=1e-10)


def test_a_weight_of_zero_has_a_finite_distance() -> None:
    w = torch.tensor([1.0, 0.0], requires_grad=True)
    value = log_distance(w)
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, w)[0]).all()


def literal_inputs(betas: list[float], count: float, inputs: int) -> float:
    """One node's part of DA2S: H(softmax beta) + count (sum of min(beta, 1) over beta > 0, less inputs)^2."""
    top = [math.exp(b) for b in betas]
    h = -sum(t / sum(top) * math.log(t / sum(top)) for t in top)
    return h + count * (sum(min(b, 1.0) for b in betas if b > 0) - inputs) ** 2


@pytest.mark.parametrize(("space", "relaxation"), [("grid", Gated()), ("darts", EdgeNormalised())])
def test_the_form_of_da2s_node_by_node(space: str, relaxation: Gated | EdgeNormalised) -> None:
    sizes = {"channels": 4, "layers": 2, "levels": 2} if space == "grid" else {"channels": 4, "cells": 3, "nodes": 2}
    state = begin(tiny_problem(space, **sizes), Method(relaxation=relaxation))  # type: ignore[arg-type]
    alpha = {
        name: (1.5 * torch.randn(t.shape, dtype=torch.float64)).requires_grad_() for name, t in state.alpha.items()
    }

    def literal(values: dict[str, list]) -> float:  # type: ignore[type-arg]
        edges, nodes = [], []
        for group in state.space.groups:
            for e, names in enumerate(group.ops):
                if "connect" not in names:
                    top = [math.exp(a) for a in values[f"{group.name}/alpha"][e][: len(names)]]
                    edges.append(-sum(t / sum(top) * math.log(t / sum(top)) for t in top))
            for target in {t for _, t in group.edges}:
                into = [e for e, (_, t) in enumerate(group.edges) if t == target]
                if space == "darts" or "connect" in group.ops[into[0]]:
                    nodes.append(literal_inputs([values[f"{group.name}/beta"][e] for e in into], 0.3, 1))
        return 0.7 * sum(edges) / len(edges) + 2.0 * sum(nodes) / len(nodes)

    term = InputEntropy(Constant(0.7), Constant(2.0), count=0.3, inputs=1)
    got = term(state, {}, alpha, NOTHING)
    values = {name: t.tolist() for name, t in alpha.items()}
    assert float(got.detach()) == pytest.approx(literal(values), rel=1e-12)
    name = next(n for n in alpha if n.endswith("beta"))
    grads = torch.autograd.grad(got, list(alpha.values()), materialize_grads=True)
    step = 1e-6
    for e in range(len(alpha[name])):
        up, down = (
            {**values, name: [b + sign * step * (i == e) for i, b in enumerate(values[name])]} for sign in (1, -1)
        )
        slope = (literal(up) - literal(down)) / (2 * step)
        assert float(grads[list(alpha).index(name)][e]) == pytest.approx(slope, abs=1e-7)
