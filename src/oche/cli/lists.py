"""What `oche list` shows: names, each with a line about it. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Callable


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


def _methods() -> dict[str, str]:
    from oche.methods import METHODS

    return {name: _first_line(factory) for name, factory in METHODS.items()}


def _spaces() -> dict[str, str]:
    from oche.spaces import SPACES

    return {name: _first_line(space) for name, space in SPACES.items()}


def _ops() -> dict[str, str]:
    from oche.spaces import SPACES
    from oche.spaces.ops import OPS

    users = {op: [n for n, s in SPACES.items() if any(op in ops for g in s().groups for ops in g.ops)] for op in OPS}
    return {op: "in " + ", ".join(names) if names else "in no space" for op, names in users.items()}


def _data() -> dict[str, str]:
    from oche.data import SETS

    return {name: _first_line(reader) for name, reader in SETS.items()}


def _budgets() -> dict[str, str]:
    return {
        "paper": "as published",
        "quick": "an afternoon's laptop (the default)",
        "smoke": "seconds, to see that everything runs",
    }


def _protocols() -> dict[str, str]:
    from oche.training.protocols import PROTOCOLS

    return {name: f"{p.epochs} epochs, batch {p.batch}; {p.source}" for name, p in PROTOCOLS.items()}


def _genotypes() -> dict[str, str]:
    from oche.genotype import published

    return {name: entry.line for name, entry in published().items()}


def _rivals() -> dict[str, str]:
    from oche.spaces import ChainSpace, SignalSpace
    from oche.spaces.cost import cost
    from oche.spaces.rivals import RIVALS

    what = {
        "classify": "for ten classes of 32x32 RGB images",
        "segment": "for masks of ten classes on 32x32 RGB images",
    }
    lines = {}
    for name, rival in RIVALS.items():
        lines[name] = f"{rival.title}: {cost(*rival.network(ChainSpace()))} {what[rival.space.task]}"
        if rival.signals:
            found = cost(*rival.network(SignalSpace()))
            lines[name] += f"; 1-D: {found} for ten classes of 128 values in 3 channels"
    return lines


LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "spaces": _spaces,
    "ops": _ops,
    "data": _data,
    "budgets": _budgets,
    "protocols": _protocols,
    "genotypes": _genotypes,
    "rivals": _rivals,
}
