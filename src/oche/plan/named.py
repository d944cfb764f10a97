"""Whatever oche has by name, a user can bring: a name, `FILE.py:NAME` or the object itself becomes the part, for every kind alike.

The kinds are rows of `oche.own.Kind`: what errors call the part, which names there are, what fits, and what is expected of one of
the user's own. Those of tables and probes stand beside their registries.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast

from oche import config, own
from oche.data import SPLITS, Split
from oche.errors import UserError
from oche.methods import METHODS, random_features
from oche.methods.ask_tell import AskTell
from oche.methods.evaluators import EVALUATORS
from oche.own import Kind, has, is_foreign, takes
from oche.plan.request import Request
from oche.search.method import Method
from oche.search.searcher import Searcher, SearcherLike, as_searcher
from oche.search.trainable import TRAINABLES, Trainable
from oche.training.protocols import PROTOCOLS, Protocol

Factory = Callable[..., SearcherLike]

METHOD: Kind[Factory | SearcherLike] = Kind(
    "method",
    METHODS,
    lambda thing: inspect.isroutine(thing) or inspect.isclass(thing) or is_searcher(thing),
    "an oche.Method, a searcher, or a function that gives one",
)
PROTOCOL: Kind[Protocol] = Kind(
    "protocol", PROTOCOLS, lambda thing: isinstance(thing, Protocol), "an oche.training.train.Protocol"
)
SPLIT: Kind[Split] = Kind(
    "split", SPLITS, takes(3), "a function of (train images, seed, epoch) that gives oche.data.Parts"
)
TRAINABLE: Kind[Trainable] = Kind(
    "trainable", TRAINABLES, has("prepare", "affine"), "an object with the methods of oche.search.trainable.Trainable"
)

EVALUATOR: Kind[object] = Kind(
    "evaluator", EVALUATORS, has("ready"), "an object with the methods of oche.methods.evaluators.Evaluator"
)

SLOTS: dict[str, Kind[Any]] = {
    "trainable": TRAINABLE,
    "split": SPLIT,
    "split.before": SPLIT,
    "evaluator": EVALUATOR,
}
"""Slots of a method whose part can be chosen by name: `--set trainable=classifier`. Any other takes FILE.py:NAME or an object."""


def is_searcher(thing: object) -> bool:
    """True for what searches: a method, or a searcher."""
    return isinstance(thing, Method | Searcher) and not inspect.isclass(thing)


# ------------------------------------------------------------------ methods


@dataclass(frozen=True)
class Found:
    """A method that was asked for: what builds it, whether its convolutions are then frozen, and whether it is the user's own."""

    name: str
    factory: Factory
    frozen: bool = False
    own: bool = False

    @property
    def options(self) -> Sequence[str]:
        """What `method.X` may set besides fields: the factory's parameters."""
        return tuple(inspect.signature(self.factory).parameters)

    def default(self, name: str) -> object:
        """An option's default."""
        return inspect.signature(self.factory).parameters[name].default

    def build(self, options: Mapping[str, object]) -> SearcherLike:
        """The searcher with these options. Raises UserError."""
        built = self.plain(options)
        return random_features(built) if self.frozen else built

    def plain(self, options: Mapping[str, object]) -> SearcherLike:
        """The searcher before its convolutions are frozen."""
        built = config.build(self.factory, options, f"method {self.name}")
        if not is_searcher(built):
            raise UserError(f"{self.name} returned {type(built).__name__}; expected {METHOD.expected}.")
        return built


def with_table(request: Request, table: str) -> Request:
    """The request with its table as settings: it answers a search that asks for cells, and tells of any other's what it is worth.

    Raises UserError for a method that neither asks nor has epochs after which a cell could be looked up.
    """
    built = None if request.method == "auto" else method(request.method).build({})
    if isinstance(built, AskTell):
        told = {"evaluator": "table", "evaluator.table": table}
        return replace(request, settings={**told, **request.settings})
    if built is None or as_searcher(built).method is None:
        raise UserError(
            f"--table answers searches that ask for cells, and tells after each epoch of a supernet what its cell is worth; "
            f"{own.display(request.method)} does neither by itself: leave --table out, or name a method, such as regularized_evolution."
        )
    probes = request.probes if "table" in request.probes else (*request.probes, "table")
    return replace(request, probes=probes, settings={"probe.table": table, **request.settings})


def method(given: object) -> Found:
    """The method of a name, FILE.py:NAME or an object; `rf_` before a name or NAME freezes its convolutions. Raises UserError."""
    if isinstance(given, str):
        path, colon, name = given.rpartition(":") if own.is_own(given) else ("", "", given)
        base = f"{path}{colon}{name.removeprefix('rf_')}"
        if base != given and not _there(given):
            found = method(base) if own.is_own(base) or base in METHODS else None
            if found is not None:
                return Found(given, found.factory, True, found.own)
    thing = METHOD.find(given)
    if inspect.isroutine(thing) or inspect.isclass(thing):
        return Found(own.display(given), cast(Factory, thing), own=is_foreign(given))
    made = cast(SearcherLike, thing)
    return Found(own.display(given), lambda: made, own=True)


def _there(given: str) -> bool:
    """True if the name itself is that of a method."""
    return own.holds(given) if own.is_own(given) else given in METHODS


def searcher_named(given: object, options: Mapping[str, object] | None = None) -> SearcherLike:
    """The searcher of a method, with its options. Raises UserError."""
    return method(given).build(options or {})


# ------------------------------------------------------------------ slots of a method


def slot(path: str, value: object, present: object) -> object:
    """The part that a value names for a slot of a method; a plain value itself. Raises UserError."""
    if path in SLOTS:
        return SLOTS[path].part(value)
    if isinstance(value, str) and own.is_own(value) and (present is None or is_dataclass(present) or callable(present)):
        thing = own.load(value)
        return thing() if inspect.isclass(thing) else thing
    return value


def protocol(given: object) -> Protocol:
    """The protocol of a name, FILE.py:NAME or an object. Raises UserError."""
    return PROTOCOL.part(given)
