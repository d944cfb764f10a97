"""ADARTS and alpha-ADARTS: attention, choice of channels and write-back against literal references, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.same import problem_of
from oche.base import Draw, Group
from oche.errors import UserError
from oche.genotype import zoo
from oche.genotype.cells import Genotype
from oche.methods.adarts import adarts
from oche.methods.alpha_adarts import TEN_OPS, AlphaAttendedChannels, Favouring, alpha_adarts
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.begin import begin
from oche.search.relaxations import EdgeNormalised
from oche.spaces.attention import AttendedChannels
from oche.spaces.darts import DARTS_OPS, DartsSpace
from oche.spaces.edges import Among, DropPath, Edge, EdgeFactory, PartialChannels, WeightedSum, whole
from oche.spaces.nb201 import NB201Space
from oche.spaces.networks import Cell
from reference.tiny import tiny_data

pytestmark = pytest.mark.usefixtures("float64")

DRAW = Draw(0, 0, "weight")
SHAPES = [(channels, stride, size) for channels in (3, 8, 18) for stride, size in ((1, 6), (2, 6), (2, 5))]


def built(edge: EdgeFactory, channels: int, stride: int, ops: tuple[str, ...] = DARTS_OPS) -> Edge:
    """The edge over the DARTS candidates, batch norm in training as in a supernet, weights apart from each other."""
    torch.manual_seed(channels + 100 * stride)
    space = DartsSpace()
    module = edge(ops, channels, stride, lambda op, width: space.candidate(op, width, stride, False))
    if isinstance(edge, AlphaAttendedChannels):
        with torch.no_grad():  # so that its ReLU passes something: G has positive entries alone
            module.attention.squeeze.weight[: len(ops) // 2].abs_()  # type: ignore[union-attr, index]
            module.attention.squeeze.weight[:, channels:].abs_()  # type: ignore[union-attr, index]
    return module


def image(channels: int, size: int, batch: int = 5) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def literal(edge: Edge, x: Tensor, w: Tensor, stride: int, attention: Callable[[Tensor], list[list[float]]]) -> Tensor:
    """Channel by channel: attention as numbers, the largest sums over the batch, each op on them, and the outputs put back in place."""
    batch, channels = x.shape[:2]
    a = attention(x)
    count = {3: stride, 8: 2, 18: 4}[channels]
    sums = [sum(a[b][c] for b in range(batch)) for c in range(channels)]
    order = sorted(range(channels), key=lambda c: -sums[c])[:count]
    scaled = torch.stack([torch.stack([a[b][c] * x[b, c] for c in range(channels)]) for b in range(batch)])
    outputs = [op(torch.stack([scaled[:, c] for c in order], dim=1)) for op in edge.ops.values()]
    rest = (
        scaled
        if stride == 1
        else F.max_pool2d(F.pad(scaled, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf), 2)
    )
    out = [float(w.sum()) * rest[:, c] for c in range(channels)]
    for place, c in enumerate(order):
        out[c] = sum((w[o] * y[:, place] for o, y in enumerate(outputs)), torch.zeros_like(rest[:, c]))
    return torch.stack(out, dim=1)


def matrices(module: nn.Module) -> tuple[Tensor, Tensor]:
    first, second = (m for m in module.modules() if isinstance(m, nn.Conv2d))
    assert first.bias is None
    assert second.bias is None
    return first.weight.detach()[:, :, 0, 0], second.weight.detach()[:, :, 0, 0]


def attention_of_adarts(edge: Edge) -> Callable[[Tensor], list[list[float]]]:
    first, second = matrices(edge.attention)  # type: ignore[arg-type]

    def numbers(x: Tensor) -> list[list[float]]:
        mean, largest = x.flatten(2).mean(-1), x.flatten(2).amax(-1)
        logits = sum((second @ (first @ p.T).clamp(min=0)).T for p in (mean, largest))
        return (1 / (1 + torch.exp(-torch.as_tensor(logits)))).tolist()  # type: ignore[no-any-return]

    return numbers


def attention_of_alpha(edge: Edge, alpha: Tensor) -> Callable[[Tensor], list[list[float]]]:
    first, second = matrices(edge.attention)  # type: ignore[arg-type]
    A = alpha.exp() / alpha.exp().sum(1, keepdim=True)
    gram = torch.tensor(
        [[sum(A[e, i] * A[e, j] for e in range(len(A))) for j in range(A.shape[1])] for i in range(A.shape[1])]
    )

    def numbers(x: Tensor) -> list[list[float]]:
        p = torch.cat([x.flatten(2).mean(-1), x.flatten(2).amax(-1)], dim=1)
        inside = (gram @ first @ p.T).clamp(min=0)
        return (1 / (1 + torch.exp(-(second @ inside).T))).tolist()  # type: ignore[no-any-return]

    return numbers


@pytest.mark.parametrize(("channels", "stride", "size"), SHAPES)
def test_the_edge_is_the_literal_one(channels: int, stride: int, size: int) -> None:
    edge, x = built(AttendedChannels(4), channels, stride), image(channels, size)
    w = 0.3 * torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(0)
    torch.testing.assert_close(edge(x, w, DRAW), literal(edge, x, w, stride, attention_of_adarts(edge)))


@pytest.mark.parametrize(("channels", "stride", "size"), SHAPES)
def test_the_edge_with_alpha_is_the_literal_one(channels: int, stride: int, size: int) -> None:
    """Whatever share of the node an edge has: the attention sees softmax(alpha) alone."""
    edge, x = built(AlphaAttendedChannels(4), channels, stride, TEN_OPS), image(channels, size)
    rng = torch.Generator().manual_seed(2)
    alpha, shares = (
        torch.randn(14, 10, generator=rng, dtype=torch.float64),
        torch.rand(14, 1, generator=rng, dtype=torch.float64),
    )
    assert isinstance(edge, Among)
    first, _ = matrices(edge.attention)  # type: ignore[arg-type]
    with torch.no_grad():
        edge.attention.squeeze.weight[-1] *= -1  # type: ignore[union-attr, operator]
    decided = (
        12 * torch.eye(10, dtype=torch.float64)[torch.arange(14) % 10]
    )  # so that G is diagonal and both signs reach the ReLU
    for own in (alpha, decided):
        weights = own.softmax(-1) * shares
        found = edge.among(x, weights, 3, DRAW)
        torch.testing.assert_close(found, literal(edge, x, weights[3], stride, attention_of_alpha(edge, own)))
    inside = first @ torch.cat([x.flatten(2).mean(-1), x.flatten(2).amax(-1)], dim=1).T
    assert (inside > 0.1).any()
    assert (inside < -0.1).any()


def test_channels_that_are_not_chosen_pass_as_attended(monkeypatch: pytest.MonkeyPatch) -> None:
    """At w = 0 for all but one op that gives zeros: the chosen places are zero, all others are a * x."""
    edge, x = built(AttendedChannels(4), 8, 1, ("none", "skip_connect")), image(8, 6)
    out = edge(x, torch.tensor([1.0, 0.0]), DRAW)
    a = torch.tensor(attention_of_adarts(edge)(x))[:, :, None, None]
    gone = [c for c in range(8) if not out[:, c].any()]
    assert gone == sorted(a.sum(0).flatten().topk(2).indices.tolist())
    others = [c for c in range(8) if c not in gone]
    torch.testing.assert_close(out[:, others], (a * x)[:, others])


def test_an_identity_alone_gives_the_attended_image_back() -> None:
    """Places are kept: no shuffle. The order of the chosen channels makes no difference to an op that keeps them apart."""
    edge, x = built(AttendedChannels(2), 10, 1, ("none", "skip_connect")), image(10, 5)
    out = edge(x, torch.tensor([0.0, 1.0]), DRAW)
    torch.testing.assert_close(out, torch.tensor(attention_of_adarts(edge)(x))[:, :, None, None] * x)


def test_the_derivatives_are_those_of_the_literal_edge() -> None:
    """In x, the op weights, and every weight of the edge, attention included."""
    edge, x = built(AttendedChannels(4), 8, 2), image(8, 6).requires_grad_()
    twin = copy.deepcopy(edge)
    w = torch.full((8,), 0.125, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads = []
    for own, plain in ((edge, False), (twin, True)):
        out = in_place(own, x, w) if plain else own(x, w, DRAW)
        grads.append(torch.autograd.grad((out * direction).sum(), [x, w, *own.parameters()]))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


def in_place(edge: Edge, x: Tensor, w: Tensor) -> Tensor:
    """The same by indexed assignment, torch's adaptive pools, and convolutions written as products."""
    first, second = (m.weight[:, :, 0, 0] for m in edge.attention.modules() if isinstance(m, nn.Conv2d))  # type: ignore[union-attr]
    pools = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
    a = torch.sigmoid(sum(F.relu(p[:, :, 0, 0] @ first.T) @ second.T for p in pools))[:, :, None, None]  # type: ignore[arg-type]
    scaled = a * x
    order = a.sum(0).flatten().argsort(descending=True)[: x.shape[1] // 4]
    mixed = sum(w[o] * op(scaled[:, order]) for o, op in enumerate(edge.ops.values()))
    out = F.max_pool2d(scaled, 2, 2) * w.sum()
    out = out.clone()
    out[:, order] = mixed  # type: ignore[call-overload]
    return out


def test_alpha_is_reached_through_the_attention() -> None:
    """Rows of other edges have a derivative through G: a finite difference agrees."""
    edge, x = built(AlphaAttendedChannels(2), 6, 1, TEN_OPS), image(6, 5)
    assert isinstance(edge, Among)
    alpha = 0.1 * torch.randn(5, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def value(alpha: Tensor) -> Tensor:
        return edge.among(x, alpha.softmax(-1), 0, DRAW).square().sum()

    own = alpha.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(own), own)
    step = torch.zeros_like(alpha)
    step[3, 7] = 1e-6  # edge 3, of which this edge sees nothing but G
    assert grad[3, 7].abs() > 1e-6
    slope = (value(alpha + step) - value(alpha - step)).detach() / 2e-6
    assert float(slope) == pytest.approx(float(grad[3, 7]), rel=1e-4)


def test_a_cell_hands_its_edges_all_op_weights() -> None:
    """Through the whole supernet, and again where cells are computed anew in the backward pass."""
    problem = problem_of("nb201")
    state = begin(problem, alpha_adarts(2))
    x = image(problem.space.inputs, 8)
    weights = state.op_weights(state.alpha, state.draw("alpha"))
    grads = []
    for recompute in (False, True):
        state.supernet.recompute = recompute
        out, _ = state.supernet(x, weights, state.draw("alpha"))
        grads.append(torch.autograd.grad(out.square().sum(), list(state.alpha.values()), retain_graph=True))
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)
    cell = next(iter(state.supernet.body.cells.values()))
    assert isinstance(cell, Cell)
    assert all(isinstance(edge, Among) for edge in cell.edges.values())


def test_inside_of_another_edge_it_is_refused() -> None:
    edge = built(DropPath(AlphaAttendedChannels(2)), 4, 1, TEN_OPS)
    with pytest.raises(UserError, match="whole cell"):
        edge(image(4, 5), torch.full((10,), 0.1), DRAW)
    alone = built(AlphaAttendedChannels(2), 4, 1, DARTS_OPS)
    assert isinstance(alone, Among)
    with pytest.raises(UserError, match="same candidates"):
        alone.among(image(4, 5), torch.full((3, 10), 0.1), 0, DRAW)


def test_shares_of_the_channels() -> None:
    """Rounded down, one at least, two where they are halved; an edge that changes their number has all of them."""
    for channels, K, stride, count in ((16, 4, 1, 4), (18, 4, 2, 4), (3, 4, 1, 1), (3, 4, 2, 2), (5, 1, 1, 5)):
        for edge in (AttendedChannels(K), AlphaAttendedChannels(K)):
            assert built(edge, channels, stride).choose.count == count
    with pytest.raises(UserError, match="K=0"):
        built(AttendedChannels(0), 4, 1)
    assert whole(AttendedChannels(2)) == whole(PartialChannels(2)) == WeightedSum()


def test_where_alpha_starts() -> None:
    """5e-4 N(0, 1), and the column of 5x5 separable convolutions at 1e-3; beta at 1e-3 N(0, 1)."""
    group = Group("g", tuple((0, t) for t in range(1, 3001)), (TEN_OPS,) * 3000)
    start = Favouring().init(group, torch.Generator().manual_seed(0))["g/alpha"]
    assert (start[:, 7] == 1e-3).all()
    others = torch.cat([start[:, :7], start[:, 8:]], dim=1)
    assert float(others.std()) == pytest.approx(5e-4, rel=0.02)
    assert abs(float(others.mean())) < 2e-5
    relaxation = alpha_adarts().relaxation
    assert relaxation == EdgeNormalised(Favouring(), 1e-3)
    plain = NB201Space().groups[0]  # has none of them
    assert float(Favouring().init(plain, torch.Generator().manual_seed(0))[f"{plain.name}/alpha"].std()) > 0


def test_ten_operations_in_the_darts_space() -> None:
    plan = resolve(Request("alpha_adarts", space="darts", data=tiny_data(count=4)))
    assert [set(group.ops) for group in plan.space.groups] == [{TEN_OPS}, {TEN_OPS}]
    assert adarts().space == {}
    assert alpha_adarts().edge == AlphaAttendedChannels() == AlphaAttendedChannels(4)


def test_the_published_cell_has_the_published_parameters() -> None:
    """3.286 M with 10 classes and 3.338 M with 100, the auxiliary head left out of neither (its logs)."""
    genotype = Genotype.parse(zoo.cell("alpha-adarts") or "", "darts")
    for classes, told in ((10, 3.286), (100, 3.338)):
        space = DartsSpace(outputs=classes, channels=36, cells=20)
        count = sum(p.numel() for p in space.network(genotype).parameters()) / 1e6
        assert count == pytest.approx(told, rel=0.005)
