"""The search and the trainings that a plan describes."""

from __future__ import annotations

from dataclasses import replace

from oche.data import for_search
from oche.genotype import Genotype
from oche.plan.resolve import Plan
from oche.run import Listener, Run, silent
from oche.search.searcher import as_searcher
from oche.search.state import Problem
from oche.spaces import Space
from oche.training.train import Training

CONNECTED = 2
"""The rules since which a cell that lets nothing through is replaced by the strongest connected one; older runs keep what they derive."""


def problem_of(plan: Plan, run: Run | None = None, listener: Listener = silent) -> Problem:
    """The search that a plan describes."""
    return Problem(
        space=plan.space,
        data=plan.data.to(plan.fabric.device),
        task=plan.task,
        augment=for_search(plan.data),
        epochs=plan.epochs,
        batch=plan.batch,
        seed=plan.request.seed,
        fabric=plan.fabric,
        run=run,
        listener=listener,
        recompute=plan.request.recompute,
        compile=plan.request.compile,
        rollbacks=0 if plan.request.budget == "paper" else Problem.rollbacks,
        literal=plan.request.budget == "paper" or plan.rules < CONNECTED,
        sync=plan.request.sync_batch_norm,
        limits=replace(plan.limits, fixed=plan.limits.fixed or as_searcher(plan.searcher).keeps_weights),
        built=plan.space,
    )


def training_of(
    plan: Plan, space: Space, genotype: Genotype, run: Run | None = None, listener: Listener = silent
) -> Training:
    """The training of a genotype, built in `space`, in the plan's comparison."""
    return Training(
        space,
        genotype,
        plan.data.to(plan.fabric.device),
        plan.protocol,
        plan.request.seed,
        plan.fabric,
        run,
        listener,
        plan.task,
        sync=plan.request.sync_batch_norm,
        limits=plan.limits,
    )
