"""The mutants of a file: every number doubled, every comparison turned, every + and - exchanged, and rules by hand (`mutants.py`)."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OURS = {"SMOKE", "QUICK", "OTHERS"}
"""Rows of our own choice, of which nothing is published."""

SIGN = {ast.Add: "-", ast.Sub: "+"}
TURNED = {
    ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one file; `text` is the file after it.

    `first` and `last` are the lines (from 1) that it touches, `line` is the first of them, `change` says what it is; `row` is true for a
    constant of a budget.
    """

    method: str
    line: str
    change: str
    text: str
    first: int
    last: int
    row: bool = False

    @property
    def key(self) -> str:
        """Changes with the code."""
        return hashlib.sha256(bare(self.text).encode()).hexdigest()[:16]


def bare(source: str) -> str:
    """The code without docstrings, comments and form."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    return ast.dump(tree)


def mutants(method: str, source: str, rules: Sequence[dict[str, str]]) -> Iterator[Mutant]:
    """All of a method's file, the rules by hand first."""
    for rule in rules:
        if source.count(rule["from"]) != 1:
            raise SystemExit(
                f"rules of {method}: {rule['from']!r} stands {source.count(rule['from'])} times in its file."
            )
        first = source[: source.index(rule["from"])].count("\n") + 1
        line, text = source.split("\n")[first - 1], source.replace(rule["from"], rule["to"])
        change = f"{rule['from']} -> {rule['to']}"
        yield Mutant(method, line.strip(), change, text, first, first + rule["from"].count("\n"))
    seen = set[str]()
    for node, fresh, row in changed(ast.parse(source)):
        mutant = _replaced(method, source, node, fresh, row)
        if mutant.key not in seen and mutant.text != source:
            seen.add(mutant.key)
            yield mutant


def changed(tree: ast.Module) -> Iterator[tuple[ast.expr, str, bool]]:
    """(expression, what stands in its place, is it a budget's) of every automatic mutant, in the order of the file."""
    for statement in tree.body:
        assigned = getattr(statement, "targets", [getattr(statement, "target", None)])
        targets = [t.id for t in assigned if isinstance(t, ast.Name)]
        if not isinstance(statement, ast.Import | ast.ImportFrom) and not OURS & set(targets):
            row = "Budget(" in ast.unparse(statement) or any(t.startswith("_") for t in targets)
            yield from ((node, fresh, row) for node, fresh in _within(statement))


def _within(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Not in annotations, in what an error says, in rows of our choice, nor in the `strict` of a zip, which guards what cannot happen."""
    if isinstance(node, ast.Raise | ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Budget" and _ours(node):
        return
    if isinstance(node, ast.Constant) and (fresh := _constant(node.value)) is not None:
        yield node, fresh
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        turned = f"{ast.unparse(node.left)} {TURNED[type(node.ops[0])]} {ast.unparse(node.comparators[0])}"
        yield node, f"({turned})"
    if isinstance(node, ast.BinOp) and type(node.op) in SIGN:
        yield node, f"({ast.unparse(node.left)} {SIGN[type(node.op)]} {ast.unparse(node.right)})"
    axis = (
        isinstance(node, ast.UnaryOp) and ast.unparse(node) == "-1"
    )  # the last of two: 1 says the same, 2 is tried below
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not) and not axis:
        yield node, f"({ast.unparse(node.operand)})"
    for name, child in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for part in child if isinstance(child, list) else [child]:
            if isinstance(part, ast.AST):
                yield from _within(part)


def _ours(row: ast.Call) -> bool:
    """True if a budget's source is our choice: nothing is published that its numbers could miss."""
    source = ast.unparse(row.args[3]) if len(row.args) > 3 else "ours"
    return source.lstrip("_f'\"").lower().startswith("our")


def _constant(value: object) -> str | None:
    """What a literal becomes."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int | float):
        return repr(2 * value) if value else repr(type(value)(1))
    return None


def _replaced(method: str, source: str, node: ast.expr, fresh: str, row: bool) -> Mutant:
    lines = source.encode().split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    whole = source.encode()
    old = " ".join(whole[begin:end].decode().split())
    text = (whole[:begin] + fresh.encode() + whole[end:]).decode()
    line = lines[node.lineno - 1].decode().strip()
    return Mutant(method, line, f"{old} -> {fresh}", text, node.lineno, node.end_lineno, row)


# ------------------------------------------------------------------ where it lies


@dataclass(frozen=True)
class Place:
    """Where a mutant lies: in the `body` of a function, in a `signature`, in a `class` or in the `module`.

    A test that notices it must run one of `lines`: those of its statement, of its function's body, of its class.
    """

    kind: str
    lines: range


def place(tree: ast.Module, mutant: Mutant) -> Place:
    """The innermost statement that holds the mutant's lines says it."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and _begin(node) <= mutant.first and mutant.last <= _end(node)
    ]
    around.sort(key=lambda node: (_end(node) - _begin(node), -node.col_offset))
    functions = [node for node in around if isinstance(node, ast.FunctionDef)]
    inside = [node for node in functions if node.body[0].lineno <= mutant.first]
    if inside and around[0] is not inside[0]:
        return Place("body", _header(around[0], mutant))
    if inside:
        return Place("body", _body(inside[0]))
    if functions:
        return Place("signature", _body(functions[0]))
    for node in around:
        if isinstance(node, ast.ClassDef):
            return Place("class", range(_begin(node), _end(node) + 1))
    return Place("module", range(0))


def _begin(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _body(node: ast.FunctionDef) -> range:
    return range(node.body[0].lineno, _end(node) + 1)


def _header(node: ast.stmt, mutant: Mutant) -> range:
    """The lines before a compound statement's body where the mutant lies there, else all of the statement's."""
    blocks: list[ast.stmt] = getattr(node, "body", [])
    if blocks and mutant.last < blocks[0].lineno:
        return range(_begin(node), blocks[0].lineno)
    return range(_begin(node), _end(node) + 1)
