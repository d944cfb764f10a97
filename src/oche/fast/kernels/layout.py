"""The units into which a cell of depthwise candidates is divided for the compiled kernels: `layout`, or why it cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from oche.fast.portable.mixed import of_batch
from oche.spaces.edges import _Partial, _Sum
from oche.spaces.networks import Cell
from oche.spaces.ops import FactorizedReduce, Noise, PoolBN, Zero

SEP, DIL, MAXPOOL, AVGPOOL, SKIP, HALVE, EXTRA = range(7)


@dataclass(frozen=True)
class Unit:
    """One candidate of one edge: what it is, where it stands, and the modules whose parameters it reads when called."""

    kind: int
    source: int
    target: int
    edge: int
    column: int
    stride: int | None  # None: fits any
    kernel: int = 0
    depthwise: tuple[nn.Conv2d, ...] = ()
    pointwise: tuple[nn.Conv2d, ...] = ()
    norms: tuple[nn.BatchNorm2d, ...] = ()
    noise: Noise | None = None


@dataclass(frozen=True)
class Layout:
    """A cell's units and what all of them agree on."""

    units: tuple[Unit, ...]
    inputs: int
    nodes: int
    stride: int
    width: int  # O, the number of columns of the op weights
    eps: float
    affine: bool
    concat: bool
    edges: tuple[tuple[int, int, int], ...]  # number, source, target
    share: int = 1  # 1/share of the channels go through the units (`oche.fast.kernels.partial`)
    plans: dict[object, tuple[Tensor, tuple[int, ...]]] = field(
        default_factory=dict, compare=False, repr=False
    )  # made so far


def layout(cell: Cell) -> Layout | str:
    """The cell as the kernels see it, or the reason why they cannot."""
    units: list[Unit] = []
    edges: list[tuple[int, int, int]] = []
    targets, strides = 0, {True: set[int](), False: set[int]()}
    for incoming in cell._into:
        for e, source, key in incoming:
            edge = cell.edges[key]
            assert isinstance(edge, _Sum | _Partial)
            edges.append((e, source, len(cell.entries) + targets))
            if isinstance(edge, _Partial):
                strides[source < len(cell.entries)].add(edge.stride)
            for o, (name, op) in enumerate(edge.ops.items()):
                if isinstance(op, Zero):
                    continue
                unit = _unit(op)
                if unit is None:
                    return f"operation {name}"
                units.append(replace(unit, source=source, target=len(cell.entries) + targets, edge=e, column=o))
        targets += 1
    inputs = len(cell.entries)
    halving = strides[True] | {unit.stride for unit in units if unit.source < inputs} - {None}
    inner = strides[False] | {unit.stride for unit in units if unit.source >= inputs} - {None}
    norms = [norm for unit in units for norm in unit.norms]
    stride = halving.pop() if halving else 1
    if (
        halving
        or inner - {1}
        or stride not in (1, 2)
        or (stride > 1 and any(u.kind == SKIP and u.source < inputs for u in units))
    ):
        return "strides that differ within the cell"
    if len({norm.eps for norm in norms}) > 1 or len({norm.affine for norm in norms}) > 1:
        return "batch norms that differ within the cell"
    if not any(unit.depthwise for unit in units):
        return "no depthwise candidates"
    assert stride is not None
    affine = bool(norms) and norms[0].affine
    mixed = [edge for edge in cell.edges.values() if isinstance(edge, _Sum | _Partial)]
    width, share = max(len(edge.ops) for edge in mixed), mixed[0].share if isinstance(mixed[0], _Partial) else 1
    eps = norms[0].eps if norms else 1e-5
    return Layout(tuple(units), inputs, targets, stride, width, eps, affine, cell.concat, tuple(edges), share)


def _unit(op: nn.Module) -> Unit | None:
    """Returns the kind of unit that an operation is, or None."""
    norm: tuple[nn.BatchNorm2d, ...] = ()
    if isinstance(op, PoolBN):
        if not of_batch(op.norm):
            return None
        norm, op = (op.norm,), op.pool
    blank = Unit(SKIP, 0, 0, 0, 0, 1, norms=norm)
    if isinstance(op, nn.MaxPool2d) and (op.kernel_size, op.padding, op.dilation, op.ceil_mode) == (3, 1, 1, False):
        return replace(blank, kind=MAXPOOL, stride=op.stride) if isinstance(op.stride, int) else None
    if isinstance(op, nn.AvgPool2d) and (op.kernel_size, op.padding, op.count_include_pad) == (3, 1, False):
        if op.ceil_mode or op.divisor_override or not isinstance(op.stride, int):
            return None
        return replace(blank, kind=AVGPOOL, stride=op.stride)
    if isinstance(op, nn.Identity):
        return blank
    if isinstance(op, Noise):
        return replace(blank, kind=EXTRA, stride=op.stride, noise=op)
    if isinstance(op, FactorizedReduce) and of_batch(op.norm):
        return replace(blank, kind=HALVE, stride=2, pointwise=(op.even, op.odd), norms=(op.norm,))
    if isinstance(op, nn.Sequential):
        return _separable(op, blank)
    return None


def _separable(op: nn.Sequential, blank: Unit) -> Unit | None:
    """`blank` with what a separable or dilated convolution has, or None where it is none that the kernels know."""
    if len(op) not in (4, 8):
        return None
    modules = list(op)
    depthwise, pointwise, norms = [], [], []
    for start in range(0, len(modules), 4):
        relu, d, p, norm = modules[start : start + 4]
        if not (isinstance(relu, nn.ReLU) and isinstance(d, nn.Conv2d) and isinstance(p, nn.Conv2d) and of_batch(norm)):
            return None
        k, dilation = d.kernel_size[0], d.dilation[0]
        square = all(len(set(pair)) == 1 for pair in (d.kernel_size, d.stride, d.dilation))
        if not square or not d.groups == d.in_channels == d.out_channels or d.padding != (dilation * (k // 2),) * 2:
            return None
        if (
            (p.kernel_size, p.stride, p.groups, p.padding) != ((1, 1), (1, 1), 1, (0, 0))
            or d.bias is not None
            or p.bias is not None
        ):
            return None
        depthwise.append(d)
        pointwise.append(p)
        norms.append(norm)
    k, dilation, stride = depthwise[0].kernel_size[0], depthwise[0].dilation[0], depthwise[0].stride[0]
    alike = all(d.kernel_size[0] == k and d.stride[0] == 1 and d.dilation[0] == 1 for d in depthwise[1:])
    fits = (dilation == 1 and k in (3, 5, 7)) if len(depthwise) == 2 else (dilation == 2 and k in (3, 5))
    if not alike or not fits:
        return None
    return replace(
        blank,
        kind=SEP if len(depthwise) == 2 else DIL,
        stride=stride,
        kernel=k,
        depthwise=tuple(depthwise),
        pointwise=tuple(pointwise),
        norms=tuple(norms),
    )
