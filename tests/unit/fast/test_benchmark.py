"""The benchmark's slow sides do the field's work and compute what oche computes; its log carries on; its page is rendered from it."""

from __future__ import annotations

import gc
import importlib
import json
import sys
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
from oche.spaces.edges import EdgeFactory, PartialChannels, WeightedSum

FOLDER = Path(__file__).parents[3] / "benchmarks"
DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by name, as they do when they run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    before = set(sys.modules)
    yield
    for name in {"counting", "field", "render", "results_page", "supernet", "table", "darts_nchw"} - before:
        sys.modules.pop(name, None)


FROZEN = gc.get_freeze_count()
"""Objects that Python itself froze when it began: 375 in 3.12.1, none in 3.11 and 3.13."""


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


# ---------------------------------------------------------------------- the field's form


@pytest.mark.parametrize("edge", [WeightedSum(), PartialChannels(2)])
@pytest.mark.parametrize("name", ["darts", "nb201"])
def test_the_fields_form_is_the_same_function(name: str, edge: EdgeFactory) -> None:
    space = SPACES[name](size=(8, 8), channels=4, cells=1 if name == "nb201" else 3)
    torch.manual_seed(0)
    plain = space.supernet(edge, affine=True).double()
    published = space.supernet(module("field").AsPublished(edge), affine=True).double()
    assert [(n, p.shape) for n, p in published.named_parameters()] == [
        (n, p.shape) for n, p in plain.named_parameters()
    ]
    published.load_state_dict(plain.state_dict())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    w = {g.name: torch.rand(len(g.edges), g.width, dtype=torch.float64).requires_grad_() for g in space.groups}

    def outcome(supernet: torch.nn.Module) -> list[Tensor]:
        outputs, _ = supernet(x, space.spread(w), Draw(0))
        found = torch.autograd.grad(outputs.sin().sum(), [*w.values(), *supernet.parameters()], materialize_grads=True)
        return [outputs.detach(), *found]

    for got, wanted in zip(outcome(published), outcome(plain), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_the_sizes_and_the_work_are_the_fields() -> None:
    """1,930,618 parameters, and as many operators as a literal DARTS launches, to three in a thousand."""
    counting, field, peer = module("counting"), module("field"), module("darts_nchw")
    built = peer.build(2, 32)
    ours = field.build(SPACES["darts"](), method_named("darts"), "first", 2, DEVICE)
    totals = {}
    for name, step in (("peer", lambda: peer.step(built)), ("field", ours.step)):
        step()
        with counting.Operators() as operators:
            step()
        totals[name] = operators
    assert sum(p.numel() for p in built.network.parameters()) == 1_930_618
    assert sum(p.numel() for p in ours.supernet.parameters()) == 1_930_618
    assert totals["field"].total == pytest.approx(totals["peer"].total, rel=3e-3)
    assert totals["field"].total > 34_000
    assert totals["field"].flop == totals["peer"].flop


def test_the_published_finite_difference_is_ours() -> None:
    """The second model and the moved weights give the gradient that `FiniteDifference` gives."""
    torch.set_default_dtype(torch.float64)
    try:
        method = method_named("darts")
        space = SPACES["nb201"](size=(8, 8), channels=2, cells=1, stages=1)
        built = module("field").build(space, method, "finite", 4, DEVICE)
        built.step()  # so that there is momentum
        before = {n: p.detach().clone() for n, p in built.supernet.named_parameters()}

        def loss(theta: dict[str, Tensor], alpha: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
            draw = Draw(0)
            w = space.spread({g.name: method.relaxation(alpha, g, draw) for g in space.groups})
            outputs, _ = torch.func.functional_call(built.supernet, theta, (batch[0], w, draw))
            return torch.nn.functional.cross_entropy(outputs, batch[1])

        class Both:
            def inner(self) -> tuple[Tensor, Tensor]:
                return built.train

            def outer(self) -> tuple[Tensor, Tensor]:
                return built.val

        descend = lambda theta, grads: method.weight_optimizer.look_ahead(theta, grads, built.weight_optimizer)  # noqa: E731
        problem = Bilevel(loss, loss, descend)  # type: ignore[arg-type]
        _, wanted = FiniteDifference()(problem, detached(before), built.alpha, Both())  # type: ignore[arg-type]
        built.order(built)
        for key, t in built.alpha.items():
            assert t.grad is not None
            torch.testing.assert_close(t.grad, wanted[key], rtol=1e-6, atol=1e-9)
        for name, p in built.supernet.named_parameters():
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


@pytest.mark.parametrize("what", ["fast", "reference"])
def test_a_side_is_measured(what: str) -> None:
    supernet = module("supernet")
    work = supernet.Work(space="toy", method="rf_darts", batch=4, size=8, settings=("channels=2",), iterations=2)
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
    assert table.measured(table.ROWS[1], 2, log) == "FAILED: not done after 900 s"


def test_every_row_is_there_once_and_every_goal_has_one() -> None:
    names = [row.name for row in module("table").ROWS]
    assert len(set(names)) == len(names)
    assert set(module("render").GOALS) <= set(names)
    assert {"scaling"} | {"goal", "also"} == {name.partition("/")[0] for name in names}


def test_the_page_says_what_was_reached(tmp_path: Path) -> None:
    render = module("render")
    log = tmp_path / "performance.jsonl"
    rows = {"goal/darts": ANSWER, "goal/nb201": {**ANSWER, "ratio": 3.0}, "scaling/batch=8": ANSWER}
    rows["scaling/size=16"] = ANSWER
    key = {"machine": "m", "commit": "abc"}
    log.write_text("".join(json.dumps({"row": name, **key, "result": answer}) + "\n" for name, answer in rows.items()))
    (tmp_path / "performance.md").write_text("# Old\n<!-- reading -->\nBy hand.\n<!-- /reading -->\n| old |\n")
    assert "4 rows" in render.render(log, tmp_path)
    assert "4 rows" in render.render(log, tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert "| **11.00x** | reached | 4.0x less | 5x less (missed) |" in page
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
        "seconds": {name: {"channels_last": 3.0, "kernels": times} for name, times in dearer.items()},
        "dearer": {name: {"channels_last": 3.0, "kernels": times} for name, times in dearer.items()},
    }
    said = module("render").epochs(row)[-4:]
    assert [line.split(" | ")[-1].strip("| ") for line in said] == ["", "stretch reached", "reached", "missed"]
    assert "| a | 10.0 M | 3.000 s | 1.200 s | 3.00x | **1.20x** |" in said[1]
