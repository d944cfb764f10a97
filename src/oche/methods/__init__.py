"""The published methods by name. `METHODS["pcdarts"](K=2)` builds one; `rf_` before any name freezes its convolutions.

A method's file declares its factory, and `BUDGETS` where it has settings of its own: {budget's name: {space: Budget}}. Here it gets
one row. What a `Budget` may set is told there; without `BUDGETS`, `--budget paper` takes the settings of DARTS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from oche.config import build
from oche.errors import unknown
from oche.methods.adarts import BUDGETS as ADARTS
from oche.methods.adarts import adarts
from oche.methods.alpha_adarts import BUDGETS as ALPHA_ADARTS
from oche.methods.alpha_adarts import alpha_adarts
from oche.methods.anr_darts import anr_darts
from oche.methods.bananas import bananas
from oche.methods.beta_darts import BUDGETS as BETA_DARTS
from oche.methods.beta_darts import beta_darts
from oche.methods.budgets import Budgets
from oche.methods.cdarts import BUDGETS as CDARTS
from oche.methods.cdarts import cdarts
from oche.methods.d_darts import BUDGETS as D_DARTS
from oche.methods.d_darts import d_darts
from oche.methods.dartopti import BUDGETS as DARTOPTI
from oche.methods.dartopti import dartopti
from oche.methods.darts import BUDGETS as DARTS
from oche.methods.darts import SECOND_ORDER, darts, darts_2nd
from oche.methods.darts_ada import darts_ada
from oche.methods.darts_aer import BUDGETS as DARTS_AER
from oche.methods.darts_aer import darts_aer
from oche.methods.darts_es import BUDGETS as DARTS_ES
from oche.methods.darts_es import darts_es
from oche.methods.darts_minus import BUDGETS as DARTS_MINUS
from oche.methods.darts_minus import darts_minus
from oche.methods.darts_plus import BUDGETS as DARTS_PLUS
from oche.methods.darts_plus import darts_plus
from oche.methods.darts_pt import BUDGETS as DARTS_PT
from oche.methods.darts_pt import darts_pt
from oche.methods.ddpnas import BUDGETS as DDPNAS
from oche.methods.ddpnas import ddpnas
from oche.methods.distilled_darts import distilled_darts
from oche.methods.dnas import dnas
from oche.methods.drnas import BUDGETS as DRNAS
from oche.methods.drnas import PROGRESSIVE_BUDGETS as DRNAS_PROGRESSIVE
from oche.methods.drnas import drnas, drnas_progressive
from oche.methods.dsm_nas import dsm_nas
from oche.methods.fair_darts import BUDGETS as FAIR_DARTS
from oche.methods.fair_darts import fair_darts
from oche.methods.fault_darts import fault_darts
from oche.methods.gaussian_process import gaussian_process
from oche.methods.gdas import BUDGETS as GDAS
from oche.methods.gdas import gdas
from oche.methods.gm_nas import BUDGETS as GM_NAS
from oche.methods.gm_nas import gm_nas
from oche.methods.idarts import BUDGETS as IDARTS
from oche.methods.idarts import idarts
from oche.methods.ista_nas import BUDGETS as ISTA_NAS
from oche.methods.ista_nas import ONE_STAGE_BUDGETS as ISTA_NAS_ONE_STAGE
from oche.methods.ista_nas import ista_nas, ista_nas_one_stage
from oche.methods.lambda_darts import BUDGETS as LAMBDA_DARTS
from oche.methods.lambda_darts import lambda_darts
from oche.methods.largest_cell import LargestCell
from oche.methods.local_search import local_search
from oche.methods.midas import BUDGETS as MIDAS
from oche.methods.midas import midas
from oche.methods.oles import BUDGETS as OLES
from oche.methods.oles import oles
from oche.methods.oncenas import oncenas
from oche.methods.pcdarts import BUDGETS as PCDARTS
from oche.methods.pcdarts import pcdarts
from oche.methods.pdarts import BUDGETS as PDARTS
from oche.methods.pdarts import pdarts
from oche.methods.progressive_channels import BUDGETS as PROGRESSIVE_CHANNELS
from oche.methods.progressive_channels import progressive_channels
from oche.methods.random_features import QUICK as RF_QUICK
from oche.methods.random_features import random_features, rf_darts, rf_pcdarts
from oche.methods.random_sampling import RandomSampling
from oche.methods.random_search import random_search
from oche.methods.random_search_ws import BUDGETS as RANDOM_SEARCH_WS
from oche.methods.random_search_ws import random_search_ws
from oche.methods.rdarts import BUDGETS as RDARTS
from oche.methods.rdarts import PICK_BUDGETS as RDARTS_PICK
from oche.methods.rdarts import rdarts, rdarts_pick
from oche.methods.regularized_evolution import regularized_evolution
from oche.methods.rlnas import BUDGETS as RLNAS
from oche.methods.rlnas import rlnas
from oche.methods.sdarts import BUDGETS as SDARTS
from oche.methods.sdarts import sdarts_adv, sdarts_rs
from oche.methods.shapley_nas import BUDGETS as SHAPLEY_NAS
from oche.methods.shapley_nas import shapley_nas
from oche.methods.single_stage import BUDGETS as SINGLE_STAGE
from oche.methods.single_stage import single_stage
from oche.methods.snas import BUDGETS as SNAS
from oche.methods.snas import snas
from oche.methods.svge import svge
from oche.methods.swd_nas import BUDGETS as SWD_NAS
from oche.methods.swd_nas import swd_nas
from oche.methods.zarts import BUDGETS as ZARTS
from oche.methods.zarts import zarts
from oche.search.searcher import SearcherLike


@dataclass(frozen=True)
class Entry:
    """A method's row: what builds it, and its own budgets."""

    factory: Callable[..., SearcherLike]
    budgets: Budgets = field(default_factory=dict)


ENTRIES: dict[str, Entry] = {
    "darts": Entry(darts, DARTS),
    "darts_2nd": Entry(darts_2nd, SECOND_ORDER),
    "pcdarts": Entry(pcdarts, PCDARTS),
    "rf_darts": Entry(rf_darts, {**DARTS, "quick": RF_QUICK}),
    "rf_pcdarts": Entry(rf_pcdarts, {**PCDARTS, "quick": RF_QUICK}),
    "adarts": Entry(adarts, ADARTS),
    "alpha_adarts": Entry(alpha_adarts, ALPHA_ADARTS),
    "anr_darts": Entry(anr_darts),
    "beta_darts": Entry(beta_darts, BETA_DARTS),
    "cdarts": Entry(cdarts, CDARTS),
    "darts_ada": Entry(darts_ada, DARTS_ES),
    "d_darts": Entry(d_darts, D_DARTS),
    "dartopti": Entry(dartopti, DARTOPTI),
    "darts_aer": Entry(darts_aer, DARTS_AER),
    "darts_es": Entry(darts_es, DARTS_ES),
    "darts_minus": Entry(darts_minus, DARTS_MINUS),
    "darts_plus": Entry(darts_plus, DARTS_PLUS),
    "darts_pt": Entry(darts_pt, DARTS_PT),
    "ddpnas": Entry(ddpnas, DDPNAS),
    "distilled_darts": Entry(distilled_darts),
    "drnas": Entry(drnas, DRNAS),
    "drnas_progressive": Entry(drnas_progressive, DRNAS_PROGRESSIVE),
    "fair_darts": Entry(fair_darts, FAIR_DARTS),
    "fault_darts": Entry(fault_darts),
    "gdas": Entry(gdas, GDAS),
    "gm_nas": Entry(gm_nas, GM_NAS),
    "idarts": Entry(idarts, IDARTS),
    "ista_nas": Entry(ista_nas, ISTA_NAS),
    "ista_nas_one_stage": Entry(ista_nas_one_stage, ISTA_NAS_ONE_STAGE),
    "lambda_darts": Entry(lambda_darts, LAMBDA_DARTS),
    "midas": Entry(midas, MIDAS),
    "oles": Entry(oles, OLES),
    "pdarts": Entry(pdarts, PDARTS),
    "progressive_channels": Entry(progressive_channels, PROGRESSIVE_CHANNELS),
    "rdarts": Entry(rdarts, RDARTS),
    "rdarts_pick": Entry(rdarts_pick, RDARTS_PICK),
    "rlnas": Entry(rlnas, RLNAS),
    "sdarts_adv": Entry(sdarts_adv, SDARTS),
    "sdarts_rs": Entry(sdarts_rs, SDARTS),
    "shapley_nas": Entry(shapley_nas, SHAPLEY_NAS),
    "single_stage": Entry(single_stage, SINGLE_STAGE),
    "snas": Entry(snas, SNAS),
    "swd_nas": Entry(swd_nas, SWD_NAS),
    "zarts": Entry(zarts, ZARTS),
    "random_sampling": Entry(RandomSampling),
    "largest_cell": Entry(LargestCell),
    "random_search_ws": Entry(random_search_ws, RANDOM_SEARCH_WS),
    "random_search": Entry(random_search),
    "regularized_evolution": Entry(regularized_evolution),
    "local_search": Entry(local_search),
    "bananas": Entry(bananas),
    "gaussian_process": Entry(gaussian_process),
    "dsm_nas": Entry(dsm_nas),
    "svge": Entry(svge),
    "oncenas": Entry(oncenas),
    "dnas": Entry(dnas),
}

METHODS: dict[str, Callable[..., SearcherLike]] = {name: entry.factory for name, entry in ENTRIES.items()}
"""Name -> what builds the method."""


def budgets(name: str) -> Budgets:
    """A method's own budgets; `rf_NAME` has those of its base, but for `quick`, since random features learn slower."""
    if name in ENTRIES or not name.startswith("rf_"):
        return {**DARTS, **(ENTRIES[name].budgets if name in ENTRIES else {})}
    return {**budgets(name.removeprefix("rf_")), "quick": RF_QUICK}


def method_named(name: str, options: Mapping[str, object] | None = None) -> SearcherLike:
    """The method of that name with its options; `rf_NAME` is `random_features(NAME)`. Raises UserError for an unknown one."""
    if name in METHODS:
        return build(METHODS[name], options or {}, f"method {name}")
    base = name.removeprefix("rf_")
    if base in METHODS and base != name:
        return random_features(build(METHODS[base], options or {}, f"method {base}"))
    raise unknown("method", name, METHODS)


__all__ = ["ENTRIES", "METHODS", "Entry", "budgets", "method_named", "random_features"]
