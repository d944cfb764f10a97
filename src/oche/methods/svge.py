"""SVGe: smooth variational graph embeddings. J. Lukasik, D. Friede, A. Zela, F. Hutter, M. Keuper. IJCNN 2021, arXiv 2010.04683.

    cells are graphs with operations on the nodes; an encoder of two rounds of messages, along the edges and against them, gives N(mu, s^2);
    c = mu + 0.01 s noise; a decoder builds the graph from c node by node, from its start and, with the same weights, from its end
    L = both reconstructions (types and edges of every step) + beta KL(N(mu, s^2) || N(0, I))
    then Bayesian optimisation over c: a Gaussian process of the scores at mu, expected improvement greedily maximised in the box of
    the train cells' mu, 10 points per round; each is decoded 50 times, and the most frequent cell not yet asked for is asked for

Published: the model and the loop. Taken from code (jovitalukasik/SVGe @ a277200): sums gated by a sigmoid, the sizes of all layers, the
noise's 0.01, beta = 0.005 of a divergence summed over batches of 32, rounds of batches with greedily improved points, the box, the
predictor (from the embedding to a half, a quarter and an eighth of it, then 1; trained further with 0.1 of the loss and 0.9 of its
squared error). There are no numbers to compare with: the authors' page prints none.
Ours: 48 units for 250 and Adam at 2e-3 falling along a cosine for 1e-4, 800 batches of 128 of 4,000 random cells, so that a CPU learns
in minutes (published: 300 epochs of 14,062 cells in batches of 32); 10 first cells for 1,000, 100 queries for 1,500, rounds of 10 for 50,
50 decodings for 500; at most 100 steps to fit the process, and for each point one climb of at most 20 steps from the best of 64 draws;
the cells' graphs of any space (`oche.methods.graphs`). The embedding is learned from unlabelled cells once for all seeds
(`strategy.training.seed`), and kept in the cache.

Deviations from the paper: a point whose decodings are no cells or known ones is left out, and a random cell asked for in its place.
Deviations from the authors' code: there the score of an edge is computed with another graph's embedding where a batch has several graphs,
and the divergence grows with the batch; here neither. All graphs of a space have as many nodes, and the type of the last is drawn as those
of the others are; there a graph ends with the first end that is drawn, and the last node possible is one (models/SVGe.py:356), which makes
more of them valid. An exact Gaussian process (BoTorch) for the sparse one; the objective is validation.
Cost against DARTS: that of its queries, a few minutes for the embedding, and a second or two per round.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import warnings
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from oche.base import counted
from oche.errors import UserError
from oche.fast.backends.native import cache
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.methods.graph_vae import GraphVAE
from oche.methods.graphs import Graphs
from oche.methods.predictors import in_rounds, standardised
from oche.methods.sequences import seeded
from oche.spaces import Space
from oche.spaces.sampling import sample


@dataclass(frozen=True)
class Training:
    """How the embedding is learned: `steps` batches of `batch` of `cells` random cells."""

    cells: int = 4000
    steps: int = 800
    batch: int = 128
    rate: float = 2e-3
    beta: float = 0.005
    units: int = 48
    size: int = 56
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.cells, self.batch, self.units - 1, self.size) < 1 or self.steps < 0 or self.rate <= 0:
            raise UserError(
                f"An embedding needs cells, a batch, two units, a number per cell and a rate above 0; given {self}."
            )


# ------------------------------------------------------------------ the embedding


@dataclass(frozen=True, eq=False)
class Embedding:
    """A trained autoencoder of a space's cells, and the cells it learned from with their means (n, g)."""

    graphs: Graphs
    model: GraphVAE
    cells: tuple[Genotype, ...]
    means: Tensor

    @torch.no_grad()
    def encode(self, genotypes: Sequence[Genotype]) -> Tensor:
        """(n, g) the means of the genotypes."""
        found: Tensor = self.model.encoder(*self.graphs.encode(genotypes))[0]
        return found

    def decode(self, c: Tensor, times: int, rng: torch.Generator) -> list[list[Genotype]]:
        """For each c (n, g) the cells among `times` decodings, the most frequent first."""
        types, edges = self.model.draw(c.repeat_interleave(times, 0), rng)
        drawn = [self.graphs.decode(t, e) for t, e in zip(types, edges, strict=True)]
        found = []
        for n in range(len(c)):
            cells = {cell.hash: cell for cell in drawn[n * times : (n + 1) * times] if cell is not None}
            counts = Counter(cell.hash for cell in drawn[n * times : (n + 1) * times] if cell is not None)
            found.append([cells[name] for name, _ in counts.most_common()])
        return found


LEARNING = 1
"""Changes with how an embedding is learned, so that one that was learned otherwise is not taken from the cache."""


@lru_cache(maxsize=4)
def embedding(space: Space, training: Training) -> Embedding:
    """The space's embedding, learned when it is first asked for, and kept in the cache. Raises UserError without torch-geometric."""
    rng, graphs = counted(training.seed, "svge", "cells"), Graphs(space)
    count = min(training.cells, space.cardinality())
    drawn: dict[str, Genotype] = {}
    while len(drawn) < count:
        cell = sample(space, rng)
        drawn[cell.hash] = cell
    cells = tuple(drawn.values())
    types, edges = graphs.encode(cells)
    with seeded(training.seed, "svge", "weights"):
        model = GraphVAE(graphs.types, len(graphs.places), training.units, training.size)
        path = place(space, training)
        if not kept(model, path):
            learn(model, types, edges, training)
            keep(model, path)
    found = Embedding(graphs, model, cells, torch.empty(0))
    return replace(found, means=torch.cat([found.encode(cells[i : i + 512]) for i in range(0, count, 512)]))


def place(space: Space, training: Training) -> Path:
    """The file of the cache that an embedding is kept in."""
    form = [(group.name, group.edges, group.ops, group.keep) for group in space.groups]
    key = f"{LEARNING} {space.name} {form} {training} {torch.get_default_dtype()} {torch.__version__}"
    return cache() / f"svge-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def learn(model: GraphVAE, types: Tensor, edges: Tensor, training: Training) -> None:
    """Descends the loss of random batches of the graphs (n, N), (n, N, N)."""
    optimizer = torch.optim.Adam(model.parameters(), training.rate)
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate * (1 + math.cos(math.pi * step / training.steps)) / 2
        chosen = torch.randint(len(types), (training.batch,))
        again, divergence, _ = model.losses(types[chosen], edges[chosen], torch.randn(training.batch, training.size))
        optimizer.zero_grad()
        torch.autograd.backward((again + training.beta * divergence).mean())
        optimizer.step()


def kept(model: GraphVAE, path: Path) -> bool:
    """True if the weights were there, and are the model's now; what is damaged counts as missing."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError):
        return False
    return True


def keep(model: GraphVAE, path: Path) -> None:
    """Writes the weights; a cache that cannot be written to is left alone."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


def predictor(found: Embedding, cells: Sequence[Genotype], scores: Tensor, epochs: int, seed: int) -> Embedding:
    """The embedding trained further on cells with standardised scores (n,), 0.1 of its loss and 0.9 of its head's squared error."""
    types, edges = found.graphs.encode(cells)
    model = deepcopy(found.model)
    with seeded(seed, "svge", "predictor"):
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(cells)), 32):
                noise = torch.randn(len(chosen), found.means.shape[1])
                again, divergence, mean = model.losses(types[chosen], edges[chosen], noise)
                error = F.mse_loss(model.score(mean), scores[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(0.1 * (again + 0.005 * divergence).mean() + 0.9 * error)
                optimizer.step()
    return replace(found, model=model)


# ------------------------------------------------------------------ the search


@dataclass(frozen=True)
class Optimised:
    """`first` random cells, then rounds of `batch` points of the embedding, decoded to cells that were not asked for."""

    training: Training = Training()
    first: int = 10
    batch: int = 10
    decodings: int = 50
    _rounds: dict[object, Sequence[Genotype]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.first < 2 or min(self.batch, self.decodings) < 1:
            raise UserError(
                "Bayesian optimisation needs two first cells, a batch and decodings; given "
                f"first={self.first}, batch={self.batch}, decodings={self.decodings}."
            )

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """The round's next cell; a random one at first, and in the place of points decoded to nothing new. None if all are known."""
        return in_rounds(
            space, told, seed, self.first, self.batch, self._rounds, lambda before: self.round(space, before, seed)
        )

    def learns(self, space: Space, told: Sequence[Told]) -> str:
        """A sentence before the first round, unless the cache has the embedding."""
        if len(told) < self.first or place(space, self.training).exists():
            return ""
        count = min(self.training.cells, space.cardinality())
        return (
            f"svge learns its embedding from {count:,} random cells of {space.name}, {self.training.steps:,} steps: minutes on a CPU. "
            "The cache keeps it for later searches."
        )

    def round(self, space: Space, told: Sequence[Told], seed: int) -> list[Genotype]:
        """The round's cells: those of its points that are decoded to something new."""
        found = embedding(space, self.training)
        low, high = found.means.amin(0).double(), found.means.amax(0).double()
        span = (high - low).clamp_min(1e-9)
        x = (found.encode([t.genotype for t in told]).double() - low) / span
        with seeded(seed, "svge", len(told)):
            points = low + span * improved(x, torch.tensor(standardised(told)), self.batch)
        known, cells = {t.genotype.hash for t in told}, list[Genotype]()
        for decoded in found.decode(points.to(found.means), self.decodings, counted(seed, "svge", "decode", len(told))):
            new = next((cell for cell in decoded if cell.hash not in known), None)
            if new is not None:
                known.add(new.hash)
                cells.append(new)
        return cells


def improved(x: Tensor, y: Tensor, count: int) -> Tensor:
    """(count, g) points of the unit box, each where the expected improvement on y (n,) at x (n, g) is greatest.

    One after the other: a point that was chosen counts with the mean that the process gives it. Raises UserError without BoTorch.
    """
    try:
        from botorch.acquisition.analytic import LogExpectedImprovement
        from botorch.exceptions.warnings import BotorchWarning
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.optim.optimize import optimize_acqf
        from gpytorch.mlls import ExactMarginalLogLikelihood
    except ImportError:
        raise UserError("SVGe needs the extra `latent`: pip install 'oche[latent]'.") from None

    box = torch.stack([torch.zeros_like(x[0]), torch.ones_like(x[0])])
    chosen: list[Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BotorchWarning)  # a fit or an optimum that was not reached is an answer
        warnings.simplefilter("ignore", RuntimeWarning)
        fitted = SingleTaskGP(x, y[:, None], outcome_transform=None)
        fit_gpytorch_mll(
            ExactMarginalLogLikelihood(fitted.likelihood, fitted), optimizer_kwargs={"options": {"maxiter": 100}}
        )
        process: Any = fitted  # what it becomes with more points
        for _ in range(count):
            hope = LogExpectedImprovement(process, best_f=y.max())
            point, _ = optimize_acqf(hope, box, q=1, num_restarts=1, raw_samples=64, options={"maxiter": 20})
            chosen.append(point.detach())
            with torch.no_grad():
                process = process.condition_on_observations(point.detach(), process.posterior(point).mean.detach())
    return torch.cat(chosen)


def svge(queries: int = 100, first: int = 10, batch: int = 10, decodings: int = 50) -> AskTell:
    """SVGe: Bayesian optimisation in a learned space of graphs."""
    return AskTell("svge", Optimised(Training(), first, batch, decodings), queries=queries, papers=("lukasik2021svge",))
