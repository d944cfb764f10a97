"""Every block on the pages: run where the page says so, and otherwise held to the command line and the modules that there are."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.material import lay
from docs.snippets import PAGES, ROOT, Block, blocks, commands
from oche.bench.planned import trials
from oche.cli.main import app
from oche.study import study_from

ALL = [block for page in PAGES for block in blocks(page)]
RUN = sorted({block.page for block in ALL if block.runs})


def parsed(words: list[str]) -> None:
    """Has the command line read the words, without running anything; raises what it would say of a mistake."""
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="oche")
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    if words and hasattr(command, "commands") and not words[0].startswith("-"):
        raise ValueError(f"no command {words[0]}")
    command.make_context("oche", list(words), parent=context)


@pytest.mark.parametrize("block", [b for b in ALL if b.kind in ("sh", "bash")], ids=str)
def test_commands_are_read(block: Block) -> None:
    if block.mark.startswith("not checked: "):
        return
    for words in commands(block):
        parsed(words)


@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "python"], ids=str)
def test_python_imports_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "oche":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "oche":
            assert hasattr(importlib.import_module("oche"), node.attr), node.attr


@pytest.mark.parametrize("block", [b for b in ALL if b.kind in ("toml", "json")], ids=str)
def test_files_are_well_formed(block: Block) -> None:
    (tomllib.loads if block.kind == "toml" else json.loads)(block.text)


def test_commands_that_are_wrong_are_found() -> None:
    parsed(["search", "darts", "--set", "space.cells=3"])
    for words in (["serch"], ["search", "--sapce", "nb201"], ["train", "x", "--epochs", "many"]):
        with pytest.raises(Exception, match=r"no command|No such option|valid integer"):
            parsed(words)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_pages_run(page: Path, tmp_path: Path) -> None:
    """All blocks of a page that are marked, in order, in one folder that has what they name."""
    marked = [block for block in blocks(page) if block.runs]
    if any("--address local" in block.text for block in marked):
        pytest.importorskip("ray", reason="the extra `ray` is not installed")
    lay(page, tmp_path)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    oche = ROOT / "tests" / "docs" / "smaller.py"
    for name, words in {"oche": f'-W ignore "{oche}"', "python": "-W ignore"}.items():
        (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (bin_ / name).chmod(0o755)
    there = os.environ | {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "OCHE_DATA": str(tmp_path),
    }
    for block in marked:
        if block.kind == "toml":  # a bench's file, if it is none of data
            if block.file:
                continue
            (tmp_path / "page.toml").write_text(block.text)
            command = [str(bin_ / "oche"), "bench", "--config", "page.toml", "--out", f"runs/of-line-{block.line}"]
        elif block.kind == "sh":
            command = ["sh", "-e", "-c", block.text]
        elif block.file:
            continue
        else:
            command = [str(bin_ / "python"), "-c", block.text]
        env = there | {"OCHE_PAGES": "small" if block.mark == "run small" else ""}
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, f"{block}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"


def test_the_file_of_a_study_is_read(tmp_path: Path) -> None:
    """That of docs/study.md: every arm is resolved, as far as its trials."""
    (block,) = (b for b in ALL if b.page.stem == "study" and b.kind == "toml")
    (tmp_path / "study.toml").write_text(block.text)
    asked = study_from("split", tmp_path / "study.toml", {"seeds": 1})
    assert {trial.method for trial in trials(asked.matrix)} >= {"base", "two_stage"}
    assert (asked.measure.closely, asked.measure.retrained) == (("base",), ("two_stage",))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda file: file.name)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    there = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(example)]
    ended = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout


def test_no_command_hides_in_an_indented_block() -> None:
    """Which no mark stands before."""
    for page in EVERYWHERE:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        hidden = re.findall(r"^ {4,}(?:oche|python|pip|make) .*$", text, flags=re.MULTILINE)
        assert not hidden, f"{page}: {hidden}"


def test_every_block_is_run_or_says_why_not() -> None:
    """Or names the test that runs it, which names the page."""
    for block in ALL:
        how, _, what = block.mark.partition(": ")
        assert block.kind, f"{block}: a block has a language; what is no code is text"
        if block.kind in ("sh", "bash", "python", "toml", "json"):
            assert how in ("run", "run small", "run by", "not run", "not checked"), (
                f"{block}: {block.mark or 'no mark'}"
            )
        if how == "run by":
            assert block.page.stem in (ROOT / what).read_text(), f"{block}: {what}"
        if how.startswith("not"):
            assert len(what) > 5, f"{block}: no reason"
            for file in re.findall(r"(?:docs|tests)/[\w/]+(?:\.\w+)?", what):
                assert (ROOT / file).exists(), f"{block}: {file}"


def test_every_trouble_of_the_list_is_answered() -> None:
    """docs/faq.md has seventeen questions, each with a place in the product."""
    text = (ROOT / "docs" / "faq.md").read_text()
    questions = [part for part in text.split("\n\n") if part.startswith("**")]
    assert len(questions) == 17
    assert all("](" in part or "`" in part for part in questions)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MyST and GitHub make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


EVERYWHERE = [*PAGES, ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", EVERYWHERE, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files are there, and headings that are named in them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target or target.startswith("mailto:") or not (target or heading):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if heading and file.suffix == ".md":
            assert heading in anchors(file), f"{page.name}: {target}#{heading}"


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One, two: `three`\n")
    for text, fine in [
        ("[x](b.md#one-two-three)", True),
        ("[x](b.md#two)", False),
        ("[x](c.md)", False),
        ("[x](#y)", False),
    ]:
        (tmp_path / "a.md").write_text(text)
        if fine:
            test_links_lead_somewhere(tmp_path / "a.md")
        else:
            with pytest.raises(AssertionError):
                test_links_lead_somewhere(tmp_path / "a.md")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="`make docs` installs the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path / "site")]
    ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    said = [line for line in ended.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert not said
    assert (tmp_path / "site" / "api.html").is_file()
