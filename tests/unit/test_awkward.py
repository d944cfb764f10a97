"""Whole runs with words that upset terminals, formulas, pages and files: names of classes, and the folder that a run goes to."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from oche.cli import main as cli
from oche.run import Run

CASES = {
    "formula and markup": (("US$_{ A$", "cat [tabby]", "b"), "[/y] run"),
    "scripts of the world": (("\N{CJK UNIFIED IDEOGRAPH-732B}", "\N{CYRILLIC SMALL LETTER BE}%d {0}", "[bold]x^2_"), "it's $_{ [red] 50%"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def plots_of_runs() -> None:
    """They are drawn: in the place of the fixture that leaves them empty."""


@pytest.mark.parametrize("case", CASES)
def test_a_search_and_a_training_with_awkward_names(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings are errors here, so a glyph that a picture lacks would be one."""
    names, out = CASES[case]
    rng = np.random.default_rng(0)
    for c, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(60 * c, 60 * c + 99, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / "data" / name / f"{i}.png"
            )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("oche.api.search.available_formats", tuple)  # exporting takes seconds, and has tests of its own

    def oche(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["oche", *arguments])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert not code, err
        return out

    small = ("--epochs", "1", "--batch", "6", "--device", "cpu", "--threads", "1")
    said = oche("check", "data") + oche("search", "darts", "--data", "data", "--space", "toy", "--budget", "smoke",
                                        "--compare", "0", *small, "--out", out)  # fmt: skip
    assert all(name in said for name in names)
    assert out in said
    said = oche("train", out, "--protocol", "smoke", *small, "--out", f"{out} trained")
    assert f"{out} trained" in said
    for path in (out, f"{out} trained"):
        assert Run.open(Path(path)).has(Run.REPORT)
    page = Path(f"{out} trained", Run.REPORT).read_text()
    assert all(str(escape(name)) in page for name in names)
