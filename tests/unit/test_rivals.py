"""Rivals are trained, scored, resumed and exported like found networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oche.api.resume import resume
from oche.api.train import TrainRequest, plan_training, train
from oche.errors import UserError
from oche.spaces import ChainSpace
from oche.spaces.cost import cost
from oche.spaces.rivals import RIVALS
from oche.training.export import load_network
from reference.tiny import tiny_data

TINY = {"protocol": "smoke", "epochs": 1, "batch": 6, "threads": 1}


def test_a_rival_is_trained_in_its_own_space_and_width(tmp_path: Path) -> None:
    trained = train("resnet8", data=tiny_data(12), out=tmp_path / "run", settings={"space.channels": 8}, **TINY)  # type: ignore[arg-type]
    loaded = load_network(trained.run)
    assert isinstance(loaded.space, ChainSpace)
    assert loaded.space == replace(RIVALS["resnet8"].network(loaded.space, 8)[0], size=loaded.space.size)
    assert loaded.card["parameters"] == cost(loaded.space, RIVALS["resnet8"].genotype).parameters
    assert loaded.genotype == RIVALS["resnet8"].genotype
    x = torch.rand(2, loaded.space.inputs, *loaded.space.size)
    assert trained.network()(x).shape == (2, loaded.space.outputs)
    assert trained.export(["pt2"])[0].name == "model.pt2"


def test_a_rival_is_resumed_as_it_was_begun(tmp_path: Path) -> None:
    plan = plan_training(TrainRequest("ds_cnn", data="digits", settings={"space.channels": 3}, **TINY))  # type: ignore[arg-type]
    run = plan.start(tmp_path / "run")
    assert plan.name == "ds_cnn-train"
    ended = resume(run.path)
    assert load_network(ended.run).space == plan.training.space
    assert plan.training.space.channels == 3  # type: ignore[attr-defined]


def test_protocols_of_stacked_cells_leave_a_rivals_width_alone() -> None:
    for name in ("nb201", "robust_small"):
        plan = plan_training(TrainRequest("resnet20", data=tiny_data(12), protocol=name))
        assert plan.training.space.channels == 64  # type: ignore[attr-defined]


def test_a_folder_goes_before_a_rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet8").write_text("|nor_conv_3x3~0|+|none~0|skip_connect~1|")
    assert plan_training(TrainRequest("resnet8", data=tiny_data(12), space="toy")).training.space.name == "toy"
    with pytest.raises(UserError, match=r"of the space 'chain', not of 'nb201'"):
        plan_training(TrainRequest("resnet20", data=tiny_data(12), space="nb201"))
    with pytest.raises(UserError, match="oche list rivals"):
        plan_training(TrainRequest("resnet9", data=tiny_data(12)))
