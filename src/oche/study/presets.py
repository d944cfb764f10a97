"""The four studies: which arms, and what is measured of each. A file or flags may change any of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oche.errors import UserError, unknown
from oche.study.measure import Measure

Arms = dict[str, dict[str, object]]
"""Name -> the fields of a `bench.Arm`."""

SMOKE, QUICK = 4, 60
"""Epochs of a study's horizon by budget, where neither a file nor a flag says."""


@dataclass(frozen=True)
class Size:
    """How much of a study is done: epochs of the horizon, seeds, and how fine its grids are. `masks`: in the grid space."""

    epochs: int
    seeds: int
    smoke: bool
    masks: bool

    def thin(self, whole: tuple[float, ...], some: tuple[float, ...]) -> tuple[float, ...]:
        """`some` of a grid in a smoke test."""
        return some if self.smoke else whole


def preset(name: str, budget: str, epochs: object = None, *, masks: bool = True) -> tuple[dict[str, object], Measure]:
    """The fields of the bench's matrix, and what is measured. Raises UserError for an unknown study."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    smoke = budget == "smoke"
    horizon = epochs if isinstance(epochs, int) else SMOKE if smoke else QUICK
    if horizon < SMOKE:
        raise UserError(f"A study's horizon is cut into phases and needs {SMOKE} epochs at least; given {horizon}.")
    size = Size(horizon, 1 if smoke else 3, smoke, masks)
    arms, measure, baseline = STUDIES[name](size)
    matrix: dict[str, object] = {
        "methods": (),
        "arms": arms,
        "baseline": baseline,
        "baselines": (),
        "spaces": ("grid",) if masks else ("nb201",),
        "data": ("digits_masks",) if masks else ("digits",),
        "budgets": (budget,),
        "seeds": size.seeds,
        "epochs": horizon,
        "protocol": "segment_brief" if masks else "brief",
    }
    return matrix, measure


def discretisation(size: Size) -> tuple[Arms, Measure, str]:
    """What is lost when a supernet is made discrete, without an entropy term?"""
    arms: Arms = {"unregularised": single_stage()}
    if size.masks:
        arms["softmax_gates"] = single_stage(gate="softmax")
    return arms, Measure(sweep(size), tuned(size), (1,) if size.smoke else (1, 5, 10)), "unregularised"


def entropy(size: Size) -> tuple[Arms, Measure, str]:
    """Does a penalty on entropy cost the supernet what it saves in decoding?"""
    arms: Arms = {"no_penalty": single_stage()}
    for weight in size.thin((1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), (0.3,)):
        for schedule in ("constant", "linear", "delayed"):
            for on in ("ops", "gates", "both") if size.masks else ("ops",):
                arms[f"{on}_{schedule}_{weight:g}"] = single_stage(entropy=weight, schedule=schedule, on=on)
    return arms, Measure(few(size), retrained=tuple(arms)), "no_penalty"


def protocol(size: Size) -> tuple[Arms, Measure, str]:
    """Is one stage as good as decoding and training again, at equal epochs? And is the search worth anything?"""
    half = size.epochs // 2
    two = {"epochs": half, "settings": {"train.epochs": size.epochs - half}}
    arms: Arms = {
        "v1_soft": single_stage(),
        "v2_prune": single_stage(variant="prune"),
        "v3_progressive": single_stage(variant="progressive"),
    }
    return arms, Measure(few(size)), "v1_soft"


def split(size: Size) -> tuple[Arms, Measure, str]:
    """Who should see which images, and does it keep a search from degenerating?"""
    arms = {name: single_stage(split=name) for name in SPLITS}
    return arms, Measure(few(size)), "fixed"


STUDIES: dict[str, Callable[[Size], tuple[Arms, Measure, str]]] = {
    "discretisation": discretisation,
    "entropy": entropy,
    "protocol": protocol,
    "split": split,
}
SPLITS = ("fixed", "full", "redrawn", "unequal", "group", "one_level", "until_freeze", "swap")


# ------------------------------------------------------------------ decodings


def sweep(size: Size) -> tuple[str, ...]:
    """Every decoding that makes sense in the space."""
    kappas = size.thin(tuple(k / 10 for k in range(11)), (0.0, 0.5, 1.0))
    ramp = [f"ramp@{kappa:.1f}" for kappa in kappas]
    inputs = ("best1", "best2", *(("path",) if size.masks else ()))
    taus = size.thin(tuple(k / 20 for k in range(19)), (0.0, 0.4, 0.5))
    edges = [f"edge@{tau:.2f}" for tau in taus] if size.masks else []
    return ("op", "op_kept", *inputs, *edges, *(f"op+{name}" for name in (*inputs, *edges)), *ramp)


def few(size: Size) -> tuple[str, ...]:
    """The usual decodings."""
    return ("op", "best2", "op+best2", *(("edge@0.50", "op+edge@0.50") if size.masks else ()))


def tuned(size: Size) -> tuple[str, ...]:
    """Those that are also fine-tuned, beside the continuous network."""
    return ("continuous", "op", "op+best2") if size.smoke or not size.masks else ("continuous", *few(size))


# ------------------------------------------------------------------ arms


def single_stage(**options: object) -> dict[str, object]:
    return {"method": "darts", "settings": {}}
