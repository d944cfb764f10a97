"""The first screen of a report: what was found in one sentence, its numbers, and the cells that the epochs would have chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from oche.errors import UserError
from oche.genotype import Genotype
from oche.report import claims
from oche.report.draw import draw
from oche.report.figures import Record, number
from oche.report.samples import interval
from oche.run import Run

Z = 1.959964
"""The normal quantile of 95 % intervals."""

MOST = 16
"""Cells of earlier epochs that a page has at most, so that it stays small."""


def headline(run: Run, records: Sequence[Record]) -> str:
    """What the network reaches on test images, with an interval and beside what takes no network; "" before anything is tested."""
    for kind, prefix in (("test", ""), ("network", "test_")):
        found = [r for r in records if r.get("kind") == kind]
        metric = next((name for name in SAID if found and number(found[-1].get(prefix + name)) is not None), None)
        if metric == "accuracy":
            return _tested(found[-1], prefix, records)
        if metric:
            return _scored(found[-1], prefix, metric, interval(run))
    return ""


SAID = {  # metric -> (what is said of it, what takes no network)
    "accuracy": ("", ""),
    "miou": (
        "What the network paints on the test images overlaps with what is there by {} (mIoU, the mean over the classes)",
        "always naming the commonest class",
    ),
    "mean_f1": (
        "The network finds the labels of the test images with an F1 of {} (the mean over the labels; 100 % finds all and invents none)",
        "always giving each label its commoner value",
    ),
    "r2": (
        "The network's numbers for the test images have an R2 of {} (1 is exact, 0 is no better than the mean)",
        "always answering the mean",
    ),
}


def _scored(record: Record, prefix: str, metric: str, ends: tuple[float, float] | None) -> str:
    """The sentence of a score that is no share of images."""
    value, floor = number(record.get(prefix + metric)), number(record.get("floor"))
    assert value is not None
    what, without = SAID[metric]

    def form(x: float) -> str:
        return f"{x:.3f}" if metric in claims.UNITS else f"{100 * x:.1f} %"

    bounds = f" [{', '.join(form(end).removesuffix(' %') for end in ends)}]" if ends else ""
    said = what.format(form(value) + bounds)
    if floor is None:
        return f"{said}."
    clear = "better than" if (ends[0] if ends else value) > floor else "not clearly better than"
    return f"{said}: {clear} {without} ({form(floor)})."


def _tested(record: Record, prefix: str, records: Sequence[Record]) -> str:
    share, floor = number(record.get(prefix + "accuracy")), number(record.get("floor"))
    assert share is not None
    matrix = next((r.get("matrix") for r in reversed(records) if r.get("kind") == "confusion"), None)
    images = sum(sum(row) for row in matrix) if isinstance(matrix, list) else 0
    said = f"The network names {100 * share:.1f} % of the test images rightly"
    if images:
        low, high = wilson(share, images)
        said = f"The network names {100 * share:.1f} % of {images:,.0f} test images rightly [{100 * low:.1f}, {100 * high:.1f}]"
    if floor is None:
        return f"{said}."
    clear = "better than" if (wilson(share, images)[0] if images else share) > floor else "not clearly better than"
    return f"{said}: {clear} always naming the commonest class ({100 * floor:.1f} %)."


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share of `count` images (Wilson, 1927).

    >>> low, high = wilson(0.9, 100)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    """
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def costs(card: Mapping[str, object]) -> list[tuple[str, str]]:
    """What a network costs, (value, what it is), as its card tells; nothing of an empty one.

    >>> costs({"parameters": 78042, "memory": 131072})
    [('78,042', 'parameters'), ('131.1 KB', 'peak memory of one image')]
    """
    forms = {
        "parameters": ("{:,.0f}", "parameters", 1.0),
        "multiply_adds": ("{:,.2f} M", "multiply-adds per image", 1e-6),
        "memory": ("{:,.1f} KB", "peak memory of one image", 1e-3),
        "size": ("{:,.1f} KB", "size as a file", 1e-3),
    }
    found = [
        (form.format(by * value), what)
        for name, (form, what, by) in forms.items()
        if (value := number(card.get(name))) is not None
    ]
    time, _, how = claims.latency(card).partition(" [")
    if time:
        found.append((time, f"latency [{how}" if how else "latency"))
    quantised = claims.int8(card).removeprefix("int8: ")
    return [*found, (quantised, "in int8")] if quantised else found


def card_of(run: Run) -> Mapping[str, object]:
    """The card of the network in the run's folder, empty without one or where it is damaged."""
    name = f"{Run.NETWORK}/card.json"
    try:
        card = json.loads(run.read(name)) if run.has(name) else {}
    except ValueError:
        return {}
    return card if isinstance(card, dict) else {}


def frames(run: Run, records: Sequence[Record]) -> list[tuple[str, bytes]]:
    """The cells that the epochs would have chosen, (epochs in words, SVG), those of equal epochs once; empty where none changed."""
    epochs = [int(e) for r in records if r.get("kind") == "epoch" and (e := number(r.get("epoch"))) is not None]
    found: list[tuple[int, Genotype]] = []
    for epoch in epochs:
        if run.has(Run.genotype(epoch)):
            try:
                found.append((epoch, Genotype.from_json(run.read(Run.genotype(epoch)).decode(errors="replace"))))
            except UserError:  # a damaged one tells nothing
                continue
    spans = [[epoch for epoch, _ in same] for _, same in groupby(found, key=lambda pair: pair[1].hash)]
    if len(spans) < 2:
        return []
    step = -(-len(spans) // MOST)
    chosen = spans[::-1][::step][::-1]  # the last one is among them
    cells = dict(found)
    return [(_span(span), draw(cells[span[0]])) for span in chosen]


def _span(epochs: Sequence[int]) -> str:
    return f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"


def queried(config: Mapping[str, object]) -> str:
    """What the best score of a query is: of the run's own data, of a table's, or of a network that is not trained.

    >>> queried({"method": {"evaluator": {"type": "TableScore", "metric": "cifar10/valid"}}})
    'best cifar10/valid of a query, by the table'
    """
    method = config.get("method")
    evaluator = method.get("evaluator") if isinstance(method, Mapping) else None
    known = evaluator if isinstance(evaluator, Mapping) else {}
    if known.get("type") == "TableScore":
        return f"best {known.get('metric')} of a query, by the table"
    if known.get("type") == "ZeroCost":
        return f"best {known.get('score')} of a query, whose network is not trained"
    return "best validation score of a query"


def facts(run: Run, records: Sequence[Record], config: Mapping[str, object]) -> list[tuple[str, str]]:
    """The numbers one asks for first, (value, what it is)."""
    facts: list[tuple[str, str]] = []

    def add(kind: str, key: str, text: str, what: str, factor: float = 1.0) -> None:
        values = [value for r in records if r.get("kind") == kind and (value := number(r.get(key))) is not None]
        if values:
            facts.append((text.format(factor * values[-1]), what))

    compared = next((claims.TITLES[str(r["metric"])] for r in records if r.get("metric") in claims.TITLES), "accuracy")
    share, by = ("{:.3f}", 1) if compared == "R2" else ("{:.2f} %", 100)
    add("test", "accuracy", "{:.2f} %", "test accuracy", 100)
    add("test", "miou", "{:.2f} %", "test mIoU", 100)
    add("test", "pixel_accuracy", "{:.2f} %", "test pixel accuracy", 100)
    add("test", "mean_f1", "{:.2f} %", "test F1, mean over labels", 100)
    add("test", "exact_match", "{:.2f} %", "test images with all labels right", 100)
    add("test", "r2", "{:.3f}", "test R2")
    add("test", "rmse", "{:.4g}", "test RMSE")
    add("test", "mae", "{:.4g}", "test MAE")
    facts += costs(card_of(run))
    add("comparison", "found_mean", share, f"test {compared}, found cell", by)
    add("comparison", "random_mean", share, f"test {compared}, random cells", by)
    add("comparison", "relative_improvement", "{:+.2f} %", "relative improvement over random")
    add("supernet", "val_accuracy", "{:.2f} %", "supernet, validation accuracy", 100)
    add("supernet", "val_miou", "{:.2f} %", "supernet, validation mIoU", 100)
    add("supernet", "val_mean_f1", "{:.2f} %", "supernet, validation F1", 100)
    add("supernet", "val_r2", "{:.3f}", "supernet, validation R2")
    add("test", "loss", "{:.4f}", "test loss")
    queries = sum(r.get("kind") == "query" for r in records)
    if queries:
        facts.append((str(queries), "queries"))
    add("query", "best", "{:.2f}", queried(config))
    epochs = [r for r in records if r.get("kind") in ("epoch", "train_epoch")]
    seconds = sum(number(r.get("seconds")) or 0.0 for r in epochs)
    memory = max((number(r.get("memory_mib")) or 0.0 for r in epochs), default=0.0)
    if epochs:
        facts.append((str(len(epochs)), "epochs"))
    if seconds:
        facts.append((duration(seconds), "spent in these epochs"))
    if memory:
        facts.append((f"{memory:,.0f} MiB", "peak memory while it ran"))
    return facts


def limits(records: Sequence[Record]) -> list[tuple[str, float]]:
    """(cost and limit in words, how full it is) of each limit that the network keeps; 1 is full.

    >>> said = "60,000 of 80,000 parameters (75 %), 8 of 10 multiply-adds (80 %)"
    >>> limits([{"kind": "fitted", "words": said, "shares": {"parameters": 0.75, "multiply_adds": 0.8}}])
    [('60,000 of 80,000 parameters (75 %)', 0.75), ('8 of 10 multiply-adds (80 %)', 0.8)]
    """
    for record in [r for r in records if r.get("kind") == "fitted"][-1:]:
        shares = claims.shares(record)
        words = str(record.get("words", "")).split(", ")
        if len(words) != len(shares):  # a log from before
            words = [f"{100 * share:.0f} % of the limit of {name}" for name, share in shares]
        return [(said, share) for said, (_, share) in zip(words, shares, strict=True)]
    return []


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42.4), duration(3700)
    ('42 s', '1 h 02 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
