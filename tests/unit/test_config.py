"""Settings: what fits a signature gets in, all else is one sentence, and what was written down can be restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oche.config import assignment, build, describe, dumps, loads, override, restore
from oche.errors import UserError


class Relaxation(ABC):
    @abstractmethod
    def __call__(self, alpha: float) -> float: ...


@dataclass(frozen=True)
class Softmax(Relaxation):
    temperature: float = 1.0

    def __call__(self, alpha: float) -> float:
        return alpha / self.temperature


@dataclass(frozen=True)
class Wrapped(Relaxation):
    inner: Relaxation = Softmax()

    def __call__(self, alpha: float) -> float:
        return self.inner(alpha)


class Term(Protocol):
    def __call__(self, x: float) -> float: ...


@dataclass(frozen=True)
class Decay:
    weight: float = 0.1

    def __call__(self, x: float) -> float:
        return self.weight * x


def double(x: float) -> float:
    return 2 * x


@dataclass(frozen=True)
class Method:
    name: str = "darts"
    relaxation: Relaxation = Softmax()
    terms: tuple[Term, ...] = ()
    rule: Callable[[float], float] = double
    clip: float | None = 5.0
    steps: int = 1
    order: Literal["first", "second"] = "first"
    affine: bool = False
    widths: tuple[int, ...] = (16, 32)
    size: tuple[int, int] = (32, 32)
    ops: tuple[str, ...] = ("none", "skip_connect")
    table: Path | None = None
    published: Mapping[str, int] = field(default_factory=dict, repr=False)


# ---------------------------------------------------------------------- build and override


@pytest.mark.parametrize(
    ("name", "given_", "kept"),
    [
        ("steps", "3", 3),
        ("steps", 3.0, 3),
        ("clip", "0.5", 0.5),
        ("clip", 1, 1.0),
        ("clip", "none", None),
        ("clip", None, None),
        ("affine", "true", True),
        ("affine", False, False),
        ("name", "mine", "mine"),
        ("name", 3, "3"),
        ("name", "none", "none"),
        ("order", "second", "second"),
        ("widths", [8, "16"], (8, 16)),
        ("widths", "8, 16", (8, 16)),
        ("widths", 8, (8,)),
        ("widths", [], ()),
        ("size", "8,9", (8, 9)),
        ("ops", "none", ("none",)),
        ("table", "a/b.csv", Path("a/b.csv")),
        ("table", "none", None),
        ("relaxation", Wrapped(), Wrapped()),
        ("terms", (Decay(),), (Decay(),)),
        ("rule", abs, abs),
    ],
)
def test_values_are_fitted_to_their_annotation(name: str, given_: object, kept: object) -> None:
    values: dict[str, Any] = {name: kept}
    built = build(Method, {name: given_}, "here")
    assert built == override(Method(), name, given_, "here") == replace(Method(), **values)
    assert type(getattr(built, name)) is type(kept)


@pytest.mark.parametrize(
    ("name", "given_", "sentence"),
    [
        ("steps", 3.5, "here: steps must be int, not 3.5."),
        ("steps", "3.5", "here: steps must be int, not '3.5'."),
        ("steps", True, "here: steps must be int, not True."),
        ("steps", "none", "here: steps must be int, not 'none'."),
        ("clip", "true", "here: clip must be float or none, not 'true'."),
        ("clip", True, "here: clip must be float or none, not True."),
        ("affine", "perhaps", "here: affine must be bool, not 'perhaps'."),
        ("affine", 2, "here: affine must be bool, not 2."),
        ("name", False, "here: name must be str, not False."),
        ("order", "third", "here: order must be 'first' or 'second', not 'third'."),
        ("widths", [8, 1.5], "here: widths must be tuple of int, not [8, 1.5]."),
        ("widths", [8, True], "here: widths must be tuple of int, not [8, True]."),
        ("size", [8], "here: size must be tuple of int, int, not [8]."),
        ("relaxation", "Softmax", "here: relaxation must be Relaxation, not 'Softmax'."),
        ("relaxation", Decay(), "here: relaxation must be Relaxation, not Decay(weight=0.1)."),
        ("terms", ["Decay"], "here: terms must be tuple of Term, not ['Decay']."),
    ],
)
def test_what_does_not_fit_is_one_sentence(name: str, given_: object, sentence: str) -> None:
    with pytest.raises(UserError) as built:
        build(Method, {name: given_}, "here")
    with pytest.raises(UserError) as overridden:
        override(Method(), name, given_, "here")
    assert str(built.value) == str(overridden.value) == sentence


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no pcdarts setting 'stepps'; did you mean 'steps'"):
        build(Method, {"stepps": 1}, "pcdarts")
    with pytest.raises(UserError, match=r"'relaxation\.temp'; did you mean 'relaxation\.temperature'"):
        override(Method(), "relaxation.temp", 1, "pcdarts")
    with pytest.raises(UserError, match="no pcdarts setting 'relaxations'; did you mean 'relaxation'"):
        override(Method(), "relaxations.temperature", 1, "pcdarts")
    with pytest.raises(UserError, match=r"clip has no fields, so clip\.x cannot be set"):
        override(Method(), "clip.x", 1, "pcdarts")
    with pytest.raises(UserError, match="random has no settings, so 'K' cannot be set"):
        build(lambda: 1, {"K": 1}, "random")
    with pytest.raises(UserError, match="no darts setting 'published'"):  # repr=False: no setting
        override(Method(), "published", 1, "darts")


def test_override_goes_deep_and_changes_nothing_else() -> None:
    method = Method(relaxation=Wrapped(Softmax(2.0)))
    changed = override(method, "relaxation.inner.temperature", "0.5", "here")
    assert changed == replace(method, relaxation=Wrapped(Softmax(0.5)))
    assert method.relaxation == Wrapped(Softmax(2.0))


def test_build_calls_functions_and_plain_classes() -> None:
    def factory(K: int, *, scale: float | None = None) -> tuple[int, float | None]:
        return K, scale

    class Plain:
        def __init__(self, width: int) -> None:
            self.width = width

    assert build(factory, {"K": "4", "scale": "none"}, "here") == (4, None)
    assert build(Plain, {"width": "4"}, "here").width == 4
    with pytest.raises(UserError, match="here needs a value for K"):
        build(factory, {}, "here")


def test_an_error_of_the_factory_is_not_swallowed() -> None:
    def factory(K: int = 1) -> int:
        raise ValueError("K and I do not get on")

    with pytest.raises(ValueError, match="do not get on"):
        build(factory, {"K": 2}, "here")


# ---------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=3", 3),
        ("a.b = 3e-4", 3e-4),
        ("a.b=true", True),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b='3'", "3"),
        ("a.b=none", "none"),
        ("a.b=sep_conv_3x3", "sep_conv_3x3"),
        ("a.b=x=y", "x=y"),
        ("a.b=", ""),
        ("a.b=2026-01-31", "2026-01-31"),
        ("a.b={x=1}", "{x=1}"),
        ("a.b=1\nc=2", "1\nc=2"),
    ],
)
def test_assignment(text: str, value: object) -> None:
    assert assignment(text) == ("a.b", value)


@pytest.mark.parametrize("text", ["a.b", "=3", " =3", ""])
def test_assignment_needs_a_name_and_a_sign(text: str) -> None:
    with pytest.raises(UserError, match="expected NAME=VALUE"):
        assignment(text)


# ---------------------------------------------------------------------- describe and restore


names = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.floats(allow_nan=False)
relaxations = st.builds(Wrapped, st.builds(Softmax, numbers))
methods = st.builds(
    Method,
    name=names,
    relaxation=relaxations,
    terms=st.tuples(st.builds(Decay, numbers), st.just(double)),
    clip=st.none() | numbers,
    steps=st.integers(-(2**60), 2**60),
    order=st.sampled_from(["first", "second"]),
    affine=st.booleans(),
    widths=st.lists(st.integers(0, 99)).map(tuple),
    size=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    ops=st.lists(names | st.just("none")).map(tuple),
    table=st.none() | st.just(Path("a/b")),
    published=st.just({}),
)


@settings(max_examples=20)
@given(methods, methods)
def test_restore_gives_back_what_describe_wrote(part: Method, other: Method) -> None:
    assert restore(part, loads(dumps(describe(other)), "run.toml"), "run.toml") == other


def test_describe_says_all() -> None:
    method = Method(relaxation=Wrapped(), terms=(Decay(), double), clip=None, table=Path("a/b"))
    assert describe(method) == {
        "type": "Method",
        "name": "darts",
        "relaxation": {"type": "Wrapped", "inner": {"type": "Softmax", "temperature": 1.0}},
        "terms": [{"type": "Decay", "weight": 0.1}, "double"],
        "rule": "double",
        "clip": "none",
        "steps": 1,
        "order": "first",
        "affine": False,
        "widths": [16, 32],
        "size": [32, 32],
        "ops": ["none", "skip_connect"],
        "table": "a/b",
    }


def test_describe_refuses_what_toml_cannot_hold() -> None:
    @dataclass(frozen=True)
    class Odd:
        thing: object

    with pytest.raises(UserError, match=r"Odd\.thing is .*, which run\.toml cannot hold"):
        describe(Odd({1: 2}))


def test_describe_needs_the_name_type() -> None:
    @dataclass(frozen=True)
    class Odd:
        type: str = "odd"

    with pytest.raises(TypeError, match="needs this name"):
        describe(Odd())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"relaxation": {"type": "Wrapped"}}, "run.toml: relaxation is 'Wrapped' there but Softmax here."),
        ({"relaxation": "none"}, "run.toml: relaxation is 'none' there but Softmax here."),
        ({"type": "Search"}, "run.toml: this is 'Search' there but Method here."),
        ({"rule": "math.sqrt"}, "run.toml: rule is 'math.sqrt' there but 'abs' here."),
        ({"terms": []}, "run.toml: terms has 1 parts here, which [] does not fit."),
        ({"terms": [{"type": "Decay", "weight": "much"}]}, "run.toml: terms.0.weight must be float, not 'much'."),
        ({"size": [1]}, "run.toml: size must be tuple of int, int, not [1]."),
        ({"step": 2}, "There is no run.toml setting 'step'; did you mean 'steps'?"),
    ],
)
def test_restore_refuses_other_types(change: dict[str, object], sentence: str) -> None:
    method = Method(terms=(Decay(),), rule=abs)
    with pytest.raises(UserError) as told:
        restore(method, describe(method) | change, "run.toml")
    assert str(told.value).startswith(sentence)


def test_restore_keeps_what_an_older_file_does_not_know() -> None:
    table = describe(Method(steps=7))
    del table["widths"]
    assert restore(Method(widths=(1,)), table, "run.toml") == Method(steps=7, widths=(1,))


def test_broken_toml_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"run\.toml is not valid TOML: .*line 2"):
        loads("a = 1\nb = nothing\n", "run.toml")


def test_what_a_field_meant_before_a_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule is corrected by a new field whose default is the new rule: older runs keep the old one, which the table tells."""
    older = {k: v for k, v in describe(Method()).items() if k != "steps"}
    monkeypatch.setattr("oche.config.BEFORE", {("Method", "steps"): (3, 9), ("Decay", "weight"): (2, 0.5)})
    assert restore(Method(), older, "run.toml", rules=2).steps == 9
    assert restore(Method(), older, "run.toml", rules=3).steps == 1
    assert restore(Method(), describe(Method(steps=4)), "run.toml", rules=1).steps == 4, "what is recorded holds"
    inner = {**older, "terms": [{"type": "Decay"}]}
    assert restore(Method(terms=(Decay(),)), inner, "run.toml", rules=1).terms == (Decay(0.5),)
    assert restore(Method(terms=(Decay(),)), inner, "run.toml", rules=2).terms == (Decay(),)


def test_functions_are_known_by_name_and_by_their_old_paths() -> None:
    method = Method(rule=double)
    for told in ("double", "somewhere.before.the.move.double"):
        assert restore(method, describe(method) | {"rule": told}, "run.toml") == method
