"""Writes docs/methods/: a page per method, out of its docstring, its parts, its published settings (published.toml) and its papers.

The index shows what each method found in docs/results/methods.md, from the numbers behind that page, so make it anew after them.

python docs/make_methods.py
"""

from __future__ import annotations

import csv
import inspect
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from oche import config
from oche.methods import ENTRIES, METHODS
from oche.methods.ask_tell import AskTell
from oche.methods.papers import cite
from oche.search.method import Method
from oche.search.searcher import SearcherLike, as_searcher
from oche.search.stages import Staged

FOLDER = Path(__file__).parent / "methods"
TABLE: Mapping[str, Mapping[str, Mapping[str, Mapping[str, object]]]] = tomllib.loads(
    (FOLDER / "published.toml").read_text(encoding="utf-8")
)
"""Method -> space -> setting -> its published value and source."""
RESULTS = Path(__file__).parent / "results" / "methods_nb201.csv"
METRIC = "cifar10/test"
MADE = "<!-- made by docs/make_methods.py from the method's docstring: change that -->"


def pages() -> dict[str, str]:
    """File name -> page, the index among them."""
    made = {f"{name}.md": page(name) for name in METHODS}
    found = results()
    lines = [MADE, "", "# Methods", "", *choosing(found), ""]
    lines += ["| name | what it is | alone | with random features | rests on |", "|---|---|---|---|---|"]
    for name, factory in METHODS.items():
        base, version = name.removeprefix("rf_"), name if name.startswith("rf_") else f"rf_{name}"
        beside = [accuracy(found.get(base)) if base == name else "", accuracy(found.get(f"{version}_fast"))]
        lines.append(
            f"| [{name}]({name}.md) | {first_line(factory)} | {' | '.join(beside)} | {', '.join(factory().papers)} |"
        )
    return {**made, "README.md": "\n".join([*lines, ""])}


def results() -> dict[str, dict[str, str]]:
    """Row's name -> its numbers by `METRIC`: of methods and arms, and of the choices without a search."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file) if row["metric"] == METRIC}


def accuracy(row: Mapping[str, str] | None) -> str:
    """Mean and deviation over seeds; nothing where there is no row."""
    if row is None:
        return ""
    return f"{float(row['mean']):.2f}" + (f" ± {float(row['std']):.2f}" if row["std"] else "")


def choosing(found: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What the accuracies are, what stands against them, and which methods they tell apart from a random cell."""
    random, largest = (found[name] for name in ("mean of the table", "largest cell (by parameters)"))
    above = [
        row
        for name, row in found.items()
        if name in METHODS and row["low"] and float(row["low"]) > float(random["mean"]) and not asks(name)
    ]
    names = ", ".join(f"`{row['method']}`" for row in sorted(above, key=lambda row: -float(row["mean"])))
    queries = ", ".join(f"`{name}`" for name in METHODS if asks(name))
    yield (
        "The accuracies are CIFAR-10 test accuracies of the cells found on NAS-Bench-201, mean ± deviation of three seeds, from "
        "[all methods on NAS-Bench-201](../results/methods.md): short searches of one small supernet, the same for all, so they rank "
        "no method at its published budget."
    )
    yield ""
    yield f"- A random cell has {accuracy(random)}, the largest cell, which takes no search, {accuracy(largest)}: compare with that first."
    yield f"- Told apart from a random cell there, the best first, by the 95 % interval of the mean: {names or 'none'}."
    yield f"- Where a table, or time to train each cell, can answer for cells: {queries}; theirs are the best of 100 looked-up cells."
    yield "- No accuracy: the method keeps the network it searched, and no cell of the table, or has not run there."


def asks(name: str) -> bool:
    """True if the method asks for cells one by one."""
    return isinstance(METHODS[name](), AskTell)


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
