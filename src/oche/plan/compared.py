"""What is trained beside the found cell: how many random cells, how often each, and which rivals."""

from __future__ import annotations

from collections.abc import Mapping

from oche.errors import UserError
from oche.plan.request import AUTO, Request, part_of
from oche.search.searcher import SearcherLike, as_searcher
from oche.spaces.rivals import NONE, RIVALS, names

CELLS, SEEDS = 3, 3
"""Random cells, and trainings of each network, unless asked otherwise; of fewer trainings an interval says nothing."""


def left_free(request: Request) -> tuple[str, ...]:
    """The options of the comparison that were not given."""
    return tuple(name for name in ("compare", "compare_seeds") if getattr(request, name) is None)


def seeds_of(request: Request) -> int:
    """How often each network is trained."""
    return SEEDS if request.compare_seeds is None else request.compare_seeds


def cells_of(request: Request, searcher: SearcherLike) -> int:
    """How many random cells are trained: as asked, else none for a published budget or weights that are kept. Raises UserError."""
    usual = 0 if request.budget == "paper" or as_searcher(searcher).keeps_weights else CELLS
    compare = usual if request.compare is None else request.compare
    if compare and (compare < 0 or seeds_of(request) < 1):
        raise UserError(
            f"A comparison needs random cells and at least one seed; given {compare} and {seeds_of(request)}: "
            "`--compare 0` goes without."
        )
    return compare


def rivals_of(request: Request, recorded: Mapping[str, object] | None, form: str, compare: int) -> str:
    """Which rivals are trained: as asked, else `auto` beside random cells; none in runs of before. Raises UserError."""
    asked = names(request.rivals)
    before = recorded is not None and "rivals" not in part_of(recorded, "request")
    if asked == (AUTO,):
        return NONE if before or not compare else AUTO
    if other := [name for name in asked if RIVALS[name].space.task != form]:
        fitting = ", ".join(name for name, rival in RIVALS.items() if rival.space.task == form)
        has = "masks" if form == "segment" else "no masks"
        raise UserError(
            f"{', '.join(other)} cannot be trained on these data, which have {has}: choose among {fitting}."
        )
    if asked and seeds_of(request) < 1:
        raise UserError(
            f"Rivals are trained with at least one seed; given {seeds_of(request)}: `--rivals none` goes without."
        )
    return ",".join(asked) or NONE
