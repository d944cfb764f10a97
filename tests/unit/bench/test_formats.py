"""A bench's result for other programs: CSV, LaTeX, a DataFrame, pictures as PDF, and another baseline, each read back."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oche.bench.formats import COLUMNS, frame, latex, values
from oche.bench.matrix import Matrix
from oche.bench.render import overview, pairs, tables
from oche.bench.result import BenchResult
from oche.bench.runner import run_bench, show
from oche.cli.main import app
from oche.errors import UserError
from reference.small_bench import ToyTable, pretend

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def result(matrix: Matrix, table: ToyTable, tmp_path: Path) -> BenchResult:
    return run_bench(matrix, tmp_path / "b", table=table, work=pretend)


def test_all_pairs_are_in_a_file_of_their_own(result: BenchResult) -> None:
    rows = list(csv.DictReader(io.StringIO(result.folder.file("pairs.csv").read_text())))
    lines = [json.loads(line) for line in result.folder.file("trials.jsonl").read_text().splitlines()]
    scores = {(line["method"], line["seed"]): line["values"]["digits/test"] for line in lines}
    assert {frozenset((row["method"], row["other"])) for row in rows} == {
        frozenset(pair) for pair in itertools.combinations(result.matrix.searched, 2)
    }
    for row in rows:
        gaps = [scores[row["method"], seed] - scores[row["other"], seed] for seed in range(3)]
        assert float(row["difference"]) == pytest.approx(sum(gaps) / 3)
        assert float(row["difference"]) >= 0  # the better mean stands first
    least = min(rows, key=lambda row: float(row["t_p"]))
    assert float(least["holm_p"]) == pytest.approx(min(1.0, 3 * float(least["t_p"])))
    ((title, _, told),) = pairs(result)
    apart = [row for row in rows if float(row["holm_p"]) < 0.05]
    assert (len(told), f"{len(apart)} of 3 pairs told apart" in title) == (len(apart), True)


def test_another_baseline_is_asked_for_when_the_bench_is_shown(result: BenchResult) -> None:
    again = show(result.folder.path, baseline="darts")
    by_method = {r.method: r for r in again.rows if r.metric == "digits/test"}
    assert by_method["darts"].difference is None
    before = {r.method: r for r in result.rows if r.metric == "digits/test"}
    ours, theirs = by_method["random_sampling"].difference, before["darts"].difference
    assert ours is not None
    assert theirs is not None
    assert (ours.mean, ours.t_p) == (pytest.approx(-theirs.mean), pytest.approx(theirs.t_p))
    with pytest.raises(UserError, match=r"baseline 'dart'.*darts"):
        show(result.folder.path, baseline="dart")


def test_latex_has_every_cell_and_no_letter_that_it_would_read_as_a_command(result: BenchResult) -> None:
    sheet = overview(result)
    text = latex(sheet)
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert [line.count(" & ") for line in body] == [len(sheet[1]) - 1] * len(sheet[2])
    assert text.count("{") == text.count("}")
    hostile = latex(("50 % & $x_1$", ["#1", "a~b^c"], [["\\input{x}", "< 0.001 | −"]]))
    assert r"\textbackslash{}input\{x\}" in hostile
    assert r"50 \% \& \$x\_1\$" in hostile
    assert r"\#1 & a\textasciitilde{}b\textasciicircum{}c" in hostile


def test_a_data_frame_has_the_rows(result: BenchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list(csv.reader(io.StringIO(result.folder.file("results.csv").read_text())))
    assert tuple(written[0]) == COLUMNS
    assert len(values(result)) == len(written) - 1
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        frame(result)


def test_a_data_frame_in_pandas(result: BenchResult) -> None:
    pytest.importorskip("pandas")
    found = frame(result)
    assert list(found.columns) == list(COLUMNS)
    first = next(r for r in result.rows if r.method == "darts")
    assert found[found.method == "darts"]["mean"].iloc[0] == first.summary.mean


def test_the_command_prints_what_is_asked_for(result: BenchResult) -> None:
    def said(*more: str) -> str:
        ran = CliRunner().invoke(app, ["bench", "show", str(result.folder.path), *more])
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    assert said("--format", "csv") == result.folder.file("results.csv").read_text()
    assert said("--format", "pairs") == result.folder.file("pairs.csv").read_text()
    assert said("--format", "latex").count(r"\begin{table}") > 1
    rows = list(csv.DictReader(io.StringIO(said("--format", "csv", "--baseline", "darts"))))
    assert [row["t_p"] for row in rows if row["method"] == "darts" and row["metric"] == "digits/test"] == [""]


@pytest.mark.slow
def test_pictures_as_pdf(result: BenchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    from oche.bench import page, pictures

    monkeypatch.setattr(page, "pictures", pictures.pictures)
    show(result.folder.path, figures="pdf")
    figures = result.folder.path / "figures"
    assert {p.stem for p in figures.glob("*.pdf")} == {p.stem for p in figures.glob("*.svg")} > {"ranks"}
    first = (figures / "ranks.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    show(result.folder.path, figures="pdf")
    assert (figures / "ranks.pdf").read_bytes() == first


HOSTILE = ("<script>alert(1)</script>", "$_{", "[/red] 50 % & co", "\u05e9\u05dc\u05d5\u05dd a|b")


@pytest.fixture
def hostile(matrix: Matrix, table: ToyTable, tmp_path: Path) -> BenchResult:
    arms = {name: {"method": "darts"} for name in HOSTILE}
    return run_bench(replace(matrix, methods=(), arms=arms), tmp_path / "b", table=table, work=pretend)


def test_names_from_outside_are_literal_in_every_format(hostile: BenchResult) -> None:
    """On the page, in Markdown, in LaTeX and in the CSV files; a parser of our own reads the LaTeX."""
    page, text = (hostile.folder.file(name).read_text() for name in ("report.html", "results.md"))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert not re.search(r"(?<!\\)<script", text)
    assert r"a\|b" in text
    found = {row["method"] for row in csv.DictReader(io.StringIO(hostile.folder.file("results.csv").read_text()))}
    assert found >= set(HOSTILE)
    for sheet in (overview(hostile), *tables(hostile), *pairs(hostile)):
        _title, headings, rows = sheet
        lines = latex(sheet).splitlines()
        body = lines[lines.index(r"    \midrule") + 1 : lines.index(r"    \bottomrule")]
        assert [_cells(line) for line in body] == [len(headings)] * len(rows)
        assert not [line for line in body if line.lstrip().startswith(("[", "*"))]  # options of the \\ before it


def _cells(line: str) -> int:
    """Cells of a line of a table that ends in two backslashes; every brace and dollar sign has its partner."""
    assert line.endswith(r"\\")
    bare = re.sub(r"\\(?:[&%$#_{}]|[A-Za-z]+(?:\{\})?)", "", line.removesuffix(r"\\"))
    assert bare.count("$") % 2 == 0
    assert bare.count("{") == bare.count("}")
    assert not set(bare) & set("%#~^\\")
    return bare.count("&") + 1


def test_methods_are_called_as_is_asked(result: BenchResult) -> None:
    """In tables, files and pictures; what was computed stays, and nothing of it is kept in the folder's own files."""
    shown = show(result.folder.path, names={"darts": "DARTS (ours)"})
    assert {row[4] for row in values(shown)} - {row[4] for row in values(result)} == {"DARTS (ours)"}
    assert [row[6] for row in values(shown)] == [row[6] for row in values(result)]
    for file in ("results.csv", "pairs.csv", "results.md", "report.html"):
        assert "DARTS (ours)" in result.folder.file(file).read_text(), file
    assert latex(overview(shown)).count("DARTS (ours)") == 1
    assert "DARTS (ours)" not in result.folder.file("trials.jsonl").read_text()
    with pytest.raises(UserError, match=r"method 'dart'.*darts"):
        show(result.folder.path, names={"dart": "x"})
    for names in ({"darts": "pcdarts"}, {"darts": "x", "pcdarts": "x"}, {"darts": " "}):
        with pytest.raises(UserError, match="a name of its own"):
            show(result.folder.path, names=names)
    ran = CliRunner().invoke(app, ["bench", "show", str(result.folder.path), "--name", "pcdarts=PC-DARTS"])
    assert "| PC-DARTS | 3 |" in ran.stdout
    ran = CliRunner().invoke(app, ["bench", "show", str(result.folder.path), "--name", "pcdarts"])
    assert isinstance(ran.exception, UserError)
    assert "METHOD=NAME" in str(ran.exception)


def test_signed_numbers_are_mathematics() -> None:
    """A hyphen is no minus sign."""
    row = latex(("", ["a"], [["-3.30"], ["[-5.1, +20.5]"], ["rf-2"], ["- largest"], ["1.0 ± 0.2"]]))
    for said in ("$-3.30$", "{}[$-5.1$, $+20.5$]", "rf-2", "- largest", r"$1.0 \pm 0.2$"):
        assert rf"    {said} \\" in row
