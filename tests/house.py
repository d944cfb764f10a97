"""The house in figures: `python tests/house.py` prints what `test_house.py` asserts.

A room is a folder or a file at the root of the package. Rooms stand in one order, `LAYERS`; so do the modules inside a folder, which
may not import one another in a circle.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "oche"

LAYERS = [  # a room imports from those before it, and from itself
    *("errors", "own", "genotype", "run", "config", "base", "schedule", "optim", "tasks"),
    *("data", "spaces", "fast", "tables", "training", "search", "watch", "methods", "testing", "plan", "report"),
    *("api", "bench", "study", "__init__", "cli", "__main__"),
]

INSIDE = {  # a module imports from those before it; in folders that are not listed here, circles alone are refused
    "training": [
        *(
            "protocols",
            "evaluate",
            "samples",
            "finite",
            "train",
            "pace",
            "memory",
            "compare",
            "graph",
            "timing",
            "latencies",
            *("source", "shipped"),
            "quantize",
        ),
        *("plain", "plain.cells", "plain.nb201", "plain.darts", "plain.chain", "plain.sase", "plain.grid"),
        *("standalone", "plausible", "export"),
    ],
    "search": [
        *(
            "relaxations",
            "weights",
            "keeping",
            "state",
            "bilevel",
            "callbacks",
            "patience",
            "terms",
            "selection",
            "trainable",
            "method",
            "limits",
        ),
        *(
            "begin",
            "replay",
            "checkpoint",
            "finite",
            "connected",
            "record",
            "loop",
            "stages",
            "searcher",
            "preflight",
            "inherit",
        ),
    ],
}

LONG = 400
"""Lines that a file may have."""

INNARDS = re.compile(r"pack|graph|leaf|leaves", re.IGNORECASE)
"""Words that the loop should not need."""

LIST_OF_OPTIONS = 25
"""So many of a search's options by name in one place are a list."""


@dataclass(frozen=True)
class House:
    """The package's modules, {"search.loop": source text}; a folder's `__init__` bears the folder's name."""

    texts: Mapping[str, str]

    @classmethod
    def of(cls, source: Path = SOURCE) -> House:
        """Reads a package's folder."""
        texts = {}
        for path in sorted(source.rglob("*.py")):
            name = ".".join(path.relative_to(source).with_suffix("").parts)
            texts[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
        return cls(texts)

    def changed(self, module: str, added: str) -> House:
        """The house with lines added to a module, which may be new."""
        return House({**self.texts, module: f"{self.texts.get(module, '')}\n{added}\n"})

    @cached_property
    def nodes(self) -> dict[str, tuple[ast.AST, ...]]:
        """Module -> all nodes of its syntax tree."""
        return {name: parsed(text) for name, text in self.texts.items()}

    @cached_property
    def rooms(self) -> list[str]:
        return sorted({room(module) for module in self.texts})

    @cached_property
    def imports(self) -> dict[str, list[tuple[int, str]]]:
        """Module -> (line, module it imports), imports inside functions and the lazy ones of `__init__` included."""
        return {
            module: [(line, self._known(name)) for line, name in imported(text, lazy=module == "__init__")]
            for module, text in self.texts.items()
        }

    def _known(self, name: str) -> str:
        """The module that `oche.search.loop.begin` is in; "__init__" for names of the package itself."""
        parts = name.split(".")[1:]
        while len(parts) > 1 and ".".join(parts) not in self.texts:
            parts.pop()
        return ".".join(parts) or "__init__"

    @cached_property
    def between_rooms(self) -> dict[str, set[str]]:
        """Room -> rooms that it imports."""
        found: dict[str, set[str]] = {name: set() for name in self.rooms}
        for module, targets in self.imports.items():
            found[room(module)] |= {room(target) for _, target in targets} - {room(module)}
        return found

    def within(self, folder: str) -> dict[str, set[str]]:
        """Module -> modules of the same folder that it imports."""
        return {
            module: {target for _, target in targets if room(target) == folder} - {module}
            for module, targets in self.imports.items()
            if room(module) == folder
        }


def room(module: str) -> str:
    """The folder or root file that a module belongs to."""
    return module.partition(".")[0]


@cache
def parsed(text: str) -> tuple[ast.AST, ...]:
    """All nodes of a source text's tree."""
    return tuple(ast.walk(ast.parse(text)))


@cache
def imported(text: str, lazy: bool = False) -> list[tuple[int, str]]:
    """(line, dotted name) of all imports from the package; with `lazy`, also the modules that its strings name."""
    found = []
    for node in parsed(text):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif lazy and isinstance(node, ast.Constant) and re.fullmatch(r"oche[\w.]*", str(node.value)):
            names = [str(node.value)]
        found += [(getattr(node, "lineno", 0), name) for name in names if name.partition(".")[0] == "oche"]
    return found


# ---------------------------------------------------------------------- rules: each returns what breaks it


def unplaced(house: House, layers: list[str] = LAYERS, inside: Mapping[str, list[str]] = INSIDE) -> list[str]:
    """Rooms and modules that the order leaves out, and names in the order that do not exist."""
    ordered = {*layers, *(f"{folder}.{name}" for folder, names in inside.items() for name in names)}
    exist = {*house.rooms, *(module for module in house.texts if room(module) in inside and module not in inside)}
    return [f"{name} has no place in the order" for name in sorted(exist - ordered)] + [
        f"{name} is in the order, but not in the package" for name in sorted(ordered - exist)
    ]


def upward(house: House, layers: list[str] = LAYERS, inside: Mapping[str, list[str]] = INSIDE) -> list[str]:
    """Imports against the order, of rooms or of modules inside a folder."""
    rank = {name: row for row, name in enumerate(layers)}
    rank |= {f"{folder}.{name}": row for folder, names in inside.items() for row, name in enumerate(names)}
    found = []
    for module, targets in house.imports.items():
        for _, target in targets:
            here, there = room(module), room(target)
            if here == there:
                wrong = "." in module and "." in target and rank.get(target, 0) > rank.get(module, len(house.texts))
            else:
                wrong = there not in rank or there == "__init__" or rank[there] >= rank.get(here, 0)
            if wrong:
                found.append(f"{module} -> {target}")
    return sorted(set(found))


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Every name that reaches itself."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            if (name := ahead.pop()) not in seen:
                seen.add(name)
                ahead += graph.get(name, ())
        return seen

    return [name for name in graph if name in reached(name)]


def all_circles(house: House) -> list[str]:
    """Circles of rooms, and of modules inside a folder."""
    return circles(house.between_rooms) + [name for folder in house.rooms for name in circles(house.within(folder))]


def hidden_imports(house: House) -> list[str]:
    """Imports by a function that takes a string, which this file cannot follow, outside of `oche/__init__`."""
    return [f"{module}:{line}" for module, text in house.texts.items() if module != "__init__" for line in hidden(text)]


@cache
def hidden(text: str) -> list[int]:
    """The lines of one text that import so."""
    names = {"import_module", "__import__"}
    return [
        getattr(node, "lineno", 0)
        for node in parsed(text)
        if (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.alias) and node.name in names)
        or (isinstance(node, ast.Constant) and node.value in names)
    ]


def methods_named(house: House, methods: list[str], folder: str = "search") -> list[str]:
    """Strings in the folder that are a method's name, with or without `rf_`: `m.name == "gdas"`."""
    names = {"rf_", *methods, *(f"rf_{name}" for name in methods)}
    return [
        f"{module}:{node.lineno} {node.value!r}"
        for module, nodes in house.nodes.items()
        if room(module) == folder
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]


# ---------------------------------------------------------------------- figures


def floors(house: House) -> int:
    """Rooms on the longest chain of imports."""

    @cache
    def height(name: str) -> int:
        return 1 + max((height(lower) for lower in house.between_rooms[name]), default=0)

    return max(height(name) for name in house.rooms)


def option_lists(house: House) -> list[str]:
    """Places that list most of a search's options: signatures, fields, calls, tables of names. The request's fields are the one list."""
    request = next(
        node for node in house.nodes["plan.request"] if isinstance(node, ast.ClassDef) and node.name == "Request"
    )
    options = set(_names(request))
    return [
        f"{module}:{getattr(node, 'lineno', 0)}"
        for module, nodes in house.nodes.items()
        for node in nodes
        if len(options & set(_names(node))) >= LIST_OF_OPTIONS
    ]


def _names(node: ast.AST) -> Iterator[str]:
    """The names that a signature, a class's fields, a call or a literal list side by side."""
    if isinstance(node, ast.FunctionDef):
        yield from (arg.arg for arg in node.args.args + node.args.kwonlyargs)
    elif isinstance(node, ast.ClassDef):
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                yield field.target.id
    elif isinstance(node, ast.Call):
        yield from (keyword.arg or "" for keyword in node.keywords)
        yield from (name for value in node.args for name in _last(value))
    elif isinstance(node, ast.Dict | ast.List | ast.Tuple | ast.Set):
        for value in node.keys if isinstance(node, ast.Dict) else node.elts:
            if isinstance(value, ast.Constant):
                yield str(value.value)


def _last(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.Name):
        yield value.id
    elif isinstance(value, ast.Attribute):
        yield value.attr


def figures(house: House) -> dict[str, list[str] | int]:
    """The figures by name, in the order of printing; where a list says more than its length, the list."""
    lines = house.texts["search.loop"].splitlines()
    return {
        "names at the root of the package": [name for name in house.rooms if not name.startswith("__")],
        "rooms": len(house.rooms),
        "floors": floors(house),
        "imports between rooms": sum(map(len, house.between_rooms.values())),
        "upward imports": upward(house),
        "circles": all_circles(house),
        f"Python files over {LONG} lines": [
            f"{module} ({text.count(chr(10))})" for module, text in house.texts.items() if text.count("\n") > LONG
        ],
        "lists of a search's options": option_lists(house),
        "lines of search/loop.py on packs, graphs, leaves": [
            f"{i}" for i, line in enumerate(lines, 1) if INNARDS.search(line)
        ],
    }


def main() -> None:
    """Prints the figures, with the places behind those that should be small."""
    for name, found in figures(House.of()).items():
        if isinstance(found, int):
            print(f"{name}: {found}")
        else:
            print(f"{name}: {len(found)}" + (f"  ({', '.join(found)})" if found else ""))


if __name__ == "__main__":
    main()
