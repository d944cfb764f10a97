"""The chain space against literal transcriptions of the networks that it holds, and its costs as sums over layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oche.base import Draw, counted
from oche.errors import UserError
from oche.fast.cell import accelerate
from oche.genotype import Choice, Genotype
from oche.search.relaxations import Softmax
from oche.spaces import ChainSpace
from oche.spaces.blocks import BLOCKS, Place, Shuffle
from oche.spaces.chain import CHAIN_OPS
from oche.spaces.cost import candidates, cost, multiply_adds, parameters
from oche.spaces.edges import AuxiliarySkip, PartialChannels, WeightedSum, whole
from oche.spaces.fit import fit
from oche.spaces.limits import Limits
from oche.spaces.ops import OPS
from oche.spaces.rivals import RIVALS
from oche.spaces.sampling import sample

SMALL = ChainSpace(channels=4, layers=(2, 2), widths=(1.0, 1.5), strides=(1, 2), size=(9, 12), inputs=2, outputs=3)


def chosen(*ops: str) -> Genotype:
    return Genotype("chain", {"chain": tuple(Choice(i, i + 1, op) for i, op in enumerate(ops))})


# ---------------------------------------------------------------------- literal transcriptions


class BasicBlock(nn.Module):
    """As in the ResNet paper; `keras` as in MLPerf Tiny's model: biases everywhere, a bare 1x1 convolution as shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, keras: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=keras)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=keras)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=keras))
            if not keras:
                self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, blocks: int, keras: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=keras)
        self.bn1 = nn.BatchNorm2d(16)
        widths, inputs, layers = (16, 32, 64), 16, []
        for stage, outputs in enumerate(widths):
            for block in range(blocks):
                layers.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1, keras))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self, inp: int, oup: int, stride: int, t: int) -> None:
        super().__init__()
        hidden = inp * t
        layers: list[nn.Module] = []
        if t != 1:
            layers += [nn.Conv2d(inp, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU6(), nn.Conv2d(hidden, oup, 1, bias=False), nn.BatchNorm2d(oup)]
        self.conv = nn.Sequential(*layers)
        self.add = stride == 1 and inp == oup

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.add else self.conv(x)


def mobilenetv2() -> nn.Module:
    table = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    inputs = 32
    for t, c, n, s in table:
        for i in range(n):
            layers.append(InvertedResidual(inputs, c, s if i == 0 else 1, t))
            inputs = c
    layers += [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 10))


class ShuffleUnit(nn.Module):
    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        half = oup // 2
        self.stride = stride
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(),
            )
        self.branch2 = nn.Sequential(
            nn.Conv2d(inp if stride > 1 else half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return F.channel_shuffle(out, 2)


def shufflenetv2() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    inputs = 24
    for n, c in ((4, 116), (8, 232), (4, 464)):
        for i in range(n):
            layers.append(ShuffleUnit(inputs, c, 2 if i == 0 else 1))
            inputs = c
    layers += [nn.Conv2d(464, 1024, 1, bias=False), nn.BatchNorm2d(1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 10))


LITERAL = {
    "resnet8": (lambda: ResNet(1, keras=True), 78_186, 12_501_642),
    "resnet20": (lambda: ResNet(3, keras=False), 272_474, 40_813_194),
    "mobilenetv2": (mobilenetv2, 2_236_682, 87_976_458),  # chenyaofo/pytorch-cifar-models: 2.24 M, 88 M
    "shufflenetv2": (shufflenetv2, 1_263_854, 45_002_122),  # the same: 1.26 M, 45 M
}


@pytest.mark.parametrize("name", LITERAL)
def test_a_published_network_is_held_exactly(name: str) -> None:
    """Parameters, multiply-adds, and with the same weights the same outputs."""
    build, weights, adds = LITERAL[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        literal, (space, genotype) = build().eval(), RIVALS[name].network(ChainSpace())
        network = space.network(genotype).eval()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert (parameters(literal), multiply_adds(literal, x)) == (weights, adds)
    price = cost(space, genotype)
    assert (price.parameters, price.multiply_adds) == (weights, adds)
    with torch.no_grad():
        for own, other in zip(network.parameters(), literal.parameters(), strict=True):
            other.copy_(own + 0.01)
            own.copy_(other)
        torch.testing.assert_close(network(x), literal(x), rtol=1e-4, atol=1e-4)


def test_the_default_space_holds_the_resnets() -> None:
    space = ChainSpace()
    block, none = "residual_3x3", "skip_connect"
    eight = chosen(*(block, none, none) * 3)
    assert cost(space, eight).parameters == parameters(ResNet(1, keras=False)) == 78_042
    assert cost(replace(space, bias=True), eight).parameters == 78_186
    assert cost(space, chosen(*(block,) * 9)).parameters == 272_474


def test_the_other_rivals_by_hand() -> None:
    ds = 64 * 27 + 4 * (64 * 9 + 64 * 64) + 9 * 2 * 64 + 650
    assert cost(*RIVALS["ds_cnn"].network(ChainSpace())).parameters == ds
    convs = 27 * 16 + 144 * (16 + 16) + 144 * 32 + 288 * 32 + 288 * 64 + 576 * 64
    assert cost(*RIVALS["plain_cnn"].network(ChainSpace())).parameters == convs + 2 * (16 * 3 + 32 * 2 + 64 * 2) + 650


# ---------------------------------------------------------------------- scaled to a limit


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn"])
@pytest.mark.parametrize("most", [(80_000, 12_700_000), (9_000, 10**9), (10**9, 40_000_000)])
def test_a_rival_has_the_largest_width_that_keeps_the_limits(name: str, most: tuple[int, int]) -> None:
    found = fit(*RIVALS[name].network(ChainSpace()), Limits(*most))
    assert isinstance(found.space, ChainSpace)
    assert found.genotype == RIVALS[name].genotype
    own, wider = (
        cost(*RIVALS[name].network(ChainSpace(), channels))
        for channels in (found.space.channels, found.space.channels + 1)
    )
    assert own.parameters <= most[0] and own.multiply_adds <= most[1]  # noqa: PT018
    assert wider.parameters > most[0] or wider.multiply_adds > most[1]


# ---------------------------------------------------------------------- layers


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("flat", [False, True])
def test_a_block_has_the_shape_it_is_asked_for(name: str, flat: bool) -> None:
    for inputs, outputs, stride in ((4, 4, 1), (4, 7, 1), (5, 5, 2), (6, 9, 2)):
        side = 1 if flat else 7
        out = BLOCKS[name](Place(inputs, outputs, stride, flat=flat))(torch.randn(2, inputs, side, 9))
        assert out.shape == (2, outputs, -(-side // stride), -(-9 // stride))


def test_a_shuffle_of_an_odd_width_loses_no_channel() -> None:
    x = torch.arange(7.0).view(1, 7, 1, 1)
    block = Shuffle(Place(7, 7), 3)
    block.branch = nn.Identity()  # type: ignore[assignment]
    assert block(x).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6]


def test_a_place_without_a_batch_norm_has_the_first_convolution_on_every_second_pixel() -> None:
    for flat in (False, True):
        short = Place(3, 5, 2, bias=True, flat=flat).shortcut()
        assert isinstance(short, nn.Conv2d)
        x = torch.randn(2, 3, 1 if flat else 7, 9)
        wanted = F.conv2d(x, short.weight, short.bias, stride=(1, 2) if flat else 2)
        torch.testing.assert_close(short(x), wanted)


ops = st.sampled_from(CHAIN_OPS)
changing = st.sampled_from(CHAIN_OPS[1:])


@settings(deadline=None, max_examples=5)
@given(first=ops, second=ops, third=changing, fourth=ops)
def test_a_network_costs_what_its_layers_cost(first: str, second: str, third: str, fourth: str) -> None:
    """The table of candidates, summed over the chosen ones, and what all networks have; a derived network has the chosen alone."""
    genotype = chosen(first, second, third, fourth)
    table, group = candidates(SMALL)["chain"], SMALL.groups[0]
    rest = nn.ModuleList([SMALL.network(genotype).body.stem, SMALL.network(genotype).body.classifier])
    rows = [group.ops[e].index(c.op) for e, c in enumerate(genotype.groups["chain"])]
    layers = sum(table[0, e, o] for e, o in enumerate(rows))
    norms = sum(
        2 * m.num_features for m in SMALL.network(genotype).body.cells.modules() if isinstance(m, nn.BatchNorm2d)
    )
    price = cost(SMALL, genotype)
    assert price.parameters == int(layers[0]) + norms + parameters(rest)
    assert price.multiply_adds == int(layers[1]) + 9 * 12 * 4 * 2 * 9 + 6 * 3 + 3


def test_a_derived_network_has_what_was_chosen_and_nothing_else() -> None:
    network = SMALL.network(chosen("skip_connect", "residual_3x3_w50", "mbconv_k3_e1", "skip_connect"))
    held = {name: [type(op) for op in cell.edges["0-1"].ops.values()] for name, cell in network.body.cells.items()}
    assert [len(kinds) for kinds in held.values()] == [1, 1, 1, 1]
    assert held["stage1_layer1"] == [nn.Identity]
    inner = network.body.cells["stage1_layer2"].edges["0-1"].ops["residual_3x3_w50"].deep[0]
    assert (inner.in_channels, inner.out_channels) == (4, 2)


@pytest.mark.parametrize(
    "edge", [WeightedSum(), PartialChannels(2), AuxiliarySkip(), AuxiliarySkip(PartialChannels(2))]
)
def test_fast_and_plain_cells_compute_the_same(edge: object) -> None:
    """Outputs and gradients of weights and op weights, off and on the fast path."""
    supernet = SMALL.supernet(edge, affine=True).double()  # type: ignore[arg-type]
    x = torch.randn(3, 2, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group, found = SMALL.groups[0], []
    for fast in (False, True):
        if fast:
            accelerate(supernet)
        w = Softmax(1.0).init(group, counted(1))["chain/alpha"].double().mul(group.valid()).requires_grad_()
        out, _ = supernet(x, SMALL.spread({"chain": w}), Draw(1))
        found.append(
            (out, *torch.autograd.grad(out.square().sum(), [w, *supernet.parameters()], materialize_grads=True))
        )
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-9, atol=1e-9)


def test_partial_channels_end_where_the_width_changes() -> None:
    assert whole(AuxiliarySkip(PartialChannels(4))) == AuxiliarySkip(WeightedSum())
    supernet = SMALL.supernet(PartialChannels(2), affine=False)
    widths = [cell.edges["0-1"].ops["mbconv_k3_e3"].layers[0].in_channels for cell in supernet.body.cells.values()]
    assert widths == [2, 2, 4, 3]


def test_drop_path_drops_what_a_layer_adds_and_never_the_image() -> None:
    """With a factor f a layer gives x + f (layer(x) - x); one that changes the shape is never dropped."""
    network = SMALL.network(chosen("residual_3x3", "skip_connect", "mbconv_k3_e1", "ds_conv_3x3")).train()
    x = torch.randn(8, 2, 9, 12)
    kept = network.drops(x, Draw(2), 0.5)
    assert {f for t in kept.values() for f in t.flatten().tolist()} == {0.0, 2.0}
    out, _ = network.trunk(x, Draw(2), kept)
    body, h = network.body, network.body.stem(x)
    for name, cell in body.cells.items():
        new = cell.edges["0-1"](h, None)
        h = h + (new - h) * kept[f"{name}/0"] if new.shape == h.shape else new
    torch.testing.assert_close(out, F.linear(h.mean((2, 3)), *body.classifier.parameters()))


def test_layers_may_have_groups_of_their_own() -> None:
    own = replace(SMALL, sharing="cell")
    assert [group.name for group in own.groups] == [place.name for place in SMALL.places()]
    assert own.cardinality() == SMALL.cardinality() == 8 * 8 * 7 * 8
    genotype = sample(own, counted(0, "own"))
    ops = [choice.op for choices in genotype.groups.values() for choice in choices]
    assert cost(own, genotype) == cost(SMALL, chosen(*ops))


def test_a_stem_reads_large_images_at_a_lower_resolution() -> None:
    for side, stride in ((32, 1), (64, 2), (128, 4)):
        space = replace(SMALL, size=(side, side))
        network = space.network(sample(space, counted(1, "stem")))
        assert network.body.stem(torch.randn(1, 2, side, side)).shape[-1] == side // stride
        assert bool(space.notes()) == (stride > 1)
    assert replace(SMALL, size=(128, 128), stem_stride=1).reduction == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": ()}, "one stage"),
        ({"widths": (1.0, 0.0)}, "above 0"),
        ({"ops": ("skip_connect", "sep_conv_3x3")}, "No operation of the chain can change the width"),
        ({"stem_stride": 3}, "stem_stride=3"),
        ({"channels": 0}, "at least one channel"),
        ({"ops": ("residual_3x3x",)}, "residual_3x3x.*residual_3x3"),
    ],
)
def test_what_a_chain_cannot_be_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(SMALL, **fields)


def test_lists_of_several_lengths_are_refused_when_a_network_is_built() -> None:
    """Not before: settings change one list after the other."""
    halfway = replace(SMALL, widths=(1.0,))
    with pytest.raises(UserError, match="as many widths and strides as stages"):
        halfway.supernet(WeightedSum(), affine=True)


def test_other_operations_may_stand_where_the_width_stays() -> None:
    space = replace(SMALL, ops=("residual_3x3", "sep_conv_3x3"))
    assert space.groups[0].ops == (("residual_3x3", "sep_conv_3x3"),) * 2 + (
        ("residual_3x3",),
        ("residual_3x3", "sep_conv_3x3"),
    )
    assert set(BLOCKS) <= set(OPS)
