"""The options of a search and of a training, one list each: Python's signatures, the command line, run.toml and the help come from it.

A field of `Request` is an option of `oche.search`, and of `oche search` where it has a flag; its help is told once, here. Nothing is
resolved in this module and nothing of torch imported, so that `oche --help` answers at once.
"""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, Field, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from oche import config, own
from oche.config.values import NONE
from oche.errors import UserError
from oche.plan.options import Limited, option, words
from oche.run import Listener, Run, silent
from oche.run.bounded import read_bounded

if TYPE_CHECKING:
    from oche.data.reading.readers import Source
    from oche.search.searcher import SearcherLike
    from oche.spaces import Space
    from oche.tasks import Task
    from oche.training.protocols import Protocol
    from oche.watch.monitor import Probe
else:  # at run time these are any objects: the plan tells whether they fit
    Source = SearcherLike = Space = Task = Protocol = Probe = object

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
Asked = TypeVar("Asked", bound="Request | TrainRequest")

AUTO = "auto"
"""Asks for what fits the data."""


def number_of(batch: str | int | None, usual: int) -> int:
    """The batch that was asked for, or the usual one where none was, or where it is yet to be measured. Raises UserError."""
    if batch is None or batch == AUTO:
        return usual
    try:
        return int(batch)
    except ValueError:
        raise UserError(f"--batch takes a number of images, or auto; given {batch}.") from None


@dataclass(frozen=True)
class Request(Limited):
    """What a search is asked for. None stands for the budget's own value, "auto" for what fits the data.

    `method`, `space`, `task`, `protocol` and each of `probes` are a name (`oche list ...`), `FILE.py:NAME` for one of your own, or the
    object itself; `data` is a name, a path, `FILE.py:NAME`, a `Data`, or a torch Dataset. `settings` are assignments such as
    `{"space.cells": 3, "trainable.classifier": True}` (docs/settings.md).
    """

    method: str | SearcherLike | Callable[..., SearcherLike] = option(
        AUTO, "`oche list methods`, or FILE.py:FUNCTION. Default: rf_darts for classes, single_stage for masks.", ""
    )
    _: KW_ONLY
    space: str | Space | type[Space] = option(
        AUTO,
        "`oche list spaces`, or FILE.py:NAME. Default: nb201 for classes, chain under limits, grid for masks.",
        "--space",
    )
    data: str | Path | Source = option(
        "digits",
        "digits, camvid, a folder of images (and masks), an .npz file, a folder of idx files, FILE.py:NAME.",
        "--data",
    )
    task: str | Task | None = option(
        None, "classify, segment, multilabel, regress, count or FILE.py:NAME. Default: what the data is for.", "--task"
    )
    budget: str = option("quick", "paper, quick or smoke.", "--budget")
    epochs: int | None = option(None, "Default: the budget's.", "--epochs")
    batch: str | int | None = option(
        None, "Images per step, over all processes; auto measures which is quickest. Default: the budget's.", "--batch"
    )
    time: str | int | None = option(
        None, "How long the whole command may take: 20m. Chooses the epochs of search and comparison.", "--time"
    )
    patience: int | None = option(
        None,
        "End the search when its cell has not changed for that many epochs. Default: never.",
        "--patience",
    )
    seed: int = option(0, "Everything random depends on this number.", "--seed")
    device: str = option("auto", "auto, cpu, cuda, cuda:0 or mps.", "--device")
    devices: int | None = option(
        None,
        "How many processes share each batch, one per device. Default: 1, or as many as torchrun starts.",
        "--devices",
    )
    sync_batch_norm: bool = option(
        False, "Batch norm over the images of all processes: slower; the result is that of one.", "--sync-batch-norm"
    )
    precision: str = option("32", "32, or bf16 for mixed precision.", "--precision")
    threads: int | None = option(None, "CPU threads. Default: 1 for images up to 16x16, else all.", "--threads")
    compare: int | None = option(
        None,
        "Random cells to train beside the found one. Default: 3; 0 with --budget paper, or if the search keeps its weights.",
        "--compare",
    )
    compare_seeds: int | None = option(
        None,
        "Trainings of each of these cells. Default: 3, or 1 where the network is the search's own.",
        "--compare-seeds",
    )
    rivals: str = option(
        AUTO,
        "Networks to train beside it, as wide as the limits or its own cost allow: resnet8,ds_cnn (`oche list rivals`), or none. "
        "Default: the ResNet (for masks the plain FCN or U-Net) that fits best, where random cells are trained, and for masks.",
        "--rivals",
    )
    protocol: str | Protocol = option(
        AUTO, "How they are trained: `oche list protocols`, or FILE.py:NAME.", "--protocol"
    )
    settings: Mapping[str, object] = option(
        {}, "PART.FIELD=VALUE, as often as you like; see docs/settings.md.", "--set"
    )
    probes: Sequence[str | Probe] = option(
        (), "gap, eigenvalue, tau, table or FILE.py:NAME, as often as you like: measured after each epoch.", "--probe"
    )
    table: str | None = option(
        None,
        "nb201 or FILE.py:NAME: answers searches that ask for cells, and tells what each epoch's cell of any other is worth.",
        "--table",
    )
    seeds: int = option(1, "Searches, from --seed on; the best cell by --pick is kept.", "--seeds")
    pick: str = option(
        "validation", "validation: each seed's cell is trained by --protocol and scored there.", "--pick"
    )
    recompute: bool = option(False, "Less memory, more time: cells run again in the backward pass.", "--recompute")
    compile: bool = option(
        False, "torch.compile the cells that run in plain PyTorch: minutes before the first step.", "--compile"
    )
    track: Sequence[str] = option(
        (), "tensorboard or mlflow: they are told what is measured, too (pip install 'oche[tensorboard]').", "--track"
    )
    out: str | Path | None = option(
        None,
        "The run's folder, runs/METHOD-SPACE by default; an existing one is never overwritten.",
        "--out",
        recorded=False,
    )
    progress: bool = option(False, "Show the table before the run and a bar while it runs.", recorded=False)
    listener: Listener = option(silent, "Told of every step and epoch.", recorded=False)


@dataclass(frozen=True)
class TrainRequest(Limited):
    """What a training is asked for. None stands for the search's own value, or the protocol's; "auto" for what fits the data.

    `genotype` is a search's folder (whose data and space are taken over), a genotype file, a published string, or the name of a
    published cell or of a rival (`resnet8`). `space`, `data`, `task`, `protocol` and `settings` are as in `Request`.
    """

    genotype: str | Path = option(
        "", "A search's folder, a genotype file, string, published name, or a rival: `oche list rivals`.", ""
    )
    _: KW_ONLY
    data: str | Path | Source | None = option(None, "Default: the search's data.", "--data")
    space: str | Space | type[Space] | None = option(None, "The space of a genotype that does not say it.", "--space")
    task: str | Task | None = option(None, "As for `oche search`. Default: the search's.", "--task")
    protocol: str | Protocol = option(
        AUTO, "`oche list protocols`, or FILE.py:NAME. Default: fast, for masks segment.", "--protocol"
    )
    epochs: int | None = option(None, "Default: the protocol's.", "--epochs")
    batch: str | int | None = option(
        None,
        "Images per step, over all processes; auto measures which is quickest. Default: the protocol's.",
        "--batch",
    )
    time: str | int | None = option(None, "How long the whole command may take: 20m. Chooses the epochs.", "--time")
    seed: int = option(0, "Everything random depends on this number.", "--seed")
    device: str = option("auto", "auto, cpu, cuda, cuda:0 or mps.", "--device")
    devices: int | None = option(
        None,
        "How many processes share each batch, one per device. Default: 1, or as many as torchrun starts.",
        "--devices",
    )
    sync_batch_norm: bool = option(
        False, "Batch norm over the images of all processes: slower; the result is that of one.", "--sync-batch-norm"
    )
    precision: str = option("32", "32, or bf16 for mixed precision.", "--precision")
    threads: int | None = option(None, "CPU threads. Default: 1 for images up to 16x16, else all.", "--threads")
    inherit: bool = option(False, "Begin with the weights of the run's network.", "--inherit")
    more: int | None = option(
        None,
        "Train a finished training's network that many epochs more, by its own settings, from a tenth of its rate.",
        "--more",
    )
    settings: Mapping[str, object] = option(
        {}, "PART.FIELD=VALUE, as often as you like; see docs/settings.md.", "--set"
    )
    track: Sequence[str] = option(
        (), "tensorboard or mlflow: they are told what is measured, too (pip install 'oche[tensorboard]').", "--track"
    )
    out: str | Path | None = option(
        None, "The run's folder; an existing one is never overwritten.", "--out", recorded=False
    )
    progress: bool = option(False, "Show the table before the run and a bar while it runs.", recorded=False)
    listener: Listener = option(silent, "Told of every step and epoch.", recorded=False)


# ------------------------------------------------------------------ objects in the place of names

NAMED = ("method", "space", "data", "task", "protocol")
"""Options that take a name or an object."""


def objects_of(request: Request | TrainRequest) -> tuple[str, ...]:
    """The options and settings that were handed over as objects, which run.toml cannot hold."""
    found = [n for n in NAMED if not isinstance(getattr(request, n, None), str | Path | None)]
    if isinstance(request, Request) and any(not isinstance(probe, str) for probe in request.probes):
        found.append("probes")
    return (*found, *(f"settings.{path}" for path, value in request.settings.items() if not _is_plain(value)))


def check_objects(request: Request | TrainRequest, recorded: Mapping[str, object] | None) -> None:
    """Raises UserError where a run's options had been handed over as objects and are not again."""
    resolved = (recorded or {}).get("resolved", {})
    needed = resolved.get("objects", []) if isinstance(resolved, Mapping) else []
    for name in needed:
        if name not in objects_of(request):
            field_, _, path = name.partition(".")
            what = f"{field_}={{{path!r}: ...}}" if path else f"{field_}=..."
            raise UserError(
                f"The run's {name} was handed over as an object ({_recorded_name(request, field_, path)}), which run.toml cannot hold: "
                f"hand it over again, `oche.resume(RUN, {what})`."
            )


def _recorded_name(request: Request | TrainRequest, name: str, path: str) -> object:
    return request.settings.get(path) if path else getattr(request, name)


def plain(request: Asked, **names: str) -> Asked:
    """The request with plain values alone: files by their whole paths, objects by these names or their own; nothing unrecorded."""
    changes: dict[str, Any] = {f.name: f.default for f in fields(request) if not words(f).recorded}
    for name in NAMED:
        value = getattr(request, name, None)
        if value is not None and name != "data":
            changes[name] = own.absolute(value) if isinstance(value, str) and value != AUTO else names[name]
    changes["settings"] = {path: _as_plain(value) for path, value in request.settings.items()}
    if isinstance(request, Request):
        changes["probes"] = tuple(own.absolute(p) if isinstance(p, str) else own.display(p) for p in request.probes)
    return replace(request, **changes)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | Path)


def _as_plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_as_plain(item) for item in value]
    if value is None:
        return NONE
    return str(value) if isinstance(value, Path) else own.absolute(value) if _is_plain(value) else own.display(value)


# ------------------------------------------------------------------ a request as a call, and as a table


def verb(of: Callable[P, Asked]) -> Callable[[Callable[[Asked], R]], Callable[P, R]]:
    """Turns a function of a request into one with the request's fields as its parameters, names, defaults and types."""

    def wrap(run: Callable[[Asked], R]) -> Callable[P, R]:
        @functools.wraps(run)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return run(of(*args, **kwargs))

        signature = inspect.signature(of).replace(return_annotation=run.__annotations__.get("return"))
        order = [f.name for f in in_order(cast(type[Request], of))]
        signature = signature.replace(
            parameters=sorted(signature.parameters.values(), key=lambda p: order.index(p.name))
        )
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {name: hint for name, hint in config.annotations_of(of).items() if hint is not KW_ONLY}
        call.__doc__ = f"{inspect.cleandoc(run.__doc__ or '')}\n\n{inspect.cleandoc(of.__doc__ or '')}\n\n{_told(of)}"
        return call

    return wrap


def _told(of: object) -> str:
    """The options with their help, a line each."""
    lines = [f"    {f.name}: {words(f).help}" for f in in_order(cast(type[Request], of))]
    return "\n".join(["Args:", *lines])


def options(of: type[Request] | type[TrainRequest]) -> tuple[Field[object], ...]:
    """The options that run.toml records."""
    return tuple(f for f in in_order(of) if words(f).recorded)


def in_order(of: type[Request] | type[TrainRequest]) -> list[Field[Any]]:
    """The fields of a request, its own before those that it shares with others."""
    return sorted(fields(of), key=lambda f: f.name in Limited.__dataclass_fields__)


def written(request: Request | TrainRequest) -> dict[str, object]:
    """The request as a table of run.toml; every value is plain. None is "none"."""
    table = {f.name: getattr(request, f.name) for f in options(type(request))}
    return {name: NONE if v is None else list(v) if isinstance(v, tuple) else v for name, v in table.items()}


def options_for_data(request: Request) -> str:
    """The options with which `oche train` reads and splits the same data, as they are typed; "" for data without a name.

    >>> options_for_data(Request(data="my photos", seed=3, settings={"data.size": [32, 32], "space.channels": 8}))
    "--data 'my photos' --set 'data.size=[32, 32]' --seed 3"
    >>> options_for_data(Request())
    ''
    """
    if not isinstance(request.data, str | Path):
        return ""
    said = [] if request.data == Request.data else ["--data", shlex.quote(str(request.data))]
    if isinstance(request.task, str) and request.task != Request.task:
        said += ["--task", shlex.quote(request.task)]
    for path, value in request.settings.items():
        if path.startswith("data."):
            plain = list(value) if isinstance(value, tuple) else value
            said += ["--set", shlex.quote(f"{path}={plain}")]
    return " ".join([*said, *(["--seed", str(request.seed)] if request.seed != Request.seed else [])])


def requested(run: Run) -> tuple[Request | TrainRequest, Mapping[str, object]]:
    """The request in a run's run.toml, and the whole table. Raises UserError where it holds none."""
    return request_in(run.read(Run.CONFIG), str(run.file(Run.CONFIG)))


def recorded_request(path: Path) -> tuple[Request, Mapping[str, object] | None]:
    """The request of a search in a run.toml file, and the whole table, to repeat it. Raises UserError.

    There is no table to repeat where the file holds the request alone, as `oche init` writes it.
    """
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}; expected the run.toml of a search.")
    request, table = request_in(read_bounded(path), str(path))
    if not isinstance(request, Request):
        raise UserError(f"{path} is of a training; `oche train --resume {path.parent}` carries on with it.")
    return request, table if set(table) > {"request"} else None


def request_in(text: bytes, where: str) -> tuple[Request | TrainRequest, Mapping[str, object]]:
    """The request in the text of a run.toml, and the whole table. Raises UserError."""
    table = config.loads(text.decode(errors="replace"), where)
    if "training" in table:
        return config.build(TrainRequest, part_of(table, "training"), where), table
    return config.build(Request, part_of(table, "request"), where), table


def part_of(table: Mapping[str, object], name: str) -> Mapping[str, object]:
    """A table of run.toml. Raises UserError where it is missing."""
    part = table.get(name)
    if not isinstance(part, dict):
        raise UserError(f"run.toml has no [{name}] table; expected the run.toml that a search or a training wrote.")
    return part


def earlier_share(recorded: Mapping[str, object] | None, kind: str) -> int:
    """What a recorded batch is multiplied by: runs of before counted a process's images, later ones those of all processes."""
    if recorded is None or "processes" in (table_of(recorded, "resolved", optional=True) or {}):
        return 1
    devices = part_of(recorded, kind).get("devices", 1)
    return devices if isinstance(devices, int) else 1


def table_of(
    recorded: Mapping[str, object] | None, name: str, *, optional: bool = False
) -> Mapping[str, object] | None:
    """A table of a run.toml, if there is one; an optional table may be missing, of older runs. Raises UserError."""
    return None if recorded is None or (optional and name not in recorded) else part_of(recorded, name)


def rules_of(recorded: Mapping[str, object] | None) -> int:
    """The version of the rules that a run.toml was written under; 1 where it has no entry. Raises UserError for a later one."""
    rules = config.RULES if recorded is None else recorded.get("rules", 1)
    if not isinstance(rules, int) or not 1 <= rules <= config.RULES:
        raise UserError(
            f"run.toml was written under rules {rules}, and this oche knows up to {config.RULES}: install a later one."
        )
    return rules
