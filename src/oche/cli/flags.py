"""The flags of a command, made from the options of a request: one list serves Python and the command line."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from oche.cli import completion
from oche.config import annotations_of, assignment
from oche.plan.options import words
from oche.plan.request import Request, TrainRequest, in_order

Asked = TypeVar("Asked", Request, TrainRequest)


def flags(of: type[Asked]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of a request: its parameter `request` is made from what was typed."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        hints: dict[str, Any] = {field.name: hint for field, hint in _told(of)}
        made: list[inspect.Parameter] = [_parameter(field, hint) for field, hint in _told(of)]

        def run(**typed: Any) -> None:
            asked: dict[str, Any] = {name: _value(typed.pop(name), hint) for name, hint in hints.items()}
            command(request=of(**asked), **typed)

        others: list[inspect.Parameter] = [
            p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "request"
        ]
        first: list[inspect.Parameter] = [p for p in others if p.default is p.empty]
        parameters = [*first, *made, *(p for p in others if p not in first)]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return wrap


def _told(of: type[Request] | type[TrainRequest]) -> list[tuple[Field[Any], Any]]:
    """The options that have flags, with their annotations."""
    hints = annotations_of(of)
    return [(field, hints[field.name]) for field in in_order(of) if words(field).flags]


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    """An option as typer takes it: an argument where its flag is empty."""
    told = words(field)
    default = field.default if field.default is not MISSING else None
    if _is_list(hint):
        kind, default = list[str] | None, None
    else:
        kind = _kind(hint)
    name = () if told.flags == ("",) else told.flags
    offered = completion.values(field.name)
    info = (
        typer.Option(*name, help=told.help, autocompletion=offered)
        if name
        else typer.Argument(help=told.help, autocompletion=offered)
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _is_list(hint: Any) -> bool:
    """True for options that may be typed as often as one likes."""
    return typing.get_origin(hint) in (Mapping, Sequence)


def _kind(hint: Any) -> Any:
    """What is typed for an option: a text where it takes a name or an object."""
    inner = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kind = next(k for k in (str, bool, int, float, Path) if k in inner)
    return kind | None if type(None) in inner else kind


def _value(typed: Any, hint: Any) -> object:
    """What was typed, as the request holds it."""
    if typing.get_origin(hint) is Mapping:
        return dict(map(assignment, typed or []))
    return tuple(typed or ()) if _is_list(hint) else typed
