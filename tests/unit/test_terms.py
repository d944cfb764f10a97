"""Terms against closed forms in plain Python, float64."""

from __future__ import annotations

import math

import pytest
import torch

from oche.base import Batch
from oche.loop import begin
from oche.method import Method
from oche.relaxations import Gated
from oche.schedule import Constant
from oche.terms import Entropy, normalised_entropy
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
