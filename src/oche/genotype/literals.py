"""Reads Python literals and calls as data, with a bounded size and depth. Nothing is ever evaluated as code.

    Genotype(normal=[('skip_connect', np.int64(0))], normal_concat=range(2, 6))  ->  Call("Genotype", keywords={"normal": ...})

Calls that only say what type a value has (`int64(3)`, `array([2, 3])`, `tensor(0.2)`) are read as the value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice

LONGEST, DEEPEST, MOST = 50_000, 12, 64
"""Characters of a literal, brackets within brackets, and numbers of a range: far more than any cell has."""

WRAPPERS = ("int", "float", "str", "str_", "long", "list", "tuple", "array", "asarray", "tensor", "Tensor")
NUMBER_TYPE = re.compile(r"u?int\d*|intp|float\d+")

TOKEN = re.compile(
    r"(?P<space>\s+|#[^\n]*)"
    r"|(?P<text>[bBuU]?(?:'[^'\\\n]*'|\"[^\"\\\n]*\"))"
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<word>[A-Za-z_][A-Za-z_0-9.]*)"
    r"|(?P<mark>[()\[\],=])"
)


@dataclass(frozen=True)
class Call:
    """A call as it is written: `name` without the modules before it."""

    name: str
    arguments: tuple[Value, ...] = ()
    keywords: dict[str, Value] = field(default_factory=dict)


Value = str | int | float | None | list["Value"] | Call


def read(text: str) -> Value:
    """The literal that `text` begins with; what follows it is not looked at. Raises ValueError with a reason."""
    return _Reader(text[:LONGEST]).value(0)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.kind, self.token = "", ""
        self.step()

    def step(self) -> str:
        """Moves to the next token and returns the one before it."""
        before = self.token
        while True:
            found = TOKEN.match(self.text, self.at)
            if found is None:
                rest = self.text[self.at : self.at + 12]
                self.kind, self.token = "end", rest
                return before
            self.at = found.end()
            if found.lastgroup != "space":
                self.kind, self.token = str(found.lastgroup), found.group()
                return before

    def expect(self, mark: str) -> None:
        if (self.kind, self.token) != ("mark", mark):
            raise ValueError(f"expected {mark!r}, found {self.token!r}" if self.token else f"it ends before {mark!r}")
        self.step()

    def value(self, depth: int) -> Value:
        if depth > DEEPEST:
            raise ValueError(f"brackets are nested more than {DEEPEST} deep")
        kind, token = self.kind, self.token
        if kind == "mark" and token in "([":
            self.step()
            return self.items(")" if token == "(" else "]", depth)
        if kind not in ("text", "number", "word"):
            raise ValueError(f"{token!r} is no value" if token else "it ends too early")
        self.step()
        if kind == "text":
            return token.lstrip("bBuU")[1:-1]
        if kind == "number":
            return int(token) if re.fullmatch(r"[+-]?\d{1,18}", token) else float(token)
        if (self.kind, self.token) == ("mark", "("):
            self.step()
            return self.call(token.rpartition(".")[2], depth)
        if token == "None":
            return None
        raise ValueError(f"{token!r} is no value")

    def items(self, closing: str, depth: int) -> Value:
        """A list or tuple; brackets around one value without a comma are only brackets."""
        found: list[Value] = []
        comma = False
        while (self.kind, self.token) != ("mark", closing):
            found.append(self.value(depth + 1))
            comma = (self.kind, self.token) == ("mark", ",")
            if not comma:
                break
            self.step()
        self.expect(closing)
        return found[0] if closing == ")" and len(found) == 1 and not comma else found

    def call(self, name: str, depth: int) -> Value:
        arguments: list[Value] = []
        keywords: dict[str, Value] = {}
        plain = name in WRAPPERS or NUMBER_TYPE.fullmatch(name) is not None
        while (self.kind, self.token) != ("mark", ")"):
            word = self.token if self.kind == "word" and re.match(r"\s*=", self.text[self.at :]) else None
            if word is not None:
                self.step()
                self.expect("=")
                if word in keywords:
                    raise ValueError(f"{word} is given twice")
                if plain and self.kind == "word" and not re.match(r"\s*\(", self.text[self.at :]):
                    keywords[word] = self.step()  # dtype=int64
                else:
                    keywords[word] = self.value(depth + 1)
            else:
                arguments.append(self.value(depth + 1))
            if (self.kind, self.token) != ("mark", ","):
                break
            self.step()
        self.expect(")")
        if plain:
            if len(arguments) != 1:
                raise ValueError(f"{name}(...) should wrap one value, not {len(arguments)}")
            (value,) = arguments
            return float(value) if name.startswith("float") and isinstance(value, int) else value
        return _range(arguments) if name == "range" and not keywords else Call(name, tuple(arguments), keywords)


def _range(arguments: list[Value]) -> Value:
    numbers = [a for a in arguments if isinstance(a, int)]
    if len(numbers) != len(arguments) or not 1 <= len(numbers) <= 3 or numbers[2:] == [0]:
        raise ValueError("range(...) takes one to three whole numbers, the third not 0")
    return list(islice(range(*numbers), MOST))
