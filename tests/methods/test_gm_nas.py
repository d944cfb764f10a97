"""GM-NAS: which operations part, which edge is split, and what each supernet of the tree begins with."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.registry import SMALL
from contracts.test_resume import content, run_with_kills
from oche.base import Draw
from oche.data import ImageSet
from oche.errors import UserError
from oche.methods import method_named
from oche.methods.gm_nas import (
    INNER,
    Divide,
    Halving,
    Score,
    Split,
    best_child,
    dissimilarity,
    gm_nas,
    half,
    inherit,
    is_shared,
    partition,
    unsplit,
)
from oche.run import Run
from oche.search.begin import begin, streams
from oche.search.loop import advance
from oche.search.method import Method
from oche.search.searcher import as_searcher
from oche.search.stages import Stage, Staged, entered
from oche.search.state import SearchState
from reference.tiny import tiny_problem


def planted(small: tuple[int, ...], n: int, size: int = 50) -> Tensor:
    """(n, n) distances of gradients in two clusters, the smaller one at `small`."""
    rng = torch.Generator().manual_seed(n + sum(small))
    centres = torch.randn(2, size, generator=rng)
    rows = torch.stack([centres[int(o in small)] for o in range(n)])
    scale = torch.rand(n, 1, generator=rng) * 10 + 0.1  # lengths do not count
    return dissimilarity(scale * (rows + 0.3 * torch.randn(n, size, generator=rng)))


# ------------------------------------------------------------------ score and partition


@pytest.mark.parametrize(("small", "n"), [((1, 3), 5), ((0, 4), 5), ((2, 6), 7), ((0, 3, 5), 7), ((1,), 2), ((2,), 3)])
def test_planted_clusters_are_found(small: tuple[int, ...], n: int) -> None:
    part, _, _ = partition(planted(small, n))
    assert part in (small, tuple(o for o in range(n) if o not in small))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7])
def test_it_is_the_least_within_of_all_allowed_and_cut_and_within_are_the_total(n: int) -> None:
    rng = torch.Generator().manual_seed(n)
    d = torch.rand(n, n, generator=rng).double()
    d = (d + d.T).fill_diagonal_(0.7)  # an operation's distance to itself has no part in it
    part, cut, within = partition(d)
    sides = [[o in part for o in range(n)]]
    allowed = (1, n - 1) if n < 4 else range(2, n - 1)
    sides += [list(bits) for bits in itertools.product([False, True], repeat=n) if sum(bits) in allowed]

    assert len(part) <= n // 2

    def between(side: list[bool], same: bool) -> float:
        pairs = itertools.combinations(range(n), 2)
        return sum(float(d[i, j]) for i, j in pairs if (side[i] == side[j]) == same)

    assert within == pytest.approx(between(sides[0], True))
    assert cut == pytest.approx(between(sides[0], False))
    assert cut + within == pytest.approx(float(d.sum() - d.diagonal().sum()) / 2)
    assert within == pytest.approx(min(between(side, True) for side in sides[1:]))


def test_dissimilarity_is_one_minus_the_cosine_and_one_of_a_zero() -> None:
    g = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).double()
    g[2] = 0.0
    d = dissimilarity(g)
    for i, j in itertools.product([0, 1, 3], repeat=2):
        assert float(d[i, j]) == pytest.approx(1 - float(F.cosine_similarity(g[i], g[j], dim=0)), abs=1e-7)
    assert (d[2] == 1).all()
    assert (d[:, 2] == 1).all()


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("inner", ["darts", "pcdarts", "gdas"])
def test_distances_are_those_of_gradients_taken_one_by_one(inner: str, by_weight: bool) -> None:
    problem = tiny_problem("nb201", seed=1, **SMALL["nb201"])  # type: ignore[arg-type]
    method = INNER[inner]()
    state = begin(problem, method)
    state.step = 5
    group, e = state.space.groups[0], 1
    plan = Split(batches=2, by_weight=by_weight)
    found = Divide(method, plan).distances(state, group, e)
    stream, total = streams(problem, method)[0], torch.zeros(5, 5)
    for i in (5, 6):
        weights = state.op_weights(state.alpha, Draw(problem.seed, i, "weight", state.progress, {}))
        rows = []
        for o in range(5):
            once = {}
            for cell, w in weights.items():
                once[cell] = w.detach().clone()
                share = (
                    state.alpha["cell/beta"][1:3].softmax(0)[0] if inner == "pcdarts" else 1.0
                )  # edges 1 and 2 into node 2
                once[cell][e] = 0.0
                once[cell][e, o] = share * (state.alpha["cell/alpha"][e].softmax(0)[o] if by_weight else 1.0)
            outputs, _ = state.supernet(stream.at(i).images, once, Draw(problem.seed, i, "weight", state.progress, {}))
            state.supernet.zero_grad()
            F.cross_entropy(outputs, stream.at(i).targets).backward()
            own = ".edges.0-2."
            named = [
                (n, p)
                for n, p in state.supernet.named_parameters()
                if (".edges." in n and own not in n) or "reductions" in n
            ]
            assert [n for n, _ in named] == [n for n in state.theta if is_shared(n, group, e)]
            rows.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for _, p in named]))
        total += (1 - F.cosine_similarity(torch.stack(rows)[:, None], torch.stack(rows)[None], dim=-1)) / 2
    assert float(total.max()) > 0.01
    torch.testing.assert_close(found, total, atol=1e-4, rtol=0)


# ------------------------------------------------------------------ the tree


def grown(searcher: Staged, space: str, epochs: int) -> tuple[list[Stage], list[SearchState], list[SearchState]]:
    """The stages, their states as they begin, and as they end."""
    problem = tiny_problem(space, epochs=epochs, count=16, **SMALL[space])  # type: ignore[arg-type]
    stages: list[Stage] = []
    entries: list[SearchState] = []
    ended: list[SearchState] = []
    while stage := searcher.stages(problem, searcher.method, tuple(ended)):
        stages.append(stage)
        entries.append(entered(problem, stage, tuple(ended)))
        state = entered(problem, stage, tuple(ended))
        advance(state, stage.method)
        ended.append(state)
    return stages, entries, ended


def test_epochs_are_divided_as_published() -> None:
    nb201 = tiny_problem("nb201", epochs=165, **SMALL["nb201"])  # type: ignore[arg-type]
    assert Split(2).shares(nb201) == (2, 15, 30)
    darts = tiny_problem("darts", epochs=134, channels=4, cells=1)
    assert Split(3, 2 / 15).shares(darts) == (3, 2, 15)
    for epochs in (3, 7, 20, 40):
        splits, warm, final = Split(2).shares(replace(nb201, epochs=epochs))
        assert warm * (2**splits - 1) + final * 2**splits <= epochs
        assert splits == (1 if epochs < 7 else 2)
    with pytest.raises(UserError, match="at least 3 epochs"):
        Split(2).shares(replace(nb201, epochs=2))


@pytest.mark.parametrize("edge_score", ["cut_max", "within_min"])
def test_halves_part_their_parent_and_begin_with_its_weights_until_the_last_split(edge_score: str) -> None:
    searcher = gm_nas(edge_score=edge_score)  # type: ignore[arg-type]
    stages, entries, ended = grown(searcher, "toy", 7)
    assert [stage.epochs for stage in stages] == [1] * 7
    (group,) = ended[0].space.groups
    everything = group.valid()
    masks = [stage.mask.get(group.name, everything) for stage in stages]
    for n in range(3):
        left, right = masks[2 * n + 1], masks[2 * n + 2]
        assert not (left & right)[(left != right).any(-1)].any()
        assert torch.equal(left | right, masks[n])
        differ = (left != right).any(-1)
        assert differ.sum() == 1, "one edge is split"
        assert masks[n][differ].all(), "and it had not been before"
        assert left.any(-1).all()
        assert right.any(-1).all()
    for n, (before, after) in enumerate(zip(entries, ended, strict=True)):
        own = dict(before.supernet.named_parameters())
        assert (before.alpha["cell/alpha"] == 0).all() == (n < 3)
        assert torch.equal(before.alpha["cell/alpha"], after.alpha["cell/alpha"]) == (n < 3), "alpha waits for the last"
        if n:
            parent = ended[(n - 1) // 2]
            theirs = dict(parent.supernet.named_parameters())
            assert own.keys() <= theirs.keys(), "candidates that the half lost are not built"
            inherited = [torch.equal(t, theirs[name]) for name, t in own.items() if t.dim() > 1]
            assert all(inherited) if n < 3 else not any(inherited)
            momenta = [key for s in before.weight_optimizer.state.values() for key in s]
            assert bool(momenta) == (n < 3)
    first, second = (dict(entries[n].supernet.named_parameters()) for n in (3, 4))
    assert not torch.equal(first["body.stem.0.weight"], second["body.stem.0.weight"])


def test_the_edge_is_that_of_the_best_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted distances: edge 1's clusters are the most apart, edge 2 has the least within."""
    state = begin(tiny_problem("nb201", **SMALL["nb201"]), gm_nas().method)  # type: ignore[arg-type]

    def distances(self: Divide, state: SearchState, group: object, e: int) -> Tensor:
        d = torch.full((5, 5), 0.5)
        if e == 1:
            d[:2, 2:] = d[2:, :2] = 2.0
        if e == 2:
            d.fill_(0.1)
        return d

    monkeypatch.setattr(Divide, "distances", distances)
    for score, edge in (("cut_max", 1), ("within_min", 2)):
        record: dict[str, object] = {}
        Divide(gm_nas().method, Split(edge_score=score)).on_epoch_end(state, record)  # type: ignore[arg-type]
        left, right = half(state, 0)["cell"], half(state, 1)["cell"]
        assert (left != right).any(-1).nonzero().flatten().tolist() == [edge]
        if edge == 1:
            assert left[1].tolist() == [True, True, False, False, False]
            assert record["split"] == "cell 0-2: none, skip_connect | the rest"
            assert record["split_score"] == pytest.approx(12.0)


def test_an_edge_is_split_once_and_the_first_kind_of_cell_may_be_the_only_one() -> None:
    state = begin(tiny_problem("darts", **SMALL["darts"]), gm_nas().method)  # type: ignore[arg-type]
    mask = state.space.groups[0].valid()
    mask[3, 0] = False
    state.mask["normal"] = mask
    found = [(group.name, e) for group, e in unsplit(state, Split(first_kind=True).scanned(state.space.groups))]
    assert found == [("normal", e) for e in range(5) if e != 3]
    assert len(list(unsplit(state, state.space.groups))) == 9


def test_the_child_that_validates_best_is_taken() -> None:
    searcher = gm_nas()
    _, _, ended = grown(searcher, "toy", 3)
    for n in (1, 2):
        ended[n].memory["gm_nas/accuracy"] = torch.tensor(0.2 * n)
        skip = ended[n].alpha["cell/alpha"]
        with torch.no_grad():
            skip.copy_(torch.where(ended[n].alive(ended[n].space.groups[0]), 1.0, 0.0) * torch.arange(3.0))
    wanted = searcher.method.selection(ended[2], ended[2].problem)
    other = searcher.method.selection(ended[1], ended[1].problem)
    assert wanted != other
    assert best_child(ended[0].problem, searcher.method, tuple(ended)) == wanted


def test_a_child_is_scored_on_validation_images_with_its_derived_cell() -> None:
    problem = tiny_problem("toy", count=24)
    val = problem.data.val
    problem = replace(
        problem, data=replace(problem.data, test=ImageSet.of(torch.rand(4, 8, 8, 2), torch.zeros(4).long()))
    )
    state = begin(problem, gm_nas().method)
    record: dict[str, object] = {}
    Score(gm_nas().method.selection).on_epoch_end(state, record)
    (group,) = state.space.groups
    best = state.alpha["cell/alpha"].argmax(-1)
    w = {cell: F.one_hot(best, 3).float() for cell in group.cells}
    images = ((val.take(torch.arange(24))[0] - 0.5) / 0.3).permute(0, 3, 1, 2)
    hits = 0
    for start in range(0, 24, 4):
        outputs, _ = state.supernet(images[start : start + 4], w, state.draw("eval"))
        hits += int((outputs.argmax(1) == (torch.arange(24) % 3)[start : start + 4]).sum())
    assert record["child_accuracy"] == pytest.approx(hits / 24)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["nb201", "darts"])
@pytest.mark.parametrize("inner", INNER)
def test_every_inner_method_searches(inner: str, space: str) -> None:
    searcher = gm_nas(inner=inner)  # type: ignore[arg-type]
    if inner == "pcdarts":
        searcher = replace(searcher, method=replace(searcher.method, edge=replace(searcher.method.edge, K=2)))  # type: ignore[type-var]
    searcher = replace(searcher, stages=Split(1, batches=1, first_kind=True))
    problem = tiny_problem(space, epochs=3, count=12, **SMALL[space])  # type: ignore[arg-type]
    found = searcher.search(problem)
    problem.space.check(found.genotype)
    assert found.state.stage == 2  # the whole supernet, then its halves


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["darts", "gdas"])
def test_killed_in_every_stage_of_two_splits(inner: str, tmp_path: Path) -> None:
    contents = []
    for folder, every in (("whole", None), ("broken", 2)):
        run = Run.create(tmp_path / folder)
        run.write(Run.CONFIG, b"")
        problem = replace(tiny_problem("toy", epochs=8, count=16), run=run, checkpoint_every=1)
        searcher = method_named("gm_nas", {"inner": inner})
        assert not isinstance(searcher, Method)
        if every:
            assert run_with_kills(searcher, problem, every) >= 7
        else:
            as_searcher(searcher).run(problem)
        contents.append(content(run))
    assert contents[0] == contents[1]


def test_the_tree_s_stages_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 epochs in 3 supernets of 2 epochs and 4 last ones of 3; the two that are left over go to the first."""
    monkeypatch.setattr(sys.modules[Split.__module__], "half", lambda state, side: {"parent": (state, side)})
    problem, method = tiny_problem("toy", epochs=20), gm_nas().method
    assert gm_nas().stages == Split(2, 0.5, "cut_max", 100, False, False) == Split()
    found = []
    for n in range(7):
        stage = Split()(problem, method, tuple(range(n)))  # type: ignore[arg-type]
        assert stage is not None
        found.append((stage.epochs, stage.span, stage.mask.get("parent")))
    assert found == [
        (4, (0.0, 2 / 7), None),
        (2, (2 / 7, 4 / 7), (0, 0)),
        (2, (2 / 7, 4 / 7), (0, 1)),
        *((3, (0.0, 1.0), (parent, side)) for parent in (1, 2) for side in (0, 1)),
    ]
    assert Split()(problem, method, tuple(range(7))) is None  # type: ignore[arg-type]


def test_a_supernet_begins_with_its_parent_s_weights() -> None:
    seen: list[int] = []
    weights = SimpleNamespace(take_over=lambda parent, same: seen.append(parent))
    for n in range(7):
        inherit(SimpleNamespace(alpha={}, weights=weights), tuple(SimpleNamespace(weights=i) for i in range(n)))  # type: ignore[arg-type]
    assert seen == [0, 0, 1, 1, 2, 2]


def test_edges_of_two_operations_can_be_split_and_none_need_be() -> None:
    two = ("none", "skip_connect", "avg_pool_3x3")
    problem = tiny_problem("nb201", epochs=7, **SMALL["nb201"], without=two)  # type: ignore[arg-type]
    assert Split().shares(problem)[0] == 2
    assert Split(0, batches=1).shares(problem)[0] == 0
    assert len(list(unsplit(begin(problem, gm_nas().method), problem.space.groups))) == 6


def test_nothing_is_split_before_the_last_epoch() -> None:
    method = gm_nas().method
    state, record = begin(tiny_problem("toy", epochs=2), method), dict[str, object]()
    Divide(method, Split(batches=1)).on_epoch_end(state, record)
    assert not record
    assert not state.memory


def test_the_last_supernets_alone_race(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        sys.modules[Split.__module__], "race", lambda problem, cells, *rest: asked.extend([cells, *rest]) or 1
    )
    method = gm_nas().method
    states = [begin(tiny_problem("toy", seed=seed), method) for seed in range(3)]
    for state in states[1:]:
        state.memory["gm_nas/accuracy"] = torch.tensor(0.5)
    cells = [method.selection(state, state.problem) for state in states]
    assert Halving("brief", (1, 2), (2, 1))(states[0].problem, method, tuple(states)) == cells[2]
    assert asked == [cells[1:], "brief", (1, 2), (2, 1)]
