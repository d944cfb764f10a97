"""Single stage: alpha stops to the bit, the weights carry on with every image, and the network is what the supernet was."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contracts.registry import SMALL
from contracts.test_resume import content, run_with_kills
from oche.api import inference
from oche.api import search as api
from oche.api.resume import resume
from oche.api.train import train as train_network
from oche.data import Fractions, Stream
from oche.errors import UserError
from oche.methods import METHODS
from oche.methods.freezing import decided, frozen_mask
from oche.methods.pcdarts import pcdarts
from oche.methods.single_stage import (
    Decide,
    SingleStage,
    Variant,
    in_one_stage,
    penalty,
    single_stage,
)
from oche.optim import SGD, Adam
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import Run
from oche.schedule import Constant, Poly, Ramp
from oche.search.begin import begin
from oche.search.inherit import inherited
from oche.search.loop import advance
from oche.search.method import Method
from oche.search.relaxations import Gated, ReluTanhGate, Sigmoid, SigmoidGate, Softmax, SoftmaxGate
from oche.search.selection import Keep
from oche.search.stages import Staged, entered
from oche.search.state import Problem, SearchState
from oche.search.terms import Entropy, InputEntropy, log_distance
from oche.search.trainable import AllWeights
from oche.spaces.rivals import RIVALS
from oche.training.export import load_network
from reference.tiny import tiny_data, tiny_masks, tiny_problem

VARIANTS: tuple[Variant, ...] = ("soft", "prune", "one_hot")
GRID = {"channels": 4, "layers": 3, "levels": 3, "ops": ("mbconv_k3_e3", "skip_connect")}


def problem_in(space: str, epochs: int = 5, count: int = 12) -> Problem:
    settings = GRID if space == "grid" else SMALL[space]
    return tiny_problem(space, epochs=epochs, count=count, **settings)  # type: ignore[arg-type]


def quick(variant: Variant = "soft", **options: object) -> Staged:
    """With an alpha that moves far in few steps, so that some branches fall below the threshold."""
    options = {"threshold": 0.45, **options} if variant == "prune" else options
    searcher = single_stage(variant, **options)  # type: ignore[arg-type]
    return replace(
        searcher,
        method=replace(searcher.method, arch_optimizer=replace(searcher.method.arch_optimizer, lr=0.2)),  # type: ignore[type-var]
    )


def stages(problem: Problem, searcher: Staged) -> tuple[SearchState, SearchState]:
    """The states at the freeze, before anything is removed, and at the end."""
    ended: tuple[SearchState, ...] = ()
    while stage := searcher.stages(problem, searcher.method, ended):
        state = entered(problem, stage, ended)
        advance(state, stage.method)
        ended += (state,)
    first, second = ended
    return first, second


def shown(state: SearchState, w: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Images, and what the supernet says to them by batch statistics, with its own op weights or these."""
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0)).to(next(iter(state.alpha.values())))
    weights = state.op_weights(state.alpha, state.draw("eval")) if w is None else state.space.spread(w)
    with torch.no_grad():
        return x, state.supernet(x, weights, state.draw("eval"))[0]


# ------------------------------------------------------------------ phases


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("space", ["grid", "toy"])
def test_alpha_moves_in_the_search_alone(space: str, variant: Variant) -> None:
    """One epoch of warm-up, two of search, two of tuning: alpha after each, to the bit."""
    state = quick(variant).search(problem_in(space)).state
    assert set(state.trajectory) == set(state.alpha)
    for name, rows in state.trajectory.items():
        assert len(rows) == 6
        same = [torch.equal(a, b) for a, b in pairwise(rows)]
        assert same == [True, False, False, True, True], name
        assert torch.equal(state.alpha[name].detach(), rows[-1])
        assert state.alpha[name].grad is None


@pytest.mark.parametrize(("count", "released"), [(24, True), (25, True), (25, False)])
def test_from_the_freeze_on_every_image_is_the_weights(
    count: int, released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images that each step really took, counted by phase; with a split that does not end at the freeze, its half goes on."""
    taken: dict[str, Counter[int]] = {}
    phase, at = ["warm"], Stream.at

    def look(self: Stream, i: int) -> object:
        key = f"{phase[0]} {self.purpose}"
        taken.setdefault(key, Counter()).update(self.images.index[self.positions(i)].tolist())
        return at(self, i)

    monkeypatch.setattr(Stream, "at", look)

    def listen(event: str, record: Mapping[str, object]) -> None:
        if event == "epoch":
            phase[0] = {0: "search", 2: "tune"}.get(int(str(record["epoch"])), phase[0])

    searcher = quick()
    if not released:
        searcher = replace(searcher, method=replace(searcher.method, split=Fractions()))
    problem = replace(tiny_problem("toy", epochs=5, count=count), listener=listen)
    searcher.search(problem)
    tune = {f"tune weights/{epoch}" for epoch in (3, 4)} if released else {"tune weights"}
    assert set(taken) == {"warm weights", "search weights", "search arch", *tune}
    half = set(taken["warm weights"])
    assert set(taken["search weights"]) == half
    assert not half & set(taken["search arch"])
    assert half | set(taken["search arch"]) == set(range(count))
    if not released:
        assert set(taken["tune weights"]) == half
        return
    assert all(set(taken[f"tune weights/{epoch}"]) == set(range(count)) for epoch in (3, 4)), "an image was left out"
    assert all(taken[f"tune weights/{epoch}"].total() == 4 * -(-count // 4) for epoch in (3, 4))


@pytest.mark.parametrize("restart", [False, True])
def test_one_schedule_and_one_momentum(restart: bool, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    problem, searcher = replace(problem_in("toy"), run=run), quick(restart=restart)
    searcher.search(problem)
    rates = [record["lr"] for record in run.records() if record["kind"] == "epoch"]
    done = [0, 1 / 5, 2 / 5, *((0, 1 / 2) if restart else (3 / 5, 4 / 5))]
    assert rates == pytest.approx([0.05 * (1 - p) ** 0.9 for p in done])
    assert [r["phase"] for r in run.records() if r["kind"] == "epoch"] == [
        "warm-up",
        "search",
        "search",
        "weights",
        "weights",
    ]
    first = begin_search(problem, searcher)
    stage = searcher.stages(problem, searcher.method, (first,))
    assert stage
    second = entered(problem, stage, (first,))
    for (name, old), (other, new) in zip(
        first.supernet.named_parameters(), second.supernet.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(old, new)
        assert torch.equal(
            first.weight_optimizer.state[old]["momentum_buffer"], second.weight_optimizer.state[new]["momentum_buffer"]
        )


def begin_search(problem: Problem, searcher: Staged) -> SearchState:
    """The state at the freeze."""
    stage = searcher.stages(problem, searcher.method, ())
    assert stage
    state = entered(replace(problem, run=None), stage, ())
    advance(state, stage.method)
    return state


@pytest.mark.parametrize(("freeze", "epochs"), [(0.3, (2, 3)), (0.5, (2, 3)), (0.7, (4, 1)), (1.0, (5, 0))])
def test_the_freeze_is_where_it_is_set(freeze: float, epochs: tuple[int, int]) -> None:
    states = stages(problem_in("toy"), quick(freeze=freeze))
    assert tuple(state.epoch for state in states) == epochs


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_it_runs_as_short_as_it_goes(epochs: int) -> None:
    result = quick().search(problem_in("toy", epochs))
    assert result.state.epochs_before + result.state.epoch == epochs
    assert not all(torch.equal(rows[0], rows[-1]) for rows in result.state.trajectory.values()), "nothing was searched"


@pytest.mark.parametrize(
    ("freeze", "epochs", "still"), [(0.3, 3, [False, True, True]), (0.3, 5, [True, False, True, True, True])]
)
def test_the_warm_up_leaves_an_epoch_to_search(freeze: float, epochs: int, still: list[bool]) -> None:
    """Of one epoch until the freeze none is the warm-up's; of two the first is. Alpha stands still in the epochs that say so."""
    trajectory = quick(freeze=freeze).search(problem_in("toy", epochs)).state.trajectory
    for rows in trajectory.values():
        assert [torch.equal(a, b) for a, b in pairwise(rows)] == still


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze": 0.2}, "freezes after its warm-up"),
        ({"freeze": 1.1}, "by its end"),
        ({"threshold": 1.0}, "threshold"),
        ({"margin": 0.0}, "margin"),
        ({"margin": 1.1}, "margin=1.1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        single_stage(**options).search(problem_in("toy"))  # type: ignore[arg-type]


# ------------------------------------------------------------------ the network


SAME = [
    pytest.param(space, variant, freeze, marks=() if (s + v + f) % 2 == 0 else pytest.mark.slow)
    for s, space in enumerate(("grid", "nb201", "darts"))
    for v, variant in enumerate(VARIANTS)
    for f, freeze in enumerate((0.6, 1.0))
]
"""In the short run each two of them meet."""


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("space", "variant", "freeze"), SAME)
def test_the_network_is_the_supernet(space: str, variant: Variant, freeze: float) -> None:
    """With batch statistics it says the same, tuned or not; with running ones a prediction does not depend on its company."""
    _, state = stages(problem_in(space), quick(variant, freeze=freeze))
    genotype = Keep()(state, state.problem)
    network = inherited(state, genotype).double()
    x, wanted = shown(state)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))
    assert not torch.allclose(network(x), wanted, atol=1e-3), "batch statistics are no running ones"
    torch.testing.assert_close(network.train()(x), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("threshold", "relative"), [(0.45, False), (0.9, True)])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("space", ["grid", "nb201"])
def test_a_pruned_network_is_the_masked_supernet(
    space: str, renormalise: bool, threshold: float, relative: bool
) -> None:
    """The outputs of the whole supernet as it was at the freeze, its op weights below the threshold set to zero by hand."""
    options = {"renormalise": renormalise, "threshold": threshold, "relative": relative}
    before, after = stages(problem_in(space), quick("prune", freeze=1.0, **options))
    by_hand, removed = {}, 0
    for group, strength in before.strengths():
        w = strength.clone()
        for e, ops in enumerate(group.ops):
            gate = "connect" in ops
            rivals = [strength[i, 1] for i in group.into()[group.edges[e][1]]] if gate else strength[e]
            for o in range(len(ops)):
                strongest = strength[e, o] >= max(rivals)
                if (
                    strength[e, o] < threshold * (max(rivals) if relative else 1)
                    and not strongest
                    and ops[o] != ("none" if gate else "")
                ):
                    w[e, o], removed = 0.0, removed + 1
            if renormalise and not gate:
                w[e] /= w[e].sum()
        by_hand[group.name] = w
    assert removed
    network = inherited(after, Keep()(after, after.problem)).double().train()
    x, wanted = shown(before, by_hand)
    torch.testing.assert_close(network(x), wanted, atol=1e-6, rtol=1e-6)
    whole = sum(p.numel() for p in before.supernet.parameters())
    assert sum(p.numel() for p in network.parameters()) < whole


@pytest.mark.parametrize("space", ["grid", "nb201", "darts"])
def test_one_hot_ends_one_hot(space: str) -> None:
    """Every coefficient is exactly 1, every edge has one operation; what it computes is in the test above."""
    result = quick("one_hot").search(problem_in(space))
    assert result.genotype.discrete
    for group in result.state.space.groups:
        choices = result.genotype.groups[group.name]
        assert [(c.source, c.target) for c in choices] == list(group.edges)
    for _, strength in result.state.strengths():
        assert set(strength.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(strength.sum(-1), torch.ones(len(strength)))
    network = inherited(result.state, result.genotype)
    weights = sum(p.numel() for p in network.body.cells.parameters())
    assert weights < sum(p.numel() for p in begin_search(problem_in(space), quick()).supernet.body.cells.parameters())


def set_gates(state: SearchState, gates: list[float], ops: list[float]) -> None:
    """Gate by gate b, and p of every node's first operation of two."""
    (group,) = state.space.groups
    left = iter(gates), iter(ops)
    with torch.no_grad():
        for e, names in enumerate(group.ops):
            if "connect" in names:
                b = next(left[0])
                state.alpha["grid/beta"][e] = math.log(b / (1 - b))
            else:
                p = next(left[1])
                state.alpha["grid/alpha"][e] = torch.tensor([math.log(p), math.log(1 - p)])


def names_left(state: SearchState, masks: dict[str, Tensor]) -> list[str]:
    (group,) = state.space.groups
    return [" ".join(op for o, op in enumerate(ops) if masks["grid"][e, o]) for e, ops in enumerate(group.ops)]


def small_grid() -> SearchState:
    """Two nodes in each of two layers: gates 0>1 0>2, then two into each node of the last."""
    state = begin(
        tiny_problem("grid", channels=4, layers=2, levels=2, ops=("mbconv_k3_e3", "skip_connect")),
        Method(relaxation=Gated()),
    )
    set_gates(state, [0.02, 0.9, 0.6, 0.04, 0.3, 0.2], [0.5, 0.98, 0.6, 0.3])
    return state


def test_what_pruning_leaves_by_hand() -> None:
    """Threshold 0.05: the first gate is its node's only one and stays, the fourth goes; skip at 0.02 goes."""
    state = small_grid()
    both, gate = "mbconv_k3_e3 skip_connect", "none connect"
    assert names_left(state, frozen_mask(state, 0.05)) == [
        gate, both, gate, "mbconv_k3_e3", gate, "none", both, gate, gate, both,
    ]  # fmt: skip
    assert names_left(state, frozen_mask(state, 0.55)) == [
        gate, "mbconv_k3_e3", gate, "mbconv_k3_e3", gate, "none", "mbconv_k3_e3", gate, "none", "skip_connect",
    ]  # fmt: skip


def test_what_relative_pruning_leaves_by_hand() -> None:
    """Half of the strongest: the last node's gate of 0.2 stays beside 0.3, and its operation of 0.3 goes beside 0.7."""
    state = small_grid()
    both, gate = "mbconv_k3_e3 skip_connect", "none connect"
    assert names_left(state, frozen_mask(state, 0.5, relative=True)) == [
        gate, both, gate, "mbconv_k3_e3", gate, "none", both, gate, gate, "skip_connect",
    ]  # fmt: skip


def test_what_was_removed_before_is_no_rival() -> None:
    """Without its strongest operation, a node keeps the other at any threshold; without its strongest gate, it keeps the next."""
    state = small_grid()
    (group,) = state.space.groups
    state.mask = {"grid": state.alive(group).clone()}
    nodes = [e for e, ops in enumerate(group.ops) if "connect" not in ops]
    state.mask["grid"][nodes[1], 0] = False  # its 0.98
    state.mask["grid"][2, 1] = False  # the gate of 0.6: the last node but one has those of 0.6 and 0.04
    for left in (frozen_mask(state, 0.9), frozen_mask(state, 0.9, relative=True), decided(state, 0.0)):
        assert left["grid"][nodes[1]].tolist() == [False, True]
        assert not left["grid"][2, 1]
        assert not (left["grid"] & ~state.mask["grid"]).any()


def test_what_is_decided_by_hand() -> None:
    """A lead of 0.3 over the other candidate; a node's strongest gate is never closed, and opened at the freeze alone if below 1/2."""
    state = small_grid()
    both, gate = "mbconv_k3_e3 skip_connect", "none connect"
    assert names_left(state, decided(state, 0.3)) == [
        gate, both, "connect", "mbconv_k3_e3", gate, "none", both, gate, "none", "skip_connect",
    ]  # fmt: skip
    assert names_left(state, decided(state, 0.0)) == [
        "connect", "mbconv_k3_e3", "connect", "mbconv_k3_e3", "connect", "none", "mbconv_k3_e3", "connect", "none", "skip_connect",
    ]  # fmt: skip
    state.mask = decided(state, 0.3)
    again = names_left(state, decided(state, 0.3))
    assert again == names_left(state, state.mask), "what is decided stays"
    (group,) = state.space.groups
    w = state.relaxation(state.alpha, group, state.draw("eval"))
    assert w[2].tolist() == [0.0, 1.0]
    assert w[5].tolist() == [1.0, 0.0]


def test_decisions_fall_before_an_epoch_and_never_within_one() -> None:
    state = small_grid()
    wanted = decided(state, 0.3)
    state.step = 1
    Decide(0.3).on_epoch_start(state)
    assert not state.mask, "a search that is resumed within an epoch has decided before"
    state.step = 0
    Decide(0.3).on_epoch_start(state)
    assert state.mask.keys() == wanted.keys()
    assert all(torch.equal(mask, wanted[name]) for name, mask in state.mask.items())


# ------------------------------------------------------------------ killed, resumed


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("split", ["redrawn", "swap", "one_level", "until_freeze"])
def test_killed_in_every_phase_it_ends_the_same(variant: Variant, split: str, tmp_path: Path) -> None:
    plan = resolve(Request("single_stage", space="toy", data=tiny_data(18), budget="smoke", settings={"split": split}))
    searcher = replace(quick(variant), method=replace(quick(variant).method, split=method_in(plan.searcher).split))
    contents = []
    for folder, every in (("whole", None), ("broken", 3)):
        run = Run.create(tmp_path / folder)
        run.write(Run.CONFIG, b"")
        problem = replace(tiny_problem("toy", epochs=5, count=18), run=run, checkpoint_every=1)
        assert (run_with_kills(searcher, problem, every) > 3) == (every is not None)
        contents.append(content(run))
    assert contents[0].keys() == contents[1].keys()
    assert [key for key in contents[0] if contents[0][key] != contents[1][key]] == []


def method_in(searcher: object) -> Method:
    assert isinstance(searcher, Staged)
    return searcher.method


def said(run: Run) -> list[dict[str, object]]:
    """The log without what a process measures of itself."""
    return [{key: value for key, value in record.items() if key != "checkpoint_share"} for record in run.records()]


@pytest.mark.slow
def test_a_run_killed_before_its_network_is_written_writes_it(tmp_path: Path) -> None:
    found = searched(tmp_path / "run")
    before = {
        name: found.run.read(name) for name in ("network/weights.safetensors", "genotype.json", "network/card.json")
    }
    records = said(found.run)
    shutil.rmtree(found.run.file(Run.NETWORK))
    resume(found.run.path, tiny_masks())
    assert {name: found.run.read(name) for name in before} == before
    assert said(found.run) == records
    stamp = found.run.file("network/card.json").stat().st_mtime_ns
    resume(found.run.path, tiny_masks())
    assert found.run.file("network/card.json").stat().st_mtime_ns == stamp, "it was done again"


# ------------------------------------------------------------------ as a method


def searched(path: Path, **options: object) -> api.Found:
    settings = {"space.layers": 2, "space.levels": 2, "space.ops": ["mbconv_k3_e3", "skip_connect"]}
    given = {"rivals": "none", **options}
    return api.search(
        "single_stage", data=tiny_masks(), budget="smoke", batch=6, device="cpu", threads=1, settings=settings, out=path, **given,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.slow
def test_the_search_keeps_its_network_beside_a_rival(tmp_path: Path) -> None:
    """The rival is trained once, for as many epochs; the network that is compared with it is the one handed out."""
    found = searched(tmp_path / "run", rivals="auto")
    kinds = Counter(str(r["kind"]) for r in found.run.records())
    kept = {"stage": 2, "epoch": 5, "supernet": 1, "network": 1, "test": 1, "class": 3, "confusion": 1}
    assert kinds == {**kept, "trained": 2, "comparison": 1}
    assert found.comparison
    (name,) = found.comparison.rivals
    assert found.comparison.found == (found.test.value,)
    (verdict,) = json.loads(found.run.read("network/card.json"))["comparison"]["verdicts"]
    assert "on images like the test images" in verdict
    assert RIVALS[name].title in verdict
    assert [r.get("kept", False) for r in found.run.records() if r["kind"] == "trained"] == [True, False]
    assert "its search trained it; each rival was trained once" in found.report().read_text(encoding="utf-8")
    alone = searched(tmp_path / "alone")
    assert Counter(str(r["kind"]) for r in alone.run.records()) == kept
    assert alone.comparison is None
    assert alone.run.read("network/weights.safetensors") == found.run.read("network/weights.safetensors")
    loaded = load_network(found.run)
    assert loaded.genotype == found.genotype
    assert not loaded.genotype.discrete
    (test,) = (r for r in found.run.records() if r["kind"] == "test")
    assert inference.evaluate_run(found.run.path, data=tiny_masks(), device="cpu").metrics == pytest.approx(
        {"miou": test["miou"], "pixel_accuracy": test["pixel_accuracy"]}
    )
    scores = {"test_miou": test["miou"], "test_pixel_accuracy": test["pixel_accuracy"], "floor": test["floor"]}
    assert loaded.card["metrics"] == scores


@pytest.mark.slow
def test_random_cells_can_be_asked_for_and_leave_its_network_alone(tmp_path: Path) -> None:
    found = searched(tmp_path / "run", compare=1, compare_seeds=1, protocol="segment_smoke", rivals="auto")
    alone = searched(tmp_path / "alone")
    assert found.comparison
    assert set(found.comparison.accuracies) == {"found", "random 1", *found.comparison.rivals}
    assert set(found.comparison.rivals) <= {"plain_fcn", "unet"}
    assert found.run.read("network/weights.safetensors") == alone.run.read("network/weights.safetensors")


@pytest.mark.slow
def test_it_is_trained_on_from_its_own_weights(tmp_path: Path) -> None:
    """At a learning rate of 0 the weights stay those of the search; from scratch they do not."""
    found = searched(tmp_path / "run")
    still = {"train.lr.start": 0.0, "train.lr.end": 0.0}
    common = {"data": tiny_masks(), "protocol": "segment_smoke", "epochs": 1, "device": "cpu", "threads": 1}
    on = train_network(found.run.path, inherit=True, settings=still, out=tmp_path / "on", **common)  # type: ignore[arg-type]
    wanted = dict(load_network(found.run).network.named_parameters())
    got = dict(load_network(on.run).network.named_parameters())
    assert all(torch.equal(t, got[name]) for name, t in wanted.items())
    afresh = train_network(found.run.path, settings=still, out=tmp_path / "afresh", **common)  # type: ignore[arg-type]
    assert not all(torch.equal(t, wanted[n]) for n, t in load_network(afresh.run).network.named_parameters())
    with pytest.raises(UserError, match="Only a run's folder has weights"):
        train_network(found.genotype.to_json(), inherit=True, **common)  # type: ignore[arg-type]


@pytest.mark.slow
def test_of_several_seeds_the_best_network_is_kept(tmp_path: Path) -> None:
    found = searched(tmp_path / "run", seeds=2)
    seeds = [r for r in found.run.records() if r["kind"] == "seed"]
    best = max(seeds, key=lambda r: float(str(r["val_miou"])))["seed"]
    own = Run.open(tmp_path / f"run/seeds/seed_{best}")
    assert found.run.read("network/weights.safetensors") == own.read("network/weights.safetensors")
    assert not own.has("trained")


def test_another_method_under_the_same_protocol() -> None:
    darts = METHODS["darts"]()
    assert isinstance(darts, Method)
    searcher = in_one_stage(darts, SingleStage(freeze=0.5))
    result = searcher.search(problem_in("nb201"))
    assert not result.genotype.discrete
    assert searcher.keeps_weights
    norms = [m for m in result.state.supernet.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms, "a kept network needs the batch norms that a decoded one would get later"
    assert all(norm.affine for norm in norms)
    assert in_one_stage(darts).stages == SingleStage()
    with pytest.raises(UserError, match="pcdarts does not mix its candidates by a weighted sum"):
        in_one_stage(pcdarts())


def test_what_the_docstring_says_of_the_defaults() -> None:
    plan = SingleStage("soft", 0.6, 0.05, relative=False, renormalise=False, margin=0.3, restart=False)
    assert single_stage().stages == plan == SingleStage()
    assert single_stage().keeps_weights
    assert Decide() == Decide(0.3)
    method = single_stage().method
    assert method.relaxation == Gated(Softmax(), SigmoidGate())
    assert (method.arch_start, method.trainable, method.outer_terms) == (0.2, AllWeights(affine=True), ())
    assert method.arch_optimizer == Adam(3e-3, (0.5, 0.999), 0.0)
    assert (method.weight_optimizer, method.weight_lr) == (SGD(weight_decay=5e-4), Poly(0.05, 0.9))
    other = single_stage(gates="relu_tanh", operations="normalised").method
    assert other.relaxation == Gated(Sigmoid(normalised=True), ReluTanhGate())
    assert single_stage(operations="sigmoid", gates="softmax").method.relaxation == Gated(Sigmoid(), SoftmaxGate())


def test_entropy_terms_grow_while_alpha_steps() -> None:
    assert penalty(0, 0, "shannon", "linear", (0.2, 0.6)) == ()
    assert penalty(0.1, 0.2, "shannon", "constant", (0.2, 0.6)) == (Entropy(Constant(0.1), Constant(0.2)),)
    assert penalty(0.1, 0, "ssr", "linear", (0.2, 0.6)) == (
        Entropy(Ramp(0.1, 0.2, 0.6), Ramp(0, 0.2, 0.6), log_distance),
    )
    (late,) = penalty(0.1, 0.4, "da2s", "delayed", (0.2, 0.6))
    assert late == InputEntropy(Ramp(0.1, 0.4, 0.6), Ramp(0.4, 0.4, 0.6))
    set_ = {"method.entropy": 0.3, "method.entropy_form": "ssr", "method.entropy_schedule": "delayed"}
    searcher = resolve(Request("single_stage", data=tiny_masks(), budget="smoke", settings=set_)).searcher
    (term,) = method_in(searcher).outer_terms
    assert term == Entropy(Ramp(0.3, 0.4, 0.6), Ramp(0.0, 0.4, 0.6), log_distance)


def test_a_penalty_decides_more() -> None:
    """The entropy of the operations is lower with it than without."""
    plain, penalised = (quick(entropy=weight).search(problem_in("grid")).state.entropy() for weight in (0.0, 3.0))
    assert penalised < plain - 0.02
