"""The pages in a real browser: quiet, whole in both themes and on a phone, asking for nothing; the slider moves; names stay names."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from browsing import Browser, chromium, missing
from oche.data import for_training
from oche.genotype import Genotype
from oche.report import render, watch
from oche.report.side_by_side import write_compared
from oche.run import Run
from oche.training.samples import augmented
from reference.names import EVIL
from reference.tiny import tiny_data

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

CELLS = [Genotype.parse(f"nb201:{index}") for index in (9930, 1462, 6111)]
WIDTHS, THEMES = (390, 1280), ("light", "dark")
LIMIT = 6 * 2**20


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


def epoch(n: int, **more: object) -> dict[str, object]:
    return {
        "kind": "epoch", "epoch": n, "phase": "search", "weight_loss": 1.0 / (n + 1), "weight_accuracy": 0.5, "arch_loss": 1.0,
        "arch_accuracy": 0.4, "entropy": 0.9, "skips": {"cell": 1}, "seconds": 2.0, **more,
    }  # fmt: skip


def new_run(folder: Path, names: list[str]) -> Run:
    """A finished search of images whose classes have these names, with images of its own."""
    run, size = Run.create(folder), len(names)
    run.write(Run.CONFIG, json.dumps(EVIL[0]).join(("[request]\nmethod = ", "\n")).encode())
    for n in range(6):
        run.write(Run.genotype(n), CELLS[n % 3].to_json().encode())
        run.log(epoch(n, genotype=str(CELLS[n % 3])))
    run.write(Run.GENOTYPE, CELLS[0].to_json().encode())
    run.write("network/card.json", b'{"parameters": 73000, "multiply_adds": 12500000, "size": 310000}')
    run.log({"kind": "test", "accuracy": 0.9, "loss": 0.3, "floor": 0.5, "classes": size, "predicted": size})
    matrix = [[9 * (i == j) + (abs(i - j) == 1) for j in range(size)] for i in range(size)]
    run.log({"kind": "confusion", "classes": names, "matrix": matrix})
    data = tiny_data(8, channels=3)
    run.write(Run.AUGMENTED, augmented(data, for_training(data), 0))
    picture = json.loads(run.read(Run.AUGMENTED))["entries"][0]["original"]
    wrong = {"name": names[0], "true": names[0], "said": names[-1], "note": "97% sure", "picture": picture}
    run.write(Run.MISTAKES, json.dumps({"task": "classify", "wrong": 3, "of": 30, "entries": [wrong] * 3}).encode())
    return run


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(new_run(tmp_path_factory.mktemp("evil") / "a <b> [red] $_{ {{ 7*7 }}", EVIL))


def assert_whole(browser: Browser, address: str, width: int, theme: str) -> None:
    """The page fits, says nothing, asks for nothing else, and its pictures and plots are drawn."""
    browser.show(address, width, theme)
    assert browser.console() == []
    assert [asked for asked in browser.requests() if asked != address] == []
    assert browser.sideways() <= 0
    assert browser.ask("return [...document.images].every(image => image.naturalWidth > 0)")
    assert browser.ask("return [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_a_report_is_quiet_and_fits(browser: Browser, evil: Path, width: int, theme: str) -> None:
    assert_whole(browser, evil.as_uri(), width, theme)
    ground = browser.ask("return getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) > 384
    assert bright == (theme == "light")
    assert evil.stat().st_size < LIMIT


def test_the_slider_goes_through_the_cells(browser: Browser, evil: Path) -> None:
    browser.show(evil.as_uri())
    seen = "return [...document.querySelectorAll('#frames figure')].filter(f => f.offsetParent !== null).map(f => f.dataset.label)"
    assert browser.ask(seen) == ["epoch 5"]
    slider = browser.driver.find_element("id", "epoch")
    for expected in ("epoch 4", "epoch 3"):
        slider.send_keys("\ue012")  # the left arrow key
        assert browser.ask(seen) == [expected]
        assert browser.ask("return document.getElementById('epoch-label').textContent") == expected
    assert browser.console() == []


def test_names_are_text_and_nothing_runs(browser: Browser, evil: Path) -> None:
    browser.show(evil.as_uri())
    assert browser.ask("return document.scripts.length") == 3
    assert browser.ask("return document.querySelectorAll('b, img[src=x]').length") == 0
    words = browser.ask(
        "return document.querySelector('#classes').textContent + document.querySelector('#mistakes').textContent"
    )
    assert all(name in words for name in EVIL)
    assert browser.ask("return document.title") == "a <b> [red] $_{ {{ 7*7 }} · oche"


def test_two_classes_and_a_thousand(browser: Browser, tmp_path: Path) -> None:
    for count in (2, 1000):
        page = render(new_run(tmp_path / str(count), [f"class {n}" for n in range(count)]))
        assert page.stat().st_size < LIMIT
        for width in WIDTHS:
            assert_whole(browser, page.as_uri(), width, "light")
        pairs = browser.ask("return document.querySelectorAll('#confusion tr').length")
        assert pairs == (0 if count == 2 else 41)


def test_runs_side_by_side(browser: Browser, tmp_path: Path) -> None:
    runs = [new_run(tmp_path / name, EVIL) for name in ("one", "two")]
    page = write_compared(runs, tmp_path / "page.html")
    for width in WIDTHS:
        assert_whole(browser, page.as_uri(), width, "dark")


def test_a_watched_page_obeys_its_policy_and_grows(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plots are drawn under the policy, which lets nothing else run, and a line that is logged appears by itself."""
    monkeypatch.setattr(watch, "EVERY", 2)
    run = new_run(tmp_path / "run", EVIL)
    with watch.server(run) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            assert_whole(browser, f"http://127.0.0.1:{made.server_port}/", 1280, "light")
            run.log(epoch(6, warning="Skips take over."))
            for _ in range(60):
                if "Skips take over." in browser.ask("return document.body.textContent"):
                    break
                time.sleep(0.5)
            assert "Skips take over." in browser.ask("return document.body.textContent")
            assert browser.console() == []
            ran = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); return window.ran"
            assert browser.ask(ran) is None
            assert any("Content Security Policy" in said for said in browser.console())
        finally:
            made.shutdown()
            thread.join()
            browser.driver.get("about:blank")


def test_masks_are_shown_over_their_images(browser: Browser, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["sky", "tree"])
    picture = json.loads(run.read(Run.AUGMENTED))["entries"][0]["original"]
    wrong = {
        "name": "a.png",
        "note": "7% of the pixels wrong",
        "picture": picture,
        "truth": picture,
        "painted": picture,
    }
    run.write(Run.MISTAKES, json.dumps({"task": "segment", "wrong": 3, "of": 30, "entries": [wrong] * 3}).encode())
    page = render(run)
    for width in WIDTHS:
        assert_whole(browser, page.as_uri(), width, "light")
    assert browser.ask("return document.querySelectorAll('#mistakes img').length") == 9
