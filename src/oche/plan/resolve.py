"""From what a search is asked for to what is run: names, budgets and settings become a method, a space and data.

A setting is `path=value`. Its path begins with a part: `space`, `data`, `task` (the loss), `train` (the protocol of the comparison
and of retraining), `probe`, `method` (an option of the method, or any of its fields), or one of the method's own slots:
`trainable.classifier=true`; where a slot has parts with names, the slot alone takes one of them: `trainable=classifier`.
Which value goes before which is told in `oche.plan.settings`; run.toml keeps what came out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace

from lightning_fabric import Fabric
from torch import nn

from oche import config, own
from oche.data import Data
from oche.errors import UserError, unknown
from oche.fast.portable.program import needs_compiler
from oche.methods import budgets
from oche.methods.budgets import Budget, budget
from oche.plan import named
from oche.plan.chosen import auto_space, chosen
from oche.plan.compared import beside_kept, cells_of, left_free, rivals_of, seeds_of
from oche.plan.machine import fabric_for, threads_for, versions
from oche.plan.parts import (
    data_facts,
    data_for,
    form_of,
    limits_for,
    path_of,
    space_for,
    table_path,
    task_for,
)
from oche.plan.patience import patience_of
from oche.plan.processes import processes, shared_out
from oche.plan.request import (
    AUTO,
    Request,
    check_objects,
    earlier_share,
    number_of,
    objects_of,
    plain,
    rules_of,
    table_of,
    written,
)
from oche.plan.settings import PARTS, Change, by_part, differing, layered, reached
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.searcher import SearcherLike, around, as_searcher
from oche.search.stages import Staged
from oche.spaces import Space
from oche.spaces import named as spaces
from oche.spaces.fit import check, searched
from oche.spaces.limits import Limits
from oche.spaces.rivals import NONE, names
from oche.tasks import Classify, Task
from oche.training.protocols import BRIEF, Protocol, lengthened
from oche.watch import trackers
from oche.watch.named import Watch, checked

IMAGENET = 128
"""Pixels from which on a published ImageNet setting is taken where a method has one (the stem changes there too)."""


@dataclass(frozen=True)
class Plan:
    """A request resolved: everything that a search and the comparison after it need.

    `request` holds plain values alone; `objects` names the options that were handed over as objects, which a resumed run needs again.
    `changed` is what the budget changed, `files` the user's own files. `rules` is the version of the rules that the run keeps to, an
    earlier one where it was begun by an earlier oche. `chosen` says what "auto" stands for, where that is more than a name. `free` names
    the options of the comparison that were left to oche.
    """

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
    changed: tuple[Change, ...] = ()
    objects: tuple[str, ...] = ()
    files: own.Files = field(default_factory=dict)
    rules: int = config.RULES
    chosen: str = ""
    limits: Limits = Limits()
    free: tuple[str, ...] = ()

    @property
    def compare(self) -> int:
        """How many random cells are trained beside the found one."""
        return self.request.compare or 0

    @property
    def compare_seeds(self) -> int:
        """How often each of them is trained."""
        return seeds_of(self.request)

    @property
    def beside_kept(self) -> bool:
        """True if the rivals are trained once, and stand beside the network that the search itself hands out."""
        return beside_kept(self.searcher, self.compare, self.compare_seeds)

    @property
    def rivals(self) -> tuple[str, ...]:
        """The rivals that are trained beside it, `auto` for the one that fits the limits or the found network's cost best."""
        return names(self.request.rivals)

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """What stands beside the method's own callbacks: what is watched, and what ends the search early."""
        return (
            *self.watch.callbacks(as_searcher(self.searcher).keeps_weights),
            *patience_of(self.request, self.searcher),
        )

    def table(self) -> dict[str, object]:
        """run.toml: the request, every resolved value, and the versions."""
        return {
            "rules": self.rules,
            "request": written(self.request),
            "resolved": {
                "epochs": self.epochs,
                "batch": self.batch,
                "processes": self.fabric.world_size,
                "settings_from": self.source,
                "device": str(self.fabric.device),
                "objects": list(self.objects),
                **({"chosen": self.chosen} if self.chosen else {}),
                **({"limits": self.limits.table()} if self.limits else {}),
            },
            "method": config.describe(self.searcher),
            "space": config.describe(self.space),
            "task": config.describe(self.task),
            "train": config.describe(self.protocol),
            "watch": config.describe(self.watch),
            "data": data_facts(self.data),
            "versions": versions(),
        }


def resolve(request: Request, recorded: Mapping[str, object] | None = None) -> Plan:
    """Turns a request into a plan; the values of `recorded`, a run.toml, hold. Raises UserError for anything unknown or impossible."""
    with own.noted() as files:
        plan = _resolved(request, recorded)
    return replace(plan, files=files)


def _resolved(request: Request, recorded: Mapping[str, object] | None) -> Plan:
    _check_seeds(request)
    check_objects(request, recorded)
    if request.table is not None:
        request = named.with_table(request, request.table)
    trackers.checked(request.track)
    count, rules = processes(request.devices, recorded is not None), rules_of(recorded)
    fabric = fabric_for(request.device, count, request.precision)
    asked_space = None if request.space == AUTO else spaces.space(request.space)
    data = data_for(request.data, request.task, request.seed, by_part(request.settings).get("data", {}), asked_space)
    choice = chosen(request, data)
    request, form = choice.request, form_of(data)
    parts = {name: part for name, part in by_part(request.settings).items() if name != "data"}
    task = task_for(data, request.task, parts.pop("task", {}), table_of(recorded, "task", optional=True), rules)
    kind = asked_space or spaces.space(auto_space(request, data))
    of_train, of_probe, of_space = (parts.pop(name, {}) for name in ("train", "probe", "space"))

    found = named.method(request.method)
    row_of = _budget(request.budget, found, str(kind().name), data)
    searcher, changed = _searcher(found, row_of, parts, table_of(recorded, "method"), rules)
    usual, kept = _usual(found, searcher, str(kind().name))
    row = {} if own.is_foreign(request.space) else by_part(row_of.settings).get("space", {})
    row = {path: value for path, value in row.items() if path not in kept}
    lower = {**usual, **row, **_smaller(choice.space, row)}
    space, on_space = space_for(kind, data, of_space, lower=lower, recorded=table_of(recorded, "space"), rules=rules)
    method = as_searcher(searcher).method
    if method and space.name in method.unfit:
        raise UserError(
            f"{own.display(request.method)} is not made for the space {space.name!r}: {method.unfit_why}; "
            "choose another method or space."
        )
    limits = limits_for(request, "channels" in of_space)
    if recorded is None:
        space = _within(limits, space, searcher)
    protocol_name = BRIEF[form] if request.protocol == AUTO else request.protocol
    protocol, _ = layered(
        named.protocol(protocol_name), "train", given=of_train, recorded=table_of(recorded, "train"), rules=rules
    )
    if recorded is None and "epochs" not in of_train:
        protocol = lengthened(protocol, len(data.train))
    watch, _ = layered(
        Watch.of(request.probes),
        "probe",
        given=of_probe,
        recorded=table_of(recorded, "watch", optional=True),
        rules=rules,
    )
    watch = checked(watch, space.name, method is not None)
    epochs, batch = _length(request, row_of, table_of(recorded, "resolved"), len(data.train))
    were = earlier_share(recorded, "request")
    batch, protocol = batch * were, replace(protocol, batch=protocol.batch * were)
    patience_of(request, searcher)
    compare = cells_of(request, searcher)
    seeds = seeds_of(request, searcher, compare)
    kept_alone = beside_kept(searcher, compare, seeds)
    rivals = rivals_of(request, recorded, form, compare, kept_alone)
    if kept_alone and recorded is None and request.protocol == AUTO and "epochs" not in of_train:
        protocol = replace(protocol, epochs=epochs)
    for shared in (batch, *([protocol.batch] if compare or rivals != NONE else [])):
        shared_out(shared, count)
    if request.compile:
        if method is None:
            raise UserError(f"--compile is for cells of a supernet, and {searcher.name} has none: leave it out.")
        needs_compiler(fabric.device)
    if (
        request.sync_batch_norm
        and count > 1
        and (request.compile or (protocol.compile and (compare or rivals != NONE)))
    ):
        raise UserError("Compiled programs leave no room for --sync-batch-norm's exchanges: leave one of the two out.")
    settled = replace(
        plain(request, method=searcher.name, space=space.name, task=task.name, protocol=own.display(protocol_name)),
        data=path_of(request.data, data),
        batch=request.batch if request.batch in (None, AUTO) else batch // were,
        compare=compare,
        compare_seeds=seeds,
        rivals=rivals,
        latency_table=table_path(request.latency_table),
        threads=threads_for(request.threads, data),
        devices=count,
    )
    return Plan(
        settled, searcher, space, data, protocol, epochs, batch, fabric, row_of.source, watch, task,
        () if recorded else (*(replace(c, path=f"space.{c.path}") for c in on_space if c.path in row), *changed), objects_of(request),
        rules=rules, chosen=choice.says, limits=limits, free=left_free(request),
    )  # fmt: skip


def _smaller(fitted: Mapping[str, object], row: Mapping[str, object]) -> dict[str, object]:
    """What fits the data where the budget has no less."""
    return {path: min(int(str(value)), int(str(row.get(path, value)))) for path, value in fitted.items()}


def _within(limits: Limits, space: Space, searcher: SearcherLike) -> Space:
    """The space at the width at which it is searched under the limits. Raises UserError where none of its networks keeps them."""
    if not limits:
        return space
    found = as_searcher(searcher)
    check(space, limits)
    edge = found.method.edge if found.method else None

    def allowed(narrower: Space) -> bool:
        try:
            if edge is not None:
                edge(["skip_connect"], narrower.channels, 1, lambda op, width: nn.Identity())  # type: ignore[attr-defined]
        except UserError:
            return False
        return True

    space = searched(space, limits, allowed, isinstance(found, Staged) and found.keeps_whole)
    check(space, limits, found.keeps_weights)
    return space


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
    if request.seeds > 1 and processes(request.devices, recorded=True) > 1:
        raise UserError("Several seeds run one after the other on one device: leave `--devices` or `--seeds` out.")


def _length(request: Request, chosen: Budget, recorded: Mapping[str, object] | None, images: int) -> tuple[int, int]:
    """Epochs and batch: as asked, as recorded, or the budget's for so many train images. Raises UserError."""
    for name in ("epochs", "batch"):
        if recorded and name in recorded:
            chosen = config.override(chosen, name, recorded[name], "run.toml: resolved")
    batch = number_of(request.batch, chosen.batch)
    usual = chosen.epochs if recorded else chosen.epochs_for(images, max(1, batch))
    epochs = usual if request.epochs is None else request.epochs
    if request.batch == AUTO and request.budget == "paper":
        raise UserError(
            f"The published budget has a batch of its own, {batch}: leave --batch out, or give it a number."
        )
    if batch < 2 or epochs < 1:
        raise UserError(
            f"A search needs at least one epoch and batches of two images; given epochs={epochs}, batch={batch}."
        )
    return epochs, batch


# ------------------------------------------------------------------ the method, and what it brings to the space


def _budget(name: str, found: named.Found, space: str, data: Data) -> Budget:
    """The budget of that name, for the method in the space; in the DARTS space, for large images, the published one of ImageNet."""
    tables = budgets(found.build({}).name)
    large = "imagenet" in tables["paper"] and min(data.size) >= IMAGENET and space == "darts"
    return budget(name, "imagenet" if large else space, tables)


def _searcher(
    found: named.Found,
    chosen: Budget,
    parts: Mapping[str, Mapping[str, object]],
    recorded: Mapping[str, object] | None,
    rules: int,
) -> tuple[SearcherLike, tuple[Change, ...]]:
    """The searcher with the budget's settings and those given, or as recorded, and what the budget changed. Raises UserError."""
    row, asked = by_part(chosen.settings), parts.get("method", {})
    options = {name: value for name, value in asked.items() if name in found.options}
    of_row = {n: v for n, v in row.get("method", {}).items() if n in found.options and n not in options}
    searcher = found.build({**of_row, **options})
    given = {**parts.get("slot", {}), **{path: value for path, value in asked.items() if path not in options}}
    lower = {**row.get("slot", {}), **{p: v for p, v in row.get("method", {}).items() if p not in found.options}}
    kept = reached(found.build, found.factory, of_row, options)
    if found.own:
        kept |= _own_paths(found.build({}), found.frozen)
    changes = tuple(Change(f"method.{name}", found.default(name), value) for name, value in of_row.items())
    searcher, more = _with(searcher, found.name, lower, kept, given)
    if recorded is not None:
        searcher = config.restore(searcher, recorded, "run.toml: method", rules)
    return searcher, (*changes, *more)


def _with(
    searcher: SearcherLike, name: str, lower: Mapping[str, object], kept: set[str], given: Mapping[str, object]
) -> tuple[SearcherLike, tuple[Change, ...]]:
    """The searcher with fields changed: its own, such as `queries` or `stages.X`, and all else its method's."""
    method = as_searcher(searcher).method
    inner = None if method is searcher else method
    own_, inside = _settable(searcher), _settable(inner) if inner else set()
    for head in (path.partition(".")[0] for path in given):
        if not own_ | inside:
            raise UserError(f"{searcher.name} has no parts to set; it takes no {', '.join(sorted(given))}.")
        if head not in own_ | inside:
            raise unknown("part", head, [*sorted(own_ | inside), *PARTS])
    searcher, changes = layered(
        searcher, name, budget=_of(lower, own_), kept=kept, given=_of(given, own_), choose=named.slot
    )
    if inner is None:
        return searcher, changes
    below = {path.removeprefix("method.") for path in kept}
    changed, more = layered(
        inner, name, budget=_of(lower, inside - own_), kept=below, given=_of(given, inside - own_), choose=named.slot
    )
    return around(searcher, changed, searcher.name), (*changes, *more)


def _settable(part: SearcherLike) -> set[str]:
    """The fields of a method or a searcher that settings may change."""
    assert is_dataclass(part)
    return {f.name for f in fields(part) if f.repr} - {"name", "papers", "method", "keeps_weights"}


def _of(settings: Mapping[str, object], heads: set[str]) -> dict[str, object]:
    """Those settings whose path begins with one of these names."""
    return {path: value for path, value in settings.items() if path.partition(".")[0] in heads}


def _own_paths(searcher: SearcherLike, frozen: bool) -> set[str]:
    """The paths that a method of the user's own sets: those in which it is not first-order DARTS, and all of its stages."""
    paths = set(differing(Method(), as_searcher(searcher).method)) - ({"trainable"} if frozen else set())
    return paths if isinstance(searcher, Method) else {*(f"method.{path}" for path in paths), "stages"}


def _usual(found: named.Found, searcher: SearcherLike, space: str) -> tuple[dict[str, object], set[str]]:
    """The method's own settings of the space, for all spaces and for this one; and which of them no budget changes."""
    method, plain_method = as_searcher(searcher).method, as_searcher(found.build({})).method
    now = _of_space(method, space) if method else {}
    before = _of_space(plain_method, space) if plain_method else {}
    return now, {path for path, value in now.items() if found.own or before.get(path) != value}


def _of_space(method: Method, space: str) -> dict[str, object]:
    """A method's settings of a space: those for all, and those that begin with the space's name."""
    own_ = {path: value for path, value in method.space.items() if "." not in path}
    return own_ | {p.removeprefix(f"{space}."): v for p, v in method.space.items() if p.startswith(f"{space}.")}
