"""A two-sided variational autoencoder of graphs with typed nodes (SVGe): message passing along and against the edges, on both ends.

B graphs of N nodes; d units per node, half of them for either direction; g numbers per graph, c. See `oche.methods.svge` for the rule.
Every quantity of a graph is computed from that graph alone, whatever else is in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oche.errors import UserError
from oche.methods.graphs import END, START

EPSILON = 0.01
"""What the noise of an encoding is scaled by."""


def layer_of(units: int) -> nn.Module:
    """m_v = sum over u -> v of W [h_u; h_v], h_v <- GRU(m_v, h_v), as a layer of torch-geometric. Raises UserError without it."""
    try:
        from torch_geometric.nn import MessagePassing
    except ImportError:
        raise UserError("SVGe needs the extra `latent`: pip install 'oche[latent]'.") from None

    class Layer(MessagePassing):
        def __init__(self) -> None:
            super().__init__(aggr="add")
            self.say = nn.Linear(units, units)
            self.hear = nn.GRUCell(units, units // 2)

        def forward(self, h: Tensor, edges: Tensor) -> Tensor:
            told: Tensor = self.hear(self.propagate(edges, h=h), h)
            return told

        def message(self, h_j: Tensor, h_i: Tensor) -> Tensor:
            said: Tensor = self.say(torch.cat([h_j, h_i], 1))
            return said

    return Layer()


class TwoSided(nn.Module):
    """`rounds` rounds of messages along the edges on one half of each node's units, and against them on the other."""

    def __init__(self, units: int, rounds: int) -> None:
        super().__init__()
        self.along = nn.ModuleList([layer_of(units) for _ in range(rounds)])
        self.against = nn.ModuleList([layer_of(units) for _ in range(rounds)])

    def forward(self, h: Tensor, edges: Tensor) -> Tensor:
        """Nodes h (B, n, d) under edges (B, n, n) from row to column."""
        count, n, _ = h.shape
        graph, source, target = edges.nonzero().T
        pairs = torch.stack([graph * n + source, graph * n + target])
        one, other = h.reshape(count * n, -1).chunk(2, 1)
        for layer in self.along:
            one = layer(one, pairs)
        for layer in self.against:
            other = layer(other, pairs.flip(0))
        return torch.cat([one, other], 1).view(count, n, -1)


class Gated(nn.Module):
    """The sum over nodes of sigmoid(g(h)) f(h): (B, n, d) -> (B, g)."""

    def __init__(self, units: int, size: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(units, size), nn.Linear(units, 1)

    def forward(self, h: Tensor) -> Tensor:
        """A single node is not gated."""
        if h.shape[1] == 1:
            only: Tensor = self.value(h[:, 0])
            return only
        gated: Tensor = self.gate(h).sigmoid() * self.value(h)
        return gated.sum(1)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Encoder(nn.Module):
    """Types (B, N) and edges (B, N, N) -> mean and log-variance of c, (B, g) each."""

    def __init__(self, types: int, units: int, size: int, rounds: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(types, units // 2)
        self.messages = TwoSided(units, rounds)
        self.mean, self.log_variance = Gated(units, size), Gated(units, size)

    def forward(self, types: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        h = self.messages(self.embed(types).repeat(1, 1, 2), edges)
        return self.mean(h), self.log_variance(h)


@dataclass(frozen=True)
class Step:
    """What the decoder knows before a node: scores of its type (B, T), nodes (B, t, d), the graph (B, g), and a start for it (B, g)."""

    kinds: Tensor
    nodes: Tensor
    whole: Tensor
    start: Tensor


class Decoder(nn.Module):
    """Builds a graph node by node from c: the type of the next node, its units, and which of the earlier nodes it reads."""

    def __init__(self, types: int, units: int, size: int, rounds: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(types, units)
        self.first = _mlp(units + size, units + size, units)
        self.messages = TwoSided(units, rounds)
        self.whole, self.for_next = Gated(units, size), Gated(units, size)
        self.kind = _mlp(2 * size, size, types)
        self.next = _mlp(units + 2 * size, units + size, units)
        self.source = _mlp(2 * units + 2 * size, units + size, 1)

    def begin(self, kinds: Tensor, c: Tensor) -> Tensor:
        """The first node (B, 1, d) of types (B,)."""
        begun: Tensor = self.first(torch.cat([self.embed(kinds), c], 1))
        return begun[:, None]

    def step(self, h: Tensor, edges: Tensor, c: Tensor) -> Step:
        """Nodes h (B, t, d) under their edges (B, t, t), after their messages, and the scores of the next node's type."""
        if h.shape[1] > 1:
            h = self.messages(h, edges)
        whole = self.whole(h)
        return Step(self.kind(torch.cat([whole, c], 1)), h, whole, self.for_next(h))

    def add(self, step: Step, kinds: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes with a next one of types (B,), (B, t + 1, d), and the scores (B, t) of the edges into it."""
        t = step.nodes.shape[1]
        new = self.next(torch.cat([self.embed(kinds), step.start, c], 1))
        of_graph = torch.cat([new, step.whole, c], 1)[:, None].expand(-1, t, -1)
        scores = self.source(torch.cat([step.nodes, of_graph], 2))[..., 0]
        return torch.cat([step.nodes, new[:, None]], 1), scores

    def loss(self, types: Tensor, edges: Tensor, c: Tensor) -> Tensor:
        """(B,) the cross-entropies of the types, plus those of the edges, averaged over the earlier nodes, of every step."""
        h, total = self.begin(types[:, 0], c), c.new_zeros(len(c))
        for t in range(1, types.shape[1]):
            step = self.step(h, edges[:, :t, :t], c)
            total = total + F.cross_entropy(step.kinds, types[:, t], reduction="none")
            h, scores = self.add(step, types[:, t], c)
            if t > 1:  # the second node reads the first
                wanted = edges[:, :t, t].to(scores)
                total = total + F.binary_cross_entropy_with_logits(scores, wanted, reduction="none").mean(1)
        return total

    def draw(self, first: int, count: int, c: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws graphs of `count` nodes: types (B, count) and edges (B, count, count)."""
        types = torch.full((len(c), count), first)
        edges = torch.zeros(len(c), count, count, dtype=torch.bool)
        h = self.begin(types[:, 0], c)
        for t in range(1, count):
            step = self.step(h, edges[:, :t, :t], c)
            types[:, t] = torch.multinomial(step.kinds.softmax(1), 1, generator=rng)[:, 0]
            h, scores = self.add(step, types[:, t], c)
            drawn = torch.rand(scores.shape, generator=rng, dtype=scores.dtype) < scores.sigmoid()
            edges[:, :t, t] = drawn if t > 1 else True
        return types, edges


def reverse(types: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The graphs read from their end: nodes in the other order, edges the other way round."""
    return types.flip(1), edges.flip(1, 2).transpose(1, 2)


class GraphVAE(nn.Module):
    """Encoder and decoder of graphs of N nodes, `kinds` types, and a head that predicts a score from the mean of c."""

    def __init__(self, kinds: int, nodes: int, units: int = 250, size: int = 56, rounds: int = 2) -> None:
        super().__init__()
        self.nodes = nodes
        self.encoder, self.decoder = Encoder(kinds, units, size, rounds), Decoder(kinds, units, size, rounds)
        widths = [size, max(1, size // 2), max(1, size // 4), max(1, size // 8)]
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def losses(self, types: Tensor, edges: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) reconstruction, forwards plus backwards, and KL divergence from N(0, I), and (B, g) the mean; `noise` (B, g) is N(0, I)."""
        mean, log_variance = self.encoder(types, edges)
        c = mean + EPSILON * noise * (0.5 * log_variance).exp()
        back_types, back_edges = reverse(types, edges)
        both = torch.cat([types, back_types]), torch.cat([edges, back_edges])
        one, other = self.decoder.loss(both[0], both[1], torch.cat([c, c])).chunk(2)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        return one + other, divergence, mean

    def score(self, mean: Tensor) -> Tensor:
        """(B,) what the head predicts of means (B, g)."""
        predicted: Tensor = self.head(mean)
        return predicted[:, 0]

    @torch.no_grad()
    def draw(self, c: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws one graph for each c: the types of the graph drawn forwards, the edges of that and of the one drawn backwards."""
        types, edges = self.decoder.draw(START, self.nodes, c, rng)
        _, more = reverse(*self.decoder.draw(END, self.nodes, c, rng))
        return types, edges | more
