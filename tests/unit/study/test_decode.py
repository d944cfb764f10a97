"""Decodings against a literal enumeration on a tiny grid, and in cells."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from oche.base import Draw, Group
from oche.errors import UserError
from oche.search.relaxations import Gated, Softmax, SoftmaxGate, openings
from oche.spaces import GridSpace, NB201Space
from oche.study.decode import Best, Decoding, best_path, decoding

SPACE = GridSpace(
    inputs=1, outputs=3, size=(16, 16), channels=4, layers=3, levels=2, ops=("mbconv_k3_e3", "skip_connect")
)
(GROUP,) = SPACE.groups
GATES = [e for e, ops in enumerate(GROUP.ops) if "connect" in ops]
OPS = [e for e in range(len(GROUP.edges)) if e not in GATES]


def weights(seed: int = 0) -> Tensor:
    """(E, O) of random gates and operations."""
    relaxation, rng = Gated(Softmax(scale=1.0), scale=1.0), torch.Generator().manual_seed(seed)
    return relaxation(relaxation.init(GROUP, rng), GROUP, Draw(0))


def open_gates(w: Tensor) -> set[int]:
    return {e for e in GATES if w[e, 1] > 0}


def test_the_strongest_operation_has_coefficient_one_or_its_own_and_gates_stay() -> None:
    w = weights()
    plain, kept = decoding("op")(w, GROUP), decoding("op_kept")(w, GROUP)
    for e in OPS:
        best = max(range(2), key=lambda o: float(w[e, o]))
        assert plain[e].tolist() == [float(o == best) for o in range(2)]
        assert kept[e].tolist() == [float(w[e, o]) * (o == best) for o in range(2)]
    assert torch.equal(plain[GATES], w[GATES])
    assert torch.equal(kept[GATES], w[GATES])


def test_a_threshold_closes_what_is_below_it_and_keeps_the_rest_with_its_b() -> None:
    w = weights()
    before = set(GATES)
    for k in range(19):
        tau = k / 20
        after = decoding(f"edge@{tau}")(w, GROUP)
        there = open_gates(after)
        assert there == {e for e in GATES if float(w[e, 1]) >= tau}
        assert there <= before  # the higher, the fewer
        assert all(torch.equal(after[e], w[e] if e in there else torch.tensor([1.0, 0.0])) for e in GATES)
        assert torch.equal(after[OPS], w[OPS])
        before = there
    assert before != set(GATES)


@pytest.mark.parametrize("count", [1, 2])
def test_each_node_keeps_its_strongest_inputs(count: int) -> None:
    w = weights(1)
    there = open_gates(Best(count)(w, GROUP))
    for target in {GROUP.edges[e][1] for e in GATES}:
        mine = [e for e in GATES if GROUP.edges[e][1] == target]
        kept = sorted(e for e in mine if e in there)
        assert kept == sorted(sorted(mine, key=lambda e: -float(w[e, 1]))[:count])


def paths() -> list[tuple[int, ...]]:
    """Every way through the grid, gate by gate, tried out: a set of gates that leads from the stem to the last layer and nowhere else."""
    nodes = SPACE.nodes()
    found = []
    for levels in product(range(SPACE.levels), repeat=SPACE.layers):
        states, gates = [0], []
        for layer, level in enumerate(levels, start=1):
            number = next((n for n, node in enumerate(nodes, 1) if (node.layer, node.level) == (layer, level)), None)
            if number is None or (2 * states[-1], 2 * number - 1) not in GROUP.edges:
                break
            gates.append(GROUP.edges.index((2 * states[-1], 2 * number - 1)))
            states.append(number)
        else:
            found.append(tuple(gates))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_viterbi_finds_the_path_that_enumeration_finds(seed: int) -> None:
    b = openings(weights(seed), GROUP)
    assert len(paths()) > 4
    best = max(paths(), key=lambda path: float(torch.stack([b[e] for e in path]).double().prod()))
    assert best_path(b, GROUP) == best


def test_the_path_alone_stays_open() -> None:
    w = weights(2)
    assert open_gates(decoding("path")(w, GROUP)) == set(best_path(openings(w, GROUP), GROUP))


def test_the_ramp_goes_from_the_coefficients_to_one_hot_rows() -> None:
    w = weights()
    assert torch.equal(decoding("ramp@0")(w, GROUP), w)
    end = decoding("ramp@1")(w, GROUP)
    assert torch.equal(end[OPS], decoding("op")(w, GROUP)[OPS])
    assert open_gates(end) == open_gates(decoding("edge@0.5")(w, GROUP))
    assert {*end[GATES].flatten().tolist()} == {0.0, 1.0}
    torch.testing.assert_close(decoding("ramp@0.25")(w, GROUP), 0.75 * w + 0.25 * end)


def test_two_decodings_are_one_after_the_other() -> None:
    w = weights()
    both = decoding("op+edge@0.5")(w, GROUP)
    assert torch.equal(both, decoding("edge@0.5")(decoding("op")(w, GROUP), GROUP))
    assert not torch.equal(both, w)


def test_cells_lose_whole_edges_and_choose_none_only_where_they_may_hold_it() -> None:
    ops = ("none", "skip_connect", "nor_conv_3x3")
    w = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.1, 0.7], [0.1, 0.5, 0.4]])
    free = Group("cell", ((0, 2), (1, 2), (1, 3)), (ops,) * 3, None)
    derived = Group("cell", free.edges, free.ops, 1)
    assert decoding("op")(w, free).argmax(-1).tolist() == [0, 2, 1]
    assert decoding("op")(w, derived).argmax(-1).tolist() == [1, 2, 1]
    kept = decoding("best1")(w, free)
    assert kept[0].tolist() == [1.0, 0.0, 0.0]  # 0.3 at most, against 0.7
    assert torch.equal(kept[1:], w[1:])


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", ["opp", "edge", "edge@2", "edge@x", "op@0.5", "op+", ""])
def test_an_unknown_decoding_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match="decoding"):
        decoding(name)


@pytest.mark.parametrize(
    ("name", "space", "relaxation", "says"),
    [
        ("edge@0.5", NB201Space(), Softmax(), "have none"),
        ("op+edge@0.5", NB201Space(), Softmax(), "have none"),
        ("path", NB201Space(), Softmax(), "have none"),
        ("path", SPACE, Gated(), "softmax"),
        ("path", SPACE, Gated(gate=SoftmaxGate()), ""),
        ("best2", NB201Space(), Softmax(), ""),
        ("ramp@0.5", NB201Space(), Softmax(), ""),
    ],
)
def test_what_makes_no_sense_says_why(name: str, space: GridSpace, relaxation: Softmax, says: str) -> None:
    how: Decoding = decoding(name)
    (group,) = space.groups
    reason = how.unfit(group, relaxation)
    assert says in reason if says else not reason
