"""DSM-NAS: dominative subspace mining. Y. Chen, Y. Guo, D. Liao, F. Lv, H. Song, J. T. Kwok, M. Tan. TCSVT 2024, arXiv 2210.17180.

    K = 3 subspaces, each the surroundings of a centre, a random cell at first. The centres are the nodes of a graph, with an edge from
    each to each better one; a node's features are its cell and its score, an edge's are its end's less its start's
    h = two layers of message passing over nodes and edges; an LSTM picks a centre by attention over h, then 4 times a place and its value
    reward R = score of the edited cell - score of its centre, baseline b <- 0.9 b + 0.1 R
    descend -(R - b) log p(decisions) - c H(decisions); a cell that beats its centre takes its place

Published: the rule. Taken from code (chenyaofo/DSM-NAS @ d06e060, entry/train201.py and codebase/controller): K = 3, 4 edits, 64 units,
Adam at 9.4468e-3 with weight decay 2.374e-5, c = 5.0496e-4, logits 1.5 tanh(.) for centres and 0.6 tanh(.) for the rest, weights drawn
from [-0.1, 0.1], the baseline begun at the first reward and moved before it is subtracted. There, on NAS-Bench-201: 94.23 ± 0.22 / 72.76 ±
0.80 / 46.13 ± 0.67 % of 20 trials with 12-epoch accuracies, up to 25,000 simulated seconds or 200 cells.
Ours: 100 queries, the first centres among them (`--set queries=100`), and the evaluator, as in `random_search`; any space, where a place
is an edge's operation or the set of edges that a node keeps (`oche.methods.tokens`).

Deviations from the paper: DSM-NAS+, which begins with good centres, is not here.
Deviations from the authors' code: there an edit changes the list of operations that its centre shares with it, so that centres wander
whether or not they are beaten, under their old features and scores; here a centre stays until it is beaten, as the paper says.
Cost against DARTS: that of its queries, and about a hundredth of a second for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.methods.tokens import Tokens
from oche.spaces import Space
from oche.spaces.sampling import sample

CENTRE, PLACE = 1.5, 0.6
"""What bounds the logits of centres, and of places and values."""

Cells = list[tuple[tuple[int, ...], float]]
"""The centres as numbers, with their scores."""


@dataclass(frozen=True)
class Mining:
    """Edits the centre of one of `subspaces` subspaces in `edits` places, as a controller learns to."""

    subspaces: int = 3
    edits: int = 4
    units: int = 64
    rate: float = 0.009446763714621489
    weight_decay: float = 2.3740059139364297e-05
    entropy: float = 0.0005049559768158195
    _walks: dict[object, Walk] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.subspaces - 1, self.edits, self.units) < 1 or self.rate <= 0:
            raise UserError(f"DSM-NAS needs two subspaces, an edit, a unit and a rate above 0; given {self}.")

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """A random cell for each subspace, then what the controller makes of a centre."""
        if len(told) < self.subspaces:
            return sample(space, counted(seed, "dsm_nas", len(told)))
        walk = self._walks.get((space, seed))
        if walk is None or walk.told != list(told[: len(walk.told)]):
            self._walks.clear()
            walk = self._walks[space, seed] = Walk(self, space, told[: self.subspaces], seed)
        for t in told[len(walk.told) :]:
            walk.learn(t)
        return walk.asked


class Walk:
    """A controller that has learned from what was told, its centres, and the cell that it asks for next."""

    def __init__(self, rule: Mining, space: Space, first: Sequence[Told], seed: int) -> None:
        self.rule, self.tokens, self.seed = rule, Tokens(space), seed
        self.told, self.baseline = list(first), 0.0
        self.centres: Cells = [(self.tokens.encode(t.genotype), t.score) for t in first]
        with torch.device("meta"):
            controller = Controller(len(first), self.tokens.widths, rule.units)
        self.controller = controller.to_empty(device="cpu")
        with torch.no_grad():
            for n, weight in enumerate(self.controller.parameters()):
                weight.uniform_(-0.1, 0.1, generator=counted(seed, "dsm_nas", "weights", n))
        self.optimizer = torch.optim.Adam(self.controller.parameters(), rule.rate, weight_decay=rule.weight_decay)
        self.decide()

    def decide(self) -> None:
        """Draws the next edit; its likelihood and entropy wait for the score."""
        with torch.enable_grad():
            rng = counted(self.seed, "dsm_nas", len(self.told))
            found = self.controller(graph(self.centres, self.tokens.widths), self.rule.edits, rng)
        self.centre, edits, self.likelihood, self.surprise = found
        numbers = list(self.centres[self.centre][0])
        for place, value in edits:
            numbers[place] = value
        self.asked = self.tokens.decode(numbers)

    def learn(self, told: Told) -> None:
        """One step of the controller on the score of what it asked for, and the next edit."""
        gain = told.score - self.centres[self.centre][1]
        first = len(self.told) == self.rule.subspaces
        self.baseline = gain if first else 0.9 * self.baseline + 0.1 * gain
        loss = -(gain - self.baseline) * self.likelihood - self.rule.entropy * self.surprise
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if gain > 0:
            self.centres[self.centre] = self.tokens.encode(told.genotype), told.score
        self.told.append(told)
        self.decide()


# ------------------------------------------------------------------ the graph of centres


def graph(centres: Cells, widths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The features of nodes (K, F) and edges (K, K, F) from row to column, and which edges there are (K, K, 1).

    F counts the values of all places, then the score. Of two equal centres the edge leads from the first.
    """
    nodes = torch.stack(
        [
            torch.cat([*(F.one_hot(torch.tensor(v), w) for v, w in zip(cell, widths, strict=True)), torch.tensor([s])])
            for cell, s in centres
        ]
    ).to(torch.get_default_dtype())
    scores = torch.tensor([score for _, score in centres])
    first = torch.ones(len(centres), len(centres)).triu(1) > 0
    to_better = (scores[:, None] < scores) | ((scores[:, None] == scores) & first)
    return nodes, nodes - nodes[:, None], to_better[..., None].to(nodes)


class Messages(nn.Module):
    """One layer over the graph: nodes hear their edges, those that leave and those that arrive; then edges hear their ends."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.pair = nn.Linear(3 * units, units, bias=False)
        self.pool = nn.Linear(units, units)
        self.node = nn.Linear(2 * units, units, bias=False)
        self.edge = nn.Linear(3 * units, units, bias=False)

    def forward(self, nodes: Tensor, edges: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes (K, U) and edges (K, K, U), of which those exist that are `there` (K, K, 1)."""
        count = len(nodes)
        own = nodes[:, None].expand(count, count, -1)
        heard = self.pool(self.pair(torch.cat([own, edges, edges.transpose(0, 1)], -1)).relu()).relu()
        others = 1 - torch.eye(count).to(heard)[..., None]
        nodes = self.node(torch.cat([nodes, (heard * others).sum(1) / (count - 1)], -1)).relu()
        ends = torch.cat([nodes[:, None].expand(count, count, -1), nodes.expand(count, count, -1)], -1)
        return nodes, there * self.edge(torch.cat([edges, ends], -1)).relu()


class Controller(nn.Module):
    """Reads the graph of centres and decides: a centre, then again and again a place and a value there."""

    def __init__(self, centres: int, widths: Sequence[int], units: int) -> None:
        super().__init__()
        features = sum(widths) + 1
        self.widths, self.units = tuple(widths), units
        self.nodes, self.edges = nn.Linear(features, units), nn.Linear(features, units)
        self.layers = nn.ModuleList([Messages(units), Messages(units)])
        self.of_node, self.of_state = nn.Linear(units, units, bias=False), nn.Linear(units, units, bias=False)
        self.attention = nn.Linear(units, 1, bias=False)
        self.place, self.value = nn.Linear(units, len(widths)), nn.Linear(units, max(widths))
        self.centres = nn.Embedding(centres, units)
        self.places, self.values = nn.Embedding(len(widths), units), nn.Embedding(max(widths), units)
        self.lstm = nn.LSTMCell(units, units)

    def forward(
        self, graph: tuple[Tensor, Tensor, Tensor], edits: int, rng: torch.Generator
    ) -> tuple[int, list[tuple[int, int]], Tensor, Tensor]:
        """The centre's number, (place, value) of each edit, the decisions' log-likelihood and their entropies' sum."""
        nodes, edges, there = graph
        nodes, edges = self.nodes(nodes), there * self.edges(edges)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, there)
        decisions: list[tuple[int, Tensor, Tensor]] = []

        def decided(logits: Tensor, bound: float) -> int:
            log = (bound * logits.tanh()).log_softmax(-1)
            n = int(torch.multinomial(log.exp().detach(), 1, generator=rng))
            decisions.append((n, log[n], -(log.exp() * log).sum()))
            return n

        h, c = self.lstm(nodes.mean(0, keepdim=True), None)
        query = (self.of_node(nodes) + self.of_state(h)).tanh()
        centre = decided(self.attention(query).flatten(), CENTRE)
        heard, found = self.centres.weight[centre], []
        for _ in range(edits):
            h, c = self.lstm(heard[None], (h, c))
            place = decided(self.place(h)[0], PLACE)
            h, c = self.lstm(self.places.weight[place][None], (h, c))
            value = decided(self.value(h)[0, : self.widths[place]], PLACE)
            heard = self.values.weight[value]
            found.append((place, value))
        likelihood = torch.stack([log for _, log, _ in decisions]).sum()
        return centre, found, likelihood, torch.stack([entropy for *_, entropy in decisions]).sum()


def dsm_nas(queries: int = 100, subspaces: int = 3, edits: int = 4) -> AskTell:
    """DSM-NAS: a controller edits the centres of subspaces."""
    return AskTell("dsm_nas", Mining(subspaces, edits), queries=queries, papers=("chen2024dsmnas",))
