"""DrNAS: the sample's law and derivative, the divergence, and what progressive learning keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts.same import assert_other_search, problem_of
from oche.base import Draw, Group
from oche.methods.drnas import (
    Dirichlet,
    DirichletKL,
    Progressive,
    _Sample,
    concentration,
    divergence,
    drnas,
    drnas_progressive,
    widened_with_adam,
)
from oche.optim import Adam
from oche.search.begin import begin
from oche.search.relaxations import Softmax
from oche.search.stages import Stage, Staged, entered
from oche.search.state import SearchState

pytestmark = pytest.mark.usefixtures("float64")


GROUP = Group("cell", ((0, 1), (0, 2)), (("a", "b", "c", "d"), ("a", "b", "c")))


def samples(eta: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """(count, E, O)."""
    masks = {} if mask is None else {"cell": mask}
    draws = [Draw(0, step, "weight", 0.5, masks) for step in range(count)]
    return torch.stack([Dirichlet()({"cell/alpha": eta}, GROUP, draw) for draw in draws])


ETA = torch.tensor([[0.7, -0.4, 0.0, -1.5], [-2.0, 1.0, 0.2, 9.0]], dtype=torch.float64)


def test_concentration_is_elu_plus_one_and_sound_far_below() -> None:
    x = torch.linspace(-8, 8, 33)
    torch.testing.assert_close(concentration(x), torch.nn.functional.elu(x) + 1)
    far = concentration(torch.linspace(-50, 50, 101, dtype=torch.float32))
    assert far.isfinite().all()
    assert torch.equal(far[:37], torch.full((37,), 1e-6, dtype=torch.float32)), (
        "the floor, reached below log(1e-6) = -13.8"
    )
    assert (far[37:] > 1e-6).all()


def test_samples_have_the_mean_and_variance_of_a_dirichlet() -> None:
    found = samples(ETA, 4000)
    for e, width in enumerate((4, 3)):
        law = torch.distributions.Dirichlet(concentration(ETA[e, :width]))
        deviation = law.variance.sqrt()
        assert ((found[:, e, :width].mean(0) - law.mean).abs() < 4 * deviation / 4000**0.5).all()
        torch.testing.assert_close(found[:, e, :width].var(0), law.variance, rtol=0.12, atol=0)
    assert not found[:, 1, 3].any(), "there is no fourth candidate"
    torch.testing.assert_close(found.sum(-1), torch.ones(4000, 2))


def test_a_masked_sample_has_the_law_of_the_rest() -> None:
    """Sub-vectors of a Dirichlet are Dirichlet: the whole drawn, masked and divided by its sum, as the authors' code does."""
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    own = samples(ETA, 4000, mask)[:, 0]
    whole = samples(ETA, 4000)[:, 0] * mask[0]
    theirs = whole / whole.sum(-1, keepdim=True)
    assert not own[:, 1].any()
    for moment in (1, 2):
        a, b = own.pow(moment), theirs.pow(moment)
        noise = (a.var(0) / 4000 + b.var(0) / 4000).sqrt().clamp_min(1e-12)
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * noise).all()


def test_the_derivative_is_torch_s_pathwise_one() -> None:
    """At the sample that was drawn: torch.distributions' own backward."""
    eta = ETA.clone().requires_grad_()
    draw = Draw(0, 3, "weight")
    x = Dirichlet()({"cell/alpha": eta}, GROUP, draw)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad((x * direction).sum(), eta)
    from torch.distributions.dirichlet import _Dirichlet_backward

    for e, width in enumerate((4, 3)):
        own = ETA[e, :width].clone().requires_grad_()
        beta = torch.nn.functional.elu(own) + 1
        through = _Dirichlet_backward(x.detach()[e, :width], beta.detach(), direction[e, :width])
        (wanted,) = torch.autograd.grad(beta, own, through)
        torch.testing.assert_close(got[e, :width], wanted)
    assert got[1, 3] == 0


def test_the_derivative_is_that_of_the_mean_on_average() -> None:
    """d E[p] / d eta by Monte Carlo against the closed form E[p] = beta / B."""
    eta = ETA.clone().requires_grad_()
    mean = samples(eta, 3000).mean(0)
    (got,) = torch.autograd.grad(mean[0, 0], eta)
    own = ETA.clone().requires_grad_()
    beta = torch.nn.functional.elu(own[0]) + 1
    (wanted,) = torch.autograd.grad(beta[0] / beta.sum(), own)
    torch.testing.assert_close(got, wanted, atol=0.01, rtol=0)


def test_the_derivative_is_finite_where_a_sample_is_exactly_0_or_1() -> None:
    """Concentrations so far apart that rounding leaves one-hot samples: there the pathwise derivative ends, and is no NaN."""
    beta = torch.tensor([[50.0, 1e-6, 1e-6, 0.0], [1e-6, 1e-6, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    seen = set[float]()
    for seed in range(20):
        x = _Sample.apply(beta, torch.Generator().manual_seed(seed))  # type: ignore[no-untyped-call]
        seen |= set(x.flatten().tolist())
        (grad,) = torch.autograd.grad((x * torch.tensor([1.0, -2.0, 3.0, 4.0])).sum(), beta)
        assert grad.isfinite().all()
        assert not grad[beta == 0].any()
    assert {0.0, 1.0} <= seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_nan_from_minus_50_to_50(dtype: torch.dtype) -> None:
    for level in torch.linspace(-50, 50, 41).tolist():
        for spread in (0.0, 30.0):
            eta = (
                (level + spread * torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
                .to(dtype)
                .requires_grad_()
            )
            x = Dirichlet()({"cell/alpha": eta}, GROUP, Draw(0, int(level), "alpha"))
            (grad,) = torch.autograd.grad(x[:, 0].sum(), eta)
            assert x.isfinite().all()
            assert grad.isfinite().all()
            torch.testing.assert_close(x.sum(-1), torch.ones(2, dtype=dtype))


def test_an_edge_with_one_op_left_always_draws_it() -> None:
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, 2] = True
    eta = ETA.clone().requires_grad_()
    x = samples(eta, 5, mask)
    assert torch.equal(x, mask.to(x).expand(5, 2, 4))
    assert not torch.autograd.grad(x.sum() + x[:, :, 2].square().sum(), eta)[0].any()


def test_the_divergence_is_torch_s() -> None:
    alive = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    beta = torch.where(alive > 0, concentration(ETA), torch.ones(()))
    got = divergence(beta, alive)
    for e, width in enumerate((4, 3)):
        law, uniform = (torch.distributions.Dirichlet(b) for b in (beta[e, :width], torch.ones(width)))
        torch.testing.assert_close(got[e], torch.distributions.kl_divergence(law, uniform))
    torch.testing.assert_close(divergence(torch.ones(2, 4), alive), torch.zeros(2))


def test_the_divergence_is_added_for_every_edge_of_every_group() -> None:
    state = begin(problem_of("darts"), drnas(kl=True))
    alpha = {name: 0.5 * torch.randn_like(t) for name, t in state.alpha.items()}
    batch = type("Batch", (), {"images": torch.zeros(1)})()
    wanted = sum(
        float(
            torch.distributions.kl_divergence(
                torch.distributions.Dirichlet(torch.nn.functional.elu(row) + 1),
                torch.distributions.Dirichlet(torch.ones_like(row)),
            )
        )
        for t in alpha.values()
        for row in t
    )
    torch.testing.assert_close(float(DirichletKL(2.0)(state, {}, alpha, batch)), 2 * wanted)


def test_selection_looks_at_softmax_or_at_the_mean_and_they_differ_across_edges() -> None:
    alpha, draw = {"cell/alpha": torch.tensor([[3.0, 0.0, 0.0, 0.0], [-9.0, -9.0, -6.0, 0.0]])}, Draw(0)
    soft, mean = (
        Dirichlet(by_mean)(alpha, GROUP, draw) if by_mean else Softmax()(alpha, GROUP, draw)
        for by_mean in (False, True)
    )
    torch.testing.assert_close(Dirichlet().strength(alpha, GROUP, draw), soft)
    torch.testing.assert_close(Dirichlet(True).strength(alpha, GROUP, draw), mean)
    assert (soft.amax(-1) - mean.amax(-1)).abs().max() > 0.1


def test_the_divergence_is_another_regulariser() -> None:
    assert_other_search(drnas(kl=True), drnas())


# ---------------------------------------------------------------------- progressive


def test_each_edge_keeps_its_strongest_ops_and_twice_the_channels() -> None:
    problem = problem_of("nb201", epochs=2, channels=8)
    kept: list[tuple[SearchState, SearchState]] = []
    plan = Progressive((4, 2), (5, 3))

    class Look:
        def __call__(self, *given: object) -> object:
            ended = given[2]
            if len(ended) == 2:  # type: ignore[arg-type]
                kept.append(ended)  # type: ignore[arg-type]
            return plan(*given)  # type: ignore[arg-type]

    result = Staged("look", drnas_progressive().method, Look()).search(problem)  # type: ignore[arg-type]
    ((first, second),) = kept
    eta, mask = first.alpha["cell/alpha"].detach(), second.mask["cell"]
    assert mask.sum(-1).tolist() == [3] * 6
    assert (eta.masked_fill(~mask, torch.inf).amin(-1) >= eta.masked_fill(mask, -torch.inf).amax(-1)).all()
    for e, choice in enumerate(result.genotype.groups["cell"]):
        assert mask[e, problem.space.groups[0].ops[e].index(choice.op)]
    shapes = {n: (t.shape, second.theta[n].shape) for n, t in first.theta.items() if n in second.theta}
    convolutions = [pair for n, pair in shapes.items() if ".ops." in n and len(pair[0]) == 4]
    assert convolutions
    assert all(new[0] == 2 * old[0] and new[1] == 2 * old[1] for old, new in convolutions)


def test_new_channels_are_copies_and_momenta_go_with_them() -> None:
    problem = problem_of("nb201", epochs=2, channels=8)
    method = drnas_progressive().method
    plan = Progressive((4, 2), (5, 5))
    stage = plan(problem, method, ())
    assert isinstance(stage, Stage)
    first = entered(problem, stage, ())
    for t in first.theta.values():
        t.grad = torch.randn_like(t)
    for t in first.alpha.values():
        t.grad = torch.randn_like(t)
    first.weight_optimizer.step()
    first.arch_optimizer.step()
    following = plan(problem, method, (first,))
    assert isinstance(following, Stage)
    assert following.enter is widened_with_adam
    second = entered(problem, following, (first,))
    grown = 0
    for name, t in second.theta.items():
        old = first.theta[name].detach()
        momenta = [s.weight_optimizer.state[s.theta[name]]["momentum_buffer"] for s in (first, second)]
        assert momenta[1].shape == t.shape
        if t.shape != old.shape:
            grown += 1
            rows = [
                next(i for i in range(old.shape[0]) if torch.equal(new[: old.shape[1]], old[i])) for new in t.detach()
            ]
            assert rows[: old.shape[0]] == list(range(old.shape[0]))
            assert torch.equal(momenta[1][:, : old.shape[1]], momenta[0][rows])
    assert grown
    for name, alpha in second.alpha.items():
        own, old = (s.arch_optimizer.state[s.alpha[name]] for s in (second, first))
        assert torch.equal(own["exp_avg"], old["exp_avg"])
        assert own["exp_avg"] is not old["exp_avg"]
        assert torch.equal(alpha.detach(), first.alpha[name].detach())
    anew = replace(plan, keep_adam=False)(problem, method, (first,))
    assert anew is not None
    assert not entered(problem, anew, (first,)).arch_optimizer.state


def test_removed_ops_have_alpha_zero_and_kept_ones_their_own() -> None:
    """`prune` of utils.py: scattered into zeros. Adam's weight decay then finds nothing to pull."""
    problem = problem_of("nb201", epochs=2, channels=8)
    method, plan = drnas_progressive().method, Progressive((4, 2), (5, 3))
    stage = plan(problem, method, ())
    assert stage is not None
    first = entered(problem, stage, ())
    with torch.no_grad():
        first.alpha["cell/alpha"].copy_(torch.randn(6, 5, generator=torch.Generator().manual_seed(5)))
    following = plan(problem, method, (first,))
    assert following is not None
    second = entered(problem, following, (first,))
    mask, eta = second.mask["cell"], first.alpha["cell/alpha"].detach()
    torch.testing.assert_close(second.alpha["cell/alpha"].detach(), eta * mask)
    assert mask.sum(-1).tolist() == [3] * 6


def test_drnas_is_the_published_one() -> None:
    assert drnas().arch_optimizer == Adam(3e-4, (0.5, 0.999), 1e-3)
    assert drnas(kl=True).arch_optimizer == Adam(3e-4, (0.5, 0.999), 0.0)
    assert drnas(kl=True).outer_terms == (DirichletKL(1e-3),)
    assert drnas().relaxation == Dirichlet(False, 1e-3)
    assert drnas().space == {"darts.without": ("none",)}
    progressive = drnas_progressive()
    assert progressive.stages == Progressive((4, 2), (8, 3), True)
    assert progressive.method.arch_start == 0.3


def test_evaluation_takes_the_mean_of_what_remains() -> None:
    group = Group("cell", ((0, 1), (0, 2)), (("a", "b", "c"), ("a", "b", "c")))
    eta = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -3.0]])
    mask = torch.tensor([[True, False, True], [True, True, True]])
    beta = (torch.nn.functional.elu(eta) + 1) * mask
    found = Dirichlet()({"cell/alpha": eta}, group, Draw(0, mask={"cell": mask}))
    torch.testing.assert_close(found, beta / torch.tensor([[4.5], [3 + math.exp(-3.0)]]))


def test_stages_divide_the_epochs_and_the_progress() -> None:
    searcher, problem = drnas_progressive(), problem_of("toy", epochs=5)
    assert isinstance(searcher, Staged)
    ended: tuple[SearchState, ...] = ()
    for epochs, span in ((2, (0.0, 0.5)), (3, (0.5, 1.0))):
        stage = searcher.stages(problem, searcher.method, ended)
        assert stage is not None
        assert (stage.epochs, stage.span) == (epochs, span)
        ended += (begin(problem, searcher.method),)
    assert searcher.stages(problem, searcher.method, ended) is None
