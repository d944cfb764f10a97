"""Cells as graphs whose nodes are operations, and back.

A space's graphs all have N nodes in topological order: a start; for each group of cells its inputs, where there are several, one node
for the operation of each kept edge, and an end. An operation reads the operations into the node that its edge comes from; an end reads
those into the cell's last node, or all of them where a cell shows all its nodes (DARTS). The next group reads the end of the one before.
In NAS-Bench-201 these are the eight nodes of SVGe's encoding, and its edges are the same for all cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.methods.tokens import Node, Tokens, ops_by_edge
from oche.spaces import Space
from oche.spaces.neighbours import derivable

END, START = 0, 1
"""The types that every space has; then inputs by their number, then operations."""


@dataclass(frozen=True)
class Place:
    """A node of a space's graphs: of a fixed type with fixed sources, or (`node` given) the operation on the `n`-th kept edge."""

    kind: int = END
    sources: tuple[int, ...] = ()
    node: Node | None = None
    n: int = 0


@dataclass(frozen=True)
class Graphs:
    """The graphs of a space."""

    space: Space

    @cached_property
    def ops(self) -> tuple[str, ...]:
        """The operations of the space, in the order of their first place."""
        return tuple(dict.fromkeys(op for group in self.space.groups for ops in group.ops for op in ops))

    @cached_property
    def inputs(self) -> int:
        """The number of types of inputs: those of the group that has the most, none where each has one."""
        most = max(len(_inputs(group)) for group in self.space.groups)
        return most if most > 1 else 0

    @property
    def types(self) -> int:
        """How many types of nodes there are."""
        return 2 + self.inputs + len(self.ops)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """(N,) the nodes in order."""
        return tuple(place for place, _, _ in self._layout)

    @cached_property
    def _layout(self) -> list[tuple[Place, str, dict[frozenset[int], int]]]:
        """Each place, its group, and for an operation: which sources mean which node of the cell."""
        found: list[tuple[Place, str, dict[frozenset[int], int]]] = [(Place(START), "", {})]
        nodes = Tokens(self.space).nodes
        for group in self.space.groups:
            before, names = len(found) - 1, _inputs(group)
            states: dict[int, list[int]] = {names[0]: [before]}
            if len(names) > 1:
                for number, name in enumerate(names):
                    states[name] = [len(found)]
                    found.append((Place(2 + number, (before,)), group.name, {}))
            own = sorted((node for node in nodes if node.group == group), key=lambda node: _target(node))
            for node in own:
                means = {frozenset(places): state for state, places in states.items()}
                now = [len(found) + n for n in range(len(node.sets[0]))]
                found += [(Place(node=node, n=n), group.name, means) for n in range(len(node.sets[0]))]
                states.setdefault(_target(node), []).extend(now) if group.keep is None else states.update(
                    {_target(node): now}
                )
            shown = [s for s in states if s not in names] if group.keep is not None else list(self.space.ends(group))
            found.append((Place(END, tuple(sorted(p for s in shown for p in states[s]))), group.name, {}))
        return found

    # ------------------------------------------------------------------ cells to graphs

    def encode(self, genotypes: Iterable[Genotype]) -> tuple[Tensor, Tensor]:
        """Types (B, N), and edges (B, N, N) from row to column."""
        types, edges = zip(*(self._graph(genotype) for genotype in genotypes), strict=True)
        return torch.stack(types), torch.stack(edges)

    def _graph(self, genotype: Genotype) -> tuple[Tensor, Tensor]:
        count = len(self.places)
        types, edges = torch.zeros(count, dtype=torch.long), torch.zeros(count, count, dtype=torch.bool)
        at = {group.name: ops_by_edge(group, genotype.groups[group.name]) for group in self.space.groups}
        for p, (place, group, means) in enumerate(self._layout):
            if place.node is None:
                types[p], sources = place.kind, place.sources
            else:
                chosen = next(s for s in place.node.sets if all(e in at[group] for e in s))[place.n]
                types[p] = 2 + self.inputs + self.ops.index(at[group][chosen])
                source = place.node.group.edges[chosen][0]
                sources = tuple(next(places for places, state in means.items() if state == source))
            edges[list(sources), p] = True
        return types, edges

    # ------------------------------------------------------------------ graphs to cells

    def decode(self, types: Tensor, edges: Tensor) -> Genotype | None:
        """The genotype of types (N,) and edges (N, N); None if they are no cell of the space."""
        kinds, found = types.tolist(), edges.T.tolist()
        into = [frozenset(q for q in range(p) if found[p][q]) for p in range(len(kinds))]
        chosen: dict[str, list[Choice]] = {group.name: [] for group in self.space.groups}
        taken: dict[Node, dict[int, str]] = {}
        for p, (place, _, means) in enumerate(self._layout):
            if place.node is None:
                if kinds[p] != place.kind or into[p] != frozenset(place.sources):
                    return None
                continue
            op, source = kinds[p] - 2 - self.inputs, means.get(into[p])
            if op < 0 or source is None or not self._put(taken.setdefault(place.node, {}), place, source, self.ops[op]):
                return None
        for node, ops in taken.items():
            if tuple(sorted(ops)) not in node.sets:
                return None
            chosen[node.group.name] += [Choice(*node.group.edges[e], ops[e]) for e in sorted(ops)]
        groups = {name: tuple(choices) for name, choices in chosen.items()}
        for group in self.space.groups:
            if group.keep is None:
                edges_in_order = {edge: e for e, edge in enumerate(group.edges)}
                groups[group.name] = tuple(
                    sorted(groups[group.name], key=lambda c, order=edges_in_order: order[c.source, c.target])  # type: ignore[misc]
                )
        return Genotype(self.space.name, groups, self.space.sharing)

    @staticmethod
    def _put(ops: dict[int, str], place: Place, source: int, op: str) -> bool:
        """Notes the operation on an edge from `source` that is free; False where there is no such edge, or it has no such operation."""
        assert place.node is not None
        group = place.node.group
        for e in sorted({e for edges in place.node.sets for e in edges}):
            if group.edges[e][0] == source and e not in ops and op in derivable(group, e):
                ops[e] = op
                return True
        return False


def _target(node: Node) -> int:
    return node.group.edges[node.sets[0][0]][1]


def _inputs(group: Group) -> list[int]:
    targets = {target for _, target in group.edges}
    return sorted({source for source, _ in group.edges} - targets)
