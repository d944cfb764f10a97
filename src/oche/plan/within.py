"""Which epochs fit into a given time: how long a command may take, and the numbers of epochs whose parts fill it best."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf, log

from oche.errors import UserError

UNEVEN = 0.1
"""A choice that is out of proportion by a factor of e counts like one that misses the time by this share."""

UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

OVER = 0.03
"""Share of the time by which a choice may exceed it, where it comes closer than one that stays below."""


def seconds_of(given: str | float | None) -> float | None:
    """A time as it is written, in seconds; a bare number counts seconds. Raises UserError.

    >>> seconds_of("20m"), seconds_of("1h30m"), seconds_of("90"), seconds_of(None)
    (1200.0, 5400.0, 90.0, None)
    """
    if given is None or given == "none":
        return None
    text = str(given).replace(" ", "")
    parts = re.findall(r"(\d+\.?\d*)(min|[smh])", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        found = sum(float(number) * UNITS[unit] for number, unit in parts)
    elif re.fullmatch(r"\d+\.?\d*", text):
        found = float(text)
    else:
        raise UserError(f"--time {given} is no time: write 20m, 90s or 1h30m.")
    if found <= 0:
        raise UserError(f"--time must be above 0; given {given}.")
    return found


def spoken(seconds: float) -> str:
    """Seconds as one says them.

    >>> spoken(8.4), spoken(95), spoken(1260), spoken(9000)
    ('8 s', '95 s', '21 min', '2 h 30 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class Parts:
    """Seconds of a search with its comparison: per epoch of the search, per epoch of all trainings together, and of all else.

    A part that there is not takes 0.
    """

    search: float = 0.0
    training: float = 0.0
    rest: float = 0.0

    def seconds(self, epochs: int, training: int) -> float:
        """The whole, with so many epochs of each."""
        return self.search * epochs + self.training * training + self.rest


def nearest(per_epoch: float, left: float, over: float = 0.0) -> int:
    """The number of epochs, at least 1, that comes closest to the seconds that are left without exceeding them by more than `over`.

    >>> nearest(10, 47), nearest(10, 47, over=3), nearest(10, 2)
    (4, 5, 1)
    """
    below = int(left / per_epoch)
    excess = (below + 1) * per_epoch - left
    return max(1, below + (excess <= over and excess < left - below * per_epoch))


def epochs_within(
    seconds: float,
    parts: Parts,
    usual: tuple[int, int],
    given: tuple[bool, bool] = (False, False),
    fewest: int = 1,
    less: str = "",
) -> tuple[int, int]:
    """The epochs of search and of each training that fill `seconds` best, in about the proportion of the `usual` ones.

    Those that were `given` stay as they are; the search has at least its `fewest`. Of the numbers of training epochs next to that
    proportion it takes the one with which the search's epochs fill the time better. Raises UserError where the fewest of each take longer,
    with `less`, what could take less time, behind it.
    """
    fixed = tuple(given_ or not each for given_, each in zip(given, (parts.search, parts.training), strict=True))
    if all(fixed):
        raise UserError("--time has no epochs left to choose: leave it out, or --epochs, or --set train.epochs.")
    least = (usual[0] if fixed[0] else fewest, usual[1] if fixed[1] else 1)
    if (shortest := parts.seconds(*least)) > (1 + OVER) * seconds:
        of = ((parts.search, "of the search"), (parts.training, "of each training"))
        named = [f"{n} {what}" for n, (each, what) in zip(least, of, strict=True) if each]
        raise UserError(
            f"--time {spoken(seconds)} is too short, for this machine takes about {spoken(shortest)} with as few epochs as there can be "
            f"({' and '.join(named)}): give it at least that{less}."
        )
    left, over = seconds - parts.rest, OVER * seconds
    if fixed[0]:
        return usual[0], nearest(parts.training, left - parts.search * usual[0], over)
    if fixed[1]:
        return max(fewest, nearest(parts.search, left - parts.training * usual[1], over)), usual[1]
    share = left / (parts.search * usual[0] + parts.training * usual[1])
    best, found = inf, least
    for training in {1, max(1, int(share * usual[1])), max(1, int(share * usual[1]) + 1)}:
        epochs = max(fewest, nearest(parts.search, left - parts.training * training, over))
        missed = abs(parts.seconds(epochs, training) - seconds) / seconds
        uneven = abs(log(epochs / usual[0] * usual[1] / training))
        if parts.seconds(epochs, training) <= (1 + OVER) * seconds and missed + UNEVEN * uneven < best:
            best, found = missed + UNEVEN * uneven, (epochs, training)
    return found
