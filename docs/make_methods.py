"""Writes docs/methods/: a page per method, out of its docstring, its parts, its published settings (published.toml) and its papers.

python docs/make_methods.py
"""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from oche import config
from oche.methods import ENTRIES, METHODS
from oche.methods.papers import cite
from oche.search.method import Method
from oche.search.searcher import SearcherLike, as_searcher
from oche.search.stages import Staged

FOLDER = Path(__file__).parent / "methods"
TABLE: Mapping[str, Mapping[str, Mapping[str, Mapping[str, object]]]] = tomllib.loads(
    (FOLDER / "published.toml").read_text(encoding="utf-8")
)
"""Method -> space -> setting -> its published value and source."""
MADE = "<!-- made by docs/make_methods.py from the method's docstring: change that -->"


def pages() -> dict[str, str]:
    """File name -> page, the index among them."""
    made = {f"{name}.md": page(name) for name in METHODS}
    lines = [MADE, "", "# Methods", "", "| name | what it is | rests on |", "|---|---|---|"]
    for name, factory in METHODS.items():
        lines.append(f"| [{name}]({name}.md) | {first_line(factory)} | {', '.join(factory().papers)} |")
    return {**made, "README.md": "\n".join([*lines, ""])}


def page(name: str) -> str:
    """One method's page."""
    factory = METHODS[name]
    searcher = factory()
    text = [MADE, "", f"# {name}", "", first_line(factory), "", "```text", about(factory), "```", ""]
    options = [p for p in inspect.signature(factory).parameters.values() if not isinstance(searcher, type(factory))]
    if options and not inspect.isclass(factory):
        text += ["Options: " + ", ".join(f"`method.{p.name}={p.default}`" for p in options) + ".", ""]
    text += [*parts(searcher), *published(name), "## Cite", "", "```bibtex", cite(searcher.papers), "```", ""]
    return "\n".join(text)


def first_line(factory: object) -> str:
    """The sections of a method's docstring."""
    return (factory.__doc__ or "").strip().split("\n")[0]


def about(factory: object) -> str:
    """The docstring of the method's file."""
    return inspect.cleandoc(inspect.getmodule(factory).__doc__ or "").strip()


def parts(searcher: SearcherLike) -> Iterator[str]:
    """The differences from first-order DARTS, slot by slot."""
    method = as_searcher(searcher).method
    if method is None:
        return
    plain, own = config.describe(Method()), config.describe(method)
    rows = [(slot, said(value)) for slot, value in own.items() if value != plain[slot] and slot != "name"]
    rows += [(f"space.{key}", said(value)) for key, value in method.space.items()]
    if isinstance(searcher, Staged):
        rows.append(("stages", said(config.describe(searcher)["stages"])))
    yield from ("## Parts", "")
    if not rows:
        yield from ("Those of first-order DARTS.", "")
        return
    yield from ("Where they differ from first-order DARTS:", "", "| slot | part |", "|---|---|")
    yield from (f"| `{slot}` | {value} |" for slot, value in rows if slot != "papers")
    yield ""


def published(name: str) -> Iterator[str]:
    """The constants of `--budget paper` with their sources, for each space in the table; else what the budget sets."""
    base = name.removeprefix("rf_")
    known, budgets = TABLE.get(base, {}), ENTRIES[base].budgets.get("paper", {})
    if known or budgets:
        yield from ("## Published settings (`--budget paper`)", "")
    for space, rows in known.items():
        yield from (f"In `{space}`:", "", "| setting | value | from |", "|---|---|---|")
        yield from (f"| `{path}` | {said(row['value'])} | {row['source']} |" for path, row in rows.items())
        yield ""
    rest = {space: budget for space, budget in budgets.items() if space not in known}
    if rest:
        yield from ("| space | epochs | batch | settings | from |", "|---|---|---|---|---|")
        for space, budget in rest.items():
            settings = ", ".join(f"`{path}={value}`" for path, value in budget.settings.items())
            yield f"| {space} | {budget.epochs} | {budget.batch} | {settings} | {budget.source} |"
        yield ""


def said(value: object) -> str:
    """A described part in one line: `Softmax(scale=0.001)`."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}={said(part)}" for key, part in value.items() if key != "type")
        return f"{value['type']}({inner})"
    if isinstance(value, list):
        return "[" + ", ".join(map(said, value)) + "]"
    return str(value)


def main() -> None:
    """Writes all pages and removes those of methods that are gone."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(made)} pages in {FOLDER}\n")


if __name__ == "__main__":
    main()
