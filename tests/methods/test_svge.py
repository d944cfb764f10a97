"""SVGe: messages, losses and draws against loops over one graph, no leak between graphs of a batch, and the search in the embedding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_geometric", reason="the extra `latent` is not installed")
pytest.importorskip("botorch", reason="the extra `latent` is not installed")

from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.methods.ask_tell import AskTell, Told
from oche.methods.graph_vae import GraphVAE, layer_of, reverse
from oche.methods.graphs import Graphs
from oche.methods.svge import Embedding, Optimised, Training, embedding, improved, place, predictor, svge
from oche.spaces import SPACES
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace
from oche.testing import check_searcher

TINY = Training(cells=20, steps=2, batch=4, units=6, size=4)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, and double precision."""
    monkeypatch.setenv("OCHE_CACHE", str(tmp_path / "a" / "cache"))
    embedding.cache_clear()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    embedding.cache_clear()


def graphs_of(name: str, count: int) -> tuple[Graphs, Tensor, Tensor]:
    space = SPACES[name](nodes=2) if name == "darts" else SPACES[name]()
    graphs, rng = Graphs(space), torch.Generator().manual_seed(0)
    return graphs, *graphs.encode([sample(space, rng) for _ in range(count)])


def model_of(graphs: Graphs, units: int = 6, size: int = 8) -> GraphVAE:
    torch.manual_seed(1)
    return GraphVAE(graphs.types, len(graphs.places), units, size)


# ---------------------------------------------------------------------- against loops over one graph


def test_a_layer_sums_what_its_sources_say() -> None:
    torch.manual_seed(0)
    layer, h = layer_of(6), torch.randn(4, 3)
    pairs = [(0, 2), (1, 2), (2, 3)]
    expected = []
    for v in range(4):
        heard = sum((layer.say(torch.cat([h[u], h[v]])) for u, w in pairs if w == v), torch.zeros(6))
        expected.append(layer.hear(heard[None], h[v][None])[0])
    assert torch.allclose(layer(h, torch.tensor(pairs).T), torch.stack(expected), rtol=1e-12)


def two_sided(messages: torch.nn.Module, h: list[Tensor], edges: Tensor) -> list[Tensor]:
    half = len(h[0]) // 2
    one, other = [x[:half] for x in h], [x[half:] for x in h]
    for layer in messages.along:
        one = heard(layer, one, edges)
    for layer in messages.against:
        other = heard(layer, other, edges.T)
    return [torch.cat(pair) for pair in zip(one, other, strict=True)]


def heard(layer: torch.nn.Module, h: list[Tensor], edges: Tensor) -> list[Tensor]:
    found = []
    for v in range(len(h)):
        told = [layer.say(torch.cat([h[u], h[v]])) for u in range(len(h)) if edges[u, v]]
        found.append(layer.hear(sum(told, torch.zeros(2 * len(h[v])))[None], h[v][None])[0])
    return found


def gated(part: torch.nn.Module, h: list[Tensor]) -> Tensor:
    if len(h) == 1:
        return part.value(h[0])
    return sum((torch.sigmoid(part.gate(x)) * part.value(x) for x in h), torch.zeros(part.value.out_features))


def literal(decoder: torch.nn.Module, types: Tensor, edges: Tensor, c: Tensor) -> Tensor:
    """The loss of one graph, node by node."""
    h = [decoder.first(torch.cat([decoder.embed.weight[types[0]], c]))]
    loss = torch.zeros(())
    for t in range(1, len(types)):
        if t > 1:
            h = two_sided(decoder.messages, h, edges[:t, :t])
        whole, start = gated(decoder.whole, h), gated(decoder.for_next, h)
        loss = loss - torch.log_softmax(decoder.kind(torch.cat([whole, c])), 0)[types[t]]
        new = decoder.next(torch.cat([decoder.embed.weight[types[t]], start, c]))
        if t > 1:
            scores = torch.stack([decoder.source(torch.cat([x, new, whole, c]))[0] for x in h])
            p = torch.sigmoid(scores)
            loss = loss - torch.where(edges[:t, t], p.log(), (1 - p).log()).mean()
        h = [*h, new]
    return loss


@pytest.mark.parametrize("name", ["nb201", "darts"])
def test_losses_are_those_of_loops_over_each_graph(name: str) -> None:
    graphs, types, edges = graphs_of(name, 3)
    model = model_of(graphs)
    noise = torch.randn(3, 8)
    again, divergence, mean = model.losses(types, edges, noise)
    for n in range(3):
        h = two_sided(model.encoder.messages, [model.encoder.embed.weight[k].repeat(2) for k in types[n]], edges[n])
        mu, log_variance = gated(model.encoder.mean, h), gated(model.encoder.log_variance, h)
        assert torch.allclose(mean[n], mu, rtol=1e-10)
        c = mu + 0.01 * noise[n] * torch.exp(log_variance / 2)
        backwards = [x[0] for x in reverse(types[n : n + 1], edges[n : n + 1])]
        expected = literal(model.decoder, types[n], edges[n], c) + literal(model.decoder, *backwards, c)
        assert torch.allclose(again[n], expected, rtol=1e-10)
        standard = torch.distributions.Normal(torch.zeros(8), torch.ones(8))
        own = torch.distributions.Normal(mu, torch.exp(log_variance / 2))
        assert torch.allclose(divergence[n], torch.distributions.kl_divergence(own, standard).sum(), rtol=1e-10)


def test_graphs_of_a_batch_do_not_leak_into_each_other() -> None:
    """A graph's losses, mean and edge scores are the same alone and beside any others, and only its own encoding moves its loss."""
    graphs, types, edges = graphs_of("nb201", 6)
    model, noise = model_of(graphs), torch.randn(6, 8)
    together = model.losses(types, edges, noise)
    for n in range(6):
        for whole, own in zip(
            together, model.losses(types[n : n + 1], edges[n : n + 1], noise[n : n + 1]), strict=True
        ):
            assert torch.allclose(whole[n], own[0], rtol=1e-10)
    c = torch.randn(6, 8, requires_grad=True)
    for n in range(6):
        (slope,) = torch.autograd.grad(model.decoder.loss(types, edges, c)[n], c)
        assert (slope.abs().sum(1) > 0).tolist() == [m == n for m in range(6)]


def test_reading_from_the_end_twice_is_reading_from_the_start() -> None:
    _, types, edges = graphs_of("darts", 2)
    back = reverse(types, edges)
    assert not back[1].tril().any()
    for x, y in zip(reverse(*back), (types, edges), strict=True):
        assert torch.equal(x, y)


def test_draws_are_the_likely_graphs_and_join_both_directions() -> None:
    """With scores made certain, types and edges are drawn as they say; an edge drawn in either direction is there."""
    graphs, _, _ = graphs_of("nb201", 1)
    model = model_of(graphs)
    c = torch.randn(40, 8)
    drawn_types, drawn_edges = model.draw(c, counted(0, "draw"))
    forwards = model.decoder.draw(1, 8, c, rng := counted(0, "draw"))
    backwards = reverse(*model.decoder.draw(0, 8, c, rng))
    assert torch.equal(drawn_types, forwards[0])
    assert torch.equal(drawn_edges, forwards[1] | backwards[1])
    assert drawn_edges[:, 0, 1].all(), "the second node reads the first"
    assert drawn_edges[:, 6, 7].all(), "and so it is backwards"
    assert not drawn_edges.tril().any()
    assert (drawn_types[:, 0] == 1).all()
    with torch.no_grad():
        model.decoder.source[2].weight.zero_()
        model.decoder.source[2].bias.fill_(-50.0)
        model.decoder.kind[2].weight.zero_()
        model.decoder.kind[2].bias.copy_(torch.eye(7)[4] * 100)
    kinds, none = model.decoder.draw(1, 8, c, counted(1, "draw"))
    assert (kinds[:, 1:] == 4).all()
    assert none.sum() == 40
    with torch.no_grad():
        model.decoder.source[2].bias.fill_(0.0)
    half = model.decoder.draw(1, 8, c, counted(2, "draw"))[1][:, :, 2:]
    assert half.double().sum() / (40 * (2 + 3 + 4 + 5 + 6 + 7)) == pytest.approx(0.5, abs=0.06)


# ---------------------------------------------------------------------- learning


@pytest.mark.slow
def test_it_learns_to_write_what_it_read_and_to_predict() -> None:
    torch.set_default_dtype(torch.float32)
    space = ToySpace()
    found = embedding(space, Training(cells=27, steps=600, batch=27, units=24, size=12, rate=5e-3))
    rng = counted(0, "again")
    again = [cells[0] for cells in found.decode(found.means, 10, rng)]
    assert np.mean([a == b for a, b in zip(again, found.cells, strict=True)]) > 0.95
    scores = np.array([2.0 * c.count("nor_conv_3x3") - c.count("none") for c in found.cells])
    standard = torch.tensor((scores - scores.mean()) / scores.std(), dtype=torch.float32)
    tuned = predictor(found, found.cells, standard, 120, 0)
    with torch.no_grad():
        predicted = tuned.model.score(tuned.encode(found.cells))
    assert np.corrcoef(predicted, standard)[0, 1] > 0.9
    assert torch.equal(found.encode(found.cells), found.means), "the embedding itself is not changed"


def test_an_embedding_is_learned_once_and_kept() -> None:
    found = embedding(ToySpace(), TINY)
    assert len({cell.hash for cell in found.cells}) == 20
    (kept,) = (Path(sys.modules["os"].environ["OCHE_CACHE"])).glob("svge-*.safetensors")
    assert found is embedding(ToySpace(), TINY)
    embedding.cache_clear()
    again = embedding(ToySpace(), TINY)
    assert torch.equal(again.means, found.means)
    assert torch.equal(again.means, again.encode(again.cells))
    assert torch.equal(again.means, again.model.encoder(*again.graphs.encode(again.cells))[0])
    kept.write_bytes(b"damaged")
    embedding.cache_clear()
    assert torch.equal(embedding(ToySpace(), TINY).means, found.means)
    assert not torch.equal(embedding(ToySpace(), replace(TINY, seed=1)).means, found.means)
    assert not torch.equal(embedding(ToySpace(), replace(TINY, steps=3)).means, found.means)
    assert len(embedding(ToySpace(), replace(TINY, cells=99)).cells) == 27
    assert len([*kept.parent.iterdir()]) == 4, "one file for each, and nothing half written"


def test_many_cells_have_a_mean_each() -> None:
    found = embedding(SPACES["nb201"](), Training(cells=520, steps=0, batch=1, units=2, size=1))
    assert found.means.shape == (520, 1)
    assert torch.equal(found.means[515:], found.encode(found.cells[515:]))


def test_a_cache_that_takes_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    found = embedding(ToySpace(), TINY)
    embedding.cache_clear()
    (kept,) = (Path(sys.modules["os"].environ["OCHE_CACHE"])).iterdir()
    kept.unlink()
    monkeypatch.setattr(sys.modules[Optimised.__module__], "save_file", full)
    assert torch.equal(embedding(ToySpace(), TINY).means, found.means)
    assert not [*kept.parent.iterdir()]


def test_a_step_descends_the_loss_at_a_rate_that_falls() -> None:
    """Two steps against Adam written out: half of the rate is left at half of the steps."""
    found = embedding(ToySpace(), TINY)
    graphs = Graphs(ToySpace())
    types, edges = graphs.encode(found.cells)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted(0, "svge", "weights").initial_seed())
        model = GraphVAE(graphs.types, len(graphs.places), 6, 4)
        weights = list(model.parameters())
        first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        for step, rate in enumerate((2e-3, 1e-3), start=1):
            chosen = torch.randint(20, (4,))
            again, divergence, _ = model.losses(types[chosen], edges[chosen], torch.randn(4, 4))
            slopes = torch.autograd.grad((again + 0.005 * divergence).mean(), weights, allow_unused=True)
            with torch.no_grad():
                for w, m, v, g in zip(weights, first, second, slopes, strict=True):
                    if g is not None:
                        m.mul_(0.9).add_(0.1 * g)
                        v.mul_(0.999).add_(0.001 * g**2)
                        w.sub_(rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
    for mine, w in zip(found.model.parameters(), weights, strict=True):
        assert torch.allclose(mine, w, rtol=1e-7, atol=1e-9)


def test_a_predictor_descends_a_tenth_of_the_loss_and_nine_of_the_error() -> None:
    """Against Adam on the loss written out, on 40 cells in batches of 32; the head by its matrices, no unit of which is off."""
    found = embedding(ToySpace(), TINY)
    found = replace(found, model=deepcopy(found.model))
    for name, parameter in found.model.head.named_parameters():
        parameter.data.add_(1.0) if name.endswith("bias") else parameter.data.abs_()
    cells, scores = found.cells * 2, torch.randn(40, generator=torch.Generator().manual_seed(5))
    types, edges = found.graphs.encode(cells)
    tuned = predictor(found, cells, scores, 2, 7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted(7, "svge", "predictor").initial_seed())
        model = deepcopy(found.model)
        one, two, three, last = (m for m in model.head if isinstance(m, torch.nn.Linear))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
        for _ in range(2):
            order = torch.randperm(40)
            for chosen in (order[:32], order[32:]):
                again, divergence, mean = model.losses(types[chosen], edges[chosen], torch.randn(len(chosen), 4))
                h = mean
                for layer in (one, two, three):
                    h = (h @ layer.weight.T + layer.bias).clamp_min(0)
                told = h @ last.weight[0] + last.bias[0]
                assert torch.allclose(model.score(mean), told, rtol=1e-12)
                loss = 0.1 * (again.mean() + 0.005 * divergence.mean()) + 0.9 * ((told - scores[chosen]) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for mine, w in zip(tuned.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, w, rtol=1e-7, atol=1e-10)


def test_decodings_come_the_most_frequent_first() -> None:
    found = embedding(ToySpace(), TINY)
    types, edges = found.graphs.encode(found.cells[:3])
    bad = torch.zeros_like(types[:1]), torch.zeros_like(edges[:1])

    class Stub:
        def draw(self, c: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            assert c.tolist() == [[0.0, 1.0]] * 8 + [[2.0, 3.0]] * 8
            rows = [2, 0, 1, 1, 0, 1, None, None, *[0] * 3, *[None] * 5]
            own = [bad if r is None else (types[r : r + 1], edges[r : r + 1]) for r in rows]
            return torch.cat([t for t, _ in own]), torch.cat([e for _, e in own])

    stub = replace(found, model=Stub())  # type: ignore[arg-type]
    decoded = stub.decode(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), 8, counted(0, "x"))
    assert decoded == [[found.cells[1], found.cells[0], found.cells[2]], [found.cells[0]]]


# ---------------------------------------------------------------------- the search


def test_points_improve_on_what_is_known() -> None:
    """In one dimension: no grid point has a greater expected improvement than the first."""
    from botorch.acquisition.analytic import LogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x = torch.tensor([[0.0], [0.2], [0.45], [0.8], [1.0]])
    y = torch.sin(5 * x[:, 0])
    y = (y - y.mean()) / y.std()
    torch.manual_seed(0)
    points = improved(x, y, 3)
    process = SingleTaskGP(x, y[:, None], outcome_transform=None)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(process.likelihood, process))
    hope = LogExpectedImprovement(process, best_f=y.max())
    with torch.no_grad():
        best = hope(torch.linspace(0, 1, 201)[:, None, None]).max()
        assert float(hope(points[:1, None])) > float(best) - 0.05
    assert points.shape == (3, 1)
    assert ((points >= 0) & (points <= 1)).all()


def test_how_long_points_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the docstring says: 100 steps of the fit, a climb of 20 from the best of 64 draws, one point at a time, in the unit box."""
    import botorch.fit
    import botorch.optim.optimize

    fits: list[object] = []
    climbs: list[dict[str, object]] = []
    fit, climb = botorch.fit.fit_gpytorch_mll, botorch.optim.optimize.optimize_acqf

    def fitted(mll: object, **given: object) -> object:
        fits.append(given)
        return fit(mll, **given)

    def climbed(hope: object, bounds: Tensor, **given: object) -> object:
        climbs.append({**given, "box": bounds.tolist()})
        return climb(hope, bounds, **given)

    monkeypatch.setattr(botorch.fit, "fit_gpytorch_mll", fitted)
    monkeypatch.setattr(botorch.optim.optimize, "optimize_acqf", climbed)
    x = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    improved(x, x.sum(1) - x.sum(1).mean(), 2)
    assert fits == [{"optimizer_kwargs": {"options": {"maxiter": 100}}}]
    each = {"q": 1, "num_restarts": 1, "raw_samples": 64, "options": {"maxiter": 20}, "box": [[0.0, 0.0], [1.0, 1.0]]}
    assert climbs == [each] * 2


@pytest.mark.slow
def test_what_comes_next_depends_on_the_arguments_alone() -> None:
    def asked(rule: Optimised, queries: int, seed: int = 0) -> list[Told]:
        told: list[Told] = []
        while len(told) < queries and (cell := rule.ask(ToySpace(), told, seed)) is not None:
            told.append(Told(cell, 80.0 + 2 * cell.count("nor_conv_3x3")))
        return told

    rule = Optimised(TINY, first=4, batch=2, decodings=6)
    told = asked(rule, 10)
    assert [Optimised(TINY, 4, 2, 6).ask(ToySpace(), told[:n], 0) for n in (3, 4, 9)] == [
        told[n].genotype for n in (3, 4, 9)
    ]
    assert len({t.genotype.hash for t in told}) == 10
    assert asked(rule, 8, seed=1) != told[:8]
    assert rule == Optimised(TINY, 4, 2, 6)
    assert "_rounds" not in repr(rule)
    assert len(asked(Optimised(TINY, first=26, batch=1, decodings=2), 99)) == 27


def test_a_round_decodes_points_of_the_box_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the optimisation is given and gives, by hand; a point whose decodings are all known gives nothing."""
    found = embedding(ToySpace(), TINY)
    told = [Told(cell, 80.0 + n % 4) for n, cell in enumerate(found.cells[:6])]
    first, second = found.cells[8:10]
    seen: list[tuple[Tensor, Tensor, int]] = []
    decoded: list[tuple[Tensor, int]] = []

    def noted(x: Tensor, y: Tensor, count: int) -> Tensor:
        seen.append((x, y, count))
        return torch.tensor([[0.0] * 4, [0.25] * 4, [1.0] * 4])

    def decode(self: Embedding, c: Tensor, times: int, rng: torch.Generator) -> list[list[Genotype]]:
        decoded.append((c, times))
        return [[told[0].genotype, first], [told[1].genotype, first, second], [first, told[2].genotype]]

    monkeypatch.setattr(sys.modules[Optimised.__module__], "improved", noted)
    monkeypatch.setattr(Embedding, "decode", decode)
    assert Optimised(TINY, 4, 3, 6).round(ToySpace(), told, 0) == [first, second]
    low, high = found.means.numpy().min(0), found.means.numpy().max(0)
    ((x, y, count),) = seen
    assert count == 3
    assert x.numpy() == pytest.approx((found.means[:6].numpy() - low) / (high - low))
    scores = np.array([t.score for t in told])
    assert y.numpy() == pytest.approx((scores - scores.mean()) / scores.std())
    ((c, times),) = decoded
    assert times == 6
    assert c.numpy() == pytest.approx(np.stack([low, 0.75 * low + 0.25 * high, high]))


@pytest.mark.slow
def test_a_point_that_is_known_gives_the_next_decoding() -> None:
    found = embedding(ToySpace(), TINY)
    rule, told = Optimised(TINY, 4, 3, 40), [Told(cell, 80.0 + n) for n, cell in enumerate(found.cells[:6])]
    cells = rule.round(ToySpace(), told, 0)
    assert len(cells) <= 3
    assert not {c.hash for c in cells} & {t.genotype.hash for t in told}
    assert len({c.hash for c in cells}) == len(cells)


def test_it_says_that_it_learns_where_the_cache_has_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[Optimised.__module__], "cache", lambda: tmp_path)
    rule = Optimised(Training(cells=1234, steps=5678), first=2)
    told = [Told(cell, 80.0) for cell in embedding(ToySpace(), TINY).cells[:2]]
    nb201 = SPACES["nb201"]()
    assert rule.learns(nb201, told[:1]) == ""
    assert "1,234 random cells of nb201, 5,678 steps" in rule.learns(nb201, told)
    assert f"{ToySpace().cardinality()} random cells" in rule.learns(ToySpace(), told)
    place(nb201, rule.training).touch()
    assert rule.learns(nb201, told) == ""


@pytest.mark.slow
def test_killed_at_every_third_query_it_ends_the_same() -> None:
    torch.set_default_dtype(torch.float32)
    check_searcher(AskTell("svge", Optimised(TINY, 4, 2, 6), queries=8))


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(UserError, match=r"pip install 'oche\[latent\]'"):
        embedding(ToySpace(), TINY)
    monkeypatch.setitem(sys.modules, "botorch.fit", None)
    with pytest.raises(UserError, match=r"pip install 'oche\[latent\]'"):
        improved(torch.rand(3, 2), torch.rand(3), 1)


def test_what_the_docstring_says_of_the_constants() -> None:
    assert Training() == Training(4000, 800, 128, 2e-3, 0.005, 48, 56, 0)
    assert svge().strategy == Optimised(Training(), first=10, batch=10, decodings=50) == Optimised()
    assert [f.name for f in fields(Optimised) if f.init] == ["training", "first", "batch", "decodings"]
    assert "_rounds" not in repr(Optimised())
    assert svge().queries == 100
    assert METHODS["svge"]() == svge()
    head = [m for m in GraphVAE(7, 8).head if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in head] == [(56, 28), (28, 14), (14, 7), (7, 1)]
    model = GraphVAE(7, 8)
    assert len(model.encoder.messages.along) == len(model.decoder.messages.against) == 2
    assert model.encoder.embed.weight.shape == (7, 125)
    assert [model.decoder.source[n].weight.shape for n in (0, 2)] == [(306, 612), (1, 306)]
    assert [m.weight.shape for m in GraphVAE(7, 8, 4, size=3).head if isinstance(m, torch.nn.Linear)] == [
        (1, 3),
        *[(1, 1)] * 3,
    ]


def test_bad_settings_are_a_sentence() -> None:
    assert Training(cells=1, steps=0, batch=1, units=2, size=1).units == 2
    assert Optimised(first=2, batch=1, decodings=1).first == 2
    for wrong in ({"cells": 0}, {"batch": 0}, {"units": 1}, {"size": 0}, {"steps": -1}, {"rate": 0.0}):
        with pytest.raises(UserError, match="An embedding needs"):
            Training(**wrong)  # type: ignore[arg-type]
    for wrong in ({"first": 1}, {"batch": 0}, {"decodings": 0}):
        with pytest.raises(UserError, match="Bayesian optimisation needs"):
            Optimised(**wrong)
