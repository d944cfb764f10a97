"""The grid space for segmentation: nodes at strides 4 to 32 over the layers, joined to their neighbours, an operation chosen in each.

After section 2 of "The devil is in discretization discrepancy" (arXiv 2405.16610), as far as it is known: a non-dense network of short
connections. The operations are those of DCNAS, stem and node existence those of Auto-DeepLab and Dynamic Routing; sizes, head and
gates are our choice among theirs.

How a grid speaks the language of cells: every node of the grid is a `Cell` with one incoming edge per predecessor, whose candidates are
`none` and `connect` (the gate), and one edge from their sum to its output, whose candidates are the operations. All of them are the
edges of the one group "grid", so that a relaxation, a term or a selection sees the whole graph; node n reads into state 2n - 1 and
writes state 2n, the stem writes state 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oche.base import Draw, Group, OpWeights
from oche.errors import UserError
from oche.genotype import Genotype
from oche.spaces.base import BuildEdge, Space
from oche.spaces.edges import Edge, EdgeFactory, WeightedSum
from oche.spaces.networks import Body, Cell, Chosen, Kept, RunCell, Through
from oche.spaces.ops import Zero
from oche.spaces.segmentation import IMAGE, Aspp, Fine, TopDown, align, stem

MBCONVS = tuple(f"mbconv_k{k}_e{e}" for k in (3, 5, 7) for e in (3, 6))
GATE = ("none", "connect")


class Node(NamedTuple):
    """A place in the grid: its layer from 1, its level (stride 4 2^level), and the numbers of the nodes it reads, 0 being the stem."""

    layer: int
    level: int
    sources: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"layer{self.layer}_stride{4 * 2**self.level}"


@dataclass(frozen=True)
class GridSpace(Space):
    """A grid of `layers` layers and `levels` strides 4, 8, ...; a node of stride s has `channels` s/4 channels.

    - A node exists where its stride is at most 4 2^layer. It reads the layer before at half its stride, its own and the double, and
      with `reach` > 1 also its own stride up to `reach` layers back (long-range connections).
    - `ops`: each node's candidates; add `skip_connect` to see degeneration, `..._se` for squeeze-excite.
    - `keep`: how many inputs a node keeps when a discrete network is derived.
    - `stem`: "plain" (three 3x3 convolutions of strides 2, 1, 2) or "separable". `head`: "fine" (top-down, joined with the image at
      every pixel), "topdown" (from stride 4 on by interpolation) or "aspp" (one per stride, summed).
    - `paths`: in steps, each node uses this share of its inputs, drawn anew for every forward and scaled up to keep the mean.
    - `checkpoint`: nodes are computed again in the backward pass instead of kept.

    Images are padded below and to the right to a multiple of the largest stride, outputs cropped to the image.
    """

    task: ClassVar[Literal["classify", "segment"]] = "segment"

    name: str = "grid"
    channels: int = 32
    layers: int = 12
    levels: int = 4
    ops: tuple[str, ...] = MBCONVS
    reach: int = 1
    keep: int = 2
    stem: Literal["plain", "separable"] = "plain"
    head: Literal["fine", "topdown", "aspp"] = "fine"
    paths: float = 1.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.channels, self.layers, self.levels, self.reach, self.keep) < 1 or not self.ops:
            raise UserError(
                "A grid needs at least one channel, layer, level, operation, a reach and a keep of at least 1."
            )
        if not 0 < self.paths <= 1:
            raise UserError(f"paths={self.paths} is no share of the inputs; give a number above 0 and up to 1.")
        if self.sharing != "type":
            raise UserError("The nodes of a grid have alphas of their own already; leave space.sharing out.")

    # ------------------------------------------------------------------ the graph

    def nodes(self) -> tuple[Node, ...]:
        """The nodes, layer by layer from the finest; node n of the edges is `nodes()[n - 1]`."""
        at: dict[tuple[int, int], int] = {(0, 0): 0}
        found: list[Node] = []
        for layer in range(1, self.layers + 1):
            for level in range(min(layer, self.levels - 1) + 1):
                near = [(layer - 1, level + step) for step in (-1, 0, 1)]
                far = [(layer - back, level) for back in range(2, self.reach + 1)]
                at[layer, level] = len(found) + 1
                found.append(Node(layer, level, tuple(at[place] for place in (*near, *far) if place in at)))
        return tuple(found)

    def width(self, level: int) -> int:
        """Channels at stride 4 2^level."""
        return self.channels << level

    @property
    def coarsest(self) -> int:
        """The largest level that has a node."""
        return min(self.layers, self.levels - 1)

    def kinds(self) -> tuple[Group, ...]:
        edges: list[tuple[int, int]] = []
        ops: list[tuple[str, ...]] = []
        for n, node in enumerate(self.nodes(), start=1):
            edges += [(2 * source, 2 * n - 1) for source in node.sources] + [(2 * n - 1, 2 * n)]
            ops += [GATE] * len(node.sources) + [self.ops]
        return (Group("grid", tuple(edges), tuple(ops), self.keep, tuple(node.name for node in self.nodes())),)

    def rows(self) -> dict[str, slice]:
        """Node's name -> its rows of the group: a gate for each source, then the operations."""
        starts = [0]
        for node in self.nodes():
            starts.append(starts[-1] + len(node.sources) + 1)
        return {node.name: slice(*ends) for node, ends in zip(self.nodes(), pairwise(starts), strict=True)}

    def ends(self, group: Group) -> tuple[int, ...]:
        """The outputs of the last layer's nodes."""
        return tuple(2 * n for n, node in enumerate(self.nodes(), start=1) if node.layer == self.layers)

    def spread(self, by_group: Mapping[str, Tensor]) -> OpWeights:
        """Each node's rows of the one matrix."""
        return {name: by_group["grid"][rows] for name, rows in self.rows().items()}

    def used(self, edges: Collection[tuple[int, int]]) -> set[int]:
        """Numbers of the nodes through which something flows from the stem to the last layer, where only these edges are there."""
        nodes, reached, used = self.nodes(), {0}, set[int]()
        for n, node in enumerate(nodes, start=1):
            if (2 * n - 1, 2 * n) in edges and any((2 * s, 2 * n - 1) in edges and s in reached for s in node.sources):
                reached.add(n)
        for n, node in reversed(list(enumerate(nodes, start=1))):
            if n in reached and (node.layer == self.layers or n in used):
                used |= {n, *(s for s in node.sources if (2 * s, 2 * n - 1) in edges and s in reached)}
        return used - {0}

    # ------------------------------------------------------------------ what a space defines

    def mixing(self, group: Group, e: int, edge: EdgeFactory) -> EdgeFactory:
        """Gates multiply all channels, independently of the operations."""
        return WeightedSum() if group.ops[e] == GATE else edge

    def check_inputs(self, genotype: Genotype) -> None:
        """A node may be off, but something must reach the last layer."""
        if not self.used({(c.source, c.target) for c in genotype.groups["grid"] if c.op != "none"}):
            raise UserError(
                "No path of the genotype leads from the stem to the last layer; keep more gates and their nodes' operations."
            )

    def body(self, build: BuildEdge, *, affine: bool) -> GridBody:
        return GridBody(self, build, affine)

    def least_side(self) -> int | None:
        """More than the largest stride, below which the coarsest map has one pixel; None for images that have no more."""
        least = 4 * 2**self.coarsest + 1
        return least if min(self.size) >= least else None

    def notes(self) -> tuple[str, ...]:
        multiple = 4 * 2**self.coarsest
        height, width = (-(-side // multiple) * multiple for side in self.size)
        if (height, width) == self.size:
            return ()
        return (
            f"images of {self.size[0]}x{self.size[1]} are padded to {height}x{width}, a multiple of the largest stride",
        )


class GridCell(Cell):
    """One node: the aligned inputs, each times its gate, summed, then the node's operations. `kept` numbers the inputs it has."""

    def __init__(self, space: GridSpace, n: int, group: Group, edges: Sequence[nn.Module | None], affine: bool) -> None:
        node, inputs = space.nodes()[n - 1], len(edges) - 1
        levels = (0, *(other.level for other in space.nodes()))
        entries = [
            align(space.width(levels[source]), space.width(node.level), node.level - levels[source], affine)
            if edge is not None
            else nn.Identity()
            for source, edge in zip(node.sources, edges[:-1], strict=True)
        ]
        local = (*((i, inputs) for i in range(inputs)), (inputs, inputs + 1))
        super().__init__(entries, Group(node.name, local, group.ops[: len(local)]), edges, concat=False)
        self.number, self.name, self.paths, self.checkpoint = n, node.name, space.paths, space.checkpoint
        self.kept = tuple(i for i in range(inputs) if edges[i] is not None)
        self.sources = tuple(node.sources[i] for i in self.kept)
        self.inputs = inputs

    def forward(self, inputs: Sequence[Tensor], through: Through) -> Tensor:
        """`inputs` are the kept ones, in order."""
        return self._joined(dict(zip(self.kept, inputs, strict=True)), through)

    def mixed(self, inputs: Sequence[Tensor], w: Tensor, draw: Draw) -> Tensor:
        """The node of a supernet, of inputs that are drawn where only some are used."""
        chosen, at = self._drawn(draw), dict(zip(self.kept, inputs, strict=True))
        if not self.checkpoint or not torch.is_grad_enabled():
            return self._mixed([at[i] for i in chosen], chosen, w, draw)
        parameters = dict(
            self.named_parameters()
        )  # as they are now: functional_call may have replaced them for this forward

        def again(parameters: dict[str, Tensor], w: Tensor, *inputs: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(
                _Mixed(self, chosen, draw), {f"cell.{k}": p for k, p in parameters.items()}, (inputs, w)
            )
            return out

        out: Tensor = checkpoint(again, parameters, w, *(at[i] for i in chosen), use_reentrant=False)
        return out

    def _mixed(self, inputs: Sequence[Tensor], chosen: Sequence[int], w: Tensor, draw: Draw) -> Tensor:
        scale = len(self.kept) / len(chosen)

        def through(e: int, edge: nn.Module, h: Tensor) -> Tensor:
            out: Tensor = edge(h, w[e] if e == self.inputs or scale == 1 else scale * w[e], draw)
            return out

        return self._joined(dict(zip(chosen, inputs, strict=True)), through)

    def _joined(self, inputs: Mapping[int, Tensor], through: Through) -> Tensor:
        terms = [through(i, self.edges[f"{i}-{self.inputs}"], self.entries[i](x)) for i, x in inputs.items()]
        return through(self.inputs, self.edges[f"{self.inputs}-{self.inputs + 1}"], sum(terms[1:], terms[0]))

    def _drawn(self, draw: Draw) -> tuple[int, ...]:
        """All inputs, or in a step the share `paths` of them, at least one; the same draw draws the same."""
        count = max(1, round(self.paths * len(self.kept)))
        if count == len(self.kept) or draw.phase == "eval":
            return self.kept
        order = torch.randperm(len(self.kept), generator=draw.generator(f"{self.name}/paths"))[:count]
        return tuple(self.kept[i] for i in sorted(order.tolist()))


class _Mixed(nn.Module):
    """`GridCell._mixed` as the forward of a module, for functional_call."""

    def __init__(self, cell: GridCell, chosen: Sequence[int], draw: Draw) -> None:
        super().__init__()
        self.cell, self.chosen, self.draw = cell, chosen, draw

    def forward(self, inputs: Sequence[Tensor], w: Tensor) -> Tensor:
        return self.cell._mixed(inputs, self.chosen, w, self.draw)


def _carries(edge: nn.Module | None) -> bool:
    """True if an edge is there and has another operation than zeros: `none`, or a candidate that a mask has left out."""
    mixed = edge.mixed if isinstance(edge, Kept) else edge
    return isinstance(mixed, Edge | Chosen) and any(not isinstance(op, Zero) for op in mixed.ops.values())


def head_of(space: GridSpace, widths: Mapping[int, int]) -> Fine | TopDown | Aspp:
    """The head that reads features of these `widths`, by level, and writes the outputs at every pixel."""
    if space.head == "fine":
        return Fine(widths, space.inputs, space.channels, space.outputs)
    if space.head == "topdown":
        return TopDown(widths, 2 * space.channels, space.outputs)
    return Aspp(widths, space.outputs)


class GridBody(Body):
    """stem -> nodes, layer by layer -> head; nodes that nothing flows through are left out."""

    def __init__(self, space: GridSpace, build: BuildEdge, affine: bool) -> None:
        super().__init__()
        (group,), nodes, rows = space.groups, space.nodes(), space.rows()
        levels = [node.level for node in nodes for _ in range(len(node.sources) + 1)]
        modules = [build(group, e, space.width(level), 1) for e, level in enumerate(levels)]
        there = {edge for edge, module in zip(group.edges, modules, strict=True) if _carries(module)}
        used = space.used(there)
        self.multiple = 4 * 2**space.coarsest
        self.stem = stem(space.inputs, space.channels, separable=space.stem == "separable")
        self.cells = nn.ModuleDict()
        for n in sorted(used):
            node = nodes[n - 1]
            *gates, op = modules[rows[node.name]]
            flowing = [
                gate if (s == 0 or s in used) and _carries(gate) else None
                for s, gate in zip(node.sources, gates, strict=True)
            ]
            self.cells[node.name] = GridCell(space, n, group, [*flowing, op], affine)
        self.last = {nodes[n - 1].level: n for n in used if nodes[n - 1].layer == space.layers}
        widths = {level: space.width(level) for level in self.last}
        self.head = head_of(space, widths)

    def forward(self, x: Tensor, run_cell: RunCell) -> tuple[Tensor, dict[str, Tensor]]:
        height, width = x.shape[-2:]
        full = [(side + self.multiple - 1) // self.multiple * self.multiple for side in (height, width)]
        padded = F.pad(x, (0, full[1] - width, 0, full[0] - height))
        states, observed = {0: self.stem(padded)}, dict[str, Tensor]()
        for name, cell in self.cells.items():
            assert isinstance(cell, GridCell)
            states[cell.number] = observed[name] = run_cell(name, cell, [states[source] for source in cell.sources])
        out = self.head({IMAGE: padded, **{level: states[n] for level, n in self.last.items()}})
        if torch.compiler.is_exporting():  # a slice would fix how much is padded
            rows, columns = (torch.arange(side, device=out.device) for side in (height, width))
            return out.index_select(2, rows).index_select(3, columns), observed
        return out[..., :height, :width], observed
