"""What is measured beside a search after its epochs: probes by their names, how they are set, and the monitor that reads them.

oche search darts --probe eigenvalue --probe gap --set probe.every=5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from oche import own
from oche.errors import UserError, unknown
from oche.search.callbacks import Callback
from oche.tables import Table, table_named
from oche.watch.monitor import Eigenvalue, Gap, Monitor, ParameterFree, Probe, Probes, RankCorrelation, TableAccuracy


@dataclass(frozen=True)
class Watch:
    """Which probes, after every `every`-th epoch and the last. Nothing here changes the search.

    - `images`: validation images that an accuracy is measured on; `hessian_images` those of the eigenvalue.
    - `table`, its files in `folder` or where OCHE_DATA says, and `metric`: what a cell is worth. A test metric is allowed, for a
      probe selects nothing.
    - `cells`: how many of the table's cells, always the same and no two isomorphic, are ranked for Kendall's tau.

    `names` and `table` take FILE.py:NAME too; `objects` are probes that were handed over as they are.
    """

    names: tuple[str, ...] = ()
    every: int = 1
    images: int = 500
    hessian_images: int = 64
    cells: int = 20
    table: str = "nb201"
    folder: str | None = None
    metric: str = "cifar10/test"
    objects: tuple[Probe, ...] = field(default=(), repr=False)

    @staticmethod
    def of(probes: Sequence[str | Probe]) -> Watch:
        """Watches these probes: names, FILE.py:NAME, or objects."""
        names = tuple(probe for probe in probes if isinstance(probe, str))
        objects = (probe for probe in probes if not isinstance(probe, str))
        return Watch(names, objects=tuple(PROBE.part(probe) for probe in objects))

    def read(self) -> Table:
        """The table. Raises UserError."""
        table = table_named(self.table, self.folder)
        if not isinstance(table, Table):
            raise UserError(f"Probes ask an oche.tables.Table, and {self.table} gives another kind of table.")
        return table

    def told(self) -> str:
        """What is looked up in the table of each epoch's cell; "" where nothing is."""
        return (
            f"{self.table} tells the {self.metric} of each epoch's cell; nothing is chosen by it"
            if "table" in self.names
            else ""
        )

    def callbacks(self, kept: bool = False) -> tuple[Callback, ...]:
        """The probes, and the monitor behind them, to be added to a method's callbacks.

        Where the supernet is `kept`, no cell is derived: how many of its operations would be skip connections is then no sign.
        """
        beside: tuple[Callback, ...] = (Probes((ParameterFree(),)),)
        if self.names or self.objects:
            beside += (Probes(self.probes(), self.every),)
        return (*beside, Monitor(skips=1.0, parameter_free=inf) if kept else Monitor())

    def probes(self) -> tuple[Probe, ...]:
        """The probes. Raises UserError for a name that there is not."""
        made = (PROBE.part(name) if own.is_own(name) else PROBES[name](self) for name in self.names)
        return (*made, *self.objects)


PROBES: dict[str, Callable[[Watch], Probe]] = {
    "gap": lambda w: Gap(w.images),
    "eigenvalue": lambda w: Eigenvalue(w.hessian_images),
    "tau": lambda w: RankCorrelation(w.read(), w.metric, w.cells, w.images),
    "table": lambda w: TableAccuracy(w.read(), w.metric),
}
"""By name, for `--probe NAME`. Skips, the parameter-free share and alpha's entropy cost nothing and are always there."""

PROBE: own.Kind[Probe] = own.Kind(
    "probe",
    PROBES,
    lambda thing: own.takes(3)(thing) and own.has("name")(thing),
    "an object with a `name` that maps (state, problem, genotype) to a number",
)

ASKING = ("tau", "table")
"""Those that ask a table."""


def checked(watch: Watch, space: str, steps: bool) -> Watch:
    """The same. Raises UserError for what cannot be measured in this space, or of a method that has no `steps` to stop between."""
    for name in watch.names:
        if not own.is_own(name) and name not in PROBES:
            raise unknown("probe", name, PROBES)
    if (watch.names or watch.objects) and not steps:
        raise UserError("Probes look at a supernet after its epochs, and this method trains none: leave `--probe` out.")
    if min(watch.every, watch.images, watch.hessian_images, watch.cells) < 1 or watch.images < 2:
        raise UserError("probe: every, hessian_images and cells must be at least 1, images at least 2.")
    if any(name in ASKING for name in watch.names):
        table = watch.read()
        if table.space != space:
            raise UserError(
                f"The probes {' and '.join(ASKING)} ask the table {table.name}, which holds cells of {table.space}, not of {space}."
            )
        if watch.metric not in table.metrics:
            raise unknown(f"metric of {table.name}", watch.metric, table.metrics)
        if "tau" in watch.names:
            table.sample(watch.cells)
    return watch
