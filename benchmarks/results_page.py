"""Writes a page of results from one or more benches: what was read from them, one table, the differences that matter, figures.

    python benchmarks/results_page.py runs/collapse_nb201 runs/collapse_s1_s4 --out docs/results/nb201.md
    python benchmarks/results_page.py runs/methods_nb201 --pairs "rf_{}_fast" --title "..." --out docs/results/methods.md

With `--pairs "rf_{}_fast"` the table has a row for each method NAME, with rf_NAME_fast beside it and their difference; arms NAME_xK, the
same at more steps, have a table of their own (`longer`). Beside PAGE.md come
PAGE_details.md with every metric, trial and picture, and of each bench NAME.csv and NAME.jsonl with the numbers behind them.

All of it is computed from the benches' files, but for the published numbers, which stand below with where they are from, and for the
reading: what stands between the two `reading` comments of an existing page is kept.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from longer import is_longer, lengths, verdicts
from standing import standing

from oche import config
from oche.bench import stats
from oche.bench.baselines import RIVALS
from oche.bench.formats import to_csv
from oche.bench.matrix import flat
from oche.bench.pictures import pictures
from oche.bench.render import (
    NOT_RUN,
    Sheet,
    headline,
    legend,
    overview,
    p_values,
    searches,
    skips_of,
    table_lines,
    tables,
    trial_table,
)
from oche.bench.result import BenchFolder, BenchResult, Row, by_seed, read
from oche.errors import UserError
from oche.report.facts import duration
from oche.run import Run

PAIRS = (
    ("rf_darts_fast", "darts"),
    ("rf_darts_fast", "pcdarts"),
    ("rf_darts_fast", "affine_fast"),
    ("rf_darts_fast", "darts_fast"),
    ("rf_darts_fast", "random_sampling"),
    ("rf_darts", "darts"),
    ("rf_darts", "pcdarts"),
    ("rf_darts_classifier", "darts"),
    ("rf_darts_classifier", "pcdarts"),
    ("rf_pcdarts", "pcdarts"),
    ("rf_pcdarts_fast", "pcdarts"),
    ("rf_darts", "random_sampling"),
    ("darts", "random_sampling"),
    ("pcdarts", "random_sampling"),
)
"""(method, compared with), where a bench holds both and no `--pairs` are asked for."""

SHOWN = ("seeds", "anytime", "skips")
"""The pictures on the page itself."""

SOURCES = {
    "P": "stated by the RF-DARTS paper (abstract)",
    "PWC": "Papers with Code's entry of the RF-DARTS paper",
    "C": "read in the authors' repositories",
    "D": "computed from the table: the cell of skip connections alone, which is what both find",
}


@dataclass(frozen=True)
class Published:
    """Test accuracy on CIFAR-10, CIFAR-100 and ImageNet16-120 after a search on CIFAR-10 at the full budget; a key of SOURCES."""

    values: tuple[str, str, str]
    source: str
    more: str = ""

    def __str__(self) -> str:
        return " / ".join(self.values) + f" ({self.source}){self.more}"


COLLAPSED = Published(("54.30", "15.61", "16.32"), "D")
PUBLISHED = {
    "darts": COLLAPSED,
    "darts_2nd": COLLAPSED,
    "rf_darts": Published(("94.27", "72.94", "?"), "PWC", "; best run 94.36 (P)"),
    "pcdarts": Published(("93.41 ± 0.30", "67.48 ± 0.89", "41.31 ± 0.22"), "C"),
    "snas": Published(("92.77 ± 0.83", "69.34 ± 1.98", "43.16 ± 2.64"), "C"),
    "drnas": Published(("94.36 ± 0.00", "73.51 ± 0.00", "46.34 ± 0.00"), "C"),
}
"""Method or arm -> what was published of it. Numbers that were only recalled are not here."""

READING = re.compile(r"<!-- reading -->\n(.*?)<!-- /reading -->", re.DOTALL)


def main() -> None:
    """Reads the command line, writes the page, its details, its figures and the numbers behind them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="+", type=Path, help="folders that `oche bench` made")
    parser.add_argument("--out", type=Path, required=True, help="the .md to write; figures go into figures/ beside it")
    parser.add_argument("--title", help="default: that of the page as it is, else of the collapse study")
    parser.add_argument(
        "--pairs",
        metavar="FORM",
        help="each method beside its version of that name, as in rf_{}, with their difference",
    )
    given = parser.parse_args()
    try:
        results = [read(path) for path in given.benches]
    except UserError as error:
        parser.error(str(error))
    folder = given.out.parent
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    earlier = given.out.read_text() if given.out.is_file() else ""
    of_page = re.match(r"# (.*)", earlier)
    title = given.title or (of_page[1] if of_page else "NAS-Bench-201: the collapse, and what keeps a search from it")
    details = given.out.with_name(f"{given.out.stem}_details.md")
    drawn = {result.matrix.name: pictures(result) for result in results}
    for result in results:
        name = result.matrix.name
        for picture, data in drawn[name].items():
            (folder / "figures" / f"{name}_{picture}.svg").write_bytes(data)
        (folder / f"{name}.csv").write_text(to_csv(result))
        (folder / f"{name}.jsonl").write_bytes(result.folder.read(BenchFolder.TRIALS) if result.finished else b"")
    given.out.write_text(page(title, results, earlier, details.name, drawn, given.pairs))
    details.write_text(detailed(title, results, given.out.name, drawn))
    print(given.out)


def page(
    title: str,
    results: Sequence[BenchResult],
    earlier: str,
    details: str,
    drawn: Mapping[str, Mapping[str, bytes]],
    form: str | None,
) -> str:
    """The page: the reading, then for each bench its table, its differences, and the pictures of SHOWN."""
    kept = READING.search(earlier)
    reading = kept.group(1) if kept else "Not written yet.\n"
    lines = [f"# {title}", "", f"<!-- reading -->\n{reading}<!-- /reading -->", ""]
    for result in results:
        name = result.matrix.name
        lines += [f"## {name}", "", *summary(result), ""]
        for heading, headings, rows in [*sides(result, form), *([] if form else differences(result))]:
            lines += [f"### {heading}", "", *table_lines(headings, rows), ""]
        lines += [*said(result, form), "", *shown(name, [p for p in drawn[name] if p.startswith(SHOWN)]), ""]
        lines += [*arms(result), ""] if result.matrix.arms else []
        lines += [
            f"Every metric, trial and picture: [{details}]({details}); the numbers: [{name}.csv]({name}.csv), "
            f"a line a trial: [{name}.jsonl]({name}.jsonl).",
            "",
        ]
    return "\n".join(lines)


def detailed(title: str, results: Sequence[BenchResult], page: str, drawn: Mapping[str, Mapping[str, bytes]]) -> str:
    """The runs that the page leaves out."""
    lines = [f"# {title}: details", "", f"The page: [{page}]({page}).", ""]
    for result in results:
        name = result.matrix.name
        lines += [f"## {name}", "", *versions(result), ""]
        headings, rows = trial_table(result)
        found = [*tables(result), *searches(result), ("Every trial", headings, rows)]
        for heading, names, body in found:
            lines += [f"### {heading}", "", *table_lines(names, body), ""]
        lines += [*(f"- {line}" for line in legend(result)), ""]
        lines += [*shown(name, [p for p in drawn[name] if not p.startswith(SHOWN)]), ""]
    return "\n".join(lines)


# ------------------------------------------------------------------ words


def summary(result: BenchResult) -> Iterator[str]:
    """Command, budget, what the log holds, and what has to be known to read the table."""
    m, done = result.matrix, result.finished
    yield "<!-- not run: takes hours or days -->"
    yield "```sh"
    yield f"oche bench --config benchmarks/{m.name}.toml --out {Path(result.folder.path).name}"
    yield "```"
    yield ""
    budget = f"budget `{', '.join(m.budgets)}`"
    changes = [f"{name} {value}" for name, value in (("epochs", m.epochs), ("batch", m.batch)) if value is not None]
    changes += [f"`{path} = {value}`" for path, value in m.settings.items()]
    yield f"- Budget: {budget}" + (f" with {', '.join(changes)}" if changes else "") + f"; data {', '.join(m.data)}."
    seconds = [t.seconds for t in done if t.seconds > 0]
    if seconds:
        yield (
            f"- Log: {len(done)} of {len(done) + len(result.missing)} trials, {duration(sum(seconds))} of search in all, "
            f"{duration(median(seconds))} a search (median), on {', '.join(sorted({t.device for t in done}))}."
        )
    yield from (f"- {note}" for note in result.notes)


def arms(result: BenchResult) -> Iterator[str]:
    """Explains the names that are not those of methods."""
    for name in result.matrix.arms:
        arm = result.matrix.arm(name)
        settings = {**({"epochs": arm.epochs} if arm.epochs else {}), **flat(arm.settings)}
        own = ", ".join(f"{path} = {value}" for path, value in settings.items())
        if own or arm.method != name:
            yield f"- `{name}`: {arm.method}" + (f" with `{own}`" if own else "") + "."


def versions(result: BenchResult) -> Iterator[str]:
    """The trials that ran."""
    found = config.loads(result.folder.read(Run.CONFIG).decode(), "run.toml").get("versions", {})
    if isinstance(found, dict):
        yield "- " + ", ".join(f"{name} {number}" for name, number in found.items()) + "."


def said(result: BenchResult, form: str | None) -> Iterator[str]:
    """Explains the table's columns and the sources of published numbers."""
    yield "- that is: better or worse where the interval leaves out 0, each pair taken alone; p: paired t / Wilcoxon."
    alone = len(list(result.places())) == 1
    if form or alone:
        yield "- `- largest`: the mean less what the table's largest cell has."
        yield f"- best of n random cells: the best by {result.matrix.selector}, expected over all draws."
    if form and alone:
        yield (
            f"- `- as large`: each seed's cell less the best by {result.matrix.selector} of {RIVALS} random cells with as many parameters, "
            "on average."
        )
        yield from (
            f"- {line}"
            for line in (
                *standing(result, headline(result.matrix)[0]),
                *verdicts(result, form, headline(result.matrix)[0]),
            )
        )
    if form is None and alone:
        yield f"- RI: relative improvement over {result.matrix.baseline}, 100 (mean - its mean) / its mean."
        yield "- skips: of each seed's cell. search: the median time of one, without what is measured beside it."
    if published(result):
        used = " ".join(str(number) for name, number in PUBLISHED.items() if name in result.matrix.searched)
        yield "- published: test accuracy on CIFAR-10 / CIFAR-100 / ImageNet16-120, searched on CIFAR-10 at the full budget."
        yield from (f"  - {tag}: {source}" for tag, source in SOURCES.items() if f"({tag})" in used)


def shown(bench: str, names: Sequence[str]) -> list[str]:
    """Links to pictures."""
    return [f"![{name}](figures/{bench}_{name}.svg)" for name in names]


def published(result: BenchResult) -> bool:
    """True if other papers' numbers can stand beside the bench's: one place, looked up in NAS-Bench-201's table."""
    return result.matrix.table == "nb201" and len(list(result.places())) == 1


# ------------------------------------------------------------------ tables


def sides(result: BenchResult, form: str | None) -> list[Sheet]:
    """The page's tables: all methods side by side, or each beside its version `form`; published numbers, or each place's skips."""
    found = [overview(result)] if form is None else pairs(result, form)
    if published(result):
        own = [
            (title, [*names, "published"], [[*row, beside(row[0], form)] for row in rows])
            for title, names, rows in found
        ]
        return [*own, *(lengths(result, form, headline(result.matrix)[0]) if form else [])]
    return [*found, skips(result)] if len(list(result.places())) > 1 else found


def beside(method: str, form: str | None) -> str:
    """The published numbers of a method, and of its version of the name `form`."""
    own = PUBLISHED.get(method)
    version = form.format(method) if form else ""
    other = PUBLISHED.get(version) or PUBLISHED.get(version.removesuffix("_fast"))
    return "; ".join([*([str(own)] if own else []), *([f"{version}: {other}"] if other else [])])


def skips(result: BenchResult) -> Sheet:
    """Skip connections of each seed's cell, methods against places."""
    places = list(result.places())
    rows = []
    for method in result.matrix.searched:
        mine = [sorted((t for t in here if t.method == method), key=lambda t: t.seed) for _, here in places]
        rows.append([method, *map(skips_of, mine)])
    labels = [
        ", ".join(place[i] for i in range(3) if len({other[i] for other, _ in places}) > 1) for place, _ in places
    ]
    return "Skip connections of each seed's cell, normal+reduction where there are two", ["method", *labels], rows


def pairs(result: BenchResult, form: str) -> list[Sheet]:
    """By the first headline metric, for each place: a method, its version of the name `form`, and their difference over shared seeds.

    Best first; what has no such version has its own columns alone, and the choices without a search stand below.
    """
    metric, searched = headline(result.matrix)[0], result.matrix.searched
    versions, name_of = {form.format(name) for name in searched}, form.format("…")
    bases = [name for name in searched if name not in versions and not is_longer(name, searched)]
    own = ["- largest", "- as large"]
    headings = ["method", "alone", *own, name_of, *own, "difference", "95 % interval", "p", "that is"]
    found = []
    for place, here in result.places():
        told = {r.method: r for r in result.rows if (r.space, r.data, r.budget, r.metric) == (*place, metric)}
        scores = by_seed(here, metric)
        rows: list[tuple[float, list[str]]] = []
        for name in bases:
            other = form.format(name)
            ours = [told.get(method) for method in (name, other)]
            versus = [""] * 4
            if other in searched:
                _, *versus = difference(scores.get(other, {}), scores.get(name, {}))
            second = scored(result, ours[1]) if other in searched else [""] * 3
            rows.append(
                (
                    max((r.summary.mean for r in ours if r), default=0.0),
                    [name, *scored(result, ours[0]), *second, *versus],
                )
            )
        ordered = [row for _, row in sorted(rows, key=lambda pair: -pair[0])]
        fixed = [[r.method, *scored(result, r), *[""] * 7] for r in told.values() if r.fixed]
        where = "" if len(list(result.places())) == 1 else f": {', '.join(place)}"
        found.append((f"{metric}, each method alone and as {name_of}{where}", headings, ordered + fixed))
    return found


def scored(result: BenchResult, row: Row | None) -> list[str]:
    """Mean, spread and seeds where some are missing; the distances to the table's largest cell and to random cells as large."""
    if row is None:
        return [NOT_RUN, "", ""]
    spread = f" ± {row.summary.std:.2f}" if row.summary.std is not None else ""
    asked = 0 if row.fixed else result.matrix.seeds_for(row.method)
    few = f" ({row.summary.n} of {asked})" if row.summary.n < asked else ""
    over = ["" if gap is None else f"{gap:+.2f}" for gap in (row.over_largest, row.over_size)]
    return [f"{row.summary.mean:.2f}{spread}{few}", *over]


def differences(result: BenchResult) -> list[Sheet]:
    """PAIRS by the first headline metric in each place: mean difference over seeds with its interval and tests, and what that says."""
    metric, places = headline(result.matrix)[0], list(result.places())
    headings = ["", "seeds", "difference", "95 % interval", "p", "that is"]
    rows = []
    for place, here in places:
        by_method = by_seed(here, metric)
        for method, other in PAIRS:
            if {method, other} <= set(result.matrix.searched):
                where = "" if len(places) == 1 else f"{place[0]}: "
                of_pair = difference(by_method.get(method, {}), by_method.get(other, {}))
                rows.append([f"{where}{method} − {other}", *of_pair])
    return [(f"Differences in {metric}, over the seeds both have", headings, rows)] if rows else []


def difference(a: dict[int, float], b: dict[int, float]) -> list[str]:
    """Seeds that both have, mean of a - b over them, its interval, p-values, and the verdict, all of this pair alone."""
    found = stats.difference(a, b)
    if found is None:
        return ["0", NOT_RUN, "", "", ""]
    ends = f"[{found.interval[0]:+.2f}, {found.interval[1]:+.2f}]" if found.interval else ""
    return [str(found.n), f"{found.mean:+.2f}", ends, p_values(found), found.verdict]


if __name__ == "__main__":
    main()
