"""Spaces and operations by name, `FILE.py:NAME`, or as objects; those of the user's own are known by their names from then on."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import cast

from oche import config, own
from oche.errors import UserError
from oche.own import Kind, is_foreign, takes
from oche.run import Run
from oche.spaces import SPACES, Space
from oche.spaces.ops import OPS, OpFactory

SPACE: Kind[object] = Kind(
    "space",
    SPACES,
    lambda thing: isinstance(thing, Space) or (inspect.isclass(thing) and issubclass(thing, Space)),
    "an oche.spaces.Space, its class, or a function that gives one",
)
OPERATION: Kind[OpFactory] = Kind(
    "operation", OPS, takes(3), "a function of (channels, stride, affine) that gives a torch module"
)

BUILT_IN = frozenset(SPACES) | frozenset(OPS)
"""Names that no part of the user's own may take."""

OPERATIONS = ("ops", "normal", "reduce", "without")
"""Fields of spaces that name operations."""


def space(given: object) -> type[Space]:
    """The space of a name, FILE.py:NAME or an object, as a type; one of the user's own is known by its name from then on."""
    thing = SPACE.part(given) if is_foreign(given) else SPACE.find(given)
    kind = cast(type[Space], thing) if inspect.isclass(thing) else _with_defaults(cast(Space, thing))
    if is_foreign(given):
        name = kind().name
        if name not in BUILT_IN:
            SPACES[name] = kind
        elif not issubclass(kind, SPACES[name]) or kind.__name__ != SPACES[name].__name__:
            raise UserError(
                f"There is a space {name!r} already: give the one of {own.display(given)} a `name` of its own."
            )
    return kind


def _with_defaults(made: Space) -> type[Space]:
    """The type of a space, whose defaults are the values of this one."""
    hints, values = config.annotations_of(type(made)), {f.name: getattr(made, f.name) for f in fields(made) if f.init}
    if values == {f.name: f.default for f in fields(made) if f.init}:
        return type(made)
    body = {"__annotations__": {name: hints[name] for name in values}, "__module__": type(made).__module__, **values}
    return cast(type[Space], dataclass(frozen=True)(type(type(made).__name__, (type(made),), body)))


def operations(value: object) -> object:
    """The names of operations in a setting: those of the user's own, FILE.py:NAME or functions, are registered. Raises UserError."""
    if isinstance(value, str):
        return (
            operations([item.strip() for item in value.split(",")])
            if own.is_own(value) and "," in value
            else _op(value)
        )
    if isinstance(value, list | tuple):
        return tuple(operations(item) for item in value)
    return _op(value)


def _op(given: object) -> object:
    if isinstance(given, str) and not own.is_own(given):
        return given
    made = OPERATION.find(given)
    name = given.rpartition(":")[2] if isinstance(given, str) else own.qualified(made)
    if name in BUILT_IN and OPS.get(name) is not made:
        raise UserError(f"There is an operation {name!r} already: give yours another name.")
    OPS[name] = made
    return name


def setting(path: str, value: object, present: object) -> object:
    """The value of a space's field, operations of the user's own registered."""
    return operations(value) if path in OPERATIONS else value


def register_kept(run: Run) -> None:
    """Registers the spaces and operations that a run took from files, out of the copies that it keeps. Raises UserError."""
    if not run.has(Run.CONFIG):
        return
    table = config.loads(run.read(Run.CONFIG).decode(errors="replace"), str(run.file(Run.CONFIG)))
    with own.copies_of(run.path, table):
        for kind, text in own.kept_names(table):
            if kind == SPACE.what:
                space(text)
            elif kind == OPERATION.what:
                operations(text)
