"""Ends a search whose cell has settled: the derived genotype has not changed for a number of epochs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from oche.search.callbacks import Callback
from oche.search.state import SearchState

STILL = "patience/still"
"""Epochs in a row, in the state's memory, whose genotype was that of the epoch before."""


@dataclass(frozen=True)
class Patience(Callback):
    """Ends the search when the genotype has been the same for `epochs` epochs, counted from the first in which alpha steps.

    The genotype is the one that the epoch's record has. What is handed out is that of the last epoch that ran. docs/results/fewer_steps.md
    has how often the rule ends a search too early.
    """

    epochs: int

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if record["phase"] != "search":
            return
        before = state.memory.get(STILL)
        still = 0 if before is None or record["changed"] else int(before) + 1
        state.memory[STILL] = torch.tensor(still)
        done, planned = state.epoch + 1, state.problem.epochs
        if still >= self.epochs and done < planned:
            state.stop = True
            record["settled"] = (
                f"the cell has not changed for {still} epoch{'s' if still > 1 else ''}: the search ends after {done} of {planned}"
            )
