"""Every method that trains a supernet, for a few epochs of digits: it learns, alpha moves and does not degenerate, what is gone stays gone.

And what moves by a schedule has, epoch by epoch, the values of its formula. What single rules do beside that is in `test_on_digits.py`
and in the methods' own tests.
"""

from __future__ import annotations

from collections.abc import Callable as Function
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from oche.methods import METHODS
from oche.search.callbacks import Callback
from oche.search.searcher import as_searcher
from oche.search.state import SearchState
from reference.real import digits, epochs_of, real_problem

pytestmark = pytest.mark.slow

OPTIONS: dict[str, dict[str, Any]] = {
    "darts_plus": {"skips": 6},
    "darts_pt": {"tune": 1},
    "ddpnas": {"sweeps": 1},
    "shapley_nas": {"permutations": 1, "images": 64},
}
"""Those that would take long, or might stop at once, by their own options."""

EPOCHS = {
    **dict.fromkeys(("darts_2nd", "darts_ada", "darts_es"), 2),
    "darts_pt": 10, "ddpnas": 14, "gm_nas": 10, "ista_nas_one_stage": 8, "pdarts": 9, "progressive_channels": 9, "random_search_ws": 8,
}  # fmt: skip
"""Where four take long, or are too few for what the method does."""

NO_ALPHA = ("rlnas", "random_search_ws")
"""They choose cells by something else than strengths."""

SIBLINGS = ("gm_nas", "rdarts_pick")
"""Their stages do not follow each other, so that a later one may have what an earlier one lost."""

SCHEDULES: dict[str, tuple[str, Function[[float], float]]] = {
    "anr_darts": ("norm_weight", lambda p: 1 - p),
    "beta_darts": ("beta_decay", lambda p: 0.5 * (4 * p - 1)),
    "darts_minus": ("beta", lambda p: 1 - p),
    "gdas": ("temperature", lambda p: 10 - 9.9 * p),
    "lambda_darts": ("lambda", lambda p: 0.125 * p),
    "sdarts_rs": ("epsilon", lambda p: 0.03 + 0.27 * p),
    "sdarts_adv": ("epsilon", lambda p: 0.03 + 0.27 * p),
}
"""Method -> what its log calls the number, and the number at the share p of the search that is done, after each epoch."""


@dataclass(frozen=True)
class Masks(Callback):
    """After every epoch: which candidates are left, {group: (E, O) bool}."""

    seen: list[dict[str, Tensor]] = field(default_factory=list)

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        self.seen.append({group.name: state.alive(group).clone() for group in state.space.groups})


@pytest.mark.parametrize("name", [name for name in METHODS if as_searcher(METHODS[name]()).method is not None])
def test_it_learns_decides_and_does_not_degenerate(name: str) -> None:
    told: list[dict[str, Any]] = []
    masks = Masks()
    searcher = as_searcher(METHODS[name](**OPTIONS.get(name, {})))
    problem = real_problem("nb201", digits(), EPOCHS.get(name, 4), listener=epochs_of(told))
    genotype, state = searcher.run(problem, watch=(masks,))
    assert state is not None
    state.space.check(genotype)
    losses = [record["weight_loss"] for record in told]
    assert torch.tensor(losses).isfinite().all()
    assert min(losses[1:]) < losses[0], "the supernet learns"
    for before, after in zip(masks.seen, masks.seen[1:], strict=False):
        assert name in SIBLINGS or not any((after[g] & ~before[g]).any() for g in after), "what is pruned stays pruned"
    assert all(mask.any(-1).all() for mask in masks.seen[-1].values()), "each edge has a candidate left"
    if name not in NO_ALPHA:
        assert any(not torch.equal(rows[0], rows[-1]) for rows in state.trajectory.values()), "alpha moves"
        assert all(t.isfinite().all() for t in state.alpha.values())
    if name in SCHEDULES:
        key, formula = SCHEDULES[name]
        assert [record[key] for record in told] == pytest.approx([formula(e / 4) for e in (1, 2, 3, 4)])
