"""The stages space: DARTS cells, and a cell of its own for each range of depth, instead of one normal and one reduction cell for all.

Five kinds of cell: `normal_1` before the first reduction, `reduce_1`, `normal_2` between the two, `reduce_2`, and `normal_3` after the
second. All else is the DARTS space. SWD-NAS searches five cells N R N R N and trains 20 of them so. With `sharing="cell"` every cell has an
architecture of its own, which no other depth of network can take over.
"""

from __future__ import annotations

from dataclasses import dataclass

from oche.base import Group
from oche.spaces.darts import DartsSpace

KINDS = ("normal_1", "reduce_1", "normal_2", "reduce_2", "normal_3")


@dataclass(frozen=True)
class StagesSpace(DartsSpace):
    """The DARTS space with a cell for each of its three stages, and one for each of the two reductions between them."""

    name: str = "stages"

    def kinds(self) -> tuple[Group, ...]:
        normal, reduce = super().kinds()
        first, second = self.cells // 3, 2 * self.cells // 3
        names: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for i in range(self.cells):
            place = 2 * ((i > first) + (i > second)) + (i in (first, second))
            names[KINDS[place]].append(f"cell_{i}")
        groups = {"normal": normal, "reduce": reduce}
        return tuple(
            Group(kind, groups[kind[:-2]].edges, groups[kind[:-2]].ops, 2, tuple(cells))
            for kind, cells in names.items()
        )

    def notes(self) -> tuple[str, ...]:
        empty = [group.name for group in self.kinds() if not group.cells]
        said = (
            f"there is no {' and no '.join(empty)} in {self.cells} cells: these parts of the genotype are not searched"
        )
        return ((said,) if empty else ()) + super().notes()
