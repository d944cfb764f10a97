"""The spaces: sizes as published, any image, networks that compute what the supernet computed."""

from __future__ import annotations

import csv
import gzip
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oche.base import Batch, Draw, Group, counted
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.search.trainable import AllWeights, BatchNormOnly
from oche.spaces import SPACES, Space, estimate_statistics
from oche.spaces.blocks import SIGNAL_BLOCKS
from oche.spaces.cost import cost, multiply_adds, parameters
from oche.spaces.darts import DARTS_OPS, DartsSpace
from oche.spaces.edges import PartialChannels, WeightedSum
from oche.spaces.nb201 import NB201_OPS, NB201Space
from oche.spaces.ops import OPS, FactorizedReduce, Noise, PoolBN
from oche.spaces.robust import S1, S4
from oche.spaces.sampling import sample
from oche.spaces.toy import ToySpace

DRAW = Draw(seed=5)


def op_weights(space: Space, rng: torch.Generator) -> dict[str, Tensor]:
    """{group: (E, O)} of random weights, zero where there is no candidate."""
    return {
        group.name: torch.rand(len(group.edges), group.width, generator=rng).double() * group.valid()
        for group in space.groups
    }


# ---------------------------------------------------------------------- rf-darts.md 1.4, row by row

PUBLISHED_SIZE = {"channels": 16, "cells": 8}
IMAGENET = {"outputs": 1000, "size": (224, 224), "stem": "imagenet"}
ROWS: dict[str, tuple[Space, WeightedSum | PartialChannels, int, int, int, int, int]] = {
    # frozen convolutions, batch norm affine, the same without pools', classifier, base method's total
    "DARTS": (DartsSpace(**PUBLISHED_SIZE), WeightedSum(), 1_927_952, 74_592, 56_672, 2_570, 1_930_618),
    "PC-DARTS K=4": (DartsSpace(**PUBLISHED_SIZE), PartialChannels(4), 296_912, 19_680, 15_200, 2_570, 299_578),
    "PC-DARTS K=2, ImageNet": (
        DartsSpace(**PUBLISHED_SIZE, **IMAGENET),
        PartialChannels(2),
        699_272,
        38_128,
        29_168,
        257_000,
        956_512,
    ),
    "S1": (S1(**PUBLISHED_SIZE), WeightedSum(), 402_480, 14_752, 11_168, 2_570, 405_146),
    "S2": (SPACES["s2"](**PUBLISHED_SIZE), WeightedSum(), 662_800, 20_832, 20_832, 2_570, 665_466),
    "S3": (SPACES["s3"](**PUBLISHED_SIZE), WeightedSum(), 662_800, 20_832, 20_832, 2_570, 665_466),
    "S4": (S4(**PUBLISHED_SIZE), WeightedSum(), 621_840, 19_296, 19_296, 2_570, 624_506),
    "NAS-Bench-201": (NB201Space(channels=16, cells=5), WeightedSum(), 1_684_912, 13_984, 13_984, 650, 1_686_106),
}


@pytest.mark.parametrize("row", ROWS)
def test_trainable_parameters_equal_the_table(row: str) -> None:
    space, edge, convolutions, norms, without_pools, classifier, total = ROWS[row]

    with torch.device("meta"):
        supernets = {affine: space.supernet(edge, affine=affine) for affine in (False, True)}

    def learning(trainable: AllWeights | BatchNormOnly) -> tuple[int, int]:
        """(weights that learn, weights that do not)."""
        supernet = supernets[trainable.affine]
        names = trainable(supernet)
        counts = [0, 0]
        for name, p in supernet.named_parameters():
            counts[name not in names] += p.numel()
        return counts[0], counts[1]

    assert learning(BatchNormOnly()) == (norms, convolutions + classifier)
    assert learning(BatchNormOnly(pool_bn=False)) == (without_pools, convolutions + classifier + norms - without_pools)
    assert learning(BatchNormOnly(classifier=True)) == (norms + classifier, convolutions)
    assert learning(AllWeights()) == (total, 0)
    assert learning(AllWeights(affine=True)) == (convolutions + norms + classifier, 0)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("darts", [(14, 8)] * 2),
        ("nb201", [(6, 5)]),
        ("s1", [(14, 2)] * 2),
        ("s2", [(14, 2)] * 2),
        ("s3", [(14, 3)] * 2),
        ("s4", [(14, 2)] * 2),
        ("toy", [(3, 3)]),
    ],
)
def test_alpha_sizes(name: str, shapes: list[tuple[int, int]]) -> None:
    assert [(len(group.edges), group.width) for group in SPACES[name]().groups] == shapes


def test_stem_switch_adds_the_stem_s_convolutions_only() -> None:
    space = DartsSpace(channels=4, cells=2, stem="imagenet", size=(32, 32))
    with torch.device("meta"):
        supernet = space.supernet(WeightedSum(), affine=True)
    added = BatchNormOnly(stem=True)(supernet) - BatchNormOnly()(supernet)
    assert added == {"body.stem.0.weight", "body.stem.3.weight", "body.stem1.1.weight"}


def test_darts_v2_has_the_published_size() -> None:
    space = DartsSpace(channels=36, cells=20)
    with torch.device("meta"):
        network = space.network(Genotype.parse("DARTS_V2"), auxiliary=True)
    head = network.auxiliary
    assert head is not None
    assert parameters(network.body) == parameters(network) - parameters(head) == 3_349_342
    # 1x1 from 4 * 144 channels to 128, 2x2 to 768, their norms, linear
    assert parameters(head) == 576 * 128 + 256 + 128 * 768 * 4 + 1536 + 768 * 10 + 10


# ---------------------------------------------------------------------- S1 as the notes print it

S1_TABLE = """
0 0->2 skip,dil3 max,avg | 1 1->2 skip,dil5 max,dil3 | 2 0->3 skip,dil5 max,avg | 3 1->3 skip,sep3 max,avg | 4 2->3 skip,dil3 skip,dil5
| 5 0->4 max,skip max,avg | 6 1->4 skip,sep3 max,sep3 | 7 2->4 skip,sep3 skip,dil3 | 8 3->4 skip,dil3 skip,dil5 | 9 0->5 skip,sep3 max,avg
| 10 1->5 max,skip max,avg | 11 2->5 skip,dil3 skip,dil5 | 12 3->5 dil3,dil5 skip,dil5 | 13 4->5 dil3,dil5 skip,dil5
"""
SHORT = {
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "sep3": "sep_conv_3x3",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}


def test_s1_lists_equal_the_published_table() -> None:
    normal, reduction = S1().groups
    rows = [row.split() for row in S1_TABLE.split("|")]
    assert len(rows) == 14
    for number, edge, in_normal, in_reduction in rows:
        e = int(number)
        for group, ops in ((normal, in_normal), (reduction, in_reduction)):
            assert "->".join(map(str, group.edges[e])) == edge
            assert group.ops[e] == tuple(SHORT[op] for op in ops.split(","))


def test_lists_of_the_other_spaces() -> None:
    lists = {
        name: {ops for group in SPACES[name]().groups for ops in group.ops} for name in ("s2", "s3", "s4", "darts")
    }
    assert lists == {
        "s2": {("skip_connect", "sep_conv_3x3")},
        "s3": {("none", "skip_connect", "sep_conv_3x3")},
        "s4": {("noise", "sep_conv_3x3")},
        "darts": {DARTS_OPS},
    }
    assert set(SPACES["nb201"]().groups[0].ops) == {NB201_OPS}


@pytest.mark.parametrize("cells", range(1, 21))
def test_reduction_cells_lie_at_a_third_and_two_thirds(cells: int) -> None:
    _, reduction = DartsSpace(cells=cells).groups
    assert set(reduction.cells) == {f"cell_{cells // 3}", f"cell_{2 * cells // 3}"}


# ---------------------------------------------------------------------- any image


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 7])
def test_crossed_convolutions_are_one_of_rank_one(kernel: int, stride: int) -> None:
    """For one channel: 1xk then kx1 is the kxk convolution by their outer product."""
    op = OPS[f"conv_{kernel}x1_1x{kernel}"](1, stride, False)
    _, across, down, _ = op.children()
    x = torch.randn(2, 1, 9, 8)
    whole = down.weight.view(-1, 1) * across.weight.view(1, -1)  # type: ignore[operator,union-attr]
    expected = F.conv2d(x.relu(), whole[None, None], stride=stride, padding=kernel // 2)
    torch.testing.assert_close(op(x), F.batch_norm(expected, None, None, training=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_bottleneck_narrows_nothing_and_widens_fourfold(stride: int) -> None:
    """Its convolutions in a row, each normalised, a ReLU before the first and before the last."""
    op = OPS["bottleneck_1x3x1"](3, stride, False)
    kernels = [p for p in op.parameters() if p.ndim == 4]
    assert [tuple(p.shape) for p in kernels] == [(3, 3, 1, 1), (3, 3, 3, 3), (12, 3, 1, 1), (3, 12, 1, 1)]
    x = h = torch.randn(4, 3, 6, 5)
    for n, kernel in enumerate(kernels):
        h = F.conv2d(h.relu() if n in (0, 3) else h, kernel, stride=stride if n == 1 else 1, padding=int(n == 1))
        h = F.batch_norm(h, None, None, training=True)
    torch.testing.assert_close(op(x), h, rtol=1e-4, atol=1e-5)


def assert_half_rounded_up(op: str, height: int, width: int, channels: int) -> None:
    x = torch.randn(2, channels, height, width)
    for affine in (False, True):
        module = OPS[op](channels, 2, affine)
        out = module(x)
        tall = height if op in SIGNAL_BLOCKS else -(-height // 2)
        assert out.shape == (2, channels, tall, -(-width // 2))
        assert torch.isfinite(out).all()
        assert OPS[op](channels, 1, affine)(x).shape == x.shape


@pytest.mark.parametrize("op", OPS)
def test_stride_two_gives_half_rounded_up(op: str) -> None:
    for height, width, channels in ((7, 8, 2), (20, 13, 4), (8, 7, 3)):
        assert_half_rounded_up(op, height, width, channels)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
@settings(max_examples=15)
@given(height=st.integers(7, 20), width=st.integers(7, 20), channels=st.sampled_from([2, 3, 4]))
def test_stride_two_gives_half_rounded_up_at_any_size(op: str, height: int, width: int, channels: int) -> None:
    assert_half_rounded_up(op, height, width, channels)


@given(height=st.integers(7, 20), width=st.integers(7, 20), k=st.sampled_from([1, 2, 4]))
def test_edges_at_stride_two_give_half_rounded_up(height: int, width: int, k: int) -> None:
    def build(op: str, channels: int) -> nn.Module:
        return OPS[op](channels, 2, True)

    x, ops = torch.randn(2, 8, height, width), ("max_pool_3x3", "skip_connect", "sep_conv_3x3")
    out = PartialChannels(k)(ops, 8, 2, build)(x, torch.ones(3), DRAW)
    assert out.shape == (2, 8, -(-height // 2), -(-width // 2))


@given(height=st.integers(2, 9), width=st.integers(2, 9))
def test_factorized_reduce_sees_even_and_odd_pixels(height: int, width: int) -> None:
    """The two halves of its channels are 1x1 convolutions of max(x, 0) at (2i, 2j) and (2i + 1, 2j + 1), zero beyond the border."""
    module = FactorizedReduce(1, 2, affine=False)
    module.norm = nn.Identity()  # type: ignore[assignment]
    nn.init.ones_(module.even.weight)
    nn.init.ones_(module.odd.weight)
    x = torch.randn(1, 1, height, width)
    with torch.no_grad():
        out = module(x)
    x = x.clamp_min(0)
    for i, j in itertools.product(range(-(-height // 2)), range(-(-width // 2))):
        assert out[0, 0, i, j] == x[0, 0, 2 * i, 2 * j]
        inside = 2 * i + 1 < height and 2 * j + 1 < width
        assert out[0, 1, i, j] == (x[0, 0, 2 * i + 1, 2 * j + 1] if inside else 0.0)


SMALL: dict[str, dict[str, int]] = {
    "toy": {},
    "nb201": {"channels": 4, "cells": 1},
    "darts": {"channels": 4, "cells": 3, "nodes": 2},
    **{name: {"channels": 4, "cells": 3, "nodes": 1} for name in ("s2", "s3", "s4")},
    "s1": {"channels": 4, "cells": 2},
}  # the grid has its own file


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=4, phases=(Phase.explicit, Phase.generate))  # shrinking would take a minute
@given(
    inputs=st.integers(1, 5),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    outputs=st.integers(2, 7),
    seed=st.integers(0, 999),
)
@example(inputs=1, height=8, width=8, outputs=2, seed=0)
@example(inputs=4, height=9, width=40, outputs=2, seed=1)
@example(inputs=3, height=16, width=32, outputs=2, seed=2)
@example(
    inputs=3, height=64, width=32, outputs=2, seed=3
)  # 16x8 at the auxiliary head, whose published pool is for 8x8
def test_any_channels_and_size(name: str, inputs: int, height: int, width: int, outputs: int, seed: int) -> None:
    space = SPACES[name](inputs=inputs, outputs=outputs, size=(height, width), **SMALL[name])  # type: ignore[arg-type]
    x = torch.randn(2, inputs, height, width)
    weights = space.spread({n: w.float() for n, w in op_weights(space, counted(seed)).items()})
    with torch.no_grad():
        outputs_, observed = space.supernet(WeightedSum(), affine=False)(x, weights, DRAW)
        assert outputs_.shape == (2, outputs)
        assert set(observed) == set(space.cell_groups())
        assert torch.isfinite(outputs_).all()
        network = space.network(sample(space, counted(seed)), auxiliary=True)
        main, auxiliary = network.heads(x)
        assert main.shape == (2, outputs)
        assert (auxiliary is None) == (space.auxiliary() is None)
        assert auxiliary is None or auxiliary.shape == (2, outputs)
        assert network.eval().heads(x)[1] is None


@pytest.mark.parametrize("size", [(128, 128), (129, 150)])
def test_the_imagenet_stem_reduces_to_an_eighth(size: tuple[int, int]) -> None:
    space = DartsSpace(channels=2, cells=4, nodes=1, size=size)
    assert space.imagenet_stem
    assert any("1/8" in note for note in space.notes())
    with torch.no_grad():
        _, observed = space.network(sample(space, counted(0))).body(
            torch.randn(2, 3, *size), lambda name, cell, x: cell(x, lambda e, edge, h: edge(h, None))
        )
    assert observed["cell_0"].shape[2:] == (-(-size[0] // 8), -(-size[1] // 8))
    assert observed["cell_3"].shape[2:] == (-(-size[0] // 32), -(-size[1] // 32))


def test_images_below_eight_pixels_are_refused() -> None:
    for cls in SPACES.values():
        with pytest.raises(UserError, match="7 values; a search" if cls.flat else "20x7; a search needs at least 8x8"):
            cls(size=(20, 7))


def test_the_auxiliary_head_is_off_on_small_images_and_says_so() -> None:
    assert DartsSpace(size=(12, 12)).auxiliary() is None
    assert "the auxiliary head is off: images of 12x12 are too small for it" in DartsSpace(size=(12, 12)).notes()
    assert DartsSpace(size=(13, 16)).auxiliary() is not None
    assert DartsSpace(size=(13, 16)).notes() == ()


@pytest.mark.parametrize("wrong", [{"cells": 0}, {"channels": 0}])
@pytest.mark.parametrize("name", ["nb201", "darts", "toy"])
def test_impossible_sizes_are_refused(name: str, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least one"):
        SPACES[name](**wrong)  # type: ignore[arg-type]


def test_channels_must_be_divisible_by_k() -> None:
    with pytest.raises(ValueError, match="channels=6 is not divisible by K=4"):
        DartsSpace(channels=6, cells=4).supernet(PartialChannels(4), affine=False)


# ---------------------------------------------------------------------- NAS-Bench-201's table

SIZES = {"c10": (10, (32, 32)), "c100": (100, (32, 32)), "in16": (120, (16, 16))}


@cache
def table(folder: Path) -> list[dict[str, str]]:
    with gzip.open(folder / "nasbench201" / "nb201.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def assert_costs_equal_the_table(rows: list[dict[str, str]], columns: tuple[str, ...]) -> None:
    for row in rows:
        for column in columns:
            outputs, size = SIZES[column]
            found = cost(NB201Space(outputs=outputs, size=size), Genotype.parse(row["arch_str"]))
            assert found.parameters == round(float(row[f"{column}_params_m"]) * 1e6), row["arch_str"]
            assert found.multiply_adds == round(float(row[f"{column}_flops_m"]) * 1e6), row["arch_str"]


def extremes(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """All-none, the largest, and every cell of one operation alone."""
    largest = max(rows, key=lambda row: float(row["c10_params_m"]))
    uniform = [
        row for row in rows if len({part.split("~")[0] for part in row["arch_str"].split("|") if "~" in part}) == 1
    ]
    assert len(uniform) == 5
    return [largest, *uniform]


@pytest.mark.parametrize("part", range(10))
def test_costs_of_some_nb201_cells_equal_the_table(data_folder: Path, part: int) -> None:
    """Twenty cells, the largest among them, two a test so that none is slow."""
    rows = table(data_folder)
    chosen = [
        extremes(rows)[0] if part == 0 else random.Random(part).choice(rows),
        random.Random(100 + part).choice(rows),
    ]
    assert_costs_equal_the_table(chosen, ({8: "c100", 9: "in16"}.get(part, "c10"),))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_costs_of_300_nb201_cells_equal_the_table(data_folder: Path) -> None:
    rows = table(data_folder)
    assert_costs_equal_the_table(extremes(rows) + random.Random(2).sample(rows, 300), ("c10",))
    assert_costs_equal_the_table(extremes(rows) + random.Random(3).sample(rows, 50), ("c100", "in16"))


def test_nb201_base_cost() -> None:
    """All-none: 7.78305 M multiply-adds, ten of them the classifier's biases."""
    nothing = Genotype.parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    assert cost(NB201Space(), nothing).multiply_adds == 7_783_050


def test_multiply_adds_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, 1, groups=2, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5)
    )
    assert multiply_adds(network.eval(), torch.zeros(1, 2, 8, 8)) == 4 * 4 * 6 * 1 * 9 + 96 * 5 + 5
    assert not any(module._forward_hooks for module in network.modules())


# ---------------------------------------------------------------------- how many there are


def enumerate_group(group: Group) -> set[tuple[tuple[int, int, str], ...]]:
    """All that can be derived, by listing every set of choices and throwing out what breaks the rule."""
    every = [(s, t, op) for (s, t), ops in zip(group.edges, group.ops, strict=True) for op in ops]
    found = set()
    nodes: dict[int, list[tuple[tuple[int, int, str], ...]]] = {}
    for target in {t for _, t in group.edges}:
        into = [c for c in every if c[1] == target]
        edges = {c[:2] for c in into}
        size = len(edges) if group.keep is None else min(group.keep, len(edges))
        nodes[target] = [
            choices
            for choices in itertools.combinations(into, size)
            if len({c[:2] for c in choices}) == size and (group.keep is None or all(c[2] != "none" for c in choices))
        ]
    for parts in itertools.product(*(nodes[target] for target in sorted(nodes))):
        found.add(tuple(itertools.chain(*parts)))
    return found


UNEVEN = (
    ("none", "skip_connect"),
    ("skip_connect", "sep_conv_3x3", "max_pool_3x3"),
    ("none", "noise"),
    ("sep_conv_3x3",),
    DARTS_OPS[:4],
)


@pytest.mark.parametrize(
    "space",
    [
        ToySpace(),
        NB201Space(nodes=3),
        DartsSpace(nodes=1),
        DartsSpace(nodes=2, normal=(DARTS_OPS[:3],)),
        DartsSpace(nodes=2, normal=UNEVEN, reduce=(DARTS_OPS[3:6],)),
        DartsSpace(nodes=3, normal=(("skip_connect", "none"),), reduce=(DARTS_OPS[3:5],)),
        S1(),
    ],
    ids=lambda space: f"{space.name}-{space.nodes}",
)
def test_cardinality_by_enumeration(space: Space) -> None:
    if space.name == "s1":  # too many together: group by group
        assert space.cardinality() == (2**8 * 1 * 3 * 6 * 10) ** 2
        return
    expected = 1
    for group in space.groups:
        expected *= len(enumerate_group(group))
    assert space.cardinality() == expected


def test_known_cardinalities() -> None:
    assert NB201Space().cardinality() == 15_625
    assert ToySpace().cardinality() == 27
    # the DARTS paper: (prod_k (k+1) k / 2 x 7^2)^2 over nodes k = 1..4, about 10^18
    per_cell = 1
    for k in range(1, 5):
        per_cell *= (k + 1) * k // 2 * 7**2
    assert DartsSpace().cardinality() == per_cell**2
    assert 1e18 < DartsSpace().cardinality() < 1.1e18


def test_cardinality_of_cells_of_their_own() -> None:
    assert ToySpace(sharing="cell").cardinality() == 27**2


# ---------------------------------------------------------------------- the network computes what the supernet did


def images(space: Space, count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, space.inputs, *space.size, generator=counted(seed))


def theta_of(supernet: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in supernet.named_parameters()}


def shaken(module: nn.Module) -> None:
    """Batch norms get weights other than 1 and 0, so that copying them matters."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d) and m.affine:
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)


def batches(space: Space, count: int = 3) -> list[Batch]:
    return [Batch(images(space, 6, seed=i), torch.zeros(6).long()) for i in range(count)]


def soft(space: Space, weights: dict[str, Tensor], edge: str, **args: int) -> Genotype:
    groups = {
        group.name: tuple(
            Choice(s, t, op, float(weights[group.name][e, o]))
            for e, (s, t) in enumerate(group.edges)
            for o, op in enumerate(group.ops[e])
        )
        for group in space.groups
    }
    return Genotype(space.name, groups, space.sharing, edge, args)


SOFT_SPACES: dict[str, Space] = {
    "toy": ToySpace(size=(9, 8)),
    "toy, a cell's own": ToySpace(size=(8, 8), sharing="cell"),
    "nb201": NB201Space(channels=4, cells=1, size=(8, 10)),
    "darts": DartsSpace(channels=4, cells=3, nodes=2, size=(10, 9)),
    "s1": S1(channels=4, cells=2, size=(8, 8)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", SOFT_SPACES)
def test_a_soft_network_equals_the_supernet(name: str, k: int, affine: bool) -> None:
    """The same weights, the same batch, batch statistics: a soft genotype keeps every coefficient."""
    space = SOFT_SPACES[name]
    supernet = space.supernet(PartialChannels(k) if k > 1 else WeightedSum(), affine=affine)
    shaken(supernet)
    weights = op_weights(space, counted(1))
    genotype = soft(space, weights, "partial_channels", K=k) if k > 1 else soft(space, weights, "weighted_sum")
    assert not genotype.discrete
    network = space.network(Genotype.from_json(genotype.to_json()))
    space.inherit(network, theta_of(supernet), batches(space))
    x = images(space)
    with torch.no_grad():
        expected, _ = supernet(x, space.spread(weights), DRAW)
        torch.testing.assert_close(network.train()(x), expected, rtol=0, atol=1e-6)
    if k == 1:
        discrete = space.network(sample(space, counted(0)))
        assert parameters(discrete) < parameters(network)


def one_hot(space: Space, genotype: Genotype) -> dict[str, Tensor]:
    """{group: (E, O)} with 1 at the chosen operations and 0 elsewhere."""
    weights = {}
    for group in space.groups:
        w = torch.zeros(len(group.edges), group.width)
        for choice in genotype.groups[group.name]:
            e = group.edges.index((choice.source, choice.target))
            w[e, group.ops[e].index(choice.op)] = 1.0
        weights[group.name] = w
    return weights


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", ["toy", "nb201", "darts", "s2"])
@pytest.mark.parametrize("seed", range(3))
def test_an_inherited_network_equals_the_supernet_at_its_corner(name: str, seed: int, affine: bool) -> None:
    """One-hot op weights; in a DARTS space without pools, whose batch norm a discrete network has not (see the next test)."""
    settings_: dict[str, dict[str, object]] = {
        "toy": {},
        "nb201": {"channels": 4, "cells": 2},
        "darts": {"channels": 4, "cells": 3, "normal": (DARTS_OPS[3:],), "reduce": (DARTS_OPS[3:],)},
        "s2": {"channels": 4, "cells": 3},
    }
    space = SPACES[name](size=(8, 8), **settings_[name])  # type: ignore[arg-type]
    supernet = space.supernet(WeightedSum(), affine=affine)
    shaken(supernet)
    genotype = sample(space, counted(seed))
    network = space.network(genotype)
    space.inherit(network, theta_of(supernet), batches(space))
    x = images(space)
    with torch.no_grad():
        expected, observed = supernet(x, space.spread(one_hot(space, genotype)), DRAW)
        torch.testing.assert_close(network.train()(x), expected, rtol=0, atol=1e-10)
    assert observed


@pytest.mark.usefixtures("float64")
def test_a_pool_s_batch_norm_is_what_a_discrete_darts_network_lacks() -> None:
    """With pools the two differ, and by nothing else: a supernet whose pools lose their batch norms agrees again."""
    space = DartsSpace(channels=4, cells=2, size=(8, 8))
    supernet = space.supernet(WeightedSum(), affine=False)
    genotype = Genotype.parse("DARTS_V2")
    network = space.network(genotype)
    space.inherit(network, theta_of(supernet), batches(space))
    assert genotype.count("max_pool_3x3") > 0
    assert not any(isinstance(m, PoolBN) for m in network.modules())
    x, weights = images(space), space.spread(one_hot(space, genotype))
    with torch.no_grad():
        got = network.train()(x)
        assert (got - supernet(x, weights, DRAW)[0]).abs().max() > 1e-3
        for module in supernet.modules():
            if isinstance(module, PoolBN):
                module.norm = nn.Identity()  # type: ignore[assignment]
        torch.testing.assert_close(got, supernet(x, weights, DRAW)[0], rtol=0, atol=1e-10)


def test_a_discrete_network_of_a_partial_supernet_cannot_inherit() -> None:
    space = ToySpace(size=(8, 8))
    supernet = space.supernet(PartialChannels(2), affine=True)
    network = space.network(
        Genotype("toy", {"cell": tuple(Choice(s, t, "nor_conv_3x3") for s, t in ((0, 1), (0, 2), (1, 2)))})
    )
    with pytest.raises(UserError, match="train from scratch"):
        space.inherit(network, theta_of(supernet), [])


def test_a_forward_of_the_supernet_leaves_no_trace() -> None:
    space = DartsSpace(channels=4, cells=2, nodes=1, size=(8, 8))
    supernet = space.supernet(WeightedSum(), affine=True)
    assert not list(supernet.buffers())
    before = {name: t.clone() for name, t in supernet.state_dict().items()}
    weights = space.spread({n: w.float() for n, w in op_weights(space, counted(0)).items()})
    x = images(space)
    first, _ = supernet(x, weights, DRAW)
    supernet(torch.randn_like(x), weights, DRAW)
    supernet.eval()  # batch statistics in either mode
    assert torch.equal(supernet(x, weights, DRAW)[0], first)
    assert all(torch.equal(t, before[name]) for name, t in supernet.state_dict().items())


# ---------------------------------------------------------------------- running statistics


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("training", [True, False])
def test_estimated_statistics_are_plain_averages(training: bool) -> None:
    """The averages of every batch norm's batch means and unbiased variances, by numpy; mode and momentum are as before."""
    space = ToySpace(size=(8, 8))
    network = space.network(
        Genotype("toy", {"cell": tuple(Choice(s, t, "nor_conv_3x3") for s, t in ((0, 1), (0, 2), (1, 2)))})
    )
    network.train(training)
    given_ = batches(space, 4)
    seen: dict[str, list[np.ndarray]] = {}
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [
        m.register_forward_pre_hook(
            lambda module, args, name=name: seen.setdefault(name, []).append(args[0].detach().numpy())
        )
        for name, m in norms.items()
    ]
    estimate_statistics(network, given_)
    for hook in hooks:
        hook.remove()
    assert len(norms) == 10
    for name, norm in norms.items():
        assert len(seen[name]) == 4
        mean = np.mean([x.mean((0, 2, 3)) for x in seen[name]], axis=0)
        var = np.mean([x.var((0, 2, 3), ddof=1) for x in seen[name]], axis=0)
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, atol=1e-12)
        np.testing.assert_allclose(norm.running_var.numpy(), var, atol=1e-12)
        assert norm.momentum == 0.1
    assert network.training == training


def test_a_prediction_does_not_depend_on_its_batch() -> None:
    space = ToySpace(size=(8, 8))
    network = space.network(sample(space, counted(3)))
    estimate_statistics(network, batches(space))
    network.eval()
    x = images(space)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[2:3], network(x[2:3]))


# ---------------------------------------------------------------------- noise and drop path


def test_noise_depends_on_the_draw_and_its_path_alone() -> None:
    x = torch.randn(2, 3, 7, 8)
    here, there = Noise(1), Noise(1)
    here.path, there.path = "a", "b"
    assert torch.equal(here(x, DRAW), here(2 * x, DRAW)), "the input is ignored"
    assert not torch.equal(here(x, DRAW), there(x, DRAW))
    for other in (replace(DRAW, step=1), replace(DRAW, seed=6), replace(DRAW, phase="weight")):
        assert not torch.equal(here(x, DRAW), here(x, other))
    assert torch.equal(here(x, None), torch.zeros_like(x)), "a finished network is a function of the image"
    assert Noise(2)(x, DRAW).shape == (2, 3, 4, 4)
    assert not here(x.requires_grad_(), DRAW).requires_grad
    assert here(x.double(), DRAW).dtype == torch.float64


def test_noise_is_standard_normal() -> None:
    noise = Noise(1)(torch.zeros(64, 4, 16, 16), DRAW).flatten()
    n = len(noise)
    assert abs(float(noise.mean())) < 4 / n**0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((noise**4).mean()) - 3) < 4 * (96 / n) ** 0.5


def test_every_noise_of_a_supernet_has_its_own_path() -> None:
    space = S4(channels=4, cells=2, size=(8, 8))
    supernet = space.supernet(WeightedSum(), affine=False)
    paths = [m.path for m in supernet.modules() if isinstance(m, Noise)]
    assert len(paths) == 28
    assert len(set(paths)) == 28
    x, weights = images(space), space.spread({n: torch.ones_like(w) for n, w in one_hot_like(space).items()})
    with torch.no_grad():
        first = supernet(x, weights, DRAW)[0]
        assert torch.equal(first, supernet(x, weights, DRAW)[0])
        assert not torch.equal(first, supernet(x, weights, replace(DRAW, step=1))[0])


def one_hot_like(space: Space) -> dict[str, Tensor]:
    return {group.name: torch.zeros(len(group.edges), group.width) for group in space.groups}


def test_drop_path_is_counted_unbiased_and_spares_identities() -> None:
    space = NB201Space(channels=4, cells=1, stages=1, nodes=2, size=(8, 8), ops=("skip_connect", "nor_conv_1x1"))
    x = images(space, 8)
    conv = space.network(Genotype("nb201", {"cell": (Choice(0, 1, "nor_conv_1x1"),)}))
    skip = space.network(Genotype("nb201", {"cell": (Choice(0, 1, "skip_connect"),)}))
    with torch.no_grad():
        assert torch.equal(conv.heads(x, DRAW, 0.5)[0], conv.heads(x, DRAW, 0.5)[0])
        assert not torch.equal(conv.heads(x, DRAW, 0.5)[0], conv.heads(x, replace(DRAW, step=1), 0.5)[0])
        assert torch.equal(skip.heads(x, DRAW, 0.5)[0], skip.heads(x)[0])
        conv.eval()
        cell = conv.body.cells["cell_0"]
        seen: list[Tensor] = []
        handle = cell.register_forward_hook(lambda m, args, out: seen.append(out))
        for step in range(200):
            conv.heads(x, replace(DRAW, step=step), 0.2)
        conv.heads(x)
        handle.remove()
    *dropped, whole = seen
    gone = torch.stack([(t == 0).flatten(1).all(1) for t in dropped]).float()
    assert abs(float(gone.mean()) - 0.2) < 4 * (0.16 / gone.numel()) ** 0.5
    kept = dropped[0][gone[0] == 0]
    torch.testing.assert_close(kept, whole[gone[0] == 0] / 0.8)


# ---------------------------------------------------------------------- sharing


@pytest.mark.parametrize("name", ["toy", "nb201", "darts"])
def test_cells_of_their_own(name: str) -> None:
    shared = SPACES[name](size=(8, 8), **SMALL[name])  # type: ignore[arg-type]
    own = replace(shared, sharing="cell")
    assert [group.name for group in own.groups] == [cell for group in shared.groups for cell in group.cells]
    assert all(group.cells == (group.name,) for group in own.groups)
    for cell, group in own.cell_groups().items():
        assert (group.edges, group.ops, group.keep) == (
            shared.cell_groups()[cell].edges,
            shared.cell_groups()[cell].ops,
            shared.cell_groups()[cell].keep,
        )
    x, rng = images(shared), counted(2)
    supernet = own.supernet(WeightedSum(), affine=False)
    weights = {n: w.float() for n, w in op_weights(own, rng).items()}
    with torch.no_grad():
        before = supernet(x, own.spread(weights), DRAW)[1]
        last = own.groups[-1].name if name != "darts" else f"cell_{SMALL[name]['cells'] - 1}"
        weights[last] = weights[last] + 1.0
        after = supernet(x, own.spread(weights), DRAW)[1]
    changed = {cell for cell in before if not torch.equal(before[cell], after[cell])}
    assert changed == {last}, "only that cell's output changes"
    genotype = sample(own, counted(0))
    assert set(genotype.groups) == set(own.cell_groups())
    assert own.network(genotype)(x).shape == (6, 10)


def test_spread_ties_cells_to_their_group() -> None:
    space = DartsSpace(cells=3)
    weights = {group.name: torch.rand(14, 8, requires_grad=True) for group in space.groups}
    spread = space.spread(weights)
    assert spread.keys() == {"cell_0", "cell_1", "cell_2"}
    assert spread["cell_0"] is weights["normal"]
    assert spread["cell_1"] is spread["cell_2"] is weights["reduce"]


# ---------------------------------------------------------------------- foreign genotypes

SKIP = tuple(Choice(s, t, "skip_connect") for s, t in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("genotype", "sentence"),
    [
        (Genotype("nb201", {"cell": SKIP}), "of the space 'nb201' .* not of 'toy' .*`--space nb201`"),
        (Genotype("toy", {"cell": SKIP}, sharing="cell"), r"sharing 'cell'\), not of 'toy' \(sharing 'type'\)"),
        (
            Genotype("toy", {"cell": SKIP}, edge="weighted_som"),
            "no edge type 'weighted_som'; did you mean 'weighted_sum'",
        ),
        (Genotype("toy", {"normal": SKIP}), r"has the cells \['normal'\]; the space 'toy' has \['cell'\]"),
        (
            Genotype("toy", {"cell": (*SKIP[:2], Choice(1, 2, "sep_conv_3x3"))}),
            "'sep_conv_3x3' on the edge 1->2 .*no candidate",
        ),
        (Genotype("toy", {"cell": (*SKIP, Choice(2, 3, "none"))}), "'none' on the edge 2->3 .*no such edge"),
        (Genotype("toy", {"cell": SKIP[1:]}), "leaves a node without input"),
    ],
)
def test_a_foreign_genotype_is_refused_in_a_sentence(genotype: Genotype, sentence: str) -> None:
    build: list[Callable[[Genotype], object]] = [ToySpace().check, ToySpace().network, lambda g: cost(ToySpace(), g)]
    for use in build:
        with pytest.raises(UserError, match=sentence):
            use(genotype)


@pytest.mark.parametrize("name", SMALL)
def test_a_space_accepts_its_own_genotypes(name: str) -> None:
    space = SPACES[name](**SMALL[name])  # type: ignore[arg-type]
    for seed in range(20):
        space.check(sample(space, counted(seed)))
