"""The source of functions and classes together with all that they use, as the text of one file that needs none of oche's modules."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
"""The folder of oche's modules."""


@dataclass(frozen=True)
class Module:
    """A parsed module of oche: its definitions by name, as text, and what it imports, as name -> (module, name there or "")."""

    name: str
    definitions: Mapping[str, ast.stmt]
    imports: Mapping[str, tuple[str, str]]
    lines: tuple[str, ...]

    def text(self, name: str) -> str:
        """A definition as it stands in the file, decorators included."""
        node = self.definitions[name]
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        return "\n".join(self.lines[first - 1 : node.end_lineno])


@cache
def module(name: str) -> Module:
    """The module of that name, parsed."""
    file = PACKAGE.parent.joinpath(*name.split("."))
    text = file.with_suffix(".py").read_text(encoding="utf-8")
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, tuple[str, str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions |= {name: node for target in targets for name in _bound(target)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
    return Module(name, definitions, imports, tuple(text.splitlines()))


@dataclass
class Gathered:
    """Definitions in an order in which each stands behind those that it uses, and the imports that they need.

    `given` are names that the file defines by itself: nothing of oche's is taken for them.
    """

    given: frozenset[str]
    imports: set[str] = field(default_factory=set)
    definitions: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)
    _begun: list[ast.stmt] = field(default_factory=list)

    def add(self, where: str, name: str) -> None:
        """Adds a definition of the module `where` and all that it uses.

        Raises:
            ValueError: the name stands for something else already, in another module.
        """
        if name in self.given:
            return
        if (home := self._seen.setdefault(name, where)) != where:
            raise ValueError(f"{name} of {where} has the name of another definition, in {home}: rename one of them")
        here = module(where)
        node = here.definitions[name]
        if node in self._begun:
            return
        self._begun.append(node)
        self.use(where, names_in(node))
        self.definitions[name] = here.text(name)

    def use(self, where: str, names: Iterable[str]) -> None:
        """Adds what the names stand for in the module `where`: definitions, or imports from elsewhere."""
        here = module(where)
        for name in names:
            if name in here.definitions:
                self.add(where, name)
            elif name in here.imports and name not in self.given:
                origin, there = here.imports[name]
                if origin.split(".")[0] == "oche":
                    self.add(origin, there)
                else:
                    self.imports.add(_import(origin, there, name))


def names_in(node: ast.AST) -> list[str]:
    """All names that a piece of code mentions, in the order of their first appearance."""
    return list(dict.fromkeys(n.id for n in ast.walk(node) if isinstance(n, ast.Name)))


def _bound(target: ast.expr) -> list[str]:
    """The names that an assignment to `target` gives a value, those of a tuple as well."""
    return [n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _import(origin: str, there: str, name: str) -> str:
    what = there or origin
    as_name = "" if what == name else f" as {name}"
    return f"from {origin} import {there}{as_name}" if there else f"import {origin}{as_name}"


def sorted_imports(found: set[str]) -> list[str]:
    """The imports of the file, torch's and the standard library's, names of one module on one line."""
    named: dict[str, list[str]] = {}
    plain = {"import hashlib", "import torch"}
    for line in found | {
        "from torch import nn",
        "from pathlib import Path",
        "from safetensors.torch import load as weights_in",
    }:
        words = line.split()
        if words[0] == "import":
            plain.add(line)
        else:
            named.setdefault(words[1], []).append(" ".join(words[3:]))
    lines = [*plain, *(f"from {origin} import {', '.join(sorted(set(names)))}" for origin, names in named.items())]
    third = [line for line in lines if line.split()[1].split(".")[0] in ("torch", "safetensors")]
    ordered = sorted(set(lines), key=lambda line: (line.startswith("from"), line.split()[1]))
    return [*(line for line in ordered if line not in third), "", *(line for line in ordered if line in third)]
