"""The comparison with random cells: intervals, the relative improvement, paired seeds, and nothing trained twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from oche.base import counted
from oche.cli.show import _comparison
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.plan.machine import fabric_for
from oche.run import Run
from oche.spaces import ChainSpace, Network
from oche.spaces.cost import cost, prices_of
from oche.spaces.limits import Limits
from oche.spaces.rivals import FAMILY, RIVALS, contenders, names, scale
from oche.spaces.sampling import sample
from oche.training import compare as module
from oche.training.compare import FOUND, Comparison, by_image, compare, interval, lead_over_images, rivals_of
from oche.training.evaluate import evaluate
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.tiny import tiny_data, tiny_space

CELL = Genotype("toy", {"cell": (Choice(0, 1, "nor_conv_3x3"), Choice(0, 2, "skip_connect"), Choice(1, 2, "none"))})


@pytest.fixture
def training(tmp_path: Path) -> Training:
    data = tiny_data(12)
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    protocol = replace(PROTOCOLS["smoke"], epochs=1, batch=6)
    return Training(tiny_space("toy", data), CELL, data, protocol, 5, fabric_for("cpu"), run)


def nothing(network: Network, accuracy: float) -> None:
    pass


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("values", [(0.9, 0.8), (0.91, 0.93, 0.95), tuple(np.random.default_rng(0).random(20))])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_intervals_are_students(values: tuple[float, ...], level: float) -> None:
    wanted = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert interval(values, level) == pytest.approx(wanted)
    by_bootstrap_of_the_formula = (
        np.std(values, ddof=1) / np.sqrt(len(values)) * stats.t.ppf((1 + level) / 2, len(values) - 1)
    )
    assert interval(values, level)[1] - np.mean(values) == pytest.approx(by_bootstrap_of_the_formula)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = [low <= 0.5 <= high for low, high in (interval(list(rng.normal(0.5, 0.1, 3))) for _ in range(1000))]
    assert abs(np.mean(inside) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 1000)


@pytest.mark.parametrize("values", [(0.7,), (0.7, 0.7, 0.7)])
def test_an_interval_of_one_value_is_that_value(values: tuple[float, ...]) -> None:
    assert interval(values) == pytest.approx([0.7, 0.7])


def test_the_relative_improvement_is_paired_by_seed() -> None:
    """RI = 100 (found - random) / random, the random cells averaged within each seed."""
    c = Comparison({FOUND: (0.9, 0.6), "random 1": (0.5, 0.4), "random 2": (0.7, 0.8)})
    assert c.random == pytest.approx((0.6, 0.6))
    assert c.improvements == pytest.approx((50.0, 0.0))
    record = c.record()
    assert record["kind"] == "comparison"
    assert record["found_mean"] == pytest.approx(0.75)
    assert record["random_mean"] == pytest.approx(0.6)
    assert record["relative_improvement"] == pytest.approx(25.0)
    assert record["relative_improvement_interval"] == pytest.approx(interval((50.0, 0.0)))
    assert record["found_interval"] == pytest.approx(interval((0.9, 0.6)))


# ---------------------------------------------------------------------- cells and seeds


def test_every_cell_is_trained_on_the_same_seeds(training: Training) -> None:
    told: list[Mapping[str, object]] = []
    result = compare(
        replace(training, listener=lambda event, record: told.append(record)), cells=2, seeds=2, keep=nothing
    )
    assert [(r["cell"], r["seed"]) for r in told] == [(c, s) for s in (5, 6) for c in (FOUND, "random 1", "random 2")]
    assert set(result.accuracies) == {FOUND, "random 1", "random 2"}
    assert all(len(values) == 2 for values in result.accuracies.values())
    assert told[0]["genotype"] == str(CELL)
    assert training.run
    assert training.run.records() == [dict(record) for record in told]


def test_the_numbers_are_those_of_training_it_alone(training: Training) -> None:
    kept: list[tuple[Network, float]] = []
    result = compare(training, cells=1, seeds=2, keep=lambda network, test: kept.append((network, test.value)))
    from oche.data import none

    for seed, accuracy in zip((5, 6), result.found, strict=True):
        network = retrain(replace(training, seed=seed, run=None))
        assert evaluate(network, training.data.test, none(training.data), training.fabric).accuracy == accuracy
    assert len(kept) == 1, "only the first network of the found cell is kept"
    assert kept[0][1] == result.found[0]


def test_random_cells_are_connected_and_depend_on_the_seed() -> None:
    """Cells of `none` that no signal passes are drawn again; the rest stay as likely as any other."""
    data = tiny_data(12)
    space = tiny_space("toy", data)

    def drawn_with(seed: int) -> dict[str, Genotype]:
        training = Training(space, CELL, data, PROTOCOLS["smoke"], seed, fabric_for("cpu"))
        return {name: cell for name, cell, _ in module._cells(training, 3)}

    drawn = [drawn_with(seed) for seed in range(60)]
    assert all(genotype.connected for cells in drawn for genotype in cells.values())
    assert any(not sample(space, counted(seed, "compare", 1)).connected for seed in range(60)), (
        "the rule never had to act"
    )
    assert drawn_with(0) == drawn[0]
    assert len({str(cells["random 1"]) for cells in drawn}) > 5


# ---------------------------------------------------------------------- carrying on


def test_what_is_in_the_log_is_not_trained_again(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(training, cells=1, seeds=2, keep=nothing)
    assert training.run
    lines = training.run.records()
    trained: list[tuple[str, int]] = []

    def counting(t: Training) -> Network:
        trained.append((str(t.genotype), t.seed))
        return retrain(t)

    monkeypatch.setattr(module, "retrain", counting)
    assert compare(training, cells=1, seeds=2, keep=nothing) == whole
    assert not trained
    for kept in (3, 1):
        training.run.rewind(kept)
        del trained[:]
        assert compare(training, cells=1, seeds=2, keep=nothing) == whole
        assert trained == [(str(r["genotype"]), r["seed"]) for r in lines[kept:]]
        assert training.run.records() == lines
    del trained[:]
    more = compare(training, cells=2, seeds=2, keep=nothing)
    assert len(trained) == 2
    assert {name: more.accuracies[name] for name in whole.accuracies} == whole.accuracies


def test_without_a_run_nothing_is_written(training: Training, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = compare(replace(training, run=None), cells=1, seeds=1, keep=nothing)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(result.found) == 1


# ---------------------------------------------------------------------- rivals


def told(result: Comparison) -> tuple[str, dict[str, int]]:
    """The one rival's name, with its costs and channels."""
    (name,) = result.rivals
    return name, {key: value for key, value in result.rivals[name].items() if key != "title" and isinstance(value, int)}


def test_a_rival_costs_no_more_and_is_trained_on_the_same_seeds(training: Training) -> None:
    """It is as wide as the found network's parameters and multiply-adds allow: with one channel more it would exceed one of them."""
    result = compare(training, cells=1, seeds=2, keep=nothing, rivals=("auto",))
    own = cost(training.space, CELL)
    name, rival = told(result)
    assert name in FAMILY["classify"]
    assert result.costs == own.table()
    assert rival["parameters"] <= own.parameters
    assert rival["multiply_adds"] <= own.multiply_adds
    wider = cost(*RIVALS[name].network(training.space, rival["channels"] + 1))
    assert wider.parameters > own.parameters or wider.multiply_adds > own.multiply_adds
    assert training.run
    assert [(r["cell"], r["seed"]) for r in training.run.records()][2::3] == [(name, 5), (name, 6)]
    from oche.data import none

    space, genotype = RIVALS[name].network(training.space, rival["channels"])
    network = retrain(replace(training, space=space, genotype=genotype, seed=6, run=None))
    alone = evaluate(network, training.data.test, none(training.data), training.fabric).accuracy
    assert result.accuracies[name][1] == alone


def test_under_limits_a_rival_uses_them_whatever_the_found_network_costs(training: Training) -> None:
    """By counting at every width: the greatest that keeps both limits, although the found cell's own width is fixed."""
    limits = Limits(parameters=9000, memory=6000, fixed=True)
    rivals = rivals_of(replace(training, limits=limits), ("resnet8",))
    keeping = [c for c in range(4, 100) if limits.kept(prices_of(*RIVALS["resnet8"].network(training.space, c)))]
    assert rivals.networks["resnet8"][0] == RIVALS["resnet8"].network(training.space, max(keeping))[0]
    assert keeping == list(range(4, max(keeping) + 1))


@pytest.mark.parametrize(("times", "name"), [(1, "resnet8"), (3.45, "resnet20"), (0.05, "resnet8"), (30, "resnet20")])
def test_the_rival_that_fits_best_is_the_one_whose_published_width_is_changed_least(times: float, name: str) -> None:
    """MLPerf Tiny's ResNet-8 has 78,186 weights that learn with 10 classes, ResNet-20 3.45 times as many."""
    like = ChainSpace()
    (fitting,) = contenders(("auto",), like, Limits(parameters=int(78_186 * times))).networks.items()
    assert fitting[0] == name
    if times == 1:
        assert scale(name, fitting[1][0]) == 1


def test_the_lead_of_a_kept_network_is_over_test_images(training: Training) -> None:
    """Of classes it is the mean of what each image adds, right answers minus the other's: drawn anew one by one, with the same counts."""
    from oche.data import none

    one, two = (retrain(replace(training, seed=seed, run=None)) for seed in (1, 2))
    tables = [by_image(training, network) for network in (one, two)]
    for network, table in zip((one, two), tables, strict=True):
        score = evaluate(network, training.data.test, none(training.data), training.fabric)
        assert table.sum(0).tolist() == [list(row) for row in score.confusion]
    leads = np.array([t.diagonal(dim1=1, dim2=2).sum(1).numpy() for t in tables])
    each, count = leads[0] - leads[1], len(training.data.test)
    rng = np.random.default_rng(counted(5, "images drawn anew").initial_seed())
    means = []
    for _ in range(module.RESAMPLED):
        times = rng.multinomial(count, [1 / count] * count)
        means.append(np.repeat(each, times).mean())
    assert lead_over_images(training, one, two) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert lead_over_images(training, one, one) == (0, 0)


def test_a_kept_network_is_not_trained_again(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    own, trained = retrain(replace(training, run=None)), list[str]()

    def noted(once: Training) -> Network:
        trained.append(once.space.name)
        return retrain(once)

    monkeypatch.setattr(module, "retrain", noted)
    limited = replace(training, limits=Limits(parameters=9000))
    told = compare(limited, cells=0, seeds=1, keep=nothing, rivals=("resnet8",), kept=own)
    assert trained == ["chain"]
    record = told.record()
    assert record["over"] == "images"
    (rival,) = record["rivals"].values()  # type: ignore[attr-defined]
    low, high = rival["difference_interval"]
    assert low <= told.found[0] - told.accuracies["resnet8"][0] <= high
    assert (low, high) == told.leads["resnet8"]
    again = compare(limited, cells=0, seeds=1, keep=nothing, rivals=("resnet8",), kept=own)
    assert again == told
    assert trained == ["chain"]


def test_scores_of_one_network_each_have_no_column_of_seeds() -> None:
    of = {"metric": "miou", "rivals": {"unet": {"title": "U-Net"}}}
    scores: dict[str, tuple[float, ...]] = {FOUND: (0.5,), "unet": (0.6,)}
    once = Comparison(scores, leads={"unet": (-0.2, 0.0)}, **of)  # type: ignore[arg-type]
    for comparison, columns, title in ((once, 2, "one network each"), (replace(once, leads={}), 4, "mean over seeds")):
        table = _comparison(SimpleNamespace(comparison=comparison))  # type: ignore[arg-type]
        assert len(table.columns) == columns
        assert title in str(table.title)
        assert [*table.columns[1].cells][:2] == ["50.00%", "60.00%"]


def test_a_rivals_lead_is_paired_and_no_random_cell() -> None:
    c = Comparison(
        {FOUND: (0.9, 0.6), "random 1": (0.5, 0.4), "resnet8": (0.8, 0.7)}, rivals={"resnet8": {"title": "ResNet-8"}}
    )
    assert c.random == (0.5, 0.4)
    assert c.differences("resnet8") == pytest.approx((0.1, -0.1))
    rivals = c.record()["rivals"]
    assert isinstance(rivals, dict)
    assert rivals["resnet8"]["title"] == "ResNet-8"
    assert rivals["resnet8"]["mean"] == pytest.approx(0.75)
    assert rivals["resnet8"]["difference"] == pytest.approx(0.0)
    assert rivals["resnet8"]["difference_interval"] == pytest.approx(interval((0.1, -0.1)))


def test_without_random_cells_the_rivals_stand_alone() -> None:
    c = Comparison({FOUND: (0.9, 0.6), "ds_cnn": (0.8, 0.7)}, rivals={"ds_cnn": {}})
    assert c.random == c.improvements == ()
    assert "random_mean" not in c.record()


def test_a_rival_that_cannot_be_so_small_is_left_out_with_its_reason(training: Training) -> None:
    found = contenders(("mobilenetv2", "ds_cnn"), training.space, Limits(500))
    assert list(found.networks) == ["ds_cnn"]
    (why,) = found.left_out
    assert why.startswith("MobileNetV2 is left out: at its narrowest it has ")
    assert "of 500 parameters" in why
    none_fits = contenders(("auto",), training.space, Limits(10))
    assert none_fits.networks == {}
    assert len(none_fits.left_out) == len(FAMILY["classify"])


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_has_a_narrowest_form(name: str) -> None:
    """ShuffleNetV2 splits its channels in halves, of which none may be empty."""
    assert cost(*RIVALS[name].network(ChainSpace(size=(8, 8)), 4)).parameters > 0


@pytest.mark.parametrize("asked", ["resnet9", "none,resnet8", "", "auto,resnet8"])
def test_unknown_rivals_are_refused(asked: str) -> None:
    with pytest.raises(UserError, match="rival"):
        names(asked)


def test_a_comparison_killed_while_rivals_train_goes_on_there(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(training, cells=1, seeds=2, keep=nothing, rivals=("ds_cnn",))
    assert training.run
    lines = training.run.records()
    training.run.rewind(5)  # found and random twice, the rival once
    trained: list[int] = []
    monkeypatch.setattr(module, "retrain", lambda t: [trained.append(t.seed), retrain(t)][1])
    assert compare(training, cells=1, seeds=2, keep=nothing, rivals=("ds_cnn",)) == whole
    assert trained == [6]
    assert training.run.records() == lines
