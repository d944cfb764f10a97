"""What oche claims of a run, said once: terminal and report take figures and sentences from here, read from the run's log.

Scores are shares in [0, 1] in the log and in Python, and per cent in words. A relative improvement is in per cent everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TITLES = {
    "accuracy": "accuracy",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_f1": "F1",
    "exact_match": "exact match",
    "r2": "R2",
    "rmse": "RMSE",
    "mae": "MAE",
}
Interval = Sequence[float]


UNITS = ("r2", "rmse", "mae")
"""Metrics that are no shares."""


def in_words(name: str, value: float, digits: int = 2) -> str:
    """A metric's value: a share in per cent, all else as it is.

    >>> in_words("accuracy", 0.25), in_words("r2", -0.5)
    ('25.00%', '-0.5')
    """
    return f"{value:.4g}" if name in UNITS else f"{value:.{digits}%}"


def percent(share: float, digits: int = 2) -> str:
    """A share of 1 in words.

    >>> percent(0.12345)
    '12.35 %'
    """
    return f"{100 * share:.{digits}f} %"


def better(interval: Interval) -> str:
    """The one rule: a difference counts where its 95 % interval excludes 0.

    >>> better((0.1, 2.0)), better((-2.0, -0.1)), better((-1.0, 1.0))
    ('better than', 'worse than', 'not told apart from')
    """
    low, high = interval
    return "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"


def improvement(record: Mapping[str, object]) -> str:
    """The relative improvement over random cells of a "comparison" record, with its interval and verdict, or why there is none.

    >>> improvement({"seeds": 3, "relative_improvement": 4.96, "relative_improvement_interval": [-11.88, 21.8]})
    '+4.96 % [-11.88, +21.80]: not told apart from random cells with these seeds'
    """
    mean, ends = record.get("relative_improvement"), record.get("relative_improvement_interval")
    if not isinstance(mean, int | float):
        return ""
    if not isinstance(ends, list | tuple):
        return f"{mean:+.2f} %"
    low, high = ends
    if record.get("seeds") == 1:
        return f"{mean:+.2f} % with one seed, which says nothing about chance"
    return f"{mean:+.2f} % [{low:+.2f}, {high:+.2f}]: {better((low, high))} random cells with these seeds"


def beside(record: Mapping[str, object], prefix: str = "") -> str:
    """What makes a score honest: that of always naming the commonest class, and a warning where the score is not above it.

    `record` has `metric` (accuracy if absent), the score under `prefix` + metric, and `floor`; empty where it has no floor.

    >>> beside({"test_accuracy": 0.9, "floor": 0.2}, "test_")
    'always naming the commonest class: 20.00 %'
    >>> beside({"test_accuracy": 0.2083, "floor": 0.2083, "predicted": 1, "classes": 5}, "test_")
    'no better than always naming the commonest class (20.83 %); it names 1 of 5 classes'
    """
    floor = record.get("floor")
    if floor is None:
        return ""
    score = _number(record[prefix + str(record.get("metric", "accuracy"))])
    few = record.get("predicted") is not None and record.get("predicted") != record.get("classes")
    always = {"mean_f1": "always giving each label its commoner value", "r2": "always answering the mean"}.get(
        str(record.get("metric")), "always naming the commonest class"
    )
    named = f"; it names {record['predicted']} of {record['classes']} classes" if few else ""
    if score <= _number(floor) + 1e-9:
        return f"no better than {always} ({percent(_number(floor))}){named}"
    return f"{always}: {percent(_number(floor))}{named}"


def warnings(records: Sequence[Mapping[str, object]]) -> list[str]:
    """Sentences that a reader must not miss: the monitor's last warning, a supernet or a network at the floor."""
    found = [str(r["warning"]) for r in records if r.get("warning")][-1:]
    for record in records:
        kind, prefix = record.get("kind"), {"supernet": "val_", "network": "test_", "trained": "test_", "test": ""}
        if kind in prefix and (said := beside(record, prefix[str(kind)])).startswith("no better"):
            who = {
                "supernet": "The supernet",
                "trained": f"A trained network ({record.get('cell')}, seed {record.get('seed')})",
            }
            found.append(f"{who.get(str(kind), 'The network')} is {said}: it has not learned.")
    return list(dict.fromkeys(found))


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
