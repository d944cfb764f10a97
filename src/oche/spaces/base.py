"""Search spaces and the two networks they build: the supernet with all candidates, and the network of a genotype.

Both hang their edges into the same body (stem, cells, head), so a network's weights have the names they had in the
supernet and can be inherited from it. Architecture parameters live in neither.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oche.base import Batch, Draw, Group, OpWeights, Params
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.spaces.deployed import deployed
from oche.spaces.edges import EDGES, TRAINED, Edge, EdgeFactory, plain_name
from oche.spaces.ops import OPS, BatchNorm, Drawn, PoolBN, Zero, run

Through = Callable[[int, nn.Module, Tensor], Tensor]
"""How a cell evaluates one of its edges: (edge number, edge, x) -> output."""

RunCell = Callable[[str, "Cell", Sequence[Tensor]], Tensor]
"""How a body evaluates one of its cells: (cell's name, cell, inputs) -> output."""

BuildEdge = Callable[[Group, int, int, int], nn.Module | None]
"""(group, edge number, channels, stride) -> the edge's module, or None where the genotype leaves the edge out."""


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
        """The cell of a supernet: every edge mixed by its row of the op weights w (E, O)."""
        out: Tensor = self(inputs, lambda e, edge, h: edge(h, w[e], draw))
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


@dataclass(frozen=True)
class Space(ABC):
    """A search space bound to its input and output: `inputs` image channels of `size` (H, W) pixels, `outputs` classes.

    `without` names candidates that are left out on every edge, where there are any (DARTS without `none`).
    `task` says what its networks do: "classify" gives outputs (B, classes), "segment" (B, classes, H, W).
    """

    task: ClassVar[Literal["classify", "segment"]] = "classify"

    name: str = "space"
    inputs: int = 3
    outputs: int = 10
    size: tuple[int, int] = (32, 32)
    sharing: Literal["type", "cell"] = "type"
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.size) < 8:
            raise UserError(
                f"Images are {self.size[0]}x{self.size[1]}; a search needs at least 8x8: choose a larger size."
            )
        for op in {op for group in self.kinds() for ops in group.ops for op in ops}.union(self.without) - set(OPS):
            raise unknown("operation", op, OPS)
        if any(set(ops) <= set(self.without) for group in self.kinds() for ops in group.ops):
            raise UserError(
                f"Without {', '.join(self.without)} an edge of {self.name} has no operation left; leave out fewer."
            )

    # ------------------------------------------------------------------ what a space defines

    @abstractmethod
    def kinds(self) -> tuple[Group, ...]:
        """The kinds of cell, each with the names of its cells in the order they are passed."""

    @abstractmethod
    def body(self, build: BuildEdge, *, affine: bool) -> Body:
        """Stem, cells and head, the cells' edges from `build`; `affine` for the batch norms inside cells."""

    def mixing(self, group: Group, e: int, edge: EdgeFactory) -> EdgeFactory:
        """Returns the edge type of edge e of a group, where the method's or the genotype's is `edge`."""
        return edge

    def candidate(self, op: str, channels: int, stride: int, affine: bool) -> nn.Module:
        """A candidate of the supernet."""
        return OPS[op](channels, stride, affine)

    def operation(
        self, group: Group, e: int, op: str, channels: int, stride: int, affine: bool, *, alone: bool
    ) -> nn.Module:
        """An operation on edge e of a group: a candidate of the supernet, or `alone` on the edge of a discrete network."""
        return OPS[op](channels, stride, affine) if alone else self.candidate(op, channels, stride, affine)

    def auxiliary(self) -> tuple[str, nn.Module] | None:
        """(cell whose output it reads, head) for training, or None where the images are too small or the space has none."""
        return None

    def least_side(self) -> int | None:
        """The least height and width of images that an exported network takes, or None where it takes those of `size` alone."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Sentences for the preflight: what was scaled or switched off to fit the images."""
        return ()

    # ------------------------------------------------------------------ what follows from it

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of cells that share alpha: all cells of a kind, or each cell by itself (`sharing="cell"`, D-DARTS)."""
        kinds = self.kinds()
        if self.without:
            kinds = tuple(
                replace(k, ops=tuple(tuple(o for o in ops if o not in self.without) for ops in k.ops)) for k in kinds
            )
        if self.sharing == "type":
            return kinds
        return tuple(replace(kind, name=cell, cells=(cell,)) for kind in kinds for cell in kind.cells)

    def cell_groups(self) -> dict[str, Group]:
        """Cell's name -> its group."""
        return {cell: group for group in self.groups for cell in group.cells}

    def cardinality(self) -> int:
        """The number of genotypes that can be derived: `keep` edges per node with one op other than `none` each, or one op per edge."""
        return math.prod(_derivable(group) for group in self.groups)

    def ends(self, group: Group) -> tuple[int, ...]:
        """The states of which at least one must be reached from an input, or the network outputs a constant."""
        return (max(target for _, target in group.edges),)

    def spread(self, by_group: Mapping[str, Tensor]) -> OpWeights:
        """Ties cells to groups: {group: (E, O)} -> {cell: (E, O)}."""
        return {cell: by_group[group.name] for group in self.groups for cell in group.cells}

    def supernet(self, edge: EdgeFactory, *, affine: bool, mask: Mapping[str, Tensor] | None = None) -> Supernet:
        """All candidates on all edges, mixed by `edge`. Those that the mask {group: (E, O) bool} leaves out are zeros without weights."""
        left_out = {name: ~there.cpu() for name, there in (mask or {}).items()}

        def build(group: Group, e: int, channels: int, stride: int) -> nn.Module:
            def candidate(op: str, width: int) -> nn.Module:
                if group.name in left_out and left_out[group.name][e, group.ops[e].index(op)]:
                    return Zero(stride)
                return self.operation(group, e, op, width, stride, affine, alone=False)

            return self.mixing(group, e, edge)(group.ops[e], channels, stride, candidate)

        return Supernet(self.body(build, affine=affine))

    def network(self, genotype: Genotype, *, auxiliary: bool = False) -> Network:
        """The chosen network alone, all batch norms affine with running statistics. Raises UserError for a foreign genotype."""
        fitted = self.fitted(genotype)
        if fitted != self:
            return fitted.network(genotype, auxiliary=auxiliary)
        self.check(genotype)

        parallel = any(len(set(group.edges)) < len(group.edges) for group in self.groups)

        def build(group: Group, e: int, channels: int, stride: int) -> nn.Module | None:
            chosen = [c for c in genotype.groups[group.name] if (c.source, c.target) == group.edges[e]]
            if parallel:
                number = group.edges[:e].count(group.edges[e])
                chosen = chosen[number : number + 1]
            if not chosen:
                return None
            if parallel or (genotype.discrete and genotype.edge not in TRAINED):
                op = chosen[0].op
                return Chosen(op, self.operation(group, e, op, channels, stride, True, alone=True))

            def candidate(op: str, width: int) -> nn.Module:
                return self.operation(group, e, op, width, stride, True, alone=False)

            edge = self.mixing(group, e, EDGES[genotype.edge](**genotype.edge_args))
            mixed = edge([c.op for c in chosen], channels, stride, candidate)
            return Kept(mixed, [c.coefficient for c in chosen])

        return Network(self.body(build, affine=True), self.auxiliary() if auxiliary else None)

    def check(self, genotype: Genotype) -> None:
        """Raises UserError, with the first reason, where a genotype is not one of this space."""
        fitted = self.fitted(genotype)
        if fitted != self:
            return fitted.check(genotype)
        if genotype.space != self.name or genotype.sharing != self.sharing:
            raise UserError(
                f"The genotype is of the space {genotype.space!r} (sharing {genotype.sharing!r}), not of {self.name!r} "
                f"(sharing {self.sharing!r}): name its own space with `--space {genotype.space}`."
            )
        if genotype.edge not in EDGES:
            raise unknown("edge type", genotype.edge, EDGES)
        groups = {group.name: group for group in self.groups}
        if set(groups) != set(genotype.groups):
            raise UserError(
                f"The genotype has the cells {sorted(genotype.groups)}; the space {self.name!r} has {sorted(groups)}."
            )
        for name, choices in genotype.groups.items():
            allowed = dict(zip(groups[name].edges, groups[name].ops, strict=True))
            for c in choices:
                if c.op not in allowed.get((c.source, c.target), ()):
                    raise UserError(
                        f"{c.op!r} on the edge {c.source}->{c.target} of cell {name!r} is no candidate of the space {self.name!r}, "
                        f"which has {', '.join(allowed.get((c.source, c.target), ('no such edge',)))} there."
                    )
        self.check_inputs(genotype)

    def fitted(self, genotype: Genotype) -> Space:
        """The space whose network the genotype is: this one, or for published cells one with the nodes and operations that they have."""
        return self

    def check_inputs(self, genotype: Genotype) -> None:
        """Raises UserError where nodes that need an input have none, or where outputs are named that a cell does not have."""
        if genotype.concat:
            raise UserError(
                f"The genotype says which nodes its cells concatenate, which cells of the space {self.name!r} cannot choose."
            )
        for group in self.groups:
            if {c.target for c in genotype.groups[group.name]} != set(group.into()):
                raise UserError(
                    f"Cell {group.name!r} of the genotype leaves a node without input; every node needs at least one edge."
                )

    @torch.no_grad()
    def inherit(self, network: nn.Module, theta: Params, batches: Iterable[Batch]) -> None:
        """Copies the supernet's weights theta into a network of this space and re-estimates its running statistics on `batches`.

        A batch norm without affine weights in the supernet keeps 1 and 0; the batch norm of a supernet's pool has no place in a
        discrete network and is left out. Raises UserError where the widths differ (a discrete network of a partial-channel search).
        """
        known = {plain_name(name): t for name, t in theta.items()}
        for name, own in network.named_parameters():
            source = known.get(plain_name(name))
            if source is not None and source.shape == own.shape:
                own.copy_(source)
            elif source is not None:
                raise UserError(
                    f"{name} has shape {tuple(own.shape)}, the supernet's {tuple(source.shape)}: these weights cannot be inherited "
                    "(a partial-channel supernet's operations are narrower than the network's); train from scratch instead."
                )
        estimate_statistics(network, batches)


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


def _derivable(group: Group) -> int:
    if group.keep is None:
        return math.prod(len(ops) for ops in group.ops)
    total = 1
    for numbers in group.into().values():
        ways = [1] + [0] * group.keep  # elementary symmetric polynomials of the edges' op counts
        for e in numbers:
            n = sum(op != "none" for op in group.ops[e])
            ways = [1] + [ways[k] + n * ways[k - 1] for k in range(1, group.keep + 1)]
        total *= ways[min(group.keep, len(numbers))]
    return total


def with_pool_norm(op: str, channels: int, stride: int, affine: bool) -> nn.Module:
    """A candidate as DARTS supernets have it: a batch norm behind every pool."""
    module = OPS[op](channels, stride, affine)
    return PoolBN(module, channels, affine) if "pool" in op else module
