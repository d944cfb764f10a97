"""Rivals are trained, scored, resumed and exported like found networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oche.api.resume import resume
from oche.api.train import TrainRequest, plan_training, train
from oche.errors import UserError
from oche.spaces import ChainSpace, GridSpace
from oche.spaces.cost import cost
from oche.spaces.limits import Limits
from oche.spaces.rivals import RIVALS, contenders
from oche.training.export import load_network
from oche.training.train import retrain
from reference.tiny import tiny_data, tiny_masks

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


# ---------------------------------------------------------------------- masks


def convolved(inputs: int, outputs: int, kernel: int) -> int:
    """Weights of a convolution without bias and of the batch norm behind it."""
    return kernel**2 * inputs * outputs + 2 * outputs


def in_grid(c: int, inputs: int, classes: int, levels: int) -> int:
    """Weights of what every grid has: three 3x3 convolutions to `c` channels, a 1x1 per level to 2 c, and 3x3 to `c`.

    Then a 3x3 of the image to `c`, a 3x3 of both to `c`, and a 1x1 to the classes.
    """
    stem = convolved(inputs, c, 3) + 2 * convolved(c, c, 3)
    coarse = sum(convolved(c << level, 2 * c, 1) for level in range(levels)) + 9 * 2 * c * c + c
    return stem + coarse + convolved(inputs, c, 3) + convolved(2 * c, c, 3) + c * classes + classes


@pytest.mark.parametrize("c", [4, 16, 21])
def test_rivals_of_masks_have_the_weights_of_their_layers(c: int) -> None:
    """A layer is a 1x1 convolution and, unless it passes features across, a 3x3; widths double with the stride. Counted by hand."""
    like = GridSpace(outputs=11, inputs=3, size=(96, 128))
    fcn = in_grid(c, 3, 11, 1) + 2 * (convolved(c, c, 1) + convolved(c, c, 3))
    assert cost(*RIVALS["plain_fcn"].network(like, c)).parameters == fcn
    across = 4 * convolved(c, c, 1) + 2 * convolved(2 * c, 2 * c, 1)
    fine = convolved(c, c, 1) + convolved(c, c, 3)
    middle = convolved(c, 2 * c, 1) + convolved(2 * c, 2 * c, 1) + 2 * convolved(2 * c, 2 * c, 3)
    coarse = convolved(2 * c, 4 * c, 1) + convolved(4 * c, 4 * c, 1) + 2 * convolved(4 * c, 4 * c, 3)
    assert cost(*RIVALS["unet"].network(like, c)).parameters == in_grid(c, 3, 11, 3) + across + fine + middle + coarse


@pytest.mark.parametrize(("limit", "name"), [(3_000, "plain_fcn"), (14_139, "plain_fcn"), (100_000, "unet")])
def test_the_rival_of_masks_that_fits(limit: int, name: str) -> None:
    found = contenders(("auto",), GridSpace(outputs=11, size=(96, 128)), Limits(parameters=limit)).networks
    assert list(found) == [name]
    assert 0.75 * limit < cost(*found[name]).parameters <= limit


@pytest.mark.parametrize("name", ["plain_fcn", "unet"])
def test_a_rival_of_masks_is_trained_on_masks(name: str) -> None:
    asked = TrainRequest(name, data=tiny_masks(12), protocol="segment_smoke", epochs=1, settings={"space.channels": 4})
    plan = plan_training(asked)
    assert plan.training.space.channels == 4  # type: ignore[attr-defined]
    network = retrain(plan.training)
    assert network(torch.rand(2, 2, 8, 8)).shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match="one class per image"):
        plan_training(replace(asked, data=tiny_data(12)))
