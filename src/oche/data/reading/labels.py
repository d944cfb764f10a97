"""What labels mean: which values, colours or names are which class, as a user says it or as they occur.

    --set "data.labels=0=ignore,1=cell,2=cell,*=ignore"      # VALUE=NAME; a value alone is a class of its own name

or a file `classes.toml` beside the images:

    ignore = [0]
    [classes]
    cell = [1, 2]                     # values, or colours: "#ff0000", [[255, 0, 0]]
    wall = "#804000"
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oche.config import loads
from oche.data.contract import IGNORED, LabelMap
from oche.data.reading.texts import text_of
from oche.errors import UserError

IGNORE_NAME, REST = "ignore", "*"
MOST = 1000
"""Different labels above which their number is compared with that of the images: more than half of it are no classes."""

LACKING = frozenset(("", "nan", "none", "null", "na", "n/a", "nil", "?", "-"))
"""What programs write where there is no label."""

FILE = "classes.toml"
LINES = ("classes.txt", "class_names.txt", "codes.txt")


@dataclass(frozen=True)
class Wanted:
    """What a user says of labels: (value, colour, name or "*", class or "ignore"), in order."""

    entries: tuple[tuple[str, str], ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their first mention."""
        return tuple(dict.fromkeys(name for _, name in self.entries if name != IGNORE_NAME))


def parsed(given: str | Sequence[str]) -> Wanted:
    """Labels from a setting.

    >>> parsed("0=ignore, 1=cell, #FF0000=wall, 7").entries
    (('0', 'ignore'), ('1', 'cell'), ('#ff0000', 'wall'), ('7', '7'))
    """
    items = given.split(",") if isinstance(given, str) else given
    entries = []
    for item in items:
        key, equals, name = (part.strip() for part in str(item).strip().partition("="))
        if not key or (equals and not name):
            raise UserError(f"data.labels: {item!r} says nothing; expected VALUE=NAME, such as 1=cell or 0=ignore.")
        entries.append((_key(key), name or key))
    return _without_twice(entries, "data.labels")


def from_file(path: Path) -> Wanted:
    """Labels from a `classes.toml`. Raises UserError."""
    table = loads(text_of(path), str(path))
    classes, ignored = table.get("classes"), table.get("ignore", [])
    if not isinstance(classes, Mapping) or (odd := table.keys() - {"classes", "ignore"}):
        said = f"has {sorted(odd)[0]!r}" if isinstance(classes, Mapping) else "has no table [classes]"
        raise UserError(f"{path} {said}; expected `ignore = [...]` and [classes] with lines such as `cell = [1, 2]`.")
    entries = [(key, IGNORE_NAME) for key in _keys(ignored, path)]
    for name, values in classes.items():
        entries += [(key, str(name)) for key in _keys(values, path)]
    return _without_twice(entries, str(path))


def beside(root: Path) -> tuple[Wanted | None, tuple[str, ...]]:
    """What `classes.toml` in a folder says, and the names in `classes.txt`, one a line."""
    wanted = from_file(root / FILE) if (root / FILE).is_file() else None
    named = [root / name for name in LINES if (root / name).is_file()]
    lines = text_of(named[0]).splitlines() if named else []
    return wanted, tuple(line.strip() for line in lines if line.strip())


def mapped(
    occurring: Sequence[str], wanted: Wanted | None, names: Sequence[str], where: str
) -> tuple[tuple[str, ...], LabelMap]:
    """Classes, and the map to their numbers, from the labels that occur in train (sorted), what the user wants of them, and names.

    Whole numbers 0, 1, ..., n - 1 need no map. Names are those of the numbers 0, 1, ...; where the labels are exactly 1 to n for
    n names, of these. Raises UserError for labels that nothing is said about, where something is said about others.
    """
    if wanted is None:
        numbers = [int(key) for key in occurring] if all(map(_is_number, occurring)) else []
        if numbers and names and numbers[0] == 1 and numbers[-1] == len(names):
            return tuple(names), LabelMap(tuple((str(n + 1), n) for n in range(len(names))))
        if numbers and (names or numbers == list(range(len(numbers)))):
            return tuple(names) or tuple(occurring), LabelMap()
        return tuple(occurring), LabelMap(tuple((key, n) for n, key in enumerate(occurring)))
    said = dict(wanted.entries)
    rest = said.pop(REST, None) or (None if wanted.classes else "")
    left = [key for key in occurring if key not in said]
    if left and rest is None:
        shown = ", ".join(left[:8]) + (", ..." if len(left) > 8 else "")
        raise UserError(
            f"{where}: nothing is said about the labels {shown}: add {left[0]}=NAME or {left[0]}=ignore to data.labels (or "
            f"{FILE}), or *=ignore for all others."
        )
    said |= {key: rest or key for key in left}
    classes = tuple(dict.fromkeys([*wanted.classes, *(name for name in said.values() if name != IGNORE_NAME)]))
    numbers_of = {name: n for n, name in enumerate(classes)} | {IGNORE_NAME: IGNORED}
    return classes, LabelMap(tuple((key, numbers_of[name]) for key, name in said.items()))


def notes_on_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Notes about names that are one but for case or spelling, and about names that stand for a label that is missing.

    >>> notes_on_names(("ant", "Ant", "bee"))
    ("The classes 'ant' and 'Ant' differ in their spelling only: are they one?",)
    """
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(_spelled(name), []).append(name)
    same = [names for names in alike.values() if len(names) > 1]
    found = [f"{' and '.join(map(repr, names[:3]))}" for names in same[:3]]
    notes: tuple[str, ...] = ()
    if same:
        notes = (f"The classes {', '.join(found)} differ in their spelling only: are they one?",)
    lacking = [repr(name) for name in classes if name.strip().lower() in LACKING]
    if lacking:
        notes += (f"The class {', '.join(lacking)} looks like a label that is missing: remove those images if it is.",)
    return notes


def _spelled(name: str) -> str:
    """Lower case and single spaces; a number by its value."""
    plain = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    try:
        return repr(float(name))
    except ValueError:
        return plain


def bounded(occurring: Sequence[str], count: int, where: str) -> None:
    """Raises UserError where labels tell the images apart instead of grouping them."""
    if len(occurring) > MOST and len(occurring) > count / 2:
        raise UserError(
            f"{where}: {len(occurring):,} different labels for {count:,} images (such as {', '.join(occurring[:3])}) are no classes; "
            "give class numbers or names, or map them with data.labels."
        )


def _key(key: str) -> str:
    """Colours in lower case, numbers without leading zeros or a plus."""
    if re.fullmatch("#[0-9a-fA-F]{6}", key):
        return key.lower()
    return str(int(key)) if _is_number(key) else key


def _keys(values: object, path: Path) -> list[str]:
    keys = []
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value):
            keys.append("#{:02x}{:02x}{:02x}".format(*value))
        elif isinstance(value, int | str) and not isinstance(value, bool):
            keys.append(_key(str(value)))
        else:
            raise UserError(f'{path}: {value!r} is no label; expected a number, "#rrggbb" or [red, green, blue].')
    return keys


def _without_twice(entries: Sequence[tuple[str, str]], where: str) -> Wanted:
    said: dict[str, str] = {}
    for key, name in entries:
        if said.setdefault(key, name) != name:
            raise UserError(f"{where}: the label {key} is given as {said[key]!r} and as {name!r}; choose one.")
    return Wanted(tuple(said.items()))


def _is_number(key: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,19}", key) is not None
