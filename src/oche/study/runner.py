"""run_study() runs a bench whose trials are measured further, and whose page begins with the study's tables and pictures.

A study's folder is a bench's, with study.toml beside run.toml. Killed, it runs only what is missing when started again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from oche import config
from oche.bench import run_bench
from oche.bench.matrix import Matrix, matrix_in
from oche.bench.page import write
from oche.bench.planned import trials
from oche.bench.render import Sheet
from oche.bench.result import BenchFolder, BenchResult, read
from oche.bench.trial import run_trial
from oche.errors import UserError
from oche.plan.resolve import resolve
from oche.run import Listener, Run, silent
from oche.run.bounded import read_bounded
from oche.search.searcher import as_searcher
from oche.spaces import SPACES
from oche.study.claims import Roles, judged
from oche.study.decode import decoding
from oche.study.measure import CONTINUOUS, DECODED, Measure, measured, unfit
from oche.study.pictures import figures
from oche.study.presets import preset
from oche.study.tables import sheets


@dataclass(frozen=True)
class Measured:
    """The content of study.toml."""

    name: str
    measure: Measure
    roles: Roles


@dataclass(frozen=True)
class Study:
    """A question, the searches that answer it, their measurements and their roles; `asked` are decodings that were asked for by name."""

    name: str
    matrix: Matrix
    measure: Measure
    roles: Roles = Roles()
    asked: tuple[str, ...] = ()


def study_from(name: str, path: Path | None = None, overrides: Mapping[str, object] | None = None) -> Study:
    """One of the studies by its name.

    A TOML file with the fields of a bench, and tables `measure` and `roles`, replaces what it says, and `overrides` (None: not given)
    replace that. Arms in the file are all there are. Raises UserError for a file that is not there, an unknown key, or a value that
    does not fit.
    """
    where, table = str(path or f"the study {name}"), dict[str, object]()
    if path is not None:
        if not path.is_file():
            raise UserError(f"There is no file {str(path)!r}; expected a TOML file that describes a study.")
        table = {"name": path.stem, **config.loads(read_bounded(path).decode(errors="replace"), str(path))}
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    own = {**_table(table.pop("measure", {}), where), **_table(given.pop("measure", {}), where)}
    parts = _table(table.pop("roles", {}), where)
    asked = {**table, **given}
    own_arms = "arms" in table
    epochs = None if own_arms else asked.get("epochs")
    usual = preset(name, _text(asked, "budgets", "quick"), epochs, masks=_masks(asked))
    if own_arms:
        own_measure = replace(usual.measure, retrained=(), inherited=(), closely=())
        usual = replace(usual, matrix={**usual.matrix, "probes": ()}, measure=own_measure, roles=Roles())
    measure = config.build(Measure, {**vars(usual.measure), **own}, f"{where}: measure")
    roles = config.build(Roles, {**vars(usual.roles), **parts}, f"{where}: roles")
    matrix = matrix_in({"name": name, **usual.matrix, **table}, where, given)
    return Study(name, matrix, measure, roles, measure.decodings if "decodings" in own else ())


def run_study(
    study: Study,
    out: str | Path,
    workers: int = 1,
    address: str | None = None,
    listener: Listener = silent,
    *,
    only: Sequence[str] = (),
) -> BenchResult:
    """Runs what is missing of a study in the folder `out`, and renders the result; see `bench.run_bench`. Raises UserError."""
    check(study)
    folder = BenchFolder(Path(out))
    kept = Measured(study.name, study.measure, study.roles)
    if folder.has(BenchFolder.STUDY) and study_of(folder).measure != study.measure:
        raise UserError(
            f"{str(folder.path)!r} holds a study that measures something else; choose another folder (`--out`), or change back."
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write(BenchFolder.STUDY, config.dumps(asdict(kept)).encode())
    work = partial(run_trial, after=partial(measured, measure=study.measure))
    return run_bench(study.matrix, out, workers, address, listener, only=only, work=work, render=render)


def show(path: str | Path) -> BenchResult:
    """Renders a study's tables, pictures and page anew, from its files alone. Raises UserError where there is no study."""
    result = read(Path(path))
    study_of(result.folder)
    render(result)
    return result


def summary(result: BenchResult) -> tuple[list[str], list[Sheet]]:
    """A study's part before the bench's own tables: notes, the bench's with them, and claims and tables."""
    return [*notes(result), *result.notes], [*judged(result, study_of(result.folder).roles), *sheets(result)]


def render(result: BenchResult) -> Path:
    """Writes all files of a study's result."""
    return write(result, list(notes(result)), summary(result)[1], figures(result), command="oche study")


def study_of(folder: Run) -> Measured:
    """Reads study.toml of a study's folder. Raises UserError where the folder is no study's."""
    if not folder.has(BenchFolder.STUDY):
        raise UserError(f"{str(folder.path)!r} is no study's folder: it holds no {BenchFolder.STUDY}.")
    where = str(folder.file(BenchFolder.STUDY))
    table = config.loads(folder.read(BenchFolder.STUDY).decode(), where)
    measure, roles = (_table(table.get(name), where) for name in ("measure", "roles"))
    return Measured(str(table.get("name")), config.build(Measure, measure, where), config.build(Roles, roles, where))


def check(study: Study) -> None:
    """Raises UserError for arms that do not exist, and for a decoding that makes sense in none of the arms."""
    matrix, measure, roles = study.matrix, study.measure, study.roles
    named = (*measure.retrained, *measure.inherited, *measure.closely, *sorted(roles.arms()))
    if foreign := [arm for arm in named if arm not in matrix.searched]:
        raise UserError(f"There is no arm {foreign[0]!r} to measure; the arms are {', '.join(matrix.searched)}.")
    if both := [arm for arm in measure.retrained if arm in measure.inherited]:
        raise UserError(
            f"The arm {both[0]!r} is to be retrained from scratch and from inherited weights; name it once."
        )
    plans = [resolve(t.request) for t in {t.method: t for t in trials(matrix)}.values()] if study.asked else []
    searched = [(plan.space, method) for plan in plans if (method := as_searcher(plan.searcher).method)]
    for name in study.asked:
        reasons = [unfit(decoding(name), space, method) for space, method in searched]
        if reasons and all(reasons):
            raise UserError(f"{name} cannot be measured: {reasons[0]}")


def budgets_said(measure: Measure) -> Iterator[str]:
    """Sentences about networks that train longer than those beside them."""
    if more := [name for name in measure.tuned if name != CONTINUOUS]:
        epochs = ", ".join(map(str, measure.tune_epochs))
        beside = (
            "as is the continuous network"
            if CONTINUOUS in measure.tuned
            else "and the continuous network beside them is not"
        )
        yield (
            f"Budgets: decoded networks ({', '.join(more)}) are tuned for {epochs} epochs after the search, {beside}."
        )
    if again := (*measure.retrained, *measure.inherited):
        yield (
            f"Budgets: the networks of {', '.join(again)} train by the bench's protocol after the search; those of the other arms are "
            "judged as the search leaves them, so their epochs in all are fewer."
        )


def notes(result: BenchResult) -> Iterator[str]:
    """Sentences that a reader of the tables needs: the kinds of statistics, and what was not measured and why."""
    measure = study_of(result.folder).measure
    yield (
        f"Raw: batch norm's statistics of the continuous network, from {measure.batches} batches of training images at most, kept while "
        "the coefficients change. Re-estimated: estimated anew on the same images after the change. Error: the continuous network's "
        "score, its statistics re-estimated, less the decoded one's. All are scores of validation images unless a column says test."
    )
    yield from budgets_said(measure)
    reasons: dict[str, tuple[list[str], list[str]]] = {}
    for trial in result.finished:
        kept = Run(result.folder.file(f"{result.folder.RUNS}/{trial.name}/{DECODED}"))
        for record in kept.records() if kept.has(Run.LOG) else ():
            if "why" in record:
                *named, why = str(record["why"]).split(
                    ": ", 1
                )  # the decoding's name, where the reason does not begin with it
                decodings, arms = reasons.setdefault(why, ([], []))
                decodings += named
                arms.append(trial.method)
    for why, (decodings, arms) in reasons.items():
        told = [f"{', '.join(dict.fromkeys(decodings))}: "] if decodings else []
        yield f"Not measured in some seeds of {', '.join(dict.fromkeys(arms))}: {''.join(told)}{why}"


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must hold tables of settings, not {value!r}.")
    return value


def _text(asked: Mapping[str, object], key: str, default: str) -> str:
    """The first of a list's texts."""
    values = asked.get(key)
    return str(values[0]) if isinstance(values, list | tuple) and values else default


def _masks(asked: Mapping[str, object]) -> bool:
    """True if the first space is one for masks."""
    space = _text(asked, "spaces", "grid")
    return space in SPACES and SPACES[space].task == "segment"
