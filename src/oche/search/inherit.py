"""The found network with the weights of the supernet that it was found in."""

from __future__ import annotations

import torch

from oche.base import Batch, Params
from oche.data import Stream, none
from oche.genotype import Genotype
from oche.search.state import SearchState
from oche.spaces import Network

STATISTICS = 500
"""Batches over which running statistics are estimated, at most: one pass over the training images where they are fewer."""


def inherited(state: SearchState, genotype: Genotype, count: int = STATISTICS) -> Network:
    """The genotype's network with the weights of a search's supernet, in eval mode.

    Its running statistics are the averages over at most `count` full batches of the training images, as they are when a network is
    evaluated, not augmented (our choice).
    """
    problem, device = state.problem, state.problem.fabric.device
    with torch.random.fork_rng(devices=[]):  # what is drawn is then replaced
        network = problem.space.network(genotype)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    stream = Stream(problem.data.train, problem.batch, problem.seed, "statistics", none(problem.data), device)
    theta: Params = dict(state.supernet.named_parameters())
    dtype = next(iter(theta.values())).dtype
    shown = (stream.at(i) for i in range(min(count, stream.steps_per_epoch)))
    problem.space.inherit(network, theta, (Batch(batch.images.to(dtype), batch.targets) for batch in shown))
    return network.eval()
