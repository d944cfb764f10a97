"""Named settings: `paper` as published, `quick` for an afternoon's laptop, `smoke` to see that everything runs.

A budget is a handful of assignments as on the command line; it holds no code. The published ones lie in their method's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oche.errors import unknown


@dataclass(frozen=True)
class Budget:
    """`epochs` and `batch`, and `settings` as on the command line; `source` says where they come from.

    `steps` is the least number of batches that all train images together are worth: where they are few, there are more epochs.

    `settings` may name a field of the space (`"space.cells": 8`, `"space.without": ("none",)`), an option of the method's factory
    (`"method.K": 2`), a field of the method, be it a switch (`"arch_first": False`) or a whole part (`"weight_lr": Cosine(0.1)`), or
    a field of a part (`"weight_lr.start": 0.1`). What the user gives goes before all of them (`oche.plan.settings`).
    """

    epochs: int
    batch: int
    settings: Mapping[str, object] = field(default_factory=dict)
    source: str = "our choice"
    steps: int = 0

    def epochs_for(self, images: int, batch: int) -> int:
        """The epochs for so many train images.

        >>> Budget(60, 8, steps=1600).epochs_for(64, 8), Budget(60, 8, steps=1600).epochs_for(400, 8)
        (200, 60)
        """
        return max(self.epochs, -(-self.steps // -(-images // batch)))


Budgets = Mapping[str, Mapping[str, Budget]]
"""Budget's name -> space -> budget. A method's row stands in the place of the space's own, and takes nothing over from it."""


QUICK: dict[str, Budget] = {
    "toy": Budget(30, 64, {"arch_optimizer.lr": 3e-3}),
    "nb201": Budget(40, 64, {"space.cells": 1, "space.channels": 16, "arch_optimizer.lr": 3e-3}),
    "darts": Budget(25, 64, {"space.cells": 5, "space.channels": 8, "arch_optimizer.lr": 3e-3}),
    **dict.fromkeys(
        ("chain", "signal"),
        Budget(25, 64, {"space.layers": (2, 2, 2), "space.channels": 8, "arch_optimizer.lr": 3e-3}),
    ),
    "sase": Budget(25, 64, {"space.layers": (1, 1, 1), "space.channels": 8, "arch_optimizer.lr": 3e-3}),
    "grid": Budget(40, 8, {"space.layers": 6, "space.channels": 8, "arch_optimizer.lr": 3e-3}),
}
"""Our choice: one cell a stage, a tenfold learning rate for alpha because there are few steps."""

SMOKE: dict[str, Budget] = {
    "toy": Budget(2, 16, {}),
    "nb201": Budget(2, 16, {"space.cells": 1, "space.channels": 4}),
    "darts": Budget(2, 16, {"space.cells": 3, "space.channels": 4}),
    **dict.fromkeys(("chain", "signal"), Budget(2, 16, {"space.layers": (2, 1, 1), "space.channels": 4})),
    "sase": Budget(2, 16, {"space.layers": (1, 1), "space.channels": 4}),
    "grid": Budget(2, 4, {"space.layers": 3, "space.channels": 4, "space.levels": 3}),
}
"""Our choice: seconds. Its numbers mean nothing."""

OTHERS: dict[str, Budget] = {
    **dict.fromkeys(("chain", "signal", "sase"), Budget(50, 64, {"arch_optimizer.lr": 3e-3})),
    "grid": Budget(
        200, 8, {"arch_optimizer.lr": 3e-3, "arch_optimizer.weight_decay": 0.0, "weight_optimizer.weight_decay": 5e-4}
    ),
}
"""Our choice, for spaces in which no method has published settings."""

NAMES = ("paper", "quick", "smoke")


def budget(name: str, space: str, own: Budgets) -> Budget:
    """The budget of that name in that space; `own` are a method's own.

    Spaces without an entry take that in `OTHERS`, or that of `darts`. Raises UserError for an unknown name.
    """
    tables = {"quick": QUICK, "smoke": SMOKE, **own}
    if name not in tables:
        raise unknown("budget", name, NAMES)
    return tables[name].get(space) or OTHERS.get(space) or tables[name]["darts"]
