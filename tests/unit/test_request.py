"""One list of options: each arrives where it belongs, through Python, the command line and run.toml; none takes another's place."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import oche
from oche import config
from oche.api import search as search_module
from oche.api import train as train_module
from oche.api.resume import reopen
from oche.api.terminal import Show
from oche.cli import main as cli
from oche.errors import UserError
from oche.plan.options import words
from oche.plan.request import Request, TrainRequest, in_order, options, plain, request_in, rules_of, verb, written
from oche.plan.resolve import resolve
from reference.tiny import tiny_data, tiny_masks

Kind = type[Request] | type[TrainRequest]
BOTH: tuple[Kind, ...] = (Request, TrainRequest)


def distinct(of: Kind) -> dict[str, object]:
    """A value for every option that run.toml records, no two alike and none the default."""
    made: dict[str, object] = {}
    for n, field in enumerate(options(of), start=3):
        hint = config.annotations_of(of)[field.name]
        kinds = typing.get_args(hint) or (hint,)
        if typing.get_origin(hint) is Mapping:
            made[field.name] = {f"space.field_{n}": n}
        elif typing.get_origin(hint) is Sequence:
            made[field.name] = (f"name_{n}", "other")
        elif bool in kinds:
            made[field.name] = True
        else:
            made[field.name] = n if int in kinds and str not in kinds else f"name_{n}"
    return made


def called(of: Kind, **values: object) -> Request | TrainRequest:
    """The request that the verb of Python makes of these arguments."""
    seen = verb(of)(lambda request: request)  # type: ignore[arg-type]
    return seen(**values)  # type: ignore[call-arg, return-value]


def typed(of: Kind, values: Mapping[str, object], monkeypatch: pytest.MonkeyPatch) -> Request | TrainRequest:
    """The request that the command line makes of these values, each typed as its flag."""
    command, seen = ("search", []) if of is Request else ("train", [])  # type: tuple[str, list[Request | TrainRequest]]

    def stop(request: Request | TrainRequest, *_: object) -> None:
        seen.append(request)
        raise UserError("seen")

    monkeypatch.setattr("oche.plan.resolve.resolve", stop)
    monkeypatch.setattr(train_module, "plan_training", stop)
    line: list[str] = [command]
    for field in fields(of):
        if field.name not in values or not words(field).flags:
            continue
        value, flag = values[field.name], words(field).flags[0]
        if isinstance(value, Mapping):
            line += [word for path, v in value.items() for word in (flag, f"{path}={v}")]
        elif isinstance(value, tuple):
            line += [word for v in value for word in (flag, v)]
        else:
            line += [flag] if value is True else [word for word in (flag, str(value)) if word]
    CliRunner().invoke(cli.app, line)
    return seen[0]


@pytest.mark.parametrize("of", BOTH)
def test_every_option_arrives(of: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    values = distinct(of)
    plain_values = [str(v) for v in values.values() if not isinstance(v, bool)]
    assert len(set(plain_values)) == len(plain_values)
    wanted = of(**values)  # type: ignore[arg-type]
    assert {name: getattr(wanted, name) for name in values} == values
    assert called(of, **values) == wanted
    assert typed(of, values, monkeypatch) == wanted
    table = config.dumps({"request" if of is Request else "training": written(wanted)})
    assert request_in(table.encode(), "run.toml")[0] == wanted


@pytest.mark.parametrize("of", BOTH)
def test_switches_arrive_one_by_one(of: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """All switches are True alike, so each is tried alone."""
    first = {"genotype": "cell"} if of is TrainRequest else {}
    switches = [name for name, value in distinct(of).items() if value is True]
    assert switches
    for name in switches:
        wanted = of(**first, **{name: True})  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            assert typed(of, {**first, name: True}, patch) == wanted
        assert called(of, **first, **{name: True}) == wanted


@pytest.mark.parametrize("of", BOTH)
def test_defaults_are_the_same_everywhere(of: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"genotype": "cell"} if of is TrainRequest else {}
    assert typed(of, first, monkeypatch) == called(of, **first) == of(**first)  # type: ignore[arg-type]


@pytest.mark.parametrize("of", BOTH)
def test_every_option_has_help_and_is_in_the_docs_of_the_verb(of: Kind) -> None:
    run = oche.search if of is Request else oche.train
    for field in fields(of):
        assert words(field).help.endswith(".")
        assert f"{field.name}: {words(field).help}" in (run.__doc__ or "")
    assert list(inspect.signature(run).parameters) == [field.name for field in in_order(of)]
    assert run.__module__ == (search_module.__name__ if of is Request else train_module.__name__)


def test_plain_options_arrive_in_the_plan_and_the_problem() -> None:
    asked = Request(
        "darts", space="toy", data=tiny_data(), budget="smoke", epochs=5, batch=7, seed=11, device="cpu", threads=2, compare=4,
        compare_seeds=9, protocol="smoke", seeds=3, recompute=True, probes=("gap",),
    )  # fmt: skip
    plan = resolve(asked)
    problem = search_module.problem_of(plan)
    assert (problem.epochs, problem.batch, problem.seed, problem.recompute, problem.compile) == (5, 7, 11, True, False)
    settled = plan.request
    assert (settled.seeds, settled.compare, settled.compare_seeds, settled.threads) == (3, 4, 9, 2)
    assert (plan.watch.names, plan.protocol.epochs, str(plan.fabric.device)) == (("gap",), 2, "cpu")


@pytest.mark.parametrize(
    ("method", "options", "space"),
    [
        ("auto", {}, "nb201"),
        ("auto", {"max_params": "9k"}, "chain"),
        ("drnas", {"max_memory": "64KB"}, "chain"),
        ("random_sampling", {"max_macs": "1M"}, "chain"),
        ("pdarts", {"max_params": "90k"}, "nb201"),  # it cannot search a chain
        ("random_search", {"max_params": "90k", "table": "nb201"}, "nb201"),
        ("random_search", {"max_params": "90k", "settings": {"evaluator": "table"}}, "nb201"),
        ("auto", {"max_params": "90k", "data": tiny_masks(8)}, "grid"),
        ("darts", {"max_params": "90k", "space": "toy"}, "toy"),
    ],
)
def test_without_a_space_limits_take_one_with_the_freedom_that_they_need(
    method: str, options: dict[str, Any], space: str
) -> None:
    plan = resolve(
        Request(method, **{"data": tiny_data(), "budget": "smoke", "compare": 0, "rivals": "none", **options})
    )
    assert (plan.space.name, plan.request.space) == (space, space)


@pytest.mark.parametrize(
    ("options", "rivals", "said"),
    [
        ({}, ("auto",), "3 random cells and the ResNet that fits best within its cost, 3 seeds each"),
        ({"max_params": "9k"}, ("auto",), "the ResNet that fits best within the same limits"),
        ({"rivals": "ds_cnn, resnet8"}, ("ds_cnn", "resnet8"), "3 random cells and ds_cnn, resnet8 within its cost"),
        (
            {"rivals": "resnet8", "compare": 0, "compare_seeds": 1},
            ("resnet8",),
            "beside resnet8 within its cost, 1 seed",
        ),
        ({"rivals": "none"}, (), "none, as asked"),
        ({"compare": 0}, (), "none, for nothing is compared"),
        ({"budget": "paper"}, (), "none, for nothing is compared"),
    ],
)
def test_rivals_stand_beside_random_cells_and_the_table_before_the_run_says_so(
    options: dict[str, Any], rivals: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = resolve(Request("darts", **{"space": "toy", "data": tiny_data(), "budget": "smoke", **options}))
    assert plan.rivals == rivals
    Show(quiet=False).preflight(plan, None, "run")
    assert said in " ".join(capsys.readouterr().out.split())


def test_rivals_that_cannot_be_trained_are_refused_and_runs_of_before_had_none() -> None:
    asked = Request("darts", space="toy", data=tiny_data(), budget="smoke", rivals="resnet8", compare_seeds=0)
    with pytest.raises(UserError, match="at least one seed"):
        resolve(replace(asked, compare=0))
    with pytest.raises(
        UserError, match="resnet8 cannot be trained on these data, which have masks: choose among plain_fcn, unet"
    ):
        resolve(Request("darts", data=tiny_masks(), budget="smoke", rivals="resnet8"))
    with pytest.raises(
        UserError, match="unet cannot be trained on these data, which have no masks: choose among resnet8, "
    ):
        resolve(replace(asked, rivals="unet,resnet8", compare_seeds=1))
    masks = Request("darts", data=tiny_masks(), budget="smoke")
    assert resolve(masks).rivals == resolve(replace(masks, rivals="auto")).rivals == ("auto",)
    keeps = replace(masks, method="single_stage")
    alone = resolve(keeps)
    assert alone.rivals == ("auto",)
    assert alone.beside_kept
    assert alone.compare_seeds == 1
    assert alone.protocol.epochs == alone.epochs
    assert not resolve(replace(keeps, compare_seeds=3)).beside_kept
    assert resolve(replace(keeps, compare_seeds=3)).rivals == resolve(replace(keeps, budget="paper")).rivals == ()
    assert resolve(replace(keeps, settings={"train.epochs": 3})).protocol.epochs == 3
    table = resolve(replace(asked, rivals="auto", compare_seeds=1)).table()
    before = {**table, "request": {k: v for k, v in table["request"].items() if k != "rivals"}}  # type: ignore[attr-defined]
    request = request_in(config.dumps(before).encode(), "run.toml")[0]
    assert isinstance(request, Request)
    assert request.rivals == "auto"
    assert resolve(replace(request, data=tiny_data()), before).rivals == ()


# ---------------------------------------------------------------------- what run.toml holds


def test_paths_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def mine(): pass\n")
    asked = plain(
        Request("mine.py:mine", probes=("mine.py:mine",), settings={"split": "mine.py:mine"}),
        space="toy",
        protocol="smoke",
    )
    there = f"{tmp_path}/mine.py:mine"
    assert (asked.method, asked.probes, asked.settings) == (there, (there,), {"split": there})


def test_objects_are_needed_again(tmp_path: Path) -> None:
    plan = resolve(Request("darts", space="toy", data=tiny_data(), budget="smoke"))
    assert plan.objects == ("data",)
    run = search_module.start(plan, tmp_path / "run")
    with pytest.raises(
        UserError, match=r"data was handed over as an object \(noise\).*oche\.resume\(RUN, data=\.\.\.\)"
    ):
        reopen(run.path)
    assert reopen(run.path, tiny_data())[0].request == plan.request


def test_rules_of_a_run() -> None:
    assert rules_of(None) == config.RULES
    assert rules_of({}) == 1
    with pytest.raises(UserError, match="install a later one"):
        rules_of({"rules": config.RULES + 1})


def test_a_request_is_what_it_was_asked_for() -> None:
    assert replace(Request("darts"), seed=3) == Request("darts", seed=3)
    with pytest.raises(TypeError):
        Request("darts", "toy")  # type: ignore[misc]
