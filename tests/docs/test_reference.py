"""Every public symbol has a page, which says something."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from types import ModuleType

import pytest

import oche
from docs.snippets import ROOT


def made() -> ModuleType:
    """docs/make_api.py as a module."""
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


API = made()
SYMBOLS = [name for names in API.symbols().values() for name in names]


def test_the_list_is_that_of_the_package() -> None:
    """Run `python docs/make_api.py` after adding or removing a public symbol."""
    assert API.PAGE.read_text(encoding="utf-8") == API.page()


def test_every_name_of_the_package_is_there() -> None:
    there = {name.removeprefix("oche.") for name in SYMBOLS} | set(API.NAMED)
    assert set(oche.__all__) <= there
    assert {f"testing.{name}" for name in importlib.import_module("oche.testing").__all__} <= there
    assert len(SYMBOLS) == len(set(SYMBOLS))


@pytest.mark.parametrize("name", SYMBOLS)
def test_a_symbol_says_what_it_is(name: str) -> None:
    home, _, last = name.rpartition(".")
    thing = getattr(importlib.import_module(home), last)
    told = inspect.getdoc(thing)
    assert told
    assert not told.startswith(f"{last}(")  # a dataclass without a docstring gets its signature
