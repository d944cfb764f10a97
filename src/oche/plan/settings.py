"""Layers settings. The order of precedence stands here, and only here; a later layer goes before an earlier one:

1. the defaults of the part: of a method's factory, a space, a task, a protocol, the probes
2. the space's budget (`oche.methods.budgets`)
3. the method's own budget row, which stands in the place of the space's and may also set options, the step order, operations
4. options given explicitly (`method.K=2`), and what a part of the user's own sets, from a file or handed over as an object
5. settings: `--set` on the command line, `settings=` in Python
6. of a resumed or repeated run, what its run.toml holds

So a budget never changes a value that was given explicitly, nor one that a part of the user's own sets, even where that value
happens to be the default; `kept` are the paths of such values.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Literal, TypeVar

from oche import config
from oche.errors import UserError

T = TypeVar("T")

PARTS = ("space", "data", "task", "train", "method", "probe")
"""What a setting's path may begin with; a path that begins otherwise is of a slot of the method."""

Choose = Callable[[str, object, object], object]
"""(path, value, the present value) -> the part that the value names, or the value itself."""


@dataclass(frozen=True)
class Change:
    """A value that a budget changed."""

    path: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.path} {_said(self.old)} -> {_said(self.new)}"


def by_part(settings: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Settings by the part that their path begins with; what is no part's is the method's, under "slot".

    >>> by_part({"space.cells": 3, "clip": 5})
    {'space': {'cells': 3}, 'slot': {'clip': 5}}
    """
    parts: dict[str, dict[str, object]] = {}
    for path, value in settings.items():
        part, dot, rest = path.partition(".")
        if part in PARTS and dot:
            parts.setdefault(part, {})[rest] = value
        else:
            parts.setdefault("slot", {})[path] = value
    return parts


def plainly(path: str, value: object, present: object) -> object:
    """The value itself: no part is chosen by its name."""
    return value


def layered(
    part: T,
    where: str,
    *,
    budget: Mapping[str, object] | None = None,
    kept: Iterable[str] = (),
    given: Mapping[str, object] | None = None,
    recorded: Mapping[str, object] | None = None,
    rules: int = config.RULES,
    choose: Choose = plainly,
) -> tuple[T, tuple[Change, ...]]:
    """The part with a budget's settings but for the `kept` paths, and with those given, or as `recorded`; and what the budget changed.

    A budget's setting for a field that the part does not have is left out: it was made for another part in the slot. A part is set
    before its fields. Raises UserError for a setting given that is unknown or does not fit, and for any number out of its range.
    """
    first, given = part, given or {}
    explicit = (*kept, *given)
    lower = {path: value for path, value in (budget or {}).items() if not _settled(path, kept, explicit)}
    applied = []
    for path, value in _parts_first({**lower, **given}):
        if path in lower and not _exists(part, path):
            continue
        part = config.override(part, path, choose(path, value, at(part, path)), where)
        applied += [path] if path in lower else []
    if recorded is not None:
        return config.restore(part, recorded, f"run.toml: {where}", rules), ()
    changes = (Change(path, at(first, path), at(part, path)) for path in applied)
    return config.checked(part, where), tuple(change for change in changes if change.old != change.new)


def _settled(path: str, kept: Iterable[str], explicit: Iterable[str]) -> bool:
    """True for a budget's path that a value given explicitly, or kept, has decided: itself, or a part around it or within it."""
    return any(within(path, e) for e in explicit) or any(within(k, path) for k in kept)


def _exists(part: object, path: str) -> bool:
    """True if there is such a field."""
    *way, last = path.split(".")
    holder = at(part, ".".join(way)) if way else part
    return is_dataclass(holder) and any(f.name == last and f.init and f.repr for f in fields(holder))


def at(part: object, path: str) -> object:
    """The value at a dotted path, None where there is none."""
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def within(path: str, other: str) -> bool:
    """True if `path` is `other` or lies below it."""
    return path == other or path.startswith(f"{other}.")


def differing(one: object, other: object, prefix: str = "") -> Iterator[str]:
    """The paths at which two trees of frozen dataclasses differ: that of a slot whose parts are of two types, else those of fields."""
    if is_dataclass(one) and not isinstance(one, type) and type(one) is type(other):
        for field in fields(one):
            if field.init and field.repr:
                yield from differing(getattr(one, field.name), getattr(other, field.name), f"{prefix}{field.name}.")
    elif one != other:
        yield prefix.removesuffix(".")


def reached(
    build: Callable[[Mapping[str, object]], object],
    factory: Callable[..., object],
    others: Mapping[str, object],
    given: Mapping[str, object],
) -> set[str]:
    """The paths that the factory's options `given` reach in what `build` makes of them beside `others`.

    One that is given as its default is compared with another value, for it is explicit all the same.
    """
    built = build({**others, **given})
    paths = set(differing(build(others), built))
    for name, value in given.items():
        if value == _default(factory, name):
            for other in _others(factory, name, value):
                try:
                    paths |= set(differing(built, build({**others, **given, name: other})))
                except UserError:
                    continue
    return paths


def _default(factory: Callable[..., object], name: str) -> object:
    return inspect.signature(factory).parameters[name].default


def _others(factory: Callable[..., object], name: str, value: object) -> tuple[object, ...]:
    """Values that an option may have instead."""
    hint = config.annotations_of(factory).get(name)
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int | float):
        return (value + 1, value / 2)
    if value is None:
        return (1, 0.5)
    return tuple(v for v in typing.get_args(hint) if v != value) if typing.get_origin(hint) is Literal else ()


def _parts_first(settings: Mapping[str, object]) -> list[tuple[str, object]]:
    """Settings with those of a part before those of its fields."""
    return sorted(settings.items(), key=lambda setting: setting[0].count("."))


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
