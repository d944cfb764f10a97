"""Distillation: the term against its formula written out, the teacher's training, a run as the teacher, counts, and what is refused."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from contracts.same import problem_of
from oche.api import search as api
from oche.api.train import train
from oche.base import Batch
from oche.data import none
from oche.errors import UserError
from oche.methods.darts import darts
from oche.methods.distilled_darts import WEIGHT, Taught, alone, distilled_darts
from oche.run import Run
from oche.schedule import Triangle
from oche.search.begin import begin
from oche.search.loop import search
from oche.search.preflight import estimate
from oche.search.state import Problem, SearchState
from oche.spaces import SPACES
from oche.spaces.rivals import RIVALS
from oche.tasks import Count
from oche.training.export import load_network
from oche.training.protocols import Protocol
from oche.training.train import Training, retrain
from reference.tiny import tiny_data

own_module = importlib.import_module("oche.methods.distilled_darts")  # by attribute it is the method
NOTHING = torch.zeros(1)


def taught(space: str = "toy", method: object = None) -> tuple[SearchState, Batch]:
    state = begin(problem_of(space), distilled_darts(lessons=1))
    images, targets = state.problem.data.train.take(torch.arange(6))
    return state, Batch(none(state.problem.data).normalise(images), targets)


def test_the_term_is_its_formula() -> None:
    state, batch = taught()
    term = Taught(weight=3.0, temperature=2.0, lessons=1)
    found = term(state, state.weights.tensors, state.alpha, batch)
    space, genotype = RIVALS["resnet8"].network(state.space)
    teacher = space.network(genotype).eval()
    teacher.load_state_dict({n.removeprefix(WEIGHT): t for n, t in state.memory.items() if n.startswith(WEIGHT)})
    draw = state.draw("weight")
    with torch.no_grad():
        z_t = teacher(batch.images)
        z_s = state.supernet(batch.images, state.op_weights(state.alpha, draw), draw)[0]
        p, q = (z_t / 2).softmax(1), (z_s / 2).softmax(1)
        expected = 3.0 * 4 * (p * (p / q).log()).sum(1).mean()
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(found.detach()) > 0


def test_the_teacher_has_learned_and_is_kept() -> None:
    state, _ = taught()
    one = Taught(lessons=1)
    one.on_epoch_start(state)
    kept = {name: t.clone() for name, t in state.memory.items()}
    one.on_epoch_start(state)
    assert all(torch.equal(kept[name], t) for name, t in state.memory.items())
    other, _ = taught()
    one.on_epoch_start(other)
    assert all(torch.equal(kept[name], t) for name, t in other.memory.items())
    assert int(kept[f"{WEIGHT}body.stem.1.num_batches_tracked"]) > 0


def test_the_lessons_and_where_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten epochs at a rate that rises to 0.2 and falls, step by step; of several processes each learns by itself, on its own device."""
    lessons: list[Training] = []

    def noted(lesson: Training) -> object:
        assert torch.get_default_dtype() == torch.float32
        lessons.append(lesson)
        return RIVALS["resnet8"].network(lesson.space)[0].network(lesson.genotype)

    monkeypatch.setattr(own_module, "retrain", noted)
    state, _ = taught()
    Taught().on_epoch_start(state)
    assert [x.protocol for x in lessons] == [Protocol(10, 4, Triangle(0.2), auxiliary=0.0, lr_by_step=True)]
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(own_module, "Fabric", lambda **settings: asked.append(settings))
    for world, device in ((1, "cpu"), (2, "cpu"), (2, "cuda:1")):
        fabric = SimpleNamespace(
            world_size=world, device=torch.device(device), _precision=SimpleNamespace(precision="32-true")
        )
        assert (alone(fabric) is fabric) == (world == 1)  # type: ignore[arg-type]
    assert [(x["accelerator"], x["devices"]) for x in asked] == [("cpu", 1), ("cuda", [1])]


def test_counts_are_distilled_by_their_squares() -> None:
    data = tiny_data(12)
    numbers = torch.rand(12, 4)
    parts = {name: replace(getattr(data, name), targets=numbers) for name in ("train", "val", "test")}
    data = replace(data, **parts, grid=(2, 2), target_mean=(0.0,) * 4, target_std=(1.0,) * 4)
    space = SPACES["stages"](channels=2, cells=5, nodes=1, inputs=2, outputs=4, size=(8, 8), density=(2, 2))
    problem = Problem(space, data, Count(), none(data), epochs=1, batch=4)
    state = begin(problem, distilled_darts(lessons=1))
    images, targets = data.train.take(torch.arange(4))
    batch = Batch(none(data).normalise(images), targets)
    found = Taught(lessons=1)(state, state.weights.tensors, state.alpha, batch)
    rival, genotype = RIVALS["resnet8"].network(space)
    teacher = rival.network(genotype).eval()
    teacher.load_state_dict({n.removeprefix(WEIGHT): t for n, t in state.memory.items() if n.startswith(WEIGHT)})
    draw = state.draw("weight")
    with torch.no_grad():
        off = teacher(batch.images) - state.supernet(batch.images, state.op_weights(state.alpha, draw), draw)[0]
    assert off.shape == (4, 4)
    assert float(found.detach()) == pytest.approx(float((off * off).mean()), rel=1e-4)


def test_the_constants_and_what_is_refused(tmp_path: Path) -> None:
    assert distilled_darts().inner_terms == (Taught("auto", 1.0, 2.0, 10),) == (Taught(),)
    assert distilled_darts().outer_terms == darts().outer_terms == ()
    for wrong in ({"temperature": 0.0}, {"lessons": 0}):
        with pytest.raises(UserError, match="at least one epoch"):
            distilled_darts(**wrong)  # type: ignore[arg-type]
    assert distilled_darts(temperature=0.5).inner_terms == (Taught(temperature=0.5),)
    state, _ = taught()
    with pytest.raises(UserError, match="no teacher"):
        Taught("nobody").on_epoch_start(state)
    with pytest.raises(UserError, match="not for the space toy: choose resnet8"):
        Taught("unet").on_epoch_start(state)
    with pytest.raises(UserError):
        Taught(str(tmp_path)).on_epoch_start(state)


def test_a_run_is_a_teacher(tmp_path: Path) -> None:
    """The folder of a trained network, in a search as the command line starts it; a network of other data is refused."""
    data = tiny_data(12)
    trained = train("resnet8", data=data, out=tmp_path / "teacher", protocol="smoke", epochs=1, batch=6, threads=1)
    folder = str(trained.run.path)
    found = api.search(
        "distilled_darts", space="toy", data=data, budget="smoke", epochs=1, batch=4, compare=0, device="cpu",
        settings={"method.teacher": folder}, out=tmp_path / "run",
    )  # fmt: skip
    kept = torch.load(found.run.file(Run.STATE), weights_only=True)["tensors"][1]  # the memory of callbacks
    taught = {name.removeprefix(WEIGHT): t for name, t in kept.items() if name.startswith(WEIGHT)}
    expected = load_network(trained.run).network.state_dict()
    assert taught.keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in taught.items())
    state = begin(problem_of("toy"), distilled_darts(folder))
    with pytest.raises(UserError, match="train one on the same data"):
        Taught(folder).kind(replace(state.space, outputs=5))
    state.problem = replace(state.problem, data=replace(data, mean=(0.4, 0.4)))
    with pytest.raises(UserError, match="was trained on other images"):
        Taught(folder).on_epoch_start(state)


def test_a_teacher_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured before a search takes a teacher of zeros, which costs as much per step."""
    count = []
    of_method = sys.modules[Taught.__module__]
    monkeypatch.setattr(of_method, "retrain", lambda lesson: count.append(lesson) or retrain(lesson))
    problem, method = problem_of("toy"), distilled_darts(lessons=1)
    estimated = estimate(problem, method)
    assert estimated.step_seconds > 0
    assert count == []
    search(problem, method)
    assert len(count) == 1
