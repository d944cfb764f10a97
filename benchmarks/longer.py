"""The part of a page of results that tells what more steps do: arms NAME_xK, and their random-features versions, beside NAME.

Criteria, which stand at the top of benchmarks/methods_nb201.toml: a version is worse, or better, where Student's 95 % interval of the
difference leaves out 0. More steps mend it where that difference rises in every seed from the shortest search to the longest, and do not
where it rises in none; anything else is undecided.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from oche.bench import stats
from oche.bench.matrix import SUPERNET_TRAIN
from oche.bench.render import NOT_RUN, Sheet
from oche.bench.result import BenchResult, Finished
from oche.genotype import FREE, Genotype
from oche.watch.probes import operations

LONGER = re.compile(r"(.+)_x(\d+)")
Seeds = dict[int, Finished]


def is_longer(name: str, searched: Sequence[str]) -> bool:
    """True if the arm is another at more steps."""
    found = LONGER.fullmatch(name)
    return found is not None and found[1] in searched


def lengths(result: BenchResult, form: str, metric: str) -> list[Sheet]:
    """One table of all lengths of the methods that have several, each alone and as `form`; none where no method has."""
    headings = [
        "method",
        "epochs",
        "alone",
        "without weights",
        "supernet %",
        form.format("…"),
        "without weights",
        "supernet %",
    ]
    headings += ["difference, by seed", "95 % interval", "that is"]
    rows = []
    for name, arms in families(result, form).items():
        for arm in arms:
            alone, version = trials_of(result, arm), trials_of(result, form.format(arm))
            found = stats.difference(scores(version, metric), scores(alone, metric))
            gaps = " ".join(f"{gap:+.2f}" for gap in apart(result, form, arm, metric).values())
            ends = f"[{found.interval[0]:+.2f}, {found.interval[1]:+.2f}]" if found and found.interval else ""
            cells = [*told(result, alone, metric), *told(result, version, metric)]
            rows.append([name, str(epochs(result, arm)), *cells, gaps, ends, found.verdict if found else ""])
    title = (
        "More steps: operations without weights of each seed's cell, and the supernet's accuracy on its train images"
    )
    return [(title, headings, rows)] if rows else []


def verdicts(result: BenchResult, form: str, metric: str) -> Iterator[str]:
    """A line per method with several lengths: whether more steps mend what random features do, and whether what was predicted holds."""
    for name, arms in families(result, form).items():
        first, last = (apart(result, form, arm, metric) for arm in (arms[0], arms[-1]))
        asked, shared = result.matrix.seeds_for(name), sorted(first.keys() & last.keys())
        if len(shared) < asked:
            yield f"{name}: more steps are not judged before all {asked} seeds have run at both ends; {len(shared)} have."
            continue
        rose = sum(last[seed] > first[seed] for seed in shared)
        word = "held up" if rose == len(shared) else "refuted" if rose == 0 else "undecided"
        short, long = (trials_of(result, form.format(arm)) for arm in (arms[0], arms[-1]))
        surer = sum(accuracy(long[seed]) > accuracy(short[seed]) for seed in shared)
        fewer = sum(without_weights(long[seed]) < without_weights(short[seed]) for seed in shared)
        yield (
            f'{name}: "more steps mend it" is {word}: from {epochs(result, arms[0])} to {epochs(result, arms[-1])} epochs the difference '
            f"rises in {rose} of {len(shared)} seeds. With random features the supernet becomes more accurate in {surer}, and the cell "
            f"has fewer operations without weights in {fewer}."
        )


# ------------------------------------------------------------------ helpers


def families(result: BenchResult, form: str) -> dict[str, list[str]]:
    """Method -> its arms, the shortest search first, for the methods that have several lengths; versions `form` stand with theirs."""
    searched = result.matrix.searched
    versions = {form.format(name) for name in searched}
    found: dict[str, list[str]] = {}
    for name in searched:
        if is_longer(name, searched) and name not in versions:
            found.setdefault(LONGER.fullmatch(name)[1], []).append(name)  # type: ignore[index]
    return {name: sorted((name, *arms), key=lambda arm: epochs(result, arm)) for name, arms in found.items()}


def epochs(result: BenchResult, arm: str) -> int:
    """Epochs of an arm's search; 0 where the budget says how many."""
    return result.matrix.arm(arm).epochs or result.matrix.epochs or 0


def trials_of(result: BenchResult, arm: str) -> Seeds:
    """Seed -> trial of an arm, seeds in order."""
    return {t.seed: t for t in sorted(result.finished, key=lambda t: t.seed) if t.method == arm}


def scores(trials: Seeds, metric: str) -> dict[int, float]:
    """Seed -> value."""
    return {seed: value for seed, t in trials.items() if (value := t.values.get(metric)) is not None}


def apart(result: BenchResult, form: str, arm: str, metric: str) -> dict[int, float]:
    """Seed -> value of the version less that of the arm alone."""
    alone, version = (scores(trials_of(result, name), metric) for name in (arm, form.format(arm)))
    return {seed: version[seed] - alone[seed] for seed in sorted(alone.keys() & version.keys())}


def told(result: BenchResult, trials: Seeds, metric: str) -> list[str]:
    """Mean and deviation, seeds where some are missing; operations without weights by seed; the supernet's mean accuracy."""
    values: Mapping[int, float] = scores(trials, metric)
    if not values:
        return [NOT_RUN, "", ""]
    s = stats.summary(list(values.values()))
    few = f" ({s.n} of {result.matrix.seeds})" if s.n < result.matrix.seeds else ""
    spread = "" if s.std is None else f" ± {s.std:.2f}"
    own = " ".join(str(without_weights(t)) for t in trials.values())
    return [f"{s.mean:.2f}{spread}{few}", own, f"{mean(map(accuracy, trials.values())):.0f}"]


def accuracy(trial: Finished) -> float:
    """The supernet's accuracy on its train images in the last epoch, in percent; 0 where none was measured."""
    return trial.values.get(SUPERNET_TRAIN) or 0.0


def without_weights(trial: Finished) -> int:
    """Operations of the cell that have no weights."""
    groups = Genotype.parse(trial.genotype, trial.space).groups.values()
    return sum(op in FREE for choices in groups for op in operations(choices))
