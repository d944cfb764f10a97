"""Zero-cost scores against second derivations: counted by hand, finite differences, closed forms, the published table."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, vmap

from oche.base import Batch, counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.evaluators import EVALUATORS
from oche.methods.random_search import random_search
from oche.methods.zero_cost import BLIND, COUNTED, LOWEST, SCORES, Codes, ZeroCost, deviations, jacov, zen
from oche.spaces import SPACES, Network
from oche.spaces.nb201 import NB201Space
from oche.spaces.sampling import sample
from oche.tables.nb201 import read
from oche.tasks import Classify
from reference.small_bench import CELLS
from reference.tiny import tiny_problem

TASK = Classify()
GOOD = CELLS[-1]
"""Three convolutions."""


def network(genotype: Genotype = GOOD, seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tiny_problem().space.network(genotype).train()


def batch(count: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.randn(count, 2, 8, 8, generator=rng), torch.arange(count) % 3)


def relus(net: nn.Module, images: Tensor) -> list[Tensor]:
    """What every ReLU module gives, by hooks."""
    found: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _, __, out: found.append(out)) for m in net.modules() if isinstance(m, nn.ReLU)
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return found


def test_naswot_counts_the_units_on_which_images_agree() -> None:
    codes = [(out > 0).flatten(1) for out in relus(network(), batch().images)]
    alike = np.zeros((6, 6))
    for i in range(6):
        for j in range(6):
            alike[i, j] = sum(int((code[i] == code[j]).sum()) for code in codes)
    assert SCORES["naswot"](network(), batch(), TASK) == pytest.approx(np.linalg.slogdet(alike)[1], rel=1e-12)


def test_relus_are_seen_however_they_are_called() -> None:
    x = torch.tensor([[-1.0, 0.5, 9.0]])
    with torch.no_grad(), Codes() as seen:
        nn.ReLU()(x), nn.ReLU(inplace=True)(x.clone()), x.relu(), nn.functional.relu6(x), x.sigmoid()
    assert [code.tolist() for code in seen.codes] == [[[False, True, True]]] * 4


def test_a_network_without_relus_tells_no_images_apart() -> None:
    assert SCORES["naswot"](network(CELLS[0]), batch(), TASK) == -math.inf


def test_jacov_is_that_of_the_images_own_derivatives() -> None:
    """Each image's derivative by central differences in float64, its correlations by numpy."""
    net, images = network().double(), batch(4).images.double()
    rows = []
    for i in range(4):
        slope = np.zeros(images[i].numel())
        for n in range(slope.size):
            values = []
            for sign in (1, -1):
                moved = images.clone()
                moved[i].view(-1)[n] += sign * 1e-6
                with torch.no_grad():
                    values.append(float(net(moved).sum()))
            slope[n] = (values[0] - values[1]) / 2e-6
        rows.append(slope)
    v = np.linalg.eigvalsh(np.corrcoef(np.stack(rows)))
    expected = -np.sum(np.log(v + 1e-5) + 1 / (v + 1e-5))
    assert jacov(network().double(), Batch(images, torch.zeros(4)), TASK) == pytest.approx(expected, rel=1e-5)


class Line(nn.Module):
    """y = W2 W1 x, with a batch norm that scores of flow must leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = (
            nn.Conv2d(1, 2, 1, bias=False),
            nn.BatchNorm2d(2),
            nn.Conv2d(2, 1, 1, bias=False),
        )
        with torch.no_grad():
            self.one.weight.copy_(torch.tensor([-2.0, 3.0]).view(2, 1, 1, 1))
            self.two.weight.copy_(torch.tensor([0.5, -1.0]).view(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x))).flatten(1)


def test_flow_through_two_layers_in_closed_form() -> None:
    """R = 4 pixels x (2 x 0.5 + 3 x 1) = 16; each layer passes on all of it, so synflow is log10 32."""
    images = Batch(torch.randn(3, 1, 2, 2), torch.zeros(3))
    assert SCORES["synflow"](Line(), images, TASK) == pytest.approx(math.log10(32))  # type: ignore[arg-type]
    ones = 2 * math.log1p(4 * 0.5) + 3 * math.log1p(4 * 1.0)
    twos = 0.5 * math.log1p(4 * 2.0) + 1.0 * math.log1p(4 * 3.0)
    assert SCORES["logsynflow"](Line(), images, TASK) == pytest.approx(ones + twos)  # type: ignore[arg-type]


def test_snip_and_grad_norm_by_finite_differences() -> None:
    """Every weight of every layer by itself, many at a time; batch norm by the batch's statistics, as in training."""
    net, images = network().double(), batch()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None

    def losses(name: str, weights: Tensor) -> Tensor:
        def loss(weight: Tensor) -> Tensor:
            return TASK.loss(functional_call(net, {f"{name}.weight": weight}, images.images.double()), images.targets)

        with torch.no_grad():
            return vmap(loss, chunk_size=100)(weights)

    saliency, norms = 0.0, 0.0
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            steps = 1e-6 * torch.eye(weight.numel(), dtype=weight.dtype).view(-1, *weight.shape)
            slopes = (losses(name, weight + steps) - losses(name, weight - steps)) / 2e-6
            saliency += float((slopes * weight.flatten()).abs().sum())
            norms += float(np.linalg.norm(slopes.numpy()))
    images = Batch(images.images.double(), images.targets)
    assert SCORES["snip"](network().double(), images, TASK) == pytest.approx(saliency, rel=1e-4)
    assert SCORES["grad_norm"](network().double(), images, TASK) == pytest.approx(norms, rel=1e-4)


def test_zen_is_its_formula() -> None:
    """Weights of N(0, 1), the last cell's output and the batch norms' inputs by hooks, deviations by numpy."""
    torch.manual_seed(3)
    found = zen(network(), batch(), TASK)
    torch.manual_seed(3)
    net = network()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = torch.randn(module.weight.shape)
    rng = counted(0, "zen")
    image, noise = (torch.randn(6, 2, 8, 8, generator=rng) for _ in range(2))
    outputs: list[Tensor] = []
    divided: list[float] = []
    list(net.body.cells.values())[-1].register_forward_hook(lambda _, __, out: outputs.append(out.detach()))
    with torch.no_grad():
        hooks = [
            m.register_forward_hook(lambda m, x, _: divided.append(np.mean(x[0].numpy().var((0, 2, 3))) + m.eps))
            for m in net.modules()
            if isinstance(m, nn.BatchNorm2d)
        ]
        net(image)
        for hook in hooks:
            hook.remove()
        net(image + 0.01 * noise)
    moved = float((outputs[1] - outputs[0]).abs().mean())
    assert found == pytest.approx(math.log(moved) + sum(math.log(v) / 2 for v in divided), rel=1e-4)


def test_what_a_batch_norm_divides_by() -> None:
    norm, x = nn.BatchNorm2d(2), torch.randn(5, 2, 3, 3)
    with deviations(norm) as found:
        norm(x)
    by_hand = np.sqrt(np.mean([x[:, c].numpy().var() for c in range(2)]) + 1e-5)
    assert float(found[0]) == pytest.approx(by_hand, rel=1e-5)
    assert not norm._forward_pre_hooks


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", SCORES)
def test_every_score_of_every_space_is_a_number_and_belongs_to_seed_and_cell(name: str, space: str) -> None:
    settings = {"grid": {"layers": 2, "channels": 4}, "darts": {"channels": 4, "cells": 3}, "nb201": {"cells": 1}}
    small: dict[str, object] = {**settings.get("darts" if space in ("stages", "s1", "s2", "s3", "s4") else space, {})}
    problem = tiny_problem(space, **small)
    rng = torch.Generator().manual_seed(2)
    cell = next(cell for _ in range(99) if (cell := sample(problem.space, rng)).connected)
    before = torch.get_rng_state()
    value = ZeroCost(name, images=4).ready(problem, ())(cell)
    assert math.isfinite(value)
    assert ZeroCost(name, images=4).ready(problem, ())(cell) == value
    assert torch.equal(torch.get_rng_state(), before)
    if value > LOWEST:
        assert ZeroCost(name, images=4).ready(tiny_problem(space, seed=4, **small), ())(cell) != value


def test_the_mean_over_networks_and_what_is_no_number() -> None:
    problem = tiny_problem()
    one, two = (ZeroCost("snip", images=4, networks=n).ready(problem, ()) for n in (1, 2))
    second = 2 * two(GOOD) - one(GOOD)
    assert second > 0
    assert second != pytest.approx(one(GOOD))
    assert ZeroCost("naswot", images=4).ready(problem, ())(CELLS[0]) == LOWEST


@pytest.mark.parametrize("name", COUNTED)
def test_counted_scores_grow_with_convolutions(name: str) -> None:
    score = ZeroCost(name).ready(tiny_problem(), ())
    assert [score(cell) for cell in (CELLS[0], CELLS[2], GOOD)] == sorted(
        {score(c) for c in (CELLS[0], CELLS[2], GOOD)}
    )


@pytest.mark.parametrize("name", [*SCORES, *COUNTED])
def test_which_scores_see_the_images(name: str) -> None:
    """Other images of the same size change all but those that are said to see none."""
    problem = tiny_problem()
    other = replace(problem.data, train=problem.data.val)
    own, turned = (ZeroCost(name, 8).ready(replace(problem, data=data), ())(GOOD) for data in (problem.data, other))
    assert (own == turned) == (name in BLIND)


def test_a_search_finds_the_highest_score_of_what_it_asks() -> None:
    problem, evaluator = tiny_problem(), ZeroCost("logsynflow", images=4)
    found, _ = replace(random_search(27), evaluator=evaluator).run(problem)
    score = evaluator.ready(problem, ())
    assert found == max((cell for cell in CELLS if cell.connected), key=score)
    assert isinstance(EVALUATORS["zero_cost"], ZeroCost)


def test_bad_settings_are_a_sentence() -> None:
    with pytest.raises(UserError, match="did you mean 'naswot'"):
        ZeroCost("naswat")
    for settings in ({"images": 1}, {"networks": 0}):
        with pytest.raises(UserError, match="two images and one network"):
            ZeroCost(**settings)  # type: ignore[arg-type]


@pytest.mark.skipif("OCHE_DATA" not in os.environ, reason="OCHE_DATA does not name the folder of the table")
@pytest.mark.parametrize(("ours", "theirs"), [("synflow", "log10_synflow"), ("logsynflow", "logsynflow")])
def test_flows_rank_cells_as_the_published_table_does(ours: str, theirs: str) -> None:
    table, space = read(Path(os.environ["OCHE_DATA"])), NB201Space()
    images = Batch(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    published, found = [], []
    for index in np.random.default_rng(5).permutation(15625)[:25].tolist():
        net = space.network(table.genotype(index)).train()
        published.append(table.column(f"zerocost/cifar10/{theirs}")[index])
        found.append(SCORES[ours](net, images, TASK))
    assert spearmanr(published, found).statistic > 0.95


class Still(nn.Module):
    """Says the same of every image, without a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.says = nn.Parameter(torch.ones(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.says.expand(len(x), 3)


def test_networks_that_tell_nothing_have_the_lowest_scores() -> None:
    """No ReLU, no derivative in the images, no flow; a small flow has its logarithm all the same."""
    assert LOWEST == -1e300
    for name in ("naswot", "jacov"):
        assert SCORES[name](Still(), batch(), TASK) == -math.inf  # type: ignore[arg-type]
    images = Batch(torch.randn(3, 1, 2, 2), torch.zeros(3))
    for factor, expected in ((0.0, -math.inf), (0.01, math.log10(32 * 0.01**2))):
        line = Line()
        with torch.no_grad():
            for weight in (line.one.weight, line.two.weight):
                weight.mul_(factor)
        assert SCORES["synflow"](line, images, TASK) == pytest.approx(expected)  # type: ignore[arg-type]


def test_zen_by_hooks() -> None:
    """The last cell's output with and without a hundredth of the noise, and the roots that the batch norms divide by."""
    net, rng = network(), counted(0, "zen")
    score = zen(net, batch(), TASK)  # and leaves the weights that it drew
    image, noise = (torch.randn(batch().images.shape, generator=rng) for _ in range(2))
    *_, last = net.body.cells.values()
    seen: list[Tensor] = []
    roots: list[float] = []
    last.register_forward_hook(lambda _, __, out: seen.append(out))
    hooks = [
        m.register_forward_pre_hook(
            lambda m, inputs: roots.append(float((inputs[0].var((0, 2, 3), correction=0).mean() + m.eps).sqrt()))
        )
        for m in net.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        net(image)
        for hook in hooks:
            hook.remove()
        net(image + 0.01 * noise)
    expected = math.log(float((seen[1] - seen[0]).abs().mean())) + sum(map(math.log, roots))
    assert score == pytest.approx(expected, rel=1e-4)
    norm, x = nn.BatchNorm2d(2, eps=0.5), torch.randn(5, 2, 3, 3)
    with deviations(norm) as found:
        norm(x)
    assert float(found[0]) ** 2 == pytest.approx(float(x.var((0, 2, 3), correction=0).mean()) + 0.5)


def test_the_defaults_and_the_least_that_is_enough() -> None:
    assert ZeroCost("snip") == ZeroCost("snip", images=64, networks=1)
    assert ZeroCost("snip", images=2, networks=1).images == 2
