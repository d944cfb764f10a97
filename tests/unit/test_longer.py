"""A training goes on: `oche train RUN --more N` and `oche.train(RUN, more=N)`, against a loop written out here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as safetensors_load

import oche
from oche.api.resume import resume
from oche.api.train import Trained, plan_training
from oche.data import Stream, for_training
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan.request import TrainRequest
from oche.run import Run
from oche.spaces import SPACES
from oche.training.export import CARD
from oche.training.train import LAST, retrain
from reference.tiny import tiny_data

DATA = tiny_data(12)
CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|"


def first(path: Path, **options: object) -> Trained:
    arguments = {"protocol": "smoke", "epochs": 2, "batch": 6, "device": "cpu", **options}
    return oche.train(CELL, space="toy", data=DATA, out=path, **arguments)  # type: ignore[arg-type]


def test_it_goes_on_as_a_loop_written_out_here(tmp_path: Path) -> None:
    """SGD with Nesterov momentum from 0, a cosine from a tenth of the rate, gradients clipped, batches 4 to 7 of the stream."""
    before = first(tmp_path / "run", settings={"train.auxiliary": 0.0})
    after = oche.train(before.run.path, data=DATA, more=2, device="cpu", out=tmp_path / "more")

    genotype = Genotype.parse(CELL, "toy")
    network = SPACES["toy"](inputs=2, outputs=3, size=(8, 8)).network(genotype)
    network.load_state_dict(safetensors_load(before.run.read(LAST)))
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    stream = Stream(DATA.train, 6, 0, "train", for_training(DATA, 0, False), torch.device("cpu"), 0, 1)
    for i in range(4, 8):
        optimizer.param_groups[0]["lr"] = 0.005 * (1 + math.cos(math.pi * (i // 2 - 2) / 2))
        batch = stream.at(i)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch.images), batch.targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    got = safetensors_load(after.run.read(LAST))
    for name, t in network.state_dict().items():
        torch.testing.assert_close(got[name], t, rtol=1e-4, atol=1e-5)


def test_card_and_log_record_what_came_before_and_a_third_keeps_the_rate(tmp_path: Path) -> None:
    before = first(tmp_path / "run")
    second = oche.train(before.run.path, data=DATA, more=1, device="cpu", out=tmp_path / "more")
    assert [json.loads(run.read(CARD))["epochs"] for run in (before.run, second.run)] == [[2], [2, 1]]
    (record,) = [r for r in second.run.records() if r["kind"] == "more"]
    assert (record["earlier"], record["epochs"]) == ([2], 1)
    rates = [next(r["lr"] for r in run.records() if r["kind"] == "train_epoch") for run in (before.run, second.run)]
    assert rates == [0.1, 0.01]
    third = plan_training(TrainRequest(str(second.run.path), data=DATA, more=3)).training
    assert (third.earlier, third.protocol.epochs, third.protocol.lr(0.0)) == ((2, 1), 3, 0.01)
    given = plan_training(
        TrainRequest(str(before.run.path), data=DATA, more=4, batch=4, settings={"train.lr.start": 0.03})
    )
    assert (given.training.protocol.lr(0.0), given.training.protocol.batch, given.training.protocol.epochs) == (
        0.03,
        4,
        4,
    )


def test_killed_and_resumed_it_ends_as_unbroken(tmp_path: Path) -> None:
    before = first(tmp_path / "run")
    whole = oche.train(before.run.path, data=DATA, more=2, device="cpu", out=tmp_path / "more")
    plan = plan_training(TrainRequest(str(before.run.path), data=DATA, more=2, device="cpu"))
    run = plan.start(tmp_path / "killed")

    class Killed(Exception):
        pass

    def kill(event: str, record: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        retrain(replace(plan.training, run=run, listener=kill))
    resume(run.path, data=DATA)
    wanted, got = safetensors_load(whole.run.read(LAST)), safetensors_load(run.read(LAST))
    assert all(torch.equal(t, got[name]) for name, t in wanted.items())
    assert json.loads(run.read(CARD))["epochs"] == [2, 2]


def test_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    before = first(tmp_path / "run").run.path
    search = oche.search(
        "darts", space="toy", data=DATA, budget="smoke", epochs=1, batch=6, compare=0, device="cpu", out=tmp_path / "s"
    )
    plan = plan_training(TrainRequest(CELL, space="toy", data=DATA, protocol="smoke"))
    unfinished = plan.start(tmp_path / "unfinished").path
    for request, said in (
        (TrainRequest(CELL, space="toy", data=DATA, more=1), "name its folder"),
        (TrainRequest(search.run.path, data=DATA, more=1), "is a search"),
        (TrainRequest(before, data=DATA, more=0), "at least 1"),
        (TrainRequest(before, data=DATA, more=1, epochs=3), "in the place of --epochs"),
        (TrainRequest(unfinished, data=DATA, more=1), f"oche train --resume {unfinished}"),
        (TrainRequest(before, data=tiny_data(15), more=1), "are not what they were: .* images moved from test to val"),
    ):
        with pytest.raises(UserError, match=said):
            plan_training(request)
    assert not Run(tmp_path / "unfinished").has(CARD)
