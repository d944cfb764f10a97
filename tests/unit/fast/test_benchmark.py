"""The benchmark's slow sides do the field's work and compute what oche computes; its log carries on; its page is rendered from it."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from oche.base import Draw
from oche.methods import method_named
from oche.search.bilevel import Bilevel, FiniteDifference, detached
from oche.spaces import SPACES
from oche.spaces.edges import PartialChannels, WeightedSum

FOLDER = Path(__file__).parents[3] / "benchmarks"
SCRIPTS = ("busy", "counting", "iteration", "render", "results_page", "supernet", "table")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by name, as they do when they run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    before = set(sys.modules)
    yield
    for name in {*SCRIPTS, *PEERS} - before:
        sys.modules.pop(name, None)


FROZEN = gc.get_freeze_count()
"""Objects that Python itself froze when it began: 375 in 3.12.1, none in 3.11 and 3.13."""


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


# ---------------------------------------------------------------------- the published steps

PEERS = {"darts": ("darts", WeightedSum()), "pcdarts": ("darts", PartialChannels(4)), "nb201": ("nb201", WeightedSum())}
"""A peer's space and edges here."""


def in_our_order(network: torch.nn.Module) -> list[Tensor]:
    """A peer's parameters; of NAS-Bench-201's the cells' before the residual blocks'."""
    body = list(getattr(network, "body", []))
    if not body:
        return list(network.parameters())
    cells = [p for part in body if type(part).__name__ == "Cell" for p in part.parameters()]
    blocks = [p for part in body if type(part).__name__ != "Cell" for p in part.parameters()]
    stem = list(network.stem.parameters())
    return [*stem, *cells, *blocks, *network.tail.parameters(), *network.classifier.parameters()]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_the_same_function(name: str) -> None:
    """Outputs, and gradients of weights and alpha, equal those of our plain supernet with the same values."""
    space_name, edge = PEERS[name]
    sizes = {"channels": 4, "cells": 1} if name == "nb201" else {"channels": 8, "cells": 3, "nodes": 2}
    torch.set_default_dtype(torch.float64)
    try:
        built = module(name).build(3, 8, **sizes)
    finally:
        torch.set_default_dtype(torch.float32)
    space = SPACES[space_name](size=(8, 8), **sizes)
    plain = space.supernet(edge, affine=False).double()
    mine, theirs = list(plain.parameters()), in_our_order(built.network)
    assert [p.shape for p in mine] == [p.shape for p in theirs]
    with torch.no_grad():
        for p, q in zip(mine, theirs, strict=True):
            p.copy_(q)
    if name == "nb201":
        w = {"cell": built.alphas[0].softmax(-1)}
    else:
        w = {kind: built.network.weights(kind == "reduce") for kind in ("normal", "reduce")}
        if name == "pcdarts":
            w = {kind: t[:, :-1] * t[:, -1:] for kind, t in w.items()}
    images = built.val[0]
    outputs, _ = plain(images, space.spread(w), Draw(0))
    published = built.network(images)
    torch.testing.assert_close(outputs, published, rtol=1e-10, atol=1e-12)
    got = torch.autograd.grad(outputs.sin().sum(), [*built.alphas, *mine])
    wanted = torch.autograd.grad(published.sin().sum(), [*built.alphas, *theirs])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "operators", "million"),
    [("darts", 1_930_618, 34_251, 300), ("pcdarts", 299_578, 37_339, 57), ("nb201", 1_686_106, 10_626, 244)],
)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_peer_does_the_published_work(name: str, parameters: int, operators: int, million: int, layout: str) -> None:
    """Parameters and multiply-adds of the official codes: two steps of three passes each, on two images.

    Operators are what the dispatcher counts in the literal step; see the next test.
    """
    peer = module(name)
    built = peer.build(2, 32, layout=layout)
    peer.step(built)
    with module("counting").Operators() as counted:
        peer.step(built)
    assert sum(p.numel() for p in built.network.parameters()) == parameters
    assert counted.total == pytest.approx(operators, rel=0.01)
    assert counted.flop / (2 * 2 * 6) == pytest.approx(million * 1e6, rel=0.05)
    weight = next(m.weight for m in built.network.modules() if isinstance(m, torch.nn.Conv2d))
    last = layout == "channels_last"
    assert weight.is_contiguous(memory_format=torch.channels_last) == last
    assert built.val[0].is_contiguous(memory_format=torch.channels_last) == last


QUIET = {
    *("view", "as_strided", "as_strided_", "transpose", "select", "slice", "expand", "permute", "reshape", "t", "detach", "alias"),
    *("unsqueeze", "squeeze", "split", "split_with_sizes", "unbind", "narrow", "_unsafe_view", "view_as", "to", "_to_copy"),
    *("contiguous", "chunk", "flatten", "expand_as", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("resize_", "set_", "_local_scalar_dense", "item", "result_type", "is_nonzero", "_nnpack_available", "resolve_conj", "resolve_neg"),
}  # fmt: skip
"""Operators that compute nothing: views, questions, allocations, and what is made of these."""


def works(event: torch.autograd.profiler_util.FunctionEvent) -> bool:
    """True if an operator calls another that computes something."""
    own = [e for e in event.cpu_children if e.name.startswith("aten::")]
    return any(e.name[6:] not in QUIET or works(e) for e in own)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "official"), [("darts", 40_200), ("pcdarts", 44_100), ("nb201", 12_000)])
def test_a_peer_launches_what_the_official_code_does(name: str, official: int) -> None:
    """By PyTorch's profiler, as the official codes' operators were counted; NASLib's for NAS-Bench-201."""
    peer = module(name)
    built = peer.build(2, 32)
    peer.step(built)
    with torch.profiler.profile(acc_events=True) as profile:
        peer.step(built)
    events = [e for e in profile.events() if e.name.startswith("aten::") and e.name[6:] not in QUIET]
    assert sum(not works(e) for e in events) == pytest.approx(official, rel=0.05)


def test_the_published_finite_difference_is_ours() -> None:
    """The second model and the moved weights give the gradient that `FiniteDifference` gives."""
    torch.set_default_dtype(torch.float64)
    try:
        method = method_named("darts")
        peer = module("darts")
        built = peer.build(4, 8, order="second", channels=2, cells=3, nodes=1)
        peer.step(built)  # so that there is momentum
        before = {n: p.detach().clone() for n, p in built.network.named_parameters()}

        def loss(theta: dict[str, Tensor], alpha: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
            built.network.alphas = list(alpha.values())
            outputs = torch.func.functional_call(built.network, theta, (batch[0],))
            return torch.nn.functional.cross_entropy(outputs, batch[1])

        class Both:
            def inner(self) -> tuple[Tensor, Tensor]:
                return built.train

            def outer(self) -> tuple[Tensor, Tensor]:
                return built.val

        descend = lambda theta, grads: method.weight_optimizer.look_ahead(theta, grads, built.weight_optimizer)  # noqa: E731
        problem = Bilevel(loss, loss, descend)  # type: ignore[arg-type]
        alpha = {str(i): a for i, a in enumerate(built.alphas)}
        _, wanted = FiniteDifference()(problem, detached(before), alpha, Both())  # type: ignore[arg-type]
        built.network.alphas = built.alphas
        built.alpha_optimizer.zero_grad()
        module("iteration").second_order(built)
        for key, t in alpha.items():
            assert t.grad is not None
            torch.testing.assert_close(t.grad, wanted[key], rtol=1e-6, atol=1e-9)
        for name, p in built.network.named_parameters():
            torch.testing.assert_close(p.detach(), before[name], rtol=1e-12, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def test_operators_are_counted_by_hand() -> None:
    x, kernel = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with module("counting").Operators() as operators:
        torch.conv2d(x, kernel).relu().view(2, -1).sum().backward()
    macs = 2 * 4 * 3 * 3 * (3 * 3 * 3)
    assert operators.flop == 2 * 3 * macs  # forward, and backward into x and the kernel
    names = {"convolution", "relu", "sum", "ones_like", "threshold_backward", "convolution_backward"}
    assert dict(operators.counts) == dict.fromkeys(names, 1)


# ---------------------------------------------------------------------- one side, measured


@pytest.mark.parametrize("what", ["fast", "reference", "reference-nhwc"])
def test_a_side_is_measured(what: str) -> None:
    supernet = module("supernet")
    space, settings = ("toy", ("channels=2",)) if what == "fast" else ("nb201", ("channels=2", "cells=1"))
    method = "rf_darts" if what == "fast" else "darts"
    work = supernet.Work(space=space, method=method, batch=4, size=8, settings=settings, iterations=2)
    told = supernet.here(what, work)
    assert len(told["seconds"]) == 2
    assert all(s > 0 for s in told["seconds"])
    assert told["operators"] > 50
    if what == "fast":
        assert sum(told["stages"].values()) == pytest.approx(sum(told["seconds"]) / 2)
        assert {"forward", "backward", "optimiser of alpha", "optimiser of weights"} < set(told["stages"])
        assert supernet.useful_work(work)["gflop"] == pytest.approx(2 * told_of(supernet, replace(work, batch=2)))


def told_of(supernet: ModuleType, work: object) -> float:
    return float(supernet.useful_work(work)["gflop"])


# ---------------------------------------------------------------------- the log and the page


SIDE = {
    "seconds": 2.0, "images_per_second": 8.0, "peak_mib": 500.0, "operators": 34239, "cells": ["plain"], "kernels": {"k": [4, 0.5]},
    "stages": {"forward": 0.5, "backward": 0.25}, "compute_share": 0.1, "bandwidth_share": 0.2,
}  # fmt: skip
ANSWER = {
    "ratio": 11.0, "memory_ratio": 4.0, "seconds": 2.0, "against": "reference", "tier": "fast", "torch": "2", "threads": 2,
    "repeats": 2, "iterations": 3,
    "peaks": {"gflops": 100.0, "gbytes": 10.0}, "sides": {"reference": {**SIDE, "stages": {}}, "fast": SIDE},
}  # fmt: skip


def test_an_interrupted_table_carries_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = module("table")
    asked: list[list[str]] = []

    class Done:
        returncode, stdout, stderr = 0, "a word\n" + json.dumps(ANSWER), ""

    def run(command: list[str], **_: object) -> Done:
        asked.append(command)
        return Done()

    monkeypatch.setattr(table.subprocess, "run", run)
    monkeypatch.setattr(table, "commit", lambda: "abc")
    log = tmp_path / "performance.jsonl"
    row = table.ROWS[0]
    assert "ratio 11.00" in table.measured(row, 2, log)
    log.write_text(log.read_text() + '{"row": "cut off by a cra')
    assert table.measured(row, 2, log) == "already measured"
    assert len(asked) == 1
    assert asked[0][-3:] == ["--threads", "2", "--json"]
    assert "ratio" in table.measured(row, 1, log)  # another command
    assert table.measured(row, 1, log) == "already measured"
    monkeypatch.setattr(table, "commit", lambda: "def")
    assert "ratio" in table.measured(row, 2, log)
    monkeypatch.setattr(Done, "returncode", 1)
    monkeypatch.setattr(Done, "stderr", "trace\nno memory")
    assert table.measured(table.ROWS[1], 2, log) == "FAILED: no memory"
    assert len(asked) == 4

    def hang(command: list[str], **options: float) -> None:
        raise table.subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(table.subprocess, "run", hang)
    assert table.measured(table.ROWS[1], 2, log) == f"FAILED: not done after {table.LONGEST} s"


def test_every_row_is_there_once_and_every_goal_has_one() -> None:
    names = [row.name for row in module("table").ROWS]
    assert len(set(names)) == len(names)
    assert set(module("render").GOALS) <= set(names)
    assert {other.row for other in module("goals").OTHERS} <= set(names)
    assert {"scaling"} | {"goal", "also"} == {name.partition("/")[0] for name in names}


def test_the_page_says_what_was_reached(tmp_path: Path) -> None:
    render = module("render")
    log = tmp_path / "performance.jsonl"
    rows = {"goal/darts": {**ANSWER, "ratio": 14.0}, "goal/nb201": {**ANSWER, "ratio": 3.0}, "scaling/batch=8": ANSWER}
    rows["scaling/size=16"] = ANSWER
    rows |= {"goal/train36": {"ratios": {"channels_last": 1.6, "kernels": 3.2}}, "goal/ninety": {"minutes": None}}
    key = {"machine": "m", "commit": "abc"}
    log.write_text("".join(json.dumps({"row": name, **key, "result": answer}) + "\n" for name, answer in rows.items()))
    (tmp_path / "performance.md").write_text("# Old\n<!-- reading -->\nBy hand.\n<!-- /reading -->\n| old |\n")
    assert "6 rows" in render.render(log, tmp_path)
    assert "6 rows" in render.render(log, tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert "| **14.00x** | reached | 4.0x less | 5x less (missed) |" in page
    assert "against NCHW | 3x | 4x | **3.20x** | reached |" in page
    assert "against channels_last | 2x | 2.7x | **2.00x** | reached |" in page
    assert "| at most 15 min | at most 10 min | not reached | missed |" in page
    assert "| **3.00x** | missed | 4.0x less | 4x less (reached) |" in page
    assert "<!-- reading -->\nBy hand.\n<!-- /reading -->" in page
    assert "old" not in page
    assert "| 2 x 3, 2 threads, abc |" in page
    for name in ("stages", "memory", "scaling"):
        assert f"performance-{name}.svg" in page
        assert (tmp_path / f"performance-{name}.svg").read_bytes().startswith(b"<?xml")
    log.write_text("")
    assert "no row yet" in render.render(log, tmp_path)


def test_measuring_leaves_nothing_frozen() -> None:
    """Objects that are frozen when Python ends count as leaked: Triton's bindings would print a page about theirs."""
    supernet = module("supernet")
    with supernet.unfrozen_after():
        gc.freeze()
        assert gc.get_freeze_count() > FROZEN
    assert gc.get_freeze_count() <= FROZEN


@pytest.fixture(autouse=True, scope="module")
def _thawed() -> Iterator[None]:
    """Without what tests/conftest.py froze."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_stays_frozen() -> Iterator[None]:
    yield
    assert gc.get_freeze_count() <= FROZEN


def test_the_page_says_what_a_training_costs_per_multiply_add() -> None:
    dearer = {"ResNet-8": 1.0, "a": 1.2, "b": 1.9, "c": 2.1}
    row = {
        "batch": 128,
        "threads": 1,
        "million": dict.fromkeys(dearer, 10.0),
        "ratios": {name: 3.0 / times for name, times in dearer.items()},
        "seconds": {name: {"channels_last": 3.0, "kernels": times} for name, times in dearer.items()},
        "dearer": {name: {"channels_last": 3.0, "kernels": times} for name, times in dearer.items()},
    }
    said = module("render").epochs(row)[-4:]
    assert [line.split(" | ")[-1].strip("| ") for line in said] == ["", "stretch reached", "reached", "missed"]
    assert "| a | 10.0 M | 3.000 s | 1.200 s | 2.50x | 3.00x | **1.20x** |" in said[1]


def test_the_page_says_what_a_busy_core_costs() -> None:
    times = {"quiet": 0.5, "busy_least": 0.6, "busy_most": 2.0}
    waiting = {
        "python": {**times, "busy": 1.5, "slowdown": 3.0, "goal": 3.0},
        "oche": {**times, "busy": 0.75, "slowdown": 1.5, "goal": 1.5},
        "1000": {**times, "busy": 0.65, "slowdown": 1.3, "goal": 1.3},
    }
    row = {"waiting": waiting, "space": "nb201", "batch": 64, "threads": 2, "load": 0.02}
    said = module("render").busy(row)
    assert [line.split(" | ")[-1].strip("| ") for line in said[-3:]] == ["missed", "reached", "stretch reached"]
    assert "| oche | 0.500 s | 0.750 s (0.600 to 2.000) | 1.50x | **1.50x** |" in said[-2]


def test_a_sides_waiting_lasts_as_long_as_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = module("busy")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    found = {}
    for side in ("python", "oche", "77"):
        with busy.waiting(side):
            found[side] = os.environ.get("GOMP_SPINCOUNT")
        assert os.environ["GOMP_SPINCOUNT"] == "5"
        assert "KMP_BLOCKTIME" not in os.environ
    assert found == {"python": None, "oche": busy.BRIEF["GOMP_SPINCOUNT"], "77": "77"}


def test_a_shorter_search_counts_where_it_is_shown_to_lose_less_than_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickest of those that do; one whose interval is wide is not shown to, however quick."""
    steps = module("fewer_steps")
    of = {
        "rf_darts_fast": (400.0, 0.0),
        "slow": (200.0, 0.3),
        "quick": (100.0, -0.2),
        "wide": (50.0, 0.0),
        "worse": (40.0, -1.5),
    }

    def value(arm: str, seed: int) -> float:
        return 93.0 + of[arm][1] + (3.0 * (-1) ** seed if arm == "wide" else 0.01 * seed)

    rows = [
        {
            "kind": "short",
            "method": arm,
            "seed": seed,
            "seconds": of[arm][0],
            "values": {"cifar10/test": value(arm, seed)},
        }
        for arm in of
        for seed in range(8)
    ]
    usual = [
        types.SimpleNamespace(study="collapse_nb201", arm="rf_darts_fast", seed=n, cells=[("", 93.0)]) for n in range(8)
    ]
    monkeypatch.setattr(steps, "_rows", lambda path: rows)
    monkeypatch.setattr(steps, "searches", lambda: usual)
    told = steps.quicker()
    assert (told["arm"], told["times"]) == ("quick", 4.0)
    monkeypatch.setattr(
        steps, "_rows", lambda path: [row for row in rows if row["method"] in ("rf_darts_fast", "worse")]
    )
    assert steps.quicker()["times"] == 1.0
