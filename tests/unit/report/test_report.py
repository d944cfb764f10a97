"""The report of whole, partial and odd runs: what it says, and that it needs nothing but itself."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from oche.errors import UserError
from oche.genotype import Genotype
from oche.report import render
from oche.run import Run

CELL = Genotype.parse("NB201_9930")
OPS = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
CONFIG = b"""
seed = 3
method = {name = "pcdarts", K = 4}
space = {name = "nb201"}
[data]
name = "digits"
split.val = 0.25
"""


def new_run(folder: Path, name: str = "first") -> Run:
    run = Run.create(folder / name)
    run.write(Run.CONFIG, CONFIG)
    return run


def log_epochs(run: Run, epochs: int) -> None:
    for epoch in range(epochs):
        warm = epoch == 0
        run.log(
            {
                "kind": "epoch", "epoch": epoch, "step": 10 * epoch, "phase": "warm-up" if warm else "search",
                "weight_loss": 2.0 / (epoch + 1), "weight_accuracy": 0.5, "arch_loss": None if warm else 2.125,
                "arch_accuracy": None if warm else 0.4321, "entropy": 1 - 0.1 * epoch, "skips": {"cell": epoch},
                "lr": 0.025, "genotype": str(CELL), "changed": epoch == 2, "seconds": 30.0,
                "images_per_second": 1234.0, "memory_mib": 2048.0,
            }
        )  # fmt: skip


def log_alphas(run: Run, epochs: int, **more: np.ndarray) -> None:
    alpha = np.linspace(-1, 1, epochs * 30).reshape(epochs, 6, 5).astype(np.float32)
    file = io.BytesIO()
    np.savez(file, **{"cell/alpha": alpha, "epoch": np.arange(epochs), **more})
    run.write(Run.ALPHAS, file.getvalue())


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished search with its report."""
    run = new_run(tmp_path_factory.mktemp("runs"))
    log_epochs(run, 4)
    log_alphas(run, 4, **{"ops/cell": np.array(json.dumps([OPS] * 6))})
    run.write(Run.GENOTYPE, CELL.to_json().encode())
    run.log({"kind": "supernet", "val_accuracy": 0.7123, "val_loss": 1.1})
    for cell, accuracy in [("found", 0.9437), ("found", 0.9433), ("random 1", 0.9011), ("random 2", 0.9099)]:
        run.log(
            {
                "kind": "trained",
                "cell": cell,
                "genotype": str(CELL),
                "seed": 0,
                "test_accuracy": accuracy,
                "parameters": 1073466,
            }
        )
    run.log(
        {
            "kind": "comparison", "found_mean": 0.9435, "found_interval": [0.94, 0.947], "random_mean": 0.9055,
            "random_interval": [0.9, 0.911], "relative_improvement": 4.19, "relative_improvement_interval": [2.0, 6.38], "seeds": 2,
        }
    )  # fmt: skip
    render(run)
    return run


class Page(HTMLParser):
    """Reads a page: its words, the sections, what it would load, and whether its elements are properly nested."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words = ""
        self.sections: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = dict(attrs)
        targets = [at.get(key) for key in ("src", "href", "xlink:href", "data", "srcset")]
        self.loads += [target for target in targets if target and not target.startswith(("#", "data:"))]
        if at.get("id"):
            self.ids.append(str(at["id"]))
        if tag == "section":
            self.sections.append(str(at["id"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words += f" {data.strip()}"


def test_the_report_of_a_finished_search(search: Run) -> None:
    run, page = search, Page(search.file(Run.REPORT))
    assert page.sections == ["genotype", "comparison", "curves", "alphas", "epochs", "run", "next", "files"]
    for text in (
        "pcdarts · nb201 · digits",
        "finished",
        "94.35 %",
        "90.55 %",
        "+4.19 %",
        "71.23 %",
        "2 min",
        "2,048 MiB",
        "1,073,466",
    ):
        assert text in page.words
    for text in (
        str(CELL),
        "3 <- skip_connect(0), nor_conv_3x3(1), nor_conv_3x3(2)",
        "43.21",
        "data.split.val",
        f"oche train {run.path}",
    ):
        assert text in page.words
    figures = sorted(file.name for file in (run.path / "figures").iterdir())
    assert figures == sorted(
        f"{name}.svg"
        for name in ("accuracies", "alpha_cell", "cells", "comparison", "entropy", "losses", "memory", "skips", "speed")
    )


def test_the_page_loads_nothing_and_no_id_occurs_twice(search: Run) -> None:
    path = search.file(Run.REPORT)
    page = Page(path)
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    written_here = path.read_text(encoding="utf-8").partition("<script>")[0]  # after it comes plotly.js
    assert "@import" not in written_here
    assert "url(http" not in written_here


def plots_of(path: Path) -> dict[str, dict[str, list[dict[str, list[float]]]]]:
    """The data that the page hands to plotly."""
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("const plots = "))
    return json.loads(line.removeprefix("const plots = ").removesuffix(";"))


def test_the_interactive_plots_hold_the_runs_numbers(search: Run) -> None:
    plots = plots_of(search.file(Run.REPORT))
    losses = {trace["name"]: trace for trace in plots["losses"]["data"]}
    assert losses["weights"]["y"] == pytest.approx([2, 1, 2 / 3, 0.5], abs=1e-5)
    assert losses["architecture"]["x"] == [1, 2, 3]  # nothing was measured in the warm-up
    assert [shape["x0"] for shape in plots["entropy"]["layout"]["shapes"]] == [2]
    strips = plots["alpha_cell"]["data"]
    assert [strip["y"] for strip in strips] == [OPS] * 6
    assert np.sum([strip["z"] for strip in strips], axis=1) == pytest.approx(np.ones((6, 4)), abs=1e-3)


def test_a_search_that_is_still_going(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    log_epochs(run, 2)
    log_alphas(run, 2)
    with run.file(Run.LOG).open("ab") as file:
        file.write(b'{"kind": "epoch", "epo')  # killed in the middle of a line
    page = Page(render(run))
    assert page.sections == ["genotype", "curves", "alphas", "epochs", "run", "next", "files"]
    for text in ("unfinished: 2 epochs so far", "Genotype so far", f"oche report {run.path}"):
        assert text in page.words


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    path = render(run)
    assert path == run.path / "report.html"
    page = Page(path)
    assert page.sections == ["run", "next", "files"]
    assert "nothing logged yet" in page.words
    assert path.stat().st_size < 20_000  # no plotly where there is nothing to plot


def test_the_report_of_a_training(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write(Run.GENOTYPE, CELL.to_json().encode())
    for epoch in range(3):
        run.log(
            {
                "kind": "train_epoch",
                "epoch": epoch,
                "loss": 1.0,
                "accuracy": 0.5,
                "val_loss": 1.5,
                "val_accuracy": 0.45,
                "seconds": 1,
            }
        )
    assert "unfinished: 3 epochs so far" in Page(render(run)).words
    run.log({"kind": "test", "accuracy": 0.9731, "loss": 0.1234})
    run.log({"kind": "confusion", "classes": ["cat", "<dog>"], "matrix": [[90, 10], [17, 83]]})
    run.write(f"{Run.NETWORK}/card.json", b"{}")
    page = Page(render(run))
    assert page.sections == ["genotype", "classes", "confusion", "curves", "epochs", "run", "next", "files"]
    for text in ("finished", "97.31 %", "0.1234", "<dog>", "17", f"oche export {run.path}"):
        assert text in page.words


def test_odd_records_are_no_error(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for record in (
        {"kind": "epoch"},
        {"kind": "epoch", "epoch": 1, "weight_loss": float("nan"), "skips": None, "genotype": "3 none"},
        {"kind": "trained"}, {"kind": "trained", "test_accuracy": 0.5}, {"kind": "comparison"}, {"kind": "confusion"},
        {"kind": "something else", "x": [1]}, {},
    ):  # fmt: skip
        run.log(record)
    assert Page(render(run)).sections == ["comparison", "epochs", "run", "next", "files"]


@pytest.mark.parametrize("names", [json.dumps([OPS] * 6), [json.dumps(OPS)] * 6, [json.dumps(OPS)]])
def test_operation_names_may_come_in_one_string_or_one_an_edge(tmp_path: Path, names: str | list[str]) -> None:
    run = new_run(tmp_path)
    log_alphas(
        run,
        3,
        **{"ops/cell": np.array(names), "edges/cell": np.array([[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]])},
    )
    render(run)
    svg = run.read("figures/alpha_cell.svg").decode()
    assert svg.count(">nor_conv_1x1</text>") == 2  # once for each of two rows of strips
    assert ">1 → 3</text>" in svg


def test_operations_an_edge_does_not_have_take_no_weight(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    log_alphas(run, 3, **{"ops/cell": np.array(json.dumps([OPS[:2]] * 3 + [OPS] * 3))})
    strips = plots_of(render(run))["alpha_cell"]["data"]
    assert [len(strip["z"]) for strip in strips] == [2, 2, 2, 5, 5, 5]
    assert np.sum(strips[0]["z"], axis=0) == pytest.approx(1, abs=1e-3)


def test_reporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    log_alphas(run, 2)
    run.write(Run.GENOTYPE, CELL.to_json().encode())
    first_page = render(run).read_bytes()
    first = {file.name: file.read_bytes() for file in (run.path / "figures").iterdir()}
    assert render(run).read_bytes() == first_page
    assert {file.name: file.read_bytes() for file in (run.path / "figures").iterdir()} == first


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write(Run.ALPHAS, b"PK no archive")
    with pytest.raises(UserError, match=r"alphas\.npz"):
        render(run)
    run.write(Run.CONFIG, b"seed = = 3")
    with pytest.raises(UserError, match=r"run\.toml"):
        render(run)


def test_a_folder_that_is_no_run_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run"):
        render(Run.open(tmp_path))


def test_importing_the_report_is_light_and_rendering_needs_no_torch(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    log_alphas(run, 2)
    code = (
        "import sys, pathlib; from oche.report import render; from oche.run import Run\n"
        "assert not {'torch', 'matplotlib', 'plotly', 'numpy'} & set(sys.modules)\n"
        f"render(Run(pathlib.Path({str(run.path)!r})))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(__file__).parents[3] / "src")})
