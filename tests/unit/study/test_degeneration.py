"""The numbers of degeneration against counting by hand, after each epoch of a search that was made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oche.methods.darts import darts
from oche.run import Run
from oche.search.begin import begin
from oche.search.method import Method
from oche.search.relaxations import Gated
from oche.search.state import SearchState
from oche.study.degeneration import cells_of, degenerated, series_of
from reference.tiny import tiny_problem

GRID = {"channels": 4, "layers": 2, "levels": 2, "ops": ("mbconv_k3_e3", "skip_connect")}
OPEN, SHUT = 1.0, -3.0  # b = 0.73 and 0.05


def searched(space: str, method: Method, history: dict[str, list[torch.Tensor]]) -> SearchState:
    state = begin(tiny_problem(space, epochs=2, **(GRID if space == "grid" else {})), method)  # type: ignore[arg-type]
    for name, rows in history.items():
        assert rows[0].shape == state.alpha[name].shape
    state.trajectory = history
    return state


def test_a_grid_is_counted_node_by_node_and_gate_by_gate(tmp_path: Path) -> None:
    """Edges: gate, node, gate, node, two gates, node, two gates, node; one of four nodes skips, then three; no gate shut, then three."""
    convolution, skip, none = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
    alpha = [
        torch.tensor([none, a, none, b, none, none, c, none, none, d])
        for a, b, c, d in ((convolution, convolution, convolution, skip), (skip, skip, convolution, skip))
    ]
    beta = [torch.full((10,), OPEN), torch.tensor([OPEN, 0, SHUT, 0, OPEN, SHUT, 0, SHUT, OPEN, 0])]
    state = searched("grid", replace(darts(), relaxation=Gated()), {"grid/alpha": alpha, "grid/beta": beta})
    run = Run.create(tmp_path / "run")
    run.log({"kind": "epoch", "epoch": 0, "weight_loss": 2.0, "arch_loss": 2.5})
    run.log({"kind": "epoch", "epoch": 1, "weight_loss": 2.0, "arch_loss": None})
    cells = cells_of(state)
    found = series_of(state, cells, run)
    assert found["free share"] == ((0, 1 / 4), (1, 3 / 4))
    assert found["closed gates"] == ((0, 0.0), (1, 3 / 6))
    assert found["depth"] == ((0, 2.0), (1, 1.0))
    assert found["strides"] == ((0, 2.0), (1, 2.0))
    assert found["loss gap"] == ((1, 0.5),)
    weights = [sum(p.numel() for p in state.space.network(cell).parameters()) for cell in cells]
    assert found["parameters"] == tuple(enumerate(map(float, weights)))
    assert weights[1] < weights[0]


def test_a_cell_has_no_gates_and_none_counts_where_it_may_be_chosen(tmp_path: Path) -> None:
    """A cell of three edges: none, skip, convolution."""
    state = searched("toy", darts(), {"cell/alpha": [torch.eye(3)]})
    found = series_of(state, cells_of(state), Run.create(tmp_path / "run"))
    assert found["free share"] == ((0, pytest.approx(2 / 3)),)
    assert found.keys() == {"free share", "depth", "parameters", "multiply-adds"}


@pytest.mark.parametrize(("share", "weights", "so"), [(0.5, 10, False), (0.51, 30, True), (0.0, 9.9, True)])
def test_most_free_or_a_third_of_the_weights(share: float, weights: float, so: bool) -> None:
    assert degenerated(share, weights, 30.0) == so
