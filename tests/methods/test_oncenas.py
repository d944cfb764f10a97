"""OnceNAS's reading: costs and fronts by hand, the coder against loops, an ascent that climbs, and the search."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.registry import SMALL
from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.methods.ask_tell import AskTell, Told
from oche.methods.evaluators import Scorer
from oche.methods.oncenas import (
    Ascent,
    Joint,
    Learned,
    begun,
    costs,
    front,
    front_of,
    normal_ranks,
    oncenas,
    ranked,
    uphill,
    value,
)
from oche.methods.sequences import Coder, seeded
from oche.methods.tokens import Tokens
from oche.report.page import made, state
from oche.run import Run
from oche.search.callbacks import Callback
from oche.search.state import Problem
from oche.spaces import SPACES
from oche.spaces.cost import prices_of
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace
from oche.testing import check_searcher, noise_problem


@dataclass(frozen=True)
class Numbered:
    """Scores a cell by its hash, which has nothing to do with its costs."""

    def ready(self, problem: Problem, watch: Sequence[Callback] = ()) -> Scorer:
        return lambda cell: int(cell.hash[:4], 16) / 1000


TINY = Learned(cells=20, steps=3, tuning=3, batch=6, size=4, units=6)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    begun.cache_clear()
    yield
    torch.set_default_dtype(torch.float32)
    begun.cache_clear()


# ---------------------------------------------------------------------- the coder, which DNAS uses too


def test_a_coder_has_a_row_per_value_and_one_to_begin_with_and_keeps_its_weights_alone() -> None:
    coder = Coder((2, 3), size=4, units=6)
    assert coder.embed.weight.shape == (2 + 3 + 1, 6)
    assert coder.state_dict().keys() == dict(coder.named_parameters()).keys()


def literal(coder: Coder, numbers: list[int], z: torch.Tensor) -> torch.Tensor:
    """-log q of one sequence, a number at a time."""
    state, loss, last = None, torch.zeros(()), sum(coder.widths)
    for place, number in enumerate(numbers):
        x = torch.cat([coder.embed.weight[last], z])[None, None]
        h, state = coder.writer(x, state)
        loss = loss - torch.log_softmax(coder.heads[place](h[0, 0]), 0)[number]
        last = number + sum(coder.widths[:place])
    return loss


def test_the_coder_is_its_literal_reading() -> None:
    torch.manual_seed(0)
    coder, z = Coder((3, 5, 2), 4, 6), torch.randn(4, 4)
    numbers = torch.tensor([[0, 4, 1], [2, 0, 0], [1, 1, 1], [0, 0, 0]])
    expected = [literal(coder, row, z[n]) for n, row in enumerate(numbers.tolist())]
    assert torch.allclose(coder.loss(numbers, z), torch.stack(expected), rtol=1e-12)
    h, _ = coder.reader(coder.embed.weight[[0 + 0, 3 + 4, 8 + 1]][None])
    assert torch.allclose(coder.encode(numbers)[0][0], coder.mean(h[0, -1]), rtol=1e-12)
    assert torch.allclose(coder.encode(numbers)[1][0], coder.log_variance(h[0, -1]), rtol=1e-12)


def test_the_coder_writes_what_is_likeliest_and_draws_what_is_likely() -> None:
    torch.manual_seed(1)
    coder, z = Coder((3, 2), 4, 6), torch.randn(1, 4)
    pairs = [(a, b) for a in range(3) for b in range(2)]
    with torch.no_grad():
        p = torch.exp(-coder.loss(torch.tensor(pairs), z.expand(6, -1)))
    assert float(p.sum()) == pytest.approx(1)
    a = max(range(3), key=lambda a: float(p[2 * a] + p[2 * a + 1]))
    b = max(range(2), key=lambda b: float(p[2 * a + b]))
    assert coder.write(z).tolist() == [[a, b]]
    drawn = coder.write(z.expand(2000, -1), counted(0, "draw")).tolist()
    for n, pair in enumerate(pairs):
        q = float(p[n])
        assert abs(drawn.count(list(pair)) - 2000 * q) < 4 * math.sqrt(2000 * q * (1 - q))


def test_seeded_draws_disturb_no_others() -> None:
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    with seeded(1, "a"):
        inside = torch.rand(1)
    assert torch.equal(torch.rand(1), before)
    with seeded(1, "a"):
        assert torch.equal(torch.rand(1), inside)
    with seeded(2, "a"):
        assert not torch.equal(torch.rand(1), inside)


# ---------------------------------------------------------------------- costs, ranks, fronts


@pytest.mark.parametrize("name", ["nb201", "darts", "chain"])
def test_costs_are_the_network_s(name: str) -> None:
    space = SPACES[name](**SMALL[name])  # type: ignore[arg-type]
    cell = sample(space, torch.Generator().manual_seed(0))
    prices = prices_of(space, cell)
    assert costs(space, cell, None) == pytest.approx((prices["multiply_adds"], prices["parameters"]))


def test_a_device_s_latency_is_the_table_s(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        def value(self, genotype: object, metric: str) -> float:
            return {"latency/raspi4": 7.5, "cifar10/parameters": 123.0}[metric]

    monkeypatch.setattr(sys.modules[Ascent.__module__], "_table", Stub)
    cell = sample(ToySpace(), torch.Generator().manual_seed(0))
    assert costs(ToySpace(), cell, "raspi4") == (7.5, 123.0)
    assert costs(ToySpace(), cell, None)[1] == pytest.approx(prices_of(ToySpace(), cell)["parameters"])


def test_ranks_as_normal_quantiles() -> None:
    found = normal_ranks([90.0, 10.0, 92.0, 90.0])
    assert found[2] == -found[1] == pytest.approx(1.1503, abs=1e-4)
    assert found[0] == found[3] == 0
    assert normal_ranks([5.0]) == [0.0]


def test_a_front_against_all_pairs() -> None:
    rng = np.random.default_rng(0)
    points = [tuple(map(float, row)) for row in rng.integers(0, 5, (60, 3))]
    expected = []
    for n, (a, b, c) in enumerate(points):
        beaten = any(x >= a and y <= b and z <= c and (x > a or y < b or z < c) for x, y, z in points)
        expected += [] if beaten else [n]
    assert front(points) == expected
    assert front([(1.0, 2.0)]) == [0]


# ---------------------------------------------------------------------- learning and climbing


def test_the_loss_counts_what_is_known() -> None:
    torch.manual_seed(0)
    model = Joint((3, 3), 4, 6)
    numbers = torch.tensor([[0, 1], [2, 2]])
    known = torch.tensor([[float("nan"), 0.5, -1.0], [1.0, 0.0, 0.3]])
    z = model.coder.encode(numbers)[0]
    told = model.predictor(z)
    squares = [
        (told[0, 1] - 0.5) ** 2,
        (told[0, 2] + 1) ** 2,
        (told[1, 0] - 1) ** 2,
        told[1, 1] ** 2,
        (told[1, 2] - 0.3) ** 2,
    ]
    expected = model.coder.loss(numbers, z).mean() + 3 * sum(squares) / 5
    assert torch.allclose(model.loss(numbers, known), expected, rtol=1e-12)
    known.fill_(float("nan"))
    assert torch.allclose(model.loss(numbers, known), model.coder.loss(numbers, z).mean(), rtol=1e-12)
    known[1, 2] = 0.3
    assert torch.allclose(model.loss(numbers, known), model.coder.loss(numbers, z).mean() + 3 * squares[4], rtol=1e-12)


class Noted(Joint):
    """Notes what it is trained on."""

    def loss(self, numbers: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        self.seen = [*getattr(self, "seen", []), known]
        return super().loss(numbers, known)


def test_half_of_a_batch_is_of_known_accuracy() -> None:
    """Of forty cells with known costs, two with a known accuracy."""
    torch.manual_seed(0)
    model, numbers = Noted((3, 3), 4, 6), torch.randint(3, (40, 2))
    known = torch.zeros(40, 3)
    known[:38, 0] = float("nan")
    Learned(batch=8, size=4, units=6).train(model, numbers, known, 5)
    assert all(rows[:4, 0].isfinite().all() for rows in model.seen)
    assert not torch.stack(model.seen)[:, 4:, 0].isfinite().all()
    before = [w.clone() for w in model.parameters()]
    Learned(batch=8, size=4, units=6).train(model, numbers, torch.full((40, 3), float("nan")), 1)
    assert any(not torch.equal(w, b) for w, b in zip(model.parameters(), before, strict=True)), "none need be known"


@pytest.mark.parametrize("most", [1.0, 0.1])
def test_costs_are_standardised_logarithms(most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cost that all cells share has no deviation, and a cost of nothing a logarithm all the same."""

    def costly(space: object, cell: Genotype, device: str | None) -> tuple[float, float]:
        return (most < 1) + most * cell.count("nor_conv_3x3"), 5.0

    monkeypatch.setattr(sys.modules[Ascent.__module__], "costs", costly)
    base = begun(ToySpace(), Learned(cells=12, steps=0, size=4, units=6), None)
    tokens = Tokens(ToySpace())
    found = [costly(None, tokens.decode(row), None)[0] for row in base.numbers.tolist()]
    logs = np.log([max(value, 1e-9) for value in found])
    assert (min(found) == 0) == (most == 1)
    mean, deviation = logs.mean(), logs.std()
    assert deviation > 0
    assert (deviation < 1) == (most < 1)
    assert base.costs.numpy() == pytest.approx(np.stack([(logs - mean) / deviation, np.zeros(12)], 1), abs=1e-12)
    told = base.standard([(0.0, 5.0), (7.0, 10.0)]).numpy()
    assert told[:, 0] == pytest.approx([(math.log(1e-9) - mean) / deviation, (math.log(7) - mean) / deviation])
    assert told[:, 1] == pytest.approx([0.0, math.log(2)], abs=1e-12)


@pytest.mark.parametrize(("count", "best"), [(12, 3), (45, 4)])
def test_ascents_begin_at_the_best_tenth_but_at_three_cells(
    count: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, rng = SPACES["nb201"](**SMALL["nb201"]), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    told = [Told(sample(space, rng), float(7 * n % count)) for n in range(count)]
    begins: list[torch.Tensor] = []

    def noted(model: Joint, numbers: torch.Tensor, others: torch.Tensor, trade: float) -> torch.Tensor:
        begins.append(numbers)
        return model.coder.encode(numbers)[0].detach()

    monkeypatch.setattr(sys.modules[Ascent.__module__], "uphill", noted)
    Ascent(Learned(cells=3, steps=0, tuning=0, size=4, units=6), trades=(0.1,)).round(space, told, 0)
    wanted = sorted(told, key=lambda t: t.score)[::-1][:best]
    assert begins[0].tolist() == [list(Tokens(space).encode(t.genotype)) for t in wanted]


def test_points_climb_what_is_predicted_by_equal_steps() -> None:
    torch.manual_seed(0)
    model, others = Joint((3, 3, 3), 4, 6), torch.randint(3, (12, 3))
    numbers = others[:2]
    start = model.coder.encode(numbers)[0]
    points = uphill(model, numbers, others, 0.3)
    assert points.shape == (60, 4)
    way = torch.stack([start, *points.view(30, 2, 4)])
    steps = (way[1:] - way[:-1]).norm(dim=2)
    spread = model.coder.encode(others)[0].std(0).norm()
    assert torch.allclose(steps, torch.full_like(steps, float(spread.detach()) / 30), rtol=1e-9)
    assert (value(model, points[-2:], 0.3) > value(model, start, 0.3)).all()
    told = model.predictor(start)
    assert torch.allclose(value(model, start, 0.3), told[:, 0] - 0.3 * (told[:, 1] + told[:, 2]) / 2)


def test_cells_are_ranked_by_their_own_encodings() -> None:
    tokens = Tokens(ToySpace())
    torch.manual_seed(0)
    model = Joint(tokens.widths, 4, 6)
    cells = [tokens.decode((a, b, 0)) for a in range(3) for b in range(3)]
    worth = [float(value(model, model.coder.encode(torch.tensor([tokens.encode(c)]))[0], 0.1).detach()) for c in cells]
    assert ranked(model, tokens, cells, 0.1) == [cells[n] for n in np.argsort(-np.array(worth))]
    assert ranked(model, tokens, [], 0.1) == []


@pytest.mark.slow
def test_it_learns_costs_and_writes_what_it_read() -> None:
    torch.set_default_dtype(torch.float32)
    space = ToySpace()
    base = begun(space, Learned(cells=60, steps=250, units=32, size=16), None)
    with torch.no_grad():
        z = base.model.coder.encode(base.numbers)[0]
        assert (base.model.coder.write(z) == base.numbers).all(1).float().mean() > 0.9
        assert ((base.model.predictor(z)[:, 1:] - base.costs) ** 2).mean() < 0.1
    assert abs(float(base.costs.mean())) < 1e-5


# ---------------------------------------------------------------------- the search


def asked(rule: Ascent, queries: int, seed: int = 0) -> list[Told]:
    told: list[Told] = []
    while len(told) < queries and (cell := rule.ask(ToySpace(), told, seed)) is not None:
        told.append(Told(cell, 80.0 + 2 * cell.count("nor_conv_3x3")))
    return told


def test_what_comes_next_depends_on_the_arguments_alone() -> None:
    rule = Ascent(TINY, first=4, batch=3)
    told = asked(rule, 12)
    again = [Ascent(TINY, 4, 3).ask(ToySpace(), told[:n], 0) for n in (3, 4, 9)]
    assert again == [told[n].genotype for n in (3, 4, 9)]
    assert len({t.genotype.hash for t in told}) == 12
    assert asked(rule, 8, seed=1) != told[:8]
    assert rule == Ascent(TINY, 4, 3)
    assert "_rounds" not in repr(rule)
    assert len(asked(Ascent(TINY, first=20, batch=2), 99)) == 27


def test_a_round_takes_turns_between_trade_offs(monkeypatch: pytest.MonkeyPatch) -> None:
    told = asked(Ascent(TINY, first=12), 12)
    tokens = Tokens(ToySpace())
    known = {t.genotype.hash for t in told}
    new = [
        c
        for c in (tokens.decode((a, b, c)) for a in range(3) for b in range(3) for c in range(3))
        if c.hash not in known
    ]
    lists = {0.0: new[:3], 0.5: [new[0], new[3], new[4]]}
    monkeypatch.setattr(sys.modules[Ascent.__module__], "ranked", lambda model, tokens, cells, trade: lists[trade])
    rule = Ascent(TINY, first=4, batch=4, trades=(0.0, 0.5))
    assert rule.round(ToySpace(), told, 0) == [new[0], new[1], new[3], new[2]]


def test_killed_at_every_third_query_it_ends_the_same() -> None:
    torch.set_default_dtype(torch.float32)
    check_searcher(AskTell("oncenas", Ascent(TINY, 4, 3), queries=8))


def test_the_front_lies_in_the_run_s_folder_and_in_its_report(tmp_path: Path) -> None:
    """Against the log: a connected cell is there if and only if no other one asked for is as good in all three and better in one."""
    torch.set_default_dtype(torch.float32)
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    problem = replace(noise_problem(SPACES["nb201"](**SMALL["nb201"])), run=run)  # type: ignore[arg-type]
    searcher = replace(oncenas(queries=14), strategy=Ascent(TINY, 8, 3), evaluator=Numbered())
    found, _ = searcher.run(problem)
    written = json.loads(run.read(Run.FRONT))
    assert written["device"] is None
    rows = [r for r in run.records() if r["kind"] == "query"]
    cells = {
        str(r["queried"]): float(str(r["score"])) for r in rows if Genotype.parse(str(r["queried"]), "nb201").connected
    }
    three = {}
    for text, score in cells.items():
        prices = prices_of(problem.space, Genotype.parse(text, "nb201"))
        three[text] = (-score, prices["multiply_adds"], prices["parameters"])
    beaten = {
        a for a, x in three.items() for y in three.values() if y != x and all(q <= p for p, q in zip(x, y, strict=True))
    }
    assert 0 < len(beaten) < len(cells)
    assert [row["genotype"] for row in written["cells"]] == sorted(set(cells) - beaten, key=lambda a: three[a][0])
    for row in written["cells"]:
        own = (-row["score"], row["multiply_adds"], row["parameters"])
        assert own == pytest.approx(three[row["genotype"]])
        assert rows[row["query"] - 1]["queried"] == row["genotype"]
    assert str(found) == written["cells"][0]["genotype"]
    page, _ = made(run)
    for row in written["cells"]:
        assert f"<td>{row['multiply_adds']:,.0f}</td><td>{row['parameters']:,.0f}</td>" in page
    assert "<dt>queries</dt><dd>14</dd>" in page
    assert f"<dt>best validation score of a query</dt><dd>{max(cells.values()):.2f}</dd>" in page
    assert state(run, [row for row in rows if row["query"] != 14]) == "finished"
    assert state(Run.create(tmp_path / "begun"), rows[:2]) == "unfinished: 2 queries so far"
    run.write(Run.FRONT, b"[1")
    assert 'id="front"' not in made(run)[0]


def test_a_cell_that_is_asked_for_twice_is_once_on_the_front() -> None:
    space = ToySpace()
    one, other = (sample(space, torch.Generator().manual_seed(n)) for n in (0, 1))
    told = [Told(one, 1.0), Told(other, 2.0), Told(one, 1.0), Told(other, 2.0)]
    queries = [row["query"] for row in front_of(space, told, None)]
    assert queries == [2, 1] or queries == [2]


def test_a_cell_that_nothing_passes_is_on_no_front_but_its_own() -> None:
    space = SPACES["nb201"](**SMALL["nb201"])  # type: ignore[arg-type]
    cut, whole = (
        Told(Genotype.parse(f"|{op}~0|+|none~0|none~1|+|{op}~0|none~1|none~2|", "nb201"), score)
        for op, score in (("none", 10.0), ("nor_conv_3x3", 9.0))
    )
    assert costs(space, cut.genotype, None) < costs(space, whole.genotype, None)
    assert [row["query"] for row in front_of(space, [cut, whole], None)] == [2]
    assert [row["query"] for row in front_of(space, [cut], None)] == [1]


def test_what_the_docstring_says_of_the_constants() -> None:
    assert Learned() == Learned(1000, 400, 50, 64, 3e-3, 64, 64, 0)
    assert oncenas().strategy == Ascent(Learned(), 10, 10, (0.0, 0.1, 0.3), None) == Ascent()
    assert oncenas(device="raspi4").strategy == Ascent(device="raspi4")
    assert oncenas().queries == 100
    assert METHODS["oncenas"]() == oncenas()


def test_bad_settings_are_a_sentence() -> None:
    assert Learned(cells=2, steps=0, tuning=0, batch=1, size=1, units=1).cells == 2
    assert Ascent(first=2, batch=1, trades=(0.0,)).first == 2
    for wrong in ({"cells": 1}, {"steps": -1}, {"tuning": -1}, {"batch": 0}, {"rate": 0.0}, {"size": 0}, {"units": 0}):
        with pytest.raises(UserError, match="A latent space needs"):
            Learned(**wrong)  # type: ignore[arg-type]
    for wrong in ({"first": 1}, {"batch": 0}, {"trades": ()}, {"trades": (-0.1,)}):
        with pytest.raises(UserError, match="OnceNAS needs"):
            Ascent(**wrong)
