"""ISTA-NAS: the sparse code against the LASSO's optimality conditions and scikit-learn, its derivative, what is run, and what is frozen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from contracts.same import assert_other_search, problem_of, searched
from oche.base import Draw, Group
from oche.data import Whole, none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.darts import darts
from oche.methods.ista_nas import (
    KeptCode,
    Recover,
    Support,
    candidate_norms,
    ista_nas,
    ista_nas_one_stage,
    left,
    norms,
    support,
)
from oche.methods.sparse_code import MEASUREMENTS, SparseCode, candidates, lasso, support_of
from oche.optim import Adam
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.inherit import inherited
from oche.search.loop import advance, arch_step, search, set_learning_rate, weight_step
from oche.search.method import Method
from oche.search.stages import entered
from oche.search.state import SearchState
from oche.search.trainable import AllWeights
from oche.spaces.ops import PoolBN
from oche.training.evaluate import evaluate
from reference.real import digits, epochs_of, real_problem

pytestmark = pytest.mark.usefixtures("float64")


def drawn(measurement: str, n: int, seed: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = torch.Generator().manual_seed(seed)
    return MEASUREMENTS[measurement](7, n, rng).numpy(), (scale * torch.randn(7, generator=rng)).numpy()


# ---------------------------------------------------------------------- the LASSO


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("n", [1, 5, 14, 21, 28, 35])
@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_the_code_meets_the_lasso_s_optimality_conditions(measurement: str, n: int, scale: float) -> None:
    """|A^T (b - A z)| <= lambda everywhere, and = lambda sign(z) on the support: necessary and sufficient."""
    for seed in range(20):
        A, b = drawn(measurement, n, seed, scale)
        z = lasso(A, b, 1e-5)
        q = A.T @ (b - A @ z)
        assert np.abs(q).max() <= 1e-5 * (1 + 1e-6)
        np.testing.assert_allclose(q[z != 0], 1e-5 * np.sign(z[z != 0]), rtol=1e-6)
        assert z.any()
        assert (z != 0).sum() <= 7


def test_it_is_what_scikit_learn_finds() -> None:
    for seed in range(5):
        A, b = drawn("gaussian", 21, seed, 1.0)
        other = Lasso(alpha=0.05 / 7, fit_intercept=False, tol=1e-14, max_iter=200_000).fit(A, b)
        np.testing.assert_allclose(lasso(A, b, 0.05), other.coef_, atol=1e-8)


def test_a_penalty_above_every_correlation_gives_zero() -> None:
    A, b = drawn("uniform", 14, 0, 1.0)
    most = float(np.abs(A.T @ b).max())
    assert not lasso(A, b, most).any()
    assert np.count_nonzero(lasso(A, b, 0.999 * most)) == 1
    assert lasso(A[:, :0], b, 1e-5).shape == (0,)


# ---------------------------------------------------------------------- the relaxation


def cells(space: str = "darts") -> Group:
    return problem_of(space, **({"without": ("none",)} if space == "darts" else {})).space.groups[0]


def code_and_alpha(group: Group, **settings: object) -> tuple[SparseCode, dict[str, Tensor]]:
    code = SparseCode(**settings)  # type: ignore[arg-type]
    return code, {n: t.requires_grad_() for n, t in code.init(group, torch.Generator().manual_seed(1)).items()}


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("space", ["darts", "nb201", "s3", "s1"])
def test_the_op_weights_and_their_derivative_node_by_node(space: str, measurement: str) -> None:
    """p_S = x_S + A_S^T (b - A_S x_S) and d p_S / d b = A_S^T, with each node's own A_j cut out of A; also after b has moved."""
    group = cells(space)
    code, alpha = code_and_alpha(group, measurement=MEASUREMENTS[measurement])
    for shift in (0.0, 0.3):
        alpha = {n: (t + shift * ("/b" in n)).detach().requires_grad_() for n, t in alpha.items()}
        p = code(alpha, group, Draw(0))
        A = alpha[f"{group.name}/A"].detach().view(7, -1)
        z = alpha[f"{group.name}/z"].detach().view(p.shape)
        S = support_of(z, group, candidates(group, group.valid()))
        assert torch.equal(p != 0, S)
        for node, numbers in group.into().items():
            own = torch.zeros_like(S)
            own[numbers] = S[numbers]
            A_S, x_S, b = A[:, own.flatten()], z[own], alpha[f"{group.name}/b{node}"]
            torch.testing.assert_close(p[own], x_S + A_S.T @ (b - A_S @ x_S))
            jacobian = torch.stack([torch.autograd.grad(entry, b, retain_graph=True)[0] for entry in p[own]])
            torch.testing.assert_close(jacobian, A_S.T)
        assert all(g is None or not g.any() for g in torch.autograd.grad(
            p.sum(), [alpha[f"{group.name}/A"], alpha[f"{group.name}/z"]], allow_unused=True
        ))  # fmt: skip


def test_the_first_z_is_the_lasso_s_and_strength_its_size() -> None:
    group = cells()
    code, alpha = code_and_alpha(group)
    A = alpha["normal/A"].detach().view(7, len(group.edges), group.width)
    for node, numbers in group.into().items():
        z = lasso(A[:, numbers].reshape(7, -1).numpy(), alpha[f"normal/b{node}"].detach().numpy(), 1e-5)
        found = alpha["normal/z"].detach().view(len(group.edges), -1)[numbers].flatten()
        np.testing.assert_allclose(found.numpy(), z, atol=1e-15)
    torch.testing.assert_close(code.strength(alpha, group, Draw(0)).flatten(), alpha["normal/z"].detach().abs())


def test_removed_candidates_are_no_part_of_the_code() -> None:
    group = cells()
    code, alpha = code_and_alpha(group)
    mask = torch.rand(len(group.edges), group.width, generator=torch.Generator().manual_seed(0)) < 0.5
    draw = Draw(0, mask={group.name: mask})
    assert not code(alpha, group, draw)[~mask].any()
    z = code.strength(alpha, group, draw)
    assert not z[~mask].any()
    assert not torch.equal(z[mask], code.strength(alpha, group, Draw(0))[mask])


def test_the_support_counts_entries_and_distinct_ones_edges() -> None:
    group = Group("cell", ((0, 2), (1, 2), (0, 3), (1, 3)), (("a", "b"),) * 4, 2)
    z = torch.tensor([[5.0, -4.0], [1.0, 0.0], [0.0, 0.0], [0.0, -2.0]])
    there = group.valid()
    assert support_of(z, group, there).nonzero().tolist() == [[0, 0], [0, 1], [3, 1]]
    assert support_of(z, group, there, distinct=True).nonzero().tolist() == [[0, 0], [1, 0], [3, 1]]
    kept = support_of(z, replace(group, keep=None), there)
    assert kept.nonzero().tolist() == [[0, 0], [1, 0], [3, 1]]


# ---------------------------------------------------------------------- in the supernet


def ran(state: SearchState) -> Counter[str]:
    """Candidates by "cell/edge's target" that one weight step computes."""
    counts: Counter[str] = Counter()
    for name, module in state.supernet.named_modules():
        path = name.split(".")
        if len(path) == 7 and path[-2] == "ops":  # body.cells.CELL.edges.S-T.ops.OP
            key = f"{path[2]} node {path[4].split('-')[1]}"
            module.register_forward_hook(lambda *_, key=key: counts.update([key]))
    return counts


@pytest.mark.parametrize("build", [ista_nas, lambda: ista_nas_one_stage().method], ids=["two stages", "one"])
def test_exactly_two_ops_a_node_are_computed(build: Callable[[], Method]) -> None:
    problem, method = problem_of("darts", without=("none",)), build()
    state = begin(problem, method)
    counts = ran(state)
    weight_step(state, method, bilevel(state, method), StepBatches(*streams(problem, method), 0))
    assert len(counts) == problem.space.cells * problem.space.nodes  # type: ignore[attr-defined]
    assert set(counts.values()) == {2}


def test_an_op_that_is_not_in_the_support_does_not_move() -> None:
    problem, method = problem_of("darts", without=("none",)), ista_nas()
    state = begin(problem, method)
    before = {n: p.detach().clone() for n, p in state.supernet.named_parameters()}
    losses, now = bilevel(state, method), StepBatches(*streams(problem, method), 0)
    set_learning_rate(state, method, 3)
    weight_step(state, method, losses, now)
    weights = state.op_weights(state.alpha, state.draw("weight"))
    ops = {f".{cell}.edges.{s}-{t}.ops.{op}.": bool(weights[cell][e, o])
           for cell, group in problem.space.cell_groups().items()
           for e, (s, t) in enumerate(group.edges) for o, op in enumerate(group.ops[e])}  # fmt: skip
    inside = [n for n in before if ".ops." in n]
    moved = {n: not torch.equal(before[n], p) for n, p in state.supernet.named_parameters()}
    assert all(moved[n] == used for n in inside for key, used in ops.items() if key in n)
    assert 0 < sum(moved[n] for n in inside) < len(inside)


def test_an_architecture_step_moves_b_alone_and_the_next_epoch_the_code() -> None:
    problem, method = problem_of("darts", epochs=2, without=("none",)), replace(ista_nas(), arch_optimizer=Adam(0.1))
    state = begin(problem, method)
    Recover().on_epoch_start(state)
    before = {n: t.detach().clone() for n, t in state.alpha.items()}
    arch_step(state, method, bilevel(state, method), StepBatches(*streams(problem, method), 0))
    assert {n for n, t in state.alpha.items() if not torch.equal(t, before[n])} == {n for n in before if "/b" in n}
    Recover().on_epoch_start(state)
    assert torch.equal(state.alpha["normal/z"], before["normal/z"]), "within an epoch the support rests"
    state.epoch = 1
    Recover().on_epoch_start(state)
    expected = method.relaxation.recover(state.alpha, problem.space.groups[0], state.draw("eval"))  # type: ignore[attr-defined]
    assert torch.equal(state.alpha["normal/z"].detach().view_as(expected), expected)
    assert not torch.equal(state.alpha["normal/z"], before["normal/z"])
    record: dict[str, object] = {}
    Recover().on_epoch_end(state, record)
    assert 0 <= record["support_overlap"] < 1  # type: ignore[operator]


def test_the_genotype_is_the_support_of_the_last_code() -> None:
    problem = problem_of("darts", epochs=2, without=("none",))
    state = search(problem, replace(ista_nas(), arch_optimizer=Adam(0.1))).state
    found = Support()(state, problem)
    problem.space.check(found)
    for group in problem.space.groups:
        z = state.relaxation.recover(state.alpha, group, state.draw("eval"))  # type: ignore[attr-defined]
        best = {t: z[n].abs().flatten().topk(2).indices.tolist() for t, n in group.into().items()}
        expected = {
            (group.edges[group.into()[t][i // group.width]], group.ops[0][i % group.width])
            for t, own in best.items()
            for i in own
        }
        assert {((c.source, c.target), c.op) for c in found.groups[group.name]} == expected
    zero = replace(state, alpha={n: torch.zeros_like(t) if "/b" in n else t for n, t in state.alpha.items()})
    problem.space.check(Support()(zero, problem))
    apart = searched_distinct()
    assert all(len({(c.source, c.target) for c in own}) == len(own) for own in apart.groups.values())


def searched_distinct() -> object:
    problem = problem_of("darts", epochs=1, without=("none",))
    return search(problem, ista_nas(distinct=True)).genotype


def test_another_measurement_is_another_search() -> None:
    assert_other_search(ista_nas(), ista_nas("gaussian"))
    assert_other_search(ista_nas(), darts())


def test_recover_needs_a_sparse_code() -> None:
    with pytest.raises(UserError, match="Softmax"):
        Recover().on_epoch_start(begin(problem_of("toy"), darts()))


# ---------------------------------------------------------------------- one stage


def one_stage_at_rest() -> SearchState:
    """At the start of the second epoch, with the first node of the normal cell all but at rest."""
    problem, method = problem_of("darts", epochs=3, without=("none",)), ista_nas_one_stage(tolerance=1e-3).method
    state = begin(problem, method)
    (callback,) = method.callbacks
    callback.on_epoch_start(state)
    with torch.no_grad():
        for name, t in state.alpha.items():
            if "/b" in name:
                t.add_(1e-7 * t.sign() if name == "normal/b2" else 0.1 * torch.arange(7))
    state.epoch = 1
    callback.on_epoch_start(state)
    return state


def test_one_stage_holds_the_candidates_norms_at_one_and_zero() -> None:
    problem, method = problem_of("darts", without=("none",)), ista_nas_one_stage().method
    assert isinstance(method.split, Whole)
    state = begin(problem, method)
    edges = {n: m for n, m in state.supernet.named_modules() if ".ops." in n}
    assert all(isinstance(m, PoolBN) for n, m in edges.items() if n.endswith("_pool_3x3"))
    skips = [m for n, m in edges.items() if n.endswith("skip_connect")]
    assert sum(isinstance(m, PoolBN) for m in skips) == sum(not hasattr(m, "even") for m in skips) > 0
    assert all(m.affine for m in edges.values() if isinstance(m, nn.BatchNorm2d))
    held = candidate_norms(state.supernet)
    assert held
    assert not held & state.learns
    assert held | state.learns == {n for n, _ in state.supernet.named_parameters()}


def test_a_node_at_rest_is_frozen_and_its_norms_learn() -> None:
    state = one_stage_at_rest()
    method = ista_nas_one_stage().method
    group = state.space.groups[0]
    assert state.memory["ista/frozen/normal"].tolist() == [True, False]
    assert not state.memory["ista/frozen/reduce"].any()
    assert not state.stop
    own = norms(state.supernet, group, group.into()[2])
    assert own == {
        n
        for n in candidate_norms(state.supernet)
        if any(f".{c}.edges.{e}." in n for c in group.cells for e in ("0-2", "1-2"))
    }
    assert candidate_norms(state.supernet) & state.learns == own
    before = {n: t.detach().clone() for n, t in [*state.alpha.items(), *state.supernet.named_parameters()]}
    set_learning_rate(state, method, 3)
    now = StepBatches(*streams(state.problem, method), 3)
    weight_step(state, method, bilevel(state, method), now, joint=True)
    moved = {n for n, t in [*state.alpha.items(), *state.supernet.named_parameters()] if not torch.equal(t, before[n])}
    assert {n for n in moved if n in state.alpha} == {n for n in state.alpha if "/b" in n and n != "normal/b2"}
    assert moved & candidate_norms(state.supernet)
    assert moved & candidate_norms(state.supernet) <= own


def test_the_search_ends_when_every_node_rests_and_not_before_one_has_moved() -> None:
    """With a huge tolerance each node rests after its first epoch; a code that has not moved at all was not searched."""
    problem = problem_of("darts", epochs=4, without=("none",))
    state = search(problem, ista_nas_one_stage(tolerance=1e6).method).state
    assert state.epoch == 1
    assert state.stop
    still = search(problem, replace(ista_nas_one_stage(tolerance=1e6).method, arch_start=1.0)).state
    assert (still.epoch, still.stop) == (4, False)
    assert searched(ista_nas_one_stage().method, "toy").epoch == 2


# ---------------------------------------------------------------------- the network that it keeps


@pytest.mark.parametrize("space", ["darts", "nb201"])
def test_the_network_it_keeps_is_the_supernet(space: str) -> None:
    """With batch statistics it says the same; op weights may be negative, and pools and identities have their batch norms."""
    problem = problem_of(space, epochs=2, **({"without": ("none",)} if space == "darts" else {}))
    result = ista_nas_one_stage().search(problem)
    state, genotype = result.state, result.genotype
    problem.space.check(genotype)
    assert genotype.edge == "kept_normed"
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert state.mask
    network = inherited(state, genotype).double()
    batch = streams(problem, ista_nas_one_stage().method)[0].at(0)
    draw = state.draw("eval")
    wanted, _ = state.supernet(batch.images.double(), state.op_weights(state.alpha, draw), draw)
    torch.testing.assert_close(network.train()(batch.images.double()), wanted, atol=1e-9, rtol=1e-9)


def test_the_second_stage_trains_the_network_that_the_first_left() -> None:
    """Only the supports are built, all batch norms learn, the codes rest to the bit, and the rate falls from 0.025 to 0.001."""
    problem = problem_of("darts", epochs=4, without=("none",))
    searcher = ista_nas_one_stage()
    first = searcher.stages(problem, searcher.method, ())
    assert first is not None
    assert (first.epochs, first.method.weight_lr(0.7)) == (2, 0.025)
    begun = entered(problem, first, ())
    advance(begun, first.method)
    second = searcher.stages(problem, searcher.method, (begun,))
    assert second is not None
    assert (second.epochs, second.method.arch_start) == (2, 1.0)
    assert [second.method.weight_lr(p) for p in (0.0, 1.0)] == pytest.approx([0.025, 0.001])
    state = entered(problem, second, (begun,))
    assert candidate_norms(state.supernet) <= state.learns
    for group in problem.space.groups:
        assert torch.equal(
            state.alive(group), support(begun, group) | (state.alive(group) & ~support(begun, group).any(-1)[:, None])
        )
    old, new = dict(begun.supernet.named_parameters()), dict(state.supernet.named_parameters())
    assert new.keys() < old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)
    advance(state, second.method)
    assert all(torch.equal(t, begun.alpha[name]) for name, t in state.alpha.items())
    assert searcher.stages(problem, searcher.method, (begun, state)) is None
    with pytest.raises(UserError, match="an epoch to search"):
        searcher.stages(replace(problem, epochs=1), searcher.method, ())


@pytest.mark.slow
def test_on_digits_the_network_that_is_kept_has_learnt() -> None:
    torch.set_default_dtype(torch.float32)
    told: list[dict[str, Any]] = []
    problem = real_problem("darts", digits(), 24, listener=epochs_of(told), without=("none",))
    result = ista_nas_one_stage().search(problem)
    network = inherited(result.state, result.genotype)
    found = evaluate(network, problem.data.val, none(problem.data), problem.fabric, problem.task)
    assert found.value > 0.7
    overlaps = [record["support_overlap"] for record in told if "support_overlap" in record]
    assert len(overlaps) <= 12
    assert overlaps[-1] > overlaps[1], "the codes come to rest"
    assert told[len(overlaps) - 1]["frozen_nodes"] > 0
    assert all(0 <= overlap <= 1 for overlap in overlaps)
    assert {record["phase"] for record in told[-4:]} == {"weights"}


@pytest.mark.parametrize("space", ["nb201", "darts"])
def test_a_code_of_zeros_leaves_an_edge_or_a_node_its_first_op(space: str) -> None:
    method = ista_nas_one_stage().method
    state = begin(problem_of(space), method)
    for group in space_groups(state):
        with torch.no_grad():
            state.alpha[f"{group.name}/z"].zero_()
    cell = KeptCode()(state, state.problem)
    for group in space_groups(state):
        first = [(source, target, group.ops[e][0]) for e, (source, target) in enumerate(group.edges)]
        if space == "darts":
            first = [first[numbers[0]] for numbers in group.into().values()]
        assert sorted((c.source, c.target, c.op) for c in cell.groups[group.name]) == sorted(first)
        only = torch.zeros(len(group.edges), group.width, dtype=torch.bool)
        only[:, 0] = True
        assert torch.equal(left(state)[group.name], only)


def space_groups(state: SearchState) -> tuple[Group, ...]:
    return tuple(state.space.groups)


def test_the_log_has_the_overlap_of_the_supports_and_frozen_nodes_where_nodes_freeze() -> None:
    """The first z is the LASSO's at the first b, so that the first epoch finds it again."""
    state = begin(problem_of("darts"), ista_nas())
    for tolerance in (None, 1e-3):
        state.memory.clear()
        record: dict[str, object] = {}
        Recover(tolerance).on_epoch_start(state)
        Recover(tolerance).on_epoch_end(state, record)
        assert record == {"support_overlap": 1.0} | ({} if tolerance is None else {"frozen_nodes": 0})


def test_published_ista_nas_and_what_its_second_stage_trains() -> None:
    assert ista_nas().relaxation == SparseCode(MEASUREMENTS["uniform"], 7, 1e-5, 1e-3, distinct=False)
    assert SparseCode() == SparseCode(MEASUREMENTS["uniform"], 7, 1e-5, 1e-3, distinct=False)
    staged = ista_nas_one_stage()
    assert staged.method.relaxation == ista_nas().relaxation
    assert staged.keeps_weights
    problem = problem_of("darts", epochs=4)
    states = [begin(replace(problem, seed=seed), staged.method) for seed in (1, 2)]
    tuned = staged.stages(problem, staged.method, (states[0],))
    assert tuned is not None
    assert tuned.method.trainable == AllWeights(affine=True)
    found = [KeptCode()(state, problem) for state in states]
    assert staged.choose(problem, staged.method, tuple(states)) == found[1] != found[0]


def test_none_is_a_candidate_where_every_edge_keeps_an_op() -> None:
    for space in ("nb201", "darts"):
        for group in problem_of(space).space.groups:
            there = candidates(group, group.valid())
            assert bool((there & group.named("none")).any()) == (space == "nb201")
