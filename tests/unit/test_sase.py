"""The space of attention blocks: each slot's operations by hand, the wiring against a literal forward pass, and both backbones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oche.base import Draw, counted
from oche.errors import UserError
from oche.spaces.edges import PartialChannels, WeightedSum
from oche.spaces.networks import Cell
from oche.spaces.sampling import sample
from oche.spaces.sase import SETS, AttentionCell, SaseSpace
from oche.spaces.slots import CHANNEL_EXCITE, CHANNEL_SQUEEZE, SLOT_OPS, SPATIAL_EXCITE, SPATIAL_SQUEEZE

pytestmark = pytest.mark.usefixtures("float64")

DRAW = Draw(0, 0, "weight")


def image(channels: int = 6, height: int = 5, width: int = 7) -> Tensor:
    return torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 5, 32])
def test_shapes(channels: int) -> None:
    x = image(channels)
    for name, make in CHANNEL_SQUEEZE.items():
        assert make(channels)(x).shape == (3, channels, 1, 1), name
    for name, make in CHANNEL_EXCITE.items():
        assert make(channels)(x[:, :, :1, :1]).shape == (3, channels, 1, 1), name
    for name, make in SPATIAL_SQUEEZE.items():
        assert make(channels)(x).shape == (3, 1, 5, 7), name
    for name, make in SPATIAL_EXCITE.items():
        assert make(channels)(x[:, :1]).shape == (3, 1, 5, 7), name


def test_squeezes_by_hand() -> None:
    x = image()
    for b in range(3):
        for c in range(6):
            pixels = x[b, c].flatten().tolist()
            mean = sum(pixels) / 35
            e = [torch.tensor(p).exp().item() for p in pixels]
            expected = {
                "pixels_mean": mean,
                "pixels_max": max(pixels),
                "pixels_std": (sum((p - mean) ** 2 for p in pixels) / 35 + 1e-5) ** 0.5,
                "pixels_gem": (sum(max(p, 1e-6) ** 3 for p in pixels) / 35) ** (1 / 3),
                "pixels_softmax": sum(p * w for p, w in zip(pixels, e, strict=True)) / sum(e),
            }
            assert expected.keys() == CHANNEL_SQUEEZE.keys()
            for name, value in expected.items():
                assert float(CHANNEL_SQUEEZE[name](6)(x)[b, c]) == pytest.approx(value), name
    values = x[1, :, 2, 3].tolist()
    mean = sum(values) / 6
    conv = SPATIAL_SQUEEZE["channels_conv_1x1"](6)
    (weight,) = (p.detach() for p in conv.parameters())
    expected = {
        "channels_mean": mean,
        "channels_max": max(values),
        "channels_std": (sum((v - mean) ** 2 for v in values) / 6 + 1e-5) ** 0.5,
    }
    for name, value in expected.items():
        assert float(SPATIAL_SQUEEZE[name](6)(x)[1, 0, 2, 3]) == pytest.approx(value), name
    assert float(conv(x)[1, 0, 2, 3].detach()) == pytest.approx(
        sum(w * v for w, v in zip(weight.flatten().tolist(), values, strict=True))
    )


def test_excitations_by_hand() -> None:
    d = image()[:, :, :1, :1]
    for kernel in (3, 5):
        op = CHANNEL_EXCITE[f"channels_conv_{kernel}"](6)
        (weight,) = (p.detach().flatten().tolist() for p in op.parameters())
        padded = [0.0] * (kernel // 2) + d[1, :, 0, 0].tolist() + [0.0] * (kernel // 2)
        own = [sum(weight[k] * padded[c + k] for k in range(kernel)) for c in range(6)]
        assert op(d)[1, :, 0, 0].tolist() == pytest.approx(own)
    mlp = CHANNEL_EXCITE["channels_mlp"](32)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(2, 32, 1, 1), (2,), (32, 2, 1, 1), (32,)]
    affine = CHANNEL_EXCITE["channels_affine"](6)
    torch.testing.assert_close(affine(d), d)
    with torch.no_grad():
        for p, v in zip(affine.parameters(), (2.0, 0.5), strict=True):
            p.fill_(v)
    torch.testing.assert_close(affine(d), 2 * d + 0.5)
    m = image()[:, :1]
    rows = SPATIAL_EXCITE["map_rows_columns"](6)
    first, second = (p.detach().flatten() for p in rows.parameters())
    by_row, by_column = F.pad(m[2, 0].mean(1), (1, 1)), F.pad(m[2, 0].mean(0), (1, 1))
    assert float(rows(m)[2, 0, 1, 4].detach()) == pytest.approx(
        float((first * by_row[1:4]).sum() + (second * by_column[4:7]).sum())
    )
    assert SPATIAL_EXCITE["map_dil_conv_3x3"](6).dilation == (2, 2)
    assert SPATIAL_EXCITE["map_conv_7x7"](6).kernel_size == (7, 7)


@pytest.mark.parametrize("backbone", ["resnet", "mobile"])
def test_the_wiring_is_the_literal_one(backbone: str) -> None:
    """A supernet's cell, every slot a weighted sum over its own set."""
    torch.manual_seed(1)
    space = SaseSpace(channels=4, layers=(1, 1), size=(8, 8), backbone=backbone)  # type: ignore[arg-type]
    net = space.supernet(PartialChannels(2), affine=False)
    (group,) = space.groups
    w = torch.rand(6, group.width, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * group.valid()
    cell = net.body.cells["stage2_block1"]
    assert isinstance(cell, AttentionCell)
    width = {"resnet": 8, "mobile": 12}[backbone]
    x = image(width, 6, 6)

    def slot(n: int, h: Tensor) -> Tensor:
        ops = cell.edges[("0-1", "1-2", "1-3", "0-4", "3-5", "5-6")[n]].ops
        assert list(ops) == list(SETS[n])  # type: ignore[arg-type]
        return sum((w[n, o] * op(h) for o, op in enumerate(ops.values())), torch.zeros(()))  # type: ignore[operator, union-attr]

    d = slot(0, x)
    a = 1 / (1 + torch.exp(-slot(1, d)))
    seen = x / (1 + torch.exp(-slot(2, d)))
    joined = F.conv2d(torch.cat([slot(3, x), slot(4, seen)], dim=1), cell.join[0].weight, padding=1)  # type: ignore[arg-type]
    normal = (joined - joined.mean()) / (joined.var(correction=0) + 1e-5).sqrt()
    out = x * a / (1 + torch.exp(-slot(5, normal)))
    torch.testing.assert_close(cell.mixed((x,), w, DRAW), out)


@pytest.mark.parametrize("backbone", ["resnet", "mobile"])
def test_the_backbone(backbone: str) -> None:
    """With attention of 1/4 everywhere the blocks are those of the literature; widths double, resolutions halve."""
    space = SaseSpace(channels=4, layers=(1, 2), size=(8, 8), backbone=backbone)  # type: ignore[arg-type]
    network = space.network(sample(space, counted(0))).eval()
    body, x = network.body, torch.randn(2, 3, 8, 8)
    out, observed = body(x, lambda name, cell, inputs: 0.25 * inputs[0])
    h = body.stem(x)
    for layer in space.blocks():
        before, behind, short = (getattr(body, part)[layer.name] for part in ("before", "behind", "shortcuts"))
        added = behind(0.25 * before(h)) + short(h)
        h = added.relu() if backbone == "resnet" else added
    torch.testing.assert_close(out, F.linear(h.mean((2, 3)), *body.classifier.parameters()))  # type: ignore[operator]
    assert h.shape == (2, 8, 4, 4)
    assert [tuple(o.shape[1:]) for o in observed.values()] == {
        "resnet": [(4, 8, 8), (8, 4, 4), (8, 4, 4)],
        "mobile": [(12, 8, 8), (12, 4, 4), (24, 4, 4)],
    }[backbone]


def test_one_architecture_for_all_blocks_or_one_each() -> None:
    whole, each = SaseSpace(layers=(2, 1)), SaseSpace(layers=(2, 1), sharing="cell")
    assert [g.cells for g in whole.groups] == [("stage1_block1", "stage1_block2", "stage2_block1")]
    assert [g.name for g in each.groups] == ["stage1_block1", "stage1_block2", "stage2_block1"]
    assert whole.cardinality() == 5 * 5 * 5 * 4 * 4 * 4
    network = whole.network(sample(whole, counted(1)))
    assert all(isinstance(cell, Cell) and len(cell.edges) == 6 for cell in network.body.cells.values())


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="one block in every stage"):
        SaseSpace(layers=(2, 0))
    with pytest.raises(UserError, match="no operation 'pixels_mode'"):
        SaseSpace(without=("pixels_mode",))
    with pytest.raises(UserError, match="has no skip_connect"):
        SaseSpace().operation(SaseSpace().groups[0], 0, "skip_connect", 4, 1, True, alone=True)
    assert SaseSpace(without=("none",)).groups == SaseSpace().groups
    assert SaseSpace(without=("channels_max",)).groups[0].ops[3] == (
        "channels_mean",
        "channels_std",
        "channels_conv_1x1",
    )
    assert set(SLOT_OPS) == {op for ops in SaseSpace().groups[0].ops for op in ops}
    assert len(SLOT_OPS) == 18, "no name stands in two sets"


def test_large_images_are_reduced_before_the_first_block() -> None:
    for side, stride in ((32, 1), (64, 2), (128, 4)):
        space = SaseSpace(channels=2, layers=(1,), size=(side, side))
        assert space.reduction == stride
        assert bool(space.notes()) == (stride > 1)
        assert (
            space.network(sample(space, counted(2))).body.stem(torch.randn(1, 3, side, side)).shape[-1]
            == side // stride
        )  # type: ignore[union-attr, operator]


def test_a_supernet_s_slots_are_all_reached() -> None:
    space = SaseSpace(channels=4, layers=(1, 1), size=(8, 8))
    net = space.supernet(WeightedSum(), affine=False)
    w = space.spread({g.name: g.valid().double().requires_grad_() for g in space.groups})
    out, _ = net(torch.randn(4, 3, 8, 8), w, DRAW)
    grads = torch.autograd.grad(out.square().sum(), list(net.parameters()))
    assert all(g.abs().sum() > 0 for g in grads)
