"""What "auto" stands for: a method, a size and a loss that fit the data, said in one line before the run.

Whatever is given goes before it: a method's name leaves all of this out, a setting the part that it sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from oche.data import Data
from oche.data.facts import rare_classes
from oche.plan import named
from oche.plan.parts import LIMITED_SPACE, SPACE, form_of, usual_space
from oche.plan.request import AUTO, Request
from oche.plan.settings import by_part
from oche.search.searcher import as_searcher
from oche.spaces import named as spaces
from oche.spaces.limits import LIMITED

METHODS = {"classify": "rf_darts", "segment": "single_stage"}
"""The method that "auto" stands for, by what the data can teach."""

LOSS = "task.dice"
"""The term that gives rare classes weight: over whole regions, each class counts alike however few its pixels are."""


@dataclass(frozen=True)
class Chosen:
    """A request without "auto" for its method, settings of the space below the budget's, and the line that says it, "" for nothing."""

    request: Request
    space: Mapping[str, object] = field(default_factory=dict)
    says: str = ""


def chosen(request: Request, data: Data) -> Chosen:
    """The request with what fits the data where it asks for "auto"; nothing else changes."""
    if request.method != AUTO:
        return Chosen(request)
    request = replace(request, method=METHODS[form_of(data)])
    if form_of(data) == "classify":
        return Chosen(request)
    said, size = [f"{request.method}, for the data have masks"], dict[str, object]()
    of_space = by_part(request.settings).get("space", {})
    if spaces.space(SPACE["segment"] if request.space == AUTO else request.space) is spaces.space(SPACE["segment"]):
        levels = levels_for(data.size)
        if "levels" not in of_space:
            size = {"levels": levels}
            said += [f"strides up to {4 * 2 ** (levels - 1)} at {data.size[0]}x{data.size[1]} (space.levels={levels})"]
    if (few := rare_classes(data)) and not by_part(request.settings).get("task"):
        request = replace(request, settings={**request.settings, LOSS: 1.0})
        shares = ", ".join(f"{name!r} {share:.1%}" for name, share in few[:4]) + ", ..." * (len(few) > 4)
        said += [f"cross-entropy + Dice, for few pixels are {shares} ({LOSS}=1; {LOSS}=0 leaves it out)"]
    return Chosen(request, size, "; ".join(said))


def auto_space(request: Request, data: Data) -> str:
    """The name of the space that "auto" stands for; that of limits where the method can search it and asks no table of another."""
    limited = any(getattr(request, name) is not None for name, _, _ in LIMITED.values())
    if not limited or request.table is not None or request.settings.get("evaluator") == "table":
        return usual_space(data)
    method = as_searcher(named.method(request.method).build({})).method
    return usual_space(data, limited=method is None or LIMITED_SPACE not in method.unfit)


def levels_for(size: tuple[int, int]) -> int:
    """How many strides 4, 8, 16, 32 a grid has: the coarsest map has at least two rows and columns, and padding adds at most a quarter.

    >>> [levels_for((side, side)) for side in (8, 16, 32, 63, 64, 80, 500)]
    [1, 2, 3, 3, 4, 3, 4]
    """
    fits = [levels for levels in range(1, 5) if 8 * 2 ** (levels - 1) <= min(size) and _padding(size, levels) <= 0.25]
    return max(fits, default=1)


def _padding(size: tuple[int, int], levels: int) -> float:
    """The share of pixels that are added to bring both sides to a multiple of the largest stride."""
    stride, (height, width) = 2 << levels, size
    return -(-height // stride) * -(-width // stride) * stride**2 / (height * width) - 1
