"""A search space: the groups of cells that share alpha, their candidates, and the body that cells hang in.

What it builds of them, supernet and network, is in `networks.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from oche.base import Batch, Group, OpWeights, Params
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.spaces.blocks import SIGNAL_BLOCKS
from oche.spaces.edges import EDGES, TRAINED, EdgeFactory, plain_name
from oche.spaces.networks import Body, Chosen, Kept, Network, Supernet, estimate_statistics
from oche.spaces.ops import OPS, TWO_DIMENSIONAL, PoolBN, Zero

BOUND = ("name", "inputs", "outputs", "size", "density")
"""Fields of a space that the data decide, besides its name: no settings."""

BuildEdge = Callable[[Group, int, int, int], nn.Module | None]
"""(group, edge number, channels, stride) -> the edge's module, or None where the genotype leaves the edge out."""


@dataclass(frozen=True)
class Space(ABC):
    """A search space bound to its input and output: `inputs` image channels of `size` (H, W) pixels, `outputs` classes.

    `without` names candidates that are left out on every edge, where there are any (DARTS without `none`).
    `task` says what its networks do: "classify" gives outputs (B, classes), "segment" (B, classes, H, W).
    `flat` spaces are for signals: images of height 1, along whose width all kernels lie.
    `density` is the grid (rows, columns) of places that objects are counted in: outputs are as many numbers; None for all other tasks.
    """

    task: ClassVar[Literal["classify", "segment"]] = "classify"
    flat: ClassVar[bool] = False

    name: str = "space"
    inputs: int = 3
    outputs: int = 10
    size: tuple[int, int] = (32, 32)
    sharing: Literal["type", "cell"] = "type"
    without: tuple[str, ...] = ()
    density: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.flat and self.size[1] < 8:
            raise UserError(f"Signals have {self.size[1]} values; a search needs at least 8: give longer ones.")
        if min(self.size) < 8 and not self.flat:
            raise UserError(
                f"Images are {self.size[0]}x{self.size[1]}; a search needs at least 8x8: choose a larger size."
            )
        held = {op for group in self.kinds() for ops in group.ops for op in ops}
        for op in held.union(set(self.without) - set(OPS)) - set(
            self.known
        ):  # a method may leave out what is in other spaces
            raise unknown("operation", op, self.known)
        if foreign := [op for op in sorted(held) if op in (TWO_DIMENSIONAL if self.flat else SIGNAL_BLOCKS)]:
            theirs, ours = ("images", "signals") if self.flat else ("signals", "images")
            raise UserError(
                f"{foreign[0]} is an operation for {theirs}, and {self.name} a space for {ours}: leave it out."
            )
        if any(set(ops) <= set(self.without) for group in self.kinds() for ops in group.ops):
            raise UserError(
                f"Without {', '.join(self.without)} an edge of {self.name} has no operation left; leave out fewer."
            )

    @property
    def known(self) -> Collection[str]:
        """The operations that the space's edges may have."""
        return OPS

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
