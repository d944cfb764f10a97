"""The stand-in for DNAS: factors by hand, its loss written out, boxes by a loop, and the search."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from contracts.registry import SMALL
from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.methods.ask_tell import AskTell, Told
from oche.methods.dnas import Controlled, Dense, controller, dnas, factors, objective, promising
from oche.methods.sequences import Coder
from oche.methods.tokens import Tokens
from oche.spaces import SPACES
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace
from oche.testing import check_searcher

TINY = Controlled(cells=20, steps=3, batch=6, size=4, units=6)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    controller.cache_clear()
    yield
    torch.set_default_dtype(torch.float32)
    controller.cache_clear()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|", (2, 1, 2)),
        ("|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|avg_pool_3x3~2|", (2, 0, 3)),
        ("|none~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|", (2, 1, 0)),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", (0, 0, 0)),
    ],
)
def test_factors_by_hand(cell: str, expected: tuple[int, int, int]) -> None:
    assert factors(Genotype.parse(cell)) == expected


def test_factors_of_two_cells_are_added() -> None:
    text = (
        "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('max_pool_3x3', 1), ('sep_conv_5x5', 2)], normal_concat=[2, 3], "
        "reduce=[('dil_conv_3x3', 0), ('dil_conv_5x5', 1), ('avg_pool_3x3', 0), ('skip_connect', 1)], reduce_concat=[2, 3])"
    )
    assert factors(Genotype.parse(text)) == (4, 2, 2 + 1)


def test_the_objective_written_out() -> None:
    torch.manual_seed(0)
    coder, numbers = Coder((3, 3), 5, 6), torch.tensor([[0, 1], [2, 2]])
    wanted, noise = torch.randn(2, 3), torch.randn(2, 5)
    mean, log_variance = coder.encode(numbers)
    own = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(own, torch.distributions.Normal(torch.zeros(5), torch.ones(5))).sum(
        1
    )
    again = coder.loss(numbers, mean + noise * (log_variance / 2).exp())
    told = sum((mean[:, k] - wanted[:, k]) ** 2 for k in range(3))
    expected = (again + 0.25 * divergence + told).mean()
    assert torch.allclose(objective(coder, numbers, wanted, 0.25, noise), expected, rtol=1e-12)


def test_a_box_is_the_best_bin_of_the_directions_that_matter() -> None:
    """Scores depend on directions 1, 3 and 4, by loops over sorted values."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((48, 5))
    scores = 3 * means[:, 1] - 2 * means[:, 3] + 1.5 * np.abs(means[:, 4]) + 0.001 * means[:, 0]
    low, high = promising(means, scores, 4)
    variances = []
    for k in range(5):
        order = np.argsort(means[:, k])
        averages = [scores[order[12 * b : 12 * b + 12]].mean() for b in range(4)]
        variances.append(np.var(averages))
        if np.isfinite(low[k]):
            b = int(np.argmax(averages))
            assert low[k] == pytest.approx(np.quantile(means[:, k], b / 4))
            assert high[k] == pytest.approx(np.quantile(means[:, k], (b + 1) / 4))
        else:
            assert (low[k], high[k]) == (-np.inf, np.inf)
    assert set(np.flatnonzero(np.isfinite(low))) == set(np.argsort(variances)[-3:])


def test_a_direction_with_one_value_has_no_say() -> None:
    means = np.column_stack([np.zeros(8), np.arange(8.0)])
    low, high = promising(means, np.arange(8.0), 2)
    assert (low[1], high[1]) == (3.5, 7.0)
    assert (low[0], high[0]) == (0.0, 0.0)


def test_a_bin_without_cells_is_never_the_best() -> None:
    """Of six equal values and two more, the lower two of four bins are empty."""
    low, high = promising(np.array([[0.0]] * 6 + [[1.0], [2.0]]), np.array([5.0] * 6 + [1.0] * 2), 4)
    assert (low[0], high[0]) == (0.0, 0.25)


def test_the_controller_is_told_standardised_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One factor deviates by much, one by little and one not at all."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def told(cell: Genotype) -> tuple[float, float, float]:
        return 3.0 * cell.count("nor_conv_3x3"), 0.25 * cell.count("skip_connect"), 7.0

    def noted(
        coder: Coder, numbers: torch.Tensor, wanted: torch.Tensor, beta: float, noise: torch.Tensor
    ) -> torch.Tensor:
        seen.append((numbers, wanted))
        return coder.loss(numbers, noise).mean()

    monkeypatch.setattr(sys.modules[Dense.__module__], "factors", told)
    monkeypatch.setattr(sys.modules[Dense.__module__], "objective", noted)
    space = ToySpace()
    controller(space, Controlled(cells=20, steps=2, batch=30, size=4, units=6))
    rng = counted(0, "dnas", "cells")
    cells = [sample(space, rng) for _ in range(20)]
    found = np.array([told(cell) for cell in cells])
    deviation = found.std(0)
    assert deviation[0] > 1 > deviation[1] > deviation[2] == 0
    expected = np.column_stack([(found[:, :2] - found[:, :2].mean(0)) / deviation[:2], np.zeros(20)])
    by_numbers = {Tokens(space).encode(cell): row for cell, row in zip(cells, expected, strict=True)}
    assert len(seen) == 2
    for numbers, wanted in seen:
        assert wanted.numpy() == pytest.approx(np.array([by_numbers[tuple(row)] for row in numbers.tolist()]))


@pytest.mark.slow
def test_the_first_directions_mean_what_they_were_told() -> None:
    torch.set_default_dtype(torch.float32)
    space = SPACES["nb201"]()
    coder, tokens = controller(space, Controlled(cells=300, steps=300)), Tokens(space)
    rng = torch.Generator().manual_seed(9)
    cells = [tokens.decode([int(torch.randint(5, (), generator=rng)) for _ in range(6)]) for _ in range(100)]
    with torch.no_grad():
        means = coder.encode(torch.tensor([tokens.encode(c) for c in cells]))[0]
    told = np.array([factors(c) for c in cells])
    for k in range(3):
        assert np.corrcoef(means[:, k], told[:, k])[0, 1] > 0.8
    with torch.no_grad():
        again = coder.write(means).tolist()
    exact = np.mean([tuple(a) == tokens.encode(c) for a, c in zip(again, cells, strict=True)])
    assert exact > 0.1, "z says something of the cell: chance is 1 in 15,625"


@pytest.mark.slow
def test_dense_sampling_beats_uniform_draws_where_the_factors_decide() -> None:
    """At equal queries, over three seeds: the cells after the first round are better than as many random ones by four standard errors."""
    torch.set_default_dtype(torch.float32)
    space, rule = SPACES["nb201"](), Dense(Controlled(cells=300, steps=300))
    rng = torch.Generator().manual_seed(3)
    found: list[float] = []
    for seed in range(3):
        told: list[Told] = []
        while len(told) < 80 and (cell := rule.ask(space, told, seed)) is not None:
            told.append(Told(cell, sum(factors(cell)[::2])))
        found += [t.score for t in told[40:]]
    uniform = [sum(factors(sample(space, rng))[::2]) for _ in found]
    error = math.sqrt((np.var(found) + np.var(uniform)) / len(found))
    assert np.mean(found) > np.mean(uniform) + 4 * error


def asked(rule: Dense, queries: int, seed: int = 0) -> list[Told]:
    told: list[Told] = []
    while len(told) < queries and (cell := rule.ask(ToySpace(), told, seed)) is not None:
        told.append(Told(cell, 80.0 + 2 * cell.count("nor_conv_3x3")))
    return told


def test_what_comes_next_depends_on_the_arguments_alone() -> None:
    rule = Dense(TINY, first=6, batch=3)
    told = asked(rule, 14)
    again = [Dense(TINY, 6, 3).ask(ToySpace(), told[:n], 0) for n in (0, 3, 6, 13)]
    assert again == [told[n].genotype for n in (0, 3, 6, 13)]
    assert len({t.genotype.hash for t in told}) == 14
    assert [t.genotype for t in told[:6]] == rule.round(ToySpace(), [], 0)
    assert [t.genotype for t in told[6:9]] == rule.round(ToySpace(), told[:6], 0)
    assert asked(rule, 8, seed=1) != told[:8]
    assert rule == Dense(TINY, 6, 3)
    assert "_rounds" not in repr(rule)
    assert len(asked(Dense(TINY, first=6, batch=20), 99)) == 27


def test_a_round_writes_from_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the controller is given: in the box where there is one, else of N(0, 1)."""
    seen: list[torch.Tensor] = []
    real = Coder.write

    def write(self: Coder, z: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        seen.append(z)
        return real(self, z, rng)

    box = (np.array([0.5, -np.inf, -2.0, -np.inf]), np.array([0.75, np.inf, -1.0, np.inf]))
    monkeypatch.setattr(Coder, "write", write)
    given: list[np.ndarray] = []
    monkeypatch.setattr(
        sys.modules[Dense.__module__], "promising", lambda means, scores, bins: (given.append(means), box)[1]
    )
    rule = Dense(TINY, first=6, batch=3, tries=100)
    first = rule.round(ToySpace(), [], 0)
    assert len(first) == 6
    told = [Told(cell, float(n)) for n, cell in enumerate(first)]
    second = rule.round(ToySpace(), told, 0)
    assert not {c.hash for c in first} & {c.hash for c in second}
    coder, tokens = controller(ToySpace(), TINY), Tokens(ToySpace())
    means = coder.encode(torch.tensor([tokens.encode(c) for c in first]))[0]
    assert given[0] == pytest.approx(means.detach().numpy())
    assert (len(seen[0]), len(seen[1])) == (600, 300)
    assert seen[0].std() == pytest.approx(1, abs=0.1)
    z = seen[1]
    assert (z[:, 0].min() >= 0.5, z[:, 0].max() <= 0.75) == (True, True)
    assert float(z[:, 2].mean()) == pytest.approx(-1.5, abs=0.06)
    assert float(z[:, 2].std()) == pytest.approx(1 / math.sqrt(12), rel=0.1)
    assert float(z[:, 1].std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", ["darts", "s2", "grid", "chain"])
def test_it_searches_other_spaces(name: str) -> None:
    space = SPACES[name](**SMALL[name])  # type: ignore[arg-type]
    told: list[Told] = []
    rule = Dense(TINY, first=4, batch=2)
    for _ in range(6):
        cell = rule.ask(space, told, 0)
        assert cell is not None
        space.check(cell)
        told.append(Told(cell, float(len(told))))


def test_killed_at_every_third_query_it_ends_the_same() -> None:
    torch.set_default_dtype(torch.float32)
    check_searcher(AskTell("dnas", Dense(TINY, 4, 3), queries=8))


def test_what_the_docstring_says_of_the_constants() -> None:
    assert Controlled() == Controlled(1000, 600, 64, 3e-3, 8, 64, 0.1, 0)
    assert dnas().strategy == Dense(Controlled(), 40, 20, 4, 50) == Dense()
    assert dnas().queries == 100
    assert METHODS["dnas"]() == dnas()


def test_bad_settings_are_a_sentence() -> None:
    assert Controlled(cells=2, steps=0, batch=1, size=3, units=1).size == 3
    assert Dense(first=2, bins=2, batch=1, tries=1).bins == 2
    for wrong in ({"cells": 1}, {"steps": -1}, {"batch": 0}, {"rate": 0.0}, {"size": 2}, {"units": 0}):
        with pytest.raises(UserError, match="A controller needs"):
            Controlled(**wrong)  # type: ignore[arg-type]
    for wrong in ({"first": 3}, {"bins": 1}, {"batch": 0}, {"tries": 0}):
        with pytest.raises(UserError, match="Dense sampling needs"):
            Dense(**wrong)
