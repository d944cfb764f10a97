"""Genotypes: JSON and printed strings read back as written, hashes tell networks apart."""

from __future__ import annotations

import itertools
import json
import random
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.spaces.darts import DARTS_OPS
from oche.spaces.nb201 import NB201_OPS

choices = st.builds(
    Choice,
    source=st.integers(0, 5),
    target=st.integers(1, 6),
    op=st.sampled_from([*DARTS_OPS, *NB201_OPS, "noise", "an op of 'mine'", "größer"]),
    coefficient=st.just(1.0) | st.floats(0, 1, allow_nan=False),
)
genotypes = st.builds(
    Genotype,
    space=st.sampled_from(["darts", "nb201", "toy"]),
    groups=st.dictionaries(st.text(min_size=1, max_size=6), st.lists(choices, max_size=6).map(tuple), max_size=3),
    sharing=st.sampled_from(["type", "cell"]),
    edge=st.just("weighted_sum"),
) | st.builds(
    Genotype,
    space=st.just("darts"),
    groups=st.fixed_dictionaries({"normal": st.lists(choices, max_size=4).map(tuple)}),
    sharing=st.just("type"),
    edge=st.just("partial_channels"),
    edge_args=st.fixed_dictionaries({"K": st.integers(1, 8)}),
    concat=st.dictionaries(st.sampled_from(["normal", "reduce"]), st.lists(st.integers(2, 6), max_size=3).map(tuple)),
)


# ---------------------------------------------------------------------- JSON


@given(genotypes)
def test_json_round_trip(genotype: Genotype) -> None:
    text = genotype.to_json()
    again = Genotype.from_json(text)
    assert again == genotype
    assert again.to_json() == text
    assert Genotype.parse(f"  {text}\n") == genotype
    assert again.hash == genotype.hash


@given(genotype=genotypes, seed=st.integers(0, 99))
def test_order_does_not_change_the_hash(genotype: Genotype, seed: int) -> None:
    rng = random.Random(seed)
    names = list(genotype.groups)
    rng.shuffle(names)
    shuffled = {name: tuple(rng.sample(genotype.groups[name], len(genotype.groups[name]))) for name in names}
    assert replace(genotype, groups=shuffled).hash == genotype.hash


BASE = Genotype(
    "darts", {"normal": (Choice(0, 2, "noise"), Choice(1, 2, "noise", 0.5)), "reduce": ()}, edge_args={"K": 2}
)


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, space="s1"),
        replace(BASE, sharing="cell"),
        replace(BASE, edge="partial_channels"),
        replace(BASE, edge_args={"K": 4}),
        replace(BASE, concat={"normal": (2,)}),
        replace(BASE, groups={"normal": BASE.groups["normal"]}),
        replace(BASE, groups={"normal": BASE.groups["reduce"], "reduce": BASE.groups["normal"]}),
        *(
            replace(BASE, groups={**BASE.groups, "normal": (changed, BASE.groups["normal"][1])})
            for changed in (
                Choice(1, 2, "noise"),
                Choice(0, 3, "noise"),
                Choice(0, 2, "none"),
                Choice(0, 2, "noise", 0.9),
            )
        ),
    ],
)
def test_whatever_changes_the_network_changes_the_hash(other: Genotype) -> None:
    assert other.hash != BASE.hash


def test_the_hash_is_what_was_published() -> None:
    """Hashes name files and cite networks: they may not change between versions, machines or runs."""
    names = ("DARTS_V2", "PCDARTS_CIFAR", "PCDARTS_IMAGENET", "RLNAS_CIFAR", "NB201_9930")
    assert {name: Genotype.parse(name).hash for name in names} == {
        "DARTS_V2": "b7e04e9d96db5b9e",
        "PCDARTS_CIFAR": "c876c88efdb8a506",
        "PCDARTS_IMAGENET": "9d824c6a37425863",
        "RLNAS_CIFAR": "5b555100487d29ae",
        "NB201_9930": "895ee097a4fdc1fd",
    }


def test_an_integer_coefficient_is_the_same_network() -> None:
    assert (
        Genotype("toy", {"cell": (Choice(0, 1, "none", 1),)}).hash
        == Genotype("toy", {"cell": (Choice(0, 1, "none"),)}).hash
    )


def edited(**changes: object) -> str:
    return json.dumps({**json.loads(BASE.to_json()), **changes})


def without(key: str) -> str:
    return json.dumps({k: v for k, v in json.loads(BASE.to_json()).items() if k != key})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (edited(schema=3), "has schema 3; this oche reads schemas 1 to 2: update oche"),
        (edited(concat=[2, 3]), "no genotype in JSON"),
        (edited(concat={"normal": 2}), "no genotype in JSON"),
        (edited(space="s1"), "was edited or damaged"),
        (edited(hash="0" * 16), "hash 0000000000000000 does not fit"),
        *((without(key), f"no genotype in JSON .*{key}") for key in ("schema", "space", "groups", "sharing", "edge")),
        (edited(groups=[]), "no genotype in JSON"),
        (edited(groups={"normal": [[0, 2, "noise"]]}), "no genotype in JSON"),
        (edited(groups={"normal": [["0", 2, "noise", 1.0]]}), "a choice is .source, target, op, coefficient."),
        (edited(groups={"normal": 3}), "no genotype in JSON"),
        (edited(edge="weighted_sum"), "no genotype in JSON"),
        (edited(edge={"type": "partial_channels", "K": "four"}), "no genotype in JSON"),
        ("{", "no genotype in JSON"),
        (BASE.to_json()[:-20], "no genotype in JSON"),
        ("{}", "no genotype in JSON"),
    ],
)
def test_damaged_json_is_told_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        Genotype.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_object(text: str) -> None:
    with pytest.raises(UserError, match="no genotype"):
        Genotype.from_json(text)


def test_a_genotype_is_written_in_the_oldest_schema_that_can_say_it() -> None:
    """So an older version reads what it can, and of the rest says that it needs an update."""
    assert json.loads(BASE.to_json())["schema"] == 1
    assert "concat" not in BASE.to_json()
    assert json.loads(replace(BASE, concat={"normal": (2,)}).to_json())["schema"] == 2


def test_a_hand_written_genotype_needs_no_hash() -> None:
    assert Genotype.from_json(without("hash")) == BASE


@given(genotype=genotypes, data=st.data())
def test_any_single_damage_is_noticed(genotype: Genotype, data: st.DataObject) -> None:
    """One character of the file changed: an error, or the very same genotype."""
    text = genotype.to_json()
    at = data.draw(st.integers(0, len(text) - 1))
    broken = text[:at] + data.draw(st.sampled_from('x7"[')) + text[at + 1 :]
    with suppress(UserError):
        assert Genotype.from_json(broken) == genotype


# ---------------------------------------------------------------------- what it says


def test_discrete() -> None:
    cell = (Choice(0, 1, "none"), Choice(0, 2, "none"), Choice(1, 2, "none"))
    assert Genotype("toy", {"cell": cell}).discrete
    assert not Genotype("toy", {"cell": (*cell, Choice(1, 2, "noise"))}).discrete, "two operations on an edge"
    assert not Genotype("toy", {"cell": (*cell[:2], Choice(1, 2, "none", 0.5))}).discrete


def test_counts() -> None:
    genotype = Genotype.parse("DARTS_V2")
    assert genotype.skips() == {"normal": 2, "reduce": 3}
    assert genotype.count("max_pool_3x3") == 5
    assert genotype.summary().startswith(
        "normal: 5 sep_conv_3x3, 2 skip_connect, 1 dil_conv_3x3; reduce: 5 max_pool_3x3"
    )
    assert Genotype.parse("NB201_9930").summary() == "5 nor_conv_3x3, 1 skip_connect"


def test_connected_by_walking_every_path() -> None:
    """All NAS-Bench-201 cells: connected where some path 0 -> ... -> 3 has no `none` on it."""
    paths = [((0, 3),), ((0, 1), (1, 3)), ((0, 2), (2, 3)), ((0, 1), (1, 2), (2, 3))]
    edges = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    for ops in itertools.product(("none", "skip_connect"), repeat=6):
        at = dict(zip(edges, ops, strict=True))
        genotype = Genotype("nb201", {"cell": tuple(Choice(s, t, op) for (s, t), op in at.items())})
        assert genotype.connected == any(all(at[e] != "none" for e in path) for path in paths)
    assert Genotype.parse("DARTS_V2").connected


# ---------------------------------------------------------------------- printed forms


def test_arch_string_refuses_what_it_cannot_say() -> None:
    for genotype in (
        Genotype.parse("DARTS_V2"),
        Genotype("toy", {"cell": (Choice(0, 1, "none"), Choice(1, 2, "none"))}),  # an edge without an operation
        Genotype("toy", {"cell": (Choice(0, 1, "none", 0.5),)}),
        Genotype("toy", {"cell": ()}),
        Genotype("toy", {}),
        Genotype("toy", {"cell": (Choice(0, 1, "none"), Choice(0, 1, "skip_connect"))}),  # one too many
    ):
        with pytest.raises(UserError, match="exactly one operation on every edge"):
            genotype.arch_string()


@pytest.mark.parametrize(
    "genotype",
    [
        Genotype("toy", {"cell": (Choice(0, 1, "none"), Choice(1, 2, "none"))}),
        Genotype("darts", {"normal": (Choice(0, 2, "noise"),), "reduce": (Choice(0, 2, "a"), Choice(1, 2, "b"))}),
        Genotype("toy", {"cell": ()}),
        Genotype("darts", {"normal": (), "reduce": ()}),
        Genotype("toy", {"cell": (Choice(0, 1, "none", 0.5),)}),
        Genotype("darts", {"cell_0": (Choice(0, 2, "noise"),)}, sharing="cell"),
        Genotype(
            "darts",
            {"normal": (Choice(0, 2, "none"), Choice(1, 2, "none")), "reduce": (Choice(0, 2, "a"), Choice(1, 2, "b"))},
        ),
        Genotype(
            "darts", {"normal": (Choice(0, 2, "a"), Choice(0, 4, "b")), "reduce": (Choice(0, 2, "c"),)}
        ),  # no node 3
        Genotype(
            "darts",
            {
                "normal": (Choice(0, 2, "a"), Choice(2, 3, "b")),
                "reduce": (Choice(0, 2, "a"), Choice(0, 2, "a"), Choice(1, 3, "b")),
            },
            concat={"normal": (3,)},
        ),
        Genotype("darts", {"normal": (Choice(0, 2, "it's"),), "reduce": (Choice(0, 2, "c"),)}),
    ],
)
def test_the_printed_form_of_any_genotype_reads_back(genotype: Genotype) -> None:
    """`str` falls back to JSON where the published form would fail or say something else."""
    space = None if str(genotype).startswith("{") else genotype.space
    assert Genotype.parse(str(genotype), space) == genotype
