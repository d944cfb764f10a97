"""What a shell offers for the value of an option: names that oche lists, read from its source, so that no key press waits for torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

REGISTRIES = {
    "methods": ("methods/__init__.py", "ENTRIES"),
    "spaces": ("spaces/__init__.py", "SPACES"),
    "tasks": ("tasks.py", "TASKS"),
    "protocols": ("training/protocols.py", "PROTOCOLS"),
    "probes": ("watch/named.py", "PROBES"),
    "trackers": ("watch/trackers.py", "TRACKERS"),
    "rivals": ("spaces/rivals.py", "RIVALS"),
    "data": ("data/reading/readers.py", "SETS"),
    "budgets": ("methods/budgets.py", "NAMES"),
}
"""Kind -> file and name of the registry that holds it."""

OFFERED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "method": (("methods",), ("auto",)),
    "space": (("spaces",), ("auto",)),
    "task": (("tasks",), ()),
    "protocol": (("protocols",), ("auto",)),
    "budget": (("budgets",), ()),
    "probes": (("probes",), ()),
    "probe": (("probes",), ()),
    "track": (("trackers",), ()),
    "rivals": (("rivals",), ("auto", "none")),
    "data": (("data",), ()),
    "genotype": (("rivals",), ()),
    "device": ((), ("auto", "cpu", "cuda", "mps")),
    "precision": ((), ("32", "bf16")),
    "pick": ((), ("validation",)),
    "checkpoint": ((), ("kept", "last", "best")),
    "formats": ((), ("pt2", "onnx", "int8")),
    "evaluate": ((), ("table", "train", "both")),
    "table": ((), ("nb201",)),
    "kind": ((), ("methods", "spaces", "ops", "data", "budgets", "protocols", "genotypes", "rivals")),
}
"""Option -> kinds of names, and further values."""

FROZEN = "rf_"


@cache
def names(kind: str) -> tuple[str, ...]:
    """The names of a kind, as its registry's source has them."""
    file, registry = REGISTRIES[kind]
    home = find_spec("oche")
    assert home
    assert home.origin
    tree = ast.parse((Path(home.origin).parent / file).read_text(encoding="utf-8"))
    assigned: dict[str, ast.expr] = {}
    for node in tree.body:
        targets = (
            [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        )
        value = node.value if isinstance(node, ast.AnnAssign | ast.Assign) else None
        assigned |= {t.id: value for t in targets if isinstance(t, ast.Name) and value is not None}
    return tuple(_listed(registry, assigned))


def _listed(name: str, assigned: Mapping[str, ast.expr]) -> Iterator[str]:
    """The keys of a table, or the items of a tuple; those of a table that is spread in it as well."""
    value = assigned.get(name)
    if isinstance(value, ast.Dict):
        for key, item in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value)
            elif key is None and isinstance(item, ast.Name):
                yield from _listed(item.id, assigned)
    elif isinstance(value, ast.Tuple):
        yield from (str(item.value) for item in value.elts if isinstance(item, ast.Constant))


def values(option: str) -> Callable[[str], list[str]] | None:
    """What completes an option's value from its beginning; None for an option whose values are no names."""
    if option not in OFFERED:
        return None
    kinds, more = OFFERED[option]

    def complete(incomplete: str) -> list[str]:
        known = [*more, *(name for kind in kinds for name in names(kind))]
        before, comma, last = incomplete.rpartition(",") if option == "rivals" else ("", "", incomplete)
        frozen = FROZEN if option == "method" and last.startswith(FROZEN) else ""
        found = dict.fromkeys([*known, *(frozen + name for name in known if frozen and name not in more)])
        return [before + comma + name for name in found if name.startswith(last)]

    return complete
