"""Random search with queries: the best of n random cells by validation. L. Li, A. Talwalkar. UAI 2019, arXiv 1902.07638.

    ask for cells drawn uniformly, each of them once; the best by validation is the result

What any search that evaluates cells has to beat with as many queries. With a budget of one query it is `random_sampling`; with a
supernet as the evaluator it is close to `random_search_ws`.

Published: uniform sampling, and the best by validation. Ours: 100 queries (`--set queries=100`), and the evaluator, which is a supernet
unless a bench has a table or another is named (`--set evaluator=table`, `supernet` or `training`).

Deviations from the paper: no cell is asked for twice, so the search ends early in a space with fewer cells than queries.
Deviations from the authors' code: their code is that of `random_search_ws`; there is none for this.
Cost against DARTS: with a table none; with a supernet its training, one operation per edge, and a pass over the validation images per
query; with brief trainings one of them per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oche.base import counted
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.spaces import Space
from oche.spaces.sampling import sample


@dataclass(frozen=True)
class Uniform:
    """Cells drawn uniformly, each of them once."""

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """A cell that was not asked for before; None if there is none."""
        known = {t.genotype.hash for t in told}
        if len(known) >= space.cardinality():
            return None
        rng = counted(seed, "random search", len(told))
        while (cell := sample(space, rng)).hash in known:
            continue
        return cell


def random_search(queries: int = 100) -> AskTell:
    """Random search: the best of n cells by validation."""
    return AskTell("random_search", Uniform(), queries=queries, papers=("li2019random",))
