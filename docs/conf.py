"""Sphinx: pages in Markdown by MyST, the reference from docstrings, furo's theme; `make docs` builds them and takes warnings as errors."""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

project, author, copyright = "oche", "the authors of oche", "the authors of oche"
release = version = version_of("oche")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme, html_title = "furo", f"oche {release}"
html_static_path: list[str] = []
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}  # autosummary writes the latter
autosummary_generate, templates_path = True, ["templates"]
exclude_patterns = ["_build", "templates"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
autodoc_member_order, autodoc_typehints, autodoc_preserve_defaults = "bysource", "none", True
autodoc_default_options = {"members": True, "show-inheritance": False, "undoc-members": False}
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True
HERE = Path(__file__).parent
ROOT = HERE.parent


def as_rst(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turns a docstring, which is plain Markdown, into reStructuredText: code in single backticks, lists with hyphens, doctests."""
    blocks, made = re.split(r"\n\s*\n", "\n".join(lines)), list[str]()
    for block in blocks:
        rows = block.split("\n")
        if rows[0].lstrip().startswith(">>>") or (rows[0].startswith("    ") and not rows[0].lstrip().startswith("-")):
            made += ["::", "", *(f"    {row}" for row in rows), ""]
            continue
        paragraph: list[str] = []
        for row in rows:
            text = row.strip()
            item, head = text.startswith("- "), re.match(r"(Args|Returns|Raises|Yields):$", text)
            named = row.startswith("    ") and re.match(r"[\w`*, ]+: ", text)
            if head or item or named or (paragraph and re.match(r"\*\*.*\*\*$", paragraph[0])):
                made += _paragraph(paragraph)
                paragraph = []
            paragraph += (
                [f"**{text}**"]
                if head
                else [f"- {escaped(text.removeprefix('- '))}" if item or named else escaped(text)]
            )
        made += _paragraph(paragraph)
    lines[:] = made


def _paragraph(rows: list[str]) -> list[str]:
    return [" ".join(rows), ""] if rows else []


def escaped(text: str) -> str:
    """Code spans as literals; all else without meaning to reStructuredText."""
    found = []
    for part in re.split(r"(`[^`]+`)", text):
        code = len(part) > 2 and part.startswith("`") and part.endswith("`")
        found.append(f"`{part}`" if code else re.sub(r"([*|_`\\])", r"\\\1", part))
    return "".join(found)


def outside(app: Any, docname: str, source: list[str]) -> None:
    """Links to files outside of docs/ name the file in the repository; they are shown as its path."""

    def shown(found: re.Match[str]) -> str:
        words, target = found.group(1), found.group(2).partition("#")[0]
        file = (HERE / docname).parent / target
        if (
            "://" in target
            or not target
            or (file.exists() and HERE in file.resolve().parents and file.suffix in (".md", ".svg", ".png"))
        ):
            return found.group(0)
        return f"{words} (`{file.resolve().relative_to(ROOT)}`)" if file.exists() else found.group(0)

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", shown, source[0])


def setup(app: Any) -> None:
    """Connects what is above."""
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("source-read", outside)
