"""The JSON schema of run.toml, made from the signatures that check it, so that an editor completes names and marks mistakes.

The names that a user can choose, and the paths of settings, are listed. Where a file brings parts of the user's own (`FILE.py:NAME`), its
names cannot be known here, and settings are then free.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from oche import config
from oche.config.values import NONE
from oche.data import load
from oche.methods import METHODS
from oche.methods.budgets import NAMES
from oche.plan.named import SLOTS
from oche.plan.options import words
from oche.plan.request import AUTO, Request, TrainRequest, options
from oche.search.method import Method
from oche.spaces import SPACES
from oche.spaces.base import BOUND
from oche.spaces.ops import OPS
from oche.spaces.slots import SLOT_OPS
from oche.tasks import TASKS
from oche.training.protocols import PROTOCOLS, Protocol
from oche.watch.named import PROBES, Watch
from oche.watch.trackers import TRACKERS

Schema = dict[str, Any]

OWN = {"type": "string", "pattern": r"\.py:"}
"""FILE.py:NAME."""

OPERATIONS = ("ops", "normal", "reduce", "without")
"""Fields of spaces that name operations."""


def schema() -> Schema:
    """The schema of a run.toml: what a search or a training is asked for, and what was resolved from it."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "run.toml of oche",
        "type": "object",
        "properties": {
            "rules": {"type": "integer", "minimum": 1, "maximum": config.RULES},
            "request": _request(Request),
            "training": _request(TrainRequest),
            "space": _one_of(list(SPACES.values())),
            "train": _one_of([Protocol]),
            "task": _one_of(list(TASKS.values())),
            "watch": _one_of([Watch]),
            **{name: {"type": "object"} for name in ("resolved", "method", "data", "versions", "code", "rivals")},
        },
        "additionalProperties": False,
        "anyOf": [{"required": ["request"]}, {"required": ["training"]}],
    }


def type_of(hint: Any) -> Schema:
    """What JSON, or TOML, may hold for an annotation; anything for a part, which is named or set field by field.

    >>> type_of(int | None)
    {'anyOf': [{'type': 'integer'}, {'const': 'none'}]}
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    simple = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
    if hint in simple:
        return {"type": simple[hint]}
    if hint is types.NoneType:
        return {"const": NONE}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is typing.Annotated:
        return type_of(inner[0])
    if origin is Mapping:
        return {"type": "object"}
    if origin in (typing.Union, types.UnionType):
        found = [made for made in map(type_of, inner) if made]
        return {"anyOf": list({str(one): one for one in found}.values())} if found else {}
    if origin in (tuple, Sequence):
        items = [type_of(item) for item in inner if item is not Ellipsis]
        alike = all(item == items[0] for item in items)
        return {"anyOf": [{"type": "array", "items": items[0] if alike else {}}, {"type": ["string", "number"]}]}
    return {}


# ------------------------------------------------------------------ what is asked for


def _request(of: type[Request] | type[TrainRequest]) -> Schema:
    """The table of a request: its options with their help, and the settings, free where a file brings parts of the user's own."""
    hints = config.annotations_of(of)
    table = {f.name: {**_option(f.name, hints[f.name]), "description": words(f).help} for f in options(of)}
    known = table.pop("settings")
    own = [{"properties": {name: OWN}, "required": [name]} for name in ("method", "space", "task", "data", "protocol")]
    own += [{"properties": {"probes": {"contains": OWN}}, "required": ["probes"]}]
    return {
        "type": "object",
        "properties": {**table, "settings": {"type": "object", "description": known["description"]}},
        "additionalProperties": False,
        "if": {"anyOf": own},
        "else": {"properties": {"settings": _settings()}},
    }


def _option(name: str, hint: Any) -> Schema:
    """One option; a name that oche lists, or FILE.py:NAME, where it takes a part."""
    named: dict[str, Iterable[str]] = {
        "method": [*METHODS, *(f"rf_{name}" for name in METHODS)],
        "space": SPACES,
        "task": TASKS,
        "protocol": PROTOCOLS,
        "budget": NAMES,
    }
    if name == "track":
        return {"type": "array", "items": {"enum": sorted(TRACKERS)}}
    if name == "probes":
        return {"type": "array", "items": _names(PROBES)}
    if name in named:
        free = [AUTO] * (name not in ("budget", "task"))
        none = [NONE] * (types.NoneType in typing.get_args(hint))
        return _names([*free, *none, *named[name]], own=name != "budget")
    made = type_of(hint)
    return made if name not in ("data", "genotype") else {"type": "string"}


def _names(known: Iterable[str], own: bool = True) -> Schema:
    listed: Schema = {"enum": list(dict.fromkeys(known))}
    return {"anyOf": [listed, OWN]} if own else listed


def _settings() -> Schema:
    """The paths that `--set` takes."""
    paths: dict[str, list[Schema]] = {}

    def add(prefix: str, hints: Mapping[str, Any], left_out: Sequence[str] = ()) -> None:
        for name, hint in hints.items():
            if name not in left_out:
                made = _operations() if prefix == "space" and name in OPERATIONS else type_of(hint)
                paths.setdefault(f"{prefix}.{name}", []).append(made)

    for space in SPACES.values():
        add("space", _fields(space), BOUND)
    for task in TASKS.values():
        add("task", _fields(task))
    add("task", {"balanced": bool})
    add("train", _fields(Protocol))
    add("probe", _fields(Watch))
    add("data", {name: hint for name, hint in config.annotations_of(load).items() if name not in ("source", "return")})
    slots = sorted({name for part in _searchers() for name in _fields(part)})
    choices = {name: _names(kind.registry) for name, kind in SLOTS.items()}
    factories = {name for factory in METHODS.values() for name in inspect.signature(factory).parameters}
    heads = "|".join(sorted({*slots, *factories}))
    return {
        "type": "object",
        "description": 'Settings by their paths, in quotes: "space.cells" = 3; see docs/settings.md.',
        "properties": {path: _either(made) for path, made in paths.items()} | choices,
        "patternProperties": {
            rf"^({'|'.join(slots)})(\.[A-Za-z_0-9]+)*$": {},
            rf"^method\.({heads})(\.[A-Za-z_0-9]+)*$": {},
            r"^train\.(lr|optimizer)\.[A-Za-z_.]+$": {},
        },
        "additionalProperties": False,
    }


def _searchers() -> list[type]:
    """The types of all methods, and that of a method's slots."""
    return [Method, *{type(factory()) for factory in METHODS.values()}]


def _operations() -> Schema:
    one = _names((*OPS, *SLOT_OPS))
    return {"anyOf": [one, {"type": "array", "items": {"anyOf": [one, {"type": "array", "items": one}]}}]}


def _either(made: Sequence[Schema]) -> Schema:
    """One of several types."""
    apart = list({str(one): one for one in made}.values())
    return apart[0] if len(apart) == 1 else {} if {} in apart else {"anyOf": apart}


# ------------------------------------------------------------------ what was resolved


def _one_of(parts: Sequence[Callable[..., object]]) -> Schema:
    """The table of a part, known by its `type`; the fields of types that are not oche's are free."""
    cases = []
    for part in parts:
        known = {name: type_of(hint) for name, hint in _fields(part).items()}
        holds = {"properties": {"type": {"type": "string"}, **known}, "additionalProperties": False}
        cases.append({"if": {"properties": {"type": {"const": part.__name__}}}, "then": holds})
    return {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}, "allOf": cases}


def _fields(part: Callable[..., object]) -> dict[str, Any]:
    """Name -> annotation of the fields that are settings."""
    hints = config.annotations_of(part)
    if not is_dataclass(part):
        return {}
    return {f.name: hints[f.name] for f in fields(part) if f.init and f.repr}
