"""The published methods by name. `METHODS["pcdarts"](K=2)` builds one; `rf_` before any name freezes its convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from oche.config import build
from oche.errors import unknown
from oche.methods.beta_darts import PUBLISHED as BETA_DARTS
from oche.methods.beta_darts import beta_darts
from oche.methods.budgets import QUICK as OURS_QUICK
from oche.methods.budgets import Budget
from oche.methods.cdarts import cdarts
from oche.methods.d_darts import PUBLISHED as D_DARTS
from oche.methods.d_darts import d_darts
from oche.methods.dartopti import dartopti
from oche.methods.darts import PUBLISHED as DARTS
from oche.methods.darts import darts, darts_2nd
from oche.methods.darts_ada import darts_ada
from oche.methods.darts_aer import darts_aer
from oche.methods.darts_es import darts_es
from oche.methods.darts_minus import darts_minus
from oche.methods.darts_plus import darts_plus
from oche.methods.darts_pt import PUBLISHED as DARTS_PT
from oche.methods.darts_pt import QUICK as DARTS_PT_QUICK
from oche.methods.darts_pt import SMOKE as DARTS_PT_SMOKE
from oche.methods.darts_pt import darts_pt
from oche.methods.ddpnas import PUBLISHED as DDPNAS
from oche.methods.ddpnas import QUICK as DDPNAS_QUICK
from oche.methods.ddpnas import SMOKE as DDPNAS_SMOKE
from oche.methods.ddpnas import ddpnas
from oche.methods.drnas import PROGRESSIVE as DRNAS_PROGRESSIVE
from oche.methods.drnas import PUBLISHED as DRNAS
from oche.methods.drnas import drnas, drnas_progressive
from oche.methods.fair_darts import PUBLISHED as FAIR_DARTS
from oche.methods.fair_darts import fair_darts
from oche.methods.gdas import PUBLISHED as GDAS
from oche.methods.gdas import gdas
from oche.methods.gm_nas import PUBLISHED as GM_NAS
from oche.methods.gm_nas import SMOKE as GM_NAS_SMOKE
from oche.methods.gm_nas import gm_nas
from oche.methods.idarts import PUBLISHED as IDARTS
from oche.methods.idarts import idarts
from oche.methods.ista_nas import ONE_STAGE as ISTA_NAS_ONE_STAGE
from oche.methods.ista_nas import PUBLISHED as ISTA_NAS
from oche.methods.ista_nas import ista_nas, ista_nas_one_stage
from oche.methods.lambda_darts import PUBLISHED as LAMBDA_DARTS
from oche.methods.lambda_darts import lambda_darts
from oche.methods.oles import PUBLISHED as OLES
from oche.methods.oles import oles
from oche.methods.pcdarts import PUBLISHED as PCDARTS
from oche.methods.pcdarts import pcdarts
from oche.methods.pdarts import PUBLISHED as PDARTS
from oche.methods.pdarts import SMOKE as PDARTS_SMOKE
from oche.methods.pdarts import pdarts
from oche.methods.random_features import QUICK, random_features, rf_darts, rf_pcdarts
from oche.methods.random_sampling import RandomSampling
from oche.methods.random_search_ws import random_search_ws
from oche.methods.rdarts import rdarts
from oche.methods.rlnas import PUBLISHED as RLNAS
from oche.methods.rlnas import rlnas
from oche.methods.sdarts import PUBLISHED as SDARTS
from oche.methods.sdarts import sdarts_adv, sdarts_rs
from oche.methods.shapley_nas import PUBLISHED as SHAPLEY_NAS
from oche.methods.shapley_nas import shapley_nas
from oche.methods.single_stage import BUDGETS as SINGLE_STAGE
from oche.methods.single_stage import single_stage
from oche.methods.snas import PUBLISHED as SNAS
from oche.methods.snas import snas
from oche.methods.zarts import PUBLISHED as ZARTS
from oche.methods.zarts import zarts
from oche.search.searcher import SearcherLike

METHODS: dict[str, Callable[..., SearcherLike]] = {
    "darts": darts,
    "darts_2nd": darts_2nd,
    "pcdarts": pcdarts,
    "rf_darts": rf_darts,
    "rf_pcdarts": rf_pcdarts,
    "beta_darts": beta_darts,
    "cdarts": cdarts,
    "darts_ada": darts_ada,
    "d_darts": d_darts,
    "dartopti": dartopti,
    "darts_aer": darts_aer,
    "darts_es": darts_es,
    "darts_minus": darts_minus,
    "darts_plus": darts_plus,
    "darts_pt": darts_pt,
    "ddpnas": ddpnas,
    "drnas": drnas,
    "drnas_progressive": drnas_progressive,
    "fair_darts": fair_darts,
    "gdas": gdas,
    "gm_nas": gm_nas,
    "idarts": idarts,
    "ista_nas": ista_nas,
    "ista_nas_one_stage": ista_nas_one_stage,
    "lambda_darts": lambda_darts,
    "oles": oles,
    "pdarts": pdarts,
    "rdarts": rdarts,
    "rlnas": rlnas,
    "sdarts_adv": sdarts_adv,
    "sdarts_rs": sdarts_rs,
    "shapley_nas": shapley_nas,
    "single_stage": single_stage,
    "snas": snas,
    "zarts": zarts,
    "random_sampling": RandomSampling,
    "random_search_ws": random_search_ws,
}

PUBLISHED: dict[str, Mapping[str, Budget]] = {
    "darts": DARTS,
    "darts_2nd": DARTS,
    "pcdarts": PCDARTS,
    "beta_darts": BETA_DARTS,
    "darts_pt": DARTS_PT,
    "d_darts": D_DARTS,
    "dartopti": D_DARTS,
    "drnas": DRNAS,
    "drnas_progressive": DRNAS_PROGRESSIVE,
    "fair_darts": FAIR_DARTS,
    "ddpnas": DDPNAS,
    "gdas": GDAS,
    "gm_nas": GM_NAS,
    "idarts": IDARTS,
    "ista_nas": ISTA_NAS,
    "ista_nas_one_stage": ISTA_NAS_ONE_STAGE,
    "lambda_darts": LAMBDA_DARTS,
    "oles": OLES,
    "pdarts": PDARTS,
    "rlnas": RLNAS,
    "sdarts_adv": SDARTS,
    "sdarts_rs": SDARTS,
    "shapley_nas": SHAPLEY_NAS,
    "snas": SNAS,
    "zarts": ZARTS,
}
"""Published settings of each method, by space, for `--budget paper`."""

OWN: dict[str, Mapping[str, Mapping[str, Budget]]] = {
    "darts_pt": {"smoke": DARTS_PT_SMOKE, "quick": {**OURS_QUICK, **DARTS_PT_QUICK}},
    "ddpnas": {"smoke": DDPNAS_SMOKE, "quick": {**OURS_QUICK, **DDPNAS_QUICK}},
    "gm_nas": {"smoke": GM_NAS_SMOKE},
    "pdarts": {"smoke": PDARTS_SMOKE},
    "single_stage": SINGLE_STAGE,
}
"""Budgets of ours that a method needs otherwise: budget's name -> space -> budget."""


def budgets(name: str) -> dict[str, Mapping[str, Budget]]:
    """A method's own budgets: what was published of it, or of its base for `rf_NAME`; and what random features need to be quick."""
    base = name.removeprefix("rf_")
    own: dict[str, Mapping[str, Budget]] = {"paper": PUBLISHED.get(base, DARTS), **OWN.get(base, {})}
    return own if base == name else {**own, "quick": QUICK}


def method_named(name: str, options: Mapping[str, object] | None = None) -> SearcherLike:
    """The method of that name with its options; `rf_NAME` is `random_features(NAME)`. Raises UserError for an unknown one."""
    if name in METHODS:
        return build(METHODS[name], options or {}, f"method {name}")
    base = name.removeprefix("rf_")
    if base in METHODS and base != name:
        return random_features(build(METHODS[base], options or {}, f"method {base}"))
    raise unknown("method", name, METHODS)


__all__ = ["METHODS", "budgets", "method_named", "random_features"]
