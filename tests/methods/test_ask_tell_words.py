"""What a query-based search says before it begins and while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import oche
from oche.api.search import seen
from oche.api.terminal import Show
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.methods.evaluators import Evaluator, Scorer, TableScore, TrainingScore
from oche.methods.random_search import Uniform
from oche.methods.zero_cost import ZeroCost
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.callbacks import Callback
from oche.search.state import Problem
from oche.spaces import Space
from oche.spaces.toy import ToySpace
from oche.testing import noise_problem
from reference.small_bench import ToyTable
from reference.tiny import tiny_data

TABLE = TableScore(metric="digits/valid", given=ToyTable())


@dataclass(frozen=True)
class Own:
    """An evaluator of the user's own."""

    def ready(self, problem: Problem, watch: Sequence[Callback]) -> Scorer:
        return lambda genotype: 1.0


@pytest.mark.parametrize(
    ("evaluator", "said"),
    [
        (None, "9 queries, 3 epochs of a supernet, batch 4"),
        (TableScore("some"), "9 queries of the table some"),
        (TABLE, "9 queries of the table toys"),
        (TrainingScore(), "9 queries"),
        (ZeroCost(), "9 queries"),
        (Own(), "9 queries, 3 epochs, batch 4"),
    ],
)
def test_the_length_tells_of_epochs_only_where_something_may_be_trained_for_them(
    evaluator: Evaluator | None, said: str
) -> None:
    assert AskTell("mine", Uniform(), evaluator, queries=9).length(3, 4) == said


@pytest.mark.parametrize("given", [{"epochs": 3}, {"batch": 8}])
@pytest.mark.parametrize("evaluator", ["zero_cost", "training"])
def test_epochs_and_batch_are_refused_where_nothing_is_trained_by_them(
    given: dict[str, int], evaluator: str, tmp_path: Path
) -> None:
    asked = {"evaluator": evaluator, "method.queries": 9}
    with pytest.raises(UserError, match=rf"asks for 9 queries and trains nothing by --{next(iter(given))}"):
        oche.search("random_search", space="toy", data="digits", settings=asked, out=tmp_path / "r", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"settings": {"train.epochs": 3}}, "--set train.epochs"),
        ({"protocol": "quick", "compare_seeds": 2}, "--protocol and --compare-seeds"),
    ],
)
def test_what_would_change_trainings_after_the_search_is_refused_where_there_are_none(
    given: dict[str, object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {"space": "toy", "data": "digits", "budget": "smoke", "out": tmp_path / "r", **given}
    with pytest.raises(UserError, match=f"^{named} would change trainings after the search"):
        oche.search("darts", compare=0, **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "r").exists()
    for used in ({"compare": 1}, {"compare": 0, "rivals": "resnet8"}, {"compare": 0, "seeds": 2}):
        monkeypatch.setattr("oche.api.search.start", lambda *given: 1 / 0)  # what comes after the check
        with pytest.raises(ZeroDivisionError):
            oche.search("darts", **asked | used)  # type: ignore[arg-type]


def test_a_table_and_a_score_say_what_they_answer_by() -> None:
    said = AskTell("mine", Uniform(), TABLE).asks
    assert said == "digits/valid of the table toys, whose networks are not trained on this data"
    for score, given in (("naswot", "train images"), ("synflow", "an image of ones"), ("parameters", "no image")):
        said = AskTell("mine", Uniform(), ZeroCost(score)).asks
        assert said == f"{score}, a zero-cost score, of networks that are not trained, on {given}"


@pytest.mark.parametrize(
    ("evaluator", "said"),
    [
        (None, "crop of the image padded by 1, normalise"),
        (TABLE, "none, the table toys answers"),
        (ZeroCost(images=9), "9 train images, normalise"),
        (ZeroCost(images=99), "24 train images, normalise"),
        (ZeroCost("zen"), "none, zen takes noise"),
        (ZeroCost("multiply_adds"), "none, multiply_adds takes no image"),
        (
            TrainingScore("darts_cifar"),
            "crop of the image padded by 1, normalise, cutout 4; each training 600 epochs, batch 96 (darts_cifar)",
        ),
        (
            TrainingScore("smoke", 1),
            "crop of the image padded by 1, normalise; each training 1 epoch, batch 32 (smoke)",
        ),
        (Own(), "crop of the image padded by 1, normalise"),
    ],
)
def test_what_becomes_of_the_images_that_cells_are_scored_with(evaluator: Evaluator | None, said: str) -> None:
    assert AskTell("mine", Uniform(), evaluator, queries=9).images(tiny_data(24), "classify") == said


def test_the_table_before_a_search_names_no_images_where_none_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither where a table answers, whose networks the budget does not make smaller, nor where nothing is trained."""
    given = {"space": "nb201", "data": tiny_data(24), "budget": "quick", "compare": 0}
    for method, table, lines in (("random_search", "nb201", 1), ("random_sampling", None, 0)):
        plan = resolve(Request(method, table=table, **given))  # type: ignore[arg-type]
        Show(quiet=False).preflight(plan, None, "folder")
        said = " ".join(capsys.readouterr().out.split())
        assert said.count("search: ") == lines
        assert ("images search: none, the table nb201 answers" in said) == (lines == 1)
        assert ("5 -> 1 of networks trained here, not of the table's" in said) == (lines == 1)


def test_the_report_says_whose_score_it_is_and_shows_no_images_that_are_not_seen(tmp_path: Path) -> None:
    """A table's number for other data is no accuracy of this one's images, and nothing augments what no network is trained on."""
    asked = {"space": "toy", "data": tiny_data(24), "budget": "smoke", "compare": 0, "device": "cpu"}
    for evaluator, what, kept in (
        ("zero_cost", "best naswot of a query, whose network is not trained", False),
        ("training", "best validation score of a query", True),
    ):
        settings = {"evaluator": evaluator, "queries": 1}
        settings |= {"evaluator.protocol": "smoke"} if evaluator == "training" else {}
        found = oche.search("random_search", settings=settings, out=tmp_path / evaluator, **asked)  # type: ignore[arg-type]
        page = found.run.read("report.html").decode()
        assert f"<dt>{what}</dt>" in page
        assert ("right of it what augmentation made of it" in page) == kept
    assert seen(resolve(Request("random_search", table="nb201", space="nb201", data=tiny_data(24), compare=0))) is None
    assert seen(resolve(Request("random_sampling", space="toy", data=tiny_data(24), compare=0))) is None
    assert seen(resolve(Request("darts", space="toy", data=tiny_data(24), compare=0))) is not None


def test_a_cell_that_is_asked_for_again_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(quiet=False)
    record = {"query": 1, "score": 9.0, "best": 9.0, "queried": "a", "genotype": "a"}
    with show.training():
        for n, queried in enumerate("abac"):
            show.listen("query", {**record, "query": n + 1, "queried": queried, "genotype": "c" if n == 3 else "a"})
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if "query" in line] == ["1", "4"]


def test_what_a_strategy_learns_first_is_told_once() -> None:
    """Before the query, and again only where it is something else."""
    heard: list[str] = []

    @dataclass(frozen=True)
    class Learns:
        def learns(self, space: Space, told: Sequence[Told]) -> str:
            return ["", "more", "more", "other"][len(told)]

        def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
            return Uniform().ask(space, told, seed)

    def listen(event: str, record: Mapping[str, object]) -> None:
        heard.append(str(record["words"]) if event == "learning" else event)

    AskTell("mine", Learns(), TABLE, queries=4).run(replace(noise_problem(ToySpace()), listener=listen))
    assert heard == ["query", "more", "query", "query", "other", "query"]
