"""The four studies: their arms and measurements. A file or flags may change any of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from oche.errors import UserError, unknown
from oche.methods.budgets import NAMES
from oche.study.claims import Roles
from oche.study.measure import Measure

T = TypeVar("T")
Arms = dict[str, dict[str, object]]
"""Name -> the fields of a `bench.Arm`."""

Settings = Mapping[str, object]
Option = str | float | bool

SMOKE, QUICK = 5, 60
"""Epochs of a study's horizon by budget, where neither a file nor a flag says."""

WARM_UP, FREEZE = 0.2, 0.6
"""The shares of the horizon after which `single_stage` begins to search and freezes."""


@dataclass(frozen=True)
class Size:
    """The size of a study: epochs of the horizon, seeds, and the resolution of its grids. `masks`: in the grid space."""

    epochs: int
    seeds: int
    smoke: bool
    masks: bool

    @property
    def freeze(self) -> int:
        """The epochs of the horizon until the freeze."""
        return round(FREEZE * self.epochs)

    def thin(self, whole: tuple[T, ...], some: tuple[T, ...]) -> tuple[T, ...]:
        """Returns `some` values of a grid in a smoke test, else all of them."""
        return some if self.smoke else whole


@dataclass(frozen=True)
class Preset:
    """The fields of the bench's matrix, the measurements, and the arms' roles."""

    matrix: dict[str, object]
    measure: Measure
    roles: Roles


def preset(name: str, budget: str, epochs: object = None, *, masks: bool = True) -> Preset:
    """A study at a budget. Raises UserError for an unknown study or budget, or a horizon that is too short."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    if budget not in NAMES:
        raise unknown("budget", budget, NAMES)
    smoke = budget == "smoke"
    horizon = epochs if isinstance(epochs, int) else SMOKE if smoke else QUICK
    if horizon < SMOKE:
        raise UserError(f"A study's horizon is cut into phases and needs {SMOKE} epochs at least; given {horizon}.")
    size = Size(horizon, 1 if smoke else 3, smoke, masks)
    arms, measure, roles = STUDIES[name](size)
    matrix: dict[str, object] = {
        "methods": (),
        "arms": arms,
        "baseline": next(iter(arms)),
        "baselines": (),
        "spaces": ("grid",) if masks else ("nb201",),
        "data": ("digits_masks",) if masks else ("digits",),
        "budgets": (budget,),
        "seeds": size.seeds,
        "epochs": horizon,
        "probes": ("gap",) if name == "discretisation" else (),  # error against entropy, epoch by epoch
    }
    return Preset(matrix, measure, roles)


def discretisation(size: Size) -> tuple[Arms, Measure, Roles]:
    """Measures what is lost when a supernet is made discrete, without an entropy term."""
    first = "sigmoid_gates" if size.masks else "softmax_operations"
    arms: Arms = {first: single_stage()}
    for gates in size.thin(("softmax", "relu_tanh"), ("softmax",)) if size.masks else ():
        arms[f"{gates}_gates"] = single_stage(gates=gates)
    for operations in size.thin(("sigmoid", "normalised"), ()):
        arms[f"{operations}_operations"] = single_stage(operations=operations)
    measure = Measure(few(size), sweep(size), tuned(size), (1,) if size.smoke else (1, 5, 10))
    return arms, measure, Roles(single=first)


def entropy(size: Size) -> tuple[Arms, Measure, Roles]:
    """Compares what a penalty on entropy costs the supernet with what it saves in decoding."""
    after = {"train.epochs": size.epochs - size.freeze}
    arms: Arms = {"no_penalty": single_stage(after)}
    targets: dict[str, tuple[str, ...]] = {
        "ops": ("entropy",),
        "gates": ("gate_entropy",),
        "both": ("entropy", "gate_entropy"),
    }
    for weight in size.thin((1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), (0.3,)):
        for growth in ("constant", "linear", "delayed"):
            for on in targets if size.masks else ("ops",):
                weights = dict.fromkeys(targets[on], weight)
                arms[f"{on}_{growth}_{weight:g}"] = single_stage(after, entropy_schedule=growth, **weights)
    for form in ("ssr", "da2s"):
        arms[f"{form}_constant_0.1"] = single_stage(after, entropy_form=form, entropy=0.1, gate_entropy=0.1)
    largest = f"{'both' if size.masks else 'ops'}_constant_0.3"
    return arms, Measure(few(size), retrained=tuple(arms)), Roles(single="no_penalty", penalised=largest)


def protocol(size: Size) -> tuple[Arms, Measure, Roles]:
    """Compares one stage with decoding and training again, at equal epochs, and both with random cells."""
    two = two_stage(size)
    never: Settings = {"arch_optimizer.lr": 0.0}
    arms: Arms = {
        "soft": single_stage(),
        "prune": single_stage(variant="prune"),
        **{f"prune_{tau}": single_stage(variant="prune", threshold=tau / 100) for tau in size.thin((10, 20, 40), ())},
        **{
            f"prune_relative_{tau}": single_stage(variant="prune", relative=True, threshold=tau / 100)
            for tau in size.thin((10, 50, 90), ())
        },
        "one_hot": single_stage(variant="one_hot"),
        "two_stage": two,
        "two_stage_inherited": two,
        "uniform": single_stage(never),
        "random_frozen": single_stage({**never, "relaxation.inner.scale": 1.0, "relaxation.scale": 1.0}),
        "random_decoded": {"method": "random_sampling", "settings": {"train.epochs": size.epochs}},
        **{f"freeze_{share}": single_stage(freeze=share / 100) for share in size.thin((30, 50, 70, 100), (100,))},
        "restart": single_stage(restart=True),
    }
    if size.masks and not size.smoke:
        arms["long_range"] = single_stage({"space.reach": 2})
    return (
        arms,
        Measure(few(size), retrained=("two_stage",), inherited=("two_stage_inherited",)),
        Roles("soft", two_stage="two_stage"),
    )


def split(size: Size) -> tuple[Arms, Measure, Roles]:
    """Compares splits of the images between weights and alpha, and whether they keep a search from degenerating."""
    arms = {f"s{n}_{name}": single_stage({"split": name}) for n, name in enumerate(SPLITS)}
    first, *others = arms
    return arms, Measure(few(size)), Roles(fixed=first, splits=tuple(others))


STUDIES: dict[str, Callable[[Size], tuple[Arms, Measure, Roles]]] = {
    "discretisation": discretisation,
    "entropy": entropy,
    "protocol": protocol,
    "split": split,
}
SPLITS = ("fixed", "full", "redrawn", "unequal", "group", "one_level", "until_freeze", "swap")
"""S0 to S7, as `data.splits` names them."""


# ------------------------------------------------------------------ decodings


def few(size: Size) -> tuple[str, ...]:
    """Returns the usual decodings."""
    return ("op", "best2", "op+best2", *(("edge@0.50", "op+edge@0.50") if size.masks else ()))


def sweep(size: Size) -> tuple[str, ...]:
    """Returns the other decodings that make sense in the space."""
    kappas = size.thin(tuple(k / 10 for k in range(11)), (0.0, 0.5, 1.0))
    taus = size.thin(tuple(k / 20 for k in range(19)), (0.0, 0.4))
    inputs = ("best1", *(("path",) if size.masks else ()))
    edges = [f"edge@{tau:.2f}" for tau in taus] if size.masks else []
    whole = ("op_kept", *inputs, *edges, *(f"op+{name}" for name in (*inputs, *edges)))
    return (*(name for name in whole if name not in few(size)), *(f"ramp@{kappa:.1f}" for kappa in kappas))


def tuned(size: Size) -> tuple[str, ...]:
    """Returns the decodings that are also fine-tuned."""
    return ("continuous", "op", "op+best2") if size.smoke else ("continuous", *few(size))


# ------------------------------------------------------------------ arms


def single_stage(settings: Settings | None = None, **options: Option) -> dict[str, object]:
    """The arm of `single_stage` with these options and settings."""
    return {
        "method": "single_stage",
        "settings": {**{f"method.{k}": v for k, v in options.items()}, **(settings or {})},
    }


def two_stage(size: Size) -> dict[str, object]:
    """The same warm-up and search as in one stage, then the epochs that are left for the decoded network: as many in all."""
    alone = {"arch_start": WARM_UP / FREEZE, "train.epochs": size.epochs - size.freeze}
    return {**single_stage(alone, freeze=1.0), "epochs": size.freeze}
