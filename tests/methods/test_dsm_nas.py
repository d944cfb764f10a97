"""DSM-NAS: the controller against a literal reading with loops, its step against the gradient by hand, and its walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import pytest
import torch
from torch.nn import functional as F

from contracts.registry import SMALL
from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.methods.ask_tell import AskTell, Told
from oche.methods.dsm_nas import Controller, Mining, Walk, dsm_nas, graph
from oche.methods.tokens import Tokens
from oche.spaces import SPACES, Space
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace
from oche.testing import check_searcher

NB201 = SPACES["nb201"]()


@pytest.fixture(autouse=True)
def double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def convolutions(genotype: Genotype) -> float:
    return 80 + 2.0 * genotype.count("nor_conv_3x3") + genotype.count("nor_conv_1x1")


def asked(rule: Mining, queries: int, space: Space = NB201, seed: int = 0) -> list[Told]:
    told: list[Told] = []
    while len(told) < queries:
        cell = rule.ask(space, told, seed)
        assert cell is not None
        told.append(Told(cell, convolutions(cell)))
    return told


# ---------------------------------------------------------------------- the graph


def test_edges_lead_to_better_centres() -> None:
    """Every pair has one edge, from the worse to the better one, from the first where they are equal."""
    cells = [((0, 1), 3.0), ((2, 2), 5.0), ((1, 0), 3.0)]
    nodes, edges, there = graph(cells, (3, 3))
    assert nodes.tolist() == [[1, 0, 0, 0, 1, 0, 3], [0, 0, 1, 0, 0, 1, 5], [0, 1, 0, 1, 0, 0, 3]]
    assert there[..., 0].nonzero().tolist() == [[0, 1], [0, 2], [2, 1]]
    assert torch.equal(edges[0, 1], nodes[1] - nodes[0])
    assert nodes.dtype == torch.float64


# ---------------------------------------------------------------------- the controller, with loops


def literal(
    net: Controller, cells: list[tuple[tuple[int, ...], float]], edits: int, decisions: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-likelihood of given decisions and the sum of entropies, by dictionaries over pairs of centres."""
    count = len(cells)
    features = [
        torch.cat([*(torch.eye(w)[v] for v, w in zip(cell, net.widths, strict=True)), torch.tensor([s])])
        for cell, s in cells
    ]
    pairs = [
        (i, j)
        for i in range(count)
        for j in range(count)
        if i != j and (cells[i][1] < cells[j][1] or (cells[i][1] == cells[j][1] and i < j))
    ]
    node = {i: net.nodes(x) for i, x in enumerate(features)}
    edge = {(i, j): net.edges(features[j] - features[i]) for i, j in pairs}
    zero = torch.zeros(net.units)
    for layer in net.layers:
        heard = {}
        for i in range(count):
            messages = []
            for j in range(count):
                if i != j:
                    both = torch.cat([node[i], edge.get((i, j), zero), edge.get((j, i), zero)])
                    messages.append(F.relu(layer.pool(F.relu(layer.pair.weight @ both))))
            heard[i] = sum(messages[1:], messages[0]) / len(messages)
        node = {i: F.relu(layer.node.weight @ torch.cat([node[i], heard[i]])) for i in node}
        edge = {(i, j): F.relu(layer.edge.weight @ torch.cat([x, node[i], node[j]])) for (i, j), x in edge.items()}
    left = list(decisions)
    log, entropy = torch.zeros(()), torch.zeros(())

    def decide(logits: torch.Tensor, bound: float) -> int:
        nonlocal log, entropy
        p = torch.exp(bound * torch.tanh(logits))
        p = p / p.sum()
        n = left.pop(0)
        log, entropy = log + torch.log(p[n]), entropy - sum(x * torch.log(x) for x in p)
        return n

    h = c = torch.zeros(1, net.units)
    h, c = net.lstm(sum(node.values())[None] / count, (h, c))
    attention = [
        net.attention.weight[0] @ torch.tanh(net.of_node.weight @ node[i] + net.of_state.weight @ h[0]) for i in node
    ]
    heard_last = net.centres.weight[decide(torch.stack(attention), 1.5)]
    for _ in range(edits):
        h, c = net.lstm(heard_last[None], (h, c))
        place = decide(net.place(h)[0], 1.5 / 2.5)
        h, c = net.lstm(net.places.weight[place][None], (h, c))
        value = decide(net.value(h)[0][: net.widths[place]], 1.5 / 2.5)
        heard_last = net.values.weight[value]
    assert not left
    return log, entropy


@pytest.mark.parametrize("widths", [(3, 3, 3), (2, 4)])
@pytest.mark.parametrize("edits", [1, 4])
def test_the_controller_is_its_literal_reading(widths: tuple[int, ...], edits: int) -> None:
    torch.manual_seed(0)
    net = Controller(3, widths, 8)
    cells = [((0,) * len(widths), 1.0), ((1,) * len(widths), 0.5), ((1, *[0] * (len(widths) - 1)), 0.5)]
    for n in range(5):
        centre, found, log, entropy = net(graph(cells, widths), edits, counted(n, "test"))
        decisions = [centre, *(n for pair in found for n in pair)]
        assert all(value < widths[place] for place, value in found)
        expected = literal(net, cells, edits, decisions)
        assert torch.allclose(log, expected[0], rtol=1e-12)
        assert torch.allclose(entropy, expected[1], rtol=1e-12)


def test_decisions_are_drawn_as_often_as_they_are_likely() -> None:
    torch.manual_seed(1)
    net = Controller(2, (3,), 4)
    for weight in net.parameters():
        weight.data.mul_(3)
    cells = [((0,), 1.0), ((1,), 2.0)]
    counts: dict[tuple[int, int], int] = {}
    log: dict[tuple[int, int], float] = {}
    for n in range(200):
        centre, found, likelihood, _ = net(graph(cells, (3,)), 1, counted(n, "often"))
        key = centre, found[0][1]
        counts[key], log[key] = counts.get(key, 0) + 1, float(likelihood.detach())
    for key, count in counts.items():
        p = math.exp(log[key])
        assert abs(count - 200 * p) < 4 * math.sqrt(200 * p * (1 - p))
    assert sum(math.exp(x) for x in log.values()) == pytest.approx(1)


# ---------------------------------------------------------------------- the walk


def told_of(numbers: tuple[int, ...], score: float) -> Told:
    return Told(Tokens(ToySpace()).decode(numbers), score)


FIRST = [told_of((0, 0, 0), 50.0), told_of((1, 1, 1), 60.0), told_of((2, 0, 2), 55.0)]


def test_an_edit_changes_its_centre_s_numbers() -> None:
    walk = Walk(Mining(edits=1), ToySpace(), FIRST, 0)
    before = Tokens(ToySpace()).encode(FIRST[walk.centre].genotype)
    after = Tokens(ToySpace()).encode(walk.asked)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1
    far = [
        sum(a != b for a, b in zip(w.centres[w.centre][0], w.tokens.encode(w.asked), strict=True))
        for w in (Walk(Mining(), ToySpace(), FIRST, seed) for seed in range(12))
    ]
    assert max(far) > 1


def test_a_centre_is_replaced_by_what_beats_it_alone() -> None:
    walks = [Walk(Mining(), ToySpace(), FIRST, seed) for seed in range(6)]
    apart = [w for w in walks if w.tokens.encode(w.asked) != w.centres[w.centre][0]]
    assert len(apart) > 2, "most edits make another cell of the centre"
    for n, walk in enumerate(apart):
        old = list(walk.centres)
        walk.learn(Told(walk.asked, old[walk.centre][1] - n % 2))
        assert walk.centres == old, "equal is not better, nor is less"
    centre, asked_for = walk.centre, walk.asked
    walk.learn(Told(asked_for, old[centre][1] + 0.5))
    assert walk.centres[centre] == (walk.tokens.encode(asked_for), old[centre][1] + 0.5)
    assert [c for n, c in enumerate(walk.centres) if n != centre] == [c for n, c in enumerate(old) if n != centre]


def test_a_step_descends_the_policy_s_loss() -> None:
    """Against Adam on the loss, written out; the baseline begins at the first gain and moves before it is subtracted."""
    rule = Mining(units=6)
    walk, other = (Walk(rule, ToySpace(), FIRST, 3) for _ in range(2))
    optimizer = torch.optim.Adam(
        other.controller.parameters(), lr=0.009446763714621489, weight_decay=2.3740059139364297e-05
    )
    baseline = None
    for n in range(4):
        score = 54.0 + 3 * n
        gain = score - walk.centres[walk.centre][1]
        baseline = gain if baseline is None else 0.9 * baseline + 0.1 * gain
        decisions = other.controller(graph(walk.centres, other.tokens.widths), 4, counted(3, "dsm_nas", 3 + n))
        loss = -decisions[2] * (gain - baseline) - 0.0005049559768158195 * decisions[3]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        walk.learn(Told(walk.asked, score))
        assert walk.baseline == pytest.approx(baseline)
        for mine, theirs in zip(walk.controller.parameters(), other.controller.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_weights_begin_between_a_tenth_and_its_negative() -> None:
    weights = torch.cat([w.detach().flatten() for w in Walk(Mining(), ToySpace(), FIRST, 0).controller.parameters()])
    assert weights.abs().max() <= 0.1
    assert float(weights.std()) == pytest.approx(0.2 / math.sqrt(12), rel=0.02)
    other = Walk(Mining(), ToySpace(), FIRST, 1).controller
    assert not torch.equal(other.place.weight, Walk(Mining(), ToySpace(), FIRST, 0).controller.place.weight)


def test_what_comes_next_depends_on_the_arguments_alone() -> None:
    """One that was there from the start and one that a resumed search made anew ask for the same; another search in between, too."""
    told = asked(Mining(units=8), 14)
    assert [Mining(units=8).ask(NB201, told[:n], 0) for n in (2, 3, 9, 13)] == [told[n].genotype for n in (2, 3, 9, 13)]
    rule = Mining(units=8)
    assert rule.ask(NB201, told[:13], 0) == told[13].genotype
    assert rule.ask(NB201, told[:6], 0) == told[6].genotype
    assert asked(rule, 6, seed=1) != told[:6]
    assert rule == Mining(units=8)
    assert "_walks" not in repr(rule)


def test_the_controller_learns_which_value_pays() -> None:
    """On one place of two values, the better one is asked for more and more."""
    space = ToySpace(nodes=2, ops=("skip_connect", "nor_conv_3x3"))
    told = asked(Mining(subspaces=2, edits=1, units=8, rate=0.05), 60, space)
    late = [t.genotype.count("nor_conv_3x3") for t in told[30:]]
    early = [t.genotype.count("nor_conv_3x3") for t in told[2:12]]
    assert sum(late) / len(late) > max(0.6, sum(early) / len(early) - 0.2)


@pytest.mark.parametrize("name", SPACES)
def test_it_searches_every_space(name: str) -> None:
    space = SPACES[name](**SMALL[name])  # type: ignore[arg-type]
    for t in asked(Mining(units=4), 7, space):
        space.check(t.genotype)


def test_killed_at_every_third_query_it_ends_the_same() -> None:
    torch.set_default_dtype(torch.float32)
    check_searcher(AskTell("dsm_nas", Mining(units=4), queries=8))


def test_the_constants_are_the_code_s() -> None:
    """Those of entry/train201.py at the commit in the docstring."""
    assert dsm_nas().strategy == Mining(3, 4, 64, 0.009446763714621489, 2.3740059139364297e-05, 0.0005049559768158195)
    assert [f.name for f in fields(Mining) if f.init] == [
        "subspaces",
        "edits",
        "units",
        "rate",
        "weight_decay",
        "entropy",
    ]
    assert dsm_nas().queries == 100
    assert isinstance(METHODS["dsm_nas"](), AskTell)
    first = asked(Mining(), 3)
    assert [t.genotype for t in first] == [sample(NB201, counted(0, "dsm_nas", n)) for n in range(3)]


def test_bad_settings_are_a_sentence() -> None:
    assert Mining(subspaces=2, edits=1, units=1).subspaces == 2
    for wrong in ({"subspaces": 1}, {"edits": 0}, {"units": 0}, {"rate": 0.0}):
        with pytest.raises(UserError, match="DSM-NAS needs two subspaces"):
            Mining(**wrong)  # type: ignore[arg-type]
