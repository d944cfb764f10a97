"""Keeps a comparison within `--time` under a load that changes: the epochs of each further seed, by what the one before took."""

from __future__ import annotations

from dataclasses import dataclass, field

from oche.api.expected import ENDING, Clock, given_epochs
from oche.plan.resolve import Plan
from oche.plan.within import OVER, nearest
from oche.training.train import Training

MISS = 0.05
"""Share of the time by which a comparison may be foreseen to miss its end before the epochs change: seeds stay alike where they can."""


@dataclass
class Rounds:
    """The epochs of the trainings with each seed, by its number from 0.

    The first has those of the protocol. From then on it is looked how long all networks took with the seed before, per epoch: where as many
    epochs would end too early or too late, those are taken that end nearest to the `clock`'s time. What the run's log has is kept, and
    without a clock, or where the epochs were given, nothing changes.
    """

    plan: Plan
    training: Training
    clock: Clock | None
    begun: float = field(default=0.0, init=False)

    def __call__(self, n: int) -> int:
        run, before = self.training.run, self.training.protocol.epochs
        for record in run.records() if run else ():
            if record.get("kind") == "time" and "seed" in record:
                changed = int(str(record["seed"])) - self.training.seed
                if changed <= n:
                    before = int(str(record["train_epochs"]))
                if changed == n:
                    return before
        if self.clock is None or given_epochs(self.plan):
            return before
        left, began = self.clock.left, self.begun
        self.begun = left
        return before if n == 0 else self._anew(n, before, began - left, left)

    def _anew(self, n: int, before: int, took: float, left: float) -> int:
        """The epochs with the seed number n, after as many as `before` took so many seconds with the one before."""
        assert self.clock is not None
        seconds, each = self.clock.seconds, took / before * (self.plan.compare_seeds - n)
        trains = left - self.clock.loaded(ENDING)
        if abs(each * before - trains) <= MISS * seconds:
            return before
        epochs = self.plan.fabric.broadcast(nearest(each, trains, OVER * seconds))
        if epochs != before:
            record = {"kind": "time", "seconds": seconds, "left": left, "train_epochs": epochs, "planned": before}
            record["seed"] = self.training.seed + n
            if self.training.run and self.plan.fabric.is_global_zero:
                self.training.run.log(record)
            self.training.listener("time", record)
        return int(epochs)
