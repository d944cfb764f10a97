"""`oche init`: a commented TOML file of a search for these data, and the schema that lets an editor complete and check it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from oche import config
from oche.config.values import NONE
from oche.errors import UserError
from oche.plan.options import words
from oche.plan.request import Request, options

if TYPE_CHECKING:
    from oche.data import Data

SCHEMA = "oche.schema.json"


def write_config(source: str, out: Path) -> tuple[Path, Path]:
    """Reads the data and writes the file and its schema. Raises UserError where the data cannot be read, or the file exists."""
    from oche.data import load
    from oche.plan.schema import schema

    if out.exists():
        raise UserError(f"{out} exists already; choose another name, with `--out FILE`, or delete it.")
    data = config.build(load, {"source": source}, "data")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(SCHEMA)
    out.write_text(text(source, data, out), encoding="utf-8")
    beside.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
    return out, beside


def text(source: str, data: Data, out: Path) -> str:
    """The file: what was found in the data, then each option with its help and its default, commented out."""
    from oche.plan.parts import usual_space

    kept = Path(source).expanduser()
    lines = [f"#:schema {SCHEMA}", *_found(data), "#", f"# Search:  oche search --config {out}"]
    lines += ["# A line that begins with `# name =` shows a default: take the # away and change it.", "", "[request]"]
    for field in options(Request):
        if field.name == "settings":
            continue
        told = words(field)
        given = str(kept.resolve()) if field.name == "data" and kept.exists() else source
        value: object = given if field.name == "data" else _plain(field.default)
        lines += ["", f"# {told.help}", f"{'' if field.name == 'data' else '# '}{_line(field.name, value)}"]
    lines += ["", "[request.settings]", "# What `--set PATH=VALUE` sets; docs/settings.md has all paths.", ""]
    lines += [f"# {_line(path, value)}" for path, value in _settings(usual_space(data), data)]
    return "\n".join(lines) + "\n"


def _found(data: Data) -> Iterator[str]:
    """The data in a few comment lines; names from files stay on their line."""
    channels = f"{data.channels} channel{'s' * (data.channels > 1)}"
    yield f"# {data.name}: {len(data.train)} train, {len(data.val)} validation, {len(data.test)} test {data.things}".translate(
        _ONE_LINE
    )
    pixels = f"{data.size[1]} values" if data.things == "signals" else f"{data.size[0]}x{data.size[1]} pixels"
    yield f"# of {pixels}, {channels}".translate(_ONE_LINE)
    names = ", ".join(data.classes[:12]) + (", ..." if len(data.classes) > 12 else "")
    yield f"# {len(data.classes)} classes: {names}".translate(_ONE_LINE)
    yield from (f"# {note}".translate(_ONE_LINE) for note in data.notes)


_ONE_LINE: Mapping[int, str] = {**dict.fromkeys(range(32), " "), 127: " ", 0x85: " ", 0x2028: " ", 0x2029: " "}
"""Control characters and line ends, which would end a comment, become spaces."""


def _settings(space: str, data: Data) -> Sequence[tuple[str, object]]:
    """The settings that are changed most often, with their defaults for these data."""
    from oche.spaces import SPACES

    bound = SPACES[space](inputs=data.channels, outputs=data.outputs, size=data.size)
    known = {f.name for f in fields(bound)}
    named = [n for n in ("channels", "cells", "layers", "levels", "sharing") if n in known]
    return [
        *((f"space.{n}", getattr(bound, n)) for n in named),
        *([("data.size", list(data.size))] if data.things == "images" else []),
        ("data.flip", data.flip),
    ]


def _plain(value: object) -> object:
    return NONE if value is None else list(value) if isinstance(value, tuple) else value


def _line(name: str, value: object) -> str:
    return (
        config.dumps({name: _plain(value)})
        .strip()
        .replace("[\n    ", "[")
        .replace(",\n    ", ", ")
        .replace(",\n]", "]")
    )
