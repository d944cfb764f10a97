"""Every method names its papers, every paper is in papers.bib, and the methods' pages are those of their docstrings."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from oche.errors import UserError
from oche.methods import METHODS
from oche.methods.papers import cite, entries

DOCS = Path(__file__).parents[2] / "docs"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_methods", DOCS / "make_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_cited(name: str) -> None:
    papers = METHODS[name]().papers
    assert papers
    text = cite(papers)
    assert re.findall(r"@\w+\{([^,]+),", text) == list(papers)
    assert text.count("\n  title = {") == text.count("\n  author = {") == text.count("\n  year = {") == len(papers)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_page_says_what_it_rests_on(name: str) -> None:
    """Its rule's source and evidence, how it deviates, its cost; and in `oche list methods` it takes one line of 80 columns."""
    made = script()
    assert len(made.first_line(METHODS[name])) <= 60
    text = made.about(METHODS[name])
    assert re.search(r"Published|Taken from code|[Ff]rom code|Stated by the paper|Recalled", text)
    for heading in (
        "Deviations from the paper: ",
        r"Deviations from the (script of the published numbers( \([^)]*\))?|authors' code): ",
        "Cost against DARTS: ",
    ):
        assert len(re.findall(heading, text.replace("\n", " "))) == 1, heading


def test_entries_are_in_order_and_balanced() -> None:
    found = entries()
    assert list(found) == sorted(found)
    assert all(text.count("{") == text.count("}") for text in found.values())


def test_an_unknown_paper_is_named() -> None:
    with pytest.raises(UserError, match="liu2019darts"):
        cite(["liu2019dart"])


def test_the_pages_are_up_to_date() -> None:
    """Run `python docs/make_methods.py` after changing a method."""
    made = script().pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "methods").glob("*.md")}
    assert there.keys() == made.keys()
    assert [name for name in made if made[name] != there[name]] == []


def test_the_index_has_the_numbers_of_the_results() -> None:
    index = (DOCS / "methods" / "README.md").read_text(encoding="utf-8")
    trials = [json.loads(line) for line in (DOCS / "results" / "methods_nb201.jsonl").read_text().splitlines()]
    for name in METHODS:
        (row,) = (line.split(" | ") for line in index.splitlines() if line.startswith(f"| [{name}]("))
        version = f"{name if name.startswith('rf_') else f'rf_{name}'}_fast"
        for arm, said in ((name, row[2]), (version, row[3])):
            found = [trial["values"]["cifar10/test"] for trial in trials if trial["method"] == arm]
            assert said.split(" ± ")[0] == (f"{sum(found) / len(found):.2f}" if found else ""), arm
