"""The two networks that a space builds: the supernet with all candidates, and the network of a genotype.

Both hang their edges into the same body (stem, cells, head), so a network's weights have the names they had in the
supernet and can be inherited from it. Architecture parameters live in neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oche.base import Batch, Draw, Group, OpWeights
from oche.spaces.deployed import deployed
from oche.spaces.edges import Among, Edge
from oche.spaces.ops import BatchNorm, Drawn, Zero, run

Through = Callable[[int, nn.Module, Tensor], Tensor]
"""How a cell evaluates one of its edges: (edge number, edge, x) -> output."""

RunCell = Callable[[str, "Cell", Sequence[Tensor]], Tensor]
"""How a body evaluates one of its cells: (cell's name, cell, inputs) -> output."""


class Cell(nn.Module):
    """A directed acyclic graph: each node sums its incoming edges; the output is a concatenation of nodes, or the last.

    The nodes concatenated are all, or those in `outputs`. A node without edges is absent.
    """

    def __init__(
        self,
        entries: Sequence[nn.Module],
        group: Group,
        edges: Sequence[nn.Module | None],
        concat: bool,
        outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.entries = nn.ModuleList(entries)
        keys = _keys(group.edges)
        self.edges = nn.ModuleDict({key: m for key, m in zip(keys, edges, strict=True) if m is not None})
        self.concat = concat
        self._into = [  # target node -> (edge number, source, key) of its edges
            [(e, group.edges[e][0], keys[e]) for e in numbers if edges[e] is not None]
            for target, numbers in sorted(group.into().items())
        ]
        self._outputs = tuple(range(len(entries), len(entries) + len(self._into)) if outputs is None else outputs)

    def numbers(self) -> set[int]:
        """The numbers of the edges that are there."""
        return {e for incoming in self._into for e, _, _ in incoming}

    def mixed(self, inputs: Sequence[Tensor], w: Tensor, draw: Draw) -> Tensor:
        """The cell of a supernet: every edge mixed by its row of the op weights w (E, O), or by all of them where it looks at all."""

        def through(e: int, edge: nn.Module, h: Tensor) -> Tensor:
            out: Tensor = edge.among(h, w, e, draw) if isinstance(edge, Among) else edge(h, w[e], draw)
            return out

        out: Tensor = self(inputs, through)
        return out

    def forward(self, inputs: Sequence[Tensor], through: Through) -> Tensor:
        states = {i: entry(x) for i, (entry, x) in enumerate(zip(self.entries, inputs, strict=True))}
        for target, incoming in enumerate(self._into, start=len(states)):
            if deployed():  # zeros are not added to something
                incoming = [one for one in incoming if not _is_zero(self.edges[one[2]])] or incoming
            terms = [through(e, self.edges[key], states[source]) for e, source, key in incoming]
            if terms:
                states[target] = sum(terms[1:], terms[0])
        return self.output(states)

    def output(self, states: Mapping[int, Tensor]) -> Tensor:
        """What the cell gives of its states: some side by side, or the last."""
        return torch.cat([states[node] for node in self._outputs], dim=1) if self.concat else states[self._outputs[-1]]


def _is_zero(edge: nn.Module) -> bool:
    """True if the one operation of a discrete network's edge is `none`."""
    return isinstance(edge, Chosen) and all(isinstance(op, Zero) for op in edge.ops.values())


def _keys(edges: Sequence[tuple[int, int]]) -> list[str]:
    """A name for each edge: "0-2", and "0-2-1" for a second one between the same nodes."""
    counts: Counter[tuple[int, int]] = Counter()
    keys = []
    for source, target in edges:
        number = counts[source, target]
        keys.append(f"{source}-{target}" + f"-{number}" * (number > 0))
        counts[source, target] += 1
    return keys


class Body(nn.Module, ABC):
    """Stem, cells and head. `cells` holds the cells by name.

    `serial`: all that a cell passes on comes from one edge, so that drop path drops what the edge adds to its input, not its output.
    """

    cells: nn.ModuleDict
    serial: ClassVar[bool] = False

    @abstractmethod
    def forward(self, x: Tensor, run_cell: RunCell) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, C, H, W) -> outputs (B, classes) and every cell's output by the cell's name."""


class Supernet(nn.Module):
    """All candidates at once: `supernet(x, op_weights, draw) -> (outputs, observed)`.

    Batch norm uses batch statistics and keeps none, so a forward pass leaves no trace; each `nn.BatchNorm2d` becomes an `ops.BatchNorm`.
    `observed` holds each cell's output.
    With `recompute` a cell keeps nothing for its backward pass but its inputs, and runs again when that pass comes to it.
    """

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.recompute = body, False
        for name, module in self.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = BatchNorm
            if isinstance(module, Drawn):
                module.path = name

    def forward(self, x: Tensor, op_weights: OpWeights, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        def run_cell(name: str, cell: Cell, inputs: Sequence[Tensor]) -> Tensor:
            if self.recompute and torch.is_grad_enabled():
                return _recomputed(cell, inputs, op_weights[name], draw)
            return cell.mixed(inputs, op_weights[name], draw)

        outputs, observed = self.body(x, run_cell)
        return outputs, observed


class _Mixed(nn.Module):
    """A cell whose call is `mixed`, so that `functional_call` can give it weights."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, inputs: Sequence[Tensor], w: Tensor, draw: Draw) -> Tensor:
        return self.cell.mixed(inputs, w, draw)


def _recomputed(cell: Cell, inputs: Sequence[Tensor], w: Tensor, draw: Draw) -> Tensor:
    """`cell.mixed` under activation checkpointing. Randomness is counted, so the second run draws what the first drew.

    The weights are arguments: when the cell runs again, `functional_call` has put the supernet's own back.
    """
    held = dict([*cell.named_parameters(), *cell.named_buffers()])
    module, names = _Mixed(cell), [f"cell.{name}" for name in held]

    def again(w: Tensor, *tensors: Tensor) -> Tensor:
        weights = dict(zip(names, tensors[len(inputs) :], strict=True))
        out: Tensor = torch.func.functional_call(module, weights, (tensors[: len(inputs)], w, draw))
        return out

    out: Tensor = checkpoint(again, w, *inputs, *held.values(), use_reentrant=False, preserve_rng_state=False)
    return out


class Chosen(nn.Module):
    """One operation on an edge of a discrete network."""

    def __init__(self, op: str, module: nn.Module) -> None:
        super().__init__()
        self.ops = nn.ModuleDict({op: module})

    def forward(self, x: Tensor, draw: Draw | None) -> Tensor:
        (op,) = self.ops.values()
        return run(op, x, draw)


class Kept(nn.Module):
    """A supernet's edge with its op weights frozen into it, for genotypes that keep soft coefficients."""

    coefficients: Tensor

    def __init__(self, mixed: Edge, coefficients: Sequence[float]) -> None:
        super().__init__()
        self.mixed = mixed
        self.register_buffer("coefficients", torch.tensor(coefficients))

    def forward(self, x: Tensor, draw: Draw | None) -> Tensor:
        out: Tensor = self.mixed(x, self.coefficients, draw)
        return out


class Paths(NamedTuple):
    """How a network's cell evaluates its edges: `factors` by edge multiply the outputs (B, 1, 1, 1), never that of an identity.

    In a `serial` body they multiply what an edge adds to its input, where the shapes are the same.
    """

    draw: Draw | None
    factors: Mapping[int, Tensor]
    serial: bool

    def __call__(self, e: int, edge: nn.Module, h: Tensor) -> Tensor:
        out: Tensor = edge(h, self.draw)
        if not self.factors or out is h:
            return out
        factor = self.factors[e].to(out.dtype)
        if self.serial:
            return h + (out - h) * factor if out.shape == h.shape else out
        return out * factor


class Network(nn.Module):
    """The chosen network alone, with running statistics: a plain module, `network(x) -> outputs`.

    Training goes through `heads`, which adds drop path and the auxiliary head.
    """

    def __init__(self, body: Body, auxiliary: tuple[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.body = body
        self.auxiliary_cell = auxiliary[0] if auxiliary else ""
        self.auxiliary = auxiliary[1] if auxiliary else None

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.heads(x)
        return outputs

    def heads(self, x: Tensor, draw: Draw | None = None, drop_path: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Outputs and auxiliary outputs (None without that head, or in eval mode).

        `drop_path` is the probability with which an image loses one edge's output, never that of an identity (DARTS).
        """

        return self.trunk(x, draw, self.drops(x, draw, drop_path))

    def drops(self, x: Tensor, draw: Draw | None, drop_path: float) -> dict[str, Tensor]:
        """ "cell/edge" -> what multiplies the edge's output, (B, 1, 1, 1): 0 or 1 / (1 - drop_path). Empty where nothing is dropped."""
        if drop_path == 0.0 or draw is None:
            return {}
        kept = {}
        for name, cell in self.body.cells.items():
            assert isinstance(cell, Cell)
            for e in sorted(cell.numbers()):
                key = f"{name}/{e}"
                noise = draw.part.drawn(torch.rand, (len(x), 1, 1, 1), draw.generator(key, x.device))
                kept[key] = (noise >= drop_path) / (1 - drop_path)
        return kept

    def trunk(self, x: Tensor, draw: Draw | None, kept: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """`heads` with what `drops` returned: tensors in, tensors out, which is what `torch.compile` can take whole."""

        def run_cell(name: str, cell: Cell, inputs: Sequence[Tensor]) -> Tensor:
            factors = {e: kept[f"{name}/{e}"] for e in cell.numbers()} if kept else {}
            out: Tensor = cell(inputs, Paths(draw, factors, self.body.serial))
            return out

        outputs, observed = self.body(x, run_cell)
        use = self.auxiliary is not None and self.training
        return outputs, self.auxiliary(observed[self.auxiliary_cell]) if use and self.auxiliary is not None else None


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Sets every batch norm's running statistics to the plain average over `batches` (instead of an exponential one)."""
    norms = [
        module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
    was_training = network.training
    network.train()
    for batch in batches:
        network(batch.images)
    network.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
