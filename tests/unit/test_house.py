"""The rules of the house that a linter does not know: import order, no copies, torch only where it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "oche"

LAYERS = (  # a module imports from the rows above its own, or from its own package; design.md has the same list
    ("errors",),
    ("genotype",),
    ("run", "config", "budgets", "papers"),
    ("base",),
    ("schedule",),
    ("optim",),
    ("ops",),
    ("edges", "data", "tasks"),
    ("spaces",),
    ("fast", "relaxations", "bilevel"),
    ("cost", "benchmarks"),
    ("state",),
    ("probes", "graphs"),
    ("trainable", "terms", "selection", "freeze", "callbacks"),
    ("monitor",),
    ("method",),
    ("loop", "train", "watch"),
    ("stages",),
    ("preflight", "strategies"),
    ("compare", "methods"),
    ("plan",),
    ("export", "pick"),
    ("inference",),
    ("testing", "report"),
    ("api",),
    ("bench",),
    ("study",),
    ("show", "doctor"),
    ("bench_cli",),
    ("study_cli",),
    ("cli",),
    ("__main__",),
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}

TORCH_FREE = (
    "oche",
    "oche.errors",
    "oche.genotype",
    "oche.run",
    "oche.config",
    "oche.methods.papers",
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


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module or name directly below oche) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "oche":
            names = [f"oche.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head == "oche":
                yield node.lineno, rest.partition(".")[0] or "__init__"


def wrong_way(name: str, text: str) -> list[str]:
    """What a module of that name imports against the order."""
    wrong = []
    for line, target in imported(ast.parse(text)):
        if target not in ROW:
            wrong.append(f"{line}: {target} is no module of the list; say `from oche.module import name`")
        elif target != name and ROW[target] >= ROW[name]:
            wrong.append(f"{line}: {name} may not import {target}")
    return wrong


def test_every_module_has_a_place_in_the_order() -> None:
    assert {unit(path) for path in modules()} - {"__init__"} <= set(ROW)


def test_imports_go_one_way_only() -> None:
    wrong = {
        str(path.relative_to(SOURCE)): found
        for path in modules()
        if unit(path) != "__init__" and (found := wrong_way(unit(path), path.read_text()))  # __init__ resolves lazily
    }
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        "import oche.search.loop",
        "from oche.search.loop import search",
        "from oche import loop",
        "from oche import search",
        "import oche",
        "def f():\n    from oche.methods.darts import darts",
        "if TYPE_CHECKING:\n    from oche.spaces.edges import Edge",  # ops comes before edges
    ],
)
def test_the_order_is_enforced(text: str) -> None:
    assert wrong_way("ops", text)


def test_the_order_allows_earlier_layers_and_the_own_package() -> None:
    assert not wrong_way("spaces", "from oche.spaces.ops import OPS\nfrom oche.spaces.base import Space\nimport torch")


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
