"""BANANAS: search with an ensemble of neural predictors. C. White, W. Neiswanger, Y. Savani. AAAI 2021, arXiv 1910.11858.

    10 random cells; then rounds: 5 networks learn score(cell) from all cells so far; 100 mutations of the best cells are ranked by a draw
    from N(mean, std) of the 5 predictions, each cell its own (independent Thompson sampling); the first 10 are asked for

Published (naszilla/naszilla @ 7e65491, nas_algorithms.py, params.py, acquisition_functions.py): 10 first cells, 10 per round, 5 networks
of 10 layers of 20 units, Adam at 0.01, batches of 32, 150 epochs; 100 candidates from the best cells; the path encoding.
Ours: 100 queries (`--set queries=100`), and the evaluator, as in `random_search`.

Deviations from the paper: the edges' operations stand beside the paths, which are not cut off, since a chain has one path only; a
mutation makes one or two changes.
Deviations from the authors' code: scikit-learn's networks minimise squared errors of standardised scores, with its weight decay of 1e-4,
where the code's minimise absolute errors without; it changes each operation of a NAS-Bench-201 cell with probability 1/4.
Cost against DARTS: that of its queries, and about a second per round.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oche.base import Count, Positive, counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.methods.predictors import Rounds, features, standardised
from oche.spaces import Space


@dataclass(frozen=True)
class Ensemble:
    """Ranks cells by one draw each from what `networks` networks, trained for `epochs` epochs, predict."""

    networks: Count = 5
    layers: Count = 10
    width: Count = 20
    epochs: Count = 150
    rate: Positive = 0.01

    def __post_init__(self) -> None:
        if min(self.networks - 1, self.layers, self.width, self.epochs) < 1 or self.rate <= 0:
            raise UserError(
                f"An ensemble needs two networks, a layer, a unit, an epoch and a rate above 0; given {self}."
            )

    def order(
        self, space: Space, told: Sequence[Told], candidates: Sequence[Genotype], seed: int
    ) -> Sequence[Genotype]:
        """The candidates by their draws, the highest first."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        x = features(space, [*(t.genotype for t in told), *candidates])
        known, scores = len(told), standardised(told)
        predictions = []
        for n in range(self.networks):
            start = counted(seed, "bananas", known, n).initial_seed() % 2**32
            network = MLPRegressor(
                hidden_layer_sizes=(self.width,) * self.layers,
                batch_size=min(32, known),
                learning_rate_init=self.rate,
                max_iter=self.epochs,
                n_iter_no_change=self.epochs,
                random_state=start,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is the rule
                predictions.append(network.fit(x[:known], scores).predict(x[known:]))
        noise = np.random.default_rng(counted(seed, "bananas", known).initial_seed()).standard_normal(len(candidates))
        drawn = np.mean(predictions, axis=0) + np.std(predictions, axis=0) * noise
        return [candidates[i] for i in np.argsort(-drawn, kind="stable")]


def bananas(
    queries: int = 100, first: int = 10, batch: int = 10, candidates: int = 100, networks: int = 5, epochs: int = 150
) -> AskTell:
    """BANANAS: cells that an ensemble of predictors hopes for."""
    strategy = Rounds(Ensemble(networks, epochs=epochs), first, batch, candidates)
    return AskTell("bananas", strategy, queries=queries, papers=("white2021bananas",))
