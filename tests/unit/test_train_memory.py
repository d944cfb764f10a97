"""A training tells what memory it needs before it begins, and is refused where it does not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import oche
from oche.api.expected import Expected, expected_of
from oche.base import Batch
from oche.data.memory import Room
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import Run
from oche.search.preflight import Estimate
from oche.spaces.cost import cost
from oche.training import memory
from oche.training.memory import COPIES, PASSING, corner, memory_bytes, refuse_if_too_large
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, begin
from reference.tiny import tiny_data, tiny_space

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|"
DATA = tiny_data(24)


def training(batch: int = 512, count: int = 24, **settings: object) -> Training:
    data = tiny_data(count)
    protocol = replace(PROTOCOLS["quick"], batch=batch)
    return Training(tiny_space("toy", data, **settings), Genotype.parse(CELL, "toy"), data, protocol)


def test_it_grows_by_what_each_image_more_keeps() -> None:
    """Against the tensors of a plain forward pass of the network, counted by hooks on all modules: at least their outputs are kept."""
    one, two = training(512), training(1024)
    state = begin(one)
    outputs: list[int] = []
    for module in state.network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, given, out: outputs.append(out.numel() * out.element_size()))
    with torch.no_grad():
        state.network.eval()(one.data.train.take(torch.arange(8))[0].permute(0, 3, 1, 2))
    grown = (memory_bytes(two) - memory_bytes(one)) / 512 / PASSING
    assert 0.4 * sum(outputs) / 8 < grown < 3 * sum(outputs) / 8
    assert memory_bytes(one) > COPIES * 4 * sum(p.numel() for p in state.network.parameters())


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_a_batch_that_is_suggested_fits(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    large = training(4096)
    need = memory_bytes(large)
    monkeypatch.setattr(memory, "free_room", lambda device: Room(need, "this machine"))
    refuse_if_too_large(large)
    monkeypatch.setattr(memory, "free_room", lambda device: Room(need * share, "this machine"))
    with pytest.raises(
        UserError, match=r"This training needs about .* GiB with a batch of 4096, and this machine"
    ) as told:
        refuse_if_too_large(large)
    found = re.search(r"--batch (\d+)\.", str(told.value))
    assert found
    refuse_if_too_large(training(int(found[1])))


def test_where_no_batch_fits_a_smaller_network_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    one = cost(training().space, training().genotype).memory
    monkeypatch.setattr(memory, "free_room", lambda device: Room(4.0 * one, "`ulimit -v`"))
    with pytest.raises(UserError, match=r"`ulimit -v` leaves 0\.0 GiB: try a smaller network, such as --set"):
        refuse_if_too_large(training(4))
    monkeypatch.setattr(memory, "memory_bytes", None)  # nothing is measured where the least that is needed is too much
    with pytest.raises(UserError, match=r"needs more than .* `ulimit -v` leaves 0\.0 GiB: try a smaller network"):
        refuse_if_too_large(training(5))
    monkeypatch.undo()
    monkeypatch.setattr(memory, "free_room", lambda device: Room(1e12, "`ulimit -v`"))

    def failing(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(memory, "begin", failing)
    with pytest.raises(
        UserError, match=r"does not fit into the 931\.3 GiB that `ulimit -v` leaves: try a smaller --batch"
    ):
        refuse_if_too_large(training())


def test_two_photographs_that_do_not_fit_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(6, (80, 96))
    large = replace(training(2), data=data, space=tiny_space("toy", data))
    two = memory._kept(large, 2)
    monkeypatch.setattr(memory, "SIDE", 16)
    monkeypatch.setattr(memory, "memory_bytes", None)
    monkeypatch.setattr(memory, "free_room", lambda device: Room(two, "`ulimit -v`"))
    with pytest.raises(
        UserError, match=r"needs more than .* leaves 0\.0 GiB: try smaller images, such as --set data\.size"
    ):
        refuse_if_too_large(large)


@pytest.mark.parametrize("progress", [True, False])
def test_a_search_counts_the_trainings_of_its_comparison(
    progress: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that fits, whose comparison does not, is refused before there is a folder."""
    monkeypatch.setattr(memory, "free_room", lambda device: Room(3e7, "`ulimit -v`"))
    options = {"data": DATA, "space": "toy", "budget": "smoke", "device": "cpu", "progress": progress, "rivals": "none"}
    with pytest.raises(
        UserError, match=r"A training of the comparison \(--compare, --rivals\) .*: try .*train\.batch"
    ) as told:
        oche.search("darts", compare=1, settings={"train.batch": 4096}, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    fits = re.search(r"--set train\.batch=(\d+)", str(told.value))
    assert fits
    plan = resolve(Request("darts", compare=1, settings={"train.batch": int(fits[1])}, **options))  # type: ignore[arg-type]
    assert expected_of(plan).memory_mib * 2**20 <= 3e7


def test_the_memory_that_is_told_is_the_largest() -> None:
    search = Estimate(1, 1, 5.0, 1.0, 1, {})
    assert Expected(search, trainings=2, training_mib=7.0).memory_mib == 7
    assert Expected(search, trainings=2, training_mib=3.0).memory_mib == 5
    assert Expected(search, trainings=0, training_mib=7.0).memory_mib == 5
    assert Expected(None, trainings=1, training_mib=7.0).memory_mib == 7


def test_corners_of_images_and_of_their_masks() -> None:
    images, masks, labels = torch.rand(2, 3, 8, 9), torch.arange(144).view(2, 8, 9), torch.tensor([1, 0])
    cut = corner(Batch(images, masks), 4)
    assert torch.equal(cut.images, images[:, :, :4, :4])
    assert torch.equal(cut.targets, masks[:, :4, :4])
    assert torch.equal(corner(Batch(images, labels), 4).targets, labels)
    assert corner(Batch(images, masks), None).images.shape == images.shape


SMALL = {"protocol": "smoke", "epochs": 1, "batch": 6, "device": "cpu", "space": "toy"}


def test_a_training_is_refused_before_there_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_room", lambda device: Room(1000.0, "the control group (cgroup)"))
    with pytest.raises(UserError, match="the control group"):
        oche.train(CELL, data=DATA, out=tmp_path / "run", **SMALL)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def interrupting(event: str, record: object) -> None:
    if event == "train_epoch":
        raise KeyboardInterrupt


def test_a_resumed_training_is_refused_unless_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oche.api.train.render", lambda run: None)
    with pytest.raises(KeyboardInterrupt):
        oche.train(CELL, data=DATA, out=tmp_path / "run", listener=interrupting, **SMALL)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_room", lambda device: Room(1000.0, "`ulimit -v`"))
        with pytest.raises(UserError, match="`ulimit -v` leaves"):
            oche.resume(tmp_path / "run", DATA)
    oche.resume(tmp_path / "run", DATA)
    assert Run.open(tmp_path / "run").has("network/card.json")
    monkeypatch.setattr(memory, "free_room", lambda device: Room(1000.0, "`ulimit -v`"))
    oche.resume(tmp_path / "run", DATA)


def test_measuring_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oche.api.train.render", lambda run: None)
    a = oche.train(CELL, data=DATA, out=tmp_path / "a", **SMALL)  # type: ignore[arg-type]
    monkeypatch.setattr("oche.api.train.fitting", lambda *_: None)
    b = oche.train(CELL, data=DATA, out=tmp_path / "b", **SMALL)  # type: ignore[arg-type]
    assert a.test == b.test
    assert a.run.read("network/weights.safetensors") == b.run.read("network/weights.safetensors")
