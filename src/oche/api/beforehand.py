"""Lines of the table before a search: what it does, what it trains beside what it finds, and how long that takes.

Importing this loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oche.plan.within import spoken

if TYPE_CHECKING:
    from oche.api.expected import Expected
    from oche.plan.resolve import Plan

LONG = 3600.0
"""Seconds from which on a run is told how it could be shorter."""


def how_it_runs(how: str) -> str:
    """How a cell runs, with each reason once.

    >>> how_it_runs("kernels"), how_it_runs("nodes: operation residual_3x3; operation residual_3x3")
    ('kernels', 'nodes (their sums in kernels, not all else: operation residual_3x3)')
    """
    tier, colon, why = how.partition(": ")
    reasons = "; ".join(dict.fromkeys(why.split("; ")))
    return f"nodes (their sums in kernels, not all else: {reasons})" if tier == "nodes" else f"{tier}{colon}{reasons}"


def shared(batch: int, processes: int, sync: bool) -> str:
    """How several processes share a batch; nothing for one."""
    if processes == 1:
        return ""
    norm = "over all" if sync else "in each by itself (--sync-batch-norm)"
    return f", {processes} processes with {batch // processes} images of each batch, batch norm {norm}"


def changes(plan: Plan) -> list[str]:
    """What the budget changed, two settings per line; networks of a table are what they are."""
    from oche.methods.ask_tell import AskTell
    from oche.methods.evaluators import TableScore

    said = [str(change) for change in plan.changed]
    lines = [", ".join(said[i : i + 2]) for i in range(0, len(said), 2)]
    by_table = isinstance(plan.searcher, AskTell) and isinstance(plan.searcher.evaluator, TableScore)
    return [*lines, "of networks trained here, not of the table's"] if lines and by_table else lines


def images(plan: Plan) -> list[str]:
    """What becomes of the images that the search sees; nothing where it looks at none."""
    from oche.data import for_search
    from oche.methods.ask_tell import AskTell
    from oche.search.searcher import as_searcher

    if isinstance(plan.searcher, AskTell):
        return [f"search: {plan.searcher.images(plan.data, plan.space.task)}"]
    return [f"search: {for_search(plan.data).describe()}"] if as_searcher(plan.searcher).method else []


def compared(plan: Plan) -> str:
    """What the comparison trains."""
    beside = [f"{plan.compare} random cell{'s' * (plan.compare > 1)}"] if plan.compare else []
    if plan.rivals:
        usual = "the ResNet that fits best" if plan.data.ignore is None else "the plain FCN or U-Net that fits best"
        named = usual if plan.rivals == ("auto",) else ", ".join(plan.rivals)
        beside += [f"{named} within {'the same limits' if plan.limits else 'its cost'}"]
    if plan.beside_kept:
        return f"trains {' and '.join(beside)} once, {plan.protocol.epochs} epochs, to stand beside it"
    each = f"{plan.compare_seeds} seed{'s' * (plan.compare_seeds > 1)} each, protocol {plan.request.protocol}"
    return f"trains the found cell beside {' and '.join(beside)}, {each}"


def times(plan: Plan, expected: Expected) -> list[tuple[str, str]]:
    """How long the whole takes, by part, and which epochs `--time` has chosen."""
    search, training = expected.seconds
    parts = [f"search {spoken(search)}"] if expected.search else []
    if expected.trainings:
        number, epochs = expected.trainings, plan.protocol.epochs
        count = f"{number} training{'s' * (number != 1)} of {epochs} epoch{'s' * (epochs != 1)}"
        parts += [f"{count} {spoken(training)}"]
    rows = [("time", f"about {spoken(search + training)}: {', '.join(parts)}")] if parts else []
    if plan.request.time is None:
        long = search + training > LONG and plan.request.epochs is None
        return [*rows, ("", "shorter: `--time 30m` chooses epochs that end about then")] if long else rows
    given = [] if plan.request.epochs is None else [f"{plan.epochs} epochs of the search were given"]
    given += ["the trainings' epochs were given"] if "train.epochs" in plan.request.settings else []
    rest = f"; {given[0]}, the other part's are chosen" if given else ""
    rows += [("", f"epochs are chosen for --time {plan.request.time}{rest}")]
    return [*rows, ("", expected.reduced)] if expected.reduced else rows


def no_rivals(plan: Plan) -> str:
    """Why no rival is trained."""
    if plan.compare:
        return "none, as asked: how a network picked by hand would do is not measured"
    name = "resnet8" if plan.data.ignore is None else "unet"
    return f"none, for nothing is compared: `--rivals {name}` trains one beside the found cell"


def length(plan: Plan) -> str:
    """Epochs and batch of a search, or its queries."""
    from oche.methods.ask_tell import AskTell

    if isinstance(plan.searcher, AskTell):
        return plan.searcher.length(plan.epochs, plan.batch)
    return f"{plan.epochs} epochs, batch {plan.batch}"


def split(plan: Plan) -> str:
    """Which images train what in the search, or by what cells are scored."""
    from oche.data import UntilFreeze
    from oche.methods.ask_tell import AskTell
    from oche.search.searcher import as_searcher

    method = as_searcher(plan.searcher).method
    if isinstance(plan.searcher, AskTell):
        return f"at most {plan.searcher.queries} cells are scored, by {plan.searcher.asks}"
    if method is None:
        return "nothing is trained in the search"
    parts, count = method.split(plan.data.train, plan.request.seed), len(plan.data.train)
    arch = parts.weights if parts.arch is None else parts.arch
    if len(parts.weights) == len(arch) == count:
        return "all train images train weights and alpha"
    said = f"of the train images {len(parts.weights) / count:.0%} train weights, {len(arch) / count:.0%} train alpha"
    later = isinstance(method.split, UntilFreeze)
    return said + ", drawn anew every epoch" * parts.anew + "; all train weights after the freeze" * later
