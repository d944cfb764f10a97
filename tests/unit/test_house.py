"""The rules of the house that a linter does not know: import order, no copies, torch only where it is needed."""

from __future__ import annotations

import ast
import pydoc
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import oche
from house import INSIDE, LAYERS, SOURCE, House, all_circles, figures, hidden_imports, methods_named, unplaced, upward
from oche.methods import METHODS

HOUSE = House.of()

TORCH_FREE = (
    "oche",
    "oche.errors",
    "oche.genotype",
    "oche.run",
    "oche.config",
    "oche.report",
    "oche.cli.main",
)

FORBIDDEN_NAMES = {"utils", "util", "helpers", "misc", "common"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def unit(path: Path) -> str:
    """The module or package directly below oche that a file belongs to: spaces/toy.py -> spaces."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(SOURCE)}:{line}"


# ---------------------------------------------------------------------- import order


@cache
def whole() -> set[str]:
    """The rules that the house breaks as it is."""
    return broken(HOUSE)


def broken(house: House, layers: list[str] = LAYERS) -> set[str]:
    """The rules that a house breaks."""
    found = {
        "place": unplaced(house, layers),
        "order": upward(house, layers),
        "circle": all_circles(house),
        "hidden": hidden_imports(house),
        "method": methods_named(house, list(METHODS)),
    }
    return {rule for rule, places in found.items() if places}


def test_the_house_keeps_its_rules() -> None:
    assert not unplaced(HOUSE)
    assert not upward(HOUSE)
    assert not all_circles(HOUSE)
    assert not hidden_imports(HOUSE)
    assert not methods_named(HOUSE, list(METHODS))


@pytest.mark.parametrize(
    ("rule", "module", "added"),
    [
        ("order", "spaces.ops", "import oche.search.loop"),
        ("order", "spaces.ops", "from oche.search.loop import search"),
        ("order", "spaces.ops", "from oche import methods"),
        ("order", "spaces.ops", "from oche import search"),
        ("order", "spaces.ops", "import oche"),
        ("order", "spaces.ops", "def f():\n    from oche.methods.darts import darts"),
        ("order", "errors", "if TYPE_CHECKING:\n    from oche.spaces.edges import Edge"),
        ("order", "training.train", "from oche.search.loop import begin"),
        ("order", "__init__", "from oche.cli.main import main"),
        ("order", "__init__", "_HOMES['main'] = 'oche.cli.main'"),
        ("order", "__init__", "import_module(f'oche.cli.{name}')"),
        (
            "order",
            "search.state",
            "from oche.search.preflight import estimate",
        ),  # wrong way inside a folder, and no circle
        ("order", "search.relaxations", "from oche.search import terms"),
        ("circle", "search.state", "from oche.search.loop import search"),
        ("circle", "spaces.ops", "from oche.spaces.edges import Edge"),  # in a folder without a declared order
        ("circle", "spaces.base", "from oche.spaces import SPACES"),
        ("circle", "data.images", "def f():\n    import oche.data.reading.parts"),
        ("circle", "errors", "from oche.genotype import Genotype"),
        ("hidden", "spaces.ops", "from importlib import import_module"),
        ("hidden", "spaces.ops", "import importlib\nimportlib.import_module('oche.search.loop')"),
        ("hidden", "spaces.ops", "__import__('oche.search.loop')"),
        ("hidden", "spaces.ops", "getattr(importlib, 'import_module')('oche.search.loop')"),
        ("place", "novelties", "x = 1"),
        ("place", "novelties.deep", "x = 1"),
        ("place", "search.novelty", "x = 1"),  # a folder whose order is declared
    ],
)
def test_a_breach_is_found(rule: str, module: str, added: str) -> None:
    assert not whole()
    assert rule in broken(HOUSE.changed(module, added))


@pytest.mark.parametrize("name", [*METHODS, *(f"rf_{name}" for name in METHODS)])
def test_the_loop_knows_no_method(name: str) -> None:
    for line in (f"if method.name == {name!r}: pass", f"if {name!r} in method.name: pass"):
        assert methods_named(House({"search.loop": line}), list(METHODS))


@pytest.mark.parametrize("start", ["if method.name.startswith('rf_'): pass", "match m.name:\n case 'gdas': pass"])
def test_nor_a_part_of_its_name(start: str) -> None:
    assert broken(HOUSE.changed("search.loop", start)) == {"method"}


def test_layers_exist() -> None:
    assert broken(HOUSE, [*LAYERS, "attic"]) == {"place"}
    assert "search.attic is in the order, but not in the package" in unplaced(
        HOUSE, LAYERS, {**INSIDE, "search": [*INSIDE["search"], "attic"]}
    )


def test_the_order_allows_earlier_rooms_and_the_own_folder() -> None:
    added = "from oche.spaces.ops import OPS\nfrom oche.errors import UserError\nimport torch"
    assert not broken(HOUSE.changed("spaces.darts", added))


def test_figures() -> None:
    found = figures(HOUSE)
    count = {name: value if isinstance(value, int) else len(value) for name, value in found.items()}
    assert count["names at the root of the package"] <= 24
    assert count["rooms"] <= 27
    assert count["floors"] <= 14
    assert count["imports between rooms"] <= 180
    assert count["upward imports"] == 0
    assert count["circles"] == 0
    assert count["Python files over 400 lines"] == 0
    assert count["lists of a search's options"] == 1
    assert count["lines of search/loop.py on packs, graphs, leaves"] == 0


def test_the_page_about_the_house_shows_it() -> None:
    """docs/architecture.md has every room, in the order of imports, and names no file that does not exist."""
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    table = page[page.index("## The folders") : page.index("## Where a new part goes")]
    named = [
        name.strip("/").removesuffix(".py")
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w.]+/?)`", line.split("|")[1])
    ]
    assert named == [name for name in LAYERS if not name.startswith("__")]
    for path in re.findall(r"`([\w/]+\.py)`", page):
        assert (SOURCE / path).exists() or (SOURCE.parents[1] / path).exists(), path


# ---------------------------------------------------------------------- names of the package


def test_importing_a_folder_leaves_the_verb_of_its_name() -> None:
    import oche.search.loop

    assert callable(oche.search)
    assert oche.search.__module__ == "oche.api.search"
    from oche.search import loop

    assert loop.__name__ == "oche.search.loop"


def test_dir_and_help_show_what_there_is() -> None:
    assert dir(oche) == sorted(oche.__all__)
    assert set(oche.__all__) == {*oche._HOMES, "Genotype", "UserError"}
    shown = "".join(pydoc.render_doc(oche, renderer=pydoc.plaintext).split())  # Python 3.13 breaks long signatures
    assert "search(method:'str|" in shown


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "oche", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "search" in done.stdout


# ---------------------------------------------------------------------- no copies


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FIELD = ast.AnnAssign | ast.Assign


class Normalise(ast.NodeTransformer):
    """Drops docstrings and numbers the names that a function binds itself, so that a renamed copy is still a copy."""

    def __init__(self) -> None:
        self.numbers: dict[str, str] = {}

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self.numbers.setdefault(node.arg, f"_{len(self.numbers)}")
        node.arg = self.numbers[node.arg]
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if isinstance(node.ctx, ast.Store):
            self.numbers.setdefault(node.id, f"_{len(self.numbers)}")
        node.id = self.numbers.get(node.id, node.id)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        self.generic_visit(node)
        return node


def fingerprint(definition: Definition) -> str | None:
    """The definition without its name and docstrings; None where it has fewer than four statements."""
    copy = ast.parse(ast.unparse(definition)).body[0]
    assert isinstance(copy, Definition)
    copy.name = "_"
    if isinstance(copy, ast.ClassDef):  # fields are public names: only what is inside methods is renamed
        copy.body = [
            kept
            for statement in copy.body
            for kept in [statement if isinstance(statement, FIELD) else Normalise().visit(statement)]
            if kept is not None
        ]
    else:
        copy = Normalise().visit(copy)
    statements = sum(isinstance(node, ast.stmt) for node in ast.walk(copy)) - 1
    return ast.dump(copy, annotate_fields=False) if statements >= 4 else None


def copies(texts: dict[str, str]) -> list[list[str]]:
    """Groups of places that define the same thing."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Definition) and (print_ := fingerprint(node)):
                places[print_].append(f"{name}:{node.lineno} {node.name}")
    return [found for found in places.values() if len(found) > 1]


def test_nothing_is_defined_twice() -> None:
    assert not copies({str(path.relative_to(SOURCE)): path.read_text() for path in modules()})


FIRST = '''
def smooth(values, width):
    """A moving mean."""
    total = 0.0
    for value in values:
        total += value / width
    return total
'''


def test_a_renamed_copy_is_found() -> None:
    copy = FIRST.replace("smooth", "average").replace("total", "result").replace("A moving mean.", "Other words.")
    assert copies({"a.py": FIRST, "b.py": copy})


def test_like_is_not_same() -> None:
    assert not copies({"a.py": FIRST, "b.py": FIRST.replace("/", "*")})
    assert not copies({"a.py": "def f():\n    return 1", "b.py": "def g():\n    return 1"})  # too short to matter


# ---------------------------------------------------------------------- torch, print, names


@pytest.mark.parametrize("module", TORCH_FREE)
def test_torch_is_not_imported(module: str) -> None:
    """Importing torch takes three seconds, which `oche --help` should not."""
    path = SOURCE.parent / module.replace(".", "/")
    if not path.with_suffix(".py").exists() and not (path / "__init__.py").exists():
        pytest.skip(f"there is no {module} yet")
    code = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); import {module}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_prints_but_the_command_line_and_the_report() -> None:
    printing = [
        place(path, node.lineno)
        for path in modules()
        if unit(path) not in ("cli", "report")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_module_names_say_what_is_inside() -> None:
    names = {path.stem for path in modules()} | {path.parent.name for path in modules()}
    assert not names & FORBIDDEN_NAMES
    assert not (names - {"__main__"}) & sys.stdlib_module_names
