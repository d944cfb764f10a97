"""The forms that people have cells in: each is read to the same choices, damage is told in a sentence, text is never run."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.genotype.literals import LONGEST, Call, read
from oche.spaces.nb201 import NB201_OPS

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
        "|~0|",
        "||",
        "|none~0|x",
    ],
)
def test_wrong_nb201_strings(text: str) -> None:
    with pytest.raises(UserError, match="NAS-Bench-201 string"):
        Genotype.parse(text)


ARCH = "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|"


@pytest.mark.parametrize(
    "text",
    [
        "| nor_conv_3x3~0 | + | nor_conv_3x3 ~ 0 |skip_connect~1 |",
        f"arch_str = '{ARCH}'",
        f"[2021-03-01-12:00:00] the best cell is {ARCH}, 91.5 %",
        f"Structure(3 nodes with {ARCH})",
        f"see {ARCH} beside {ARCH}",
        "Structure([(('nor_conv_3x3', 0),), (('nor_conv_3x3', 0), ('skip_connect', 1))])",
        'CODE = Structure(  # two nodes\n [[["nor_conv_3x3", 0]], [["skip_connect", np.int64(1)], ["nor_conv_3x3", 0]]],\n)',
    ],
)
def test_an_nb201_cell_in_other_words(text: str) -> None:
    assert Genotype.parse(text).arch_string() == ARCH
    assert Genotype.parse(text, "toy").space == "toy"


def test_an_edge_that_a_structure_does_not_list_is_none() -> None:
    """ResNet_CODE of AutoDL-Projects f46486e, xautodl/models/cell_searchs/genotypes.py, and an edge with two operations."""
    text = "Structure([(('nor_conv_3x3', 0),), (('nor_conv_3x3', 1),), (('skip_connect', 0), ('skip_connect', 2))])"
    assert (
        str(Genotype.parse(text)) == "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
    )
    two = Genotype.parse("Structure([(('nor_conv_3x3', 0), ('skip_connect', 0))])")
    assert two.groups["cell"] == (Choice(0, 1, "nor_conv_3x3"), Choice(0, 1, "skip_connect"))


@pytest.mark.parametrize(
    "text",
    [
        "Structure([])",
        "Structure()",
        "Structure([[('none', 1)]])",
        "Structure([[('none', -1)]])",
        "Structure([[('none',)]])",
        "Structure([('none', 0)])",
        "Structure([[('none', 0)]], 4)",
        "Structure(nodes)",
        "Structure([[('none', 0)]",
    ],
)
def test_wrong_structures(text: str) -> None:
    with pytest.raises(UserError, match="no NAS-Bench-201 cell"):
        Genotype.parse(text)


@pytest.mark.parametrize("text", ["see |none~0|none~1|+|none", "x |none~0|+|none|", "a | b | c"])
def test_part_of_an_nb201_string_in_a_line_is_not_taken_for_a_cell(text: str) -> None:
    with pytest.raises(UserError):
        Genotype.parse(text)


# ---------------------------------------------------------------------- the DARTS form

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
        RANGE.format("[2, 3, 4, 5, 6]", "[2, 3, 4, 5]"),  # for five
        RANGE.format("[2, 3, 4, 5, 5]", "[2, 3, 4, 5]"),
        RANGE.format("[1, 2, 3, 4, 5]", "[2, 3, 4, 5]"),
        RANGE.format("[]", "[2, 3, 4, 5]"),
        RANGE.format("[2.0, 5]", "[2, 3, 4, 5]"),
        RANGE.format("None", "[2, 3, 4, 5]"),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5], recurrent=[('relu', 0)]"),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5], connects=3"),
        RANGE.format("[2, 3, 4, 5]", "[2, 3, 4, 5], reduce_concat=[2]"),
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


V1 = RANGE.format("range(2, 6)", "range(2, 6)")
NORMAL, REDUCE = "[('a', 0), ('b', 1), ('c', 0), ('d', 2)]", "[('e', 1), ('f', 0), ('g', 1), ('h', 0)]"
SMALL = f"Genotype(normal={NORMAL}, normal_concat=[2, 3], reduce={REDUCE}, reduce_concat=[2, 3])"


@pytest.mark.parametrize(
    "text",
    [
        f"DARTS_V1 = {V1}",
        f"DARTS_V1 = {V1}\nDARTS = DARTS_V1\n",
        f"2021-03-01 12:00:00,123 genotype = {V1}",
        f"03/01 12:00:00 PM | INFO | epoch 49, {V1} (best)",
        f"genotypes.{V1}",
        V1.replace("'", '"'),
        V1.replace(", 1)", ", np.int64(1))").replace(", 0)", ", int32(0))"),
        V1.replace("('", "(np.str_('").replace("', ", "'), "),
        V1.replace("range(2, 6)", "array([2, 3, 4, 5], dtype=int64)"),
        V1.replace("range(2, 6)", "list(range(2, 6))"),
        V1.replace("range(2, 6)", "torch.tensor([2, 3, 4, 5], device='cpu')"),
        V1.replace("('", "['").replace(")", "]").replace("range(2, 6]", "[2, 3, 4, 5]")[:-1] + ")",
        V1.replace(", 1)", ", 1, 0.1298)").replace(", 0)", ", 0, np.float32(1))"),
        V1.replace("Genotype(", "Genotype(  # searched\n"),
        V1[:-1] + ", connectN=None, connects=None,)",
        V1.replace("normal=", "").replace("reduce=", "").replace("normal_concat=", "").replace("reduce_concat=", ""),
        f"{V1}\n{V1}",
    ],
)
def test_darts_v1_in_other_words(text: str) -> None:
    assert Genotype.parse(text) == Genotype.parse("DARTS_V1") == Genotype.parse(V1)


def small(normal: str = NORMAL, concat: str = "[2, 3]", reduce: str = REDUCE) -> Genotype:
    return Genotype.parse(
        f"Genotype(normal={normal}, normal_concat={concat}, reduce={reduce}, reduce_concat=range(2, 4))"
    )


@pytest.mark.parametrize(
    "normal",
    [
        "[(('a', 0), ('b', 1)), (('c', 0), ('d', 2))]",  # GDAS
        "[[('a', 0, 0.13), ('b', 1, 0.12)], [('c', 0, 0.13), ('d', 2, 0.9)]]",
        "[('a', 2, 0), ('b', 2, 1), ('c', 3, 0), ('d', 3, 2)]",  # FairDARTS
        "[('c', 3, 0), ('a', 2, 0), ('d', 3, 2), ('b', 2, 1)]",
    ],
)
def test_the_same_cell_as_nested_pairs_and_as_triples(normal: str) -> None:
    assert small(normal) == Genotype.parse(SMALL)


def test_json_of_the_darts_form() -> None:
    parts = {"normal": [["a", 0], ["b", 1], ["c", 0], ["d", 2]], "normal_concat": [2, 3]}
    parts |= {"reduce": [[["e", 1], ["f", 0]], [["g", 1], ["h", 0]]], "reduce_concat": [2, 3]}
    assert Genotype.parse(json.dumps(parts)) == Genotype.parse(SMALL)
    assert Genotype.parse(json.dumps(parts), "s5").space == "s5"
    with pytest.raises(UserError, match=r"no DARTS genotype .*'normal_concat' is missing"):
        Genotype.parse(json.dumps({"normal": [], "reduce": []}))


def test_other_numbers_of_inputs() -> None:
    assert small("[[('a', 0)], [('b', 0), ('c', 1), ('d', 2)]]").groups["normal"] == (
        Choice(0, 2, "a"),
        Choice(0, 3, "b"),
        Choice(1, 3, "c"),
        Choice(2, 3, "d"),
    )


def test_all_edges_with_none_on_those_left_out() -> None:
    """SNAS_mild_edge_all's way: five pairs for two nodes are all edges of both."""
    cell = small("[('a', 1), ('none', 0), ('none', 2), ('b', 0), ('none', 1)]").groups["normal"]
    assert [(c.op, c.source, c.target) for c in cell if c.op != "none"] == [("a", 1, 2), ("b", 0, 3)]


def test_a_node_without_input_is_absent_and_so_are_the_edges_out_of_it() -> None:
    cell = small("[('a', 2, 0), ('b', 4, 1), ('skip_connect', 5, 3), ('c', 5, 0)]", "range(2, 6)", "[[('e', 0)]] ")
    assert cell.groups["normal"] == (Choice(0, 2, "a"), Choice(1, 4, "b"), Choice(0, 5, "c"))
    assert cell.concat == {"normal": (2, 4, 5), "reduce": (2,)}
    chain = small("[[('a', 0)], [], [('b', 3)], [('c', 4), ('d', 2)]]", "range(2, 6)")
    assert chain.groups["normal"] == (Choice(0, 2, "a"), Choice(2, 5, "d"))
    assert chain.concat["normal"] == (2, 5)


def test_partial_concatenation() -> None:
    assert small(concat="[3]").concat == {"normal": (3,)}
    assert small().concat == {}
    assert small(concat="(3, 2)").concat == {}
    assert str(small(concat="[3]")) == SMALL.replace("normal_concat=[2, 3]", "normal_concat=[3]")


@pytest.mark.parametrize(
    "normal",
    [
        "[('a', 0), ('b', 1), ('c', 3, 0), ('d', 3, 2)]",  # pairs and triples
        "[(('a', 0), ('b', 1)), ('c', 0), ('d', 2)]",  # nested and flat
        "[(('a', 0), ('b', 1)), (('c', 0), ('d', 2)), (('e', 0), ('f', 0))]",  # a node too many
        "[('a', 2, 0), ('b', 4, 1)]",
        "[('a', 2, 0), ('b', 3, 3)]",
        "[('a', 1, 0), ('b', 3, 1)]",
        "[[], []]",
        "[('a', 0, '0.1'), ('b', 1), ('c', 0), ('d', 2)]",
        "[('a', 0), ('b', 1), ('c', 0), (4, 2)]",
        "[('a', 0), ('b', 1), ('c', 0)]",
        "{'a': 0}",
    ],
)
def test_mixtures_are_refused(normal: str) -> None:
    with pytest.raises(UserError, match="no DARTS genotype"):
        small(normal)


def test_two_genotypes_in_one_text() -> None:
    with pytest.raises(UserError, match="2 different genotypes; give one"):
        Genotype.parse(f"{SMALL}\n{V1}\n{SMALL}")


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
        "Genotype(normal=" + "(" * 30 + "1,)" * 30 + ")",
        "Genotype(normal=[" + "1, " * 200_000 + "])",
        "Genotype(normal=[('a', 1" + "0" * 100_000 + ")])",
        "Genotype(normal=" + "f(" * 2000 + ")" * 2000 + ")",
        '{"schema": ' + "[" * 200_000,
        "x" * 5_000_000,
        "|none~0" * 200_000,
        "Genotype(" * 2_000,
    ],
    ids=[
        *("a huge range", "a range that stands still", "deep brackets", "deep tuples", "a long list", "a long number"),
        *("deep calls", "deep JSON", "a long text", "a long string", "many beginnings"),
    ],
)
def test_text_that_would_exhaust_the_reader_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"no .*(genotype|NAS-Bench-201)") as error:
        Genotype.parse(text)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


@given(st.text(max_size=60))
def test_any_text_gives_a_genotype_or_a_sentence(text: str) -> None:
    for head in ("", "Genotype(", "|", "{"):
        with suppress(UserError):
            assert isinstance(Genotype.parse(head + text), Genotype)


# ---------------------------------------------------------------------- literals


def test_literals_by_hand() -> None:
    assert read("[1, -2, 3.5, .5, 1e-3, 'x', \"y'\", u'z', None, (), (4), (4,)]") == [
        *(1, -2, 3.5, 0.5, 0.001, "x", "y'", "z", None, [], 4, [4]),
    ]
    assert read("f(1, a=g([2]), b=int64(3)) and more") == Call("f", (1,), {"a": Call("g", ([2],)), "b": 3})
    assert read("range(2, 9, 3)") == [2, 5, 8]
    assert read("1 +") == 1, "what follows is not looked at"
    assert read("np.float64(1)") == 1.0
    assert isinstance(read("np.float64(1)"), float)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[1",
            "(1,",
            "f(",
            "f(1",
            "'",
            r"'a\n'",
            "x",
            "True",
            "[1 2]",
            "{1: 2}",
            "f(a=)",
            "f(a=1, a=2)",
            "int64()",
        ),
        *(
            "int64(1, 2)",
            "range()",
            "range('a')",
            "range(1, 2, 0)",
            "lambda: 1",
            "[x for x in 'a']",
            "*a",
            "...",
            ")",
            "]",
        ),
    ],
)
def test_what_is_no_literal(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)


def test_a_literal_is_read_up_to_its_limit() -> None:
    with pytest.raises(ValueError, match="ends"):
        read("[" + "1," * LONGEST + "]")
