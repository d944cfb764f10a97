"""The ends of the values of images, and values that stand alone there, as numbers for missing data do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GAP = 0.9
"""Share of the whole range without a value from which on the value beyond it stands alone."""


@dataclass(frozen=True)
class Ends:
    """The two least and the two greatest different values."""

    low: float
    next_low: float
    next_high: float
    high: float


def ends(values: NDArray[np.generic]) -> Ends:
    """Of all values, which are finite."""
    low, high = values.min(), values.max()
    if low == high:
        return Ends(float(low), float(low), float(high), float(high))
    above = np.min(values, where=values > low, initial=high)
    below = np.max(values, where=values < high, initial=low)
    return Ends(float(low), float(above), float(below), float(high))


def joined(found: Sequence[Ends]) -> Ends:
    """The ends of several arrays together."""
    lows = sorted({value for one in found for value in (one.low, one.next_low)})
    highs = sorted({value for one in found for value in (one.high, one.next_high)})
    return Ends(lows[0], lows[min(1, len(lows) - 1)], highs[max(0, len(highs) - 2)], highs[-1])


def alone(found: Ends) -> tuple[str, ...]:
    """A note where one value lies far from all others.

    >>> alone(Ends(-9999, 0, 0.8, 1))
    ('No value lies between -9999 and 0: if -9999 stands for missing data, write another value there, for it stretches the range of all.',)
    """
    span = found.high - found.low
    for odd, next_to in ((found.low, found.next_low), (found.high, found.next_high)):
        if abs(odd - next_to) > GAP * span > 0 and next_to not in (found.low, found.high):
            least, most = sorted((odd, next_to))
            return (
                f"No value lies between {least:g} and {most:g}: if {odd:g} stands for missing data, write another value there, for it "
                "stretches the range of all.",
            )
    return ()
