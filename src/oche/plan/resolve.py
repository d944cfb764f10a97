"""From what a user asked for to what will be run: names, budgets and settings become a method, a space and data.

A setting is `path=value`. Its path begins with a part: `space`, `data`, `task` (the loss), `train` (the protocol of the comparison
and of retraining), `probe`, `method` (an option of the method, or any of its fields), or one of the method's own slots:
`trainable.classifier=true`; where a slot has parts with names, the slot alone takes one of them: `trainable=classifier`.
The order of precedence is method, then budget, then settings; run.toml keeps what came out.
"""

from __future__ import annotations

import importlib.util
import inspect
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from lightning_fabric import Fabric

from oche import config
from oche.data import SPLITS, Data, load
from oche.data.facts import pixel_counts
from oche.errors import UserError, unknown
from oche.fast.portable.program import needs_compiler
from oche.genotype import Genotype
from oche.methods import METHODS, budgets, method_named
from oche.methods.budgets import budget
from oche.methods.evaluators import EVALUATORS
from oche.run import Run
from oche.search.method import Method
from oche.search.searcher import Searcher, SearcherLike, around, as_searcher
from oche.search.trainable import TRAINABLES
from oche.spaces import SPACES, Space
from oche.tasks import Classify, Segment, Task, balanced
from oche.training.protocols import PROTOCOLS, Protocol
from oche.training.train import Training
from oche.watch.named import Watch, checked

T = TypeVar("T")

AUTO = "auto"
SPACE = {"classify": "nb201", "segment": "grid"}
COMPARING = {"classify": "brief", "segment": "segment_brief"}
TRAINING = {"classify": "quick", "segment": "segment"}
"""What "auto" stands for, by what the data can teach: the space, and the protocol of the comparison and of a training."""

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"32": "32-true", "bf16": "bf16-mixed"}
PARTS: dict[str, Mapping[str, Any]] = {
    "trainable": TRAINABLES,
    "split": SPLITS,
    "split.before": SPLITS,
    "evaluator": EVALUATORS,
}
"""Slots whose part can be chosen by name: `--set trainable=classifier`."""

SMALL = 16 * 16
"""Pixels up to which one thread is as fast as several, and steadier on a busy machine."""

IMAGENET = 128
"""Pixels from which on a published ImageNet setting is taken where a method has one (the stem changes there too)."""


@dataclass(frozen=True)
class Request:
    """What was asked for, as plain values: the `[request]` table of run.toml. None means the budget's own, "auto" what fits the data."""

    method: str = "rf_darts"
    space: str = AUTO
    data: str = "digits"
    budget: str = "quick"
    epochs: int | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    precision: str = "32"
    threads: int | None = None
    compare: int | None = None
    compare_seeds: int = 3
    protocol: str = AUTO
    settings: Mapping[str, object] = field(default_factory=dict)
    probes: tuple[str, ...] = ()
    seeds: int = 1
    pick: str = "validation"
    recompute: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Plan:
    """A request resolved: everything that a search and the comparison after it need."""

    request: Request
    searcher: SearcherLike
    space: Space
    data: Data
    protocol: Protocol
    epochs: int
    batch: int
    fabric: Fabric
    source: str
    watch: Watch = Watch()
    task: Task = Classify()

    @property
    def compare(self) -> int:
        """How many random cells are trained beside the found one."""
        return self.request.compare or 0

    def table(self) -> dict[str, object]:
        """run.toml: the request, every resolved value, and the versions."""
        request = {name: "none" if value is None else value for name, value in asdict(self.request).items()}
        return {
            "request": request,
            "resolved": {
                "epochs": self.epochs,
                "batch": self.batch,
                "settings_from": self.source,
                "device": str(self.fabric.device),
            },
            "method": config.describe(self.searcher),
            "space": config.describe(self.space),
            "task": config.describe(self.task),
            "train": config.describe(self.protocol),
            "watch": config.describe(self.watch),
            "data": _facts(self.data),
            "versions": _versions(),
        }


def resolve(request: Request, data: Data | None = None, recorded: Mapping[str, object] | None = None) -> Plan:
    """Turns a request into a plan. `data` takes the place of the request's; `recorded` is a run.toml whose resolved values hold.

    Raises UserError for anything unknown or impossible.
    """
    _check_seeds(request)
    parts = _by_part(request.settings)
    fabric = fabric_for(request.device, request.devices, request.precision)
    if data is None:
        data = config.build(load, {"source": request.data, "seed": request.seed, **parts.pop("data", {})}, "data")
    elif parts.pop("data", None):
        raise UserError("Settings of `data` do not apply to data that is already loaded; set them when loading it.")
    space_name = SPACE[data.task] if request.space == AUTO else request.space
    protocol_name = COMPARING[data.task] if request.protocol == AUTO else request.protocol
    request = replace(request, space=space_name, protocol=protocol_name)
    task = task_for(data, parts.pop("task", {}))
    options = _options(request.method, parts.get("method", {}))
    searcher = searcher_named(request.method, options)
    if request.space not in SPACES:
        raise unknown("space", request.space, SPACES)
    tables = budgets(searcher.name)
    key = (
        "imagenet"
        if "imagenet" in tables["paper"] and min(data.size) >= IMAGENET and request.space == "darts"
        else request.space
    )
    chosen = budget(request.budget, key, tables)
    own = {k.removeprefix("method."): v for k, v in chosen.settings.items() if k.startswith("method.")}
    if own:
        searcher = searcher_named(request.method, {**_options(request.method, own), **options})
    given = _by_part(
        {
            k: v
            for k, v in chosen.settings.items()
            if k.rpartition(".")[2] not in options and not k.startswith("method.")
        }
    )
    method = as_searcher(searcher).method
    if method and request.space in method.unfit:
        raise UserError(
            f"{request.method} is not made for the space {request.space!r}: {method.unfit_why}; choose another method or space."
        )
    usual = _usual(method, request.space) if method else {}
    space = _space(request.space, data, {**usual, **given.pop("space", {}), **parts.pop("space", {})})
    protocol = named_protocol(request.protocol, parts.pop("train", {}))
    watch = config.build(Watch, {"names": request.probes, **parts.pop("probe", {})}, "probe")
    for settings, mine in ((given, False), (parts, True)):
        searcher = _with(searcher, settings, request.method, strict=mine)
    if recorded is not None:
        searcher = config.restore(searcher, _table(recorded, "method"), "run.toml: method")
        space = config.restore(space, _table(recorded, "space"), "run.toml: space")
        protocol = config.restore(protocol, _table(recorded, "train"), "run.toml: train")
        if "watch" in recorded:
            watch = config.restore(watch, _table(recorded, "watch"), "run.toml: watch")
        task = _recorded_task(task, recorded)
        for name, value in _table(recorded, "resolved").items():
            if name in ("epochs", "batch"):
                chosen = config.override(chosen, name, value, "run.toml: resolved")
    watch = checked(watch, request.space, as_searcher(searcher).method is not None)
    batch = chosen.batch if request.batch is None else request.batch
    epochs = chosen.epochs if request.epochs is None else request.epochs
    if batch < 2 or epochs < 1:
        raise UserError(
            f"A search needs at least one epoch and batches of two images; given epochs={epochs}, batch={batch}."
        )
    if request.compare is None:
        request = replace(request, compare=0 if request.budget == "paper" or as_searcher(searcher).keeps_weights else 3)
    if request.compare and (request.compare < 0 or request.compare_seeds < 1):
        raise UserError(
            f"A comparison needs random cells and at least one seed; given {request.compare} and {request.compare_seeds}: "
            "`--compare 0` goes without."
        )
    if request.compile:
        if as_searcher(searcher).method is None:
            raise UserError(f"--compile is for cells of a supernet, and {searcher.name} has none: leave it out.")
        needs_compiler(fabric.device)
    request = replace(request, threads=threads_for(request.threads, data))
    return Plan(request, searcher, space, data, protocol, epochs, batch, fabric, chosen.source, watch, task)


def _check_seeds(request: Request) -> None:
    if request.seeds < 1:
        raise UserError(f"--seeds must be at least 1; given {request.seeds}.")
    if "test" in request.pick.lower():
        raise UserError(
            f"--pick {request.pick} would choose among seeds by test images, and what is reported would be too good: "
            "`--pick validation` chooses by validation images."
        )
    if request.pick != "validation":
        raise unknown("way to pick among seeds", request.pick, ["validation"])
    if request.seeds > 1 and request.devices > 1:
        raise UserError("Several seeds run one after the other on one device: leave `--devices` or `--seeds` out.")


@dataclass(frozen=True)
class TrainRequest:
    """What `oche train` was asked for: the `[training]` table of its run.toml. None means the search's own, or the protocol's.

    `inherit`: it begins with the weights of the run's network, not from scratch.
    """

    genotype: str
    space: str | None = None
    data: str | None = None
    protocol: str = AUTO
    epochs: int | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    precision: str = "32"
    threads: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    inherit: bool = False


def resolve_training(
    request: TrainRequest,
    data: Data | None = None,
    size: Mapping[str, object] | None = None,
    recorded: Mapping[str, object] | None = None,
) -> Training:
    """Turns a request into a training. `size` holds the searched space's own fields, which the protocol and the settings override.

    Raises UserError for anything unknown or impossible, a genotype of another space included.
    """
    parts = _by_part(request.settings)
    if foreign := [*parts.get("slot", {}), *parts.get("method", {}), *parts.get("probe", {})]:
        wrong = sorted(foreign)[0]
        raise unknown("training setting", wrong, ["space.FIELD", "data.FIELD", "task.FIELD", "train.FIELD"])
    fabric = fabric_for(request.device, request.devices, request.precision)
    if data is None:
        data = config.build(
            load, {"source": request.data or "digits", "seed": request.seed, **parts.get("data", {})}, "data"
        )
    changes = {key: value for key, value in (("epochs", request.epochs), ("batch", request.batch)) if value is not None}
    chosen = TRAINING[data.task] if request.protocol == AUTO else request.protocol
    protocol = named_protocol(chosen, {**changes, **parts.get("train", {})})
    task = task_for(data, parts.get("task", {}))
    if request.space is None or request.space not in SPACES:
        raise unknown("space", str(request.space), SPACES)
    own = {f.name for f in fields(SPACES[request.space])}
    sizes = {key: getattr(protocol, key) for key in ("cells", "channels", "stem_multiplier")}
    sizes = {key: value for key, value in sizes.items() if value is not None and key in own}
    space = _space(request.space, data, {**(size or {}), **sizes, **parts.get("space", {})})
    if recorded is not None:
        space = config.restore(space, _table(recorded, "space"), "run.toml: space")
        protocol = config.restore(protocol, _table(recorded, "train"), "run.toml: train")
        task = _recorded_task(task, recorded)
    genotype = Genotype.parse(request.genotype, request.space)
    space.check(genotype)
    if protocol.batch < 2 or protocol.epochs < 1:
        raise UserError(
            f"A training needs at least one epoch and batches of two images; given epochs={protocol.epochs}, batch={protocol.batch}."
        )
    return Training(space, genotype, data.to(fabric.device), protocol, request.seed, fabric, task=task)


def training_table(request: TrainRequest, training: Training) -> dict[str, object]:
    """run.toml of a training: the request, every resolved value, and the versions."""
    return {
        "training": {name: "none" if value is None else value for name, value in asdict(request).items()},
        "space": config.describe(training.space),
        "task": config.describe(training.task),
        "train": config.describe(training.protocol),
        "data": _facts(training.data),
        "versions": _versions(),
    }


def requested(run: Run) -> tuple[Request | TrainRequest, Mapping[str, object]]:
    """The request in a run's run.toml, and the whole table. Raises UserError where it holds none."""
    where = str(run.file(Run.CONFIG))
    table = config.loads(run.read(Run.CONFIG).decode(errors="replace"), where)
    if "training" in table:
        return config.build(TrainRequest, _table(table, "training"), where), table
    return config.build(Request, _table(table, "request"), where), table


def recorded_request(path: Path) -> tuple[Request, Mapping[str, object]]:
    """The request of a search in a run.toml file, and the whole table, to repeat it. Raises UserError."""
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}; expected the run.toml of a search.")
    table = config.loads(path.read_text(errors="replace"), str(path))
    return config.build(Request, _table(table, "request"), str(path)), table


def searched_size(table: Mapping[str, object]) -> dict[str, object]:
    """The fields of a run.toml's space that a training takes over: all but what the data decides."""
    return {k: v for k, v in _table(table, "space").items() if k not in ("type", "name", "inputs", "outputs", "size")}


def searcher_named(name: str, options: Mapping[str, object] | None = None) -> SearcherLike:
    """A method by its name, or `file.py:function` for one of your own. Raises UserError."""
    factory = _factory(name)
    if factory is None or ".py:" not in name:
        return method_named(name, options)
    built = config.build(factory, options or {}, name)
    if not isinstance(built, Method | Searcher):
        raise UserError(f"{name} returned {type(built).__name__}; expected an oche.Method, or a searcher.")
    return built


def _factory(name: str) -> Callable[..., SearcherLike] | None:
    """What builds the method of that name, or the function in `file.py:function`; None where there is neither."""
    path, _, function = name.rpartition(":")
    if not path.endswith(".py"):
        return METHODS.get(name) or METHODS.get(name.removeprefix("rf_"))
    if not Path(path).is_file():
        raise UserError(f"There is no file {path!r}; expected FILE.py:FUNCTION, where the function returns a Method.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if function not in vars(module):
        raise unknown(f"function in {path}", function, [n for n, f in vars(module).items() if inspect.isfunction(f)])
    return cast(Callable[..., SearcherLike], vars(module)[function])


def named_protocol(name: str, settings: Mapping[str, object]) -> Protocol:
    """A retraining protocol with some of its fields changed. Raises UserError."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    protocol = PROTOCOLS[name]
    for path, value in settings.items():
        protocol = config.override(protocol, path, value, "train")
    return protocol


def task_for(data: Data, settings: Mapping[str, object]) -> Task:
    """What the data teaches, its loss changed by settings: the fields of `Segment`, or `balanced`, which measures class weights.

    Raises UserError.
    """
    task: Task = Classify() if data.ignore is None else Segment(data.ignore)
    fields_set = {path: value for path, value in settings.items() if path != "balanced"}
    if "balanced" in settings and data.ignore is None:
        raise UserError("task.balanced weighs the classes of mask pixels; images with a class each have none.")
    if settings.get("balanced") is True:
        if "class_weights" in settings:
            raise UserError("task.balanced measures the class weights; leave task.class_weights out, or balanced.")
        weights = balanced(pixel_counts(data.train, len(data.classes)))
        fields_set["class_weights"] = [round(weight, 6) for weight in weights]
    for path, value in fields_set.items():
        task = config.override(task, path, value, "task")
    return task


def _recorded_task(task: Task, recorded: Mapping[str, object]) -> Task:
    """The task of a run.toml; one from before there were tasks means the default."""
    return config.restore(task, _table(recorded, "task"), "run.toml: task") if "task" in recorded else task


def threads_for(asked: int | None, data: Data) -> int:
    """How many threads torch's CPU operations use: as asked, else one for images up to 16x16, where more only wait for each other.

    It is settled before the run and kept with it, for sums round differently with another number. Raises UserError below 1.
    """
    if asked is not None and asked < 1:
        raise UserError(f"--threads must be at least 1; given {asked}.")
    return asked or (1 if data.size[0] * data.size[1] <= SMALL else torch.get_num_threads())


def fabric_for(device: str, devices: int = 1, precision: str = "32") -> Fabric:
    """lightning-fabric for "auto", "cpu", "cuda", "cuda:1" or "mps". Raises UserError where there is no such device."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    kind, _, number = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps"):
        raise unknown("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"])
    if devices < 1:
        raise UserError(f"At least one process is needed; given {devices}.")
    there = {"cpu": 1 << 16, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if (number and not number.isdigit()) or int(number or 0) + devices > there:
        raise UserError(
            f"There is no device {device!r} here for {devices} process(es); `--device auto` takes what there is."
        )
    ids: list[int] | int = [int(number)] if number and kind == "cuda" else devices
    fabric = Fabric(
        accelerator=kind, devices=ids, strategy="ddp" if devices > 1 else "auto", precision=PRECISIONS[precision]
    )
    fabric.launch()
    return fabric


def _facts(data: Data) -> dict[str, object]:
    parts = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
    return {
        "name": data.name,
        **parts,
        "classes": list(data.classes),
        "size": list(data.size),
        "notes": list(data.notes),
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("oche", "torch", "lightning-fabric", "numpy")} | {
        "python": platform.python_version()
    }


# ------------------------------------------------------------------ settings


def _by_part(settings: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """{"space.cells": 3, "clip": 5} -> {"space": {"cells": 3}, "method": {"clip": 5}}: what is no part's is the method's."""
    parts: dict[str, dict[str, object]] = {}
    for path, value in settings.items():
        part, dot, rest = path.partition(".")
        if part in ("space", "data", "task", "train", "method", "probe") and dot:
            parts.setdefault(part, {})[rest] = value
        else:
            parts.setdefault("slot", {})[path] = value
    return parts


def _options(name: str, settings: Mapping[str, object]) -> dict[str, object]:
    """Those of `method.X=...` that are options of the method's factory."""
    factory = _factory(name)
    known = inspect.signature(factory).parameters if factory else {}
    return {path: value for path, value in settings.items() if path in known}


def _with(
    searcher: SearcherLike, settings: Mapping[str, Mapping[str, object]], name: str, *, strict: bool
) -> SearcherLike:
    """The searcher with fields changed: its own, such as `queries` or `stages.X`, and all else its method's.

    A budget's settings for what a method has replaced, or a searcher does not have, are left out (not `strict`).
    """
    options, method = _options(name, settings.get("method", {})), as_searcher(searcher).method
    changes = {**settings.get("slot", {}), **{p: v for p, v in settings.get("method", {}).items() if p not in options}}
    own, inner = _settable(searcher), None if method is searcher else method
    mine = {path: value for path, value in changes.items() if path.partition(".")[0] in own}
    searcher = _changed(searcher, mine, name, strict=strict)
    rest = {path: value for path, value in changes.items() if path not in mine}
    unfit = [path.partition(".")[0] for path in rest if inner is None or path.partition(".")[0] not in _settable(inner)]
    if unfit and (strict or method):
        if not own:
            raise UserError(f"{searcher.name} has no parts to set; it takes no {', '.join(sorted(unfit))}.")
        known = own | (_settable(inner) if inner else set())
        raise unknown("part", unfit[0], [*sorted(known), "space", "data", "task", "train", "method", "probe"])
    return around(searcher, _changed(inner, rest, name, strict=strict), searcher.name) if inner else searcher


def _settable(part: SearcherLike) -> set[str]:
    """The fields of a method or a searcher that settings may change."""
    assert is_dataclass(part)
    return {f.name for f in fields(part) if f.repr} - {"name", "papers", "method", "keeps_weights"}


def _changed(part: T, changes: Mapping[str, object], name: str, *, strict: bool) -> T:
    """The method or searcher with fields changed, a part by its name before the fields of that part."""
    first = list(PARTS)
    for path, value in sorted(changes.items(), key=lambda c: first.index(c[0]) if c[0] in PARTS else len(first)):
        if path in PARTS and not isinstance(value, str):
            raise UserError(f"{name}: {path} is set by the name of a part, not by {value!r}: {', '.join(PARTS[path])}.")
        if path in PARTS and value not in PARTS[path]:
            raise unknown(path, str(value), PARTS[path])
        try:
            part = config.override(part, path, PARTS[path][str(value)] if path in PARTS else value, name)
        except UserError:
            if strict:
                raise
    return part


def _usual(method: Method, space: str) -> dict[str, object]:
    """The method's own settings of a space: those for all, and those that begin with the space's name."""
    own = {path: value for path, value in method.space.items() if "." not in path}
    return own | {p.removeprefix(f"{space}."): v for p, v in method.space.items() if p.startswith(f"{space}.")}


def _space(name: str, data: Data, settings: Mapping[str, object]) -> Space:
    if SPACES[name].task != data.task:
        teaches = "masks" if data.ignore is not None else "one class an image"
        raise UserError(
            f"{data.name} has {teaches}, which the space {name} is not for; choose `--space {SPACE[data.task]}`."
        )
    bound = SPACES[name](inputs=data.channels, outputs=len(data.classes), size=data.size)
    known = {f.name for f in fields(bound)} - {"name", "inputs", "outputs", "size"}
    for path, value in settings.items():
        if path not in known:
            raise unknown(f"setting of the space {name}", path, known)
        bound = config.override(bound, path, value, f"space {name}")
    return bound


def _table(table: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = table.get(name)
    if not isinstance(part, dict):
        raise UserError(f"run.toml has no [{name}] table; expected the run.toml that a search or a training wrote.")
    return part
