"""The data that a run's network was trained on, read again, or others like them."""

from __future__ import annotations

from lightning_fabric import Fabric

from oche import config
from oche.api.pinned import compared
from oche.data import Data, load
from oche.errors import UserError
from oche.own import copies_of, is_own
from oche.plan.machine import fabric_for
from oche.plan.parts import source_of, task_for
from oche.plan.request import requested
from oche.run import Run
from oche.tasks import Task
from oche.training.export import Loaded


def data_of(run: Run, loaded: Loaded, data: str | Data | None, device: str) -> tuple[Data, Fabric, Task]:
    """The run's own data, or others with the same classes, by the contract of its network; the device, and the task. Raises UserError."""
    mine = data is None
    request, table = requested(run)
    with copies_of(run.path, table):
        source = source_of(request.data if data is None else data)
    if isinstance(source, Data):
        data = source
    else:
        own = (
            {k.removeprefix("data."): v for k, v in request.settings.items() if k.startswith("data.")}
            if data is None
            else {}
        )
        settled: dict[str, object] = {"size": loaded.space.size, "channels": loaded.space.inputs}
        if "contract" in loaded.card:
            settled = {"contract": loaded.contract}
            own = {name: value for name, value in own.items() if name not in ("size", "channels", "labels")}
        elif data is None:
            del settled["size"]
        options = {"source": source, "seed": request.seed, **settled, **own}
        data = config.build(load, options, "data")
    if mine and "contract" in loaded.card:
        compared(run, data)
    if data.classes != loaded.classes or data.size != loaded.space.size:
        raise UserError(
            f"{data.name} has {len(data.classes)} classes at {data.size}, the network was trained for {len(loaded.classes)} at "
            f"{loaded.space.size}: choose data with the same classes, in the same size."
        )
    contract = loaded.contract
    if "contract" in loaded.card and data.task != contract.task:
        raise UserError(
            f"{data.name} is to {data.task}, the network was trained to {contract.task}: choose other data."
        )
    if contract.target_mean is not None and contract.target_std is not None:
        data = data.standardised(contract.target_mean, contract.target_std)
    with copies_of(run.path, table):
        fabric, task = fabric_for(device), task_for(data, request.task if is_own(request.task) else None)
    return data, fabric, task
