"""A value from the command line, TOML or Python, checked and converted after an annotation; numbers are finite and in their range.

Pydantic converts. What it does not have stands here: true is no number, "none" is None, `16,32` is a tuple, no part is made from a value.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from oche.errors import UserError, nearest

NONE = "none"
"""How None is written in TOML and on the command line, for settings that may be None."""

PLAIN = (str, int, float, list, dict)
"""What TOML can hold; such a value is no part."""

_ANNOTATED: Any = Annotated  # annotations made at run time, which no type checker follows
_UNION: Any = Union


def fit(value: object, hint: Any, name: str, where: str) -> Any:
    """The value, converted to what the annotation asks for."""
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError:
        near = nearest(str(value), _literals(hint), 0.7)  # all are named before
        tip = f"; did you mean {near!r}?" if near else "."
        raise UserError(f"{where}: {name} must be {_say(hint)}, not {value!r}{tip}") from None


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """What checks and converts values after an annotation; numbers are finite."""
    return TypeAdapter(_schema(hint), config=ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False))


def _literals(hint: Any) -> list[str]:
    """The texts that an annotation takes, however deep they lie in it."""
    if typing.get_origin(hint) is Literal:
        return [text for text in typing.get_args(hint) if isinstance(text, str)]
    return [text for inner in typing.get_args(hint) for text in _literals(inner)]


def _schema(hint: Any) -> Any:
    """The annotation, with the rules of this module attached for pydantic; any class it does not know is a part."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        return _ANNOTATED[hint, BeforeValidator(_no_bool)]
    if hint in (bool, str, Path, types.NoneType, object, Any) or origin is Literal:
        return hint
    if origin is Annotated:
        return _ANNOTATED[_schema(inner[0]), *inner[1:]]
    if origin is Mapping:  # a table of settings, each checked where it is used
        return dict[str, Any]
    if origin in (Union, types.UnionType):
        union = _UNION[tuple(_schema(choice) for choice in inner)]
        return _ANNOTATED[union, BeforeValidator(_none)] if types.NoneType in inner else union
    if origin in (tuple, Sequence):
        inner = (*inner, Ellipsis) if origin is Sequence else inner
        items = tuple(item if item is Ellipsis else _schema(item) for item in inner)
        return _ANNOTATED[types.GenericAlias(tuple, items), BeforeValidator(_items)]
    return _ANNOTATED[Any, AfterValidator(_slot(hint))]


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _none(value: object) -> object:
    return None if value == NONE else value


def _items(value: object) -> object:
    """`16,32` and a single `16` are tuples too, as they are typed on a command line."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return [value] if isinstance(value, int | float) else value


def _slot(hint: Any) -> Callable[[object], object]:
    """Accepts a part for a slot; isinstance tells where it can, which is not so for callables and most protocols."""

    def check(value: object) -> object:
        try:
            fits = isinstance(value, hint)
        except TypeError:
            fits = not isinstance(value, PLAIN)
        if not fits:
            raise ValueError("another type")
        return value

    return check


def _say(hint: Any) -> str:
    """An annotation in words.

    >>> _say(tuple[int, ...] | None), _say(Literal["a", "b"])
    ('tuple of int or none', "'a' or 'b'")
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is types.NoneType:
        return NONE
    if origin is Annotated:
        return " ".join([_say(inner[0]), *_in_words(inner[1:])])
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_say, inner))
    if origin in (tuple, Sequence):
        return f"tuple of {', '.join(_say(item) for item in inner if item is not Ellipsis)}"
    return getattr(hint, "__name__", str(hint))


def _in_words(limits: Iterable[object]) -> list[str]:
    """A range in words, none where there are no bounds.

    >>> _in_words([Ge(0), Lt(1)]), _in_words([Gt(0)])
    (['from 0 to below 1'], ['above 0'])
    """
    low, high = "", ""
    for limit in limits:
        if isinstance(limit, Ge | Gt):
            low = f"from {limit.ge}" if isinstance(limit, Ge) else f"above {limit.gt}"
        elif isinstance(limit, Le | Lt):
            high = f"to {limit.le}" if isinstance(limit, Le) else f"to below {limit.lt}"
    if low and not high:
        low = low.replace("from", "of at least")
    return [" ".join(filter(None, (low, high)))] if low or high else []
