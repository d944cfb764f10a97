"""Measures a finished search: the network that the supernet is, what decoding makes of it, and how the search went.

Every network here is that of a genotype, continuous or decoded, with the supernet's weights: a node that nothing reaches is left out, where
a supernet with closed gates would still hand on its constants. Its batch norms keep running statistics, and
there are two kinds of them:

- raw: those of the continuous network, estimated on training images, and kept while the coefficients change;
- re-estimated: estimated anew on the same images, after the change.

A supernet in the search has none: it normalises each batch by itself, which re-estimates without being asked, on the very images that
are judged. That score is the bench's `supernet/val`; no network in use can do that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.api.problems import problem_of
from oche.base import Group
from oche.bench.planned import Trial
from oche.bench.trial import Judged, scores_of, trained_network
from oche.data import none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.optim import SGD
from oche.plan.resolve import Plan
from oche.run import Run
from oche.schedule import Constant
from oche.search.inherit import inherited
from oche.search.method import Method
from oche.search.relaxations import gated, openings
from oche.search.searcher import as_searcher
from oche.search.selection import kept
from oche.search.state import SearchState
from oche.spaces import Network, Space
from oche.spaces.edges import WeightedSum
from oche.study.decode import Decoding, decoding
from oche.study.degeneration import cells_of, series_of, usual_parameters
from oche.training.evaluate import evaluate
from oche.training.protocols import Protocol
from oche.training.train import Training, retrain

RAW, ANEW, CONTINUOUS = "raw", "re-estimated", "continuous"
USUAL = "usual parameters"
"""The name of the median number of weights of random genotypes among a trial's values."""
DECODED = "decoded"
"""The folder, in that of a search, with the log of what its decoded networks score."""


@dataclass(frozen=True)
class Measure:
    """The measurements that are made of each arm's searches.

    - `decodings` (`study.decode`), each with raw and with re-estimated statistics, from `batches` batches of training images at most.
    - In the arms `closely`, all where it is empty, also those of the `sweep`, and the decodings in `tuned` after fine-tuning for each of
      `tune_epochs` epochs at the learning rate `tune_lr` (our choice).
    - `retrained` and `inherited` name the arms that go on in two stages: their decoded network is trained from scratch, or from the
      supernet's weights, under the bench's protocol. Of the others the network that the search leaves is judged.
    - `degeneration` adds the numbers of `study.degeneration` after each epoch.
    """

    decodings: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()
    tune_epochs: tuple[int, ...] = (1, 5, 10)
    tune_lr: float = 0.005
    closely: tuple[str, ...] = ()
    batches: int = 200
    retrained: tuple[str, ...] = ()
    inherited: tuple[str, ...] = ()
    degeneration: bool = True

    def __post_init__(self) -> None:
        known = (CONTINUOUS, *self.decodings, *self.sweep)
        for name in known:
            decoding(name)
        if missing := [name for name in self.tuned if name not in known]:
            raise UserError(f"tuned names {missing[0]!r}, which is not among the decodings: {', '.join(known)}.")
        if self.batches < 1 or min(self.tune_epochs, default=1) < 1:
            raise UserError("Statistics need at least one batch, and fine-tuning at least one epoch.")

    def of(self, arm: str) -> Measure:
        """The measurements of one arm: with everything in `decodings`, the continuous network first."""
        near = not self.closely or arm in self.closely
        names = (*self.decodings, *(self.sweep if near else ()))
        whole = tuple(dict.fromkeys([CONTINUOUS, *names])) if names else ()
        return replace(self, decodings=whole, sweep=(), tuned=self.tuned if near else ())


@dataclass(frozen=True)
class Searched:
    """A finished search: the method, the state it ended in; the networks that can be made of it, with statistics from `batches` batches."""

    method: Method
    state: SearchState
    batches: int

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[Group, Tensor]]:
        """Each group with its op weights (E, O) as an evaluation has them, on the CPU."""
        state = self.state
        for group in state.space.groups:
            yield group, state.relaxation(state.alpha, group, state.draw("eval")).cpu()

    def genotype(self, how: Decoding) -> Genotype:
        """The genotype that the decoding makes of the search."""
        return kept(self.state.space, ((group, how(w, group)) for group, w in self.weights()))

    def network(self, genotype: Genotype) -> Network:
        """The genotype's network with the supernet's weights and re-estimated statistics. Raises UserError where there is none."""
        return inherited(self.state, genotype, self.batches)

    @torch.no_grad()
    def raw(self, genotype: Genotype, whole: Network) -> Network:
        """The genotype's network with weights and statistics of the continuous one."""
        network, known = inherited(self.state, genotype, 0), whole.state_dict()
        for name, t in network.state_dict().items():
            if not name.endswith(".coefficients"):
                t.copy_(known[name])
        return network

    def score(self, network: Network) -> float:
        """The network's score on validation images, in percent."""
        p = self.state.problem
        return 100 * evaluate(network, p.data.val, none(p.data), p.fabric, p.task).value

    def tuned(self, genotype: Genotype, measure: Measure) -> dict[str, float]:
        """Validation scores after fine-tuning, by epochs: all training images, a constant learning rate."""
        p, found = self.state.problem, dict[str, float]()

        def listen(event: str, record: Mapping[str, object]) -> None:
            epoch, value = record["epoch"], record[f"val_{p.task.metric}"]
            assert isinstance(epoch, int)
            assert isinstance(value, float)
            if epoch + 1 in measure.tune_epochs:
                found[f"tuned {epoch + 1}"] = 100 * value

        protocol = Protocol(max(measure.tune_epochs), p.batch, Constant(measure.tune_lr), SGD(), auxiliary=0.0)
        start = self.network(genotype).state_dict()
        retrain(Training(p.space, genotype, p.data, protocol, p.seed, p.fabric, None, listen, p.task, start))
        return found


def measured(trial: Trial, plan: Plan, run: Run, genotype: Genotype, measure: Measure) -> Judged:
    """Measures a study's search, after it has ended (`bench.trial.After`)."""
    searcher = as_searcher(plan.searcher)
    method, (_, state) = (
        searcher.method,
        searcher.run(replace(problem_of(plan, run), literal=True), plan.callbacks),
    )
    if method is None or state is None:  # a cell drawn at random: there is nothing to decode
        scores, training, seconds = trained_network(plan, run, genotype)
        return Judged(scores, genotype, training.space, seconds)
    if not isinstance(method.edge, WeightedSum):
        raise UserError(
            f"{method.name} does not mix its candidates by a weighted sum of all channels, so its supernet is no network to be decoded."
        )
    searched = Searched(method, state, measure.batches)
    problem = searched.state.problem
    values = distribution(searched)
    for name, score in decoded(searched, run, measure.of(trial.method)):
        values |= {f"{name}/{statistics}": value for statistics, value in score.items()}
    cells, series = cells_of(searched.state), dict[str, tuple[tuple[int, float], ...]]()
    if measure.degeneration:
        series = series_of(searched.state, cells, run)
        values[USUAL] = usual_parameters(problem.space)
    if trial.method in (*measure.retrained, *measure.inherited):
        chosen = cells[-1]
        start = searched.network(chosen).state_dict() if trial.method in measure.inherited else None
        scores, training, seconds = trained_network(plan, run, chosen, start)
        return Judged({**scores, **values}, chosen, training.space, seconds, series, cells[1:])
    whole = searched.genotype(decoding(CONTINUOUS))
    scores = scores_of(searched.network(whole), problem.data, problem.fabric, problem.task)
    return Judged({**scores, **values}, whole, problem.space, 0.0, series, cells[1:])


def decoded(searched: Searched, run: Run, measure: Measure) -> Iterator[tuple[str, dict[str, float]]]:
    """(decoding, scores by statistics), each written to a log of its own as soon as it is known, and taken from there after a kill."""
    own = Run(run.file(DECODED))
    own.path.mkdir(exist_ok=True)
    known = {str(record["decoding"]): record for record in own.records()}
    whole: Network | None = None
    for name in measure.decodings:
        if name not in known:
            whole = whole or searched.network(searched.genotype(decoding(CONTINUOUS)))
            known[name] = {"decoding": name, **one(searched, name, whole, measure)}
            own.log(known[name])
        scores = known[name]["scores"]
        assert isinstance(scores, dict)
        yield name, scores


def one(searched: Searched, name: str, whole: Network, measure: Measure) -> dict[str, object]:
    """The scores of one decoding, or why there are none."""
    how, space = decoding(name), searched.state.space
    if reason := unfit(how, space, searched.method):
        return {"scores": {}, "why": reason}
    genotype = searched.genotype(how)
    try:
        space.check(genotype)
    except UserError as error:
        return {"scores": {}, "why": f"{name}: {error}"}
    scores = {RAW: searched.score(searched.raw(genotype, whole)), ANEW: searched.score(searched.network(genotype))}
    return {"scores": {**scores, **(searched.tuned(genotype, measure) if name in measure.tuned else {})}}


def unfit(how: Decoding, space: Space, method: Method) -> str:
    """The reason why a decoding makes no sense in a space, or with a method; empty if it does."""
    return next((reason for group in space.groups if (reason := how.unfit(group, method.relaxation))), "")


def distribution(searched: Searched) -> dict[str, float]:
    """Deciles of the largest weight of each edge's operations, `max op/10`, and of the gates, `gate/10`, in percent; the entropy."""
    found = {"entropy": 100 * searched.state.entropy()}
    ops, gates = list[float](), list[float]()
    for group, w in searched.weights():
        for row, gate, b in zip(w, gated(group), openings(w, group), strict=True):
            (gates if gate else ops).append(float(b if gate else row.max()))
    for name, values in (("max op", ops), ("gate", gates)):
        if values:
            deciles = torch.tensor(values).quantile(torch.linspace(0, 1, 11)).tolist()
            found |= {f"{name}/{10 * k}": 100 * value for k, value in enumerate(deciles)}
    return found
