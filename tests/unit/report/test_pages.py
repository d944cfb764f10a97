"""Several runs on one page, a run that is watched, and names that look like code."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oche.cli.report import show_reports
from oche.errors import UserError
from oche.genotype import Genotype
from oche.report import render
from oche.report.facts import frames, headline, limits, wilson
from oche.report.sections import citations, class_scores, data_facts
from oche.report.side_by_side import compared, write_compared
from oche.report.watch import policy, server
from oche.run import Run
from reference.names import EVIL

CELLS = [Genotype.parse(f"nb201:{index}") for index in (9930, 1462, 6111)]


def epoch(n: int, **more: object) -> dict[str, object]:
    return {
        "kind": "epoch", "epoch": n, "phase": "search", "weight_loss": 1.0 / (n + 1), "weight_accuracy": 0.5, "arch_loss": 1.0,
        "arch_accuracy": 0.4, "entropy": 0.9, "skips": {"cell": 1}, "seconds": 2.0, **more,
    }  # fmt: skip


def new_run(folder: Path, epochs: int = 3, names: list[str] | None = None) -> Run:
    run = Run.create(folder)
    run.write(Run.CONFIG, b'[request]\nmethod = "darts"\nspace = "nb201"\ndata = "photos"\n')
    for n in range(epochs):
        run.write(Run.genotype(n), CELLS[n % len(CELLS)].to_json().encode())
        run.log(epoch(n, genotype=str(CELLS[n % len(CELLS)])))
    run.write(Run.GENOTYPE, CELLS[0].to_json().encode())
    run.write("network/card.json", b'{"parameters": 73000, "multiply_adds": 12500000, "size": 310000}')
    if names is not None:
        size = len(names)
        run.log({"kind": "test", "accuracy": 0.9, "loss": 0.3, "floor": 0.5, "classes": size, "predicted": size})
        run.log(
            {
                "kind": "confusion",
                "classes": names,
                "matrix": [[9 * (i == j) + 1 for j in range(size)] for i in range(size)],
            }
        )
        for name in names:
            run.log({"kind": "class", "class": name, "iou": 0.5})
    return run


# ---------------------------------------------------------------------- the first screen


def test_what_was_reached_is_said_with_its_interval(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", names=["ant", "bee"])
    said = headline(run, run.records())
    low, high = wilson(0.9, 22)
    assert said == (
        f"The network names 90.0 % of 22 test images rightly [{100 * low:.1f}, {100 * high:.1f}]: better than always naming the "
        "commonest class (50.0 %)."
    )
    assert headline(new_run(tmp_path / "other"), []) == ""


def test_wilson_inverts_the_score_test() -> None:
    """Its ends are the shares from which the observed one is 1.96 standard errors away."""
    low, high = wilson(0.3, 50)
    for end in (low, high):
        assert abs(0.3 - end) / (end * (1 - end) / 50) ** 0.5 == pytest.approx(1.959964)


def test_costs_stand_on_the_first_screen(tmp_path: Path) -> None:
    page = render(new_run(tmp_path / "run")).read_text()
    for figure in ("73,000", "12.50 M", "310.0 KB"):
        assert figure in page[: page.index('<section id="genotype">')]


def test_limits_are_bars_on_the_first_screen_and_a_row_side_by_side(tmp_path: Path) -> None:
    run, words = new_run(tmp_path / "run"), "61,000 of 100,000 parameters (61 %), 12 of 10 multiply-adds (120 %)"
    run.log({"kind": "fitted", "words": words, "shares": {"parameters": 0.61, "multiply_adds": 1.2}})
    assert limits(run.records()) == [
        ("61,000 of 100,000 parameters (61 %)", 0.61),
        ("12 of 10 multiply-adds (120 %)", 1.2),
    ]
    page = render(run).read_text()
    first = page[: page.index('<section id="genotype">')]
    assert re.findall(r'class="(bar[^"]*)"><i style="width: ([\d.]+)%"></i></span>([^<]+)', first) == [
        ("bar", "61.0", "61,000 of 100,000 parameters (61 %)"),
        ("bar over", "100", "12 of 10 multiply-adds (120 %)"),
    ]
    both = write_compared([run, new_run(tmp_path / "free")], tmp_path / "both.html").read_text()
    assert "<td>61,000 of 100,000 parameters (61 %); 12 of 10 multiply-adds (120 %)</td><td></td>" in both
    assert 'class="bar' not in render(new_run(tmp_path / "other")).read_text()


@pytest.mark.slow
def test_the_cells_of_the_epochs(tmp_path: Path) -> None:
    """Equal neighbours once, the last one shown, and no slider where nothing changed."""
    run = new_run(tmp_path / "run", epochs=4)
    run.write(Run.genotype(3), CELLS[2].to_json().encode())
    assert [label for label, _ in frames(run, run.records())] == ["epoch 0", "epoch 1", "epochs 2 to 3"]
    page = render(run).read_text()
    assert page.count("<figure data-label=") == 3
    assert page.count(" hidden>") == 2
    assert 'max="2" value="2"' in page
    still = new_run(tmp_path / "still", epochs=1)
    assert 'type="range"' not in render(still).read_text()


@pytest.mark.slow
def test_many_changes_keep_the_page_small(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", epochs=40)
    found = frames(run, run.records())
    assert len(found) <= 16
    assert found[-1][0] == "epoch 39"


def test_classes_are_scored_from_the_matrix() -> None:
    """Against sums by hand: 10 ants of which 8 are found, 5 bees of which 5 are, 2 ants taken for bees; no cat is there."""
    matrix = [[8, 2, 0], [0, 5, 0], [0, 0, 0]]
    found = class_scores([{"kind": "confusion", "classes": ["ant", "bee", "cat"], "matrix": matrix}])
    assert found is not None
    assert found[1] == [
        ["ant", "10", "80.0", "100.0", "bee (2)"],
        ["bee", "5", "100.0", f"{100 * 5 / 7:.1f}", ""],
        ["cat", "0", "", "", ""],
    ]
    assert (
        class_scores([{"kind": "confusion", "classes": ["a"], "matrix": [[1]]}, {"kind": "class", "class": "a"}])
        is None
    )
    assert class_scores([]) is None


def test_what_to_cite() -> None:
    assert "@" in citations({"method": {"papers": ["liu2019darts"]}})
    assert citations({"method": {"method": {"papers": ["liu2019darts"]}}}).count("@") == 1
    assert citations({"method": {"papers": ["unknown"]}}) == citations({}) == ""


def test_data_come_from_the_ledger(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    assert data_facts(run) == []
    run.write(
        "ledger.json",
        b'{"layout": "a folder per class", "fates": [{"became": "used", "count": 9, "what": "images"}], "notes": ["<i>"]}',
    )
    assert data_facts(run) == [("layout", "a folder per class"), ("used", "9 images"), ("note", "<i>")]
    assert "&lt;i&gt;" in render(run).read_text()
    run.write("ledger.json", b"{")
    assert data_facts(run) == []


# ---------------------------------------------------------------------- names


def harmless(page: str) -> None:
    """No tag of a name's is in the page, and no template was run."""
    shown = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    for name in ("<script>alert", "<b>", "<img"):
        assert name not in shown
    assert "{{ 7*7 }}" in shown
    assert "[/red]" in shown
    assert "$_{" in shown
    assert page.count("</script>") == page.count("<script>")
    assert "alert(1)" not in "".join(re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)).replace(
        "\\u003c", ""
    )


def test_names_from_users_are_text(tmp_path: Path) -> None:
    run = new_run(tmp_path / "a <b>[/red] $_{ {{ 7*7 }}", names=EVIL)
    harmless(render(run).read_text())
    harmless(compared([run, run]))


# ---------------------------------------------------------------------- side by side


def test_runs_side_by_side(tmp_path: Path) -> None:
    one, two = new_run(tmp_path / "one", names=["ant", "bee"]), new_run(tmp_path / "two", epochs=2)
    page = write_compared([one, two], tmp_path / "page.html").read_text()
    assert "2 runs side by side" in page
    assert str(one.path) in page
    assert "90.00 %" in page
    assert page.count("<svg") == 2
    assert write_compared([two, one], tmp_path / "page.html")  # a page of oche's is written anew
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(UserError, match="none of oche's pages"):
        write_compared([one, two], tmp_path / "mine.html")
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_what_the_command_refuses(tmp_path: Path) -> None:
    one, two = new_run(tmp_path / "one").path, new_run(tmp_path / "two").path
    for paths, watch, port, out, said in [
        ([one, two], True, 0, None, "shows one run"),
        ([one], False, 80, None, "--port is for --watch"),
        ([one], False, 0, tmp_path / "x.html", "--out is for several"),
        ([tmp_path / "none"], False, 0, None, "There is no run folder"),
    ]:
        with pytest.raises(UserError, match=said):
            show_reports(paths, watch, port, out)


# ---------------------------------------------------------------------- watching


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Run, int]]:
    run = new_run(tmp_path / "run", epochs=2)
    with server(run) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield run, made.server_address[1]
        made.shutdown()
        thread.join()


def asked(port: int, path: str = "/", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_a_watched_run_is_served_as_it_grows(watched: tuple[Run, int]) -> None:
    run, port = watched
    status, headers, page = asked(port)
    assert status == 200
    assert headers["Refresh"] == "5"
    assert headers["Content-Security-Policy"] == policy(page)
    assert "'unsafe-eval'" not in headers["Content-Security-Policy"]
    assert "http" not in headers["Content-Security-Policy"]
    run.log(epoch(2, warning="Skips <b>take over</b>."))
    assert "Skips &lt;b&gt;take over" in asked(port)[2]
    assert not run.has(Run.REPORT)  # the folder belongs to the run that writes it


def test_other_sites_cannot_ask(watched: tuple[Run, int]) -> None:
    _, port = watched
    assert asked(port, Host="evil.example")[0] == 421
    assert asked(port, Host=f"localhost:{port}")[0] == 200
    assert asked(port, path="/../run.toml")[0] == 404
    with pytest.raises(UserError, match="cannot be taken"):
        server(watched[0], port)


@pytest.mark.slow
def test_reports_import_no_torch(tmp_path: Path) -> None:
    run, other = new_run(tmp_path / "run", names=["ant", "bee"]), new_run(tmp_path / "other")
    code = (
        "import sys; from typer.testing import CliRunner; from oche.cli.main import app\n"
        f"for words in ([{str(run.path)!r}], [{str(run.path)!r}, {str(other.path)!r}, '--out', {str(tmp_path / 'a.html')!r}]):\n"
        "    done = CliRunner().invoke(app, ['report', *words]); assert done.exit_code == 0, done.output\n"
        "import oche.report.watch\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
