"""`oche.train(...)`: a genotype's network from scratch, or with the weights of a run's network, and its score on the test images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load as safetensors_load

from oche import config, own
from oche.api import batch
from oche.api.expected import Clock
from oche.api.folders import RUNS, begun, fitted, genotype_of, path_of
from oche.api.kept import Kept
from oche.api.limits import alone, cpu_threads, gradients, out_of_memory, together
from oche.api.pinned import compared, pin
from oche.api.telling import asked, telling
from oche.api.terminal import Show
from oche.data import Data, for_training, none
from oche.data.reading.readers import Source
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan.machine import threads_for
from oche.plan.parts import source_of
from oche.plan.request import AUTO, TrainRequest, part_of, requested, verb
from oche.plan.training import earlier_epochs, limits_in, resolve_training, searched_size, training_table
from oche.plan.within import Parts, epochs_within
from oche.report import attempt, render
from oche.report.claims import in_words
from oche.run import Listener, Run, silent
from oche.spaces import SPACES
from oche.spaces import named as spaces
from oche.spaces.rivals import RIVALS, Rival
from oche.tasks import Task
from oche.training.evaluate import Score, evaluate, records_of
from oche.training.export import CARD, WEIGHTS, available_formats, export_network, load_network, save_network
from oche.training.memory import refuse_if_too_large
from oche.training.pace import pace
from oche.training.samples import keep_augmented, keep_mistakes
from oche.training.train import BEST, LAST, START, Training, retrain
from oche.training.train import begin as begin_training

ENDING = 2.0
"""Seconds for writing the network and the report on a quiet machine, about."""


@dataclass(frozen=True, repr=False)
class Trained(Kept):
    """What `train` returns: the run's folder and the test score of the weights that its protocol keeps."""

    test: Score

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {in_words(name, value)}" for name, value in self.test.metrics.items())
        return f"Trained({metrics} on test images, in {self.run.path})"

    def rows(self) -> list[dict[str, object]]:
        """One flat row per epoch, for `pandas.DataFrame(trained.rows())`."""
        return [record for record in self.run.records() if record.get("kind") == "train_epoch"]


@verb(TrainRequest)
def train(request: TrainRequest) -> Trained:
    """Trains a genotype's network on the train images, from scratch, and scores it on the test images. Raises UserError.

    With `inherit` it begins with the weights of the network in the run's folder instead (training on). With `more` a finished training
    goes on for so many epochs, in a folder of its own: by its settings where none are given here, with its schedule anew from a tenth of
    its rate (`settings={"train.lr.start": ...}` sets it), momentum from 0, images in the order that would have followed.
    """
    clock = Clock.of(request.time)
    with gradients():  # what is read here is trained on
        plan = plan_training(request).measured().in_time(clock)
    run = plan.start(request.out)
    if not request.progress:
        return finish_training(plan.training, run, plan.request, request.listener)
    show = Show(quiet=False)
    show.training_plan(plan.training, run)
    with show.training(plan.training.protocol.epochs):
        return finish_training(plan.training, run, plan.request, show.beside(request.listener))


@dataclass(frozen=True)
class TrainPlan:
    """A request to train, resolved, before its folder exists; `start_with` is the file of the weights to begin with, if any."""

    request: TrainRequest
    training: Training
    name: str
    start_with: bytes | None = None
    files: own.Files = field(default_factory=dict)

    def measured(self) -> TrainPlan:
        """The plan with the batch that is quickest where `auto` was asked for; its request has the number. Raises UserError."""
        if self.request.batch != AUTO:
            return self
        size = batch.for_training(self.training, self.request.threads)
        training = replace(self.training, protocol=replace(self.training.protocol, batch=size))
        return replace(self, training=training, request=replace(self.request, batch=size))

    def in_time(self, clock: Clock | None) -> TrainPlan:
        """The plan with the epochs that fill the clock's time best. Raises UserError where it is too short, or the epochs are given."""
        if clock is None:
            return self
        given = self.request.epochs is not None or "train.epochs" in self.request.settings
        if given or self.request.more is not None:
            raise UserError("--time has no epochs left to choose: leave it out, or the number of epochs.")
        with gradients(), cpu_threads(self.request.threads):
            found = pace(self.training)
        parts = Parts(training=found.epoch, rest=found.once + clock.loaded(ENDING) + clock.seconds - clock.left)
        epochs = epochs_within(clock.seconds, parts, (0, self.training.protocol.epochs))[1]
        epochs = self.training.fabric.broadcast(epochs)
        return replace(self, training=replace(self.training, protocol=replace(self.training.protocol, epochs=epochs)))

    def start(self, out: str | Path | None = None) -> Run:
        """Makes the run's folder and writes run.toml. Raises UserError where the training would not fit into memory."""
        training = self.training
        fitting(training, self.request.threads)
        table = training_table(self.request, training)
        run = begun(training.fabric, Path(out) if out else RUNS / self.name, table, self.files)
        if training.fabric.is_global_zero:
            pin(run, training.data)
            augment = for_training(training.data, training.protocol.cutout, training.protocol.policy)
            keep_augmented(run, training.data, augment, training.seed)
            run.write(Run.GENOTYPE, training.genotype.to_json().encode())
            if self.start_with is not None:
                run.write(START, self.start_with)
        return run


def plan_training(request: TrainRequest) -> TrainPlan:
    """Resolves what `train` was asked for; from a search's folder, its data, task and size are taken over. Raises UserError."""
    with own.noted() as files:
        plan = _planned(request)
    return replace(plan, files=files)


def _copies(run: Run | None) -> AbstractContextManager[None]:
    """Meanwhile a search's own files are its copies of them."""
    return own.copies_of(run.path, requested(run)[1]) if run else nullcontext()


def _rival(name: str) -> Rival | None:
    """The rival of that name, None for anything that is not nearly one. Raises UserError for a name that is."""
    near = difflib.get_close_matches(name, RIVALS, n=1, cutoff=0.8)
    if near and name != near[0]:
        raise UserError(f"There is no rival {name!r}; did you mean {near[0]!r}? `oche list rivals` has them all.")
    return RIVALS.get(name)


def _planned(request: TrainRequest) -> TrainPlan:
    if not request.genotype:
        raise UserError(
            "A training needs a genotype: a search's folder, a genotype file or string, a published cell's name, or a rival's."
        )
    if own.is_foreign(request.space) and request.space is not None:
        request = replace(request, space=str(spaces.space(request.space)().name))
    named_space = request.space if isinstance(request.space, str) else None
    rival = None if path_of(request.genotype) else _rival(str(request.genotype))
    if rival and named_space in SPACES:
        rival = rival.form(SPACES[named_space].flat)
    genotype, source = genotype_of(rival.genotype.to_json() if rival else request.genotype, named_space)
    if request.more is not None:
        return _longer(request, source)
    if request.inherit and source is None:
        raise UserError("Only a run's folder has weights to begin with: name one, or leave `--inherit` out.")
    size = rival.fields if rival else None
    settings, asked, taken_over = dict(request.settings), request.settings, request.data is None
    limits: Mapping[str, object] = {}
    earlier: Source = "digits"
    if source:
        spaces.register_kept(source)
        searched, table = requested(source)
        settings = {k: v for k, v in searched.settings.items() if k.startswith("task.")} | settings
        size, earlier = searched_size(table), searched.data or earlier
        size |= {name: value for name, value in fitted(source).items() if name == "channels"}
        limits = limits_in(table)
        if request.task is None:
            request = replace(request, task=searched.task)
        with own.copies_of(source.path, table):
            split = not isinstance(source_of(earlier), Data)
        if request.data is None and split:  # the search's split too: its images must not be tested on
            own_ = {k: v for k, v in searched.settings.items() if k.startswith("data.")}
            settings = {"data.seed": searched.seed, **own_, **settings}
    data = earlier if request.data is None else request.data
    asked_for = str(request.genotype)
    request = replace(request, genotype=str(genotype), space=genotype.space, data=data, settings=settings)
    with _copies(source):
        training = resolve_training(request, size, limits=limits, rival=rival)
    if rival:
        request = replace(request, genotype=str(training.genotype), space=training.genotype.space)
    if source and taken_over:
        notes = compared(source, training.data, split=not any(path.startswith("data.") for path in asked))
        training = replace(training, data=replace(training.data, notes=(*training.data.notes, *notes)))
    request = replace(request, threads=threads_for(request.threads, training.data))
    start_with = None
    if request.inherit and source:
        training = replace(training, start=load_network(source).network.state_dict())
        begin_training(training)  # refuses weights that do not fit before there is a folder
        start_with = source.read(WEIGHTS)
    name = f"{source.path.name if source else asked_for if rival else genotype.space}-train"
    return TrainPlan(request, training, name, start_with)


def _longer(request: TrainRequest, source: Run | None) -> TrainPlan:
    """The training that goes on from a finished one: by its settings where the request has none, from a tenth of its rate.

    One that goes on from such a training begins at the same rate as that.

    Raises:
        UserError: there is no such training, or what is asked for contradicts it.
    """
    if source is None:
        raise UserError("--more goes on with a training: name its folder, `oche train RUN --more 10`.")
    spaces.register_kept(source)
    earlier, table = requested(source)
    if not isinstance(earlier, TrainRequest):
        raise UserError(
            f"{source.path} is a search, and --more goes on with a training; where a search has a network, "
            f"`oche train {source.path} --inherit --epochs N` trains it on."
        )
    if request.more is None or request.more < 1 or request.epochs is not None or request.inherit:
        raise UserError("--more takes a number of epochs, at least 1, in the place of --epochs and --inherit.")
    if not source.has(CARD):
        raise UserError(f"{source.path} has not ended: `oche train --resume {source.path}` carries on with it.")
    given = any(path.startswith("train.lr") for path in request.settings)
    names, usual = (
        ("data", "task", "protocol", "batch", "seed", "precision", "threads", "sync_batch_norm"),
        TrainRequest(),
    )
    taken: dict[str, Any] = {n: getattr(earlier, n) for n in names if getattr(request, n) == getattr(usual, n)}
    settings = {path: value for path, value in earlier.settings.items() if not path.startswith("data.")}
    with own.copies_of(source.path, table):
        if "data" in taken and not isinstance(source_of(earlier.data), Data):
            settings = {"data.seed": earlier.seed, **earlier.settings}
        cell, asked = str(Genotype.from_json(source.read(Run.GENOTYPE).decode())), {**settings, **request.settings}
        request = replace(request, **taken, genotype=cell, space=earlier.space, epochs=request.more, settings=asked)
        training = resolve_training(request, searched_size(table), limits=limits_in(table))
    start, protocol = getattr(training.protocol.lr, "start", None), training.protocol
    if start is not None and not given and earlier.more is None:
        asked["train.lr.start"] = round(start / 10, 10)
        protocol = config.override(protocol, "lr.start", asked["train.lr.start"], "train")
    notes = compared(source, training.data, split="data" in taken)
    before = part_of(table, "train")
    weights = source.read(BEST if before["keep"] == "best" else LAST)
    training = replace(
        training,
        protocol=protocol,
        data=replace(training.data, notes=(*training.data.notes, *notes)),
        start=safetensors_load(weights),
        earlier=(*earlier_epochs(table), int(str(before["epochs"]))),
    )
    begin_training(training)  # refuses weights that do not fit before there is a folder
    request = replace(request, settings=asked, threads=threads_for(request.threads, training.data))
    return TrainPlan(request, training, f"{source.path.name}-more", weights)


def fitting(training: Training, threads: int | None) -> None:
    """Raises UserError where the training would not fit into memory."""
    with gradients(), cpu_threads(threads):
        refuse_if_too_large(training)


def finish_training(training: Training, run: Run, request: TrainRequest, listener: Listener = silent) -> Trained:
    """Trains from wherever the run stands, scores the result on the test images, exports it, writes the report.

    Of `request` the threads and trackers count.
    """
    names = request.track if training.fabric.is_global_zero else ()
    with telling(run, names, listener, asked(request)) as told:
        return _finished(replace(training, run=run, listener=told), run, request.threads)


def _finished(training: Training, run: Run, threads: int | None) -> Trained:
    start = safetensors_load(run.read(START)) if run.has(START) else None
    training = replace(training, start=start)
    with (
        gradients(),
        alone(run, training.fabric),
        together(run, training.fabric, "train"),
        out_of_memory(training.protocol.batch),
        cpu_threads(threads),
    ):
        network = retrain(training)
        test = evaluate(network, training.data.test, none(training.data), training.fabric, training.task)
        if training.fabric.is_global_zero:
            metrics = test.card(training.task)
            epochs = (*training.earlier, training.protocol.epochs)
            save_network(
                run,
                network,
                training.space,
                training.genotype,
                training.data,
                metrics,
                training.task,
                epochs,
                training.limits,
            )
            if training.earlier:
                run.log({"kind": "more", "earlier": list(training.earlier), "epochs": training.protocol.epochs})
            log_test(run, training.data, test, training.task)
            keep_mistakes(run, network, training.data, training.fabric, training.task)
            if training.limits.latency is not None and "onnx" in available_formats():
                export_network(run, ["onnx"])  # which measures its latency
            run.seal()
    if training.fabric.is_global_zero:
        attempt(lambda: render(run), run.path, "oche report")
    return Trained(run, test)


def log_test(run: Run, data: Data, test: Score, task: Task) -> None:
    """A trained network's test score: its metrics, of masks and labels each class's, and of classes the confusion matrix.

    What a run that was killed in between has logged already is not logged again.
    """
    there = {(record.get("kind"), record.get("class")) for record in run.records()}
    for record in records_of(test, task, data.classes, data.task):
        if (record["kind"], record.get("class")) not in there:
            run.log(record)
