"""Genotypes: JSON and published strings read back as written, hashes tell networks apart, text is never run."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oche.errors import UserError
from oche.genotype import PUBLISHED, Choice, Genotype
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
    assert {name: Genotype.parse(text).hash for name, text in PUBLISHED.items()} == {
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
        (edited(schema=2), "has schema 2; this oche reads schema 1: update oche"),
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


# ---------------------------------------------------------------------- NAS-Bench-201's string


def test_all_nb201_strings_round_trip() -> None:
    """All 15,625, written here as AutoDL's Structure.tostr does."""
    seen = set()
    for ops in itertools.product(NB201_OPS, repeat=6):
        nodes = [[(ops[0], 0)], [(ops[1], 0), (ops[2], 1)], [(ops[3], 0), (ops[4], 1), (ops[5], 2)]]
        text = "+".join("|" + "|".join(f"{op}~{source}" for op, source in node) + "|" for node in nodes)
        genotype = Genotype.parse(text)
        assert str(genotype) == text
        assert [c.op for c in genotype.groups["cell"]] == list(ops)
        seen.add(text)
    assert len(seen) == 15_625


def test_nb201_strings_are_those_of_the_table(data_folder: Path) -> None:
    with gzip.open(data_folder / "nasbench201" / "nb201.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if int(row["index"]) % 50 == 0:
                genotype = Genotype.parse(row["arch_str"])
                assert genotype.arch_string() == row["arch_str"]
                digits = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
                at = {(c.source, c.target): c.op for c in genotype.groups["cell"]}
                edges = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
                assert [at[e] for e in edges] == [digits[int(d)] for d in row["ops"]]


@pytest.mark.parametrize(
    "text",
    [
        "|none~0",
        "|none~1|",
        "|none~0|+|none~0|",
        "|none~0|+|none~1|none~0|",
        "|none~0|+|none~0|none~1|none~2|",
        "|none~0|none~1|",
        "|none|",
        "|none~0|+",
        "|none~0| +|none~0|none~1|",
        "|~0|",
        "||",
        "|none~0|x",
    ],
)
def test_wrong_nb201_strings(text: str) -> None:
    with pytest.raises(UserError, match="NAS-Bench-201 string"):
        Genotype.parse(text)


def test_arch_string_refuses_what_it_cannot_say() -> None:
    for genotype in (
        Genotype.parse("DARTS_V2"),
        Genotype("toy", {"cell": (Choice(0, 1, "none"), Choice(1, 2, "none"))}),  # an edge without an operation
        Genotype("toy", {"cell": (Choice(0, 1, "none", 0.5),)}),
        Genotype("toy", {"cell": ()}),
        Genotype("toy", {}),
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
    ],
)
def test_the_printed_form_of_any_genotype_reads_back(genotype: Genotype) -> None:
    """`str` falls back to JSON where the published form would fail or say something else."""
    space = None if str(genotype).startswith("{") else genotype.space
    assert Genotype.parse(str(genotype), space) == genotype


# ---------------------------------------------------------------------- the DARTS form


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "NB201_9930"])
def test_published_darts_genotypes_round_trip(name: str) -> None:
    genotype = Genotype.parse(name)
    assert str(genotype) == genotype.namedtuple_string() == PUBLISHED[name]
    assert Genotype.parse(str(genotype)) == genotype
    assert genotype.space == "darts"
    assert Genotype.parse(name, "s5").space == "s5"


RANGE = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat={}, reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
    "('avg_pool_3x3', 0)], reduce_concat={})"
)
"""DARTS_V1 of quark0/darts; its descendants write the nodes as a range."""


@pytest.mark.parametrize("nodes", ["range(2, 6)", "[2, 3, 4, 5]", "(2, 3, 4, 5)", "range(2,6,1)"])
def test_concat_may_be_a_range(nodes: str) -> None:
    genotype = Genotype.parse(RANGE.format(nodes, nodes))
    assert genotype == Genotype.parse(RANGE.format("[2, 3, 4, 5]", "range(2, 6)"))
    assert genotype.groups["normal"][:2] == (Choice(1, 2, "sep_conv_3x3"), Choice(0, 2, "sep_conv_3x3"))
    assert genotype.groups["reduce"][-1] == Choice(0, 5, "avg_pool_3x3")


def test_line_breaks_do_not_matter() -> None:
    text = RANGE.format("range(2, 6)", "range(2, 6)")
    assert Genotype.parse(text.replace(", ", ",\n    ")) == Genotype.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "Genotype()",
        "Genotype(normal=[])",
        "Genotype(1, 2)",
        "Genotype(normal=[], normal_concat=[], reduce=[]",
        RANGE.format("[2, 3]", "[2, 3, 4, 5]"),  # eight pairs for two nodes
        RANGE.format("[2, 3, 4, 6]", "[2, 3, 4, 5]"),
        RANGE.format("'2345'", "[2, 3, 4, 5]"),
        RANGE.format("4", "[2, 3, 4, 5]"),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5]").replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', 9)"),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5]").replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', -1)"),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5]").replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', 'one')"),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5]").replace("('sep_conv_3x3', 1)", "'sep_conv_3x3'"),
    ],
)
def test_wrong_darts_genotypes(text: str) -> None:
    with pytest.raises(UserError, match="no DARTS genotype"):
        Genotype.parse(text)


@pytest.mark.parametrize("text", ["", "DARTS_V9", "genotype.json", "Genotyp(normal=[])"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no genotype; expected JSON"):
        Genotype.parse(text)


ATTACKS = [
    "__import__('pathlib').Path({path!r}).touch()",
    "[__import__('pathlib').Path({path!r}).touch()]",
    "[(x := open({path!r}, 'w')) for x in [1]]",
    "(lambda: open({path!r}, 'w'))()",
    "range(*[open({path!r}, 'w')])",
    "range(2, open({path!r}, 'w').fileno())",
    "eval('open({path!r})')",
    "[2, 3, 4, 5].__class__",
    "range.__class__",
    "f'{{open({path!r}, \"w\")}}'",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_malicious_text_is_never_run(attack: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    code = attack.format(path=str(target))
    for text in (
        RANGE.format(code, "[2, 3, 4, 5]"),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5]").replace("('sep_conv_3x3', 1)", code, 1),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5]").replace("'sep_conv_3x3', 1", f"{code}, 1", 1),
        f"Genotype({code})",
        f"Genotype(**{code})",
        code,
        "{" + code + "}",
        f"|{code}~0|",
    ):
        with suppress(UserError):
            Genotype.parse(text)
        assert not target.exists(), text


@pytest.mark.parametrize(
    "text",
    [
        RANGE.format("range(2, 10000000000000)", "[2, 3, 4, 5]"),  # would fill the memory
        RANGE.format("range(2, 6, 0)", "[2, 3, 4, 5]"),
        "Genotype(normal=" + "[" * 2000 + "]" * 2000 + ")",
        '{"schema": ' + "[" * 200_000,
    ],
    ids=["a huge range", "a range that stands still", "deep brackets", "deep JSON"],
)
def test_text_that_would_exhaust_the_reader_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"no .*genotype"):
        Genotype.parse(text)


@given(st.text(max_size=60))
def test_any_text_gives_a_genotype_or_a_sentence(text: str) -> None:
    for head in ("", "Genotype(", "|", "{"):
        with suppress(UserError):
            assert isinstance(Genotype.parse(head + text), Genotype)
