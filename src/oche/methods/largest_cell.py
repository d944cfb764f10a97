"""The largest cell: that with the most parameters, found by counting; a baseline that most searches do not beat.

X. Ning et al. NeurIPS 2021, arXiv 2008.03064, among others: the number of parameters ranks cells about as well as most estimators do.

    each edge has the candidate with the most parameters; a node that keeps some of its edges keeps those

Equal numbers of parameters are decided by multiply-adds, then by the order of edges and candidates. In NAS-Bench-201 it is the cell of 3x3
convolutions alone (index 1462), in the DARTS space `sep_conv_5x5` from both inputs into every node.

Published: the score; there are no constants.

Deviations from the paper: it ranks given cells by size, where this builds the largest.
Deviations from the authors' code: none known.
Cost against DARTS: none, since nothing is trained in the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oche.genotype import Choice, Genotype
from oche.search.callbacks import Callback
from oche.search.limits import hand_out
from oche.search.state import Problem
from oche.spaces import Space
from oche.spaces.cost import candidates


@dataclass(frozen=True)
class LargestCell:
    """The cell with the most parameters: no search at all."""

    name: str = "largest_cell"
    papers: tuple[str, ...] = ("ning2021evaluating",)

    @property
    def method(self) -> None:
        """None: there is no supernet."""
        return None

    @property
    def keeps_weights(self) -> bool:
        """False: nothing is trained."""
        return False

    def run(self, problem: Problem, watch: Sequence[Callback] = ()) -> tuple[Genotype, None]:
        """Counts the space's candidates and writes the largest cell, the same for every seed."""
        genotype = largest(problem.space)
        return hand_out(problem, genotype), None


def largest(space: Space) -> Genotype:
    """The genotype of the space with the most parameters."""
    groups = {}
    for group in space.groups:
        costs = candidates(space)[group.name].sum(0).tolist()  # (E, O, 2): parameters, multiply-adds
        best: dict[int, tuple[list[float], str]] = {}
        for e, ops in enumerate(group.ops):
            allowed = [o for o, op in enumerate(ops) if group.keep is None or op != "none"]
            if allowed:
                o = max(allowed, key=lambda o, row=costs[e]: row[o])  # type: ignore[misc]  # the first of equal ones
                best[e] = costs[e][o], ops[o]
        chosen: list[int] = []
        for numbers in group.into().values():
            ranked = sorted((e for e in numbers if e in best), key=lambda e: best[e][0], reverse=True)
            chosen += sorted(ranked[: group.keep])
        groups[group.name] = tuple(Choice(*group.edges[e], best[e][1]) for e in sorted(chosen))
    return Genotype(space.name, groups, space.sharing)
