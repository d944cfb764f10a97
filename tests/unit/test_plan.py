"""From a request to what is run: published settings, precedence, settings of every part, and run.toml read back."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oche import config
from oche.api import search as api
from oche.api.resume import reopen
from oche.data import Data, none
from oche.errors import UserError
from oche.methods import METHODS
from oche.methods.random_sampling import RandomSampling
from oche.optim import SGD, Adam
from oche.plan.machine import fabric_for, threads_for
from oche.plan.named import searcher_named
from oche.plan.request import Request, TrainRequest, recorded_request, requested
from oche.plan.resolve import Plan, resolve
from oche.plan.training import resolve_training, training_table
from oche.run import Run
from oche.schedule import Cosine, Triangle
from oche.search.bilevel import FiniteDifference, FirstOrder, Unrolled
from oche.search.method import Method
from oche.search.relaxations import EdgeNormalised, Softmax
from oche.search.searcher import as_searcher
from oche.search.stages import Staged
from oche.search.state import Problem
from oche.search.trainable import AllWeights, BatchNormOnly
from oche.spaces import SPACES
from oche.spaces.edges import PartialChannels, WeightedSum
from oche.training.protocols import PROTOCOLS
from reference.tiny import tiny_data, tiny_masks

SMALL, MASKS = tiny_data(), tiny_masks()
OTHER = {"grid": MASKS, "signal": tiny_data(size=(1, 32))}
"""The data of spaces that are not for images of classes."""


def plan(
    method: str = "darts", space: str = "toy", budget: str = "smoke", data: Data = SMALL, **settings: object
) -> Plan:
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return resolve(Request(method, space=space, data=data, budget=budget, settings=dotted))


def searcher(p: Plan) -> Method:
    assert isinstance(p.searcher, Method)
    return p.searcher


# ---------------------------------------------------------------------- published settings (notes on RF-DARTS, 2.1 to 2.4)


ALPHA = Adam(3e-4, (0.5, 0.999), 1e-3)
WEIGHTS = SGD(0.9, 3e-4, nesterov=False)
COSINE = Cosine(0.025, 0.001)

PUBLISHED = {
    # method, space: epochs, batch, cells, channels, alpha's Adam, weights' SGD, schedule, by step?, alpha first?, start, K
    ("darts", "darts"): (50, 64, 8, 16, ALPHA, WEIGHTS, COSINE, False, True, 0.0, None),
    ("darts_2nd", "darts"): (50, 64, 8, 16, ALPHA, WEIGHTS, COSINE, False, True, 0.0, None),
    ("pcdarts", "darts"): (50, 256, 8, 16, replace(ALPHA, lr=6e-4), WEIGHTS, Cosine(0.1, 0.0), False, True, 0.3, 4),
    ("pcdarts", "s1"): (50, 64, 8, 16, ALPHA, WEIGHTS, COSINE, False, True, 0.0, 4),
    ("darts", "nb201"): (50, 64, 5, 16, ALPHA, SGD(0.9, 5e-4, True), COSINE, False, False, 0.0, None),
    ("darts_2nd", "nb201"): (50, 64, 5, 16, ALPHA, SGD(0.9, 5e-4, True), COSINE, False, True, 0.0, None),
    **{("darts", f"s{n}"): (50, 64, 8, 16, ALPHA, WEIGHTS, COSINE, False, True, 0.0, None) for n in (1, 2, 3, 4)},
    **{("pcdarts", f"s{n}"): (50, 64, 8, 16, ALPHA, WEIGHTS, COSINE, False, True, 0.0, 4) for n in (1, 2, 3, 4)},
}


@pytest.mark.parametrize("features", ["", "rf_"])
@pytest.mark.parametrize(("method", "space"), PUBLISHED)
def test_published_budgets(method: str, space: str, features: str) -> None:
    epochs, batch, cells, channels, alpha, weights, lr, by_step, first, start, k = PUBLISHED[method, space]
    p = plan(features + method, space, "paper")
    m = searcher(p)
    assert (p.epochs, p.batch) == (epochs, batch)
    assert (getattr(p.space, "cells", None), getattr(p.space, "channels", None)) == (cells, channels)
    assert (m.arch_optimizer, m.weight_optimizer, m.weight_lr) == (alpha, weights, lr)
    assert (m.lr_by_step, m.arch_first, m.arch_start, m.arch_every, m.clip) == (by_step, first, start, 1, 5.0)
    assert m.edge == (PartialChannels(k) if k else WeightedSum())
    normalised = k and space == "darts"  # SmoothDARTS has no edge normalisation on S1 to S4
    assert m.relaxation == (EdgeNormalised(Softmax(1e-3), 1e-3) if normalised else Softmax(1e-3))
    assert m.trainable == (BatchNormOnly() if features else AllWeights()), "published RF-DARTS trains batch norm alone"
    assert m.split.shares == (0.5, 0.5)
    assert p.source != "our choice"


@pytest.mark.parametrize("method", ["pcdarts", "rf_pcdarts"])
def test_the_published_imagenet_budget(method: str) -> None:
    p = plan(method, "darts", "paper", tiny_data(6, (224, 224), 3, 3))
    m = searcher(p)
    assert (p.epochs, p.batch, getattr(p.space, "cells", 0), getattr(p.space, "channels", 0)) == (50, 1024, 8, 16)
    assert m.edge == PartialChannels(2)
    assert m.arch_optimizer == replace(ALPHA, lr=6e-3)
    assert (m.split.weights, m.split.arch, m.arch_start) == (0.1, 0.025, 0.7)
    assert [m.weight_lr(e / 50) for e in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert m.weight_lr(0.5) == pytest.approx(0.25)
    assert plan(method, "s1", "paper", tiny_data(6, (224, 224), 3, 3)).batch == 64


def test_arch_gradients_are_the_methods_own() -> None:
    assert isinstance(searcher(plan("darts")).arch_gradient, FirstOrder)
    assert isinstance(searcher(plan("darts_2nd")).arch_gradient, Unrolled)
    assert isinstance(searcher(plan("darts_2nd", method__finite_difference=True)).arch_gradient, FiniteDifference)
    assert isinstance(searcher(plan("rf_darts_2nd")).arch_gradient, Unrolled)


@pytest.mark.parametrize(
    ("method", "space", "budget"),
    [
        pytest.param(method, space, budget, marks=pytest.mark.slow if (m + s + b) % 2 and b else ())
        for m, method in enumerate(METHODS)
        for s, space in enumerate(SPACES)
        for b, budget in enumerate(("paper", "quick", "smoke"))
    ],
)
def test_every_method_has_every_budget_in_every_space(method: str, space: str, budget: str) -> None:
    built = as_searcher(METHODS[method]()).method
    if built and space in built.unfit:
        assert built.unfit_why
        with pytest.raises(UserError, match=re.escape(f"not made for the space {space!r}: {built.unfit_why}; choose")):
            plan(method, space, budget, OTHER.get(space, SMALL))
        return
    p = plan(method, space, budget, OTHER.get(space, SMALL))
    assert p.epochs >= 1
    assert p.batch >= 2
    assert p.space.name == space
    if isinstance(p.searcher, Staged):  # the plan of its stages holds for so many epochs
        problem = Problem(p.space, p.data, p.task, none(p.data), p.epochs, p.batch)
        assert p.searcher.stages(problem, p.searcher.method, ())


# ---------------------------------------------------------------------- precedence: method, budget, settings


def test_the_budget_overrides_the_method() -> None:
    assert METHODS["rf_darts"]().weight_lr == COSINE  # type: ignore[union-attr]
    assert searcher(plan("rf_darts", "nb201", "quick")).weight_lr != COSINE


def test_settings_override_the_budget() -> None:
    m = searcher(
        plan("pcdarts", "darts", "paper", arch_optimizer__lr=0.5, weight_lr__end=0.01, arch_start=0.0, space__cells=3)
    )
    assert (m.arch_optimizer, m.weight_lr, m.arch_start) == (replace(ALPHA, lr=0.5), Cosine(0.1, 0.01), 0.0)
    assert plan("pcdarts", "darts", "paper", space__cells=3).space == replace(
        plan("pcdarts", "darts", "paper").space, cells=3
    )  # type: ignore[call-arg]


def test_options_of_the_method_override_the_budget_too() -> None:
    """Also where they say what is the default anyway: what a user says is never dropped."""
    for classifier in (True, False):
        m = searcher(plan("rf_darts", "nb201", "quick", method__classifier=classifier))
        assert m.trainable == BatchNormOnly(classifier=classifier)
    m = searcher(plan("pcdarts", "darts", "paper", tiny_data(6, (224, 224), 3, 3), method__K=4))
    assert m.edge == PartialChannels(4)


def test_epochs_and_batch_override_the_budget() -> None:
    p = resolve(Request("darts", space="toy", data=SMALL, budget="paper", epochs=3, batch=7))
    assert (p.epochs, p.batch) == (3, 7)
    for wrong in ({"epochs": 0}, {"batch": 0}, {"batch": 1}):
        with pytest.raises(UserError, match="at least one epoch and batches of two"):
            resolve(replace(Request("darts", space="toy", data=SMALL, budget="smoke"), **wrong))


def test_a_users_setting_of_a_field_that_is_not_there() -> None:
    with pytest.raises(UserError, match="nesterovv"):
        plan("darts", "nb201", "paper", weight_optimizer__nesterovv=True)


# ---------------------------------------------------------------------- settings of every part


def test_settings_reach_every_part() -> None:
    settings = {
        "space.channels": 8, "data.val": 0.25, "data.size": 16, "train.epochs": 4, "train.lr.start": 0.3, "train.optimizer.nesterov": False,
        "method.K": 2, "method.clip": 1.5, "arch_every": 2, "relaxation.inner.scale": 0.1, "split.weights": 0.3,
    }  # fmt: skip
    p = resolve(Request("pcdarts", space="toy", budget="smoke", settings=settings))
    m = searcher(p)
    assert getattr(p.space, "channels", None) == 8
    assert (len(p.data.val), p.data.size) == (round(0.25 * 1797), (16, 16))
    assert (p.protocol.epochs, p.protocol.lr, p.protocol.optimizer.nesterov) == (4, Triangle(0.3), False)
    assert m.edge == PartialChannels(2)
    assert (m.clip, m.arch_every, m.relaxation, m.split.weights) == (1.5, 2, EdgeNormalised(Softmax(0.1)), 0.3)


@pytest.mark.parametrize(
    "path", ["space.inputs", "space.size", "space.name", "space.cell", "data.sizes", "train.lrr", "method.k", "clipp"]
)
def test_unknown_settings_are_refused(path: str) -> None:
    with pytest.raises(UserError, match=path.rpartition(".")[2]):
        resolve(Request("pcdarts", space="toy", budget="smoke", settings={path: 3}))


def test_settings_of_data_that_is_loaded_already() -> None:
    with pytest.raises(UserError, match="already loaded"):
        plan(data__val=0.1)


def test_the_seed_splits_the_data() -> None:
    one, same, other = (
        resolve(Request("darts", space="toy", budget="smoke", seed=seed)).data.test.index for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# ---------------------------------------------------------------------- methods of one's own


MINE = """
from dataclasses import replace
from oche.methods.darts import darts

def mine(every: int = 2):
    return replace(darts(), name="mine", arch_every=every)

def number() -> int:
    return 3
"""


def test_a_method_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    m = searcher_named(f"{file}:mine")
    assert isinstance(m, Method)
    assert (m.name, m.arch_every) == ("mine", 2)
    assert searcher(plan(f"{file}:mine", arch_every=5)).arch_every == 5
    with pytest.raises(UserError, match="did you mean 'mine'"):
        searcher_named(f"{file}:mien")
    with pytest.raises(UserError, match="returned int"):
        searcher_named(f"{file}:number")
    with pytest.raises(UserError, match="no file"):
        searcher_named(f"{tmp_path / 'other.py'}:mine")


def test_options_of_a_method_from_a_file(tmp_path: Path) -> None:
    """`--set method.X` are options of the factory, wherever the factory lies."""
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    assert searcher(plan(f"{file}:mine", method__every=7)).arch_every == 7


def test_random_features_of_anything() -> None:
    assert isinstance(searcher_named("random_sampling"), RandomSampling)
    with pytest.raises(UserError, match="supernet"):
        searcher_named("rf_random_sampling")
    with pytest.raises(UserError, match="did you mean"):
        searcher_named("rf_pcdart")


# ---------------------------------------------------------------------- run.toml


ROUND_TRIPS = [
    pytest.param(method, space, marks=() if space == spaces[number % len(spaces)] else pytest.mark.slow)
    for number, method in enumerate((*METHODS, "rf_darts_2nd"))
    for spaces in [
        ("toy", "nb201") if method == "alpha_adarts" else ("toy", "nb201", "s1")
    ]  # s1 is not for alpha_adarts
    for space in spaces
]
"""In the short run, each method in one of the spaces in turn."""


@pytest.mark.parametrize(("method", "space"), ROUND_TRIPS)
def test_run_toml_gives_the_same_plan(method: str, space: str, tmp_path: Path) -> None:
    settings: dict[str, object] = {"space.channels": 8, "data.val": 0.25, "train.lr.start": 0.3}
    if as_searcher(METHODS[method.removeprefix("rf_") if method == "rf_darts_2nd" else method]()).method:
        settings |= {"clip": "none"}
    if method in ("darts", "pcdarts"):
        settings |= {"split.weights": 0.3, "arch_optimizer.betas": [0.4, 0.9]}
    first = resolve(Request(method, space=space, epochs=3, seed=5, settings=settings))
    run = api.start(first, tmp_path / "run")
    second, opened = reopen(run.path)
    assert opened == run
    for part in ("request", "searcher", "space", "protocol", "epochs", "batch", "source"):
        assert getattr(second, part) == getattr(first, part), part
    assert torch.equal(first.data.train.index, second.data.train.index)
    assert second.table() == first.table()
    request, table = recorded_request(run.file(Run.CONFIG))
    assert resolve(request, recorded=table).table() == first.table()


def test_run_toml_holds_every_resolved_value(tmp_path: Path) -> None:
    p = plan("rf_pcdarts")
    table = tomllib.loads(api.start(p, tmp_path / "run").read(Run.CONFIG).decode())
    assert table["method"]["edge"] == {"type": "PartialChannels", "K": 4}
    assert table["method"]["trainable"]["initialiser"] == "pytorch"
    assert table["resolved"]["epochs"] == 2
    assert table["request"]["epochs"] == "none"
    assert table["data"]["classes"] == ["0", "1", "2"]
    assert {"oche", "torch", "python"} <= set(table["versions"])


def test_what_run_toml_says_holds_even_if_defaults_change(tmp_path: Path) -> None:
    """A value edited in the file, as a later default would differ from it."""
    run = api.start(plan(), tmp_path / "run")
    text = run.read(Run.CONFIG).decode().replace("momentum = 0.9", "momentum = 0.8")
    run.write(Run.CONFIG, text.encode())
    assert searcher(reopen(run.path, SMALL)[0]).weight_optimizer == replace(WEIGHTS, momentum=0.8)


def test_the_number_of_epochs_is_the_recorded_one(tmp_path: Path) -> None:
    run = api.start(plan(), tmp_path / "run")
    text = run.read(Run.CONFIG).decode()
    assert "epochs = 2\nbatch = 16" in text
    run.write(Run.CONFIG, text.replace("epochs = 2\nbatch = 16", "epochs = 4\nbatch = 8").encode())
    again, _ = reopen(run.path, SMALL)
    assert (again.epochs, again.batch) == (4, 8)


def test_a_run_toml_of_another_method_is_refused(tmp_path: Path) -> None:
    run = api.start(plan("pcdarts"), tmp_path / "run")
    text = run.read(Run.CONFIG).decode().replace('method = "pcdarts"', 'method = "darts"')
    run.write(Run.CONFIG, text.encode())
    with pytest.raises(UserError, match=r"run\.toml: method: \w+ is"):
        reopen(run.path, SMALL)


@pytest.mark.parametrize("missing", ["request", "resolved", "method", "space", "train"])
def test_a_run_toml_without_a_table(missing: str, tmp_path: Path) -> None:
    run = api.start(plan(), tmp_path / "run")
    table = {name: part for name, part in tomllib.loads(run.read(Run.CONFIG).decode()).items() if name != missing}
    run.write(Run.CONFIG, config.dumps(table).encode())
    with pytest.raises(UserError, match=rf"\[{missing}\]"):
        reopen(run.path, SMALL)


# ---------------------------------------------------------------------- trainings


CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|"


def train_request(**changes: object) -> TrainRequest:
    return replace(TrainRequest(CELL, space="toy", data=SMALL, protocol="smoke"), **changes)  # type: ignore[arg-type]


def test_a_training_takes_its_size_from_the_protocol_and_the_settings() -> None:
    small = resolve_training(train_request())
    assert small.space == SPACES["toy"](inputs=2, outputs=3, size=(8, 8))
    nb201 = train_request(genotype="NB201_9930", space="nb201", protocol="nb201")
    sizes = {k: getattr(resolve_training(nb201).space, k) for k in ("cells", "channels")}
    assert sizes == {"cells": 5, "channels": 16}
    changed = resolve_training(replace(nb201, settings={"space.channels": 8, "train.clip": 2.0}))
    assert (getattr(changed.space, "channels", 0), changed.protocol.clip) == (8, 2.0)
    searched = resolve_training(train_request(), {"channels": 6, "stages": 3})
    assert (getattr(searched.space, "channels", 0), getattr(searched.space, "stages", 0)) == (6, 3)


def test_epochs_and_batch_of_a_training() -> None:
    t = resolve_training(train_request(epochs=7, batch=5))
    assert (t.protocol.epochs, t.protocol.batch) == (7, 5)
    with pytest.raises(UserError, match="at least one epoch"):
        resolve_training(train_request(epochs=0))


def test_few_images_get_more_epochs_unless_their_number_is_given() -> None:
    images = len(resolve_training(train_request()).data.train)
    per_epoch = -(-images // 8)
    protocol = replace(PROTOCOLS["smoke"], batch=8, steps=10 * per_epoch - 1)
    asked = train_request(protocol=protocol)
    training = resolve_training(asked)
    assert training.protocol.epochs == 10
    assert resolve_training(replace(asked, epochs=3)).protocol.epochs == 3
    assert resolve_training(replace(asked, settings={"train.epochs": 4})).protocol.epochs == 4
    assert resolve_training(replace(asked, settings={"train.steps": 0})).protocol.epochs == protocol.epochs
    compared = Request("darts", space="toy", data=SMALL, budget="smoke", protocol=protocol)
    assert resolve(compared).protocol.epochs == 10
    assert resolve(replace(compared, settings={"train.epochs": 4})).protocol.epochs == 4


@pytest.mark.parametrize("path", ["clip", "method.K", "weight_lr.start"])
def test_a_training_has_no_method(path: str) -> None:
    with pytest.raises(UserError, match="training setting"):
        resolve_training(train_request(settings={path: 1}))


def test_a_genotype_of_another_space_is_refused() -> None:
    with pytest.raises(UserError, match="leaves a node without input"):
        resolve_training(train_request(space="nb201"))
    with pytest.raises(UserError, match="did you mean 'toy'"):
        resolve_training(train_request(space="toyy"))


def test_a_training_is_read_back_from_run_toml(tmp_path: Path) -> None:
    request = train_request(
        data="digits", seed=3, settings={"space.channels": 6, "train.drop_path": 0.25, "data.seed": 1}
    )
    first = resolve_training(request)
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, config.dumps(training_table(request, first)).encode())
    again, table = requested(run)
    assert again == replace(request, devices=1)
    assert isinstance(again, TrainRequest)
    second = resolve_training(again, recorded=table)
    assert (second.space, second.protocol, second.genotype, second.seed) == (
        first.space,
        first.protocol,
        first.genotype,
        3,
    )
    assert torch.equal(second.data.train.targets, first.data.train.targets)


def test_a_training_is_not_carried_on_by_search(tmp_path: Path) -> None:
    request = train_request()
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, config.dumps(training_table(request, resolve_training(request))).encode())
    with pytest.raises(UserError, match="oche train --resume"):
        reopen(run.path)


# ---------------------------------------------------------------------- devices and threads


def test_devices() -> None:
    assert fabric_for("cpu").device == torch.device("cpu")
    assert fabric_for("auto").device.type in ("cpu", "cuda")
    for wrong in ("cpu:x", "cuda:99"):
        with pytest.raises(UserError, match="no device"):
            fabric_for(wrong)
    with pytest.raises(UserError, match="did you mean 'cuda'"):
        fabric_for("gpu")
    for devices in (0, -1):
        with pytest.raises(UserError, match="At least one process"):
            fabric_for("cpu", devices)
    with pytest.raises(UserError, match="precision"):
        fabric_for("cpu", 1, "16")


def test_threads_are_settled_and_recorded() -> None:
    assert threads_for(None, SMALL) == 1
    assert threads_for(3, SMALL) == 3
    assert threads_for(None, tiny_data(6, (32, 32))) == torch.get_num_threads()
    assert plan().request.threads == 1
    with pytest.raises(UserError, match="at least 1"):
        threads_for(0, SMALL)
