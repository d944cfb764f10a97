"""Exports: the card, weights that belong to it, and files that are refused where they are not the network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from contracts.registry import SMALL
from oche.base import counted
from oche.data.contract import Contract
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.run import Run
from oche.spaces import Network, Space
from oche.spaces.cost import cost
from oche.spaces.limits import Limits
from oche.spaces.sampling import sample
from oche.training import export
from oche.training.export import CARD, FORMATS, WEIGHTS, Deployed, export_network, load_network, save_network
from reference.tiny import tiny_data, tiny_masks, tiny_space

DATA = tiny_data()


def cell(*ops: str) -> Genotype:
    """A cell of the toy space: ops of the edges 0-1, 0-2, 1-2."""
    edges = ((0, 1), (0, 2), (1, 2))
    return Genotype("toy", {"cell": tuple(Choice(s, t, op) for (s, t), op in zip(edges, ops, strict=True))})


CHOSEN = cell("nor_conv_3x3", "skip_connect", "nor_conv_3x3")


def trained(space: Space, genotype: Genotype, *, auxiliary: bool = False) -> Network:
    """A network with weights and running statistics that are not the initial ones."""
    torch.manual_seed(3)
    network = space.network(genotype, auxiliary=auxiliary).train()
    for _ in range(3):
        network(torch.rand(8, space.inputs, *space.size))
    return network.eval()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    space = tiny_space("toy", DATA)
    save_network(run, trained(space, CHOSEN), space, CHOSEN, DATA, {"test_accuracy": 0.5})
    return run


# ---------------------------------------------------------------------- the card and the weights


def test_the_card_says_all_that_is_needed(run: Run) -> None:
    card = json.loads(run.read(CARD))
    assert card["task"] == "classify"
    assert Genotype.from_json(json.dumps(card["genotype"])) == CHOSEN
    assert card["classes"] == ["0", "1", "2"]
    said = card["input"].pop("says")
    assert card["input"] == {"shape": ["batch", 2, 8, 8], "range": [0.0, 1.0], "mean": [0.5, 0.5], "std": [0.3, 0.3]}
    assert "applied inside" in said
    assert (card["normalisation"], card["outputs"].split()[0]) == ("inside", "logits")
    assert Contract.of(card["contract"]) == DATA.contract
    assert card["metrics"] == {"test_accuracy": 0.5}
    assert card["space"]["type"] == "ToySpace"
    weights = load_file(run.file(WEIGHTS))
    learned = [
        t for name, t in weights.items() if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert card["parameters"] == sum(t.numel() for t in learned)
    assert card["multiply_adds"] > 0


def test_a_network_is_loaded_as_it_was_saved(run: Run) -> None:
    space = tiny_space("toy", DATA)
    loaded, wanted = load_network(run), trained(space, CHOSEN)
    assert loaded.space == space
    assert loaded.genotype == CHOSEN
    assert not loaded.network.training
    assert all(torch.equal(value, loaded.network.state_dict()[name]) for name, value in wanted.state_dict().items())


def test_the_auxiliary_head_stays_behind(tmp_path: Path) -> None:
    data = tiny_data(12, (16, 16))
    space = tiny_space("darts", data, cells=3, channels=4)
    genotype = sample(space, counted(1))
    run = Run.create(tmp_path / "run")
    network = trained(space, genotype, auxiliary=True)
    assert network.auxiliary is not None
    save_network(run, network, space, genotype, data, {})
    with safe_open(run.file(WEIGHTS), "pt") as file:
        assert not [name for name in file.keys() if name.startswith("auxiliary")]  # noqa: SIM118
        assert file.metadata() == {"genotype": genotype.hash}
    assert load_network(run).network.auxiliary is None


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("toy", {"channels": 6}),
        ("nb201", {"cells": 1, "channels": 4}),
        ("s1", {"cells": 3, "channels": 4}),
        ("toy", {"sharing": "cell"}),
    ],
)
def test_every_setting_of_a_space_comes_back(name: str, settings: dict[str, object], tmp_path: Path) -> None:
    space = tiny_space(name, DATA, **settings)
    genotype = sample(space, counted(2))
    run = Run.create(tmp_path / "run")
    save_network(run, trained(space, genotype), space, genotype, DATA, {})
    assert load_network(run).space == space


# ---------------------------------------------------------------------- what does not belong together


def edited(run: Run, **changes: object) -> None:
    run.write(CARD, json.dumps({**json.loads(run.read(CARD)), **changes}).encode())


def test_a_genotype_that_was_edited(run: Run) -> None:
    genotype = json.loads(run.read(CARD))["genotype"]
    genotype["groups"]["cell"][0][2] = "skip_connect"
    edited(run, genotype=genotype)
    with pytest.raises(UserError, match="hash"):
        load_network(run)


def test_weights_of_another_size(run: Run) -> None:
    space = tiny_space("toy", DATA, channels=8)
    weights = {name: t.contiguous() for name, t in trained(space, CHOSEN).state_dict().items()}
    run.write(WEIGHTS, save(weights, metadata={"genotype": CHOSEN.hash}))
    with pytest.raises(UserError, match="does not hold the weights"):
        load_network(run)


def test_weights_of_another_genotype(run: Run) -> None:
    """Also where names and shapes are the same: skip and none have no weights that could tell."""
    other = cell("nor_conv_3x3", "none", "nor_conv_3x3")
    weights = {name: t.contiguous() for name, t in trained(tiny_space("toy", DATA), other).state_dict().items()}
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in load_file(run.file(WEIGHTS)).items()}
    run.write(WEIGHTS, save(weights, metadata={"genotype": other.hash}))
    with pytest.raises(UserError, match="another genotype"):
        load_network(run)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_truncated_weights(share: float, run: Run) -> None:
    whole = run.read(WEIGHTS)
    run.write(WEIGHTS, whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="does not hold the weights"):
        load_network(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"input": {}}'])
def test_a_damaged_card(text: str, run: Run) -> None:
    run.write(CARD, text.encode())
    with pytest.raises(UserError, match=r"card\.json"):
        load_network(run)


def test_a_run_without_weights(run: Run) -> None:
    run.file(WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"no network/weights\.safetensors"):
        load_network(run)
    shutil.rmtree(run.file(Run.NETWORK))
    with pytest.raises(UserError, match="holds no trained network"):
        export_network(run)


# ---------------------------------------------------------------------- files


def test_the_normalisation_is_inside() -> None:
    module = Deployed(nn.Identity(), (0.5, 0.25), (0.5, 2.0))
    images = torch.rand(2, 2, 3, 3)
    got = module(images)
    torch.testing.assert_close(got[:, 0], (images[:, 0] - 0.5) / 0.5)
    torch.testing.assert_close(got[:, 1], (images[:, 1] - 0.25) / 2.0)


def test_the_pt2_file_needs_no_oche(run: Run) -> None:
    """It is loaded by torch alone, takes any batch, and gives the network's scores."""
    (path,) = export_network(run, ["pt2"])
    held = {"contract": "", "outputs": ""}
    loaded, program = load_network(run), torch.export.load(path, extra_files=held).module()
    assert Contract.of(json.loads(held["contract"])) == DATA.contract
    assert held["outputs"].startswith("logits")
    for batch in (1, 2, 7):
        images = torch.rand(batch, 2, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(program(images), loaded.network((images - 0.5) / 0.3), atol=1e-5, rtol=1e-5)


def test_unknown_formats_are_refused_before_any_work(run: Run) -> None:
    with pytest.raises(UserError, match="did you mean 'onnx'"):
        export_network(run, ["pt2", "onxx"])
    assert not run.has("network/model.pt2")


def test_without_the_extra_onnx_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    assert export.available_formats() == ("pt2",)
    with pytest.raises(UserError, match=r"pip install 'oche\[onnx\]'"):
        export_network(run, ["onnx"])
    assert not run.has("network/model.onnx")


class Off(nn.Module):
    """A network whose scores are wrong by a share of the largest."""

    def __init__(self, right: nn.Module, by: float, from_batch: int = 1) -> None:
        super().__init__()
        self.right, self.by, self.from_batch = right, by, from_batch

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.right(images)
        return out + self.by * out.abs().max().clamp_min(1.0) * (len(images) >= self.from_batch)


@pytest.mark.parametrize(("by", "from_batch", "refused"), [(2e-4, 1, True), (5e-5, 1, False), (1e-2, 3, True)])
def test_a_file_that_is_not_the_network_is_refused(
    by: float, from_batch: int, refused: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_network(run)
    module = Deployed(loaded.network, loaded.augment.mean, loaded.augment.std).eval()
    monkeypatch.setattr(export, "_runner", lambda name, path: Off(module, by, from_batch))
    if refused:
        with pytest.raises(UserError, match="was not written"):
            export_network(run, ["pt2"])
    else:
        export_network(run, ["pt2"])
    assert run.has("network/model.pt2") != refused


def test_scores_that_are_not_numbers_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_network(run)
    module = Deployed(loaded.network, loaded.augment.mean, loaded.augment.std).eval()
    monkeypatch.setattr(export, "_runner", lambda name, path: Off(module, float("nan")))
    with pytest.raises(UserError, match="was not written"):
        export_network(run, ["pt2"])


@pytest.mark.slow
def test_both_formats_by_default(run: Run) -> None:
    assert [path.name for path in export_network(run)] == [f"model.{name}" for name in FORMATS]


def test_saving_leaves_the_network_alone(tmp_path: Path) -> None:
    space = tiny_space("toy", DATA)
    network = trained(space, CHOSEN)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    save_network(Run.create(tmp_path / "run"), network, space, CHOSEN, replace(DATA), {})
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nb201", "darts", "grid", "chain", "signal"])
def test_an_onnx_file_is_no_larger_than_foretold(name: str, tmp_path: Path) -> None:
    """The size that `--max-size` limits is an upper bound, and not twice too large; a file above the limit is refused."""
    dense = name == "grid"
    data = tiny_masks(12, (16, 16)) if dense else tiny_data(12, (16, 16))
    settings = {**SMALL[name], "channels": 8}
    space = tiny_space(name, data, **settings)
    run, genotype = Run.create(tmp_path / "run"), sample(space, counted(5, "file"))
    run.write(Run.CONFIG, b"")
    save_network(run, trained(space, genotype), space, genotype, data, {}, limits=Limits(size=10**9))
    (path,) = export_network(run, ["onnx"])
    foretold, taken = cost(space, genotype).size, path.stat().st_size
    assert taken <= foretold <= 2.5 * taken
    assert str(Path(export.__file__).parent).encode() not in path.read_bytes()
    save_network(run, trained(space, genotype), space, genotype, data, {}, limits=Limits(size=taken - 1))
    with pytest.raises(UserError, match="more than --max-size"):
        export_network(run, ["onnx"])
