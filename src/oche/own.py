"""Parts of the user's own: `FILE.py:NAME` names what a Python file holds, and a run keeps a copy of every file that it used.

A run's run.toml lists the files in `[code]`: {path: {"copy": name in the folder code/, "sha256": ...}}. A resumed run takes the copies,
whatever has become of the files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar, cast

from oche.errors import UserError, unknown

T = TypeVar("T")

CODE = "code"
"""The folder of a run that holds the copies, and the table of run.toml that lists them."""


@dataclass
class Used:
    """A file of the user's own: where it lies (in a run's folder, perhaps), and what was taken from it, as "kind name"."""

    file: Path
    names: set[str] = field(default_factory=set)


Files = dict[str, Used]
"""Absolute path, as it was named -> the file that was run."""

_copies: ContextVar[Mapping[str, Path] | None] = ContextVar("copies", default=None)
_used: ContextVar[Files | None] = ContextVar("used", default=None)


def is_own(given: object) -> bool:
    """True for a text of the form FILE.py:NAME."""
    return isinstance(given, str) and given.rpartition(":")[0].endswith(".py")


def is_foreign(given: object) -> bool:
    """True for a part of the user's own."""
    return is_own(given) or not isinstance(given, str)


def load(text: str, kind: str = "part") -> object:
    """What `FILE.py:NAME` names, noted as used. Raises UserError where there is no such file or name, or the file fails."""
    path, _, name = text.rpartition(":")
    module = _module(_place(path), path)
    if name not in vars(module):
        own = [n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        raise unknown(f"name in {path}", name, own)
    used = _used.get()
    if used is not None:
        used.setdefault(str(Path(path).resolve()), Used(_place(path).resolve())).names.add(f"{kind} {name}")
    return vars(module)[name]


def holds(text: str) -> bool:
    """True if the file of `FILE.py:NAME` holds the name. Raises UserError where there is no such file, or it fails."""
    path, _, name = text.rpartition(":")
    return name in vars(_module(_place(path), path))


def _place(path: str) -> Path:
    """The file itself, or a run's copy of it."""
    return (_copies.get() or {}).get(str(Path(path).resolve()), Path(path))


def _module(file: Path, given: str) -> ModuleType:
    """The module in a file, run once for each content that the file has had."""
    if not file.is_file():
        raise UserError(f"There is no file {given!r}; expected FILE.py:NAME, the name of something in a Python file.")
    name = f"oche_own_{file.stem}_{digest(file.read_bytes())[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their module up here
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{given} cannot be imported: {type(error).__name__}: {error}.") from error
    return module


def absolute(value: object) -> object:
    """FILE.py:NAME with the whole path, so that it holds from any folder; all else as it is."""
    if isinstance(value, str) and is_own(value):
        path, _, name = value.rpartition(":")
        return f"{Path(path).resolve()}:{name}"
    return [absolute(item) for item in value] if isinstance(value, list | tuple) else value


def names_in(value: object) -> Iterator[str]:
    """Every FILE.py:NAME in a table, list or text."""
    if isinstance(value, str) and is_own(value):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from names_in(item)


def display(given: object) -> str:
    """What errors and tables call a part: its text, or its name, or the name of its class."""
    if isinstance(given, str):
        return given
    named = getattr(given, "name", None) or getattr(given, "__name__", None)
    return named if isinstance(named, str) else type(given).__name__


def qualified(thing: object) -> str:
    """The name of a class or function, or of a thing's class."""
    return thing.__qualname__ if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing).__name__


# ------------------------------------------------------------------ kinds of parts


@dataclass(frozen=True)
class Kind(Generic[T]):
    """Parts that have names: `what` they are called, their `registry`, `fits`, and what is `expected` of one of the user's own."""

    what: str
    registry: Mapping[str, object]
    fits: Callable[[object], bool]
    expected: str

    def find(self, given: object) -> T:
        """The part that a name, FILE.py:NAME or an object stands for. Raises UserError for anything else."""
        if isinstance(given, str) and not is_own(given):
            if given not in self.registry:
                raise unknown(self.what, given, self.registry)
            return cast(T, self.registry[given])
        thing = load(given, self.what) if isinstance(given, str) else given
        if not self.fits(thing):
            raise UserError(
                f"{display(given)} is {_a(thing)}, which is no {self.what}: expected a name (`oche list`), or {self.expected}."
            )
        return cast(T, thing)

    def part(self, given: object) -> T:
        """As `find`, but a class or a function without required parameters is called where that gives a part that fits."""
        thing = load(given, self.what) if isinstance(given, str) and is_own(given) else given
        if not isinstance(given, str) or is_own(given):
            if inspect.isclass(thing) or (inspect.isroutine(thing) and not _needs(thing)):
                thing = called(cast(Callable[[], object], thing), display(given))
            return self.find(thing)
        return self.find(given)


def _a(thing: object) -> str:
    return (
        f"the {'class' if inspect.isclass(thing) else 'function'} {qualified(thing)}"
        if (inspect.isclass(thing) or inspect.isroutine(thing))
        else f"of the type {type(thing).__name__}"
    )


def _needs(routine: object) -> bool:
    """True for a function with parameters that have no default."""
    parameters = inspect.signature(cast(Callable[..., object], routine)).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def called(make: Callable[[], object], name: str) -> object:
    """What a class or function gives without arguments. Raises UserError where it needs some."""
    try:
        return make()
    except TypeError as error:
        raise UserError(
            f"{name} cannot be built without arguments ({error}): give it defaults, or hand over an instance."
        ) from error


def takes(count: int) -> Callable[[object], bool]:
    """True for what can be called with so many arguments."""

    def fits(thing: object) -> bool:
        if not callable(thing) or inspect.isclass(thing):
            return False
        try:
            inspect.signature(thing).bind(*[None] * count)
        except (TypeError, ValueError):
            return False
        return True

    return fits


def has(*names: str) -> Callable[[object], bool]:
    """True for an object, not a class, that has all these attributes."""
    return lambda thing: not inspect.isclass(thing) and all(hasattr(thing, name) for name in names)


# ------------------------------------------------------------------ what a run keeps


@contextmanager
def noted() -> Iterator[Files]:
    """Notes the files that parts are loaded from meanwhile."""
    files: Files = {}
    token = _used.set(files)
    try:
        yield files
    finally:
        _used.reset(token)


def kept_names(table: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(kind, FILE.py:NAME) of everything that a run took from files, after the [code] of its run.toml."""
    code = table.get(CODE, {})
    for path, entry in code.items() if isinstance(code, Mapping) else ():
        for name in entry.get("names", []):
            kind, _, name = str(name).rpartition(" ")
            yield kind, f"{path}:{name}"


@contextmanager
def copies_of(folder: Path, table: Mapping[str, object]) -> Iterator[None]:
    """Meanwhile FILE.py:NAME is taken from the run's copies of its run.toml's [code]. Raises UserError for one that was changed."""
    found = {}
    for path, copy, sha in _entries(table):
        file = folder / copy
        if not file.is_file() or digest(file.read_bytes()) != sha:
            raise UserError(f"{file} is not the copy that the run made of {path}: put the copy back to carry on.")
        found[path] = file
    token = _copies.set(found)
    try:
        yield
    finally:
        _copies.reset(token)


def changed(table: Mapping[str, object]) -> list[str]:
    """The files of a run.toml's [code] whose content is another now."""
    return [p for p, _, sha in _entries(table) if Path(p).is_file() and digest(Path(p).read_bytes()) != sha]


def _entries(table: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """(path, copy, checksum) of each file in [code]."""
    code = table.get(CODE, {})
    for path, entry in code.items() if isinstance(code, Mapping) else ():
        if isinstance(entry, Mapping):
            yield str(path), str(entry.get("copy")), str(entry.get("sha256"))


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()
