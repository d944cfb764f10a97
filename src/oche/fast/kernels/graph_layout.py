"""Finds in a network's cell what the kernels that run it as one operator know: states and what leads from one to another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from torch import nn

from oche.fast.kernels.chains import Chain, Stage, segments
from oche.spaces.networks import Cell, Chosen
from oche.spaces.ops import ReLUConvBN, Zero


class Pool(NamedTuple):
    """A pool of a state."""

    source: int
    average: int
    kernel: int
    stride: int


@dataclass(frozen=True)
class Link:
    """What leads from one state to another: a chain of stages, or the pool of a number, or with neither the state itself.

    `edge` is the cell's edge whose factor multiplies it, or -1.
    """

    source: int
    target: int
    edge: int = -1
    chain: Chain = ()
    pool: int = -1


@dataclass(frozen=True)
class GraphLayout:
    """A cell as the kernels see it: states are entries' inputs or outputs, then outputs of edges run outside, then nodes."""

    inside: tuple[bool, ...]  # by entry: part of the operator
    outside: tuple[tuple[int, int, str], ...]  # (edge, source, key)
    links: tuple[Link, ...]
    pools: tuple[Pool, ...]
    states: int
    outputs: tuple[int, ...]
    concat: bool

    @property
    def inputs(self) -> int:
        """The number of states that are given."""
        return len(self.inside) + len(self.outside)

    @cached_property
    def kept(self) -> frozenset[int]:
        """The states that are stored: not those that are given or that nothing reads, nor a chain's end, read through its batch norm.

        A pool reads what is stored.
        """
        pooled = {pool.source for pool in self.pools}
        into = [[link for link in self.links if link.target == j] for j in range(self.states)]
        ends = {
            j
            for j, (first, *more) in enumerate(filter(None, into), self.inputs)
            if first.chain and first.edge < 0 and not more
        }
        read = {link.source for link in self.links} - (ends - pooled - set(self.outputs))
        return frozenset(j for j in read if j >= self.inputs and (self.concat or j not in self.outputs))

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages of all chains."""
        return [stage for link in self.links for stage in link.chain]


def graph_layout(cell: Cell) -> GraphLayout | None:
    """The cell of a network as the kernels see it, or None where they cannot."""
    entries = [_chain(entry) for entry in cell.entries]
    found: list[Link] = []
    outside: list[tuple[int, int, str]] = []
    pools: list[Pool] = []
    for target, incoming in enumerate(cell._into, len(entries)):
        for e, source, key in incoming:
            edge = cell.edges[key]
            assert isinstance(edge, Chosen)
            (op,) = edge.ops.values()
            pool = _pool(op, source)
            link = Link(source, target, e, _chain(op))
            if isinstance(op, Zero) and len(incoming) > 1:
                continue
            if isinstance(op, nn.Identity):
                link = replace(link, edge=-1)
            elif pool is not None:
                pools += [] if pool in pools else [pool]
                link = replace(link, pool=pools.index(pool))
            elif not link.chain:
                if source >= len(entries):
                    return None
                entries[source] = ()  # it is needed outside
                link = replace(link, source=-1 - len(outside))
                outside.append((e, source, key))
            found.append(link)
    return _numbered(cell, entries, tuple(outside), pools, found)


def _numbered(
    cell: Cell, entries: list[Chain], outside: tuple[tuple[int, int, str], ...], pools: list[Pool], found: list[Link]
) -> GraphLayout | None:
    """The layout, with states numbered as the kernels have them; None where a node leads nowhere, or nothing is gained."""
    inputs, numbers, first = len(entries) + len(outside), dict[int, int](), list[Link]()
    numbers |= {-1 - i: len(entries) + i for i in range(len(outside))}
    count = inputs
    for i, chain in enumerate(entries):
        numbers[i] = i
        if chain:
            numbers[i] = count
            first.append(Link(i, count, chain=chain))
            count += 1
    for node in sorted({link.target for link in found}):
        numbers[node] = count
        count += 1
    if any(n not in numbers for n in cell._outputs) or any(link.source not in numbers for link in found):
        return None
    links = [*first, *(replace(t, source=numbers[t.source], target=numbers[t.target]) for t in found)]
    outputs = tuple(numbers[n] for n in (cell._outputs if cell.concat else cell._outputs[-1:]))
    read = {link.source for link in links} | set(outputs)
    used = {link.pool for link in links}
    if any(n not in read for n in range(inputs, count)) or len(set(outputs)) < len(outputs) or min(outputs) < inputs:
        return None
    if not any(link.chain for link in links) or len(used - {-1}) < len(pools):
        return None
    placed = tuple(pool._replace(source=numbers[pool.source]) for pool in pools)
    return GraphLayout(tuple(map(bool, entries)), outside, tuple(links), placed, count, outputs, cell.concat)


def _chain(module: nn.Module) -> Chain:
    """The chain of depthwise and 1x1 convolutions that the module is, or none."""
    if type(module) not in (nn.Sequential, ReLUConvBN):
        return ()
    parts = segments(list(module.children()))
    chain = parts[0] if len(parts) == 1 and isinstance(parts[0], tuple) else ()
    return () if any(stage.wide for stage in chain) else chain


def _pool(op: nn.Module, source: int) -> Pool | None:
    """The pool of a state that the operation is, or None."""
    if type(op) not in (nn.MaxPool2d, nn.AvgPool2d):
        return None
    k, stride, pad = op.kernel_size, op.stride, op.padding
    if not (isinstance(k, int) and isinstance(stride, int)) or k % 2 == 0 or pad != k // 2 or op.ceil_mode:
        return None
    if isinstance(op, nn.AvgPool2d):
        return None if op.count_include_pad or op.divisor_override else Pool(source, 1, k, stride)
    return Pool(source, 0, k, stride) if op.dilation == 1 and not op.return_indices else None
