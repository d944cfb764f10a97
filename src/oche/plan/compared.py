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


def seeds_of(request: Request, searcher: SearcherLike | None = None, compare: int = 1) -> int:
    """How often each network is trained: as asked, else once beside weights that the `searcher` keeps, without random cells."""
    if request.compare_seeds is not None:
        return request.compare_seeds
    return 1 if searcher is not None and not compare and as_searcher(searcher).keeps_weights else SEEDS


def beside_kept(searcher: SearcherLike, compare: int, seeds: int) -> bool:
    """True if rivals are trained once, and stand beside the network that the search itself hands out."""
    return as_searcher(searcher).keeps_weights and not compare and seeds == 1


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


def rivals_of(request: Request, recorded: Mapping[str, object] | None, form: str, compare: int, kept: bool) -> str:
    """Which rivals are trained: as asked, else `auto` beside random cells, or for masks beside a network that was `kept`.

    None in runs of before. Raises UserError.
    """
    asked = names(request.rivals)
    before = recorded is not None and "rivals" not in part_of(recorded, "request")
    if asked == (AUTO,):
        usual = compare or (kept and form == "segment" and request.budget != "paper")
        return AUTO if usual and not before else NONE
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
