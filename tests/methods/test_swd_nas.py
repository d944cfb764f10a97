"""SWD-NAS: the edge, its scores and its choice against literal references in float64; and the stages space that it searches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.same import problem_of
from oche.api.terminal import _LINES
from oche.base import Draw, Group
from oche.data import batches, none
from oche.genotype import Choice, Genotype
from oche.methods.swd_nas import ExcitedChannels, swd_nas
from oche.methods.weighing import Measured, OwnWeights, Weigher, log_shares, scores
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.begin import begin
from oche.search.loop import search
from oche.spaces.darts import DARTS_OPS, DartsSpace
from oche.spaces.edges import Edge
from oche.spaces.stages import KINDS, StagesSpace
from reference.tiny import tiny_data

pytestmark = pytest.mark.usefixtures("float64")

DRAW = Draw(0, 0, "weight")


def built(channels: int, stride: int, K: int = 4) -> Edge:
    torch.manual_seed(channels + 100 * stride)
    space = DartsSpace()
    return ExcitedChannels(K)(DARTS_OPS, channels, stride, lambda op, n: space.candidate(op, n, stride, False))


def literal(edge: Any, x: Tensor, stride: int, kept: Tensor) -> Tensor:
    """Step by step, with indexed assignment: attention, choice, outputs side by side, their gates, the sum, the skip."""
    squeeze, excite = (m.weight[:, :, 0, 0] for m in (edge.attention.squeeze, edge.attention.excite))
    a = torch.sigmoid(
        sum((excite @ (squeeze @ p.T).relu()).T for p in (x.flatten(2).mean(-1), x.flatten(2).amax(-1)))  # type: ignore[arg-type]
    )
    attended = a[:, :, None, None] * x
    count = max(stride, x.shape[1] // 4)
    order = a.sum(0).argsort(descending=True)[:count]
    outputs = [op(attended[:, order]) for op in edge.ops.values()]
    side_by_side = torch.cat(outputs, dim=1)
    first, second = edge.weigher.squeeze.weight, edge.weigher.excite.weight
    assert first.shape == (max(1, 8 * count // 8), 8 * count)
    gates = torch.sigmoid(F.linear(F.relu(F.linear(side_by_side.flatten(2).mean(-1), first)), second))
    out = attended.clone() if stride == 1 else F.max_pool2d(attended, 2, 2).clone()
    out[:, order] = 0.0
    for o in range(8):
        if kept[o]:
            out[:, order] += gates[:, o * count : (o + 1) * count, None, None] * outputs[o]
    return out + edge.skip(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (8, 1), (18, 1), (8, 2), (18, 2)])
def test_the_edge_is_the_literal_one(channels: int, stride: int) -> None:
    edge = built(channels, stride)
    x = torch.randn(5, channels, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1], dtype=torch.float64)
    for w in (torch.ones(8, dtype=torch.float64), kept):  # a candidate that was removed adds nothing
        own = literal(edge, x, stride, w)
        torch.testing.assert_close(edge(x, w, DRAW), own)
        parameters = list(edge.parameters())
        direction = torch.randn(own.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for found, expected in zip(
            torch.autograd.grad((edge(x, w, DRAW) * direction).sum(), parameters),
            torch.autograd.grad((own * direction).sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)


def test_the_auxiliary_skip_halves_where_the_edge_does() -> None:
    assert isinstance(built(8, 1).skip, nn.Identity)
    assert sum(p.numel() for p in built(8, 2).skip.parameters()) == 8 * 8  # type: ignore[union-attr]


# ---------------------------------------------------------------------- scores


def test_scores_are_sums_over_images_channels_and_cells() -> None:
    """Against gates that were computed edge by edge from what each edge was given."""
    problem = problem_of("nb201", count=22)
    state = begin(problem, swd_nas(2))
    (group,) = problem.space.groups
    expected = torch.zeros(len(group.edges), group.width, dtype=torch.float64)
    given: list[tuple[int, Any, Tensor]] = []
    hooks = []
    for cell in state.supernet.body.cells.values():
        for e, edge in enumerate(cell.edges.values()):  # type: ignore[union-attr, arg-type]
            hooks.append(edge.weigher.register_forward_pre_hook(lambda m, args, e=e: given.append((e, m, args[0]))))
    weights, draw = state.op_weights(state.alpha, state.draw("eval")), state.draw("eval")
    with torch.no_grad():
        for batch in batches(state.arch_images, problem.batch, none(problem.data), problem.fabric.device):
            state.supernet(batch.images.double(), weights, draw)
    for hook in hooks:
        hook.remove()
    for e, module, outputs in given:
        gates = torch.sigmoid(
            F.linear(F.relu(F.linear(outputs.mean((2, 3)), module.squeeze.weight)), module.excite.weight)
        )
        expected[e] += gates.sum(0).reshape(group.width, -1).sum(1)
    found = scores(state)[group.name]
    torch.testing.assert_close(found, expected)
    again = scores(state)[group.name]
    assert torch.equal(found, again), "no hook is left behind, nothing is trained"


def test_the_choice_is_by_the_measured_scores() -> None:
    problem = problem_of("nb201")
    state = begin(problem, swd_nas(2))
    cell = Measured()(state, problem)
    (group,) = problem.space.groups
    measured = scores(state)[group.name]
    torch.testing.assert_close(state.alpha[f"{group.name}/alpha"].exp(), measured / measured.sum(1, keepdim=True))
    Measured(normalise="softmax")(state, problem)
    torch.testing.assert_close(state.alpha[f"{group.name}/alpha"], measured)
    assert [c.op for c in cell.groups[group.name]] == [
        group.ops[0][int(o)] for o in (measured / measured.sum(1, keepdim=True)).argmax(1)
    ]


def test_shares_and_the_code_s_softmax() -> None:
    """Two edges into a node: by shares the decided one wins; by a softmax of sums in the hundreds both are 1, and the first stays."""
    group = Group("g", ((0, 2), (1, 2)), (("a", "b", "c"),) * 2)
    rows = torch.tensor([[300.0, 280.0, 290.0], [500.0, 100.0, 120.0]])
    alpha = {"g/alpha": log_shares(rows)}
    share, code = (OwnWeights().strength({"g/alpha": kept}, group, DRAW) for kept in (log_shares(rows), rows))
    torch.testing.assert_close(
        share, torch.tensor([[300 / 870, 280 / 870, 290 / 870], [500 / 720, 100 / 720, 120 / 720]])
    )
    far = {"g/alpha": torch.tensor([[700.0, 600.0, 500.0], [900.0, 10.0, 10.0]])}
    assert OwnWeights().strength(far, group, DRAW).max(1).values.tolist() == [1.0, 1.0]
    torch.testing.assert_close(code[0], rows[0].softmax(0))
    mask = replace(DRAW, mask={"g": torch.tensor([[True, True, False], [True, True, True]])})
    torch.testing.assert_close(OwnWeights().strength(alpha, group, mask)[0], torch.tensor([300 / 580, 280 / 580, 0.0]))
    assert OwnWeights()(alpha, group, mask).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_candidate_without_a_score_has_no_share() -> None:
    """A removed one gives 0 to every image; the cells that a small network has none of give 0 to all."""
    found = log_shares(torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    assert found[0].tolist() == pytest.approx([math.log(0.75), math.log(1e-30), math.log(0.25)], rel=1e-12)
    assert found.isfinite().all()
    torch.testing.assert_close(found[1].softmax(0), torch.full((3,), 1 / 3))


def test_what_has_moved_is_the_shares() -> None:
    """Sums over thousands of images are no movement: shares of each edge are, from equal ones at the beginning."""
    found: list[Mapping[str, object]] = []
    problem = problem_of("toy", epochs=1)
    problem = replace(problem, listener=lambda event, record: found.append(record) if event == "supernet" else None)
    state = search(problem, swd_nas(2)).state
    off = []
    for group in problem.space.groups:
        own = scores(state)[group.name]
        for e, ops in enumerate(group.ops):
            off += [(float(own[e, o] / own[e].sum()) - 1 / len(ops)) ** 2 for o in range(len(ops))]
    assert "alpha_moved" not in found[0]
    moved = found[0]["strengths_moved"]
    assert moved == pytest.approx(math.sqrt(sum(off) / len(off)), rel=1e-5)
    assert _LINES["supernet"](found[0]).endswith(f"; strengths of operations moved by {moved:.3f} (rms, of 1)")
    assert _LINES["supernet"]({**found[0], "strengths_moved": 0.0}).endswith(")"), "a search of shared weights has none"
    assert "; alpha moved by 0.500 (rms)" in _LINES["supernet"]({**found[0], "alpha_moved": 0.5})


def test_nothing_but_weights_is_stepped_and_scores_are_in_the_trajectory() -> None:
    result = search(problem_of("toy", epochs=2), swd_nas(2))
    state = result.state
    assert not state.arch_optimizer.state
    for name, rows in state.trajectory.items():
        assert len(rows) == 3
        assert set(rows[0].flatten().tolist()) == {0.0}
        assert not torch.equal(rows[1], rows[2])
        torch.testing.assert_close(state.alpha[name], log_shares(scores(state)[name.split("/")[0]]))


def test_a_sixteenth_of_the_channels() -> None:
    assert swd_nas().edge == ExcitedChannels() == ExcitedChannels(16)
    assert built(64, 1, 16).choose.count == 4


def test_every_edge_has_one_weigher() -> None:
    state = begin(problem_of("stages"), swd_nas())
    for cell in state.supernet.body.cells.values():
        for edge in cell.edges.values():  # type: ignore[union-attr]
            assert sum(isinstance(m, Weigher) for m in edge.modules()) == 1


# ---------------------------------------------------------------------- the space

PUBLISHED = """
normal_1: skip_connect 0, sep_conv_5x5 1 | max_pool_3x3 0, dil_conv_3x3 1 | sep_conv_3x3 0, dil_conv_5x5 1 | sep_conv_5x5 0, avg_pool_3x3 1
reduce_1: dil_conv_3x3 0, dil_conv_3x3 1 | max_pool_3x3 0, sep_conv_5x5 1 | dil_conv_3x3 1, sep_conv_5x5 3 | sep_conv_5x5 0, skip_connect 1
normal_2: skip_connect 0, sep_conv_3x3 1 | avg_pool_3x3 0, sep_conv_3x3 2 | sep_conv_5x5 0, sep_conv_3x3 1 | avg_pool_3x3 0, skip_connect 1
reduce_2: avg_pool_3x3 0, sep_conv_3x3 1 | skip_connect 0, avg_pool_3x3 1 | dil_conv_3x3 0, dil_conv_3x3 1 | sep_conv_3x3 0, dil_conv_5x5 1
normal_3: sep_conv_3x3 0, sep_conv_5x5 1 | skip_connect 0, skip_connect 1 | sep_conv_5x5 0, dil_conv_5x5 1 | dil_conv_5x5 0, max_pool_3x3 1
"""
"""The five cells of its genotypes.py @ c1c46f8, node by node: operation and input."""


def published() -> Genotype:
    groups = {}
    for line in PUBLISHED.strip().splitlines():
        kind, nodes = line.split(": ")
        groups[kind] = tuple(
            Choice(int(source), 2 + n, op)
            for n, node in enumerate(nodes.split(" | "))
            for op, source in (choice.split() for choice in node.split(", "))
        )
    return Genotype("stages", groups)


def test_the_published_cells_make_the_published_network() -> None:
    """Its model.py makes 3,169,198 parameters of them (20 cells, 36 channels, without the auxiliary head), 3,645,624 with it."""
    genotype = published()
    assert sum(c.source < 2 for choices in genotype.groups.values() for c in choices) == 38
    space = StagesSpace(channels=36, cells=20)
    network = space.network(genotype, auxiliary=True)
    assert sum(p.numel() for p in network.parameters()) == 3_645_624
    assert sum(p.numel() for n, p in network.named_parameters() if not n.startswith("auxiliary")) == 3_169_198


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 8, 20])
def test_where_the_five_kinds_lie(cells: int) -> None:
    space = StagesSpace(cells=cells)
    at = {name: group.name for group in space.groups for name in group.cells}
    assert len(at) == cells
    kinds = [at[f"cell_{i}"] for i in range(cells)]
    assert [kind.startswith("reduce") for kind in kinds] == [i in space.reductions for i in range(cells)]
    stages = [KINDS.index(kind) for kind in kinds]
    assert stages == sorted(stages)
    if cells >= 5:
        assert set(stages) == set(range(5))
        assert space.notes() == DartsSpace(cells=cells).notes()
    else:
        assert "not searched" in space.notes()[0]


def test_a_cell_is_read_back_and_built_at_another_depth() -> None:
    genotype = published()
    assert Genotype.from_json(genotype.to_json()) == genotype
    for cells in (5, 8):
        space = StagesSpace(channels=4, cells=cells, size=(16, 16))
        assert space.network(genotype)(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_the_budget_of_the_paper_searches_five_architectures() -> None:
    plan = resolve(Request("swd_nas", space="stages", data=tiny_data(count=4), budget="paper"))
    assert [group.name for group in plan.space.groups] == list(KINDS)
    assert [group.cells for group in plan.space.groups] == [(f"cell_{i}",) for i in range(5)]
