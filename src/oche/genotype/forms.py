"""The forms in which the field writes cells, read into one: `read(text)` tells the chosen operations of each group.

    Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), ...)    DARTS: two inputs per node, in their order
    Genotype(normal=[(('sep_conv_3x3', 0), ...), ...], ...)                        GDAS: a list of inputs for each node, of any length
    Genotype(normal=[('sep_conv_3x3', 2, 0), ...], ...)                            FairDARTS: (operation, node, input)
    {"normal": [...], "normal_concat": [...], ...}                                 any of these as JSON
    Structure([(('nor_conv_3x3', 0),), ...])                                       AutoDL's NAS-Bench-201 cell
    |nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|                               NAS-Bench-201

Any of them may be part of a line: an assignment, or a log's line with its time. A third number that is no whole one says how strongly
an operation was chosen: it is no part of the cell. Where a node of the first form has another number of inputs, all edges
are listed, those with `none` too (SNAS). Nodes without input have no output: edges out of them carry nothing and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from oche.errors import UserError
from oche.genotype.literals import MOST, Call, Value
from oche.genotype.literals import read as literal

LARGEST = 4_000_000
"""Characters of a text that is read at all."""

DARTS_NAMES = ("normal", "normal_concat", "reduce", "reduce_concat")
IGNORED = ("connectN", "connects")
"""Fields of AutoDL's namedtuple that are None in every published cell."""

_NODE = r"\|(?:\s*[^|~+\s]{1,40}\s*~\s*\d+\s*\|)+"
_STRING = re.compile(rf"(?>{_NODE}(?:\s*\+\s*{_NODE})*)(?!\s*[+|])")

Pair = tuple[str, int]
"""An operation and the node that it reads."""


@dataclass(frozen=True)
class Choice:
    """One chosen operation: `op` on the edge `source` -> `target`, its output multiplied by `coefficient`."""

    source: int
    target: int
    op: str
    coefficient: float = 1.0


@dataclass(frozen=True)
class Cells:
    """What a published form says: the space that it is of by default, the choices of each group, and partial concatenations."""

    space: str
    groups: Mapping[str, tuple[Choice, ...]]
    concat: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read(text: str) -> Cells | None:
    """The cells in `text`, or None where it holds none of the forms. Raises UserError with the first fault of one that it does."""
    if len(text) > LARGEST:
        raise UserError(
            f"The text has {len(text)} characters, and no genotype is as long: give the line or the file of one."
        )
    if text.startswith("|"):
        return _string(text)
    found: list[Cells] = []
    for written in _written(text):
        cells = _string(written) if written.startswith("|") else _called(written)
        if cells not in found:
            found.append(cells)
    if len(found) > 1:
        raise UserError(f"The text holds {len(found)} different genotypes; give one of them, or its line.")
    return found[0] if found else None


def named(parts: Mapping[str, Value]) -> Cells:
    """The cells of a mapping with `normal`, `normal_concat`, `reduce` and `reduce_concat`. Raises UserError."""
    try:
        return _darts(parts)
    except ValueError as error:
        raise _fault(error) from None


def _written(text: str) -> Iterator[str]:
    """Each genotype in a longer text, as it is written there."""
    starts = [found.start() for found in re.finditer(r"(?<!\w)(Genotype|Structure)\s*\(", text)]
    for start, end in pairwise([*starts, len(text)]):
        yield text[start:end]
    if not starts:
        yield from (found.group() for found in _STRING.finditer(text))


def _called(text: str) -> Cells:
    structure = text.startswith("Structure")
    if found := re.match(r"Structure\s*\(\s*\d+ nodes with (.*)\)", text):  # how AutoDL prints one
        return _string(found.group(1))
    try:
        call = literal(text)
        if not isinstance(call, Call):
            raise ValueError("expected a call with its arguments")
        if structure:
            return _structure(call)
        if len(call.arguments) > len(DARTS_NAMES):
            raise ValueError("it has more than four arguments")
        return _darts({**dict(zip(DARTS_NAMES, call.arguments, strict=False)), **call.keywords})
    except ValueError as error:
        raise _fault(error, structure) from None


def _fault(error: ValueError, structure: bool = False) -> UserError:
    if structure:
        return UserError(f"This is no NAS-Bench-201 cell ({error}); expected Structure([[(op, input), ...], ...]).")
    return UserError(
        f"This is no DARTS genotype ({error}); expected Genotype(normal=[(op, input), ...], normal_concat=..., reduce=..., ...)."
    )


# ------------------------------------------------------------------ DARTS and its descendants


def _darts(parts: Mapping[str, Value]) -> Cells:
    for name, value in parts.items():
        if name not in DARTS_NAMES and not (name in IGNORED and value is None):
            raise ValueError(f"{name!r} is nothing that a cell of the DARTS space has")
    for name in DARTS_NAMES:
        if parts.get(name) is None:
            raise ValueError(f"{name!r} is missing")
    listed = {name: _numbers(parts[f"{name}_concat"], f"{name}_concat") for name in ("normal", "reduce")}
    groups = {name: tuple(_fed(_choices(name, parts[name], max(nodes)))) for name, nodes in listed.items()}
    last = max(max(nodes) for nodes in listed.values())
    concat = {}
    for name, nodes in listed.items():
        if max((c.target for c in groups[name]), default=0) > last:
            raise ValueError(f"{name}: it has inputs for nodes behind {last}, the last that is concatenated")
        fed = {c.target for c in groups[name]}
        alive = tuple(node for node in nodes if node in fed)
        if not alive:
            raise ValueError(f"{name}: none of the concatenated nodes has an input")
        if set(alive) != set(range(2, last + 1)):
            concat[name] = alive
    return Cells("darts", groups, concat)


def _choices(name: str, value: Value, last: int) -> list[Choice]:
    """The choices of one cell, in the order of its nodes, whatever form they are written in."""
    items = _items(value, name)
    if items and all(isinstance(item, list) and all(isinstance(pair, list) for pair in item) for item in items):
        found = [_choice(name, target, pair) for target, node in enumerate(items, 2) for pair in _items(node, name)]
    elif any(_pointed(item) for item in items):
        found = [_choice(name, None, item) for item in items]
    elif len(items) == 2 * (last - 1):
        found = [_choice(name, 2 + i // 2, pair) for i, pair in enumerate(items)]
    elif len(items) == sum(range(2, last + 1)):
        targets = [target for target in range(2, last + 1) for _ in range(target)]
        found = [_choice(name, target, pair) for target, pair in zip(targets, items, strict=True)]
    else:
        raise ValueError(
            f"{name}: {len(items)} (op, input) pairs for the {last - 1} nodes 2 to {last}; expected two for each"
        )
    if any(not 0 <= c.source < c.target or c.target < 2 for c in found):
        raise ValueError(f"{name}: a node, from 2 on, can only read from nodes before it")
    return sorted(found, key=lambda c: c.target)


def _pointed(item: Value) -> bool:
    """True for (operation, node, input): three of which the last two are whole numbers."""
    return isinstance(item, list) and len(item) == 3 and all(type(number) is int for number in item[1:])


def _choice(name: str, target: int | None, pair: Value) -> Choice:
    """From (op, input), (op, input, how strongly it was chosen), or where there is no `target`, (op, node, input)."""
    if target is None:
        if isinstance(pair, list) and _pointed(pair) and isinstance(pair[1], int):
            op, source = _pair(name, [pair[0], pair[2]])
            return Choice(source, pair[1], op)
    elif isinstance(pair, list) and (len(pair) == 2 or (len(pair) == 3 and isinstance(pair[2], float))):
        op, source = _pair(name, pair[:2])
        return Choice(source, target, op)
    raise ValueError(f"{name}: {pair!r} is no pair of an operation and an input")


def _fed(choices: list[Choice]) -> Iterator[Choice]:
    """The choices that carry something: not those out of a node that has no input."""
    alive = {0, 1}
    for choice in choices:
        if choice.source in alive:
            alive.add(choice.target)
            yield choice


# ------------------------------------------------------------------ NAS-Bench-201


def _string(text: str) -> Cells:
    plain = text if not re.search(r"\s", text) else re.sub(r"\s*([|~+])\s*", r"\1", text.strip())
    choices = []
    for target, node in enumerate(plain.split("+"), start=1):
        items = re.findall(r"([^|~+]+)~(\d+)\|", node)
        if "|" + "".join(f"{op}~{source}|" for op, source in items) != node or [int(s) for _, s in items] != list(
            range(target)
        ):
            raise UserError(
                f"{node[:100]!r} is no node {target} of a NAS-Bench-201 string; expected `op~source` for each source 0 to {target - 1}, "
                "as in '|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|'."
            )
        choices += [Choice(int(source), target, op) for op, source in items]
    return Cells("nb201", {"cell": tuple(choices)})


def _structure(call: Call) -> Cells:
    """AutoDL's `Structure([node, ...])`: an edge that is not listed has no operation, which is `none`."""
    if len(call.arguments) != 1 or call.keywords:
        raise ValueError("Structure takes one list, with the inputs of each node")
    choices: list[Choice] = []
    for target, node in enumerate(_items(call.arguments[0], "Structure"), start=1):
        pairs = [_pair("Structure", pair) for pair in _items(node, "Structure")]
        if any(not 0 <= source < target for _, source in pairs):
            raise ValueError("Structure: a node can only read from nodes before it")
        for source in range(target):
            ops = [op for op, from_ in pairs if from_ == source] or ["none"]
            choices += [Choice(source, target, op) for op in ops]
    if not choices:
        raise ValueError("Structure: it has no nodes")
    return Cells("nb201", {"cell": tuple(choices)})


# ------------------------------------------------------------------ values


def _pair(name: str, value: Value) -> Pair:
    if isinstance(value, list) and len(value) == 2:
        op, source = value
        if isinstance(op, str) and type(source) is int:
            return op, source
    raise ValueError(f"{name}: {value!r} is no pair of an operation and an input")


def _items(value: Value, name: str) -> list[Value]:
    if not isinstance(value, list):
        raise ValueError(f"{name} should be a list, not {value!r}")
    return value


def _numbers(value: Value, name: str) -> tuple[int, ...]:
    """The nodes of a concatenation."""
    numbers = tuple(number for number in _items(value, name) if type(number) is int)
    if not numbers or len(numbers) != len(_items(value, name)) or len(set(numbers)) != len(numbers):
        raise ValueError(f"{name} should list the numbers of nodes, each once")
    if min(numbers) < 2 or max(numbers) > MOST:
        raise ValueError(f"{name} should list nodes from 2 on, and no more than a cell has")
    return numbers
