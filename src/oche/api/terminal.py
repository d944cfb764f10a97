"""What a run says on the terminal while it runs: the table before it, the bar and the lines during it.

Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from oche.api.beforehand import changes, compared, how_it_runs, images, length, no_rivals, shared, split, times
from oche.genotype import Genotype
from oche.plan.within import spoken
from oche.report.claims import TITLES, floored, in_words, moved
from oche.run import Listener, Run

if TYPE_CHECKING:
    from oche.api.expected import Expected
    from oche.data import Data
    from oche.plan.resolve import Plan
    from oche.training.train import Training

console = Console(highlight=False, markup=False, emoji=False)
"""Takes every word literally, whatever brackets it holds."""

SPEED_OVER = 600.0
"""Seconds over which the speed is taken that tells the time left."""


class Show:
    """Prints a run's beginning, progress and end. `quiet` leaves the end only."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.every = 1
        self.part = self.best = ""
        self.counts: dict[str, int] = {}
        self.weights: dict[str, float] = {}
        self.trained = 0
        self.searched, self.searches = 0, 1
        self.aside = (0.0, 0.0)

    def preflight(self, plan: Plan, expected: Expected | None, folder: str) -> None:
        """The table before a search: what it will do, what the budget changed, and what it will cost."""
        if self.quiet:
            return
        from oche.data import for_training
        from oche.search.searcher import as_searcher
        from oche.spaces.limits import LIMITED

        request, space = plan.request, plan.space
        rows = data_rows(plan.data)
        rows += [("split", "test images are kept aside; " + split(plan))]
        rows += [("chosen", plan.chosen)] if plan.chosen else []
        rows += [("method", f"{plan.searcher.name}, {length(plan)} ({request.budget}: {plan.source})")]
        rows += [("budget sets" if n == 0 else "", line) for n, line in enumerate(changes(plan))]
        rows += [("space", f"{space.name}: {space.cardinality():,} genotypes")]
        rows += [("", note) for note in space.notes()]
        if plan.limits:
            words = ", ".join(
                f"{round(most) if most >= 1000 else most:,} {LIMITED[name][1]}" for name, most in plan.limits.items()
            )
            width = getattr(space, "channels", None)
            rows += [("limits", f"at most {words}" + (f"; searched at {width} channels" if width else ""))]
        rows += [(plan.data.things, line) for line in images(plan)]
        if expected and (estimate := expected.search):
            rows += [("supernet", f"{estimate.parameters:,} parameters, {estimate.trainable:,} of them learn")]
            rows += [("cells", "; ".join(f"{n} {how_it_runs(how)}" for how, n in estimate.cells.items()))]
            cost = f"{estimate.steps} steps of {1000 * estimate.step_seconds:.0f} ms"
            rows += [("cost", f"about {expected.memory_mib:.0f} MiB and {spoken(estimate.seconds)} ({cost})")]
        rows += [("table", plan.watch.told())] if plan.watch.told() else []
        if request.seeds > 1:
            last = request.seed + request.seeds - 1
            each = f"a search each at that cost; each cell is trained ({request.protocol})"
            rows += [("seeds", f"{request.seed} to {last}, {each}")]
            rows += [("", f"and the best on {request.pick} images is picked; all see the same images")]
        if as_searcher(plan.searcher).keeps_weights:
            rows += [("then", "keeps the supernet's weights: the network that was searched is the result")]
        if plan.compare or plan.rivals:
            rows += [("then", compared(plan))]
            rows += [
                ("", f"training: {for_training(plan.data, plan.protocol.cutout, plan.protocol.policy).describe()}")
            ]
        rows += [] if plan.rivals else [("rivals", no_rivals(plan))]
        rows += times(plan, expected) if expected else []
        processes = shared(plan.batch, plan.fabric.world_size, request.sync_batch_norm)
        said = f"{request.threads} thread(s), precision {request.precision}, seed {request.seed}"
        rows += [("device", f"{plan.fabric.device}{processes}, {said}"), ("run", folder)]
        console.print(rows_table(rows))

    def training_plan(self, training: Training, run: Run) -> None:
        if self.quiet:
            return
        from oche.data import for_training
        from oche.spaces.cost import cost

        protocol = training.protocol
        rows = data_rows(training.data)
        rows += [("genotype", brief(str(training.genotype)))]
        rows += [("network", f"{cost(training.space, training.genotype)}")]
        if training.earlier:
            rows += [("weights", f"as {sum(training.earlier)} epochs left them; momentum begins at 0")]
        elif training.start is not None:
            rows += [("weights", "begin with those of the run's network")]
        rows += [("", note) for note in training.space.notes() if protocol.auxiliary]
        rows += [(training.data.things, for_training(training.data, protocol.cutout, protocol.policy).describe())]
        more = " more" if training.earlier else ""
        rows += [("protocol", f"{protocol.epochs} epochs{more}, batch {protocol.batch} ({protocol.source})")]
        rate = f"{protocol.lr(0.0):g} to {protocol.lr(1.0):g}"
        rows += [("rate", f"{rate}, {type(protocol.lr).__name__}; `--set train.lr.start=...` sets it")] if more else []
        processes = shared(protocol.batch, training.fabric.world_size, training.sync)
        rows += [("device", f"{training.fabric.device}{processes}, seed {training.seed}"), ("run", str(run.path))]
        console.print(rows_table(rows))

    def search(self, plan: Plan, expected: Expected | None = None) -> Progress:
        """The bar of a search; with what it is expected to take, it fills and tells the time left over the whole command."""
        trained = plan.compare_seeds if plan.compare or plan.rivals else 0
        self.counts = {"search": plan.epochs, "compare": (1 + plan.compare + len(plan.rivals)) * trained}
        search, training = expected.seconds if expected else (float(self.counts["search"]), 0.0)
        self.weights = {"search": search, "compare": training}
        return self._progress("search", plan.epochs, search + training)

    def training(self, epochs: int | None = None) -> Progress:
        """The bar of a training."""
        self.counts = {"train": epochs or 0}
        self.weights = {"train": float(epochs or 0)}
        return self._progress("train", epochs, self.weights["train"])

    def _progress(self, part: str, epochs: int | None, total: float) -> Progress:
        self.part = part
        self.every = max(1, (epochs or 1) // 10) if console.is_terminal else 1  # piped, a line is all that there is
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}", markup=False),
        )
        self.bar = Progress(
            *columns, console=console, transient=True, disable=self.quiet, speed_estimate_period=SPEED_OVER
        )
        self.task = self.bar.add_task(part, total=total or None, said="", count="")
        return self.bar

    def _done(self, share: float, count: str) -> None:
        """Moves the bar to a share of the present part; parts before it are done."""
        assert self.bar is not None
        before = 0.0
        for part, weight in self.weights.items():
            if part == self.part:
                break
            before += weight
        done = before + share * self.weights.get(self.part, 0.0)
        self.bar.update(self.task, completed=done, count=count, description=self.part)

    def verbose(self) -> None:
        """Prints the share of the run's time that went into showing, logging and watching it."""
        seconds, total = self.aside
        share = f"{100 * seconds / total:.2f} % of the run" if total else "no time"
        console.print(f"live view, log, probes and trackers took {seconds:.1f} s, {share}")

    def beside(self, listener: Listener) -> Listener:
        """A listener that shows every event, then passes it on."""

        def both(event: str, record: Mapping[str, Any]) -> None:
            self.listen(event, record)
            listener(event, record)

        return both

    def listen(self, event: str, record: Mapping[str, Any]) -> None:
        """Moves the bar at every step and shows every epoch beside it; a tenth of the epochs, and all else, stay as lines.

        Where the output is no terminal, every epoch is a line.
        """
        if event == "beside":
            self.aside = (record["seconds"], record["total"])
        if self.bar is None or self.quiet:
            return
        if event == "step":
            share = (self.searched + record["step"] / max(record["steps"], 1)) / self.searches
            self._done(share, f"epoch {record['epoch'] + 1}/{self.counts['search']}")
        elif event == "searching":
            self.searched = record["number"]
            self.searches = record["searches"]
            self.bar.update(self.task, said=f"seed {record['seed']}")
        elif event == "supernet":
            self.bar.console.print(_LINES[event](record), soft_wrap=True)
        elif event == "query":
            self.bar.update(self.task, said=_query_line(record))
            if record["queried"] == record["genotype"] != self.best:  # a cell may be asked for again
                self.best = record["genotype"]
                self.bar.console.print(_query_line(record), soft_wrap=True)
        elif event in _LINES:
            line = _LINES[event](record)
            self.bar.update(self.task, said=line)
            told = "epoch" not in record or bool({"warning", "settled"} & set(record))
            if told or record["epoch"] % self.every == self.every - 1:
                self.bar.console.print(line, soft_wrap=True)
            if event == "train_epoch":
                done, count = record["epoch"] + 1, self.counts.get("train", 0)
                self._done(done / max(count, done), f"{done}/{count}" if count else str(done))
            elif event == "trained":
                self.part, self.trained = "compare", self.trained + 1
                count = max(self.counts.get("compare", 0), self.trained)
                self._done(self.trained / count, f"{self.trained}/{count}")


def _query_line(r: Mapping[str, Any]) -> str:
    return f"query {r['query']:4d}  score {r['score']:.2f}, best so far {r['best']:.2f}  {brief(r['genotype'])}"


def _epoch_line(r: Mapping[str, Any]) -> str:
    skips = "+".join(str(n) for n in r["skips"].values())
    metric = _metric(r, "weight_")
    alpha = (
        "held    " if r["arch_loss"] is None else f"{r['arch_loss']:.3f} {in_words(metric, r['arch_' + metric], 0):>4}"
    )
    cell = f"-> {brief(r['genotype'])}" if r["changed"] else ""  # the log has it for every epoch
    worth = f"table {r['table_accuracy']:.2f}  " if "table_accuracy" in r else ""
    return (
        f"{r['epoch']:3d} {r['phase']:7s} w {r['weight_loss']:.3f} {in_words(metric, r['weight_' + metric], 0):>4}  alpha {alpha}  "
        f"entropy {r['entropy']:.3f}  skips {skips}  {worth}{cell}".rstrip()
        + "".join(f"\n    {name.upper()}  {r[name]}" for name in ("warning", "settled") if name in r)
    )


def seed_line(r: Mapping[str, Any]) -> str:
    """One seed's scores and cell."""
    skips = "+".join(str(n) for n in r["skips"].values())
    return (
        f"seed {r['seed']}: {_said(r, 'val_', 2)} on validation images, {_said(r, 'test_', 2)} on test images{floored(r)}, "
        f"skips {skips}  {brief(r['genotype'])}"
    )


def brief(genotype: str) -> str:
    """A genotype in its published form, or in a few words if it has none."""
    return Genotype.from_json(genotype).summary() if genotype.startswith("{") else genotype


def _metric(record: Mapping[str, Any], prefix: str) -> str:
    """The metric that counts in a record: the task's first."""
    for name in ("miou", "accuracy", "mean_f1", "r2"):
        if prefix + name in record:
            return name
    named = prefix or "val_"
    return next(key.removeprefix(named) for key in record if key.startswith(named) and not key.endswith("loss"))


def _value(record: Mapping[str, Any]) -> str:
    name = _metric(record, "")
    return in_words(name, record[name], 0)


def _from_seed(record: Mapping[str, Any]) -> str:
    return f" from seed {record['seed']} on" if "seed" in record else ""


def _said(record: Mapping[str, Any], prefix: str, digits: int = 1) -> str:
    name = _metric(record, prefix)
    return in_words(name, record[prefix + name], digits) + (f" {TITLES.get(name, name)}" if name != "accuracy" else "")


_LINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "epoch": _epoch_line,
    "supernet": lambda r: f"supernet: {_said(r, 'val_')} on validation images{floored(r, 1)}{moved(r)}",
    "learning": lambda r: str(r["words"]),
    "fitted": lambda r: f"limits: {r['words']}" + (f"; made to fit: {'; '.join(r['done'])}" if r["done"] else ""),
    "network": lambda r: (
        f"network: {_said(r, 'val_')} on validation images, {_said(r, 'test_')} on test images{floored(r, 1)}"
    ),
    "seed": lambda r: seed_line(r),
    **dict.fromkeys(("processes", "rolled_back"), lambda r: str(r["note"])),
    "time": lambda r: (
        f"time: {spoken(r['left'])} left; epochs of each training{_from_seed(r)}: {r['train_epochs']}"
        + (f" instead of {r['planned']}" if r["planned"] != r["train_epochs"] else "")
    ),
    # the table after the trainings has the floor
    "trained": lambda r: (
        f"{'kept' if 'kept' in r else 'trained'} {r['cell']}, seed {r['seed']}: {_said(r, 'test_')} on test images"
    ),
    "train_epoch": lambda r: (
        f"{r['epoch']:3d} train {r['loss']:.3f} {_value(r):>4}  validation {r['val_loss']:.3f} {_said(r, 'val_')}"
    ),
}


def rows_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Name and line, a row each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, line in rows:
        table.add_row(Text(name), Text(line))
    return table


def data_rows(data: Data) -> list[tuple[str, str]]:
    """What is worth knowing of a data set before it is searched on."""
    extent = f"{data.size[1]} values" if data.things == "signals" else f"{data.size[0]}x{data.size[1]}"
    size = f"{extent}, {data.channels} channel{'s' if data.channels > 1 else ''}"
    names = ", ".join(data.classes[:8]) + (", ..." if len(data.classes) > 8 else "")
    parts = f"{len(data.train)} train, {len(data.val)} validation, {len(data.test)} test {data.things} of {size}"
    if data.task == "classify":
        count, most = map(int, data.train.targets.bincount(minlength=len(data.classes)).max(0))
        names += f"; {in_words('accuracy', count / len(data.train), 1)} of the train {data.things} are {data.classes[most]!r}"
    kind = {"multilabel": "labels", "regress": "numbers", "count": "counts"}.get(data.task, "classes")
    return [
        ("data", f"{data.name}: {parts}"),
        (kind, f"{len(data.classes)}: {names}"),
        *(("", note) for note in data.notes),
    ]
