"""What is printed after a run: the result, the comparison with random cells, warnings, and what to type next."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from oche.api.terminal import brief, console, seed_line
from oche.report import claims
from oche.report.claims import TITLES, UNITS, in_words
from oche.run import Run

if TYPE_CHECKING:
    from oche.api.search import Found
    from oche.api.train import Trained
    from oche.training.evaluate import Score
    from oche.training.export import Loaded


def show_found(found: Found, as_json: bool) -> None:
    """Prints a search's result."""
    if as_json:
        comparison = claims.with_verdicts(found.comparison.record()) if found.comparison else None
        print(
            json.dumps(
                _result(found.run) | {"genotype": json.loads(found.genotype.to_json()), "comparison": comparison}
            )
        )
        return
    from oche.api.pick import best
    from oche.report.draw import draw_text
    from oche.spaces.edges import TRAINED

    seeds = [record for record in found.run.records() if record.get("kind") == "seed"]
    for record in seeds:
        mark = "picked " if record is best(seeds) else ""
        console.print(f"{mark}{seed_line(record)}", soft_wrap=True)
    console.print(f"\nfound  {brief(str(found.genotype))}", soft_wrap=True)
    console.print(draw_text(found.genotype))
    if found.comparison:
        console.print(_comparison(found))
        for verdict in claims.verdicts(found.comparison.record()):  # R2 and F1 may be 0 or less, and then one says less
            console.print(verdict, soft_wrap=True)
    show_claims(found.run.records())
    path = found.run.path
    console.print(f"\nEverything lies in {path}; open {path / Run.REPORT} for the pictures.", soft_wrap=True)
    if found.run.has(Run.NETWORK):
        on = " --inherit" if found.genotype.edge in TRAINED else ""  # its network is trained already
        console.print(f"Next: oche predict {path} IMAGES   oche export {path}   oche train {path}{on}", soft_wrap=True)
    else:
        console.print(f"Next: oche train {path}", soft_wrap=True)


def show_trained(trained: Trained, as_json: bool) -> None:
    """Prints a training's result."""
    tested = next((r for r in reversed([*trained.run.records()]) if r.get("kind") == "test"), {})
    if as_json:
        print(
            json.dumps(
                _result(trained.run) | {"test": {**trained.test.metrics, "loss": trained.test.loss, **_floor(tested)}}
            )
        )
        return
    path = trained.run.path
    metrics = ", ".join(
        f"test {TITLES.get(name, name)} {in_words(name, value)}" for name, value in trained.test.metrics.items()
    )
    console.print(f"\n{metrics}, loss {trained.test.loss:.4f}{claims.floored(tested)}", soft_wrap=True)
    show_claims(trained.run.records())
    console.print(f"Everything lies in {path}; open {path / Run.REPORT} for the pictures.", soft_wrap=True)
    console.print(f"Next: oche predict {path} IMAGES   oche export {path}   oche eval {path}", soft_wrap=True)


def _result(run: Run) -> dict[str, object]:
    """What the results of searches and trainings have in common: folder, report, network and warnings."""
    return {
        "run": str(run.path),
        "report": str(run.path / Run.REPORT),
        "network": str(run.file(Run.NETWORK)) if run.has(Run.NETWORK) else None,
        "warnings": claims.warnings(run.records()),
    }


def _floor(record: Mapping[str, object]) -> dict[str, object]:
    return {"floor": record["floor"]} if "floor" in record else {}


def show_claims(records: Sequence[Mapping[str, object]]) -> None:
    """Prints the IoU of each class, then all warnings, as the report has them."""
    for line in [claims.by_class(records), *(f"WARNING  {said}" for said in claims.warnings(records))]:
        if line:
            console.print(line, soft_wrap=True)


def show_latency(card: Mapping[str, object]) -> None:
    """Prints the latency of an exported network, and whether it is above its limit."""
    from oche.training.export import over_latency

    latency = claims.latency(card)
    for line in (latency and f"latency  {latency}", over_latency(card), claims.int8(card)):
        if line:
            console.print(line, soft_wrap=True)


def show_score(score: Score, network: Loaded, as_json: bool, unknown_data: str | None) -> None:
    """Prints what `oche eval` found, and the costs; `unknown_data` says that the data may be others than those of the training."""
    from oche.report.facts import costs
    from oche.tasks import TASKS
    from oche.training.evaluate import records_of

    for sentence in (*score.notes, *((unknown_data,) if unknown_data else ())):
        print(f"oche: {sentence}", file=sys.stderr)
    contract, told = network.contract, costs(network.card)
    task = next((kind() for kind in TASKS.values() if kind.metric == score.metric), None)
    records = records_of(score, task, contract.classes, contract.task)
    total, counted = sum(map(sum, score.confusion)), "pixels" if score.metric == "miou" else "images"
    if score.metric in ("mean_f1", "r2"):  # sums in place of a matrix: its last row or a column counts the images
        total = int(sum(score.confusion[-1]) if score.metric == "mean_f1" else score.confusion[-1][0])
    if as_json:
        table = {
            **score.metrics,
            "loss": score.loss,
            **_floor(records[0]),
            counted: total,
            "confusion": score.confusion,
        }
        iou = {str(r["class"]): r["iou"] for r in records if "iou" in r}
        print(
            json.dumps(
                {
                    **table,
                    **({"iou": iou} if iou else {}),
                    "costs": {k: v for v, k in told},
                    "warnings": claims.warnings(records),
                    **({"notes": score.notes} if score.notes else {}),
                }
            )
        )
        return
    metrics = ", ".join(f"{TITLES.get(name, name)} {in_words(name, value)}" for name, value in score.metrics.items())
    said = f"{metrics}, loss {score.loss:.4f}, on {total} {counted}{claims.floored(records[0])}"
    console.print(said, soft_wrap=True)
    console.print(", ".join(f"{what} {value}" for value, what in told), soft_wrap=True)
    show_claims(records)


def _comparison(found: Found) -> Table:
    """Found cell against random cells and rivals: the mean over seeds of the test accuracy, with 95 % intervals."""
    import numpy as np

    from oche.training.compare import interval

    assert found.comparison
    once = bool(
        found.comparison.leads
    )  # one network each: the sentence below has the interval of the difference, over images
    over = ", one network each" if once else ", mean over seeds [95 % interval]"
    table = Table(
        title=f"\ntest {TITLES.get(found.comparison.metric, found.comparison.metric)}{over}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in ("cell", "score") if once else ("cell", "mean", "interval", "each seed"):
        table.add_column(name, justify="left")
    name_of = found.comparison.metric
    rows = {**found.comparison.accuracies}
    if found.comparison.random:
        rows["random, mean"] = found.comparison.random
    for name, values in rows.items():
        low, high = interval(values)
        least = low if name_of in UNITS else max(low, 0)
        spread = (
            f"[{in_words(name_of, least)}, {in_words(name_of, min(high, 1))}]"
            if len(values) >= claims.FEWEST
            else "too few seeds"
        )
        mean = in_words(name_of, float(np.mean(values)))
        each = () if once else (spread, " ".join(in_words(name_of, v) for v in values))
        table.add_row(name, mean, *each)
    if found.comparison.floor is not None and name_of in claims.ALWAYS:
        table.add_row(claims.ALWAYS[name_of], in_words(name_of, found.comparison.floor))
    return table
