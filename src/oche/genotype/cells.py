"""What a search finds: the chosen operations of each cell, as JSON and in the field's published string forms.

Two string forms are read and printed, neither ever evaluated as code: the `Genotype(normal=[('sep_conv_3x3', 0), ...], ...)`
of DARTS and its descendants, and the `|nor_conv_3x3~0|+|...|` of NAS-Bench-201.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from oche.errors import UserError

SCHEMA = 1
FREE = ("none", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "noise")
"""Operations without convolutions: the parameter-free share of a cell is counted over these."""


@dataclass(frozen=True)
class Choice:
    """One chosen operation: `op` on the edge `source` -> `target`, its output multiplied by `coefficient`."""

    source: int
    target: int
    op: str
    coefficient: float = 1.0


@dataclass(frozen=True)
class Genotype:
    """A network's cells: for each group of cells that share an architecture, the chosen operations.

    A discrete cell has one choice an edge with coefficient 1. A soft one may keep several with their coefficients, and then
    `edge` and `edge_args` say how an edge mixes them ("weighted_sum", or "partial_channels" with its K; "kept" is the weighted sum of a
    supernet whose weights are the network's).
    Choices are kept in the order given, for printing; their order changes neither the network nor the hash.

    >>> Genotype.parse("|skip_connect~0|+|none~0|none~1|+|none~0|none~1|nor_conv_1x1~2|").count("none")
    4
    """

    space: str
    groups: Mapping[str, tuple[Choice, ...]]
    sharing: str = "type"
    edge: str = "weighted_sum"
    edge_args: Mapping[str, int] = field(default_factory=dict)

    # ------------------------------------------------------------------ what it says

    @property
    def discrete(self) -> bool:
        """True where every edge has one operation at most, with coefficient 1."""
        return all(
            c.coefficient == 1.0 and n == 1
            for choices in self.groups.values()
            for c, n in ((c, sum((d.source, d.target) == (c.source, c.target) for d in choices)) for c in choices)
        )

    @property
    def _plain(self) -> bool:
        """Whether a published form, which has no room for coefficients and edge types, says all of it."""
        return self.discrete and self.edge == Genotype.edge

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that change with anything that changes the network."""
        body = self._table()
        body["groups"] = {name: sorted(rows) for name, rows in self._rows().items()}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]

    def count(self, op: str) -> int:
        """How often an operation was chosen, over all groups."""
        return sum(choice.op == op for choices in self.groups.values() for choice in choices)

    def skips(self) -> dict[str, int]:
        """Group -> number of skip connections, the field's first sign of collapse."""
        return {name: sum(c.op == "skip_connect" for c in choices) for name, choices in self.groups.items()}

    @property
    def connected(self) -> bool:
        """True where in every cell the last node gets something from an input: cells of `none` may cut it off (NAS-Bench-201)."""
        return all(_reaches_end(choices) for choices in self.groups.values())

    def summary(self) -> str:
        """A cell in a few words, the most frequent operation first: `3 nor_conv_3x3, 2 skip_connect, 1 none`."""
        lines = []
        for name, choices in self.groups.items():
            counts = ", ".join(f"{n} {op}" for op, n in Counter(c.op for c in choices).most_common())
            lines.append(counts if len(self.groups) == 1 else f"{name}: {counts}")
        return "; ".join(lines)

    def __str__(self) -> str:
        """The published string form where there is one, else JSON."""
        for form in (self.arch_string, self.namedtuple_string):
            try:
                return form()
            except UserError:
                continue
        return self.to_json()

    # ------------------------------------------------------------------ JSON

    def to_json(self) -> str:
        """One JSON object with `schema`, `hash` and the fields; `from_json` reads it back."""
        return json.dumps({**self._table(), "hash": self.hash})

    @staticmethod
    def from_json(text: str) -> Genotype:
        """Reads `to_json`'s text. Raises UserError for another schema, a missing field, or a hash that does not fit."""
        try:
            table = json.loads(text)
            if table["schema"] != SCHEMA:
                raise UserError(
                    f"This genotype has schema {table['schema']}; this oche reads schema {SCHEMA}: update oche."
                )
            genotype = Genotype(
                space=str(table["space"]),
                groups={str(n): tuple(_choice(row) for row in rows) for n, rows in table["groups"].items()},
                sharing=str(table["sharing"]),
                edge=str(table["edge"]["type"]),
                edge_args={k: int(v) for k, v in table["edge"].items() if k != "type"},
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"This is no genotype in JSON ({error}); expected what `oche search` writes to genotype.json."
            ) from None
        if "hash" in table and table["hash"] != genotype.hash:
            raise UserError(
                f"The genotype's hash {table['hash']} does not fit its content ({genotype.hash}): it was edited or damaged."
            )
        return genotype

    def _table(self) -> dict[str, object]:
        edge = {"type": self.edge, **self.edge_args}
        return {"schema": SCHEMA, "space": self.space, "sharing": self.sharing, "edge": edge, "groups": self._rows()}

    def _rows(self) -> dict[str, list[tuple[int, int, str, float]]]:
        return {
            n: [(c.source, c.target, c.op, float(c.coefficient)) for c in choices] for n, choices in self.groups.items()
        }

    # ------------------------------------------------------------------ published string forms

    @staticmethod
    def parse(text: str, space: str | None = None) -> Genotype:
        """Reads JSON, the DARTS namedtuple form, the NAS-Bench-201 form, or the name of a published cell.

        `space` names the space that the published forms leave unsaid (default `darts` and `nb201`). Raises UserError.
        """
        text = text.strip()
        if text in PUBLISHED:
            return Genotype.parse(PUBLISHED[text], space)
        if text.startswith("{"):
            return Genotype.from_json(text)
        if text.startswith("|"):
            return _parse_arch_string(text, space or "nb201")
        if text.startswith("Genotype("):
            return _parse_namedtuple(text, space or "darts")
        raise UserError(
            f"{text[:40]!r} is no genotype; expected JSON, `Genotype(normal=..., reduce=...)`, "
            f"`|op~0|+|...|`, a run folder, or one of {', '.join(PUBLISHED)}."
        )

    def arch_string(self) -> str:
        """The NAS-Bench-201 form. Raises UserError where a cell does not choose one operation for every edge."""
        choices = self.groups["cell"] if set(self.groups) == {"cell"} else ()
        at = {(c.source, c.target): c.op for c in choices}
        last = max((c.target for c in choices), default=0)
        if not self._plain or len(at) != last * (last + 1) // 2 or not at:
            raise UserError("Only a cell with exactly one operation on every edge has a NAS-Bench-201 string.")
        return "+".join("|" + "|".join(f"{at[s, t]}~{s}" for s in range(t)) + "|" for t in range(1, last + 1))

    def namedtuple_string(self) -> str:
        """The DARTS form. Raises UserError where the groups are not a normal and a reduction cell."""
        if set(self.groups) != {"normal", "reduce"} or not self._plain:
            raise UserError("Only a discrete normal and reduction cell have a DARTS genotype string.")
        parts = []
        for name in ("normal", "reduce"):
            choices = sorted(self.groups[name], key=lambda c: c.target)
            nodes = sorted({c.target for c in choices})
            if [c.target for c in choices] != [2 + i // 2 for i in range(2 * len(nodes))]:
                raise UserError("The DARTS form has room for exactly two operations a node; this genotype has others.")
            pairs = [(c.op, c.source) for c in choices]
            parts.append(f"{name}={pairs}, {name}_concat={nodes}")
        return f"Genotype({', '.join(parts)})"


def _reaches_end(choices: tuple[Choice, ...]) -> bool:
    targets = {c.target for c in choices}
    reached = {c.source for c in choices} - targets
    for target in sorted(targets):
        if any(c.target == target and c.source in reached and c.op != "none" for c in choices):
            reached.add(target)
    return bool(targets) and max(targets) in reached


def _choice(row: list[object]) -> Choice:
    source, target, op, coefficient = row
    if not (
        isinstance(source, int)
        and isinstance(target, int)
        and isinstance(op, str)
        and isinstance(coefficient, int | float)
    ):
        raise ValueError(f"a choice is [source, target, op, coefficient], not {row}")
    return Choice(source, target, op, float(coefficient))


def _parse_arch_string(text: str, space: str) -> Genotype:
    choices = []
    for target, node in enumerate(text.split("+"), start=1):
        items = re.findall(r"([^|~+]+)~(\d+)\|", node)
        if "|" + "".join(f"{op}~{source}|" for op, source in items) != node or [int(s) for _, s in items] != list(
            range(target)
        ):
            raise UserError(
                f"{node!r} is no node {target} of a NAS-Bench-201 string; expected `op~source` for each source 0 to {target - 1}, as in "
                "'|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|'."
            )
        choices += [Choice(int(source), target, op) for op, source in items]
    return Genotype(space, {"cell": tuple(choices)})


def _parse_namedtuple(text: str, space: str) -> Genotype:
    """Walks the syntax tree of `Genotype(normal=[...], normal_concat=..., ...)`; nothing is evaluated but literals and range."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("expected keyword arguments")
        parts = {str(k.arg): _literal(k.value) for k in call.keywords}
        groups = {}
        for name in ("normal", "reduce"):
            nodes = parts[f"{name}_concat"]
            pairs = [(str(op), int(source)) for op, source in parts[name]]
            if nodes != list(range(2, 2 + len(nodes))) or len(pairs) != 2 * len(nodes):
                raise ValueError(f"{name}: expected two (op, input) pairs for each of the concatenated nodes 2, 3, ...")
            groups[name] = tuple(Choice(source, 2 + i // 2, op) for i, (op, source) in enumerate(pairs))
            if any(not 0 <= c.source < c.target for c in groups[name]):
                raise ValueError(f"{name}: a node can only read from nodes before it")
    except (SyntaxError, KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"This is no DARTS genotype ({error}); expected Genotype(normal=[(op, input), ...], normal_concat=..., reduce=..., ...)."
        ) from None
    return Genotype(space, groups)


def _literal(node: ast.expr) -> list[Any]:
    """A list of numbers or pairs, or a call of range."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        return list(islice(range(*(ast.literal_eval(argument) for argument in node.args)), 100))  # more is no cell
    return list(ast.literal_eval(node))


PUBLISHED = {
    "DARTS_V2": (  # Liu et al., ICLR 2019, second order; quark0/darts
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), "
        "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
        "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
        "('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
    ),
    "PCDARTS_CIFAR": (  # Xu et al., ICLR 2020; yuhuixu1993/PC-DARTS
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1), ('sep_conv_5x5', 0), "
        "('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], normal_concat=[2, 3, 4, 5], reduce=[('sep_conv_5x5', 1), "
        "('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), "
        "('sep_conv_3x3', 2)], reduce_concat=[2, 3, 4, 5])"
    ),
    "PCDARTS_IMAGENET": (  # the same, searched on ImageNet
        "Genotype(normal=[('skip_connect', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('skip_connect', 1), ('sep_conv_3x3', 1), "
        "('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('dil_conv_5x5', 4)], normal_concat=[2, 3, 4, 5], reduce=[('sep_conv_3x3', 0), "
        "('skip_connect', 1), ('dil_conv_5x5', 2), ('max_pool_3x3', 1), ('sep_conv_3x3', 2), ('sep_conv_3x3', 1), ('sep_conv_5x5', 0), "
        "('sep_conv_3x3', 3)], reduce_concat=[2, 3, 4, 5])"
    ),
    "RLNAS_CIFAR": (  # Zhang et al., CVPR 2021; megvii-model/RLNAS
        "Genotype(normal=[('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('dil_conv_3x3', 0), ('sep_conv_5x5', 2), ('sep_conv_3x3', 0), "
        "('dil_conv_5x5', 3), ('dil_conv_5x5', 1), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('sep_conv_5x5', 0), "
        "('dil_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 2), ('dil_conv_3x3', 1), ('sep_conv_3x3', 3), ('max_pool_3x3', 1), "
        "('sep_conv_5x5', 2)], reduce_concat=[2, 3, 4, 5])"
    ),
    "NB201_9930": (  # the cell whose 94.36 % RF-DARTS reports; NAS-Bench-201 index 9930
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    ),
}
"""Published cells by name, for checking a retrain pipeline and for `oche train NAME`."""
