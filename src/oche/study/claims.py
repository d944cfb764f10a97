"""Judges the claims of "The devil is in discretization discrepancy" in a study's arms, by criteria for small data.

C1 to C7 paraphrase the paper's abstract (arXiv 2405.16610). The criteria are ours, written down before anything was run; sigma is always a
standard deviation over seeds, and where two arms are compared the root of the mean of their variances. What holds by them holds for this
data, this size and these seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from statistics import mean, stdev

from oche import config
from oche.bench import stats
from oche.bench.matrix import TRAINED_TEST
from oche.bench.render import Sheet
from oche.bench.result import BenchResult, Finished
from oche.errors import UserError
from oche.study.degeneration import FREE_SHARE
from oche.study.measure import ANEW, CONTINUOUS
from oche.study.tables import Number, error, last, numbers, value

USUAL = ("op", "op+edge@0.50", "op+best2")
"""The decodings that C1 looks at."""

HOLDS, NOT, OPEN = "holds", "does not hold", "not judged"


@dataclass(frozen=True)
class Roles:
    """The arms that play a part in the claims, "" for none.

    `single` is the unregularised single stage, `penalised` the one with the largest penalty, `two_stage` the control; `fixed` the split
    S0, `splits` the others; `random` has frozen random alpha of the same mean entropy as `single`, and never trains it. `levels` has such
    roles by name for further settings of the same search, each judged on its own: by how far alpha decides, for example.
    """

    single: str = ""
    penalised: str = ""
    two_stage: str = ""
    fixed: str = ""
    splits: tuple[str, ...] = ()
    random: str = ""
    levels: Mapping[str, object] = field(default_factory=dict)

    def at(self) -> dict[str, Roles]:
        """These roles, and those of each level by its name. Raises UserError for a level that holds anything else."""
        found = {"": replace(self, levels={})}
        for name, table in self.levels.items():
            if not isinstance(table, Mapping):
                raise UserError(f"A study's level {name!r} must be a table of roles, not {table!r}.")
            found[name] = config.build(Roles, table, f"roles of the level {name}")
        return found

    def arms(self) -> set[str]:
        """The arms that play a part anywhere."""
        parts = (r for r in self.at().values())
        return {arm for r in parts for arm in (r.single, r.penalised, r.two_stage, r.fixed, *r.splits, r.random) if arm}


def judged(result: BenchResult, roles: Roles) -> list[Sheet]:
    """A table for each place: claim, criterion, numbers, verdict. A smoke test's is that there is none."""
    headings = ["claim", "criterion", "numbers", "by this criterion it"]
    found: list[Sheet] = []
    for place, here in result.places():
        arms = {arm: [t for t in here if t.method == arm] for arm in result.matrix.searched}
        for level, own in roles.at().items():
            rows = [list(row) for row in _rows(arms, own)]
            if "smoke" in place:
                rows = [[*row[:3], f"{OPEN}: smoke"] for row in rows]
            if rows:
                found.append((f"Claims: {', '.join((*place, level) if level else place)}", headings, rows))
    return found


def _rows(arms: dict[str, list[Finished]], roles: Roles) -> Iterator[tuple[str, str, str, str]]:
    whole, test = value(f"{CONTINUOUS}/{ANEW}"), value(TRAINED_TEST)
    if base := arms.get(roles.single, []):
        yield _discretisation(base, whole)
    if base and (penalised := arms.get(roles.penalised, [])):
        names = "C2: an entropy penalty costs the supernet", "continuous score without it less that with it > 2 sigma"
        yield (*names, *_more(base, penalised, whole, 2))
    if base and (two := arms.get(roles.two_stage, [])):
        yield (
            "C3: one stage needs no decoding",
            "test score >= that of two stages, equal epochs",
            *_more(base, two, test, 0),
        )
        yield _cost(base, two)
    if base and (random := arms.get(roles.random, [])):
        yield _trained(base, random)
    if fixed := arms.get(roles.fixed, []):
        yield from _splits(
            fixed, {name: trials for name in roles.splits if (trials := arms.get(name, []))}, roles.fixed
        )


def _cost(base: Sequence[Finished], two: Sequence[Finished]) -> tuple[str, str, str, str]:
    """C6: seconds of search and training; multiply-adds of the networks that each arm ends with are told beside them."""
    seconds, adds = ([mean(f(t) for t in trials) for trials in (base, two)] for f in (_seconds, _multiply_adds))
    told = (
        f"{seconds[0]:.0f} s against {seconds[1]:.0f} s of search and training; networks of {adds[0] / 1e6:.2f} M against "
        f"{adds[1] / 1e6:.2f} M multiply-adds; {len(base)} and {len(two)} seeds"
    )
    verdict = HOLDS if seconds[0] <= seconds[1] else NOT
    if min(len(base), len(two)) < 2:
        verdict = f"{OPEN}: too few seeds"
    return "C6: at no more cost", "seconds <= those of two stages", told, verdict


def _trained(base: Sequence[Finished], random: Sequence[Finished]) -> tuple[str, str, str, str]:
    """Ours: trained alpha against random alpha of the same mean entropy, by test score, seed by seed."""
    scores = [{t.seed: v for t in trials if (v := t.values.get(TRAINED_TEST)) is not None} for trials in (base, random)]
    entropies = " and ".join(
        f"{mean(values):.1f}" if (values := list(numbers(trials, value("entropy")))) else "?"
        for trials in (base, random)
    )
    claim, criterion = (
        "Ours: trained alpha beats random alpha of its entropy",
        "95 % interval of paired test scores above 0",
    )
    found = stats.difference(*scores)
    if found is None or found.interval is None:
        return claim, criterion, f"entropy {entropies} %", f"{OPEN}: too few seeds"
    low, high = found.interval
    told = f"{found.mean:+.2f} [{low:.2f}, {high:.2f}] points over {found.n} seeds; entropy {entropies} %"
    return claim, criterion, told, HOLDS if low > 0 else NOT


def _seconds(trial: Finished) -> float:
    return trial.seconds + trial.train_seconds


def _multiply_adds(trial: Finished) -> float:
    return float(trial.multiply_adds)


def _splits(
    fixed: Sequence[Finished], splits: dict[str, list[Finished]], name: str
) -> Iterator[tuple[str, str, str, str]]:
    """C7: it holds where at least one split passes; before the splits one by one, what that comes to."""
    rows = [_split(split, trials, fixed, name) for split, trials in splits.items()]
    if not rows:
        return
    passed = [split for split, row in zip(splits, rows, strict=True) if row[3] == HOLDS]
    judged_ones = [row for row in rows if not row[3].startswith(OPEN)]
    verdict = HOLDS if passed else NOT if judged_ones else rows[0][3]
    told = f"{len(passed)} of {len(rows)}" + (f": {', '.join(passed)}" if passed else "")
    yield "C7: another split is better and keeps from degenerating", "at least one split passes", told, verdict
    yield from rows


def _split(split: str, trials: Sequence[Finished], fixed: Sequence[Finished], name: str) -> tuple[str, str, str, str]:
    """One split against the fixed one. Not judged where the share without weights was not measured."""
    told, verdict = _more(trials, fixed, value(TRAINED_TEST), 2)
    free = [list(numbers(them, last(FREE_SHARE))) for them in (trials, fixed)]
    if all(free):
        told += f"; free share {mean(free[0]):.2f} against {mean(free[1]):.2f}"
        verdict = NOT if verdict == HOLDS and mean(free[0]) >= mean(free[1]) else verdict
    elif verdict == HOLDS:
        verdict = f"{OPEN}: degeneration was not measured"
    criterion = f"test score less that of {name} > 2 sigma, with a lower share without weights"
    return f"its arm {split}", criterion, told, verdict


def _discretisation(base: Sequence[Finished], whole: Number) -> tuple[str, str, str, str]:
    """C1: the largest mean error of the usual decodings, statistics re-estimated, against the continuous score's spread."""
    claim, criterion = "C1: decoding an unregularised supernet costs", "error of a usual decoding > 3 sigma"
    scores = list(numbers(base, whole))
    errors = {name: list(numbers(base, error(f"{name}/{ANEW}"))) for name in USUAL}
    means = {name: mean(values) for name, values in errors.items() if values}
    if len(scores) < 2 or not means:
        return claim, criterion, ", ".join(f"{name} {m:.2f}" for name, m in means.items()), f"{OPEN}: too few seeds"
    sigma = stdev(scores)
    told = (
        ", ".join(f"{name} {m:.2f} ({len(errors[name])} seeds)" for name, m in means.items()) + f"; sigma {sigma:.2f}"
    )
    return claim, criterion, told, HOLDS if max(means.values()) > 3 * sigma else NOT


def _more(better: Sequence[Finished], worse: Sequence[Finished], number: Number, sigmas: float) -> tuple[str, str]:
    """True if the mean of one is more than `sigmas` sigma above that of the other, at least as large where that is 0; and the numbers."""
    mine, other = list(numbers(better, number)), list(numbers(worse, number))
    if min(len(mine), len(other)) < 2:
        return f"{len(mine)} and {len(other)} seeds", f"{OPEN}: too few seeds"
    sigma, difference = sqrt((stdev(mine) ** 2 + stdev(other) ** 2) / 2), mean(mine) - mean(other)
    holds = difference > sigmas * sigma if sigmas else difference >= 0
    told = f"{mean(mine):.2f} against {mean(other):.2f}: {difference:+.2f}; sigma {sigma:.2f}, {len(mine)} and {len(other)} seeds"
    return told, HOLDS if holds else NOT
