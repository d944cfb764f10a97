"""Writes a page of results from one or more benches or studies: command, budget, tables, differences, published numbers, figures.

    python benchmarks/results_page.py runs/collapse_nb201 runs/collapse_s1_s4 --out docs/results/nb201.md

Everything on the page is computed from the benches' files, but for the published numbers, which stand below with where they are from,
and for the reading: what stands between the two `reading` comments of an existing page is kept.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median

from oche import config
from oche.bench import stats
from oche.bench.matrix import flat
from oche.bench.pictures import pictures
from oche.bench.render import NOT_RUN, Sheet, grids, legend, searches, table_lines, tables, trial_table
from oche.bench.result import BenchResult, read
from oche.errors import UserError
from oche.report.page import duration
from oche.run import Run
from oche.study.claims import judged
from oche.study.pictures import figures as study_figures
from oche.study.runner import STUDY, notes, study_of
from oche.study.tables import sheets

PAIRS = (
    ("rf_darts", "darts"),
    ("rf_darts", "pcdarts"),
    ("rf_darts_classifier", "darts"),
    ("rf_darts_classifier", "pcdarts"),
    ("rf_pcdarts", "pcdarts"),
    ("rf_darts", "random_sampling"),
    ("darts", "random_sampling"),
    ("base", "two_stage"),
    ("base", "entropy"),
    ("base", "s0"),
    ("s1", "s0"),
    ("s2", "s0"),
    ("base", "uniform"),
    ("base", "random_decoded"),
)
"""(method, compared with), where a bench holds both."""

SOURCES = {
    "P": "stated by the RF-DARTS paper (abstract)",
    "PWC": "Papers with Code's entry of the RF-DARTS paper",
    "C": "read in the authors' repositories",
    "D": "computed from the table",
    "M": "recalled from other papers' tables, not checked again",
}
PUBLISHED = (  # method, test accuracy on CIFAR-10, CIFAR-100, ImageNet16-120, source; searched on CIFAR-10 at the full budget
    ("RF-DARTS, best run", "94.36", "", "", "P"),
    ("RF-DARTS", "94.27", "72.94", "", "PWC"),
    ("DARTS, first and second order", "54.30", "15.61", "16.32", "D"),
    ("PC-DARTS", "93.41 ± 0.30", "67.48 ± 0.89", "41.31 ± 0.22", "C"),
    ("random search with weight sharing", "87.66 ± 1.69", "58.33 ± 4.34", "31.14 ± 3.88", "M"),
    ("optimum of the table", "94.37", "73.51", "47.31", "D"),
)
READING = re.compile(r"<!-- reading -->\n(.*?)<!-- /reading -->", re.DOTALL)


def main() -> None:
    """Reads the command line, writes the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="+", type=Path, help="folders that `oche bench` made")
    parser.add_argument(
        "--out", type=Path, required=True, help="the .md to write; its figures go into figures/ beside it"
    )
    parser.add_argument("--title", default="NAS-Bench-201: the collapse, and what keeps a search from it")
    given = parser.parse_args()
    try:
        results = [read(path) for path in given.benches]
    except UserError as error:
        parser.error(str(error))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    earlier = given.out.read_text() if given.out.is_file() else ""
    given.out.write_text(page(given.title, results, earlier, given.out.parent / "figures"))
    print(given.out)


def page(title: str, results: Sequence[BenchResult], earlier: str, figures: Path) -> str:
    """The page as Markdown; writes each picture into `figures`."""
    kept = READING.search(earlier)
    reading = kept.group(1) if kept else "Not written yet.\n"
    lines = [f"# {title}", "", "## Reading", "", f"<!-- reading -->\n{reading}<!-- /reading -->", ""]
    for result in results:
        own, drawn = studied(result) if result.folder.has(STUDY) else ([], {})
        lines += [f"## {result.matrix.name}", "", *summary(result), ""]
        for name, headings, rows in (*own, *grids(result), *tables(result), *searches(result), *differences(result)):
            lines += [f"### {name}", "", *table_lines(headings, rows), ""]
        figures.mkdir(parents=True, exist_ok=True)
        for name, data in {**drawn, **pictures(result)}.items():
            file = figures / f"{result.matrix.name}_{name}.svg"
            file.write_bytes(data)
            lines += [f"![{name}](figures/{file.name})"]
        headings, rows = trial_table(result)
        lines += [
            "",
            "### Every trial",
            "",
            *table_lines(headings, rows),
            "",
            *(f"- {line}" for line in legend(result)),
            "",
        ]
    if any(result.matrix.table == "nb201" for result in results):
        lines += ["## Published, at the full budget", "", *published(), ""]
    return "\n".join(lines)


def summary(result: BenchResult) -> Iterator[str]:
    """Command, budget, and what the log holds."""
    m = result.matrix
    done = result.finished
    yield "```sh"
    verb = f"study {study_of(result.folder).name}" if result.folder.has(STUDY) else "bench"
    yield f"oche {verb} --config benchmarks/{m.name}.toml --out {Path(result.folder.path).name}"
    yield "```"
    yield ""
    budget = f"budget `{', '.join(m.budgets)}`"
    changes = [f"{name} {value}" for name, value in (("epochs", m.epochs), ("batch", m.batch)) if value is not None]
    changes += [f"`{path} = {value}`" for path, value in m.settings.items()]
    yield f"- Budget: {budget}" + (f" with {', '.join(changes)}" if changes else "") + f"; data {', '.join(m.data)}."
    for name in m.arms:
        arm = m.arm(name)
        own = ", ".join(f"{path} = {value}" for path, value in flat(arm.settings).items())
        yield f"- `{name}`: {arm.method}" + (f" with `{own}`" if own else "") + "."
    seconds = [t.seconds for t in done if t.seconds > 0]
    if seconds:
        yield (
            f"- Log: {len(done)} of {len(done) + len(result.missing)} trials, {duration(sum(seconds))} of search in all, "
            f"{duration(median(seconds))} a search (median), on {', '.join(sorted({t.device for t in done}))}."
        )
    versions = config.loads(result.folder.read(Run.CONFIG).decode(), "run.toml").get("versions", {})
    if isinstance(versions, dict):
        yield "- " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
    yield from (f"- {note}" for note in (*(notes(result) if result.folder.has(STUDY) else ()), *result.notes))


def studied(result: BenchResult) -> tuple[list[Sheet], dict[str, bytes]]:
    """A study's own tables, its claims first, and its pictures."""
    return [*judged(result, study_of(result.folder).roles), *sheets(result)], study_figures(result)


def differences(result: BenchResult) -> list[Sheet]:
    """The pairs of interest by the first metric: mean difference over seeds with its interval and tests, and what that says."""
    metric, headings = result.matrix.reported[0], ["", "seeds", "difference", "95 % interval", "p", "that is"]
    found = []
    for (space, data, budget), here in result.places():
        by_method: dict[str, dict[int, float]] = {}
        for trial in here:
            if (value := trial.values.get(metric)) is not None:
                by_method.setdefault(trial.method, {})[trial.seed] = value
        rows = []
        for method, other in PAIRS:
            if {method, other} <= set(result.matrix.searched):
                rows.append([f"{method} − {other}", *difference(by_method.get(method, {}), by_method.get(other, {}))])
        if rows:
            found.append((f"{metric}, differences: {space}, searched on {data}, {budget}", headings, rows))
    return found


def difference(a: dict[int, float], b: dict[int, float]) -> list[str]:
    """Seeds that both have, mean of a - b over them, its bootstrap interval, p-values, and the verdict that the interval allows."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return ["0", NOT_RUN, "", "", ""]
    gaps = [a[seed] - b[seed] for seed in shared]
    interval = stats.mean_interval(gaps)
    test = stats.significance({s: a[s] for s in shared}, {s: b[s] for s in shared})
    if interval is None or test is None:
        return [str(len(shared)), f"{mean(gaps):+.2f}", "", "", "one seed: no verdict"]
    low, high = interval
    verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    tests = f"{test.t_p:.3f} / {test.rank_p:.3f} ({test.t_name} / {test.rank_name})"
    return [str(len(shared)), f"{mean(gaps):+.2f}", f"[{low:+.2f}, {high:+.2f}]", tests, verdict]


def published() -> list[str]:
    """The published numbers with their sources."""
    headings = ["method", "CIFAR-10 test", "CIFAR-100 test", "ImageNet16-120 test", "source"]
    used = dict.fromkeys(row[-1] for row in PUBLISHED)
    return [*table_lines(headings, [list(row) for row in PUBLISHED]), "", *(f"- {tag}: {SOURCES[tag]}" for tag in used)]


if __name__ == "__main__":
    main()
