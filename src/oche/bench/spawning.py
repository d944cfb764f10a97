"""Checks that trials can run in new processes, each of which runs the main script again and finds there what it defines.

The check is made before the first process starts, since a script without a guard would run once more in each of them.
"""

from __future__ import annotations

import ast
import inspect
import io
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from oche.errors import UserError

GUARDS = ("__name__", "parent_process")
"""Names that the condition of a guard mentions: `if __name__ == "__main__":`."""


def check_spawning(sent: object) -> None:
    """Raises UserError where a fresh process would run the calling script again, or could not be sent what it works on."""
    line = unguarded()
    if line is not None:
        script = Path(str(_script())).name
        raise UserError(
            f"Several workers start processes that run {script} again from its first line, and line {line} starts the bench without a "
            'guard: put that call below `if __name__ == "__main__":`, or run with workers=1.'
        )
    _check_sending(sent)


def unguarded() -> int | None:
    """The line of the main script that runs now, if the script is a file and no guard keeps that line from running in new processes."""
    file, spec = _script(), sys.modules["__main__"].__spec__
    frame = _script_frame()
    if file is None or frame is None or (spec is not None and spec.name.endswith("__main__")):
        return None
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # not Python's source, such as a frozen program
        return None
    return None if any(_guards(node, frame.f_lineno) for node in ast.walk(tree)) else frame.f_lineno


def _script() -> Path | None:
    """The main script's file; None in a notebook and for what is read from standard input."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file) if file is not None and Path(file).is_file() else None


def _script_frame() -> FrameType | None:
    """The frame of the main script's top level."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is vars(sys.modules["__main__"]) and frame.f_code.co_name == "<module>":
            return frame
        frame = frame.f_back
    return None


def _guards(node: ast.AST, line: int) -> bool:
    """True for an `if` with a guard's condition whose body holds the line."""
    if not isinstance(node, ast.If) or not node.body[0].lineno <= line <= (node.body[-1].end_lineno or 0):
        return False
    names = {
        n.id if isinstance(n, ast.Name) else n.attr
        for n in ast.walk(node.test)
        if isinstance(n, ast.Name | ast.Attribute)
    }
    return bool(names.intersection(GUARDS))


@contextmanager
def without_a_script() -> Iterator[None]:
    """Meanwhile new processes run no main script if there is no file of it: Python would look for one that is called `<stdin>`."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or _script() is not None:
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = file


class _Sender(pickle.Pickler):
    """Notes the functions and classes of the main script that the pickled object needs."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.of_main: list[str] = []

    def reducer_override(self, thing: Any) -> Any:
        """Notes the thing and pickles it as usual."""
        if (inspect.isroutine(thing) or inspect.isclass(thing)) and thing.__module__ == "__main__":
            self.of_main.append(thing.__qualname__)
        return NotImplemented


def _check_sending(sent: object) -> None:
    sender = _Sender()
    try:
        sender.dump(sent)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UserError(
            f"What a trial needs cannot be sent to another process ({error}): name it as FILE.py:NAME, or run with workers=1."
        ) from None
    if sender.of_main and _script() is None:
        raise UserError(
            f"{sender.of_main[0]} is defined in a notebook or on standard input, where another process cannot find it: put it into a file "
            "and name it as FILE.py:NAME, or run with workers=1."
        )
