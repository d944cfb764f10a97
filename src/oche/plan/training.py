"""From what a training is asked for to what is trained; and the run.toml that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from oche import config, own
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.plan import named
from oche.plan.machine import fabric_for, versions
from oche.plan.parts import data_facts, data_for, form_of, limits_for, path_of, space_for, table_path, task_for
from oche.plan.processes import processes, shared_out
from oche.plan.request import (
    AUTO,
    TrainRequest,
    check_objects,
    earlier_share,
    number_of,
    objects_of,
    part_of,
    plain,
    rules_of,
    table_of,
    written,
)
from oche.plan.settings import by_part, layered
from oche.spaces import Space
from oche.spaces import named as spaces
from oche.spaces.base import BOUND
from oche.spaces.cost import priced
from oche.spaces.edges import TRAINED
from oche.spaces.fit import widest
from oche.spaces.limits import LIMITED, Limits
from oche.spaces.rivals import Rival
from oche.training.protocols import USUAL, lengthened
from oche.training.train import Training
from oche.watch import trackers


def resolve_training(
    request: TrainRequest,
    size: Mapping[str, object] | None = None,
    recorded: Mapping[str, object] | None = None,
    limits: Mapping[str, object] | None = None,
    rival: Rival | None = None,
) -> Training:
    """Turns a request into a training. `size` holds the searched space's own fields, which the protocol and the settings override.

    `limits` are the search's, {cost: limit}; the request's own go before them, and the network's width is made to fit. A `rival` is
    trained in the form that the data ask for.

    Raises UserError for anything unknown or impossible, a genotype of another space included.
    """
    check_objects(request, recorded)
    trackers.checked(request.track)
    parts, rules = by_part(request.settings), rules_of(recorded)
    if foreign := [*parts.get("slot", {}), *parts.get("method", {}), *parts.get("probe", {})]:
        wrong = sorted(foreign)[0]
        raise unknown("training setting", wrong, ["space.FIELD", "data.FIELD", "task.FIELD", "train.FIELD"])
    count = processes(request.devices, recorded is not None)
    fabric = fabric_for(request.device, count, request.precision)
    kind = spaces.space(str(request.space) if request.space is None else request.space)
    given = "digits" if request.data is None else request.data
    data = data_for(given, request.task, request.seed, parts.get("data", {}), kind)
    if rival is not None and data.things == "signals" and not kind.flat:
        form = rival.form(True)
        kind, size, request = form.space, form.fields, replace(request, genotype=str(form.genotype))
    asked = {} if request.epochs is None else {"epochs": request.epochs}
    if request.batch == AUTO and "batch" in parts.get("train", {}):
        raise UserError("--batch auto measures what train.batch says: leave one of them out.")
    if request.batch not in (None, AUTO):
        asked["batch"] = number_of(request.batch, 0)
    protocol, _ = layered(
        named.protocol(USUAL[form_of(data)] if request.protocol == AUTO else request.protocol),
        "train",
        given={**asked, **parts.get("train", {})},
        recorded=table_of(recorded, "train"),
        rules=rules,
    )
    if recorded is None and "epochs" not in {**asked, **parts.get("train", {})}:
        protocol = lengthened(protocol, len(data.train))
    task = task_for(data, request.task, parts.get("task", {}), table_of(recorded, "task", optional=True), rules)
    known = {f.name for f in fields(kind)}
    sizes = {key: getattr(protocol, key) for key in ("cells", "channels", "stem_multiplier") if "cells" in known}
    sizes = {key: value for key, value in sizes.items() if value is not None and key in known}
    own_size = {**(size or {}), **sizes, **parts.get("space", {})}
    space, _ = space_for(kind, data, own_size, recorded=table_of(recorded, "space"), rules=rules)
    genotype = Genotype.parse(str(request.genotype), str(kind().name))
    space.check(genotype)
    most = limits_for(request, "channels" in parts.get("space", {}), limits)
    if most and recorded is None:
        asked_here = any(getattr(request, name, None) is not None for name, _, _ in LIMITED.values())
        space = _fitting(space, genotype, most, widen=asked_here)
    protocol = replace(protocol, batch=protocol.batch * earlier_share(recorded, "training"))
    shared_out(protocol.batch, count)
    if protocol.compile and request.sync_batch_norm and count > 1:
        raise UserError(
            "Compiled programs leave no room for --sync-batch-norm's exchanges: add `--set train.compile=false`."
        )
    sync = request.sync_batch_norm
    before = earlier_epochs(recorded)
    return Training(
        space, genotype, data.to(fabric.device), protocol, request.seed, fabric, task=task, sync=sync, earlier=before, limits=most,
    )  # fmt: skip


def earlier_epochs(recorded: Mapping[str, object] | None) -> tuple[int, ...]:
    """The epochs of the trainings that a recorded one went on from, by its run.toml."""
    found = (table_of(recorded, "resolved", optional=True) or {}).get("earlier", ())
    return tuple(map(int, found)) if isinstance(found, list | tuple) else ()


def _fitting(space: Space, genotype: Genotype, limits: Limits, widen: bool) -> Space:
    """The space at the greatest width at which the genotype keeps the limits; as it is where it does, unless it shall `widen`.

    Raises UserError where it keeps them at no width.
    """
    prices = priced(limits)(space, genotype)
    if limits.fixed or genotype.edge in TRAINED or (limits.kept(prices) and not widen):
        found = space if limits.kept(prices) else None
    else:
        found = widest(space, genotype, limits)
    if found is None:
        raise UserError(
            f"This network would have {limits.words(prices)}: leave its sizes to the limits, raise them, or lift one with `none`."
        )
    return found


def training_table(request: TrainRequest, training: Training) -> dict[str, object]:
    """run.toml of a training: the request, every resolved value, and the versions."""
    protocol = request.protocol if isinstance(request.protocol, str) else own.display(request.protocol)
    settled = replace(
        plain(request, space=training.space.name, task=training.task.name, protocol=protocol),
        data=None if request.data is None else path_of(request.data, training.data),
        devices=training.fabric.world_size,
        latency_table=table_path(request.latency_table),
    )
    return {
        "rules": config.RULES,
        "training": written(settled),
        "resolved": {
            "objects": list(objects_of(request)),
            "processes": training.fabric.world_size,
            **({"earlier": list(training.earlier)} if training.earlier else {}),
            **({"limits": training.limits.table()} if training.limits else {}),
        },
        "space": config.describe(training.space),
        "task": config.describe(training.task),
        "train": config.describe(training.protocol),
        "data": data_facts(training.data),
        "versions": versions(),
    }


def searched_size(table: Mapping[str, object]) -> dict[str, object]:
    """The fields of a run.toml's space that a training takes over: all but what the data decides."""
    return {k: v for k, v in part_of(table, "space").items() if k not in ("type", *BOUND)}


def limits_in(table: Mapping[str, object]) -> Mapping[str, object]:
    """The limits that a run.toml records, {cost: limit}."""
    resolved = table.get("resolved")
    found = resolved.get("limits") if isinstance(resolved, Mapping) else None
    return found if isinstance(found, Mapping) else {}
