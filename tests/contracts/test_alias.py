"""No alias in disguise: every method is its base where its own constant is zero or its part taken out, and another search with it.

One row a method. What its rule does in between is tested in `tests/methods`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import pytest

from contracts.registry import epochs
from contracts.same import moved, problem_of, searched, step_alpha_from
from oche.data import TrueTargets, Whole
from oche.methods import METHODS
from oche.methods.adarts import adarts
from oche.methods.alpha_adarts import alpha_adarts
from oche.methods.anr_darts import anr_darts
from oche.methods.beta_darts import beta_darts
from oche.methods.cdarts import cdarts
from oche.methods.d_darts import d_darts
from oche.methods.dartopti import StartFrom, dartopti
from oche.methods.darts import darts, darts_2nd
from oche.methods.darts_ada import darts_ada
from oche.methods.darts_aer import darts_aer
from oche.methods.darts_es import darts_es
from oche.methods.darts_minus import darts_minus
from oche.methods.darts_plus import darts_plus
from oche.methods.darts_pt import darts_pt
from oche.methods.ddpnas import ddpnas
from oche.methods.distilled_darts import distilled_darts
from oche.methods.drnas import Progressive as Widening
from oche.methods.drnas import drnas, drnas_progressive
from oche.methods.fair_darts import fair_darts
from oche.methods.fault_darts import fault_darts
from oche.methods.gdas import gdas
from oche.methods.gm_nas import gm_nas
from oche.methods.idarts import idarts
from oche.methods.ista_nas import ista_nas, ista_nas_one_stage
from oche.methods.lambda_darts import lambda_darts
from oche.methods.midas import midas
from oche.methods.oles import oles
from oche.methods.pcdarts import pcdarts
from oche.methods.pdarts import Progressive as Deepening
from oche.methods.pdarts import pdarts
from oche.methods.progressive_channels import Growing, progressive_channels
from oche.methods.random_features import rf_darts, rf_pcdarts
from oche.methods.random_search_ws import random_search_ws
from oche.methods.rdarts import BestTrained, rdarts, rdarts_pick
from oche.methods.rlnas import rlnas
from oche.methods.sdarts import sdarts_adv, sdarts_rs
from oche.methods.shapley_nas import Game, shapley_nas
from oche.methods.single_stage import single_stage
from oche.methods.snas import snas
from oche.methods.swd_nas import swd_nas
from oche.methods.zarts import Trials, zarts
from oche.optim import SGD, Adam, Descent
from oche.schedule import Constant, Cosine, Poly
from oche.search.loop import advance, search
from oche.search.method import Method
from oche.search.relaxations import Gated
from oche.search.stages import Staged, entered
from oche.search.state import SearchState
from oche.search.trainable import AllWeights
from oche.spaces.edges import WeightedSum


@dataclass(frozen=True)
class Row:
    """`off`, the method without its rule, searches as `base` does, up to `tolerance`; `on` does not (None: its rule waits too long)."""

    off: Method
    base: Method
    on: Method | None
    tolerance: float = 0.0


def without(method: Method, *slots: str, like: Method = darts()) -> Method:
    """The method with those slots as another one, DARTS, has them."""
    return replace(method, **{slot: getattr(like, slot) for slot in slots})


def still(method: Method) -> Method:
    """With an inner step of size zero: weights stay."""
    return replace(method, weight_lr=Constant(0.0))


far = step_alpha_from
CHANNELS = replace(pcdarts(), arch_start=15 / 80, arch_optimizer=Adam(6e-4), weight_lr=Cosine(0.025, 0.0))
DESCENT = replace(darts(), arch_optimizer=Descent())
ONE_TRIAL = Trials(samples=1, steps=0, far=1e-300, sigma=Constant(0.0))
ROUNDING = 1e-6  # of fused and plain kernels

ROWS: dict[str, Row] = {
    "darts_2nd": Row(still(darts_2nd()), still(darts()), darts_2nd(), ROUNDING),
    "pcdarts": Row(without(pcdarts(1), "relaxation"), replace(darts(), arch_start=0.3), pcdarts(1)),
    "rf_darts": Row(without(rf_darts(), "trainable"), darts(), rf_darts()),
    "rf_pcdarts": Row(without(rf_pcdarts(2), "trainable"), pcdarts(2), rf_pcdarts(2)),
    "adarts": Row(without(adarts(), "edge", like=pcdarts()), CHANNELS, adarts()),
    "alpha_adarts": Row(without(alpha_adarts(), "edge", "relaxation", like=pcdarts()), CHANNELS, alpha_adarts()),
    "anr_darts": Row(anr_darts(0.0, 0.0), darts(), far(anr_darts(50.0, 50.0))),
    "beta_darts": Row(beta_darts(0.0), darts(), far(beta_darts(50.0))),
    "cdarts": Row(
        far(cdarts(weight=0.0, l1=0.0)), far(replace(darts(), weight_lr=Cosine(0.05, 0.05))), far(cdarts(rule="paper"))
    ),
    "darts_ada": Row(darts_ada(inf), darts_2nd(), None),
    "d_darts": Row(without(d_darts(ablation=0.0), "callbacks"), fair_darts(weight=9.0), d_darts(ablation=0.0)),
    "dartopti": Row(replace(dartopti(), relaxation=StartFrom(())), replace(d_darts(), arch_start=1 / 11), dartopti()),
    "darts_aer": Row(darts_aer(0.0), darts_2nd(), far(darts_aer(5.0)), ROUNDING),
    "darts_es": Row(darts_es(inf), darts_2nd(), None),
    "darts_minus": Row(darts_minus(0.0), darts(), darts_minus(), ROUNDING),
    "darts_plus": Row(darts_plus(skips=99), darts(), darts_plus(skips=0)),
    "ddpnas": Row(
        without(ddpnas(), "relaxation", "edge", "arch_start", "split", "callbacks"),
        replace(darts(), weight_optimizer=SGD(weight_decay=5e-4)),
        None,
    ),
    "distilled_darts": Row(distilled_darts(weight=0.0, lessons=1), darts(), distilled_darts(lessons=1), ROUNDING),
    "drnas": Row(without(drnas(), "relaxation"), darts(), drnas()),
    "fair_darts": Row(
        without(fair_darts(0.0), "relaxation", "arch_optimizer", "weight_lr"),
        darts(),
        without(fair_darts(), "arch_optimizer", "weight_lr"),
    ),
    "fault_darts": Row(
        fault_darts(0.0, 0.0, share=0.0, left=99), darts(), far(fault_darts(50.0, 0.0, share=0.0, left=99))
    ),
    "gdas": Row(without(gdas(), "relaxation", "edge"), darts(), gdas()),
    "idarts": Row(
        still(idarts()), still(replace(darts(), arch_every=4, arch_first=False)), still(idarts(T=1)), ROUNDING
    ),
    "ista_nas": Row(
        without(ista_nas(), "relaxation", "edge", "callbacks"),
        replace(darts(), arch_optimizer=Adam(6e-4), weight_lr=Cosine(0.1, 0.001)),
        ista_nas(),
    ),
    "ista_nas_one_stage": Row(
        without(
            ista_nas_one_stage().method, "edge", "trainable", "single_level", "split", "callbacks", like=ista_nas()
        ),
        replace(ista_nas(), arch_optimizer=Adam(), weight_lr=Constant(0.025)),
        ista_nas_one_stage().method,
    ),
    "lambda_darts": Row(lambda_darts(weight=0.0), darts(), lambda_darts()),
    "midas": Row(without(midas(), "relaxation", "edge", "arch_start", "selection"), darts(), midas()),
    "oles": Row(oles(threshold=-1.1), darts(), oles(window=1, threshold=1.1)),
    "random_search_ws": Row(
        without(random_search_ws(), "relaxation", "edge", "arch_start"), darts(), random_search_ws()
    ),
    "rdarts": Row(rdarts("l2", 3e-4), darts_2nd(), rdarts()),
    "rlnas": Row(
        replace(rlnas(), targets=TrueTargets()),
        replace(random_search_ws(), split=Whole(), trainable=AllWeights(affine=True)),
        rlnas(),
    ),
    "sdarts_adv": Row(sdarts_adv(0.0), darts(), sdarts_adv(), ROUNDING),
    "sdarts_rs": Row(sdarts_rs(0.0), darts(), sdarts_rs(), ROUNDING),
    "shapley_nas": Row(
        replace(shapley_nas(), edge=WeightedSum(), callbacks=(Game(1, 8, step=0.0),)),
        replace(darts(), arch_start=1.0),
        None,
    ),
    "snas": Row(without(snas(), "relaxation", "single_level", "split"), darts(), without(snas(), "split")),
    "swd_nas": Row(without(swd_nas(), "relaxation", "edge", "arch_start", "selection"), darts(), swd_nas()),
    "zarts": Row(
        replace(zarts(), arch_gradient=ONE_TRIAL, arch_start=0.0, arch_every=1), DESCENT, far(zarts(2, 2)), ROUNDING
    ),
}

STAGES: dict[str, tuple[Staged, Staged, Method]] = {
    "darts_pt": (darts_pt(tune=1), darts_pt(tune=1), darts()),
    "drnas_progressive": (Staged("whole", drnas(), Widening((1,), (8,))), drnas_progressive(), drnas()),
    "gm_nas": (gm_nas(splits=0), gm_nas(splits=1), darts()),
    "pdarts": (
        replace(pdarts(), stages=Deepening((0.0, 0.0, 0.0))),
        pdarts(),
        replace(darts(), weight_lr=Cosine(0.025, 0.0), arch_optimizer=Adam(6e-4), arch_clip=5.0, arch_start=0.4),
    ),
    "progressive_channels": (
        Staged("whole", progressive_channels().method, Growing((1,), (8,), (4,))),
        progressive_channels(),
        replace(adarts(), arch_start=0.4),
    ),
    "rdarts_pick": (rdarts_pick(), replace(rdarts_pick(), choose=BestTrained("smoke")), darts_2nd()),
    "single_stage": (
        single_stage(freeze=1.0),  # never frozen
        single_stage(),
        replace(
            darts(),
            relaxation=Gated(),
            trainable=AllWeights(affine=True),
            arch_start=0.2,
            arch_optimizer=Adam(3e-3, weight_decay=0.0),
            weight_optimizer=SGD(weight_decay=5e-4),
            weight_lr=Poly(0.05),
        ),
    ),
}
"""(without its rule, with it, the base that its first stage then is)."""

NO_BASE = {
    "darts",
    "random_sampling",
    "largest_cell",
    "random_search",
    "local_search",
    "regularized_evolution",
    "bananas",
    "gaussian_process",
    "dsm_nas",
    "svge",
    "oncenas",
    "dnas",
}


ENDED: list[tuple[Method, SearchState]] = []


def ended(base: Method) -> SearchState:
    """The end of the base's search; a base of several rows is searched once."""
    if not any(method == base for method, _ in ENDED):
        ENDED.append((base, searched(base, "toy")))
    return next(state for method, state in ENDED if method == base)


@pytest.mark.parametrize("name", ROWS)
def test_without_its_rule_it_is_its_base(name: str) -> None:
    row = ROWS[name]
    assert moved(searched(row.off, "toy"), ended(row.base)) <= row.tolerance


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.on])
def test_with_its_rule_it_is_not(name: str) -> None:
    row = ROWS[name]
    assert row.on is not None
    assert moved(searched(row.on, "toy"), ended(row.base)) > 1e-9, "it is its base under another name"


@pytest.mark.parametrize("name", STAGES)
def test_the_first_stage_is_the_base_and_all_of_them_are_not(name: str) -> None:
    off, on, base = STAGES[name]
    problem = problem_of("toy", epochs=max(3, epochs(name, "toy")), count=24)
    stage = off.stages(problem, off.method, ())
    assert stage is not None
    state = entered(problem, stage, ())
    advance(state, stage.method)
    plain = search(replace(problem, epochs=stage.epochs), base).state
    assert moved(state, plain) <= ROUNDING
    assert moved(on.search(problem).state, search(problem, base).state) > ROUNDING


def test_every_method_has_a_row() -> None:
    assert ROWS.keys() | STAGES.keys() | NO_BASE == METHODS.keys()
