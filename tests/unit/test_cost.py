"""Parameters and multiply-adds against formulas worked out by hand, and published numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contracts.registry import SMALL
from oche.base import counted
from oche.genotype import Choice, Genotype
from oche.spaces import SPACES
from oche.spaces.cost import Cost, candidates, cost, cost_of, multiply_adds, parameters
from oche.spaces.sampling import sample
from oche.spaces.traced import traced
from reference.costs import hooked_multiply_adds, literal_peak
from reference.tiny import tiny_data, tiny_space


@pytest.mark.parametrize("bias", [True, False])
def test_layers_by_hand(bias: bool) -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 5 x 7 outputs of 9 x 13
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10, bias=bias),
    )
    wanted = 5 * 7 * 8 * 3 * 9 + 5 * 7 * 8 * 25 + 8 * 10 + 10 * bias
    assert multiply_adds(layers.eval(), torch.zeros(1, 3, 9, 13)) == wanted
    assert parameters(layers) == 8 * 3 * 9 + 16 + 8 * 25 + 80 + 10 * bias


def test_counting_leaves_no_hooks() -> None:
    layer = nn.Linear(2, 2)
    multiply_adds(layer, torch.zeros(1, 2))
    assert not layer._forward_hooks


def test_a_toy_network_by_hand() -> None:
    """Stem 2 -> 4, a cell at 8x8, a residual reduction to 8 channels at 4x4, a cell, the classifier."""
    cell = (Choice(0, 1, "nor_conv_3x3"), Choice(0, 2, "none"), Choice(1, 2, "skip_connect"))
    got = cost(tiny_space("toy", tiny_data()), Genotype("toy", {"cell": cell}))
    stem, first, second = 64 * 4 * 2 * 9, 64 * 4 * 4 * 9, 16 * 8 * 8 * 9
    reduction = 16 * 8 * 4 * 9 + 16 * 8 * 8 * 9 + 16 * 8 * 4
    assert got.multiply_adds == stem + first + reduction + second + 8 * 3 + 3
    norms = 2 * (4 + 4 + 8 + 8 + 8 + 8)  # stem, cell, two in the reduction, cell, last
    weights = 4 * 2 * 9 + 4 * 4 * 9 + 8 * 4 * 9 + 8 * 8 * 9 + 8 * 4 + 8 * 8 * 9 + 8 * 3 + 3
    assert got.parameters == weights + norms


def test_candidates_by_hand() -> None:
    found = candidates(tiny_space("toy", tiny_data()))["cell"]
    expected = {4: (4 * 4 * 9, 64 * 4 * 4 * 9), 8: (8 * 8 * 9, 16 * 8 * 8 * 9)}  # channels: at 8x8, at 4x4
    for costs, channels in zip(found, (4, 8), strict=True):
        assert costs.tolist() == 3 * [[[0, 0], [0, 0], list(expected[channels])]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nb201", {"channels": 4, "cells": 1}),
        pytest.param("darts", {"channels": 4, "cells": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_network_costs_its_candidates_more_than_another(name: str, settings: dict[str, int]) -> None:
    """Whatever lies between two networks' costs is in their cells' edges."""
    space = tiny_space(name, tiny_data(), **settings)
    found, totals = candidates(space), []
    for seed in range(4):
        genotype = sample(space, counted(seed, "cost"))
        own = sum(
            found[group.name][:, *group.entry(c.source, c.target, c.op), 1].sum().item()
            for group in space.groups
            for c in genotype.groups[group.name]
        )
        totals.append(cost(space, genotype).multiply_adds - own)
    assert len(set(totals)) == 1


def test_published_numbers() -> None:
    """The empty NAS-Bench-201 network, as its table counts it, and DARTS_V2 on CIFAR-10."""
    space = SPACES["nb201"](inputs=3, outputs=10, size=(32, 32), channels=16, cells=5)
    empty = Genotype.parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    assert cost(space, empty).multiply_adds == 7_783_050
    darts = Genotype.parse("DARTS_V2")
    assert cost(SPACES["darts"](channels=36, cells=20), darts).parameters == 3_349_342


@pytest.mark.parametrize(
    ("name", "millions", "adds", "within"),
    [
        ("RLNAS_CIFAR", 5.7, 629, 0.002),  # its authors' own table at 48 channels
        ("PCDARTS_IMAGENET", 5.3, 597, 0.03),  # that code's counter adds about 2.6 % for batch norm and pools
        ("PCDARTS_CIFAR", 5.3, 586, 0.03),
    ],
)
def test_published_networks_on_imagenet(name: str, millions: float, adds: float, within: float) -> None:
    space = SPACES["darts"](inputs=3, outputs=1000, size=(224, 224), channels=48, cells=14, stem_multiplier=1)
    got = cost(space, Genotype.parse(name))
    assert got.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert got.multiply_adds / 1e6 == pytest.approx(adds, rel=within)


@pytest.mark.parametrize("name", ["toy", "nb201", "s1", "s4"])
def test_nothing_is_computed_and_the_result_is_that_of_the_real_network(name: str) -> None:
    data = tiny_data(12, (9, 13), 1)
    space = tiny_space(name, data, **({} if name in ("toy", "nb201") else {"cells": 3, "channels": 4}))
    genotype = sample(space, counted(4))
    network = space.network(genotype).eval()
    got = cost(space, genotype)
    assert (got.parameters, got.multiply_adds) == (
        parameters(network),
        multiply_adds(network, torch.zeros(1, 1, 9, 13)),
    )
    auxiliary = space.network(genotype, auxiliary=True)
    assert parameters(auxiliary) >= parameters(network)


def test_the_sentence() -> None:
    said = "1.235 M parameters, 89.01 M multiply-adds, 65.5 KB of activations"
    assert str(Cost(1_234_567, 89_012_345, 65_536, 5_000_000, 1_300_000)) == said


def test_memory_by_hand() -> None:
    """Two branches of one image: while the second runs, the first's output waits."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one = self.one(x).relu()  # 64 + 256 floats; the ReLU overwrites its input
            two = self.norm(self.two(x))  # 64 + 256 + 512: the image is read for the last time
            return torch.cat([one, two.relu()], dim=1)  # 256 + 512 + 768

    with torch.device("meta"):
        found = traced(Branches().eval(), torch.zeros(1, 1, 8, 8))
    assert found.peak() == 4 * (256 + 512 + 768)
    assert found.multiply_adds == 64 * 4 + 64 * 8


def test_an_input_that_is_still_read_is_not_overwritten() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu() + x

    assert traced(Twice(), torch.zeros(1, 1, 4, 4, device="meta")).peak() == 3 * 4 * 16
    assert traced(nn.ReLU(), torch.zeros(1, 1, 4, 4, device="meta")).peak() == 4 * 16


def test_the_size_of_an_int8_file_by_hand() -> None:
    """A byte for each weight of a kernel, 17 for each of its outputs, four for all else; a stand-in for what files have beside."""
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 36, 3))
        found = cost_of(network.eval(), 2, (8, 8))
        calls = traced(network, torch.zeros(1, 2, 8, 8)).calls
    kernels, outputs, others = 2 * 5 * 9 + 180 * 3, 5 + 3, 5 + 4 * 5 + 3
    assert found.int8_size == kernels + 17 * outputs + 4 * others + 96 * calls + 4096
    assert found.size == 4 * (kernels + others) + 256 * calls + 4096


def check_costs(name: str, seed: int) -> None:
    """The counted costs of a random network are those of hooks on its layers and of a run on real values."""
    space = SPACES[name](inputs=1 + seed % 3, outputs=3, size=(9 + seed % 8, 16), **SMALL[name])
    genotype = sample(space, counted(seed, "random networks"))
    network = space.network(genotype).eval()
    image = torch.rand(1, space.inputs, *space.size, generator=counted(seed))
    got = cost(space, genotype)
    assert got.parameters == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert got.multiply_adds == hooked_multiply_adds(network, image)
    assert got.memory == literal_peak(network, image)
    assert got.size > 4 * got.parameters


@pytest.mark.parametrize(("name", "seed"), [("toy", 0), ("nb201", 0), ("nb201", 1), ("s1", 0), ("darts", 1)])
def test_random_networks(name: str, seed: int) -> None:
    check_costs(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 200, 20))
@pytest.mark.parametrize("name", SMALL)
def test_two_hundred_random_networks(name: str, start: int) -> None:
    for seed in range(start, start + 20):
        check_costs(name, seed)
