"""What a search finds: the chosen operations of each cell, as JSON and in the field's published string forms.

Two string forms are printed, the `Genotype(normal=[('sep_conv_3x3', 0), ...], ...)` of DARTS and its descendants and the
`|nor_conv_3x3~0|+|...|` of NAS-Bench-201; `forms` lists what is read. Nothing is ever evaluated as code.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from oche.errors import UserError
from oche.genotype import forms, zoo
from oche.genotype.forms import Choice

SCHEMA = 2
"""The newest schema; a genotype is written in the oldest that can say it: 2 says which nodes a cell concatenates."""

FREE = ("none", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "max_pool_5x5", "avg_pool_5x5", "noise")
"""Operations without convolutions: the parameter-free share of a cell is counted over these."""


@dataclass(frozen=True)
class Genotype:
    """A network's cells: for each group of cells that share an architecture, the chosen operations.

    A discrete cell has one choice per edge with coefficient 1. A soft one may keep several with their coefficients, and then
    `edge` and `edge_args` say how an edge mixes them ("weighted_sum", or "partial_channels" with its K; "kept" is the weighted sum of a
    supernet whose weights are the network's).
    `concat` names the nodes whose outputs a cell of a group concatenates, where these are not all of its nodes. A node without choices
    that is not among them is absent: FairDARTS leaves out nodes, NASNet and AmoebaNet concatenate those that no other node reads.
    Choices are kept in the order given, for printing; their order changes neither the network nor the hash.

    >>> Genotype.parse("|skip_connect~0|+|none~0|none~1|+|none~0|none~1|nor_conv_1x1~2|").count("none")
    4
    """

    space: str
    groups: Mapping[str, tuple[Choice, ...]]
    sharing: str = "type"
    edge: str = "weighted_sum"
    edge_args: Mapping[str, int] = field(default_factory=dict)
    concat: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

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
    def plain(self) -> bool:
        """True where all coefficients are 1 and edges sum what they have: published forms have no room for more."""
        whole = all(c.coefficient == 1.0 for choices in self.groups.values() for c in choices)
        return whole and self.edge == Genotype.edge and not self.edge_args

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
    def from_json(text: str, space: str = "darts") -> Genotype:
        """Reads `to_json`'s text, or a DARTS genotype of `space` as JSON.

        Raises UserError for another schema, a missing field, or a hash that does not fit.
        """
        try:
            table = json.loads(text)
            if "schema" not in table and "normal" in table:
                return _genotype(forms.named(table), space)
            if table["schema"] not in range(1, SCHEMA + 1):
                raise UserError(
                    f"This genotype has schema {table['schema']}; this oche reads schemas 1 to {SCHEMA}: update oche."
                )
            genotype = Genotype(
                space=str(table["space"]),
                groups={str(n): tuple(_choice(row) for row in rows) for n, rows in table["groups"].items()},
                sharing=str(table["sharing"]),
                edge=str(table["edge"]["type"]),
                edge_args={k: int(v) for k, v in table["edge"].items() if k != "type"},
                concat={str(n): tuple(map(int, nodes)) for n, nodes in table.get("concat", {}).items()},
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
        more = {"concat": {name: list(nodes) for name, nodes in self.concat.items()}} if self.concat else {}
        schema = SCHEMA if self.concat else 1
        return {
            "schema": schema,
            "space": self.space,
            "sharing": self.sharing,
            "edge": edge,
            "groups": self._rows(),
            **more,
        }

    def _rows(self) -> dict[str, list[tuple[int, int, str, float]]]:
        return {
            n: [(c.source, c.target, c.op, float(c.coefficient)) for c in choices] for n, choices in self.groups.items()
        }

    # ------------------------------------------------------------------ published string forms

    @staticmethod
    def parse(text: str, space: str | None = None) -> Genotype:
        """Reads JSON, any form of `forms`, or the name of a published cell (`oche list genotypes`).

        `space` names the space that the published forms leave unsaid (default `darts` and `nb201`). Raises UserError.

        >>> Genotype.parse("NATS-9930") == Genotype.parse("nb201:9930")
        True
        """
        text = text.strip()
        if text.startswith("{"):
            return Genotype.from_json(text, space or "darts")
        cells = forms.read(text)
        if cells is None:
            known = zoo.cell(text)
            cells = forms.read(known) if known else None
        if cells is None:
            raise UserError(
                f"{text[:40]!r} is no genotype; expected JSON, `Genotype(normal=..., reduce=...)`, `|op~0|+|...|`, a run's folder, "
                f"`nb201:INDEX`, or a name that `oche list genotypes` or `oche list rivals` knows{zoo.nearest(text)}"
            )
        return _genotype(cells, space)

    def arch_string(self) -> str:
        """The NAS-Bench-201 form. Raises UserError where a cell does not choose one operation for every edge."""
        choices = self.groups["cell"] if set(self.groups) == {"cell"} else ()
        at = {(c.source, c.target): c.op for c in choices}
        last = max((c.target for c in choices), default=0)
        if not self.plain or not len(at) == len(choices) == last * (last + 1) // 2 or not at:
            raise UserError("Only a cell with exactly one operation on every edge has a NAS-Bench-201 string.")
        return "+".join("|" + "|".join(f"{at[s, t]}~{s}" for s in range(t)) + "|" for t in range(1, last + 1))

    def namedtuple_string(self) -> str:
        """The DARTS form, or FairDARTS's where nodes have other numbers of inputs. Raises UserError for other groups."""
        if set(self.groups) != {"normal", "reduce"} or not self.plain:
            raise UserError("Only a discrete normal and reduction cell have a DARTS genotype string.")
        parts = []
        for name in ("normal", "reduce"):
            choices = sorted(self.groups[name], key=lambda c: c.target)
            nodes = sorted({c.target for c in choices})
            in_pairs = [c.target for c in choices] == [2 + i // 2 for i in range(2 * len(nodes))]
            pairs = [(c.op, c.source) if in_pairs else (c.op, c.target, c.source) for c in choices]
            parts.append(f"{name}={pairs}, {name}_concat={list(self.concat.get(name, nodes))}")
        text = f"Genotype({', '.join(parts)})"
        ordered = {name: tuple(sorted(cell, key=lambda c: c.target)) for name, cell in self.groups.items()}
        if forms.read(text) != forms.Cells("darts", ordered, self.concat):
            raise UserError("The DARTS form cannot say this genotype: print it as JSON.")
        return text


def _genotype(cells: forms.Cells, space: str | None) -> Genotype:
    return Genotype(space or cells.space, cells.groups, concat=cells.concat)


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
