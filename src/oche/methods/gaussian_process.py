"""Bayesian optimisation with a Gaussian process over the operations of the edges, the reference that latent spaces have to beat.

    10 random cells; then each query: a Gaussian process is fitted to all scores so far; of 100 mutations of the best cells
    that with the greatest expected improvement over the best score is asked for

Published: expected improvement (D. Jones, M. Schonlau, W. Welch, J. Global Optimization 1998). Ours: all else. The kernel is a Matern
5/2 of the vectors of ones and zeros that say what is on each edge, so that the distance of two cells is the root of twice the number
of edges in which they differ, plus noise; its scale, length and noise have the greatest marginal likelihood. 100 queries
(`--set queries=100`), and the evaluator, as in `random_search`.

Deviations from the paper: candidates are mutations of the best cells, where it optimises over the whole space.
Deviations from the authors' code: there is none for cells; naszilla's `gp_bayesopt` is a relative with a distance of path encodings.
Cost against DARTS: that of its queries, and about a tenth of a second for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from oche.base import counted
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.methods.predictors import Matrix, Rounds, one_hot, standardised
from oche.spaces import Space


def expected_improvement(mean: Matrix, std: Matrix, best: float) -> Matrix:
    """E[max(0, y - best)] of y ~ N(mean, std^2), elementwise; std above 0."""
    z = (mean - best) / std
    found: Matrix = std * (z * norm.cdf(z) + norm.pdf(z))
    return found


@dataclass(frozen=True)
class Process:
    """Ranks cells by their expected improvement under a Gaussian process."""

    def order(
        self, space: Space, told: Sequence[Told], candidates: Sequence[Genotype], seed: int
    ) -> Sequence[Genotype]:
        """The candidates by expected improvement, the highest first."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        x = np.stack([one_hot(space, genotype) for genotype in (*(t.genotype for t in told), *candidates)])
        scores = standardised(told)
        kernel = ConstantKernel(1.0) * Matern(2.0, (0.1, 100.0), nu=2.5) + WhiteKernel(0.1, (1e-4, 10.0))
        process = GaussianProcessRegressor(kernel, random_state=counted(seed, "process").initial_seed() % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length or a noise at its bound is an answer
            process.fit(x[: len(told)], scores)
        mean, std = process.predict(x[len(told) :], return_std=True)
        hope = expected_improvement(mean, np.maximum(std, 1e-9), float(scores.max()))
        return [candidates[i] for i in np.argsort(-hope, kind="stable")]


def gaussian_process(queries: int = 100, first: int = 10, candidates: int = 100) -> AskTell:
    """Bayesian optimisation with a Gaussian process of cells."""
    return AskTell(
        "gaussian_process", Rounds(Process(), first, 1, candidates), queries=queries, papers=("jones1998ei",)
    )
