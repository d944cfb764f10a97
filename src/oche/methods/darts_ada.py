"""DARTS-ADA: regularisation that adapts to the curvature. A. Zela et al. ICLR 2020, arXiv 1909.09656.

Where DARTS-ES would stop, this goes back: weights, alpha, both optimisers and the epoch return to what they were after the earlier
epoch, the weight decay is multiplied by `factor`, and the search goes on to its last epoch; again and again, while the weight decay
stays within `most`. Second-order DARTS otherwise.

Taken from code (automl/RobustDARTS @ 3dec3fe, scripts/DARTS-ADA_search.sh:19): from 3e-4, factor 10, at most 0.03; the rule is that of
`darts_es`. Without its script that code has 3 and 0.0243 (src/search/args.py:67-68), which was our default before.

Deviations from the paper: none known.
Deviations from the script of the published numbers: those of `darts_es`, but the last epoch's probe is not looked at, as there; the series
of eigenvalues goes back too, where the code's tracker is a default argument that keeps those of the epochs it has left
(src/search/train_search.py:95), so that it compares means across the return.
Cost against DARTS: `darts_es`'s, and up to 12 epochs more for each return; seven states are kept in memory and in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from oche.base import Positive
from oche.methods.darts import darts_2nd
from oche.methods.darts_es import Curvature, curvatures
from oche.search.callbacks import Callback
from oche.search.checkpoint import dumps, loads
from oche.search.method import Method
from oche.search.state import SearchState
from oche.watch.monitor import EigenvalueRule


@dataclass(frozen=True)
class RollBack(Callback):
    """Keeps the state after each probe that the rule may go back to; goes back before the epoch after a trigger."""

    rule: EigenvalueRule = EigenvalueRule()
    curvature: Curvature = Curvature()
    factor: Positive = 10.0
    most: float = 0.03

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        record["weight_decay"] = decay = float(state.weight_optimizer.param_groups[0]["weight_decay"])
        if not self.curvature.due(state):
            return
        found = self.rule.growth(*self.curvature(state, record))
        if found and found[1] > self.rule.ratio and decay * self.factor <= self.most * (1 + 1e-9):
            state.memory["ada/back"] = torch.tensor(found[0])

    def on_epoch_start(self, state: SearchState) -> None:
        back = state.memory.pop("ada/back", None)
        if back is not None:
            self.go_back(state, int(back))
            return
        epochs, _ = curvatures(state)
        if epochs and epochs[-1] == state.epoch - 1 and kept(epochs[-1]) not in state.memory:
            bare = replace(state, memory={}, trajectory={})
            state.memory[kept(epochs[-1])] = torch.frombuffer(bytearray(dumps(bare)), dtype=torch.uint8)
            reach = self.rule.lag + self.rule.window // 2
            for epoch in epochs[: -reach - 1]:
                state.memory.pop(kept(epoch), None)

    def go_back(self, state: SearchState, epoch: int) -> None:
        """To the end of `epoch`, with more weight decay; the log, and the states before it, stay."""
        lines, memory, trajectory = state.lines, dict(state.memory), state.trajectory
        decay = state.weight_optimizer.param_groups[0]["weight_decay"] * self.factor
        loads(state, memory[kept(epoch)].cpu().numpy().tobytes(), state.problem.fabric.device)
        state.weight_optimizer.param_groups[0]["weight_decay"] = decay
        rows = memory["curvature"]
        later = {kept(int(e)) for e in rows[:, 0].tolist() if e > epoch}
        memory["curvature"] = rows[rows[:, 0] <= epoch]
        state.memory = {name: t for name, t in memory.items() if name not in later}
        state.trajectory = {name: known[: state.epoch + 1] for name, known in trajectory.items()}
        state.lines = lines


def kept(epoch: int) -> str:
    """The memory's name of the state at the end of an epoch."""
    return f"ada/state/{epoch}"


def darts_ada(ratio: float = 1.3, every: int = 2, factor: float = 10.0, most: float = 0.03) -> Method:
    """DARTS with more weight decay whenever its loss turns sharp.

    Second order; it goes back to before the validation loss turned sharp in alpha.
    """
    return replace(
        darts_2nd(),
        name="darts_ada",
        callbacks=(RollBack(EigenvalueRule(ratio=ratio), Curvature(every), factor, most),),
        papers=("liu2019darts", "zela2020understanding"),
    )
