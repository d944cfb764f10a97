"""Random sampling: one cell, drawn uniformly and evaluated by nothing; the baseline to beat.

L. Li, A. Talwalkar. UAI 2019, arXiv 1902.07638. A. Yang, P. M. Esperanca, F. M. Carlucci. ICLR 2020, arXiv 1912.12522.

    genotype ~ uniform over the space

`random_search` keeps the best of several, by an evaluation of each; `random_search_ws` does so with a supernet trained for it.

Published: the baseline; there are no constants.

Deviations from the paper: none known.
Deviations from the authors' code: none; both draw cells uniformly.
Cost against DARTS: none, since nothing is trained in the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oche.base import counted
from oche.genotype import Genotype
from oche.search.callbacks import Callback
from oche.search.limits import hand_out
from oche.search.state import Problem
from oche.spaces.sampling import sample


@dataclass(frozen=True)
class RandomSampling:
    """One cell, drawn uniformly: the baseline to beat."""

    name: str = "random_sampling"
    papers: tuple[str, ...] = ("li2019random", "yang2020frustratingly")

    @property
    def method(self) -> None:
        """None: there is no supernet."""
        return None

    @property
    def keeps_weights(self) -> bool:
        """False: nothing is trained."""
        return False

    def run(self, problem: Problem, watch: Sequence[Callback] = ()) -> tuple[Genotype, None]:
        """Draws the cell that belongs to the problem's seed, and writes it."""
        genotype = sample(problem.space, counted(problem.seed, "random sampling"))
        return hand_out(problem, genotype), None
