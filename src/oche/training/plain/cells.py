"""A cell of chosen operations, in plain PyTorch. Weights have the names that they have in `oche.spaces.networks.Network`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Choices = Sequence[tuple[int, int, str]] | Sequence[tuple[int, int, str, float]]
"""The edges of a cell: from, to, operation, and its coefficient where an edge keeps a weighted sum of several."""


class Edge(nn.Module):
    """One operation on an edge."""

    def __init__(self, op: str, module: nn.Module) -> None:
        super().__init__()
        self.ops = nn.ModuleDict({op: module})

    def forward(self, x: Tensor) -> Tensor:
        (op,) = self.ops.values()
        out: Tensor = op(x)
        return out


class WeightedEdge(nn.Module):
    """The sum of an edge's operations, each times its coefficient."""

    coefficients: Tensor

    def __init__(self, ops: Mapping[str, nn.Module], coefficients: Sequence[float]) -> None:
        super().__init__()
        self.mixed = nn.ModuleDict({"ops": nn.ModuleDict(ops)})
        self.register_buffer("coefficients", torch.tensor(coefficients))

    def forward(self, x: Tensor) -> Tensor:
        ops = self.mixed["ops"]
        assert isinstance(ops, nn.ModuleDict)
        terms: list[Tensor] = [c * op(x) for c, op in zip(self.coefficients, ops.values(), strict=True)]
        return sum(terms[1:], terms[0])


class Cell(nn.Module):
    """A directed acyclic graph: each node sums its incoming edges; the output is the nodes in `concat`, or the last node.

    `entries` fit the inputs; `build(op, source)` makes the operation of an edge from the node `source`.
    """

    def __init__(
        self,
        entries: Sequence[nn.Module],
        choices: Choices,
        build: Callable[[str, int], nn.Module],
        concat: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.entries, self.edges, self.concat = nn.ModuleList(entries), nn.ModuleDict(), tuple(concat)
        soft: dict[str, dict[str, tuple[nn.Module, float]]] = {}
        for source, target, op, *coefficient in choices:
            key = f"{source}-{target}"
            if coefficient:
                soft.setdefault(key, {})[op] = build(op, source), float(coefficient[0])
                continue
            number = sum(name == key or name.startswith(f"{key}-") for name in self.edges)
            self.edges[key + f"-{number}" * (number > 0)] = Edge(op, build(op, source))
        for key, terms in soft.items():
            self.edges[key] = WeightedEdge({op: m for op, (m, _) in terms.items()}, [c for _, c in terms.values()])

    def forward(self, inputs: Mapping[int, Tensor]) -> Tensor:
        """`inputs` by the number of their entry."""
        states = {i: self.entries[i](x) for i, x in inputs.items()}
        for key, edge in self.edges.items():  # in the order of the nodes that they lead to
            source, target = map(int, key.split("-")[:2])
            out = edge(states[source])
            states[target] = states[target] + out if target in states else out
        return torch.cat([states[node] for node in self.concat], dim=1) if self.concat else states[max(states)]


class Network(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> outputs: normalisation, then `body`."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.body((images - self.mean) / self.std)
        return out
