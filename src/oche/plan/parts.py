"""The parts that a search and a training both have: data, task, space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import cast

from oche import config, own
from oche.data import SETS, Data, load
from oche.data.facts import pixel_counts
from oche.data.fingerprint import fingerprint
from oche.data.reading.texts import spelled
from oche.errors import UserError, unknown
from oche.plan.request import Request, TrainRequest
from oche.plan.settings import Change, layered
from oche.spaces import Space
from oche.spaces import named as spaces
from oche.spaces.base import BOUND
from oche.spaces.latency import read_table
from oche.spaces.limits import LIMITED, Limits, limit
from oche.tasks import TASK, TASKS, Classify, Count, MultiLabel, Regress, Segment, Task, balanced
from oche.training.latencies import this_machine

SPACE = {"classify": "nb201", "segment": "grid"}
"""The space that "auto" stands for, by what the data can teach."""

LIMITED_SPACE = "chain"
"""That of images under limits: layer by layer, so that an operation's cost counts where it is large."""

COUNTING = "stages"
"""The same for counts."""

TEACHES = {
    "classify": "one class per image",
    "segment": "masks",
    "multilabel": "several labels per image",
    "regress": "numbers for each image",
    "count": "counts",
}
"""What data of a task have for each image, in words."""


def usual_space(data: Data, limited: bool = False) -> str:
    """The name of the space that "auto" stands for, for classes under limits or without."""
    if data.task == "count":
        return COUNTING
    if data.things == "signals":
        return "signal"
    form = form_of(data)
    return LIMITED_SPACE if limited and form == "classify" else SPACE[form]


def form_of(data: Data) -> str:
    """What "auto" goes by: "segment" for masks, "classify" for all else."""
    return "segment" if data.ignore is not None else "classify"


def data_for(
    given: object, task: object, seed: int, settings: Mapping[str, object], kind: type[Space] | None = None
) -> Data:
    """The data that were asked for, read for the task, where it is named, and as signals for a space of such. Raises UserError."""
    thing = source_of(given)
    if isinstance(thing, Data):
        if settings:
            raise UserError("Settings of `data` do not apply to data that is already loaded; set them when loading it.")
        if isinstance(task, str) and task in TASKS and task != thing.task:
            raise UserError(f"The data is to {thing.task}, not to {task}: leave the task out.")
        return thing
    asked: dict[str, object] = {"task": task} if isinstance(task, str) and task in TASKS else {}
    if kind is not None and kind.flat:
        asked["signals"] = True
    return config.build(load, {"source": thing, "seed": seed, **asked, **settings}, "data")


def source_of(given: object) -> object:
    """What the data are read from: a name, a path or an object; that of FILE.py:NAME, or what its function gives. Raises UserError."""
    thing = own.load(given, "data") if isinstance(given, str) and own.is_own(given) else given
    return own.called(thing, own.display(given)) if callable(thing) and not isinstance(thing, Data) else thing


def path_of(given: object, data: Data) -> str:
    """What run.toml calls the data: a name, a path from the root, FILE.py:NAME, or the name of an object."""
    if not isinstance(given, str | Path):
        return data.name
    if own.is_own(given):
        return cast(str, own.absolute(given))
    path = Path(given).expanduser()
    found = str(path.resolve()) if str(given) not in SETS and path.exists() else str(given)
    if found != spelled(found):
        raise UserError(
            f"The path {spelled(found)} has bytes that are no UTF-8, which run.toml cannot record: rename the folder."
        )
    return found


def data_facts(data: Data) -> dict[str, object]:
    """The [data] table of run.toml."""
    parts = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
    return {
        "name": data.name,
        **parts,
        "classes": list(data.classes),
        "size": list(data.size),
        "notes": list(data.notes),
        **fingerprint(data).summary(),
    }


def task_for(
    data: Data,
    given: object = None,
    settings: Mapping[str, object] | None = None,
    recorded: Mapping[str, object] | None = None,
    rules: int = config.RULES,
) -> Task:
    """What the data teaches, its loss changed by settings: the fields of `Segment`, or `balanced`, which measures class weights.

    A run from before there were tasks has none recorded, which means the default. Raises UserError.
    """
    usual: dict[str, Task] = {
        "classify": Classify(),
        "multilabel": MultiLabel(),
        "regress": Regress(data.target_std or ()),
        "count": Count((data.target_std or (1.0,))[0]),
    }
    task = Segment(data.ignore) if data.ignore is not None else usual[data.task]
    if given is not None and (own.is_foreign(given) or given not in TASKS):
        task = TASK.part(given)
    fields_set = {path: value for path, value in (settings or {}).items() if path != "balanced"}
    weighed = (settings or {}).get("balanced")
    if weighed is not None and data.ignore is None:
        raise UserError("task.balanced weighs the classes of mask pixels; these images have none.")
    if weighed is True:
        if "class_weights" in fields_set:
            raise UserError("task.balanced measures the class weights; leave task.class_weights out, or balanced.")
        weights = balanced(pixel_counts(data.train, len(data.classes)))
        fields_set["class_weights"] = [round(weight, 6) for weight in weights]
    return layered(task, "task", given=fields_set, recorded=recorded, rules=rules)[0]


def limits_for(request: Request | TrainRequest, fixed: bool, lower: Mapping[str, object] | None = None) -> Limits:
    """The limits that were asked for, else those of `lower`, {cost: limit}; `fixed` if the width was given. Raises UserError."""
    found: dict[str, float] = {}
    for cost, (name, _, _) in LIMITED.items():
        asked = getattr(request, name, None)
        value = (lower or {}).get(cost) if asked is None else limit(cost, asked)
        if isinstance(value, int | float):
            found[cost] = value
    if request.latency_table is not None and "latency" not in found:
        raise UserError("--latency-table is for a limit: add --max-latency 3ms, or leave the table out.")
    table = None
    if "latency" in found:
        given = request.latency_table
        table = this_machine() if given is None else read_table(Path(given).expanduser())
    return Limits(
        **{cost: int(value) for cost, value in found.items() if cost != "latency"},
        latency=found.get("latency"),
        fixed=fixed,
        latencies=table,
    )


def table_path(given: str | Path | None) -> str | None:
    """What run.toml calls a latency table: its path from the root."""
    return None if given is None else str(Path(given).expanduser().resolve())


def space_for(
    kind: type[Space],
    data: Data,
    given: Mapping[str, object],
    *,
    lower: Mapping[str, object] | None = None,
    recorded: Mapping[str, object] | None = None,
    rules: int = config.RULES,
) -> tuple[Space, tuple[Change, ...]]:
    """The space for these data, with the settings given before those of the method and the budget (`lower`), and what the latter changed.

    Raises UserError where it is not for the data.
    """
    name = str(kind().name)
    teaches = form_of(data)
    if kind.task != teaches:
        has = TEACHES.get(data.task, "targets of its own")
        raise UserError(f"{data.name} has {has}, which the space {name} is not for; choose `--space {SPACE[teaches]}`.")
    if kind.flat != (data.things == "signals"):
        raise UserError(
            f"{data.name} has {data.things}, which the space {name} is not for; choose `--space {usual_space(data)}`"
            + (", or say `--set data.signals=true` if its arrays hold signals." if kind.flat else ".")
        )
    bound = kind(inputs=data.channels, outputs=data.outputs, size=data.size, density=data.grid)
    known = {f.name for f in fields(bound)} - set(BOUND)
    for path in {**(lower or {}), **given}:
        if path not in known:
            raise unknown(f"setting of the space {name}", path, known)
    return layered(
        bound, f"space {name}" if recorded is None else "space", budget=lower, given=given, recorded=recorded, rules=rules,
        choose=spaces.setting,
    )  # fmt: skip
