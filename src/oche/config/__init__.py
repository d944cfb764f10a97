"""How settings get from the command line and from TOML into Python: signatures are the only schema there is.

A method is built by calling its factory (`build`), changed field by field (`override`), written down whole
(`describe`) and set to what was written down (`restore`). Values are plain: numbers, strings, booleans, paths, tuples
of these, `"none"`. A part, that is a nested frozen dataclass, is never made from a value: its fields are set one by
one. A field with `repr=False` is no setting: it stays what the part's author made it.
"""

from __future__ import annotations

import inspect
import sys
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from oche.config.values import NONE, fit
from oche.errors import UserError, unknown

T = TypeVar("T")

LARGEST = 2**24
"""Letters that a text of settings has at most."""

RULES = 2
"""The version of the rules that a run is written under; runs without an entry are of version 1. See `BEFORE`."""

BEFORE: dict[tuple[str, str], tuple[int, object]] = {
    ("Ablation", "learns"): (2, True),
    ("BestEpoch", "at_end"): (2, True),
    ("Cosine", "ramp"): (2, "cosine"),
    ("DropPath", "whole"): (2, False),
    ("Entropy", "derivable"): (2, False),
    ("Evaluation", "rule"): (2, "paper"),
    ("FreezeOverfitted", "rule"): (2, "paper"),
    ("Game", "before"): (2, False),
    ("Game", "correction"): (2, 0),
    ("Game", "fresh"): (2, False),
    ("Game", "initial"): (2, 0.0),
    ("KeepInitial", "rule"): (2, "convolutions"),
    ("Method", "fresh_inner"): (2, False),
    ("Perturb", "carry"): (2, "momentum"),
    ("Perturb", "falling"): (2, True),
    ("Perturbation", "empty"): (2, "clean"),
    ("PoolsAndSkips", "rule"): (2, "paper"),
    ("Progressive", "keep_adam"): (2, False),
    ("Prune", "draw"): (2, "theta"),
    ("RememberAccuracy", "images"): (2, "val"),
    ("SGD", "nesterov_ahead"): (2, True),
    ("Trials", "rule"): (2, "paper"),
    ("Trials", "since"): (2, 0.0),
    ("WidestAngle", "rule"): (2, "convolutions"),
}
"""(type, field) -> (N, value): what a field that run.toml does not record meant before version N of the rules.

A rule is corrected by a new field of its part, whose default is the new rule; the row here, and `RULES` raised to N, keep older runs
what they were: they resume, and end, as they would have.
"""


def build(factory: Callable[..., T], values: Mapping[str, object], where: str) -> T:
    """Calls `factory` with keyword values, each checked and converted after the annotation of its parameter.

    `where` is what errors call the factory. Raises UserError for an unknown name, a missing one, or a value that does
    not fit.

    >>> def pcdarts(K: int = 4, lr: float = 3e-4) -> tuple[int, float]:
    ...     return K, lr
    >>> build(pcdarts, {"K": "2"}, "pcdarts")
    (2, 0.0003)
    >>> build(pcdarts, {"lrr": 2}, "pcdarts")
    Traceback (most recent call last):
    oche.errors.UserError: There is no pcdarts setting 'lrr'; did you mean 'lr'? Known: K, lr.
    """
    hints = annotations_of(factory)
    parameters = {p.name: p for p in inspect.signature(factory).parameters.values() if p.kind in _BY_NAME}
    _refuse_unknown(values, parameters, "", where)
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise UserError(f"{where} needs a value for {', '.join(missing)}.")
    return factory(**{name: fit(value, hints.get(name, object), name, where) for name, value in values.items()})


def override(part: T, path: str, value: object, where: str) -> T:
    """A copy of a tree of frozen dataclasses in which the field at the dotted `path` has another value.

    Raises UserError for a field that does not exist or a value that does not fit its annotation.
    """
    *way, last = path.split(".")
    holders: list[Any] = [part]
    for depth, name in enumerate(way):
        _refuse_unknown([name], _names(holders[-1]), _dotted(way[:depth]), where)
        holders.append(getattr(holders[-1], name))
        if not _is_part(holders[-1]):
            raise UserError(f"{where}: {'.'.join(way[: depth + 1])} has no fields, so {path} cannot be set.")
    _refuse_unknown([last], _names(holders[-1]), _dotted(way), where)
    new: Any = fit(value, annotations_of(type(holders[-1]))[last], path, where)
    for holder, name in zip(reversed(holders), reversed([*way, last]), strict=True):
        new = replace(holder, **{name: new})
    return typing.cast(T, new)


def checked(part: T, where: str, path: str = "") -> T:
    """The part itself. Raises UserError where a number in its tree is not finite, or lies outside of the range that its field has.

    >>> from oche.optim import SGD
    >>> checked(SGD(momentum=2), "train")
    Traceback (most recent call last):
    oche.errors.UserError: train: momentum must be float from 0 to below 1, not 2.
    """
    hints = annotations_of(type(part))
    for name in _names(part):
        value, here = getattr(part, name), f"{path}{name}"
        for n, item in enumerate(value if isinstance(value, tuple) else ()):
            if _is_part(item):
                checked(item, where, f"{here}.{n}.")
        if _is_part(value):
            checked(value, where, f"{here}.")
        elif _holds_numbers(value):
            fit(value, hints[name], here, where)
    return part


def _holds_numbers(value: object) -> bool:
    """True for a number, and for a tuple with one."""
    if isinstance(value, tuple):
        return any(map(_holds_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def assignment(text: str) -> tuple[str, object]:
    """The dotted path and the value of `path=value`; the value is read as TOML, or else is the text itself.

    >>> assignment("space.cells=3"), assignment("relaxation=none"), assignment("space.widths=[16, 32]")
    (('space.cells', 3), ('relaxation', 'none'), ('space.widths', [16, 32]))
    """
    path, equals, written = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"{text!r} sets nothing; expected NAME=VALUE, such as space.cells=3.")
    try:
        table = tomllib.loads(f"value = {written.strip()}")
    except (ValueError, RecursionError):
        table = {}
    value = table.get("value") if len(table) == 1 else None
    return path.strip(), value if isinstance(value, str | int | float | list) else written.strip()


def describe(part: object) -> dict[str, object]:
    """A nested table of all the settings in a tree of frozen dataclasses, each table with its class's name as `type`.

    Tuples become lists, None becomes "none", and a function or a class its public name: enough for `restore`, and
    for a reader who wants to know what was run. Raises UserError for a value that TOML has no form for.
    """
    table: dict[str, object] = {"type": type(part).__name__}
    for name in _names(part):
        if name == "type":
            raise TypeError(f"{type(part).__name__}.type: describe() needs this name for the class's own")
        table[name] = _plain(getattr(part, name), f"{type(part).__name__}.{name}")
    return table


def restore(part: T, described: Mapping[str, object], where: str, rules: int = RULES) -> T:
    """A copy of `part` with every value that `describe` wrote; `restore(part, describe(x), ...) == x` for like types.

    `rules` is the version that the table was written under. What the table leaves out stays as it is, but for a field that `BEFORE`
    knows an older meaning of. Raises UserError where the table tells of other types than `part` has.
    """
    return typing.cast(T, _restored(part, described, "", where, rules))


def dumps(table: Mapping[str, object]) -> str:
    """The table as TOML."""
    return tomli_w.dumps(table)


def loads(text: str, where: str) -> dict[str, object]:
    """The table in a TOML text; `where` is what errors call it. Raises UserError where it is no TOML."""
    if len(text) > LARGEST:
        raise UserError(f"{where} has {len(text):,} letters; settings have at most {LARGEST:,}.")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid TOML: {error}.") from None


# ---------------------------------------------------------------------- names


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def annotations_of(factory: Callable[..., object]) -> dict[str, Any]:
    """Name -> annotation of a function's parameters or a class's fields, strings resolved where they were written."""
    if inspect.isclass(factory) and not is_dataclass(factory):
        return typing.get_type_hints(factory.__init__, include_extras=True)
    return typing.get_type_hints(factory, include_extras=True)


def _names(part: Any) -> list[str]:
    return [field.name for field in fields(part) if field.init and field.repr]


def _is_part(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _dotted(way: list[str]) -> str:
    return "".join(f"{name}." for name in way)


def _refuse_unknown(names: Iterable[str], known: Iterable[str], prefix: str, where: str) -> None:
    known = [prefix + name for name in known]
    for name in names:
        if prefix + name not in known:
            if not known:
                raise UserError(f"{where} has no settings, so {prefix + name!r} cannot be set.")
            raise unknown(f"{where} setting", prefix + name, known)


# ---------------------------------------------------------------------- parts and tables


def _plain(value: object, name: str) -> object:
    if _is_part(value):
        return describe(value)
    if value is None:
        return NONE
    if isinstance(value, tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if inspect.isclass(value) or inspect.isroutine(value):
        return _public(value)
    raise UserError(f"{name} is {value!r}, which run.toml cannot hold; make it a frozen dataclass with plain fields.")


def _public(routine: Any) -> str:
    """A function's or class's name without its module, so that a run outlives a move."""
    name: str = routine.__qualname__
    return name.rpartition(".")[2]


def _restored(old: Any, described: object, path: str, where: str, rules: int, hint: Any = object) -> Any:
    """What stands in the place of `old` after `described`: a part, a tuple with parts, a function or a plain value."""
    if rules < RULES and (described == [] or _tells_of_parts(described)):  # a method may have had other parts then
        old = _as_it_was(old, described)
    if _is_part(old):
        if not isinstance(described, Mapping) or described.get("type") != type(old).__name__:
            told = described.get("type") if isinstance(described, Mapping) else described
            raise UserError(f"{where}: {path or 'this'} is {told!r} there but {type(old).__name__} here.")
        prefix = f"{path}." if path else ""
        table = {**_meant(old, rules), **described}
        del table["type"]
        _refuse_unknown(table, _names(old), prefix, where)
        hints = annotations_of(type(old))
        changes = {n: _restored(getattr(old, n), v, prefix + n, where, rules, hints[n]) for n, v in table.items()}
        return replace(old, **changes)
    if isinstance(old, tuple) and any(_is_part(item) or callable(item) for item in old):
        if not isinstance(described, list) or len(described) != len(old):
            raise UserError(f"{where}: {path} has {len(old)} parts here, which {described!r} does not fit.")
        pairs = enumerate(zip(old, described, strict=True))
        return tuple(_restored(item, table, f"{path}.{n}", where, rules) for n, (item, table) in pairs)
    if callable(old):
        if str(described).rpartition(".")[2] != _public(old):  # runs of earlier days have the module's path
            raise UserError(f"{where}: {path} is {described!r} there but {_public(old)!r} here.")
        return old
    return fit(described, hint, path, where)


def _meant(part: Any, rules: int) -> dict[str, object]:
    """What the part's fields that an older run.toml does not record meant then."""
    name, own = type(part).__name__, _names(part)
    return {f: value for (type_, f), (since, value) in BEFORE.items() if type_ == name and f in own and rules < since}


def _tells_of_parts(described: object) -> bool:
    """True for the table of a part, or for a list with such tables."""
    if isinstance(described, list):
        return any(map(_tells_of_parts, described))
    return isinstance(described, Mapping) and "type" in described


def _as_it_was(old: Any, described: Any) -> Any:
    """`old` if it has the described types, else fresh parts of those types, by their names; `_restored` then sets their fields."""
    if isinstance(described, list):
        here = old if isinstance(old, tuple) else ()
        same = [next((p for p in here if type(p).__name__ == table.get("type")), None) for table in described]
        return tuple(_as_it_was(p, table) for p, table in zip(same, described, strict=True))
    if type(old).__name__ == described["type"]:
        return old
    found = {
        part
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "oche"
        for part in vars(module).values()
        if inspect.isclass(part) and is_dataclass(part) and part.__name__ == described["type"]
    }
    if len(found) != 1:
        return old  # `_restored` says that it does not fit
    (part,) = found
    given = {f.name: described[f.name] for f in fields(part) if f.init and f.name in described}
    return part(**{n: _as_it_was(None, v) if _tells_of_parts(v) else v for n, v in given.items()})
