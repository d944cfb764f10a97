"""The early-stop rule on published series, the warning and its memory, and probes in a search's record."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from oche.genotype import Genotype
from oche.methods.darts import darts
from oche.methods.random_features import random_features
from oche.run import Run
from oche.search.begin import begin
from oche.search.callbacks import Callback
from oche.search.loop import search
from oche.search.state import SearchState
from oche.tables import Table
from oche.watch.monitor import (
    Eigenvalue,
    EigenvalueRule,
    Gap,
    Monitor,
    ParameterFree,
    Probes,
    RankCorrelation,
    TableAccuracy,
    warning,
)
from oche.watch.named import Watch
from reference.tiny import tiny_problem

EPOCHS = [*range(0, 50, 2), 49]
GOLDEN = {  # largest eigenvalues from the Hessians that automl/RobustDARTS keeps -> (trigger, returned) epochs, first ratio
    "S1 C10 #1": (
        ".1788 .1482 .1703 .1464 .1211 .2488 .2311 .3595 .2246 .3859 .2085 .4298 .5083 .2287 .4098 .5024 .4997 .2500 .4574 .5168 "
        ".6438 .4592 .7071 1.3192 .5272 .5212",
        (22, 10),
        1.453,
    ),
    "S1 C10 #2": (
        ".1737 .1465 .2629 .1932 .1675 .2212 .2090 .1505 .2200 .2900 .3138 .4737 .3055 .3624 .3232 .3610 .9003 .2430 .3006 .6285 "
        ".6465 .5168 .8209 .3947 .3950 .3938",
        (22, 10),
        1.538,
    ),
    "S3 SVHN #3": (
        ".1009 .0995 .0734 .0900 .0818 .0786 .0989 .0679 .1267 .0961 .0840 .0970 .1928 .1541 .1434 .2306 .1094 .2112 .1930 .1619 "
        ".4227 .1528 .1212 .2025 .3081 .1465",
        (24, 12),
        1.130,
    ),
}


# ---------------------------------------------------------------------- the rule


@pytest.mark.parametrize("run", GOLDEN)
def test_the_rule_decides_as_r_darts_did(run: str) -> None:
    text, decision, first = GOLDEN[run]
    series = [float(value) for value in text.split()]
    rule = EigenvalueRule()
    assert rule.trigger(EPOCHS, series) == decision
    ratios = [rule.growth(EPOCHS[:n], series[:n]) for n in range(1, len(series) + 1)]
    assert [found is None for found in ratios[:12]] == [True] * 11 + [False]  # looked at from epoch 22 on
    assert ratios[11] == (10, pytest.approx(first, abs=1e-3))


def test_the_rule_never_triggers_on_flat_falling_or_negative_series() -> None:
    for series in ([0.2] * 26, [1 / (n + 1) for n in range(26)], [-0.1 * n for n in range(26)]):
        assert EigenvalueRule().trigger(EPOCHS, series) is None


# ---------------------------------------------------------------------- the warning


SKIPS = "|skip_connect~0|+|skip_connect~0|nor_conv_3x3~1|"
NOTHING = "|none~0|+|none~0|skip_connect~1|"
GOOD = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|"


def played(
    monitor: Monitor,
    cells: list[str],
    *,
    method: object = None,
    alpha: float = 0.0,
    phase: str = "search",
    **numbers: list[float],
) -> tuple[SearchState, dict[int, str]]:
    """The monitor over a made-up search of these genotypes; -> the state, and epoch -> warning."""
    state = begin(tiny_problem(), method or darts())  # type: ignore[arg-type]
    for t in state.alpha.values():
        t.data.copy_(alpha * torch.eye(3))
    said = {}
    state.steps = 100 * len(cells)
    for state.epoch, cell in enumerate(cells):
        state.step = 100 * (state.epoch + 1)
        record: dict[str, object] = {"phase": phase, "genotype": cell}
        record |= {name: values[state.epoch] for name, values in numbers.items()}
        monitor.on_epoch_end(state, record)
        if "warning" in record:
            said[state.epoch] = str(record["warning"])
            json.dumps(record)
    return state, said


def test_a_sound_search_is_not_warned() -> None:
    state, said = played(Monitor(), [GOOD] * 30, eigenvalue=[0.2] * 30)
    assert said == {}
    assert warning(state) is None


def test_skips_are_told_once_with_a_remedy() -> None:
    state, said = played(Monitor(), [GOOD] * 4 + [SKIPS] * 6)
    assert said == {
        5: "Epoch 5: the search collapses: 2 of 3 operations of cell 'cell' are skip connections; search again with random features "
        "(`oche search rf_darts`), or take genotypes/epoch_003.json from before."
    }
    assert warning(state) == said[5]


def test_a_network_that_is_kept_is_not_judged_by_a_cell_that_nothing_derives() -> None:
    (*_, derived), (*_, kept) = Watch().callbacks(), Watch().callbacks(kept=True)
    assert isinstance(derived, Monitor)
    assert isinstance(kept, Monitor)
    assert [len(played(monitor, [SKIPS] * 6)[1]) for monitor in (derived, kept)] == [1, 0]
    assert list(played(kept, [GOOD] * 30, eigenvalue=[0.2] * 15 + [2.0] * 15)[1]) != []


def test_a_sign_must_last_and_the_search_be_on() -> None:
    assert played(Monitor(), [GOOD, SKIPS] * 5)[1] == {}
    assert played(Monitor(), [SKIPS] * 5, phase="warm-up")[1] == {}
    assert list(played(Monitor(patience=1), [GOOD, SKIPS, GOOD])[1]) == [1]
    (only,) = played(Monitor(), [SKIPS] * 5)[1].values()  # no genotype from before
    assert only.endswith("(`oche search rf_darts`).")


def test_operations_without_weights_are_told() -> None:
    ((epoch, said),) = played(Monitor(), [GOOD] + [NOTHING] * 3)[1].items()
    assert epoch == 2
    assert "100% of the operations have no weights" in said


def test_random_features_are_not_advised_where_they_are_on() -> None:
    ((_, said),) = played(Monitor(), [GOOD] + [SKIPS] * 3, method=random_features(darts()))[1].items()
    assert "rf_darts" not in said
    assert "more epochs or smaller steps of alpha" in said


def test_growing_eigenvalues_are_told_with_the_epoch_to_return_to() -> None:
    numbers = [0.1] * 13 + [1.0] * 7  # epoch n + 2 first shows the mean around n
    state, said = played(Monitor(), [GOOD] * 20, eigenvalue=numbers)
    ((epoch, sentence),) = said.items()
    assert EigenvalueRule().trigger(range(20), numbers) == (epoch, 10)
    assert "since epoch 10; take genotypes/epoch_010.json" in sentence
    assert state.memory["monitor/eigenvalue"].tolist() == [[n, value] for n, value in enumerate(numbers)]


def test_alpha_decided_early_is_told() -> None:
    ((epoch, said),) = played(Monitor(), [GOOD] * 10, alpha=50.0)[1].items()
    assert epoch == 1
    assert "alpha is decided (entropy 0.00 of 1) at 20% of the search" in said
    assert played(Monitor(patience=5), [GOOD] * 9, alpha=50.0)[1] == {}  # less than half of nine epochs


# ---------------------------------------------------------------------- in a search


@dataclass(frozen=True)
class Kill(Callback):
    """Stands for a process that dies at the start of an epoch."""

    epoch: int

    def on_epoch_start(self, state: SearchState) -> None:
        if state.epoch == self.epoch:
            raise KeyboardInterrupt


def test_probes_put_their_numbers_into_the_record(tmp_path: Path) -> None:
    triples = product(("none", "skip_connect", "nor_conv_3x3"), repeat=3)
    cells = tuple(f"|{a}~0|+|{b}~0|{c}~1|" for a, b, c in triples)
    table = Table("demo", "toy", cells, {"demo/test": lambda: np.arange(27.0)}, ())
    run = Run.create(tmp_path / "run")
    problem = replace(tiny_problem(epochs=4), run=run)
    probes = (
        ParameterFree(),
        Eigenvalue(8),
        Gap(),
        RankCorrelation(table, "demo/test", 5),
        TableAccuracy(table, "demo/test"),
    )
    watched = replace(darts(), callbacks=(Probes(probes, every=2), Monitor()))
    history = search(problem, watched).history
    for record in history:
        assert {probe.name for probe in probes} <= set(record) or record["epoch"] == 1
        if record["epoch"] in (0, 2, 3):
            genotype = Genotype.parse(str(record["genotype"]), "toy")
            assert record["table_accuracy"] == cells.index(str(genotype))
            assert record["parameter_free"] == (3 - genotype.count("nor_conv_3x3")) / 3
            assert -1 <= float(str(record["kendall_tau"])) <= 1
    plain = search(tiny_problem(epochs=4), darts()).state
    watched_alpha = search(replace(problem, run=None), watched).state.alpha
    for name, t in plain.alpha.items():
        assert torch.equal(t, watched_alpha[name])  # watching changes nothing


def test_the_monitor_s_memory_survives_a_killed_search(tmp_path: Path) -> None:
    """The broken and resumed search says the same, once, and ends in the same memory."""
    monitor = Monitor(skips=-1.0)  # any cell is a sign

    def run(name: str, *more: Callback) -> tuple[SearchState, list[object]]:
        problem = replace(tiny_problem(epochs=4), run=Run(tmp_path / name))
        (tmp_path / name).mkdir(exist_ok=True)
        found = search(problem, replace(darts(), callbacks=(Probes((Eigenvalue(8),)), monitor, *more)))
        return found.state, [record.get("warning") for record in found.history]

    whole, said = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", Kill(3))
    resumed, again = run("broken")
    assert [text is None for text in said] == [True, False, True, True]
    assert again == said
    assert warning(resumed) == warning(whole) == said[1]
    assert {n: t.tolist() for n, t in resumed.memory.items()} == {n: t.tolist() for n, t in whole.memory.items()}
