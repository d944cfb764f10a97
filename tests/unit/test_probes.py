"""Probes against a dense Hessian, scipy, counting by hand, and the promise that they leave no trace."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.data import batches, none
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.methods import METHODS
from oche.methods.darts import darts
from oche.search.begin import begin, bilevel, streams
from oche.search.checkpoint import dumps
from oche.search.loop import search
from oche.search.method import Method
from oche.search.record import score
from oche.search.relaxations import Gated
from oche.search.selection import TopK, argmax
from oche.search.state import Problem, SearchState
from oche.spaces import GridSpace, NB201Space
from oche.tables import Table
from oche.watch.probes import (
    active_depth,
    active_strides,
    closed_gates,
    decoded_parameters,
    discretisation_gap,
    hessian_eigenvalue,
    kendall_tau,
    one_hot,
    parameter_free,
    skip_share,
    supernet_accuracy,
    validation_loss,
)
from reference.tiny import tiny_problem

CELLS = [f"|{a}~0|+|{b}~0|{c}~1|" for a, b, c in [
    ("skip_connect", "skip_connect", "skip_connect"),
    ("nor_conv_3x3", "none", "nor_conv_3x3"),
    ("nor_conv_3x3", "skip_connect", "skip_connect"),
    ("none", "nor_conv_3x3", "none"),
    ("none", "none", "none"),
]]  # fmt: skip


def started(method: Method, problem: Problem, spread: float = 1.0) -> SearchState:
    """A fresh state with alpha far enough from zero that cells differ."""
    state = begin(problem, method)
    rng = torch.Generator().manual_seed(5)
    for t in state.alpha.values():
        t.data.copy_(spread * torch.randn(t.shape, generator=rng))
    return state


def toy(text: str) -> Genotype:
    return Genotype.parse(text, "toy")


# ---------------------------------------------------------------------- of a genotype


def test_shares() -> None:
    assert parameter_free(toy(CELLS[0])) == 1.0
    assert parameter_free(toy(CELLS[1])) == pytest.approx(1 / 3)
    assert skip_share(toy(CELLS[2])) == pytest.approx(2 / 3)
    assert (
        parameter_free(Genotype.parse("DARTS_V2")) == 10 / 16
    )  # 2 skips in the normal cell, all 8 of the reduction cell
    assert skip_share(Genotype.parse("DARTS_V2")) == 3 / 8


# ---------------------------------------------------------------------- eigenvalue


def dense(loss: object, state: SearchState, batch: Batch) -> Tensor:
    """The eigenvalues of the whole Hessian, entry by entry."""
    shapes = {name: t.shape for name, t in state.alpha.items()}

    def of(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
        alpha = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return loss(state.theta, alpha, batch)  # type: ignore[operator]

    flat = torch.cat([t.detach().flatten() for t in state.alpha.values()])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(of, flat))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["darts", "pcdarts", "rf_darts"])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_the_eigenvalue_is_the_dense_hessian_s(name: str, spread: float) -> None:
    problem, method = tiny_problem(), METHODS[name]()
    assert isinstance(method, Method)
    state = started(method, problem, spread)
    batch = streams(problem, method)[1].at(0)
    loss = validation_loss(state, problem)
    values = dense(loss, state, batch)
    assert values[0] < -1e-3  # so that the largest is not simply the largest in absolute value
    largest = pytest.approx(float(values[-1]), rel=1e-8, abs=1e-12)
    assert hessian_eigenvalue(state, loss, batch) == largest
    assert hessian_eigenvalue(state, bilevel(state, method).outer, batch) == largest
    assert state.meters == {}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("diagonal", "largest"),
    [([-5.0, 1, 0.5], 1.0), ([-5.0, -1, -0.5], -0.5), ([0.0, 0, 0], 0.0), ([3.0, -3, 3], 3.0)],
)
def test_the_eigenvalue_is_the_largest_signed_one(diagonal: list[float], largest: float) -> None:
    state = started(darts(), tiny_problem())
    entries = torch.tensor(diagonal * 3)

    def loss(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        (a,) = alpha.values()
        return (entries * a.flatten().square()).sum() / 2 + a.sum()

    batch = Batch(torch.zeros(1), torch.zeros(1))
    assert hessian_eigenvalue(state, loss, batch) == pytest.approx(largest, abs=1e-12)
    assert hessian_eigenvalue(state, lambda theta, alpha, batch: next(iter(alpha.values())).sum(), batch) == 0.0


def test_the_eigenvalue_in_single_precision() -> None:
    problem = tiny_problem()
    state = started(darts(), problem)
    loss, batch = validation_loss(state, problem), streams(problem, darts())[1].at(0)
    assert hessian_eigenvalue(state, loss, batch) == pytest.approx(float(dense(loss, state, batch)[-1]), rel=1e-3)


# ---------------------------------------------------------------------- the supernet as a judge


def test_one_hot_weights_are_the_genotype() -> None:
    space = tiny_problem().space
    weights = one_hot(space, toy("|none~0|+|skip_connect~0|nor_conv_3x3~1|"))
    assert set(weights) == set(space.cell_groups())
    for w in weights.values():
        assert torch.equal(w, torch.eye(3))
    with pytest.raises(UserError, match="of the space 'nb201'"):
        one_hot(space, Genotype.parse(CELLS[0]))


def test_the_supernet_s_accuracy_is_the_loop_s() -> None:
    problem = tiny_problem(batch=5)  # the last batch is smaller
    state = started(darts(), problem)
    weights = state.op_weights(state.alpha, state.draw("eval"))
    assert supernet_accuracy(state, problem, weights, problem.data.val) == score(state, problem, problem.data.val)[0]


def test_no_gap_where_alpha_is_one_hot_and_one_batch_holds_all_images() -> None:
    """Then the network computes what the supernet does, if validation and training images are the same ones."""
    problem = tiny_problem(batch=24)
    problem = replace(problem, data=replace(problem.data, train=problem.data.val))
    state = search(problem, darts()).state
    for text in CELLS[:4]:
        for group in problem.space.groups:
            w = one_hot(problem.space, toy(text))[group.cells[0]]
            state.alpha[f"{group.name}/alpha"].data.copy_((w - 1) * 100)
        assert discretisation_gap(state, problem, toy(text)) == pytest.approx(0.0, abs=1e-6)


def test_the_gap_is_what_the_inherited_network_loses() -> None:
    problem = tiny_problem(count=30, batch=7)
    state = started(darts(), problem)
    genotype = toy(CELLS[1])
    network = problem.space.network(genotype)
    shown = [b for part in (problem.data.train, problem.data.val) for b in batches(part, 30, none(problem.data))]
    order = torch.randperm(
        30, generator=torch.Generator().manual_seed(0)
    )  # cumulative statistics of other batches differ a little
    problem.space.inherit(
        network, dict(state.supernet.named_parameters()), [Batch(shown[0].images[order], shown[0].targets)]
    )
    network.eval()
    right = (network(shown[1].images).argmax(1) == shown[1].targets).double().mean()
    whole = score(state, replace(problem, batch=30), problem.data.val)[0]
    assert discretisation_gap(state, replace(problem, batch=30), genotype) == pytest.approx(
        whole - float(right), abs=1e-6
    )


def test_the_gap_of_a_partial_channel_supernet_is_measured_in_the_supernet() -> None:
    problem = tiny_problem()
    method = METHODS["pcdarts"]()
    assert isinstance(method, Method)
    state = started(method, problem)
    genotype = toy(CELLS[1])
    whole = score(state, problem, problem.data.val)[0]
    alone = supernet_accuracy(state, problem, one_hot(problem.space, genotype), problem.data.val)
    assert discretisation_gap(state, problem, genotype) == pytest.approx(whole - alone)


def tau_b(x: list[float], y: list[float]) -> float:
    """Concordant minus discordant pairs over the geometric mean of the pairs without ties."""
    pairs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in combinations(range(len(x)), 2)]
    return float(
        sum(a * b for a, b in pairs) / math.sqrt(sum(a != 0 for a, _ in pairs) * sum(b != 0 for _, b in pairs))
    )


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_kendall_s_tau_is_scipy_s(sign: float) -> None:
    """A table that agrees with the supernet, one that contradicts it, and one that says nothing."""
    problem = tiny_problem(count=60, batch=20)
    state = started(darts(), problem)
    cells = [toy(text) for text in CELLS]
    scores = [supernet_accuracy(state, problem, one_hot(problem.space, cell), problem.data.val) for cell in cells]
    assert len(set(scores)) > 2
    truth = {"demo/test": np.array(scores) * sign, "demo/other": np.array([3.0, 1.0, 4.0, 1.0, 5.0])}
    columns = {metric: (lambda values=values: values) for metric, values in truth.items()}
    table = Table("demo", "toy", tuple(CELLS), columns, ())
    tau = kendall_tau(state, problem, table, cells, "demo/test")
    assert tau == pytest.approx(sign)
    other = kendall_tau(state, problem, table, cells, "demo/other")
    assert other == pytest.approx(kendalltau(scores, truth["demo/other"]).statistic)
    assert other == pytest.approx(tau_b(scores, truth["demo/other"].tolist()))


# ---------------------------------------------------------------------- no trace


@pytest.mark.parametrize("name", ["darts", "pcdarts"])
def test_probes_leave_no_trace(name: str) -> None:
    problem, method = tiny_problem(), METHODS[name]()
    assert isinstance(method, Method)
    state = search(problem, method).state
    before, noise = dumps(state), torch.get_rng_state()
    genotype = TopK()(state, problem)
    discretisation_gap(state, problem, genotype)
    batch = streams(problem, method)[1].at(0)
    hessian_eigenvalue(state, bilevel(state, method).outer, batch)
    assert dumps(state) == before
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(p.grad is None or p.grad.isfinite().all() for p in state.supernet.parameters())


# ------------------------------------------------------------------ degeneration


def grid_path(*ops: str) -> Genotype:
    """A chain through a grid of as many layers, all at stride 8, with these operations."""
    space = GridSpace(layers=len(ops), levels=2)
    at = {(node.layer, node.level): n for n, node in enumerate(space.nodes(), 1)}
    way = [0, *(at[layer, 1] for layer in range(1, len(ops) + 1))]
    gates = tuple(Choice(2 * s, 2 * n - 1, "connect") for s, n in pairwise(way))
    return Genotype(
        "grid", {"grid": (*gates, *(Choice(2 * n - 1, 2 * n, op) for n, op in zip(way[1:], ops, strict=True)))}
    )


@pytest.mark.parametrize(
    ("ops", "free", "depth"),
    [
        (("skip_connect", "mbconv_k3_e3", "skip_connect"), 2 / 3, 1),
        (("mbconv_k3_e3", "mbconv_k3_e3"), 0.0, 2),
        (("skip_connect",), 1.0, 0),
    ],
)
def test_degeneration_of_a_chain(ops: tuple[str, ...], free: float, depth: int) -> None:
    space = GridSpace(channels=4, layers=len(ops), levels=2, ops=("mbconv_k3_e3", "skip_connect"), size=(16, 16))
    genotype = grid_path(*ops)
    assert parameter_free(genotype) == pytest.approx(free)
    assert active_depth(space, genotype) == depth
    assert active_strides(space, genotype) == 1
    assert decoded_parameters(space, genotype) == sum(p.numel() for p in space.network(genotype).parameters())
    everything = Genotype(
        "grid", {"grid": argmax(space.groups[0], torch.ones(len(space.groups[0].edges), 2).cumsum(-1))}
    )
    assert active_strides(space, everything) == 2
    assert decoded_parameters(space, Genotype("grid", {"grid": ()})) == 0


@pytest.mark.parametrize(
    ("cell", "depth"),
    [
        ("|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|", 0),
        ("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|nor_conv_3x3~1|none~2|", 2),
        ("|none~0|+|none~0|nor_conv_3x3~1|+|nor_conv_3x3~0|none~1|nor_conv_3x3~2|", 1),
    ],
)
def test_depth_counts_weights_on_the_longest_way(cell: str, depth: int) -> None:
    assert active_depth(NB201Space(), Genotype.parse(cell)) == depth


def test_depth_and_strides_leave_out_what_does_not_reach_the_end() -> None:
    """A skip connection at stride 8 leads on; two convolutions in a row at stride 4 end at the layer before the last."""
    space = GridSpace(channels=4, layers=3, levels=2, ops=("mbconv_k3_e3", "skip_connect"), size=(16, 16))
    at = {(node.layer, node.level): n for n, node in enumerate(space.nodes(), 1)}
    dead = [0, at[1, 0], at[2, 0]]
    choices = [*grid_path("skip_connect", "mbconv_k3_e3", "skip_connect").groups["grid"]]
    choices += [Choice(2 * s, 2 * n - 1, "connect") for s, n in pairwise(dead)]
    choices += [Choice(2 * n - 1, 2 * n, "mbconv_k3_e3") for n in dead[1:]]
    genotype = Genotype("grid", {"grid": tuple(choices)})
    assert (active_depth(space, genotype), active_strides(space, genotype)) == (1, 1)


def test_closed_gates_are_counted() -> None:
    state = begin(tiny_problem("grid", channels=4, layers=2, levels=2), Method(relaxation=Gated()))
    with torch.no_grad():
        state.alpha["grid/beta"].copy_(torch.tensor([-3.0, -3, 0, 0, -3, 0, 0, 0, 0, 0]))
    (group,) = state.space.groups
    wanted = [b < 0 for b, ops in zip(state.alpha["grid/beta"].tolist(), group.ops, strict=True) if "connect" in ops]
    assert 0 < sum(wanted) < len(wanted)
    assert closed_gates(state) == pytest.approx(sum(wanted) / len(wanted))
    assert closed_gates(begin(tiny_problem("toy"), Method())) == 0.0
