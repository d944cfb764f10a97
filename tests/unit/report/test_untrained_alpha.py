"""An alpha that nothing trains is not shown: neither its entropy nor its strips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oche.methods.ask_tell import AskTell
from oche.methods.darts import darts
from oche.methods.evaluators import SupernetScore
from oche.methods.random_search import Uniform
from oche.methods.random_search_ws import BestOfSampled, random_search_ws
from oche.methods.swd_nas import swd_nas
from oche.report.figures import plots, untrained
from oche.report.page import made
from oche.run import Run
from oche.search.searcher import SearcherLike, as_searcher
from reference.tiny import tiny_problem


def searched(folder: Path, searcher: SearcherLike) -> Run:
    run = Run.create(folder / "run")
    run.write(Run.CONFIG, b"")
    as_searcher(searcher).run(replace(tiny_problem("toy", epochs=2), run=run))
    return run


def shown(run: Run) -> set[str]:
    return set(plots(run.records(), run.read(Run.ALPHAS)))


SHARED = replace(random_search_ws(), selection=BestOfSampled(4, 1, 2, 2))
WEIGHTS_ALONE: dict[str, SearcherLike] = {
    "one shot": AskTell("mine", Uniform(), SupernetScore(), queries=3),
    "shared weights": SHARED,
    "held": replace(darts(), arch_start=0.9),
}


@pytest.mark.parametrize("name", WEIGHTS_ALONE)
def test_a_supernet_that_is_trained_for_all_cells_has_no_entropy(name: str, tmp_path: Path) -> None:
    run = searched(tmp_path, WEIGHTS_ALONE[name])
    assert untrained(run.records())
    assert {"losses", "skips", "speed"} <= shown(run)
    assert not {"entropy", "alpha_cell"} & shown(run)
    page, stills = made(run)
    assert "<th>entropy</th>" not in page
    assert "How the operation weights moved" not in page
    assert not {"entropy", "alpha_cell"} & set(stills)


@pytest.mark.parametrize(
    "searcher", [darts(), replace(darts(), arch_start=0.5), swd_nas(2)], ids=["darts", "warm-up", "swd_nas"]
)
def test_what_is_trained_or_measured_is_shown(searcher: SearcherLike, tmp_path: Path) -> None:
    """One epoch after the warm-up is enough, and operations may be measured instead of learned."""
    run = searched(tmp_path, searcher)
    assert not untrained(run.records())
    assert {"entropy", "alpha_cell"} <= shown(run)
    assert "<th>entropy</th>" in made(run)[0]


def test_a_run_without_epochs_has_nothing_untrained() -> None:
    assert not untrained([{"kind": "query", "score": 1.0}])
