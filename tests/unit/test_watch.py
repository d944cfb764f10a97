"""Probes by name: they change nothing of a search, land in its log and report, and refuse what cannot be measured."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from oche.api import search as api
from oche.api.resume import reopen
from oche.config import describe, restore
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods import METHODS
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import Run
from oche.search.loop import search
from oche.search.method import Method
from oche.tables import TABLES, Table
from oche.watch.named import PROBES, Watch, checked
from reference.tiny import tiny_data, tiny_problem

ALL = ("gap", "eigenvalue", "tau", "table")
NUMBERS = {"parameter_free", "discretisation_gap", "eigenvalue", "kendall_tau", "table_accuracy"}


@pytest.fixture
def _all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of the toy space's cells, without the real one's files: cell i scores i."""
    triples = product(("none", "skip_connect", "nor_conv_3x3"), repeat=3)
    cells = tuple(f"|{a}~0|+|{b}~0|{c}~1|" for a, b, c in triples)
    table = Table("all", "toy", cells, {"cifar10/test": lambda: np.arange(27.0)}, ())
    monkeypatch.setitem(TABLES, "nb201", lambda folder: table)


@pytest.mark.usefixtures("_all_cells")
@pytest.mark.parametrize("name", ["darts", "pcdarts", "rf_darts", "random_search_ws"])
def test_a_watched_search_is_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    method = METHODS[name]()
    assert isinstance(method, Method)
    problem = replace(tiny_problem(epochs=2), run=Run.create(tmp_path / "run"))
    own = Watch(ALL, images=8, hessian_images=4, cells=2).callbacks()
    seen = search(problem, replace(method, callbacks=(*method.callbacks, *own)))
    plain = search(replace(problem, run=None), method)
    assert str(seen.genotype) == str(plain.genotype)
    for a, b in zip(seen.state.alpha.values(), plain.state.alpha.values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(seen.state.supernet.parameters(), plain.state.supernet.parameters(), strict=True):
        assert torch.equal(a, b)
    for t, u in zip(seen.state.trajectory.values(), plain.state.trajectory.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(t, u, strict=True))
    assert all(record.keys() >= NUMBERS for record in seen.history)


@pytest.mark.usefixtures("_all_cells")
def test_a_table_tells_what_cells_are_worth_that_no_search_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--table` of a search with a supernet is the probe: a number for each epoch, which chooses nothing."""
    found = api.search(
        "darts", space="toy", data=tiny_data(12), budget="smoke", epochs=2, batch=4, compare=0, device="cpu",
        table="nb201", progress=True, out=tmp_path / "run",
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "table nb201 tells the cifar10/test of each epoch's cell; nothing is chosen by it" in said
    records = [r for r in found.run.records() if r["kind"] == "epoch"]
    table = TABLES["nb201"](None)
    assert isinstance(table, Table)
    for record in records:
        worth = table.value(Genotype.parse(str(record["genotype"]), "toy"), "cifar10/test")
        assert record["table_accuracy"] == worth
        assert f"table {worth:.2f}" in said
    kept = Request("darts", space="toy", table="nb201", probes=("gap",), settings={"probe.images": 8})
    watch = resolve(kept).watch
    assert (watch.names, watch.table, watch.images) == (("gap", "table"), "nb201", 8)
    assert resolve(replace(kept, probes=("table",))).watch.names == ("table",)


@pytest.mark.usefixtures("_all_cells")
def test_a_search_writes_them_into_its_log_and_its_report(tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "space.channels": 4, "split.weights": 0.03, "split.arch": 0.03, "data.val": 0.03,
        "probe.every": 2, "probe.images": 20, "probe.cells": 2, "probe.hessian_images": 4,
    }  # fmt: skip
    run = api.search(
        "darts",
        space="toy",
        budget="smoke",
        epochs=2,
        compare=0,
        settings=settings,
        probes=ALL,
        device="cpu",
        out=tmp_path / "run",
    ).run
    first, second = (r for r in run.records() if r.get("kind") == "epoch")
    assert first.keys() >= NUMBERS
    assert second.keys() >= NUMBERS  # the last, though it is not the second
    assert (run.path / "figures" / "eigenvalue.svg").is_file()
    assert (run.path / "figures" / "tau.svg").is_file()
    assert "Largest Hessian eigenvalue" in run.read(Run.REPORT).decode()
    plan, _ = reopen(run.path)
    assert plan.watch == Watch(ALL, 2, 20, 4, 2)
    assert json.loads(run.read(Run.LOG).splitlines()[0])["table_accuracy"] == first["table_accuracy"]


def test_every_name_has_its_number() -> None:
    assert tuple(PROBES) == ALL
    watch = Watch(ALL, 3, 10)
    assert restore(Watch(), describe(watch), "watch") == watch


def test_the_monitor_speaks_on_the_report(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    run.log({"kind": "epoch", "epoch": 0, "weight_loss": 1.0, "warning": "Epoch 0: the search collapses; do so."})
    assert "the search collapses; do so." in api.render(run).read_text()


@pytest.mark.usefixtures("_all_cells")
@pytest.mark.parametrize(
    ("watch", "space", "steps", "says"),
    [
        (Watch(("eigenvalues",)), "toy", True, "did you mean 'eigenvalue'"),
        (Watch(("gap",)), "toy", False, "this method trains none"),
        (Watch(("tau",)), "darts", True, "holds cells of toy, not of darts"),
        (Watch(("table",), table="nb202"), "toy", True, "did you mean 'nb201'"),
        (Watch(("table",), metric="cifar10/tset"), "toy", True, "did you mean 'cifar10/test'"),
        (Watch(("tau",), cells=28), "toy", True, "28 cells cannot be sampled"),
        (Watch(every=0), "toy", True, "every"),
        (Watch(images=1), "toy", True, "images at least 2"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(watch: Watch, space: str, steps: bool, says: str) -> None:
    with pytest.raises(UserError, match=says):
        checked(watch, space, steps)


def test_a_probe_s_setting_is_checked_as_any_other() -> None:
    with pytest.raises(UserError, match="did you mean 'every'"):
        resolve(Request("darts", settings={"probe.evry": 2}))
    with pytest.raises(UserError, match="trains none"):
        resolve(Request("random_sampling", probes=("gap",)))
