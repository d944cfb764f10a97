"""Drawings: every label there, nothing on top of anything else, the same bytes each time."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from oche.errors import UserError
from oche.genotype import Choice, Genotype, published
from oche.report.draw import CHAR, draw, draw_text
from oche.report.layout import SPACE, Box, lay_out

SOFT = Genotype(
    "nb201",
    {
        "cell": (
            Choice(0, 1, "nor_conv_3x3", 0.61),
            Choice(0, 1, "skip_connect", 0.39),
            Choice(0, 2, "none"),
            Choice(1, 2, "none"),
        )
    },
)


def labels(svg: bytes) -> Counter[str]:
    return Counter(re.findall(r">([^<>]+)</text>", svg.decode()))


@pytest.mark.parametrize("name", published())
def test_every_operation_is_labelled_as_often_as_it_was_chosen(name: str) -> None:
    genotype = Genotype.parse(name)
    found = labels(draw(genotype))
    chosen = Counter(c.op for choices in genotype.groups.values() for c in choices)
    assert {op: found[op] for op in chosen} == dict(chosen)


def test_nodes_are_named_as_in_the_field() -> None:
    darts, nb201 = labels(draw(Genotype.parse("DARTS_V2"))), labels(draw(Genotype.parse("NB201_9930")))
    assert {name: darts[name] for name in ("cₖ₋₂", "cₖ₋₁", "cₖ", "2", "5")} == dict.fromkeys(
        ("cₖ₋₂", "cₖ₋₁", "cₖ", "2", "5"), 2
    )
    assert {name: nb201[name] for name in ("input 0", "1", "2", "output 3")} == dict.fromkeys(
        ("input 0", "1", "2", "output 3"), 1
    )


def test_coefficients_are_shown_where_they_are_not_one_and_none_is_dashed() -> None:
    svg = draw(SOFT)
    found = labels(svg)
    assert found["nor_conv_3x3 ×0.61"] == found["skip_connect ×0.39"] == 1
    assert svg.count(b"stroke-dasharray") == found["none"] == 2


@pytest.mark.parametrize("fmt", ["svg", "png"])
def test_the_same_genotype_gives_the_same_bytes(fmt: str) -> None:
    genotype = Genotype.parse("NB201_9930")
    assert draw(genotype, fmt) == draw(genotype, fmt)


def test_an_svg_bears_no_date_and_a_png_is_one() -> None:
    assert b"dc:date" not in draw(SOFT)
    assert draw(SOFT, "png").startswith(b"\x89PNG")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match="'svg' or 'png', not 'pdf'"):
        draw(SOFT, "pdf")


def test_a_cell_without_operations_can_be_drawn() -> None:
    assert draw(Genotype("darts", {"normal": ()})).startswith(b"<?xml")


# ---------------------------------------------------------------------- layout

CELLS = [(f"{name} {group}", choices) for name in published() for group, choices in Genotype.parse(name).groups.items()]
ALL_OPS = tuple(
    Choice(s, t, op, 0.5) for t in range(2, 6) for s in range(t) for op in ("none", "sep_conv_3x3", "skip_connect")
)


def apart(a: Box, b: Box) -> bool:
    beside = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-9
    return beside or abs(a.y - b.y) >= (a.height + b.height) / 2 + SPACE - 1e-9


@pytest.mark.parametrize("choices", [*(c for _, c in CELLS), ALL_OPS], ids=[*(n for n, _ in CELLS), "soft"])
def test_no_box_overlaps_another_and_lines_pass_through_lanes_of_their_own(choices: tuple[Choice, ...]) -> None:
    cell = lay_out(choices, CHAR)
    assert all(apart(a, b) for a, b in itertools.combinations(cell.boxes, 2))
    for chain in cell.chains:  # a line is level across each layer, so it meets no box there but its own
        assert [box.layer for box in chain] == list(range(chain[0].layer, chain[-1].layer + 1))
    assert all(
        box.y - box.height / 2 + 1e-9 >= 0 and box.y + box.height / 2 <= cell.height + 1e-9 for box in cell.boxes
    )


def test_edges_run_from_left_to_right_and_carry_their_operation_once() -> None:
    choices = Genotype.parse("DARTS_V2").groups["normal"]
    cell = lay_out(choices, CHAR)
    carried = [[box.choice for box in chain if box.choice] for chain in cell.chains]
    assert Counter(c for ops in carried for c in ops) == Counter(choices)
    assert sum(not ops for ops in carried) == 4  # nodes 2 to 5 into the output
    assert all(a.x < b.x for chain in cell.chains for a, b in itertools.pairwise(chain))


# ---------------------------------------------------------------------- text


def test_text_of_darts_v2() -> None:
    assert draw_text(Genotype.parse("DARTS_V2")) == "\n".join(
        [
            "normal",
            "  2 <- sep_conv_3x3(0), sep_conv_3x3(1)",
            "  3 <- sep_conv_3x3(0), sep_conv_3x3(1)",
            "  4 <- sep_conv_3x3(1), skip_connect(0)",
            "  5 <- skip_connect(0), dil_conv_3x3(2)",
            "  output <- concat(2, 3, 4, 5)",
            "reduce",
            "  2 <- max_pool_3x3(0), max_pool_3x3(1)",
            "  3 <- skip_connect(2), max_pool_3x3(1)",
            "  4 <- max_pool_3x3(0), skip_connect(2)",
            "  5 <- skip_connect(2), max_pool_3x3(1)",
            "  output <- concat(2, 3, 4, 5)",
        ]
    )


def test_text_shows_coefficients() -> None:
    assert draw_text(SOFT) == "cell\n  1 <- 0.61 nor_conv_3x3(0), 0.39 skip_connect(0)\n  2 <- none(0), none(1)"
