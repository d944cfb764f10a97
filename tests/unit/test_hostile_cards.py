"""A card or a text of settings from elsewhere: what asks for more than its weights hold is refused before it is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as safetensors_load

from oche import config
from oche.base import counted
from oche.errors import UserError
from oche.run import Run
from oche.spaces import SPACES
from oche.spaces.sampling import sample
from oche.training.export import CARD, WEIGHTS, load_network, save_network
from reference.tiny import tiny_data, tiny_masks, tiny_space

Change = Callable[[dict[str, Any]], object]


def saved(path: Path, name: str = "toy") -> Run:
    data = tiny_masks(6, (16, 16)) if SPACES[name].task == "segment" else tiny_data(6, (16, 16))
    space = tiny_space(name, data, **({"channels": 4, "layers": 2, "levels": 2} if name == "grid" else {}))
    genotype = sample(space, counted(3))
    run = Run.create(path / "run")
    run.write(Run.CONFIG, b"")
    save_network(run, space.network(genotype), space, genotype, data, {})
    return run


def changed(run: Run, change: Change) -> None:
    """The card as someone who can write files would have it, digests and all."""
    table = json.loads(run.read(CARD))
    text = change(table)
    run.write(CARD, (text if isinstance(text, str) else json.dumps(table)).encode())


def put(*path: str, value: object) -> Change:
    def change(table: dict[str, Any]) -> None:
        for name in path[:-1]:
            table = table[name]
        table[path[-1]] = value

    return change


@pytest.mark.parametrize("name", [name for name, space in SPACES.items() if space.__module__.startswith("oche.")])
def test_every_space_s_own_card_is_taken(name: str, tmp_path: Path) -> None:
    run = saved(tmp_path, name)
    own = load_network(run).network.state_dict()
    assert own.keys() == safetensors_load(run.read(WEIGHTS)).keys()
    assert all(torch.equal(own[key], t) for key, t in safetensors_load(run.read(WEIGHTS)).items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("space", "channels", value=10**9), "channels is 1000000000, which its weights do not have"),
        (put("space", "cells", value=10**6), "cells is 1000000, which its weights do not have"),
        (put("space", "outputs", value=10**9), "outputs is"),
        (put("space", "size", value=[10**9, 10**9]), "size is"),
        (put("space", "channels", value=float("inf")), "channels is inf"),
        (put("space", "channels", value=float("nan")), "channels is nan"),
        (
            put("space", "channels", value=60),
            r"does not hold the weights of the network in its card \(.* has the shape",
        ),
        (
            put("space", "cells", value=60),
            r"does not hold the weights of the network in its card \(.* has the shape None",
        ),
        (put("input", "mean", value=["a"]), "is damaged"),
        (put("classes", value=5), "is damaged"),
        (put("genotype", value={"groups": {"cell": [[0, 10**9, "skip_connect", 1.0]]}}), "no genotype"),
        (lambda table: "[" * 300_000, "is damaged"),
        (lambda table: "3", "is damaged"),
    ],
)
def test_what_its_weights_do_not_have_is_refused(change: Change, said: str, tmp_path: Path) -> None:
    run = saved(tmp_path)
    changed(run, change)
    with pytest.raises(UserError, match=said):
        load_network(Run.open(run.path))


def test_settings_have_a_limit() -> None:
    text = "a = '" + "x" * config.LARGEST + "'"
    with pytest.raises(UserError, match=r"here has 16,777,222 letters; settings have at most 16,777,216"):
        config.loads(text, "here")
