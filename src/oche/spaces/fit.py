"""Makes a network fit its limits: scales its width, or where that is not enough or not allowed, changes its operations.

Width is an integer number of channels. A change of the genotype is the one that alpha minds least for what it saves: each changes one
choice for a cheaper one, and in the end leads to the smallest network of the space, which is known to keep the limits before anything
is trained. So what comes out keeps them always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from oche.base import counted
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.spaces.base import Space
from oche.spaces.cost import priced
from oche.spaces.edges import KEPT, KEPT_NORMED, TRAINED
from oche.spaces.limits import LIMITED, Limits, Pricer, Prices
from oche.spaces.repair import Strengths, repaired
from oche.spaces.sampling import sample
from oche.spaces.smallest import smallest

LEAST = 4
"""Channels of the narrowest network that a limit may ask for, unless the space is narrower as it is."""

WIDER = 4
"""How many times the searched width the network may get to use its limits."""


@dataclass(frozen=True)
class Fitted:
    """A network that keeps its limits: the space it is built in, what it costs, and what was done to make it so."""

    space: Space
    genotype: Genotype
    prices: Prices
    done: tuple[str, ...] = ()

    def table(self, limits: Limits) -> dict[str, object]:
        """What genotype.json and the log keep of it: limits, costs, how full each limit is, the width, and what was done."""
        width = {"channels": width_of(self.space)} if width_of(self.space) is not None else {}
        return {
            "limits": limits.table(),
            "costs": dict(self.prices),
            "shares": limits.shares(self.prices),
            **width,
            "done": list(self.done),
        }


def fit(
    space: Space, genotype: Genotype, limits: Limits, strengths: Strengths | None = None, price: Pricer | None = None
) -> Fitted:
    """The genotype at the greatest width that keeps the limits, or changed where no width does, or where the width is fixed."""
    price = price or priced(limits)
    if not limits:
        return Fitted(space, genotype, price(space, genotype))
    free, given = not limits.fixed and genotype.edge not in TRAINED and width_of(space) is not None, space
    if free:
        wider = widest(space, genotype, limits, price)
        if wider is not None:
            before, after = width_of(space), width_of(wider)
            said = [] if before == after else [f"width {before} -> {after} channels"]
            return Fitted(wider, genotype, price(wider, genotype), tuple(said))
        space = with_width(space, least_width(space))
    changed = repaired(space, genotype, limits, strengths or {}, price)
    done = tuple(_differences(genotype, changed))
    if free:  # with other operations it may be wider
        space = widest(given, changed, limits, price) or space
    return Fitted(
        space, changed, price(space, changed), (*([f"width {width_of(space)} channels"] if free else []), *done)
    )


# ------------------------------------------------------------------ width


def width_of(space: Space) -> int | None:
    """The space's channels, None where it has no such field."""
    return getattr(space, "channels", None) if any(f.name == "channels" for f in fields(space)) else None


def with_width(space: Space, width: int) -> Space:
    """The space with so many channels."""
    return replace(space, channels=width)  # type: ignore[call-arg]


def least_width(space: Space) -> int:
    """The narrowest that a space may be made."""
    return min(LEAST, width_of(space) or LEAST)


def widest(space: Space, genotype: Genotype, limits: Limits, price: Pricer | None = None) -> Space | None:
    """The widest space, up to `WIDER` times, in which the genotype's network keeps the limits; None where none does."""
    width, price = width_of(space), price or priced(limits)
    assert width is not None

    def keeps(at: int) -> bool:
        try:
            return limits.kept(price(with_width(space, at), genotype))
        except UserError:  # a width that the space does not have
            return False

    low, high = least_width(space), WIDER * width
    found = greatest(low, high, keeps, width)
    return None if found is None else with_width(space, found)


def whole(space: Space) -> Genotype:
    """Every candidate of the space on every edge, as `oche.search.selection.Keep` hands it out."""
    choices = {
        group.name: tuple(
            Choice(*edge, op)
            for edge, ops in zip(group.edges, group.ops, strict=True)
            for op in ops
            if op != "none" or len(ops) == 1
        )
        for group in space.groups
    }
    return Genotype(space.name, choices, space.sharing, KEPT)


def greatest(low: int, high: int, keeps: Callable[[int], bool], first: int) -> int | None:
    """The greatest number from low to high that keeps, if all below it do; `first` is tried first. None where not even low does."""
    if not low <= first <= high:
        first = (low + high) // 2
    if keeps(first):
        low = first
    elif first == low or not keeps(low):
        return None
    else:
        high = first - 1
    while low < high:
        middle = (low + high + 1) // 2
        if keeps(middle):
            low = middle
        else:
            high = middle - 1
    return low


def searched(
    space: Space,
    limits: Limits,
    allowed: Callable[[Space], bool],
    keeps_whole: bool = False,
    price: Pricer | None = None,
) -> Space:
    """The space as it is searched: not wider than it is, and as wide as the middle one of five random networks may be.

    Widths are multiples of four; `allowed` says which of them the supernet can have. Where the whole supernet is handed out, it
    has the greatest width at which all of it keeps the limits, if there is one, so that nothing of it is cut off once it is trained.
    """
    width, price = width_of(space), price or priced(limits)
    if not limits or limits.fixed or width is None:
        return space
    if keeps_whole and (fitting_whole := widest(space, whole(space), limits, price)):
        return fitting_whole
    cells = []
    for i in range(5):
        rng = counted(0, "limits", i)
        cell = sample(space, rng)
        while not cell.connected:
            cell = sample(space, rng)
        cells.append((max(limits.shares(price(space, cell)).values()), i, cell))
    _, _, usual = sorted(cells)[len(cells) // 2]
    widths = [width, *(w for w in range(width - 1, 0, -1) if w % 4 == 0 and w >= least_width(space))]
    fitting = [with_width(space, w) for w in widths if allowed(with_width(space, w))]
    for narrower in fitting:
        if limits.kept(price(narrower, usual)):
            return narrower
    return fitting[-1] if fitting else space


def check(space: Space, limits: Limits, keeps_weights: bool = False, price: Pricer | None = None) -> None:
    """Raises UserError, with the smallest network, where no network of the space keeps the limits."""
    if not limits:
        return
    width, price = width_of(space), price or priced(limits)
    narrow = space if limits.fixed or keeps_weights or width is None else with_width(space, least_width(space))
    least = smallest(narrow, limits, price)
    if keeps_weights:
        least = replace(least, edge=KEPT_NORMED)
    prices = price(narrow, least)
    if not limits.kept(prices):
        over = ", ".join(
            f"{prices[name]:,.6g} {LIMITED[name][1]} where --{LIMITED[name][0].replace('_', '-')} allows {most:,.6g}"
            for name, most in limits.items()
            if prices[name] > most
        )
        wide = f" at {width_of(narrow)} channels" if width is not None else ""
        wider = "leave space.channels out, " if limits.fixed and width is not None and width > LEAST else ""
        raise UserError(
            f"The smallest network of {space.name}{wide} ({least.summary()}) has {over}: {wider}raise the limit, or choose another space."
        )


def built(space: Space, table: Mapping[str, object]) -> Space:
    """The space that a network was fitted in, as `Fitted.table` has it; the space itself where nothing was fitted."""
    width = table.get("channels")
    return with_width(space, width) if isinstance(width, int) and width != width_of(space) else space


def _differences(old: Genotype, new: Genotype) -> Iterator[str]:
    """What was changed, in words."""
    for name, choices in old.groups.items():
        before, after = ({(c.source, c.target, c.op) for c in g} for g in (choices, new.groups[name]))
        gone, come = sorted(before - after), sorted(after - before)
        if gone or come:
            words = [" + ".join(f"{op} {s}->{t}" for s, t, op in part) or "nothing" for part in (gone, come)]
            yield f"{name}: {words[0]} became {words[1]}"
