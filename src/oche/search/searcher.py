"""The one interface of everything that searches, and the wrapper that gives it to a `Method`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Protocol, runtime_checkable

from oche.genotype import Genotype
from oche.search.callbacks import Callback
from oche.search.loop import search
from oche.search.method import Method
from oche.search.state import Problem, SearchState


@runtime_checkable
class Searcher(Protocol):
    """Searches a problem. `as_searcher` makes one of a `Method`; `Staged` and the ask/tell searchers are searchers as they are."""

    @property
    def name(self) -> str: ...

    @property
    def papers(self) -> tuple[str, ...]:
        """BibTeX keys, see `oche.methods.papers`."""
        ...

    @property
    def method(self) -> Method | None:
        """The method that it runs, or varies from stage to stage; None if it has no architecture parameters to learn."""
        ...

    @property
    def keeps_weights(self) -> bool:
        """True if what it finds comes with trained weights, so that nothing has to be trained from scratch."""
        ...

    def run(self, problem: Problem, watch: Sequence[Callback] = ()) -> tuple[Genotype, SearchState | None]:
        """Searches from where the problem's run stands, and writes the genotype last of all.

        `watch` are callbacks that measure beside the search and do not change it; a searcher without epochs ignores them.
        Returns the genotype, and the state that a supernet's search ended in.
        """
        ...


SearcherLike = Method | Searcher
"""What `METHODS` builds."""


@dataclass(frozen=True)
class MethodSearcher:
    """A method as a searcher: one search from beginning to end."""

    method: Method
    keeps_weights: bool = False

    @property
    def name(self) -> str:
        """The method's."""
        return self.method.name

    @property
    def papers(self) -> tuple[str, ...]:
        """The method's."""
        return self.method.papers

    def run(self, problem: Problem, watch: Sequence[Callback] = ()) -> tuple[Genotype, SearchState | None]:
        """Searches, or carries on from the run's checkpoint."""
        result = search(problem, replace(self.method, callbacks=(*self.method.callbacks, *watch)))
        return result.genotype, result.state


def as_searcher(built: SearcherLike) -> Searcher:
    """The searcher itself, or the method wrapped."""
    return MethodSearcher(built) if isinstance(built, Method) else built


def around(built: SearcherLike, method: Method, name: str) -> SearcherLike:
    """The same searcher under another name and around another method."""
    if isinstance(built, Method):
        return replace(method, name=name)
    assert is_dataclass(built)
    assert not isinstance(built, type)
    return replace(built, method=method, name=name)
