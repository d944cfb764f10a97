"""Lambda-DARTS: the directions against autograd, the weights' gradient against double backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oche.methods.darts import darts
from oche.methods.lambda_darts import Corr, Harmony, Sign, lambda_darts
from oche.schedule import Constant
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.callbacks import InnerStep
from oche.search.loop import set_learning_rate, weight_step
from reference.tiny import tiny_problem

pytestmark = pytest.mark.usefixtures("float64")


def mean_corr(g: Tensor) -> Tensor:
    pairs = [torch.cosine_similarity(g[i], g[j], dim=0) for i in range(len(g)) for j in range(i)]
    return torch.stack(pairs).mean()


def mean_sign(g: Tensor) -> Tensor:
    pairs = [(g[i] * g[j]).sum() / (g[i].abs() * g[j].abs()).sum() for i in range(len(g)) for j in range(i)]
    return torch.stack(pairs).mean()


@pytest.mark.parametrize(("direction", "literal"), [(Corr(), mean_corr), (Sign(), mean_sign)])
@pytest.mark.parametrize("cells", [2, 5])
def test_the_directions_are_the_gradients_of_the_mean_agreement(
    direction: Corr | Sign, literal: Callable[[Tensor], Tensor], cells: int
) -> None:
    g = torch.randn(cells, 7, generator=torch.Generator().manual_seed(cells)).requires_grad_()
    (expected,) = torch.autograd.grad(literal(g), g)
    torch.testing.assert_close(direction(g.detach()), expected, rtol=1e-10, atol=1e-12)


def test_parallel_gradients_need_no_correction() -> None:
    g = torch.arange(1.0, 7.0).expand(4, 6) * torch.tensor([[1.0], [2.0], [0.5], [3.0]])
    assert float(Corr()(g).norm()) < 1e-12


@pytest.mark.parametrize(("direction", "literal"), [(Corr(), mean_corr), (Sign(), mean_sign)])
def test_the_weights_gradient_is_that_of_the_loss_minus_the_agreement(
    direction: Corr | Sign, literal: Callable[[Tensor], Tensor]
) -> None:
    """Against double backward of the agreement through the op weights' gradients."""
    problem = tiny_problem("toy", batch=8)
    seen: list[dict[str, Tensor]] = []

    class Keep(Harmony):
        def after_inner_backward(self, state, grads, inner: InnerStep):  # type: ignore[no-untyped-def]
            seen.append(super().after_inner_backward(state, grads, inner))
            return seen[-1]

    method = replace(darts(), callbacks=(Keep(Constant(0.5), direction, 1e-6),), clip=None)
    state = begin(problem, method)
    weights, arch = streams(problem, method)
    set_learning_rate(state, method, weights.steps_per_epoch)
    now = StepBatches(weights, arch, 0)

    theta = {n: t.detach().clone().requires_grad_() for n, t in state.theta.items()}
    cells = state.space.groups[0].cells
    p = {c: w.detach().requires_grad_() for c, w in state.op_weights(state.alpha, state.draw("weight")).items()}
    loss, _ = state.task_loss(p, now.inner(), state.draw("weight"), theta)
    g = torch.autograd.grad(loss, [p[c] for c in cells], create_graph=True)
    total = loss - 0.5 * literal(torch.stack([t.flatten() for t in g]))
    expected = torch.autograd.grad(total, list(theta.values()), materialize_grads=True)

    weight_step(state, method, bilevel(state, method), now)
    for name, wanted in zip(theta, expected, strict=True):
        if name in seen[0]:
            torch.testing.assert_close(seen[0][name], wanted, rtol=1e-6, atol=1e-6)
    plain = torch.autograd.grad(
        state.task_loss(p, now.inner(), state.draw("weight"), theta)[0], list(theta.values()), materialize_grads=True
    )
    off = max(float((a - b).abs().max()) for a, b in zip(expected, plain, strict=True))
    assert off > 1e-4  # else the agreement would say nothing


def test_only_the_first_kind_of_cell_takes_part() -> None:
    state = begin(tiny_problem("darts", channels=4, cells=4, nodes=1), lambda_darts())
    (harmony,) = lambda_darts().callbacks
    assert isinstance(harmony, Harmony)
    assert harmony.cells(replace(state, step=1)) == state.space.groups[0].cells
    assert harmony.cells(state) == ()  # lambda begins at 0
