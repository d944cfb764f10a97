"""Searches that predict: encodings by hand, rounds against a literal loop, a process against its closed form, an ensemble that learns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from contracts.registry import SMALL
from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.methods.ask_tell import AskTell, Told
from oche.methods.bananas import Ensemble, bananas
from oche.methods.gaussian_process import Process, expected_improvement, gaussian_process
from oche.methods.predictors import Rounds, features, one_hot, paths, standardised
from oche.methods.random_search import Uniform
from oche.spaces import SPACES, Space
from oche.spaces.neighbours import neighbours
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace

NB201 = SPACES["nb201"]()
CELL = Genotype.parse("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|")


def convolutions(genotype: Genotype) -> float:
    """A score that a predictor can learn."""
    return 80 + 2.0 * genotype.count("nor_conv_3x3") + genotype.count("nor_conv_1x1")


def told_of(cells: Sequence[Genotype]) -> list[Told]:
    return [Told(cell, convolutions(cell)) for cell in cells]


def draws(count: int, space: Space = NB201, seed: int = 0) -> list[Genotype]:
    rng = torch.Generator().manual_seed(seed)
    found = {cell.hash: cell for cell in (sample(space, rng) for _ in range(2 * count))}
    return list(found.values())[:count]


# ---------------------------------------------------------------------- cells as vectors


def test_one_hot_is_one_place_per_edge() -> None:
    ops = NB201.groups[0].ops[0]
    expected = [op == chosen for chosen in (c.op for c in CELL.groups["cell"]) for op in ops]
    edges = {(c.source, c.target): c.op for c in CELL.groups["cell"]}
    in_order = [op == edges[edge] for edge in NB201.groups[0].edges for op in ops]
    assert one_hot(NB201, CELL).tolist() == [float(x) for x in in_order]
    assert sum(expected) == one_hot(NB201, CELL).sum() == 6


def test_distance_counts_edges_that_differ() -> None:
    for other in list(neighbours(NB201, CELL))[:5]:
        assert np.sum((one_hot(NB201, CELL) - one_hot(NB201, other)) ** 2) == 2


def test_paths_end_at_none_and_lead_from_the_input_to_the_output() -> None:
    assert paths(NB201, CELL) == {"cell:0>nor_conv_3x3>avg_pool_3x3", "cell:0>skip_connect>nor_conv_1x1"}


@pytest.mark.parametrize("name", ["darts", "s1", "chain", "signal", "grid", "toy"])
def test_cells_that_differ_have_other_features(name: str) -> None:
    space = SPACES[name](**SMALL[name])  # type: ignore[arg-type]
    cells = draws(8, space)
    x = features(space, cells)
    assert len({row.tobytes() for row in x}) == len(cells)
    assert set(np.unique(x)) == {0.0, 1.0}


def test_a_darts_cell_shows_all_its_nodes() -> None:
    cell = draws(1, SPACES["darts"]())[0]
    firsts = {f"normal:{c.source}>{c.op}" for c in cell.groups["normal"] if c.source < 2}
    assert firsts <= paths(SPACES["darts"](), cell)


# ---------------------------------------------------------------------- rounds


@dataclass(frozen=True)
class Backwards:
    """Ranks the last candidate first."""

    def order(
        self, space: Space, told: Sequence[Told], candidates: Sequence[Genotype], seed: int
    ) -> Sequence[Genotype]:
        return list(reversed(candidates))


def asked(strategy: Rounds, queries: int, space: Space = NB201, seed: int = 0) -> list[Told]:
    told: list[Told] = []
    while len(told) < queries and (cell := strategy.ask(space, told, seed)) is not None:
        told.append(Told(cell, convolutions(cell)))
    return told


def test_rounds_are_a_loop() -> None:
    """A loop with a state: first random cells, then batches of what the ranking puts first among the candidates."""
    rounds = Rounds(Backwards(), first=5, batch=4, candidates=12)
    told: list[Told] = []
    while len(told) < 5:
        cell = Uniform().ask(NB201, told, 0)
        assert cell is not None
        told.append(Told(cell, convolutions(cell)))
    while len(told) < 21:
        near = Rounds(Backwards(), 5, 4, 12).near(NB201, told, 0)
        assert len(near) == 12
        told += told_of(near[::-1][:4])
    assert asked(rounds, 21) == told[:21]
    assert len({t.genotype.hash for t in told}) == len(told), "none is asked for twice"


def test_what_one_has_ranked_is_not_another_s() -> None:
    """Rounds made from others by `replace` begin without their ranking."""
    told = told_of(draws(5))
    few = Rounds(Backwards(), first=5, batch=4, candidates=3)
    first = few.ask(NB201, told, 0)
    many = replace(few, candidates=40)
    assert many.ask(NB201, told, 0) == Rounds(Backwards(), 5, 4, 40).ask(NB201, told, 0) != first


def test_candidates_are_one_or_two_changes_from_the_best() -> None:
    told = told_of(draws(10))
    best = max(told, key=lambda t: t.score).genotype
    near = Rounds(Backwards()).near(NB201, told, 0)
    distance = [np.sum((one_hot(NB201, best) - one_hot(NB201, cell)) ** 2) / 2 for cell in near]
    assert set(distance[:40]) == {1, 2}
    assert not {t.genotype.hash for t in told} & {cell.hash for cell in near}


def test_a_small_space_is_searched_through_and_no_further() -> None:
    found = asked(Rounds(Backwards(), 3, 2, 5), 100, ToySpace())
    assert len(found) == len({t.genotype.hash for t in found}) == 27


def brief(ranking: Ensemble | Process, first: int) -> Rounds:
    return Rounds(ranking, first, batch=3, candidates=12)


@pytest.mark.parametrize("ranking", [Ensemble(2, epochs=3), Process()])
def test_what_comes_next_depends_on_the_arguments_alone(ranking: Ensemble | Process) -> None:
    """A strategy that was there from the start, and one that a resumed search has made anew, ask for the same."""
    told = asked(brief(ranking, 4), 12)
    assert [brief(ranking, 4).ask(NB201, told[:n], 0) for n in (4, 8, 11)] == [told[n].genotype for n in (4, 8, 11)]
    assert asked(brief(ranking, 4), 9, seed=1) != told[:9]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("ranking", [Ensemble(2, epochs=3), Process()])
def test_they_search_every_space(ranking: Ensemble | Process, name: str) -> None:
    space = SPACES[name](**SMALL[name])  # type: ignore[arg-type]
    for t in asked(brief(ranking, 3), 5, space):
        space.check(t.genotype)


@pytest.mark.parametrize("ranking", [Ensemble(epochs=60), Process()])
def test_a_predictor_puts_good_cells_first(ranking: Ensemble | Process) -> None:
    """Of 40 unknown cells, the first ten of its order are better than chance would have them, by three standard errors."""
    told, unknown = told_of(draws(40)), draws(40, seed=9)
    unknown = [cell for cell in unknown if cell.hash not in {t.genotype.hash for t in told}]
    order = ranking.order(NB201, told, unknown, 0)
    assert sorted(c.hash for c in order) == sorted(c.hash for c in unknown)
    scores = np.array([convolutions(cell) for cell in unknown])
    first = np.mean([convolutions(cell) for cell in order[:10]])
    assert first > scores.mean() + 3 * scores.std() / math.sqrt(10)


def test_equal_scores_are_no_fault() -> None:
    told = [Told(cell, 50.0) for cell in draws(6)]
    assert standardised(told).tolist() == [0.0] * 6
    for ranking in (Ensemble(epochs=2), Process()):
        assert len(ranking.order(NB201, told, draws(5, seed=3), 0)) == 5


def test_standardised_scores() -> None:
    found = standardised([Told(CELL, s) for s in (1.0, 2.0, 6.0)])
    assert found.mean() == pytest.approx(0)
    assert found.std() == pytest.approx(1)
    assert (found[2] - found[1]) == pytest.approx(4 * (found[1] - found[0]))


# ---------------------------------------------------------------------- the rules


@pytest.mark.parametrize(("mean", "std", "best"), [(0.0, 1.0, 0.5), (2.0, 0.3, 1.0), (-1.0, 0.7, 1.0)])
def test_expected_improvement_is_the_integral(mean: float, std: float, best: float) -> None:
    integral, _ = quad(lambda y: (y - best) * norm.pdf(y, mean, std), best, mean + 12 * std)
    assert expected_improvement(np.array([mean]), np.array([std]), best)[0] == pytest.approx(integral, rel=1e-6)


def test_the_process_is_its_closed_form() -> None:
    """Posterior mean and variance by numpy under the fitted kernel; the order follows from them."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    told, unknown = told_of(draws(12)), draws(9, seed=5)
    x, z = (np.stack([one_hot(NB201, cell) for cell in cells]) for cells in ([t.genotype for t in told], unknown))
    kernel = ConstantKernel(1.0) * Matern(2.0, (0.1, 100.0), nu=2.5) + WhiteKernel(0.1, (1e-4, 10.0))
    seed = counted(0, "process").initial_seed() % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the noise may end at its bound
        fitted = GaussianProcessRegressor(kernel, random_state=seed).fit(x, standardised(told)).kernel_
    scale, length, noise = np.exp(fitted.theta)

    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        d = np.sqrt(5 * ((a[:, None] - b[None]) ** 2).sum(-1)) / length
        return np.asarray(scale * (1 + d + d**2 / 3) * np.exp(-d))

    inverse = np.linalg.inv(k(x, x) + (noise + 1e-10) * np.eye(len(x)))
    mean = k(z, x) @ inverse @ standardised(told)
    std = np.sqrt(np.diag(k(z, z) + noise * np.eye(len(z)) - k(z, x) @ inverse @ k(x, z)))
    hope = expected_improvement(mean, std, standardised(told).max())
    assert Process().order(NB201, told, unknown, 0) == [unknown[i] for i in np.argsort(-hope)]


def test_an_ensemble_s_order_is_a_draw_around_its_mean() -> None:
    told, unknown = told_of(draws(20)), draws(30, seed=4)
    one, other = (Ensemble(epochs=5).order(NB201, told, unknown, seed) for seed in (0, 1))
    assert one != other
    assert one == Ensemble(epochs=5).order(NB201, told, unknown, 0)


def test_each_cell_has_a_draw_of_its_own_from_what_the_networks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks say 2 and -2 of the first and of the last cell, both say 1 of the middle one: N(0, 2^2) beats 1 in 30.9 % of draws."""
    import sklearn.neural_network

    said: list[float] = []

    class Says:
        def __init__(self, **settings: object) -> None:
            said.append(-2.0 if said and said[-1] == 2.0 else 2.0)

        def fit(self, x: object, y: object) -> Says:
            return self

        def predict(self, x: object) -> np.ndarray:
            return np.array([said[-1], 1.0, said[-1]])

    monkeypatch.setattr(sklearn.neural_network, "MLPRegressor", Says)
    told, cells = told_of(draws(4)), draws(7)[4:]
    orders = [Ensemble(networks=2).order(NB201, told, cells, seed) for seed in range(400)]
    for end in (cells[0], cells[2]):
        share = np.mean([order.index(end) < order.index(cells[1]) for order in orders])
        assert abs(share - norm.sf(0.5)) < 4 * math.sqrt(norm.sf(0.5) * norm.cdf(0.5) / 400)
    both = np.mean([order.index(cells[0]) < order.index(cells[2]) for order in orders])
    assert abs(both - 0.5) < 4 * math.sqrt(0.25 / 400)


def test_what_the_docstrings_say_of_the_constants() -> None:
    assert [build().queries for build in (bananas, gaussian_process)] == [100, 100]
    assert bananas().strategy == Rounds(Ensemble(5, 10, 20, 150, 0.01), first=10, batch=10, candidates=100)
    assert gaussian_process().strategy == Rounds(Process(), first=10, batch=1, candidates=100)
    assert Rounds(Process()) == Rounds(Process(), 10, 10, 100)
    assert {"bananas", "gaussian_process"} <= METHODS.keys()
    assert isinstance(METHODS["bananas"](), AskTell)


def test_bad_settings_are_a_sentence() -> None:
    for settings in ({"first": 1}, {"batch": 0}, {"candidates": 0}):
        with pytest.raises(UserError, match="two first cells, a batch and candidates"):
            Rounds(Process(), **settings)  # type: ignore[arg-type]
    for settings in ({"networks": 1}, {"layers": 0}, {"width": 0}, {"epochs": 0}, {"rate": 0.0}):
        with pytest.raises(UserError, match="An ensemble needs two networks"):
            Ensemble(**settings)  # type: ignore[arg-type]


def test_the_kernel_and_the_batch_are_those_of_the_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What scikit-learn is asked for: a Matern kernel of 5/2 with noise, and batches of 32 in networks of ten layers of 20."""
    import sklearn.gaussian_process
    import sklearn.neural_network
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    asked: list[object] = []

    class Process_(sklearn.gaussian_process.GaussianProcessRegressor):
        def fit(self, x: object, y: object) -> object:
            asked.append(self.kernel)
            return super().fit(x, y)

    class Network_(sklearn.neural_network.MLPRegressor):
        def fit(self, x: object, y: object) -> object:
            asked.append((self.batch_size, self.hidden_layer_sizes, self.max_iter, self.n_iter_no_change))
            return super().fit(x, y)

    monkeypatch.setattr(sklearn.gaussian_process, "GaussianProcessRegressor", Process_)
    monkeypatch.setattr(sklearn.neural_network, "MLPRegressor", Network_)
    cells = draws(44)
    Process().order(NB201, told_of(cells[:4]), cells[40:], 0)
    Ensemble(networks=2, epochs=2).order(NB201, told_of(cells[:40]), cells[40:], 0)
    Ensemble(networks=2, epochs=2).order(NB201, told_of(cells[:10]), cells[40:], 0)
    kernel = ConstantKernel(1.0) * Matern(2.0, (0.1, 100.0), nu=2.5) + WhiteKernel(0.1, (1e-4, 10.0))
    assert asked[0] == kernel
    assert asked[1:] == [(32, (20,) * 10, 2, 2)] * 2 + [(10, (20,) * 10, 2, 2)] * 2


def test_the_least_ensemble_and_its_published_size() -> None:
    assert Ensemble() == Ensemble(networks=5, layers=10, width=20, epochs=150, rate=0.01)
    assert Ensemble(networks=2, layers=1, width=1, epochs=1).networks == 2
    for wrong in ({"networks": 1}, {"layers": 0}, {"width": 0}, {"epochs": 0}, {"rate": 0.0}):
        with pytest.raises(UserError, match="two networks"):
            Ensemble(**wrong)  # type: ignore[arg-type]


def test_a_cell_has_the_ways_that_it_has_and_rounds_remember_in_silence() -> None:
    alone = features(NB201, [CELL])[0, one_hot(NB201, CELL).size :]
    assert alone.tolist() == [1.0] * len(paths(NB201, CELL))
    rounds = Rounds(Process(), first=2, batch=1, candidates=3)
    assert rounds.ask(NB201, told_of(draws(3)), 0) is not None
    assert rounds == Rounds(Process(), first=2, batch=1, candidates=3)
    assert "_ranked" not in repr(rounds)


def test_candidates_are_near_the_five_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no mutation leads anywhere new, the five best are tried one after the other, and no sixth."""
    parents: list[str] = []

    def nowhere(space: Space, cell: Genotype, rng: torch.Generator) -> Genotype:
        parents.append(cell.hash)
        return cell

    monkeypatch.setattr("oche.methods.predictors.mutated", nowhere)
    told = [Told(cell, float(n)) for n, cell in enumerate(draws(8))]
    assert Rounds(Process(), first=2, candidates=2).near(NB201, told, 0) == []
    assert list(dict.fromkeys(parents)) == [t.genotype.hash for t in reversed(told[3:])]
