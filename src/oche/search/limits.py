"""Limits in a search: a term that alpha pays where its expected cost exceeds a limit, and the network made to fit before it is handed out.

    R = s(t) sum_i max(0, C_i(alpha) / limit_i - 1),   C_i = rest_i + sum over cells and edges q_e sum_o p_eo c_eoi

p_eo are the op weights without noise (`Relaxation.strength`) over their sum on the edge, so that of a sampled relaxation they are the
probabilities of its samples and C is the expectation itself, with no surrogate; where a node keeps k of its edges, `none` is left out and
q_e = min(1, k s_e / sum of s over the node's edges), s_e the edge's sum of weights. rest is what a network costs beside its candidates.
Parameters, multiply-adds, the sizes of the files and latency have such a sum; peak memory has none, and is kept by the fit alone.

After DUCCIO (arXiv 2310.07217; eml-eda/plinio @ 3d6b5e0): one-sided, and s(t) from 1 % to full strength at half of the search,
s(t) = min(s / 100 + 0.99 s t / (1/2), s). Theirs is s = loss after the warm-up over the excess of the first cost, 0 where there is none.
Ours: the loss of guessing, ln(classes) (1 for other tasks), over the excess of the cost at equal op weights, at least a tenth of the
limit; so it is a constant of the search, and a limit that is met at first is kept too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Draw, Group, Params
from oche.genotype import Genotype
from oche.run import Run
from oche.search.method import Method
from oche.search.relaxations import Relaxation
from oche.search.state import Problem, SearchState
from oche.search.terms import OfAlpha
from oche.spaces import Space
from oche.spaces.cost import candidate_latencies, candidates, priced, prices_of
from oche.spaces.fit import Fitted, fit
from oche.spaces.latency import Latencies
from oche.spaces.limits import Limits
from oche.spaces.repair import Strengths
from oche.spaces.smallest import smallest
from oche.training.export import above, available_formats, measured_latency

TRIES, TIGHTER = 3, 0.97
"""How often a network that was measured above the limit of latency is made to fit anew, and how much lower than in proportion."""

LEAST_EXCESS = 0.1
"""What the first cost's excess counts as at least."""

Costs = dict[str, Tensor]
"""Group -> (E, O, 3): parameters, multiply-adds and milliseconds (0 without a table) of each candidate, summed over the cells that share
the group's alpha."""


@dataclass(frozen=True)
class ExpectedCost(OfAlpha):
    """The term R above, of the problem's limits."""

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        problem, like = state.problem, next(iter(alpha.values()))
        space, limits = priced_space(problem, state.space), problem.limits
        draw = replace_phase(state.draw("alpha"))
        found = expected(space, limits, state.space.groups, state.relaxation, alpha, draw)
        scales, total = strength_of(space, limits), like.new_zeros(())
        for name, limit in limits.items():
            if name in found:
                total = total + ramp(draw.progress) * scales[name] * (found[name] / limit - 1).relu()
        return total


def ramp(progress: float) -> float:
    """From 0.01 to 1 at half of the search."""
    return min(0.01 + 0.99 * progress / 0.5, 1.0)


def replace_phase(draw: Draw) -> Draw:
    """The draw as an evaluation's, which has no noise."""
    return replace(draw, phase="eval")


def expected(
    space: Space,
    limits: Limits,
    groups: tuple[Group, ...],
    relaxation: Relaxation,
    alpha: Alpha,
    draw: Draw,
) -> dict[str, Tensor]:
    """Cost -> its expectation under alpha, of those limited that are sums over candidates."""
    rows = {group.name: relaxation.strength(alpha, group, draw) for group in groups}
    return of_weights(space, limits, groups, rows)


def of_weights(space: Space, limits: Limits, groups: tuple[Group, ...], rows: Strengths) -> dict[str, Tensor]:
    """Cost -> its expectation under these op weights (E, O) of each group."""
    rest, table = fixed_costs(space, limits.latencies), summed(space, limits.latencies)
    parts = [_weighed(group, rows[group.name], table[group.name].to(rows[group.name])) for group in groups]
    sums = torch.stack(parts).sum(0)
    found = _by_name(sums)
    return {name: rest[name] + found[name] for name, _ in limits.items() if name in found}


def _by_name(sums: Tensor) -> dict[str, Tensor]:
    """(3,) -> the costs that are sums over candidates."""
    return {
        "parameters": sums[0],
        "multiply_adds": sums[1],
        "size": 4 * sums[0],
        "int8_size": sums[0],
        "latency": sums[2],
    }


def _weighed(group: Group, w: Tensor, costs: Tensor) -> Tensor:
    """(3,): the sum over edges of q_e sum_o p_eo c_eo."""
    w, tiny = w.abs(), torch.finfo(w.dtype).tiny
    shares = w.sum(-1)
    if group.keep is not None:
        none = group.named("none").to(w.device)
        w = torch.where(none & (~none).any(-1, keepdim=True), 0.0, w)
    p = w / w.sum(-1, keepdim=True).clamp_min(tiny)
    by_edge = (p[..., None] * costs).sum(1)
    if group.keep is not None:
        targets = torch.tensor([target for _, target in group.edges], device=w.device)
        together = (targets[:, None] == targets).to(w)
        by_edge = by_edge * (group.keep * shares / (together @ shares).clamp_min(tiny)).clamp_max(1.0)[:, None]
    return by_edge.sum(0)


@lru_cache(maxsize=32)
def summed(space: Space, latencies: Latencies | None = None) -> Costs:
    """The candidates' costs, summed over the cells that share them."""
    counted = {name: table.sum(0) for name, table in candidates(space, True).items()}
    times = {} if latencies is None else candidate_latencies(space, latencies)
    return {
        name: torch.cat([t, times[name][..., None] if times else torch.zeros_like(t[..., :1])], -1)
        for name, t in counted.items()
    }


@lru_cache(maxsize=32)
def fixed_costs(space: Space, latencies: Latencies | None = None) -> Mapping[str, float]:
    """What a network of the space costs beside its candidates."""
    genotype = smallest(space, Limits())
    prices, table = prices_of(space, genotype), summed(space, latencies)
    prices["latency"] = 0.0 if latencies is None else latencies.of_network(space, genotype)
    own = torch.zeros(3, dtype=torch.float64)
    for group in space.groups:
        for c in genotype.groups[group.name]:
            own += table[group.name][group.entry(c.source, c.target, c.op)]
    return {name: prices[name] - float(cost) for name, cost in _by_name(own).items()}


@lru_cache(maxsize=32)
def strength_of(space: Space, limits: Limits) -> Mapping[str, float]:
    """The full strength s of each limit."""
    even = {group.name: group.valid().double() for group in space.groups}
    loss = math.log(max(2, space.outputs)) if space.task == "classify" else 1.0
    start, most = of_weights(space, limits, space.groups, even), dict(limits.items())
    return {name: loss / max(LEAST_EXCESS, float(cost) / most[name] - 1) for name, cost in start.items()}


def priced_space(problem: Problem, present: Space) -> Space:
    """The space whose costs count: the one that networks are built in, unless a stage's candidates are others."""
    built = problem.built or present
    same = [(g.name, g.edges, g.ops) for g in built.groups] == [(g.name, g.edges, g.ops) for g in present.groups]
    return built if same else present


def limited(problem: Problem, method: Method) -> Method:
    """The method with the term, if alpha learns and can exceed a limit at all."""
    space = problem.built or problem.space
    if not problem.limits or method.arch_start >= 1 or not any(_can_exceed(space, problem.limits)):
        return method
    return replace(method, outer_terms=(*method.outer_terms, ExpectedCost()))


def _can_exceed(space: Space, limits: Limits) -> Iterator[bool]:
    """For each limit of a sum, True if the dearest candidates together exceed it."""
    rest, table = fixed_costs(space, limits.latencies), summed(space, limits.latencies)
    dearest = torch.zeros(3, dtype=torch.float64)
    for group in space.groups:
        by_edge = table[group.name].amax(1)
        for numbers in group.into().values():
            dearest += by_edge[numbers].sort(0, descending=True).values[: group.keep].sum(0)
    sums = _by_name(dearest)
    for name, limit in limits.items():
        if name in sums:
            yield rest[name] + float(sums[name]) > limit


# ------------------------------------------------------------------ the network


def hand_out(
    problem: Problem, genotype: Genotype, strengths: Strengths | None = None, note: Mapping[str, object] | None = None
) -> Genotype:
    """The genotype that a search ends with, made to fit the limits; writes it last of all, with a line in the log on what was done."""
    space = problem.built or problem.space
    table: dict[str, object] = dict(note or {})
    if problem.limits:
        fitted, measured = made_to_fit(problem, space, genotype, strengths)
        assert problem.limits.kept(fitted.prices), "the smallest network was checked before"
        genotype, table = fitted.genotype, {**table, "fitted": {**fitted.table(problem.limits), **measured}}
        tell(problem, fitted, measured)
    if problem.run and problem.fabric.is_global_zero:
        problem.run.write(Run.GENOTYPE, json.dumps({**json.loads(genotype.to_json()), **table}).encode())
    return genotype


def made_to_fit(
    problem: Problem, space: Space, genotype: Genotype, strengths: Strengths | None
) -> tuple[Fitted, dict[str, object]]:
    """The network that keeps the limits, and what was measured of it where latency is limited on this machine.

    One whose file takes longer than foretold, and too long, is made to fit anew under a limit that is lower by as much.
    """
    limits = problem.limits
    fitted = fit(space, genotype, limits, strengths)
    if (
        limits.latency is None
        or limits.latencies is None
        or not limits.latencies.here
        or "onnx" not in available_formats()
    ):
        return fitted, {}
    best, target = (fitted, measured_latency(fitted.space, fitted.genotype)), limits.latency
    for _ in range(TRIES):
        if best[1].median <= limits.latency:
            break
        target *= TIGHTER * limits.latency / best[1].median
        fitted = fit(space, genotype, replace(limits, latency=target), strengths)
        if fitted.genotype == best[0].genotype and fitted.space == best[0].space:
            break
        best = min(best, (fitted, measured_latency(fitted.space, fitted.genotype)), key=lambda pair: pair[1].median)
    fitted, latency = best
    said = {} if latency.median <= limits.latency else {"warning": above(latency.median, limits.latency)}
    return fitted, {"latency": latency.table(), **said}


def keeps(problem: Problem, genotype: Genotype) -> bool:
    """True unless the width is fixed and the genotype's network exceeds a limit at it."""
    if not problem.limits or not problem.limits.fixed:
        return True
    return problem.limits.kept(priced(problem.limits)(problem.built or problem.space, genotype))


def tell(problem: Problem, fitted: Fitted, measured: Mapping[str, object]) -> None:
    """One line of the log: what was done to keep the limits, how full they are, and what was measured."""
    record = {"kind": "fitted", "genotype": str(fitted.genotype), **fitted.table(problem.limits), **measured}
    latency = measured.get("latency")
    found = f" (measured: {latency['median_ms']:.3f} ms)" if isinstance(latency, Mapping) else ""
    record["words"] = problem.limits.words(fitted.prices) + found
    if problem.run and problem.fabric.is_global_zero:
        problem.run.log(record)
    problem.listener("fitted", record)
