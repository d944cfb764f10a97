"""All that is wrong with a data set at once, not the first thing alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from oche.data.images import in_parallel
from oche.errors import UserError

Item = TypeVar("Item")

SHOWN = 5
"""Problems that the message of an error has in full; `oche check` lists all."""


class Problems(UserError):
    """Everything that keeps a data set from being read, a sentence each in `found`; the message has the first few."""

    def __init__(self, found: Sequence[str]) -> None:
        self.found = tuple(found)
        more = f" And {len(found) - SHOWN} more: `oche check` lists all." if len(found) > SHOWN else ""
        first = "" if len(found) == 1 else f"{len(found)} problems. "
        super().__init__(first + " ".join(found[:SHOWN]) + more)


def refuse(found: Iterable[str]) -> None:
    """Raises `Problems` where there are any; each counts once."""
    if different := list(dict.fromkeys(found)):
        raise Problems(different)


def problems_of(error: UserError) -> tuple[str, ...]:
    """The sentences of an error, one or several."""
    return error.found if isinstance(error, Problems) else (str(error),)


def each(work: Callable[[int], Item], count: int, workers: int) -> list[Item]:
    """[work(0), work(1), ...], by several threads; raises `Problems` with all sentences of the user's errors among them."""
    results, found = tried(work, count, workers)
    refuse(found)
    return [result for result in results if result is not None]


def tried(work: Callable[[int], Item], count: int, workers: int) -> tuple[list[Item | None], list[str]]:
    """The results of `work`, None where it raised a UserError, and the sentences of these errors."""

    def attempt(i: int) -> tuple[Item | None, tuple[str, ...]]:
        try:
            return work(i), ()
        except UserError as error:
            return None, problems_of(error)

    both = in_parallel(attempt, range(count), workers)
    return [result for result, _ in both], [sentence for _, found in both for sentence in found]
