"""The fenced blocks of the pages.

One of these stands before every block of code:

- `<!-- run -->` has it run, with those before it on its page, in one folder (`material` says what lies there).
- `<!-- run small -->` has it run so too, where the reader's own run takes minutes or hours: each command of oche gets the options of
  `smaller` besides, a few epochs of a small network.
- `<!-- run by: TEST -->` names a test that runs it.
- `<!-- not run: REASON -->` has it checked only: commands of oche are parsed by the real command line, Python is compiled, and what it
  imports from oche is there.
- `<!-- not checked: REASON -->` leaves it out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")), ROOT / "CONTRIBUTING.md"]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
NAMED = re.compile(r"# ([\w/]+\.(?:py|toml))\n")
"""The first line of a block that is a file: its name."""


@dataclass(frozen=True)
class Block:
    """A block of a page: the line on which it begins, its language, its text, and the mark before it, "" for none."""

    page: Path
    line: int
    kind: str
    text: str
    mark: str

    @property
    def file(self) -> str | None:
        """The file that the block is, None for one that is no file."""
        named = NAMED.match(self.text)
        return named[1] if named else None

    @property
    def runs(self) -> bool:
        """True if the page's test runs it."""
        return self.mark in ("run", "run small")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found["kind"], found["text"], found["mark"] or "")


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of oche in a shell block; lines that end in a backslash go on."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.split(r" [>|] | && ", line)[0], comments=True)
        if "oche" in words[:1]:
            yield words[1:]
