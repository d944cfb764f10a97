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

UNDECIDED = 0.999
"""Entropy of alpha, 1 where all candidates are alike, from which on it is undecided."""

FEW = 0.05
"""Share of the pixels below which they are few."""

MOST = 24
"""Classes that are listed one by one."""

CHEAPER = 0.9
"""Share of a rival's cost from which on a network that is as good is worth its search."""

FEWEST = 3
"""Seeds below which there is no interval and no verdict: Student's interval of two numbers is 13 times as wide as they are apart."""

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
    if few := _few(record):
        return f"{mean:+.2f} % {few}"
    return f"{mean:+.2f} % [{low:+.2f}, {high:+.2f}]: {better((low, high))} random cells with these seeds"


def _few(record: Mapping[str, object]) -> str:
    """What to say in the place of an interval where there are too few seeds, and it is not over images, else "".

    >>> _few({"seeds": 1}), _few({"seeds": 2}), _few({"seeds": 3}), _few({})
    ('with one seed, which says nothing about chance', 'with two seeds, which say nothing about chance', '', '')
    """
    if record.get("over") == "images":
        return ""
    return {
        1: "with one seed, which says nothing about chance",
        2: "with two seeds, which say nothing about chance",
    }.get(int(_number(record.get("seeds", FEWEST))), "")


def against_rivals(record: Mapping[str, object]) -> list[str]:
    """A sentence for each rival of a "comparison" record: the found network's lead, paired by seed, and what follows from it.

    >>> rival = {"title": "ResNet-8", "channels": 61, "parameters": 71_000, "multiply_adds": 700_000}
    >>> rival |= {"difference": -0.01, "difference_interval": [-0.02, 0.0]}
    >>> print(*against_rivals({"metric": "accuracy", "seeds": 3, "rivals": {"resnet8": rival}}))
    against ResNet-8 (71,000 parameters, 700,000 multiply-adds) -1.00 points [-2.00, +0.00]: not told apart from it with these seeds; \
take ResNet-8, which needs no search: oche train resnet8 --set space.channels=61

    Where the found network was kept as its search had trained it, the interval is over test images, and one training each is enough for it.

    >>> alone = {"title": "U-Net", "channels": 8, "parameters": 9_000, "multiply_adds": 500_000}
    >>> alone |= {"difference": -0.03, "difference_interval": [-0.05, -0.01]}
    >>> print(*against_rivals({"metric": "miou", "seeds": 1, "over": "images", "rivals": {"unet": alone}}))
    against U-Net (9,000 parameters, 500,000 multiply-adds) -3.00 points [-5.00, -1.00]: worse than it on images like the test images; \
take U-Net, which needs no search: oche train unet --set space.channels=8
    """
    rivals, unit = record.get("rivals"), "" if str(record.get("metric")) in UNITS else " points"
    left_out, again = record.get("left_out"), f" {record['again']}" if record.get("again") else ""
    said = [str(line) for line in left_out] if isinstance(left_out, list | tuple) else []
    for name, rival in rivals.items() if isinstance(rivals, Mapping) else ():
        mean, low, high = (
            (100 if unit else 1) * _number(v) for v in (rival["difference"], *rival["difference_interval"])
        )
        costs = f"{rival['parameters']:,} parameters, {rival['multiply_adds']:,} multiply-adds"
        lead = f"against {rival['title']} ({costs}) {mean:+.2f}{unit}"
        if few := _few(record):
            said.append(f"{lead} {few}")
            continue
        take = (
            f"take {rival['title']}, which needs no search: oche train {name}{again} "
            f"--set space.channels={rival['channels']}"
        )
        cheaper = "" if high < 0 else _cheaper(record.get("found_costs"), rival)
        then = "" if low > 0 else f"; the found network costs less: {cheaper}" if cheaper else f"; {take}"
        where = "on images like the test images" if record.get("over") == "images" else "with these seeds"
        said.append(f"{lead} [{low:+.2f}, {high:+.2f}]: {better((low, high))} it {where}{then}")
    return said


def _cheaper(found: object, rival: Mapping[str, object]) -> str:
    """The shares of a rival's parameters and multiply-adds that the found network has, "" unless it saves a tenth of one and adds none.

    >>> _cheaper({"parameters": 60, "multiply_adds": 8}, {"parameters": 60, "multiply_adds": 10})
    '100 % of its parameters, 80 % of its multiply-adds'
    """
    if not isinstance(found, Mapping):
        return ""
    shares = {key: _number(found[key]) / _number(rival[key]) for key in ("parameters", "multiply_adds")}
    if max(shares.values()) > 1 or min(shares.values()) > CHEAPER:
        return ""
    return ", ".join(f"{100 * share:.0f} % of its {key.replace('_', '-')}" for key, share in shares.items())


def verdicts(record: Mapping[str, object]) -> list[str]:
    """What a "comparison" record says, a sentence for the random cells and one for each rival."""
    gain = improvement(record)
    return [*([f"relative improvement over random cells {gain}"] if gain else []), *against_rivals(record)]


def with_verdicts(record: Mapping[str, object]) -> dict[str, object]:
    """A "comparison" record with what it says in words, as log, card and JSON have it."""
    return {**record, "verdicts": verdicts(record)}


ALWAYS = {
    "accuracy": "always naming the commonest class",
    "miou": "always naming the commonest class",
    "mean_f1": "always giving each label its commoner value",
    "r2": "always answering the mean",
}
"""Metric -> what reaches the floor."""


def floored(record: Mapping[str, object], digits: int = 2) -> str:
    """The floor in a few words to stand behind a score, "" where a record has none.

    >>> floored({"metric": "accuracy", "floor": 0.2083}), floored({"val_accuracy": 0.9})
    (' (always naming the commonest class: 20.83%)', '')
    """
    floor, metric = record.get("floor"), str(record.get("metric", "accuracy"))
    if floor is None or metric not in ALWAYS:
        return ""
    return f" ({ALWAYS[metric]}: {in_words(metric, _number(floor), digits)})"


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
    always = ALWAYS.get(str(record.get("metric")), ALWAYS["accuracy"])
    named = f"; it names {record['predicted']} of {record['classes']} classes" if few else ""
    if score <= _number(floor) + 1e-9:
        return f"no better than {always} ({percent(_number(floor))}){named}"
    return f"{always}: {percent(_number(floor))}{named}"


def warnings(records: Sequence[Mapping[str, object]]) -> list[str]:
    """Sentences that a reader must not miss.

    The monitor's last warning; numbers that were not finite; alpha that has hardly moved; a supernet or a network at the floor; a network
    that paints one class.
    """
    found = [str(r["warning"]) for r in records if r.get("warning")][-1:]
    found += [said for said in [rolled_back(records)] if said]
    found += [said for said in [unmoved(records)] if said]
    who, prefixes = {"supernet": "The supernet"}, {"supernet": "val_", "network": "test_", "test": ""}
    for record in records:
        kind = str(record.get("kind"))
        if kind in prefixes and (said := beside(record, prefixes[kind])).startswith("no better"):
            found.append(f"{who.get(kind, 'The network')} is {said}: it has not learned.")
        if kind == "confusion" and (said := one_class(record)) and "iou" in _keys(records, "class"):
            found.append(said)
    return list(dict.fromkeys([*found, *unlearned(records)]))


def rolled_back(records: Sequence[Mapping[str, object]]) -> str:
    """Says how often numbers were not finite, so that a run went back and on at smaller rates; "" where they always were.

    >>> rolled_back([{"kind": "rolled_back", "what": "the loss", "rates": 0.5}, {"kind": "trained", "cell": "random 1", "rolled_back": 2}])
    'Numbers were not finite (the loss; 2 times in training random 1): it went back, and on at smaller rates (0.5 of what was asked for).'
    """
    own = [r for r in records if r.get("kind") == "rolled_back"]
    told = [str(r.get("what")) for r in own]
    beside = [r for r in records if r.get("kind") == "trained" and r.get("rolled_back")]
    told += [f"{r['rolled_back']} time{'s' * (r['rolled_back'] != 1)} in training {r.get('cell')}" for r in beside]
    rates = f" ({_number(own[-1]['rates']):g} of what was asked for)" if own else ""
    return f"Numbers were not finite ({'; '.join(told)}): it went back, and on at smaller rates{rates}." if told else ""


def unlearned(records: Sequence[Mapping[str, object]]) -> list[str]:
    """A sentence on the networks of a comparison that have not learned; none where all have.

    >>> one = {"kind": "trained", "cell": "found", "seed": 0, "test_accuracy": 0.2, "floor": 0.2, "classes": 5, "predicted": 1}
    >>> print(*unlearned([one]))
    A trained network (found, seed 0) is no better than always naming the commonest class (20.00 %); it names 1 of 5 classes: \
it has not learned.
    >>> print(*unlearned([one, one | {"test_accuracy": 0.9}, one | {"cell": "random 1"}]))
    2 of 3 trained networks (found, random 1) are no better than always naming the commonest class (20.00 %): they have not learned.
    """
    trained = [r for r in records if r.get("kind") == "trained"]
    low = [(r, said) for r in trained if (said := beside(r, "test_")).startswith("no better")]
    if len(low) < 2:
        return [
            f"A trained network ({r.get('cell')}, seed {r.get('seed')}) is {said}: it has not learned."
            for r, said in low
        ]
    cells = ", ".join(dict.fromkeys(str(r.get("cell")) for r, _ in low))
    return [
        f"{len(low)} of {len(trained)} trained networks ({cells}) are {low[0][1].partition(';')[0]}: they have not learned."
    ]


def moved(record: Mapping[str, object]) -> str:
    """Says how far a search has moved what its cell is read from; "" for a method that reads it from elsewhere.

    >>> moved({"alpha_moved": 0.5}), moved({"strengths_moved": 0.0125}), moved({"strengths_moved": 0.0})
    ('; alpha moved by 0.500 (rms)', '; strengths of operations moved by 0.013 (rms, of 1)', '')
    """
    if "alpha_moved" in record:
        return f"; alpha moved by {_number(record['alpha_moved']):.3f} (rms)"
    strengths = _number(record.get("strengths_moved", 0.0))
    return f"; strengths of operations moved by {strengths:.3f} (rms, of 1)" if strengths else ""


def unmoved(records: Sequence[Mapping[str, object]]) -> str:
    """A warning where alpha was never stepped though the method learns it, or is as undecided as at its beginning, else "".

    >>> unmoved([{"kind": "epoch", "arch_loss": 0.7, "entropy": 0.9996}, {"kind": "supernet", "alpha_moved": 0.0161}])
    'Alpha hardly moved (0.016 rms) and is undecided (entropy 1.000 of 1): a cell read from it is little better than one drawn at random; \
search longer, or set a larger arch_optimizer.lr.'
    >>> unmoved([{"kind": "epoch", "phase": "warm-up", "arch_loss": None}])[:29]
    'Alpha was held in every epoch'
    """
    epochs = [r for r in records if r.get("kind") == "epoch"]
    moved = [r["alpha_moved"] for r in records if r.get("kind") == "supernet" and "alpha_moved" in r]
    entropy = epochs[-1].get("entropy") if epochs else None
    stepped = any(r.get("arch_loss") is not None for r in epochs)
    if epochs and all(r.get("phase") == "warm-up" for r in epochs):
        return "Alpha was held in every epoch, all of them warm-up: the cell is read from the values that alpha began with; search longer."
    if not stepped or not moved or not isinstance(entropy, int | float) or entropy < UNDECIDED:
        return ""
    kept = any(r.get("kind") == "network" for r in records)
    then = "a cell read from it is little better than one drawn at random"
    then = "the network that is kept mixes all its candidates nearly alike" if kept else then
    return (
        f"Alpha hardly moved ({_number(moved[-1]):.3f} rms) and is undecided (entropy {entropy:.3f} of 1): {then}; search longer, or "
        "set a larger arch_optimizer.lr."
    )


def one_class(record: Mapping[str, object]) -> str:
    """A warning where nearly all pixels of a "confusion" record are taken for one class and nearly none of the others are right, else "".

    >>> one_class({"classes": ["ground", "crack"], "matrix": [[9899, 1], [99, 1]]})
    "The network paints 99.98 % of the pixels as 'ground' and finds 1.00 % of all others: its score says no more than that."
    >>> one_class({"classes": ["ground", "crack"], "matrix": [[9890, 10], [20, 80]]})
    ''
    """
    matrix, classes = record.get("matrix"), record.get("classes")
    if not isinstance(matrix, list) or not isinstance(classes, list) or len(matrix) != len(classes):
        return ""
    painted = [sum(column) for column in zip(*matrix, strict=True)]
    most, total = max(range(len(painted)), key=painted.__getitem__), sum(painted)
    others = total - sum(matrix[most])
    right = sum(row[n] for n, row in enumerate(matrix) if n != most)
    if not others or painted[most] < (1 - FEW) * total or right > FEW * others:
        return ""
    return (
        f"The network paints {percent(painted[most] / total)} of the pixels as {str(classes[most])!r} and finds {percent(right / others)} "
        "of all others: its score says no more than that."
    )


def by_class(records: Sequence[Mapping[str, object]]) -> str:
    """The IoU of each class on the test images, "" without masks; of many classes the worst.

    >>> by_class([{"kind": "class", "class": "sky", "iou": 0.9}, {"kind": "class", "class": "pole", "iou": None}])
    'IoU by class: sky 90.00 %, pole not there'
    """
    rows = [r for r in records if r.get("kind") == "class" and "iou" in r]
    worst = rows if len(rows) <= MOST else sorted(rows, key=lambda r: 2.0 if r["iou"] is None else _number(r["iou"]))
    said = [f"{r['class']} {'not there' if r['iou'] is None else percent(_number(r['iou']))}" for r in worst[:MOST]]
    which = "" if len(rows) <= MOST else f", the worst {MOST} of {len(rows)}"
    return f"IoU by class{which}: {', '.join(said)}" if said else ""


def _keys(records: Sequence[Mapping[str, object]], kind: str) -> set[str]:
    return {key for record in records if record.get("kind") == kind for key in record}


def shares(record: Mapping[str, object]) -> list[tuple[str, float]]:
    """(cost, how full its limit is) of a "fitted" record; 1 is full.

    >>> shares({"shares": {"multiply_adds": 0.5}})
    [('multiply-adds', 0.5)]
    """
    found = record.get("shares")
    return [(str(k).replace("_", "-"), _number(v)) for k, v in found.items()] if isinstance(found, Mapping) else []


def latency(card: Mapping[str, object]) -> str:
    """The latency that a network's card tells, or why there is none; "" for a card from before.

    >>> latency({"latency": {"measured": {"median_ms": 0.35, "low_ms": 0.34, "high_ms": 0.4, "runtime": "onnxruntime 1.22"}}})
    '0.350 ms [0.340, 0.400] per image, onnxruntime 1.22 on one thread'
    >>> latency({"latency": {"measured": "not measured: pip install 'oche[onnx]'"}})
    "not measured: pip install 'oche[onnx]'"
    """
    told = card.get("latency")
    found = told.get("measured") if isinstance(told, Mapping) else None
    if not isinstance(found, Mapping):
        return str(found or "")
    median, low, high = (_number(found[name]) for name in ("median_ms", "low_ms", "high_ms"))
    return f"{median:.3f} ms [{low:.3f}, {high:.3f}] per image, {found['runtime']} on one thread"


def int8(card: Mapping[str, object]) -> str:
    """What int8 changed in a network, as its card tells; "" where it was not quantised.

    >>> times = {"before": {"median_ms": 0.3}, "after": {"median_ms": 0.25}}
    >>> sizes = {"before": 400_000, "after": 120_000}
    >>> int8({"int8": {"metric": "accuracy", "score": {"before": 0.91, "after": 0.905}, "size": sizes, "latency": times}})
    'int8: accuracy 91.00% -> 90.50%, file 400.0 KB -> 120.0 KB, latency 0.300 ms -> 0.250 ms'
    """
    told = card.get("int8")
    if not isinstance(told, Mapping):
        return ""
    ends = ("before", "after")
    name = str(told["metric"])
    score = " -> ".join(in_words(name, _number(told["score"][end])) for end in ends)
    size = " -> ".join(f"{_number(told['size'][end]) / 1e3:.1f} KB" for end in ends)
    latency = " -> ".join(f"{_number(told['latency'][end]['median_ms']):.3f} ms" for end in ends)
    return f"int8: {TITLES.get(name, name)} {score}, file {size}, latency {latency}"


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
