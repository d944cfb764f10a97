"""The schema of run.toml and `oche init`: what oche takes validates, and what it refuses does not."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from oche import config
from oche.api.train import plan_training
from oche.cli.init import text
from oche.cli.main import app
from oche.errors import UserError
from oche.methods import METHODS
from oche.plan.request import Request, TrainRequest, recorded_request, written
from oche.plan.resolve import resolve
from oche.plan.schema import schema
from oche.plan.training import training_table
from oche.spaces import SPACES
from oche.spaces.base import BOUND
from reference.tiny import tiny_data

RUNS = Path(__file__).parents[1] / "fixtures" / "runs"


@pytest.fixture(scope="module")
def valid() -> jsonschema.Draft7Validator:
    made = schema()
    jsonschema.Draft7Validator.check_schema(made)
    return jsonschema.Draft7Validator(made)


def fits(valid: jsonschema.Draft7Validator, table: Mapping[str, Any]) -> bool:
    return bool(valid.is_valid(table))


def request(**changes: Any) -> dict[str, Any]:
    return {"request": {"data": "digits", **changes}}


# ---------------------------------------------------------------------- what validates


@pytest.mark.parametrize("file", sorted(RUNS.rglob("run.toml")), ids=lambda file: str(file.relative_to(RUNS)))
def test_runs_of_all_times(file: Path, valid: jsonschema.Draft7Validator) -> None:
    assert not [error.message for error in valid.iter_errors(tomllib.loads(file.read_text()))]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_every_method_writes(name: str, valid: jsonschema.Draft7Validator) -> None:
    plan = resolve(Request(name, space="toy", data="digits", budget="smoke", compare=0))
    table = tomllib.loads(config.dumps(plan.table()))
    assert not [error.message for error in valid.iter_errors(table)]


@pytest.mark.parametrize("name", sorted(SPACES))
def test_the_fields_of_every_space_are_settings(name: str, valid: jsonschema.Draft7Validator) -> None:
    """Each as it is in the space, described as run.toml describes it."""
    described = config.describe(SPACES[name]())
    assert fits(valid, {**request(), "space": described})
    settings = {f"space.{k}": v for k, v in described.items() if k not in ("type", *BOUND)}
    assert not [e.message for e in valid.iter_errors(request(space=name, settings=settings))]
    assert not fits(valid, {**request(), "space": {**described, "chanels": 3}})


@pytest.mark.parametrize(
    "settings",
    [
        {"space.cells": 3, "clip": "none", "arch_optimizer.lr": 1e-3},
        {"trainable": "classifier", "split": "fixed", "split.weights": 0.8},
        {"method.K": 2, "method.classifier": True, "weight_lr.start": 0.1},
        {"train.epochs": 20, "train.lr.start": 0.1, "probe.every": 5},
        {"task.balanced": True, "task.dice": 1.0, "data.size": [32, 32], "data.flip": False},
        {"space.ops": ["none", "mine.py:blur"], "space.stem": "imagenet"},
    ],
)
def test_settings_of_the_pages(settings: dict[str, Any], valid: jsonschema.Draft7Validator) -> None:
    assert not [error.message for error in valid.iter_errors(request(settings=settings))]


def test_parts_of_ones_own_leave_settings_free(valid: jsonschema.Draft7Validator) -> None:
    assert fits(valid, request(space="mine.py:Space", settings={"space.anything": 3}))
    assert fits(valid, request(method="mine.py:gaea", settings={"temperature": 3}))
    assert not fits(valid, request(settings={"temperature": 3}))


# ---------------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    "changes",
    [
        {"metod": "darts"},
        {"method": "dart"},
        {"space": "nb210"},
        {"budget": "quik"},
        {"budget": "mine.py:budget"},
        {"task": "clasify"},
        {"protocol": "breif"},
        {"probes": ["tua"]},
        {"epochs": "many"},
        {"epochs": 2.5},
        {"compile": "maybe"},
        {"settings": {"space.cels": 3}},
        {"settings": {"space.cells": "many"}},
        {"settings": {"space.sharing": "typ"}},
        {"settings": {"split": "fixd"}},
        {"settings": {"spce.cells": 3}},
        {"settings": {"space.ops": ["skip_conect"]}},
    ],
    ids=str,
)
def test_mistakes(changes: dict[str, Any], valid: jsonschema.Draft7Validator) -> None:
    """The schema refuses them, and so does oche."""
    assert fits(valid, request())
    assert not fits(valid, request(**changes))
    with pytest.raises(UserError):
        resolve(config.build(Request, request(**changes)["request"], "test"))


def test_mistakes_outside_of_the_request(valid: jsonschema.Draft7Validator) -> None:
    assert not fits(valid, {})
    assert not fits(valid, {**request(), "reslved": {}})
    assert not fits(valid, {**request(), "rules": config.RULES + 1})
    assert not fits(valid, {**request(), "train": {"type": "Protocol", "epoch": 3}})


def test_a_training(valid: jsonschema.Draft7Validator) -> None:
    asked = TrainRequest("nb201:9930", data="digits", protocol="smoke", epochs=1)
    table = training_table(asked, plan_training(asked).training)
    assert not [e.message for e in valid.iter_errors(tomllib.loads(config.dumps(table)))]
    assert not fits(valid, {"training": {**written(asked), "genotpe": "x"}})


# ---------------------------------------------------------------------- oche init


def told(path: Path, **changes: Any) -> str:
    return text("digits", replace(tiny_data(12, channels=3), **changes), path)


def test_the_file_asks_for_the_defaults(tmp_path: Path, valid: jsonschema.Draft7Validator) -> None:
    """As it is, and with every default taken in: both are the request of `oche search --data digits`."""
    said = told(tmp_path / "search.toml")
    whole = "\n".join(
        line.removeprefix("# ") if " = " in line and not line.startswith("# A line") else line
        for line in said.splitlines()
    )
    for content in (said, whole):
        table = tomllib.loads(content)
        assert fits(valid, table)
        asked = config.build(Request, {k: v for k, v in table["request"].items() if k != "settings"}, "test")
        assert asked == Request(data="digits")
    assert set(tomllib.loads(whole)["request"]) == set(written(Request()))
    assert tomllib.loads(whole)["request"]["settings"]["space.channels"] == 16


@pytest.mark.parametrize("name", ["a\n[request]\nmethod = 'x'", "\u2028x = 1", "[/red]", "<script>alert(1)</script>"])
def test_names_stay_in_their_comment(name: str, tmp_path: Path) -> None:
    said = told(tmp_path / "search.toml", classes=(name, "b", "c"), notes=(name,))
    assert set(tomllib.loads(said)["request"]) == {"data", "settings"}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "digits"])
    assert done.exit_code == 0, done.output
    asked, table = recorded_request(Path("search.toml"))
    assert (asked, table) == (Request(data="digits"), None)
    jsonschema.Draft7Validator.check_schema(json.loads(Path("oche.schema.json").read_text()))
    again = CliRunner().invoke(app, ["init", "digits"])
    assert isinstance(again.exception, UserError)
    assert "search.toml exists already" in str(again.exception)


def test_every_option_has_a_type() -> None:
    table = schema()["properties"]["request"]["properties"]
    assert set(table) == {f.name for f in fields(Request)} - {"out", "progress", "listener"}
    assert all(set(made) - {"description"} for name, made in table.items())


# ---------------------------------------------------------------------- the command line


def test_version_and_completion() -> None:
    from importlib.metadata import version

    assert CliRunner().invoke(app, ["--version"]).output == f"oche {version('oche')}\n"
    done = CliRunner().invoke(app, ["serch"])
    assert "did you mean 'search'" in done.output.lower()
    helped = CliRunner().invoke(app, ["--help"]).output
    assert "--install-completion" in helped
