"""The promises of every table, on one of five cells."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.tables import Table

CELLS = tuple(f"|{op}~0|" for op in ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"))


def table(first: NDArray[np.int64] | None = None) -> Table:
    columns = {
        "digits/valid": lambda: np.array([10.0, 50.0, 90.0, 80.0, 50.0]),
        "digits/test": lambda: np.array([10.0, 40.0, 85.0, 86.0, 41.0]),
        "digits/test/12": lambda: np.array([10.0, 30.0, 60.0, 61.0, 31.0]),
        "digits/parameters": lambda: np.array([0.0, 0.0, 4.0, 36.0, 0.0]),
        "zerocost/digits/naswot": lambda: np.array([-np.inf, 3.0, 7.0, 9.0, 4.0]),
    }
    smaller = frozenset({"digits/parameters"})
    return Table(
        "demo",
        "nb201",
        CELLS,
        columns,
        ("digits/valid", "digits/test"),
        smaller,
        first if first is not None else np.arange(5),
    )


def cell(op: str) -> Genotype:
    return Genotype("nb201", {"cell": (Choice(0, 1, op),)})


def test_cells_have_numbers_and_back() -> None:
    for i, text in enumerate(CELLS):
        assert table().index(Genotype.parse(text)) == i
        assert str(table().genotype(i)) == text


def test_values_best_and_regret() -> None:
    assert table().value(cell("skip_connect"), "digits/test") == 40.0
    assert table().best("digits/test") == 86.0
    assert table().best_index("digits/valid") == 2
    assert table().regret(cell("nor_conv_1x1"), "digits/test") == 1.0
    assert table().regret(cell("nor_conv_3x3"), "digits/test") == 0.0


def test_smaller_is_better_for_costs() -> None:
    assert table().best("digits/parameters") == 0.0
    assert table().regret(cell("nor_conv_3x3"), "digits/parameters") == 36.0


def test_test_metrics_may_not_select() -> None:
    selectable = {metric: table().selectable(metric) for metric in table().metrics}
    assert [metric for metric, may in selectable.items() if not may] == ["digits/test", "digits/test/12"]


def test_an_answer_is_a_table_a_data_set() -> None:
    assert table().answer(cell("none")) == {"digits": {"valid": 10.0, "test": 10.0}}
    chosen = table().answer(cell("none"), ["digits/test/12", "zerocost/digits/naswot"])
    assert chosen == {"digits": {"test/12": 10.0}, "zerocost": {"digits/naswot": None}}
    json.dumps(chosen, allow_nan=False)
    assert math.isinf(table().value(cell("none"), "zerocost/digits/naswot"))


def test_a_sample_is_fixed_and_has_no_two_cells_that_compute_the_same() -> None:
    same = table(np.array([0, 1, 2, 2, 1]))
    assert same.isomorphs(cell("skip_connect")) == (1, 4)
    drawn = same.sample(3, seed=1)
    assert drawn == same.sample(3, seed=1)
    assert sorted(map(same.index, drawn)) == [0, 1, 2]
    with pytest.raises(UserError, match="4 cells cannot be sampled from the 3 different ones"):
        same.sample(4)


@pytest.mark.parametrize("ask", [Table.column, Table.selectable, Table.best, Table.best_index])
def test_an_unknown_metric_names_the_nearest(ask: object) -> None:
    with pytest.raises(UserError, match="no metric of demo 'digits/tset'; did you mean 'digits/test'"):
        ask(table(), "digits/tset")  # type: ignore[operator]


def test_a_cell_of_another_space_is_refused() -> None:
    with pytest.raises(UserError, match=r"of the space 'toy'; the table 'demo' holds cells of 'nb201'"):
        table().index(Genotype.parse(CELLS[0], "toy"))
    with pytest.raises(UserError, match="of the space 'darts'"):
        table().index(Genotype.parse("DARTS_V2"))
    with pytest.raises(UserError, match="is not among the 5 of the table"):
        table().index(Genotype.parse("NB201_9930"))


@pytest.mark.parametrize("index", [-1, 5])
def test_a_number_without_a_cell_is_refused(index: int) -> None:
    with pytest.raises(UserError, match="cells are numbered 0 to 4"):
        table().genotype(index)
