"""Writes docs/api.md: a list of every public symbol, from which Sphinx makes a page each. `python docs/make_api.py`; a test compares."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import oche

PAGE = Path(__file__).parent / "api.md"

NAMED = {
    "METHODS": "[a page each](methods/README.md)",
    "SPACES": "[how they are built](add_a_space.md)",
}
"""Registries, which have other pages than their docstrings."""

PARTS = {
    "Architecture gradients": "oche.search.bilevel",
    "Relaxations": "oche.search.relaxations",
    "Edges": "oche.spaces.edges",
    "Terms of the losses": "oche.search.terms",
    "Selections": "oche.search.selection",
    "Callbacks": "oche.search.callbacks",
    "Which weights learn": "oche.search.trainable",
    "Stages": "oche.search.stages",
    "Schedules": "oche.schedule",
    "Optimisers": "oche.optim",
    "Spaces": "oche.spaces.base",
    "Tasks": "oche.tasks",
    "Protocols": "oche.training.protocols",
    "Tables": "oche.tables.tabular",
    "Probes": "oche.watch.probes",
    "Trackers": "oche.watch.trackers",
    "Contract tests": "oche.testing",
}

HEAD = """# Reference

A page for each public symbol, made from its docstring. The maths of the architecture gradients is on [a page of its own](gradients.md).
`oche.METHODS` and `oche.SPACES` are the methods ({METHODS}) and spaces ({SPACES}) by name, as `oche list methods` and `oche list spaces`
show them.

<!-- Written by docs/make_api.py; edit that instead. -->
"""


def public(module: str) -> list[str]:
    """The public classes and functions of a module, by their whole names: those of `__all__`, else its own in the order of its text."""
    found = importlib.import_module(module)
    listed = getattr(found, "__all__", None)
    if listed is not None:
        return [f"{module}.{name}" for name in listed]
    own = [
        (inspect.getsourcelines(thing)[1], name)
        for name, thing in vars(found).items()
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == module and name[0] != "_"
    ]
    return [f"{module}.{name}" for _, name in sorted(own)]


def symbols() -> dict[str, list[str]]:
    """Heading -> whole names."""
    root = [f"oche.{name}" for name in oche.__all__ if name not in NAMED]
    verbs = [name for name in root if not inspect.isclass(getattr(oche, name.removeprefix("oche.")))]
    classes = [name for name in root if name not in verbs]
    parts = {heading: public(module) for heading, module in PARTS.items()}
    return {"Verbs": verbs, "What they take and return": classes, **parts}


def page() -> str:
    """The text of the page."""
    text = HEAD.format(**NAMED)
    for heading, names in symbols().items():
        rows = "\n".join(f"   {name}" for name in names)
        text += f"\n## {heading}\n\n```{{eval-rst}}\n.. autosummary::\n   :toctree: reference\n   :nosignatures:\n\n{rows}\n```\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
