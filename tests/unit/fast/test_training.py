"""Discretised networks on the compiled kernels: a training step like torch's, and ordinary modules before and after."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oche.base import Draw
from oche.fast import ordinary, quicken
from oche.fast.backends.native import kernels
from oche.fast.training import Quick, QuickCell, QuickEntry
from oche.genotype import Genotype
from oche.schedule import Constant
from oche.spaces import Network
from oche.spaces.darts import DartsSpace
from oche.spaces.ops import OPS, ReLUConvBN
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.tiny import tiny_data

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif(kernels() is None, reason="no compiled kernels: modules stay as they are"),
]


def step(op: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics after a training step with some loss."""
    x = x.clone().requires_grad_()
    out = op.train()(x)
    (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    found = {"out": out.detach(), "x": x.grad}
    found |= {f"gradient of {n}": p.grad for n, p in op.named_parameters() if p.grad is not None}
    return found | {n: b.clone() for n, b in op.named_buffers()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5"])
def test_a_separable_convolution_takes_the_same_step(name: str, stride: int) -> None:
    torch.manual_seed(1)
    op = OPS[name](16, stride, True).double()
    for norm in op.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight)
            nn.init.uniform_(norm.bias)
    own = copy.deepcopy(op)
    quicken(own)
    assert type(own) is Quick
    x = torch.randn(3, 16, 7, 6).contiguous(memory_format=torch.channels_last)
    for _ in range(2):  # running statistics move on from where they are
        assert_same(step(own, x), step(op, x))
    torch.testing.assert_close(own.eval()(x), op.eval()(x))


def test_an_entry_takes_the_same_step() -> None:
    op = ReLUConvBN(32, 16, 1, 1, True).double()
    own = copy.deepcopy(op)
    quicken(own)
    assert type(own) is QuickEntry
    x = torch.randn(3, 32, 5, 6)
    for _ in range(2):
        assert_same(step(own, x), step(op, x))


def test_what_the_kernels_do_not_know_stays() -> None:
    others = nn.ModuleList(
        [
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4)),
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)),
            nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, momentum=None)),
            nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.BatchNorm2d(4)),
            OPS["conv_7x1_1x7"](16, 1, True),
            nn.Sequential(nn.Conv2d(4, 4, 4, padding=2), nn.BatchNorm2d(4)),
            ReLUConvBN(144, 128, 3, 1, True),
            nn.Sequential(nn.ReLU()),
        ]
    )
    before = [type(m) for m in others.modules()]
    quicken(others)
    assert [type(m) for m in others.modules()] == before


def network() -> Network:
    torch.manual_seed(0)
    space = DartsSpace(channels=16, cells=3, size=(8, 8), inputs=2, outputs=3)
    return space.network(Genotype.parse("DARTS_V2", "darts"))


def test_a_network_is_ordinary_again() -> None:
    net = network()
    before, names = [type(m) for m in net.modules()], list(net.state_dict())
    quicken(net)
    kinds = {type(m) for m in net.modules()}
    assert {Quick, QuickEntry} <= kinds
    assert list(net.state_dict()) == names
    ordinary(net)
    assert [type(m) for m in net.modules()] == before
    assert not any("parts" in vars(m) for m in net.modules() if type(m) is nn.Sequential)


@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_training_ends_with_the_same_weights(drop_path: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)  # until the fixture ends
    data = tiny_data(24)
    space = DartsSpace(channels=16, cells=3, size=data.size, inputs=data.channels, outputs=len(data.classes))
    protocol = replace(PROTOCOLS["smoke"], batch=8, drop_path=drop_path, auxiliary=0.0, lr=Constant(1e-3))
    training = Training(space, Genotype.parse("DARTS_V2", "darts"), data, protocol, 0)
    seen: list[bool] = []
    monkeypatch.setattr("oche.training.train.quicken", lambda net: (quicken(net), seen.append(True)))
    fast = retrain(training).state_dict()
    assert seen
    assert type(retrain(training).body) is type(network().body)
    monkeypatch.setattr("oche.training.train.quicken", lambda net: None)
    slow = retrain(training).state_dict()
    for name, t in slow.items():
        torch.testing.assert_close(fast[name], t, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_half_precision_and_one_image() -> None:
    torch.set_default_dtype(torch.float32)  # until the fixture ends
    op = OPS["sep_conv_3x3"](16, 1, True)
    own = copy.deepcopy(op)
    quicken(own)
    x = torch.randn(4, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = own.train()(x.bfloat16())
    exact = op.train()(x.bfloat16().float())
    assert float((out - exact).detach().norm() / exact.detach().norm()) < 1e-2
    alone = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(own(alone), op(alone), rtol=1e-4, atol=1e-5)


def test_without_gradients_torch_s_own() -> None:
    net, untouched = network().double(), network().double()
    quicken(net)
    x = torch.rand(4, 2, 8, 8)
    with torch.no_grad():
        assert torch.equal(net.train()(x), untouched.train()(x))


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_a_network_of_odd_width_takes_the_same_step(drop_path: float) -> None:
    """Normal and reduction cells with drop path: separable convolutions, pools, identities, their sums."""
    torch.manual_seed(0)
    space = DartsSpace(channels=7, cells=3, size=(10, 10), inputs=2, outputs=3)
    plain = space.network(Genotype.parse("DARTS_V2", "darts"), auxiliary=True).double().train()
    own = copy.deepcopy(plain)
    quicken(own)
    assert any(type(m) is QuickCell for m in own.modules())
    x = torch.rand(4, 2, 10, 10)
    found = []
    for net in (plain, own):
        outputs, auxiliary = net.heads(x, Draw(3, 1, "train"), drop_path)
        loss = (outputs**2).sum() + (0 if auxiliary is None else (auxiliary**2).sum())
        loss.backward()  # type: ignore[no-untyped-call]
        grads = {f"gradient of {n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
        found.append({"out": outputs.detach(), **grads, **{n: b.clone() for n, b in net.named_buffers()}})
    assert_same(found[1], found[0])
    ordinary(own)
    assert [type(m) for m in own.modules()] == [type(m) for m in plain.modules()]
