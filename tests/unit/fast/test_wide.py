"""Dense convolutions, residual blocks and cells of NAS-Bench-201 on the kernels take the training step that torch takes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from oche.fast import ordinary, quicken
from oche.fast.backends.native import kernels
from oche.fast.training import Quick, QuickCell, QuickSum
from oche.genotype import Genotype
from oche.spaces import SPACES
from oche.spaces.blocks import MBConv, Place, Residual
from oche.spaces.nb201 import ResidualReduction
from oche.spaces.ops import FactorizedReduce
from oche.spaces.rivals import RIVALS
from oche.training.memory import kept_bytes
from unit.fast.steps import drawn, errors, quick, step

pytestmark = pytest.mark.skipif(kernels() is None, reason="no compiled kernels: modules stay as they are")

SHAPES = [(1, 7, 5), (3, 8, 9), (5, 12, 12)]
"""Images, rows and columns: a single image, odd sides, more than a group of Winograd's tiles."""


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads instead of one."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution with a bias, batch norm and ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


def two(inputs: int, between: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, the second behind a batch norm that is part of its load."""
    return nn.Sequential(*convolution(inputs, between, 3), *convolution(between, outputs, 3))


WINOGRAD = {"16 to 16": (16, 16, 3), "36 to 48": (36, 48, 3), "64 to 32": (64, 32, 3), "14 to 15": (14, 15, 3)}
ROWS = {
    "7 to 5": (7, 5, 3),
    "3 to 16": (3, 16, 3),
    "1 to 2": (1, 2, 3),
    "stride 2": (16, 32, 3, 2),
    "stride 3": (8, 7, 3, 3),
    "dilated": (16, 5, 3, 1, 2),
    "dilated, stride 2": (5, 16, 3, 2, 2),
    "5x5": (9, 17, 5),
    "1x1, stride 2": (16, 32, 1, 2),
}
BLOCKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "two": (16, lambda: two(16, 32, 16)),
    "residual": (16, lambda: Residual(Place(16, 16), 3, 16)),
    "residual, half as wide inside": (12, lambda: Residual(Place(12, 12), 3, 6)),
    "residual, stride 2": (7, lambda: Residual(Place(7, 14, 2), 3, 14)),
    "residual, stride 2, biases": (16, lambda: Residual(Place(16, 32, 2, bias=True), 3, 32)),
    "reduction": (8, lambda: ResidualReduction(8, 16)),
    "bottleneck": (8, lambda: MBConv(Place(8, 8), 3, 3, se=False)),
}


def of(build: Callable[[], nn.Module]) -> nn.Module:
    """A module in double precision whose batch norms scale and shift."""
    return drawn(lambda channels, stride: build(), 1).double()


def assert_same_step(op: nn.Module, channels: int, batch: int, height: int, width: int) -> None:
    x = torch.randn(batch, channels, height, width, dtype=torch.float64) + 0.3
    own = quick(op)
    for name, error in errors(step(own, x), step(op, x)).items():
        assert error < 1e-10, name
    torch.testing.assert_close(own.eval()(x), op.eval()(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", WINOGRAD.values(), ids=WINOGRAD)
def test_by_winograd_in_double_precision(size: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    assert_same_step(of(lambda: convolution(*size)), size[0], *shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ROWS.values(), ids=ROWS)
def test_by_rows_in_double_precision(size: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    assert_same_step(of(lambda: convolution(*size)), size[0], *(3, *shape[1:]) if size[3:] else shape)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_in_double_precision(name: str, shape: tuple[int, int, int]) -> None:
    channels, build = BLOCKS[name]
    assert_same_step(of(build), channels, *shape)


@pytest.mark.parametrize("size", [(16, 16, 3), (48, 36, 3), (8, 16, 3, 2), (3, 16, 3), (16, 16, 5)])
def test_single_precision_errs_no_more_than_torch(size: tuple[int, ...]) -> None:
    op = drawn(lambda channels, stride: convolution(*size), 1)
    x = torch.randn(4, size[0], 12, 12) + 0.3
    exact = step(copy.deepcopy(op).double(), x.double())
    plain, own = errors(step(copy.deepcopy(op), x), exact), errors(step(quick(op), x), exact)
    for name, error in own.items():
        assert error <= 3 * plain[name] + 1e-6, name


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ["two", "residual, stride 2, biases"])
def test_threads_change_nothing_but_roundings(name: str) -> None:
    channels, build = BLOCKS[name]
    op = of(build)
    x = torch.randn(5, channels, 8, 9, dtype=torch.float64)
    two = step(quick(op), x)
    torch.set_num_threads(1)
    one = step(quick(op), x)
    assert torch.equal(one["out"], two["out"])
    assert max(errors(two, one).values()) < 1e-13


def test_a_bias_before_a_batch_norm_learns_nothing_and_moves_the_running_mean() -> None:
    op = of(lambda: convolution(16, 16, 3))
    assert isinstance(op, nn.Sequential)
    nn.init.constant_(op[0].bias, 5.0)  # type: ignore[arg-type]
    found = step(quick(op), torch.randn(2, 16, 6, 6, dtype=torch.float64))
    assert torch.equal(found["gradient of 0.bias"], torch.zeros(16, dtype=torch.float64))
    assert (found["1.running_mean"] > 0.3).all()


def test_wide_layers_are_left_to_torch() -> None:
    op = copy.deepcopy(of(lambda: convolution(144, 128, 3)))
    quicken(op)
    assert not isinstance(op, Quick)


def test_memory_that_is_handed_out_is_not_used_again_while_a_tensor_lies_in_it() -> None:
    """A view of an output keeps its values through later steps of the same shape."""
    own = quick(of(lambda: convolution(16, 16, 3)))
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    kept = own.train()(x).detach()[:, :3]
    values = kept.clone()
    for _ in range(3):
        own(x + torch.randn_like(x)).sum().backward()
    assert torch.equal(kept, values)


def test_what_a_block_keeps_between_its_convolutions_counts() -> None:
    """What it reads, what each convolution leaves, and the sum, as the estimate of a training's memory sees them."""
    own = quick(of(BLOCKS["residual"][1])).train()
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    kept = kept_bytes(lambda: own(x).sum(), own.parameters())
    assert 4 * x.nbytes <= kept < 4.5 * x.nbytes


@pytest.mark.parametrize("size", [(8, 12), (2, 2), (7, 8), (4, 5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 17), (16, 16), (3, 2)])
def test_a_factorized_reduce_is_a_convolution_of_squares(inputs: int, outputs: int, size: tuple[int, int]) -> None:
    op = of(lambda: FactorizedReduce(inputs, outputs, True))
    own = copy.deepcopy(op)
    quicken(own)
    x = torch.randn(3, inputs, *size, dtype=torch.float64) + 0.3
    with pytest.MonkeyPatch.context() as patch:
        if size[0] % 2 == size[1] % 2 == 0:
            patch.setattr(FactorizedReduce, "halves", None)  # what torch would run
        found = step(own, x)
    for name, error in errors(found, step(op, x)).items():
        assert error < 1e-10, name
    torch.testing.assert_close(own.eval()(x), op.eval()(x))
    ordinary(own)
    assert type(own) is FactorizedReduce


def test_a_factorized_reduce_errs_no_more_than_torch() -> None:
    op = drawn(lambda channels, stride: FactorizedReduce(32, 16, True), 1)
    x = torch.randn(4, 32, 12, 12) + 0.3
    own = copy.deepcopy(op)
    quicken(own)
    exact = step(copy.deepcopy(op).double(), x.double())
    plain = errors(step(op, x), exact)
    for name, error in errors(step(own, x), exact).items():
        assert error <= 3 * plain[name] + 1e-6, name


NETWORKS = {
    "resnet8": lambda: RIVALS["resnet8"].network(SPACES["darts"](), 16),
    "resnet20": lambda: RIVALS["resnet20"].network(SPACES["darts"](), 8),
    "mobilenetv2": lambda: RIVALS["mobilenetv2"].network(SPACES["darts"](), 2),
    "nb201": lambda: (SPACES["nb201"](channels=4, cells=1), Genotype.parse(CELL, "nb201")),
}
CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_takes_the_same_step(name: str) -> None:
    space, genotype = NETWORKS[name]()
    op = of(lambda: space.network(genotype))
    own = copy.deepcopy(op)
    quicken(own)
    assert sum(isinstance(module, QuickSum) for module in own.modules()) >= 2
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    for n, error in errors(step(own, x), step(op, x)).items():
        assert error < 1e-9, n
    torch.testing.assert_close(own.eval()(x), op.eval()(x))
    torch.testing.assert_close(own.state_dict(), op.state_dict(), rtol=1e-9, atol=1e-9)
    ordinary(own)
    assert [type(m) for m in own.modules()] == [type(m) for m in op.modules()]


def test_a_dense_cell_is_one_operator_but_for_drop_path() -> None:
    space, genotype = NETWORKS["nb201"]()
    own = of(lambda: space.network(genotype))
    quicken(own)
    cells = [m for m in own.modules() if isinstance(m, QuickCell)]
    assert len(cells) == 3
    assert all(cell.dense is not None for cell in cells)


def test_planes_that_no_cache_holds_are_written_past_them() -> None:
    """18 images of 32x32 pixels and 16 channels in double precision are over two MiB."""
    space = SPACES["nb201"](cells=1)
    op = of(lambda: space.network(Genotype.parse(CELL, "nb201")))
    own = copy.deepcopy(op)
    quicken(own)
    x = torch.randn(18, 3, 32, 32, dtype=torch.float64)
    for name, error in errors(step(own, x), step(op, x)).items():
        assert error < 1e-9, name


def test_two_terms_of_one_source_share_its_gradient() -> None:
    """The identity beside a chain: no gradient is summed by autograd."""
    op = of(BLOCKS["residual"][1])
    own = quick(op)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    seen: list[Tensor] = []
    grad = torch.ones(2, 16, 8, 8, dtype=torch.float64)
    for net in (op, own):
        y = x.clone().requires_grad_()
        net.train()(y).backward(grad)
        assert y.grad is not None
        seen.append(y.grad)
    torch.testing.assert_close(*seen)
