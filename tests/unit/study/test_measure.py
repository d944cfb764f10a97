"""The networks that a study judges, against the supernet and against statistics taken by hand; what is kept when it is killed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from oche.data import Stream, batches, none
from oche.errors import UserError
from oche.methods.darts import darts
from oche.run import Run
from oche.search.begin import begin
from oche.search.method import Method
from oche.search.relaxations import Gated, Softmax, SoftmaxGate
from oche.search.trainable import AllWeights
from oche.spaces import Network
from oche.study import measure
from oche.study.decode import Decoding, decoding
from oche.study.measure import ANEW, RAW, Measure, Searched, decoded
from oche.study.runner import budgets_said
from reference.tiny import tiny_problem

SIZES = {
    "grid": {"channels": 4, "layers": 3, "levels": 2, "ops": ("mbconv_k3_e3", "skip_connect")},
    "nb201": {"channels": 4, "cells": 1},
    "darts": {"channels": 4, "cells": 3},
    "toy": {},
}
METHOD = replace(darts(), relaxation=Gated(Softmax()), trainable=AllWeights(affine=True))
NAMES = ("op", "op_kept", "best1", "edge@0.20", "op+best2", "ramp@0.3")


def searched(space: str = "grid", method: Method = METHOD, count: int = 3) -> Searched:
    """A supernet with random weights and coefficients far from uniform."""
    problem = tiny_problem(space, **SIZES[space])  # type: ignore[arg-type]
    state, rng = begin(problem, method), torch.Generator().manual_seed(5)
    for t in (*state.alpha.values(), *state.supernet.parameters()):
        t.data.add_(0.3 * torch.randn(t.shape, generator=rng))
    for t in state.alpha.values():
        t.data.mul_(3)
    return Searched(method, state, count)


def shown(found: Searched) -> Tensor:
    problem = found.state.problem
    return next(batches(problem.data.val, 8, none(problem.data))).images


def spread(found: Searched, how: Decoding) -> dict[str, Tensor]:
    return found.state.space.spread({group.name: how(w, group) for group, w in found.weights()})


@pytest.mark.parametrize("name", ["continuous", *NAMES])
def test_a_network_is_the_supernet_with_decoded_coefficients(name: str) -> None:
    found, how = searched(), decoding(name)
    network = found.network(found.genotype(how)).train()  # batch statistics, as the supernet has them
    with torch.no_grad():
        outputs, _ = found.state.supernet(shown(found), spread(found, how), found.state.draw("eval"))
        torch.testing.assert_close(network(shown(found)), outputs, rtol=1e-4, atol=1e-5)


def test_a_closed_node_is_cut_out_so_that_its_constants_flow_nowhere() -> None:
    found = searched()
    network = found.network(found.genotype(decoding("edge@0.50")))
    assert len(network.body.cells) < len(found.state.space.groups[0].cells)


def norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def by_hand(network: Network, found: Searched, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Each batch norm's input, batch after batch in training mode: the averages of its mean and unbiased variance."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    judge, problem = copy.deepcopy(network).train(), found.state.problem
    for name, norm in norms(judge).items():
        norm.register_forward_pre_hook(
            lambda _, x, name=name: seen.setdefault(name, []).append((x[0].mean((0, 2, 3)), x[0].var((0, 2, 3))))
        )
    stream = Stream(problem.data.train, problem.batch, problem.seed, "statistics", none(problem.data))
    for i in range(count):
        judge(stream.at(i).images)
    return {
        name: (torch.stack([m for m, _ in pairs]).mean(0), torch.stack([v for _, v in pairs]).mean(0))
        for name, pairs in seen.items()
    }


@torch.no_grad()
def test_statistics_are_the_averages_over_batches_of_the_network_itself() -> None:
    found = searched()
    for name in ("continuous", "op+best2"):
        network = found.network(found.genotype(decoding(name)))
        expected = by_hand(network, found, 3)
        assert expected.keys() == norms(network).keys()
        for key, norm in norms(network).items():
            torch.testing.assert_close(norm.running_mean, expected[key][0])
            torch.testing.assert_close(norm.running_var, expected[key][1])


def test_raw_statistics_are_the_continuous_networks() -> None:
    found = searched()
    whole = found.network(found.genotype(decoding("continuous")))
    raw, anew = (make(found.genotype(decoding("op"))) for make in (lambda g: found.raw(g, whole), found.network))
    known = norms(whole)
    for name, norm in norms(raw).items():
        assert torch.equal(norm.running_mean, known[name].running_mean)
    assert any(not torch.allclose(n.running_mean, known[name].running_mean) for name, n in norms(anew).items())
    same = found.raw(found.genotype(decoding("ramp@0")), whole)
    assert torch.equal(same(shown(found)), whole(shown(found)))
    assert found.score(same) == found.score(whole)


def test_the_ramp_ends_in_the_strongest_operations_and_whole_gates() -> None:
    found = searched()
    end, other = (found.network(found.genotype(decoding(name))) for name in ("ramp@1.0", "op+ramp@1.0"))
    torch.testing.assert_close(end(shown(found)), other(shown(found)))


@pytest.mark.parametrize(
    "space", ["toy", pytest.param("nb201", marks=pytest.mark.slow), pytest.param("darts", marks=pytest.mark.slow)]
)
def test_cells_are_decoded_too(space: str) -> None:
    found = searched(space, darts())
    names = ("op", "best2", "op+best2", "ramp@0.5")
    whole = found.network(found.genotype(decoding("continuous")))
    for name in names:
        record = measure.one(found, name, whole, Measure(names))
        assert set(record["scores"]) == {RAW, ANEW}, record  # type: ignore[call-overload]


def test_what_cannot_be_measured_says_why() -> None:
    found = searched()
    whole = found.network(found.genotype(decoding("continuous")))
    assert measure.one(found, "edge@1", whole, Measure())["scores"] == {}
    assert "path" in str(measure.one(found, "edge@1", whole, Measure())["why"])
    assert "softmax" in str(measure.one(found, "path", whole, Measure())["why"])
    soft = searched(method=replace(METHOD, relaxation=Gated(Softmax(), SoftmaxGate())))
    whole = soft.network(soft.genotype(decoding("continuous")))
    assert set(measure.one(soft, "op+path", whole, Measure())["scores"]) == {RAW, ANEW}  # type: ignore[call-overload]


def test_fine_tuning_tells_each_number_of_epochs() -> None:
    found = searched()
    asked = Measure(("op",), tuned=("op",), tune_epochs=(1, 3))
    once = found.tuned(found.genotype(decoding("op")), asked)
    assert list(once) == ["tuned 1", "tuned 3"]
    assert once == found.tuned(found.genotype(decoding("op")), asked)


# ---------------------------------------------------------------------- killed and started again


def test_each_decoding_is_measured_once_though_killed_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = searched(), Measure(NAMES)
    whole = dict(decoded(found, made(tmp_path / "whole"), asked))
    calls, real = [], measure.one

    def once(found: Searched, name: str, whole: Network, measure: Measure) -> dict[str, object]:
        if len(calls) == 3:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append(name)
        return real(found, name, whole, measure)

    monkeypatch.setattr(measure, "one", once)
    run = made(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        dict(decoded(found, run, asked))
    assert dict(decoded(found, run, asked)) == whole
    assert calls == [*NAMES[:3], "killed", *NAMES[3:]]


def made(path: Path) -> Run:
    path.mkdir()
    return Run(path)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"decodings": ("oops",)}, "decoding"),
        ({"decodings": ("op",), "tuned": ("best2",)}, "best2"),
        ({"batches": 0}, "batch"),
        ({"tune_epochs": (0,)}, "epoch"),
    ],
)
def test_a_measurement_that_cannot_be_is_one_sentence(fields: dict[str, tuple[str, ...]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Measure(**fields)  # type: ignore[arg-type]


def test_only_the_arms_that_are_looked_at_closely_get_the_sweep() -> None:
    asked = Measure(("op",), ("ramp@0.5",), ("op",), closely=("base",))
    assert asked.of("base").decodings == ("continuous", "op", "ramp@0.5")
    assert asked.of("base").tuned == ("op",)
    assert asked.of("other").decodings == ("continuous", "op")
    assert not asked.of("other").tuned
    assert Measure().of("base").decodings == ()


def test_networks_that_train_longer_than_those_beside_them_are_named() -> None:
    """Equal budgets, or said: fine-tuning, alone or with the continuous network, and arms in two stages."""
    alone = list(budgets_said(Measure(decodings=("op",), tuned=("op",), tune_epochs=(2, 7))))
    assert alone == [
        "Budgets: decoded networks (op) are tuned for 2, 7 epochs after the search, and the continuous network beside them is not."
    ]
    (both,) = budgets_said(Measure(decodings=("op",), tuned=("continuous", "op")))
    assert both.endswith("as is the continuous network.")
    (stages,) = budgets_said(Measure(retrained=("two_stage",), inherited=("from_weights",)))
    assert stages.startswith(
        "Budgets: the networks of two_stage, from_weights train by the bench's protocol after the search"
    )
    assert list(budgets_said(Measure(decodings=("op",)))) == []
