"""Words from outside, such as names of classes, are literal in the terminal, in pictures, on the page and in TOML."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from rich.console import Console

from oche import config
from oche.api.terminal import rows_table
from oche.cli.check import counts_table
from oche.cli.show import show_claims
from oche.report import render
from oche.report.figures import Confusion
from oche.report.static import svg
from oche.run import Run
from reference.tiny import tiny_data

WORDS = ("[/red]", "[bold]x", "US$_{ A$", "<script>alert(1)</script>", 'a"b = \\n', "\N{GREEK SMALL LETTER ALPHA}")


@pytest.mark.parametrize("word", WORDS)
def test_on_the_terminal(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    console = Console(file=io.StringIO(), width=200, highlight=False, markup=False)
    monkeypatch.setattr("oche.cli.show.console", console)
    data = replace(tiny_data(6), classes=(word, "b", "c"))
    ledger = replace(data.ledger, counts={"train": {word: 2, "b": 2, "c": 2}})
    console.print(rows_table([("classes", word)]))
    console.print(counts_table(replace(data, ledger=ledger)))
    show_claims([{"kind": "class", "class": word, "iou": 0.5}, {"kind": "epoch", "warning": word}])
    assert console.file.getvalue().count(word) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("word", WORDS)
def test_in_a_picture_and_in_toml(word: str) -> None:
    picture = svg(Confusion("Confusion", (word, "b"), np.array([[3.0, 1.0], [0.0, 4.0]]))).decode()
    assert (
        str(escape(word)).replace("&#34;", '"') in picture
        or word in picture
        or "&lt;script&gt;alert(1)&lt;/script&gt;" in picture
    )
    assert config.loads(config.dumps({"data": {"classes": [word]}}), "here") == {"data": {"classes": [word]}}


def test_on_the_page(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, config.dumps({"data": {"name": WORDS[3], "classes": list(WORDS)}}).encode())
    run.log({"kind": "test", "accuracy": 0.5, "loss": 1.0})
    for word in WORDS:
        run.log({"kind": "class", "class": word, "f1": 0.5})
    page = render(run).read_text()
    assert WORDS[3] not in page
    for word in WORDS:
        assert str(escape(word)) in page


def test_a_matrix_of_a_thousand_classes_stays_a_small_picture() -> None:
    """No larger than one of 40 classes, with at least 24 names; the picture of 1.6 + 0.4 n inches took 48 GiB."""
    sizes = {}
    for n in (40, 1000):
        picture = svg(Confusion("Confusion", tuple(f"class{i}" for i in range(n)), np.eye(n))).decode()
        sizes[n] = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', picture).groups()  # type: ignore[union-attr]
        assert picture.count("class") >= 2 * 20
        assert len(set(re.findall(r"class\d+", picture))) == (40 if n == 40 else 24)
    assert all(float(large) <= float(small) for large, small in zip(sizes[1000], sizes[40], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000, 1200])
def test_the_report_of_a_run_of_so_many_classes_takes_little_memory(count: int, tmp_path: Path) -> None:
    """A process of its own, that may take 300 MiB in all, draws every picture and the page."""
    run = Run.create(tmp_path / "run")
    names = [f"{WORDS[i % len(WORDS)]} {i}" for i in range(count)]
    run.write(Run.CONFIG, config.dumps({"data": {"name": "many", "classes": names}}).encode())
    for epoch in range(3):
        run.log(
            {"kind": "train_epoch", "epoch": epoch, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
        )
    run.log({"kind": "test", "accuracy": 0.5, "loss": 1.0, "metric": "accuracy", "floor": 1 / count})
    run.log({"kind": "confusion", "classes": names, "matrix": np.eye(count, dtype=int).tolist()})
    told = (
        "import sys\nfrom pathlib import Path\nfrom oche.report import render\nfrom oche.run import Run\n"
        "render(Run.open(Path(sys.argv[1])))\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", told, str(run.path)], capture_output=True, text=True, check=True)
    assert run.has(Run.REPORT)
    assert int(done.stdout) < 300 * 1024


def test_an_epochs_line_has_the_cell_where_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Piped, every epoch is a line; on a terminal a tenth of them stay, beside the bar."""
    from oche.api import terminal

    record = {
        "epoch": 3, "phase": "search", "weight_loss": 1.0, "weight_accuracy": 0.5, "arch_loss": None, "entropy": 0.9,
        "skips": {"cell": 2}, "genotype": "|none~0|", "changed": True,
    }  # fmt: skip
    assert terminal._epoch_line(record).endswith("skips 2  -> |none~0|")
    assert terminal._epoch_line({**record, "changed": False}).endswith("skips 2")
    for piped, every in ((True, 1), (False, 8)):
        monkeypatch.setattr(terminal, "console", Console(force_terminal=not piped))
        show = terminal.Show(quiet=True)
        show._progress("search", 80, 1.0)
        assert show.every == every
