"""ANR-DARTS: the norm and its derivative by hand, and the pruning against every subset's score."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

import pytest
import torch

from contracts.same import problem_of
from oche.base import Batch
from oche.data import batches, none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.anr_darts import AlphaNorm, LoggedNorm, Pruned, anr_darts, lighter, normed, worth
from oche.schedule import Constant, Linear
from oche.search.begin import begin
from oche.search.loop import search
from oche.search.state import SearchState
from oche.spaces.edges import WeightedSum
from oche.watch.probes import one_hot

pytestmark = pytest.mark.usefixtures("float64")

module = importlib.import_module("oche.methods.anr_darts")  # by attribute it is the method
NOTHING = Batch(torch.zeros(1), torch.zeros(1))


def test_norms_by_hand() -> None:
    v = torch.tensor([[3.0, -4.0, 0.0], [0.2, 0.3, 0.5]])
    assert normed(v, "l1").tolist() == pytest.approx([7.0, 1.0])
    assert normed(v, "l2").tolist() == pytest.approx([5.0, 0.38**0.5])
    assert normed(v, "squared").tolist() == pytest.approx([25.0, 0.38])
    assert normed(v, "max").tolist() == pytest.approx([4.0, 0.5])


def spread(space: str = "darts") -> SearchState:
    """A fresh state with alpha far from its start, halfway through."""
    state = begin(problem_of(space), anr_darts())
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for t in state.alpha.values():
            t += torch.randn(t.shape, generator=rng, dtype=t.dtype)
    state.step = state.steps // 2
    return state


@pytest.mark.parametrize("space", ["toy", "darts"])
def test_the_term_and_its_derivative(space: str) -> None:
    """d |p|^2 / d a_o = 2 p_o (p_o - |p|^2), over the edges' number; the sum over both cell types; times the weight at this progress."""
    state = spread(space)
    term = AlphaNorm(Linear(3.0, 1.0))
    assert state.progress == pytest.approx(0.5, abs=0.2)
    weight = 3.0 - 2.0 * state.progress
    total = 0.0
    value = term(state, {}, state.alpha, NOTHING)
    grads = dict(zip(state.alpha, torch.autograd.grad(value, list(state.alpha.values())), strict=True))
    for group in state.space.groups:
        a = state.alpha[f"{group.name}/alpha"].detach()
        p = a.exp() / a.exp().sum(1, keepdim=True)
        squares = (p * p).sum(1, keepdim=True)
        total += weight * float(squares.mean())
        torch.testing.assert_close(grads[f"{group.name}/alpha"], weight * 2 * p * (p - squares) / len(a))
    assert float(value.detach()) == pytest.approx(total)


def test_removed_candidates_have_no_part() -> None:
    state = spread("toy")
    (group,) = state.space.groups
    mask = group.valid()
    mask[0, 1], mask[1] = False, False
    state.mask = {group.name: mask}
    a = state.alpha[f"{group.name}/alpha"].detach()
    left = torch.stack([a[0, 0], a[0, 2]]).softmax(0)
    rows = [float(left.square().sum()), *(float(row.softmax(0).square().sum()) for row in a[2:])]
    found = AlphaNorm(Constant(1.0))(state, {}, state.alpha, NOTHING)
    assert float(found.detach()) == pytest.approx(sum(rows) / len(rows))
    plain = AlphaNorm(Constant(1.0), "l1", "alpha")(state, {}, state.alpha, NOTHING)
    sums = [float(a[0, 0].abs() + a[0, 2].abs()), *(float(row.abs().sum()) for row in a[2:])]
    assert float(plain.detach()) == pytest.approx(sum(sums) / len(sums))


def test_the_defaults_are_the_reading_s() -> None:
    method = anr_darts()
    assert method.outer_terms == (AlphaNorm(Linear(1.0, 0.0), "squared", "softmax"),)
    assert AlphaNorm() == method.outer_terms[0]
    assert method.callbacks == (LoggedNorm(Linear(1.0, 0.0)),)
    assert method.selection == Pruned(least=0.0)
    assert anr_darts(2.0, -1.0, "max", "alpha", 0.01).outer_terms == (AlphaNorm(Linear(2.0, -1.0), "max", "alpha"),)
    assert anr_darts(least=0.01).selection == Pruned(least=0.01)
    with pytest.raises(UserError, match="l1"):
        anr_darts(norm="l1")


def test_the_log_tells_the_weight() -> None:
    record: dict[str, object] = {}
    state = spread("toy")
    LoggedNorm(Linear(1.0, 0.0)).on_epoch_end(state, record)
    assert record == {"norm_weight": pytest.approx(1 - state.progress)}


def test_a_large_weight_keeps_alpha_near_uniform() -> None:
    def entropy(method_start: float, sign: float) -> float:
        method = replace(anr_darts(sign * method_start, sign * method_start), selection=Pruned().inner)
        return search(
            problem_of("toy", epochs=8), replace(method, arch_optimizer=replace(method.arch_optimizer, lr=0.1))
        ).state.entropy()  # type: ignore[type-var]

    assert entropy(100.0, 1.0) > 0.97 > entropy(100.0, -1.0)


# ---------------------------------------------------------------------- pruning


@dataclass
class Scores:
    """Scores of genotypes that a test makes up: the sum of what each edge is worth."""

    values: dict[tuple[str, int, int], float]
    asked: int = 0

    def __call__(self, state: SearchState, genotype: Genotype) -> float:
        self.asked += 1
        return sum(
            self.values.get((name, c.source, c.target), 0.0)
            for name, choices in genotype.groups.items()
            for c in choices
            if c.op != "none"
        )


def ended(space: str) -> SearchState:
    state = spread(space)
    state.epoch = state.problem.epochs
    return state


def kept(genotype: Genotype) -> set[tuple[str, int, int]]:
    return {(n, c.source, c.target) for n, choices in genotype.groups.items() for c in choices if c.op != "none"}


def test_edges_that_are_worth_nothing_go_and_every_node_keeps_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes 2 and 3 of both cells have two inputs each; one of those into node 3 of the normal cell is all that is worth something."""
    state = ended("darts")
    whole = kept(Pruned().inner(state, state.problem))
    good = next(edge for edge in sorted(whole) if edge[0] == "normal" and edge[2] == 3)
    scores = Scores({edge: 0.5 if edge == good else -0.1 for edge in whole})
    monkeypatch.setattr(module, "worth", scores)
    left = kept(Pruned()(state, state.problem))
    assert good in left
    assert len(left) == len({edge[::2] for edge in whole}), "one for each node"
    harmless = Scores(dict.fromkeys(whole, 0.0))
    monkeypatch.setattr(module, "worth", harmless)
    assert kept(Pruned()(state, state.problem)) == whole, "what costs nothing is not worth less than nothing"
    assert len(kept(Pruned(least=1e-9)(state, state.problem))) == len({edge[::2] for edge in whole})


def test_the_dearest_to_keep_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ended("darts")
    whole = sorted(kept(Pruned().inner(state, state.problem)))
    worths = {edge: 0.1 * n - 0.25 for n, edge in enumerate(whole)}  # the first three are worth less than nothing
    monkeypatch.setattr(module, "worth", Scores(worths))
    left = kept(Pruned()(state, state.problem))
    gone = set(whole) - left
    assert gone <= set(whole[:3])
    nodes = {edge[::2] for edge in whole}
    for node in nodes:
        own = [edge for edge in whole if edge[::2] == node]
        assert (own[0] in gone) == (worths[own[0]] < 0)
        assert own[1] in left


def test_where_all_edges_are_kept_a_dropped_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ended("nb201")
    (group,) = state.space.groups
    with torch.no_grad():
        state.alpha[f"{group.name}/alpha"].zero_()[:, 3] = 1.0
    monkeypatch.setattr(module, "worth", Scores({}))
    genotype = Pruned(least=1.0)(state, state.problem)
    assert genotype.connected
    ops = [c.op for c in genotype.groups[group.name]]
    assert ops.count("none") == 3
    assert [c.target for c in genotype.groups[group.name] if c.op != "none"] == [1, 2, 3]
    state.space.check(genotype)


def test_a_space_without_none_keeps_its_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    state = begin(problem_of("nb201", without=("none",)), anr_darts())
    state.epoch = state.problem.epochs
    monkeypatch.setattr(module, "worth", Scores({}))
    assert list(lighter(state, Pruned().inner(state, state.problem))) == []


def test_before_the_end_nothing_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    state = spread("darts")
    scores = Scores({})
    monkeypatch.setattr(module, "worth", scores)
    assert Pruned()(state, state.problem) == Pruned().inner(state, state.problem)
    assert scores.asked == 0


def test_the_score_is_that_of_the_network_itself() -> None:
    """The supernet under op weights of 0 and 1, against the cells' edges summed by hand."""
    state = ended("toy")
    genotype = Pruned().inner(state, state.problem)
    weights = one_hot(state.space, genotype)
    draw = state.draw("eval")
    correct = count = 0
    images = state.arch_images
    problem = state.problem
    for batch in batches(images, problem.batch, none(problem.data), problem.fabric.device):
        if len(batch.targets) > 1:
            out, _ = state.supernet(batch.images.double(), {n: w.double() for n, w in weights.items()}, draw)
            correct, count = correct + int((out.argmax(1) == batch.targets).sum()), count + len(batch.targets)
    assert worth(state, genotype) == pytest.approx(correct / count)


def test_it_is_a_weighted_sum_that_is_searched() -> None:
    assert anr_darts().edge == WeightedSum()
