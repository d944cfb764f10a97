"""The grid space: its graph by enumeration, its sizes as the notes give them, a network that computes what the supernet computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Batch, Draw, counted
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.report.draw import draw, draw_text
from oche.search.relaxations import Gated, ReluTanhGate, SigmoidGate, SoftmaxGate
from oche.spaces import GridSpace, Supernet
from oche.spaces.blocks import MBConv
from oche.spaces.cost import cost
from oche.spaces.edges import PartialChannels, WeightedSum
from oche.spaces.grid import MBCONVS
from oche.spaces.ops import OPS
from oche.spaces.sampling import sample

DRAW = Draw(seed=5)
SMALL = {
    "channels": 4,
    "layers": 3,
    "levels": 3,
    "ops": ("mbconv_k3_e3", "skip_connect"),
    "size": (16, 24),
    "outputs": 5,
}


def small(**changes: object) -> GridSpace:
    return GridSpace(**{**SMALL, **changes})  # type: ignore[arg-type]


def weights(space: GridSpace, seed: int = 1) -> Tensor:
    """(E, O): a gate's none is 0, all else random."""
    (group,) = space.groups
    w = torch.rand(len(group.edges), group.width, generator=counted(seed)).to(torch.get_default_dtype()) * group.valid()
    gates = torch.tensor([ops == ("none", "connect") for ops in group.ops])
    w[:, 0].masked_fill_(gates, 0.0)
    return w


# ---------------------------------------------------------------------- the graph


@pytest.mark.parametrize(("layers", "nodes", "edges"), [(10, 37, 85), (12, 45, 105), (14, 53, 125)])
def test_nodes_and_edges_of_the_table(layers: int, nodes: int, edges: int) -> None:
    found = GridSpace(layers=layers).nodes()
    assert (len(found), sum(len(node.sources) for node in found)) == (nodes, edges)


@pytest.mark.parametrize(("layers", "levels", "reach"), [(1, 4, 1), (3, 4, 1), (5, 3, 1), (6, 4, 3), (4, 1, 2)])
def test_the_edges_are_the_pairs_that_the_rule_allows(layers: int, levels: int, reach: int) -> None:
    """Every pair of places on the grid is looked at: neighbours in stride from the layer before, the own stride from further back."""
    space = GridSpace(layers=layers, levels=levels, reach=reach)
    places = [(0, 4)] + [(i, 4 * 2**k) for i in range(1, layers + 1) for k in range(levels) if 4 * 2**k <= 4 * 2**i]
    nodes = [(0, 4)] + [(node.layer, 4 * 2**node.level) for node in space.nodes()]
    assert sorted(nodes) == sorted(places)
    allowed = {
        (a, b)
        for a, b in itertools.product(places, places)
        if (b[0] - a[0] == 1 and b[1] / a[1] in (0.5, 1, 2)) or (1 < b[0] - a[0] <= reach and a[1] == b[1])
    }
    got = [(nodes[s], nodes[n]) for n, node in enumerate(space.nodes(), 1) for s in node.sources]
    assert set(got) == allowed
    assert len(got) == len(allowed)


def test_what_flows_is_found_by_walking_all_paths() -> None:
    space, rng = small(layers=4), torch.Generator().manual_seed(2)
    (group,), nodes = space.groups, space.nodes()
    ends = {2 * n for n, node in enumerate(nodes, 1) if node.layer == 4}
    seen = set()
    for _ in range(60):
        edges = [edge for edge in group.edges if float(torch.rand((), generator=rng)) < 0.6]

        def paths(state: int, way: tuple[int, ...], edges: list[tuple[int, int]] = edges) -> Iterator[tuple[int, ...]]:
            if state in ends:
                yield way
            for source, target in edges:
                if source == state:
                    yield from paths(target, (*way, target))

        wanted = {state // 2 for way in paths(0, ()) for state in way if state % 2 == 0}
        assert space.used(edges) == wanted
        seen.add(frozenset(wanted))
    assert frozenset() in seen
    assert len(seen) > 10


# ---------------------------------------------------------------------- sizes


TABLE = (  # single-stage notes, section 2.3: layers, channels, ops, image, parameters (M), multiply-adds (G)
    (10, 16, MBCONVS, (1024, 2048), 11.9, 97.6),
    (12, 32, MBCONVS, (1024, 2048), 54.6, 405),
    (12, 32, MBCONVS, (512, 1024), 54.6, 101),
    (14, 32, MBCONVS, (1024, 2048), 65.1, 477),
    (14, 64, MBCONVS, (1024, 2048), 250, 1745),
    (14, 32, ("mbconv_k5_e6",), (1024, 2048), 16.0, 113),
    (14, 32, ("mbconv_k3_e3",), (1024, 2048), 8.7, 57),
    (8, 16, ("mbconv_k3_e3", "mbconv_k3_e6", "mbconv_k5_e3", "mbconv_k5_e6"), (352, 480), 5.8, 3.7),
)


def measured(space: GridSpace) -> tuple[int, int, int]:
    """Counts over the supernet's nodes: convolutions' parameters, all parameters, multiply-adds of the convolutions, by hooks."""
    with torch.device("meta"):
        supernet, images = space.supernet(WeightedSum(), affine=True), torch.zeros(1, 3, *space.size)
        op_weights = space.spread({"grid": torch.zeros(len(space.groups[0].edges), space.groups[0].width)})
    adds = []
    for module in supernet.body.cells.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, _, out: adds.append(out.numel() * m.weight[0].numel()))
    supernet(images, op_weights, DRAW)
    own = list(supernet.body.cells.parameters())
    return sum(p.numel() for p in own if p.ndim == 4), sum(p.numel() for p in own), sum(adds)


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, (*row[:2], len(row[2]), *row[3]))))
def test_supernets_are_as_large_as_the_table_says(
    row: tuple[int, int, tuple[str, ...], tuple[int, int], float, float],
) -> None:
    """Convolutions within 5 %; with batch norms, and without stem and head, the rounded figure itself."""
    layers, channels, ops, size, parameters, adds = row
    space = GridSpace(layers=layers, channels=channels, ops=ops, size=size, outputs=19)
    convolutions, everything, multiply_adds = measured(space)
    assert convolutions / 1e6 == pytest.approx(parameters, rel=0.05)
    assert everything / 1e6 == pytest.approx(parameters, rel=0.005)
    assert multiply_adds / 1e9 == pytest.approx(adds, rel=0.01)


def test_a_small_supernet_has_the_parameters_of_the_formula() -> None:
    """2 e C^2 + e C k^2 an operation, C C' an alignment: counted node by node."""
    space = small(layers=3, ops=MBCONVS)
    wanted = 0
    for node in space.nodes():
        c = 4 * 2**node.level
        wanted += sum(2 * e * c * c + e * c * k * k for k in (3, 5, 7) for e in (3, 6))
        levels = [0 if s == 0 else space.nodes()[s - 1].level for s in node.sources]
        wanted += sum(c * 4 * 2**level for level in levels)
    assert measured(space)[0] == wanted


# ---------------------------------------------------------------------- what is computed


def literal(space: GridSpace, supernet: Supernet, x: Tensor, w: Tensor) -> Tensor:
    """The formulas of section 1.2, state by state, on the supernet's own modules."""
    (group,), body = space.groups, supernet.body
    multiple = 4 * 2**space.coarsest
    padded = F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple))
    assert isinstance(body.stem, nn.Module)
    y = {0: body.stem(padded)}
    for n, node in enumerate(space.nodes(), 1):
        cell = body.cells[node.name]
        total = torch.zeros(())
        for i, s in enumerate(node.sources):
            gate = w[group.edges.index((2 * s, 2 * n - 1)), 1]
            conv, norm, *up = cell.entries[i]  # type: ignore[index,union-attr]
            aligned = norm(conv(y[s]))
            if up:
                aligned = F.interpolate(aligned, scale_factor=2, mode="bilinear", align_corners=False)
            total = total + gate * aligned
        a = w[group.edges.index((2 * n - 1, 2 * n))]
        ops = cell.edges[f"{len(node.sources)}-{len(node.sources) + 1}"].ops  # type: ignore[index,union-attr]
        y[n] = sum((a[o] * ops[name](total) for o, name in enumerate(space.ops)), torch.zeros(()))  # type: ignore[index,operator]
    fine = space.head == "fine"
    head = body.head.coarse if fine else body.head  # type: ignore[union-attr]
    down: Tensor | None = None
    for n, node in reversed(list(enumerate(space.nodes(), 1))):
        if node.layer == space.layers:
            own = head.laterals[str(node.level)](y[n])  # type: ignore[index,union-attr,operator]
            down = (
                own if down is None else own + F.interpolate(down, scale_factor=2, mode="bilinear", align_corners=False)
            )
    logits = F.interpolate(head.classifier(down), scale_factor=4, mode="bilinear", align_corners=False)  # type: ignore[union-attr,operator]
    if fine:
        convolution, norm, _ = body.head.detail  # type: ignore[union-attr,misc]
        edges = norm(F.conv2d(padded, convolution.weight, padding=1)).relu()  # type: ignore[has-type]
        logits = body.head.classifier(body.head.join(torch.cat([logits, edges], 1)))  # type: ignore[union-attr,operator]
    return logits[:, :, : x.shape[2], : x.shape[3]]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("size", "reach", "head"),
    [((16, 24), 1, "topdown"), ((13, 21), 1, "topdown"), ((16, 24), 2, "topdown"), ((13, 21), 1, "fine")],
)
def test_the_supernet_is_the_sum_of_the_formula(size: tuple[int, int], reach: int, head: str) -> None:
    space = small(size=size, reach=reach, head=head)
    supernet, w, x = space.supernet(WeightedSum(), affine=True), weights(space), torch.randn(3, 3, *size)
    out, observed = supernet(x, space.spread({"grid": w}), DRAW)
    assert out.shape == (3, 5, *size)
    assert observed.keys() == {node.name for node in space.nodes()}
    torch.testing.assert_close(out, literal(space, supernet, x, w))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("se", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_mbconv_is_an_inverted_bottleneck(se: bool, stride: int) -> None:
    op = OPS["mbconv_k5_e3" + "_se" * se](8, stride, True)
    assert isinstance(op, MBConv)
    x = torch.randn(2, 8, 7, 9)
    expand, norm1, _, depth, norm2, _, squeeze, project, norm3 = op.layers
    h = F.relu6(norm1(F.conv2d(x, expand.weight)))
    h = F.relu6(norm2(F.conv2d(h, depth.weight, stride=stride, padding=2, groups=24)))
    if se:
        mean = h.mean((2, 3))
        inner = F.relu(mean @ squeeze.squeeze.weight[:, :, 0, 0].T + squeeze.squeeze.bias)
        h = h * torch.sigmoid(inner @ squeeze.excite.weight[:, :, 0, 0].T + squeeze.excite.bias)[:, :, None, None]
    h = norm3(F.conv2d(h, project.weight))
    torch.testing.assert_close(op(x), x + h if stride == 1 else h)


def soft(space: GridSpace, w: Tensor, threshold: float = 0.0) -> Genotype:
    """All candidates of more than the threshold, with their weights as coefficients."""
    (group,) = space.groups
    choices = [
        Choice(*edge, op, float(w[e, o]))
        for e, edge in enumerate(group.edges)
        for o, op in enumerate(group.ops[e])
        if w[e, o] > threshold
    ]
    return Genotype("grid", {"grid": tuple(choices)})


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_a_soft_network_is_the_masked_supernet(threshold: float) -> None:
    """With the supernet's weights and batch statistics, what falls below the threshold being zero: gates, operations, whole nodes."""
    space, x = small(layers=4), torch.randn(4, 3, 16, 24)
    supernet, w = space.supernet(WeightedSum(), affine=True), weights(space)
    genotype = Genotype.from_json(soft(space, w, threshold).to_json())
    network = space.network(genotype)
    space.inherit(network, dict(supernet.named_parameters()), [Batch(x, torch.zeros(0))])
    network.train()
    kept = w.float().double() * (w > threshold)  # coefficients are kept in single precision
    if threshold:
        assert len(network.body.cells) < len(space.nodes()) or threshold < 0.5
    wanted, _ = supernet(x, space.spread({"grid": kept}), DRAW)
    torch.testing.assert_close(network.double()(x), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_a_discrete_network_is_the_one_hot_supernet() -> None:
    space, x = small(layers=4), torch.randn(4, 3, 16, 24)
    (group,) = space.groups
    supernet = space.supernet(WeightedSum(), affine=True)
    for seed in range(3):
        genotype = sample(space, counted(seed))
        assert genotype.discrete
        assert genotype.connected
        network = space.network(genotype)
        space.inherit(network, dict(supernet.named_parameters()), [Batch(x, torch.zeros(0))])
        w = torch.zeros(len(group.edges), group.width)
        for c in genotype.groups["grid"]:
            e = group.edges.index((c.source, c.target))
            w[e, group.ops[e].index(c.op)] = 1
        torch.testing.assert_close(network.train()(x), supernet(x, space.spread({"grid": w}), DRAW)[0])


def test_a_single_path_is_a_chain_and_costs_a_chain() -> None:
    """Only the nodes on the path are built; a prediction does not depend on the batch it comes in."""
    space = small(layers=3)
    names = {(node.layer, node.level): n for n, node in enumerate(space.nodes(), 1)}
    path = [0, names[1, 1], names[2, 1], names[3, 0]]
    gates = [Choice(2 * s, 2 * n - 1, "connect") for s, n in itertools.pairwise(path)]
    ops = [Choice(2 * n - 1, 2 * n, "mbconv_k3_e3") for n in path[1:]]
    genotype = Genotype("grid", {"grid": (*gates, *ops)})
    network = space.network(genotype).eval()
    assert list(network.body.cells) == ["layer1_stride8", "layer2_stride8", "layer3_stride4"]
    x = torch.randn(3, 3, 16, 24)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-5, rtol=1e-5)
    assert cost(space, genotype).parameters == sum(p.numel() for p in network.parameters())
    closed = Genotype("grid", {"grid": (*gates[:-1], replace(gates[-1], op="none"), *ops)})
    with pytest.raises(UserError, match="No path"):
        space.network(closed)
    with pytest.raises(UserError, match="No path"):
        space.network(Genotype("grid", {"grid": tuple(gates)}))


# ---------------------------------------------------------------------- memory


@pytest.mark.usefixtures("float64")
def test_checkpointing_changes_neither_outputs_nor_gradients_but_what_is_kept() -> None:
    x, kept, results = torch.randn(2, 3, 16, 24), {}, {}
    for on in (False, True):
        space = small(checkpoint=on, head="topdown")
        torch.manual_seed(0)
        supernet = space.supernet(WeightedSum(), affine=True)
        theta = {name: p.detach().requires_grad_() for name, p in supernet.named_parameters()}
        w = weights(space).requires_grad_()
        count = [0]

        def pack(t: Tensor, count: list[int] = count) -> Tensor:
            count[0] += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out, _ = torch.func.functional_call(supernet, theta, (x, space.spread({"grid": w}), DRAW))
        kept[on] = count[0]
        results[on] = [out, *torch.autograd.grad(out.square().sum(), [w, *theta.values()], allow_unused=True)]
    for plain, again in zip(results[False], results[True], strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(plain, again)
    assert kept[True] < kept[False] / 3


def test_path_sampling_draws_by_the_draw_and_uses_all_in_evaluation() -> None:
    space, x = small(layers=4, paths=0.5), torch.randn(2, 3, 16, 24)
    supernet = space.supernet(WeightedSum(), affine=True)
    (group,) = space.groups
    w = weights(space)
    op_weights = space.spread({"grid": w})
    drawn = set()
    for step in range(12):
        at = Draw(3, step, "weight")
        out, _ = supernet(x, op_weights, at)
        assert torch.equal(out, supernet(x, op_weights, at)[0])
        cells = {name: cell._drawn(at) for name, cell in supernet.body.cells.items()}  # type: ignore[union-attr,operator]
        thinned = w.clone()
        for n, node in enumerate(space.nodes(), 1):
            count = len(node.sources)
            assert len(cells[node.name]) == max(1, round(count / 2))
            for i, s in enumerate(node.sources):
                thinned[group.edges.index((2 * s, 2 * n - 1))] *= (
                    (i in cells[node.name]) * count / len(cells[node.name])
                )
        whole = small(layers=4).supernet(WeightedSum(), affine=True)
        whole.load_state_dict(supernet.state_dict())
        torch.testing.assert_close(out, whole(x, space.spread({"grid": thinned}), at)[0], atol=1e-5, rtol=1e-4)
        drawn |= set(cells.items())
    assert len(drawn) > len(space.nodes())
    cells = {name: cell._drawn(Draw(3, 1, "eval")) for name, cell in supernet.body.cells.items()}  # type: ignore[union-attr,operator]
    assert all(len(cells[node.name]) == len(node.sources) for node in space.nodes())


def test_partial_channels_leave_the_gates_whole() -> None:
    space = small(channels=8)
    supernet, x = space.supernet(PartialChannels(4), affine=True), torch.randn(2, 3, 16, 24)
    first = supernet.body.cells["layer1_stride4"].edges  # type: ignore[union-attr]
    assert first["1-2"].ops["mbconv_k3_e3"].layers[0].in_channels == 2  # type: ignore[index,union-attr]
    w = weights(space)
    w[0] = 0.0  # the gate from the stem to the first node
    (group,) = space.groups
    assert group.edges[0] == (0, 1)
    _, observed = supernet(x, space.spread({"grid": w}), DRAW)
    _, other = supernet(x + 1 + torch.randn_like(x), space.spread({"grid": w}), DRAW)
    torch.testing.assert_close(observed["layer1_stride4"], other["layer1_stride4"])  # nothing passes by a closed gate


# ---------------------------------------------------------------------- variants, gates, words


@pytest.mark.parametrize(
    "changes", [{"head": "aspp"}, {"head": "fine"}, {"stem": "separable"}, {"levels": 1}, {"ops": ("mbconv_k3_e3_se",)}]
)
def test_variants_segment_any_size(changes: dict[str, object]) -> None:
    space = small(size=(19, 30), **changes)
    out, _ = space.supernet(WeightedSum(), affine=False)(
        torch.randn(2, 3, 19, 30), space.spread({"grid": weights(space)}), DRAW
    )
    assert out.shape == (2, 5, 19, 30)
    assert torch.isfinite(out).all()
    network = space.network(sample(space, counted(1))).eval()
    assert network(torch.randn(1, 3, 40, 24)).shape == (1, 5, 40, 24)


def test_gates_are_their_formulas_on_the_grid() -> None:
    space = small(layers=4)
    (group,) = space.groups
    beta = torch.randn(len(group.edges), generator=counted(4), dtype=torch.float64)
    leaving = {
        s: [e for e, (source, _) in enumerate(group.edges) if source == s and "connect" in group.ops[e]]
        for s, _ in group.edges
    }
    most = max(map(len, leaving.values()))
    for gate, formula in (
        (SigmoidGate(), lambda e: 1 / (1 + (-beta[e]).exp())),
        (ReluTanhGate(0.5), lambda e: max(torch.tensor(0.0), torch.tanh(beta[e] + 0.5))),
        (
            SoftmaxGate(),
            lambda e: (
                beta[e].exp() / beta[leaving[group.edges[e][0]]].exp().sum() * len(leaving[group.edges[e][0]]) / most
            ),
        ),
    ):
        relaxation = Gated(gate=gate)
        alpha = {"grid/alpha": torch.randn(len(group.edges), group.width, dtype=torch.float64), "grid/beta": beta}
        w = relaxation(alpha, group, DRAW)
        for e, ops in enumerate(group.ops):
            if "connect" in ops:
                b = float(formula(e))
                assert w[e, :2].tolist() == pytest.approx([1 - b, b], abs=1e-12)
                assert not w[e, 2:].any()
            else:
                torch.testing.assert_close(w[e], alpha["grid/alpha"][e].softmax(-1))
    assert most == 3
    fresh = Gated().init(group, counted(0))
    opened = Gated()(fresh, group, DRAW)[torch.tensor(["connect" in ops for ops in group.ops]), 1]
    torch.testing.assert_close(opened, torch.full_like(opened, 0.5), atol=2e-3, rtol=0)


def test_a_genotype_of_a_grid_is_drawn() -> None:
    genotype = sample(small(), counted(1))
    assert draw_text(genotype).startswith("grid\n  1 <- connect(0)")
    assert draw(genotype).startswith(b"<?xml")


@pytest.mark.parametrize(
    "wrong", [{"layers": 0}, {"paths": 0.0}, {"sharing": "cell"}, {"ops": ("mbconv_k9_e3",)}, {"ops": ()}]
)
def test_impossible_grids_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        small(**wrong)


def test_padding_is_said() -> None:
    assert small(size=(16, 32)).notes() == ()
    assert "padded to 32x32" in small(size=(17, 30)).notes()[0]


def test_an_exported_grid_takes_more_than_one_pixel_at_its_coarsest_stride() -> None:
    assert GridSpace(outputs=2, size=(40, 80), levels=3).least_side() == 17
    assert GridSpace(outputs=2, size=(16, 80), levels=3).least_side() is None
    assert GridSpace(outputs=2, size=(40, 80), levels=4, layers=1).least_side() == 9
