"""Runs chains of depthwise and 1x1 convolutions with batch norms of a network that learns, and the sums that they end in.

A stage is an activation phi, a depthwise convolution D, a 1x1 convolution P (one of the two may be missing) and a batch norm, whose
normalisation is left to the next stage's load or to the sum. Notation: x what a stage reads, y what it leaves, g and s the batch norm's
scale and shift, m and r = 1/sqrt(var + eps) over the M images and pixels, f a number per image (drop path). Forward:

    y = P (D * phi(a x + b))            a = g r, b = s - a m of the batch norm before; 1 and 0 in a chain's first stage
    out = sum_t f_t (a_t y_t + b_t)     the node's terms: chains' last y, or tensors as they are (a = 1, b = 0)

Backward, with G the gradient of what the batch norm gives (f dout behind a chain's last stage):

    r1 = sum G, q = (sum G y - m r1) r; dg = q, ds = r1
    dy = a G - a (r1 - q m r)/M - (a q r/M) y     one affine map per channel, made as it is loaded
    dz = P^T dy, dx = phi'(a x + b) (flipped D * dz), dP = z^T dy, dD[tap] = sum dz phi(a x + b)

Kept for the backward: x and each y. Between them, nothing is stored: z = D * phi(a x + b) is computed again, image by image.
Any number of channels is taken without padding (`flat.h`). There is no second derivative: autograd says so where one is asked for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from oche.fast.backends.buffers import shared
from oche.fast.backends.library import invoke

ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2}


@dataclass(frozen=True)
class Stage:
    """An activation (0: none, 1: ReLU, 2: ReLU6), one or two convolutions, a batch norm; `modules` has all of them."""

    activation: int
    depthwise: nn.Conv2d | None
    pointwise: nn.Conv2d | None
    norm: nn.BatchNorm2d
    modules: tuple[nn.Module, ...]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of what it leaves."""
        stride = 1 if self.depthwise is None else self.depthwise.stride[0]
        return -(-height // stride), -(-width // stride)

    def weights(self) -> list[Tensor]:
        """Its parameters, in the order in which `node` takes them."""
        convs = [conv.weight for conv in (self.depthwise, self.pointwise) if conv is not None]
        return [*convs, self.norm.weight, self.norm.bias]


Chain = tuple[Stage, ...]


class Term(NamedTuple):
    """What is summed into a node: a chain on a source, or with an empty chain the source itself; `factor` (B,) multiplies it."""

    source: Tensor
    chain: Chain = ()
    factor: Tensor | None = None


def segments(modules: Sequence[nn.Module]) -> list[Chain | nn.Module]:
    """The modules of a sequence in their order, those that make up a chain as one."""
    found: list[Chain | nn.Module] = []
    rest = [module for module in modules if type(module) is not nn.Identity]
    while rest:
        stage = _stage(rest)
        if stage is None:
            found.append(rest.pop(0))
            continue
        del rest[: len(stage.modules)]
        before = found[-1] if found else None
        if isinstance(before, tuple):
            found[-1] = (*before, stage)
        else:
            found.append((stage,))
    return found


def _stage(modules: Sequence[nn.Module]) -> Stage | None:
    """The stage that the sequence begins with, or None."""
    rest = list(modules)
    activation = ACTIVATIONS.get(type(rest[0]), 0)
    del rest[: int(activation > 0)]
    depthwise = rest.pop(0) if rest and _depthwise(rest[0]) else None
    pointwise = rest.pop(0) if rest and _pointwise(rest[0]) else None
    if (depthwise is None and pointwise is None) or not rest or not _running(rest[0]):
        return None
    count = len(modules) - len(rest) + 1
    return Stage(activation, depthwise, pointwise, rest[0], tuple(modules[:count]))  # type: ignore[arg-type]


def joined(terms: Sequence[Term]) -> Tensor:
    """The node (B, C, H, W), channels last, and the running statistics of the chains' batch norms moved on."""
    factors = [term.factor for term in terms]
    weights = [w for term in terms for stage in term.chain for w in stage.weights()]
    moments: list[tuple[nn.BatchNorm2d, Tensor, Tensor, int]] = []
    chains = tuple(term.chain for term in terms)
    out: Tensor = _Node.apply(chains, factors, moments, *[term.source for term in terms], *weights)  # type: ignore[no-untyped-call]
    for norm, mean, variance, count in moments:
        _remember(norm, mean, variance, count)
    return out


def several(chain: Chain, x: Tensor) -> bool:
    """True if every batch norm of the chain sees more than one value per channel: torch refuses to train on one."""
    size = (x.shape[2], x.shape[3])
    for stage in chain:
        size = stage.size(*size)
        if len(x) * size[0] * size[1] < 2:
            return False
    return True


# ------------------------------------------------------------------ what is known


def _plain(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and conv.bias is None and conv.padding_mode == "zeros"


def _depthwise(conv: nn.Module) -> bool:
    if not _plain(conv):
        return False
    assert isinstance(conv, nn.Conv2d)
    square = all(pair[0] == pair[1] for pair in (conv.kernel_size, conv.stride, conv.dilation))
    k, d = conv.kernel_size[0], conv.dilation[0]
    if not square or not conv.groups == conv.in_channels == conv.out_channels or (conv.groups == 1 and k == 1):
        return False
    return k % 2 == 1 and conv.padding == (d * (k // 2),) * 2


def _pointwise(conv: nn.Module) -> bool:
    if not _plain(conv):
        return False
    assert isinstance(conv, nn.Conv2d)
    return (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)


def _running(norm: nn.Module) -> bool:
    """True if it is an affine batch norm that averages its statistics with a fixed weight."""
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.running_mean is not None and norm.momentum is not None


@torch.no_grad()
def _remember(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Moves the running statistics as torch does, by means and biased variances of `count` numbers each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var), norm.momentum)
    norm.num_batches_tracked += 1


# ------------------------------------------------------------------ the calls


class CStage(ctypes.Structure):
    """`struct Stage` of stages/stage.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("n", "height", "width", "ci", "co", "k", "stride", "dilation", "point", "activation", "threads")
    ]


class CNode(ctypes.Structure):
    """`struct Node` of stages/join.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("n", "pixels", "channels", "terms", "threads")]


class _Ran(NamedTuple):
    """A stage that ran: what it read, the map before its activation, what it left, and its batch norm's moments."""

    structure: CStage
    x: Tensor  # (B, H, W, C)
    before: tuple[Tensor, Tensor] | None
    taps: Tensor | None  # (k k, C)
    matrix: Tensor | None  # (C, C')
    y: Tensor  # (B, H', W', C'), flat
    mean: Tensor  # (C',) in fp64, as are the others
    rstd: Tensor
    slope: Tensor
    shift: Tensor

    @property
    def values(self) -> int:
        """Values per channel."""
        return self.y.numel() // len(self.mean)

    def given(self) -> tuple[object, ...]:
        """The kernels' arguments between x and the results."""
        return *(self.before or (None, None)), self.taps, self.matrix


class _Norm(NamedTuple):
    """The gradients of a batch norm's scale and shift, and the map that takes the gradient through it: slope, level, tilt (3, C)."""

    gamma: Tensor
    beta: Tensor
    map: Tensor


def _run_stage(
    stage: Stage, x: Tensor, before: tuple[Tensor, Tensor] | None, weights: Sequence[Tensor]
) -> tuple[_Ran, Tensor]:
    """The stage on x (B, H, W, C), and the variance (C',) of what it leaves."""
    n, height, width, ci = x.shape
    *convs, gamma, beta = weights
    taps = convs[0].flatten(1).t().contiguous() if stage.depthwise is not None else None
    matrix = convs[-1].flatten(1).t().contiguous() if stage.pointwise is not None else None
    co = ci if matrix is None else matrix.shape[1]
    conv = stage.depthwise
    shape = (0, 1, 1) if conv is None else (conv.kernel_size[0], conv.stride[0], conv.dilation[0])
    structure = CStage(
        *(n, height, width, ci, co), *shape, int(matrix is not None), stage.activation, torch.get_num_threads()
    )
    h, w = stage.size(height, width)
    y = shared().take(n * h * w * co, x.dtype)
    mean, variance = (x.new_empty(co, dtype=torch.float64) for _ in range(2))
    invoke("stage_forward", x.dtype, structure, x, *(before or (None, None)), taps, matrix, y, mean, variance)
    rstd = (variance + stage.norm.eps).rsqrt()
    slope = gamma.double() * rstd
    return _Ran(structure, x, before, taps, matrix, y, mean, rstd, slope, beta.double() - slope * mean), variance


def _through(ran: _Ran, r1: Tensor, r2: Tensor) -> _Norm:
    """From the sums of G and of G (y - pivot), where the pivot is the mean as y's type holds it."""
    q = (r2 - (ran.mean - ran.mean.to(ran.y.dtype).double()) * r1) * ran.rstd
    tilt = -ran.slope * q * ran.rstd / ran.values
    level = -ran.slope * r1 / ran.values - tilt * ran.mean
    return _Norm(q, r1, torch.stack([ran.slope, level, tilt]).to(ran.y.dtype))


def _stage_back(
    ran: _Ran,
    g: Tensor,
    through: Tensor,
    factor: Tensor | None,
    pivot: Tensor | None,
    dx: Tensor | None,
    add: bool,
    learn: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """The sums (2, C) for the batch norm before, if there is a pivot, and the convolutions' gradients, if they learn; dx is filled."""
    dtype = ran.y.dtype
    sums = None if pivot is None else torch.zeros(2, ran.structure.ci, dtype=torch.float64)
    found = [None if t is None or not learn else torch.zeros_like(t) for t in (ran.taps, ran.matrix)]
    given = (*ran.given(), g, ran.y, through, factor, pivot, int(add), dx, sums, *found)
    invoke("stage_backward", dtype, ran.structure, ran.x, *given)
    return sums, [t.t().contiguous() for t in found if t is not None]


class _Node(torch.autograd.Function):
    """Sources and weights -> the node. Arguments: chains and factors by term, a list that gets the moments, sources, weights."""

    @staticmethod
    def forward(
        ctx: Any, chains: tuple[Chain, ...], factors: list[Tensor | None], moments: list[Any], *given: Tensor
    ) -> Tensor:
        sources, weights = given[: len(chains)], list(given[len(chains) :])
        ran: list[list[_Ran]] = []
        for chain, source in zip(chains, sources, strict=True):
            x, before = source.permute(0, 2, 3, 1).contiguous(), None
            steps: list[_Ran] = []
            for stage in chain:
                count = len(stage.weights())
                mine, weights = weights[:count], weights[count:]
                step, variance = _run_stage(stage, x, before, mine)
                moments.append((stage.norm, step.mean, variance, step.values))
                steps.append(step)
                size = stage.size(*x.shape[1:3])
                x, before = step.y.view(len(x), *size, -1), (step.slope.to(x.dtype), step.shift.to(x.dtype))
            ran.append(steps)
            last, flat = x, x.dtype
        ends = [
            steps[-1].y if steps else source.permute(0, 2, 3, 1).contiguous()
            for steps, source in zip(ran, sources, strict=True)
        ]
        channels = last.shape[-1]
        one = torch.ones(channels, dtype=torch.float64)
        a = torch.stack([steps[-1].slope if steps else one for steps in ran]).to(flat)
        b = torch.stack([steps[-1].shift if steps else one * 0 for steps in ran]).to(flat)
        f = None
        if any(factor is not None for factor in factors):
            rows = [last.new_ones(len(last)) if factor is None else factor.reshape(-1).to(flat) for factor in factors]
            f = torch.stack(rows)
        out = torch.empty_like(last)
        node = CNode(len(last), last.shape[1] * last.shape[2], channels, len(chains), torch.get_num_threads())
        invoke("join", flat, node, ends, a, b, f, out)
        ctx.ran, ctx.f, ctx.chains = ran, f, chains
        ctx.save_for_backward(*given)  # autograd looks whether they were changed since
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ran: list[list[_Ran]] = ctx.ran
        assert len(ctx.saved_tensors) >= len(ran)
        g, needs, f = grad.permute(0, 2, 3, 1).contiguous(), ctx.needs_input_grad[3:], ctx.f
        norms = _last_norms(ran, f, g)
        grads: list[Tensor | None] = []
        learnt: list[Tensor | None] = []
        at = len(ran)
        for t, (chain, steps) in enumerate(zip(ctx.chains, ran, strict=True)):
            factor = None if f is None else f[t]
            if not steps:
                grads.append((grad if factor is None else grad * factor.view(-1, 1, 1, 1)) if needs[t] else None)
                continue
            found: list[list[Tensor]] = []
            count = sum(len(stage.weights()) for stage in chain)
            learn = any(needs[at : at + count])
            at += count
            flow, norm = g, norms[t]
            dx: Tensor | None = None
            for j in reversed(range(len(steps))):
                step, before = steps[j], steps[j - 1] if j else None
                pivot = before.mean.to(g.dtype) if before else None
                dx = torch.empty_like(step.x) if needs[t] and not before else None
                if before:
                    dx = shared().scratch(step.x.numel(), g.dtype)
                sums, convs = _stage_back(
                    step, flow, norm.map, factor if j == len(steps) - 1 else None, pivot, dx, False, learn
                )
                found.append([*convs, norm.gamma.to(g.dtype), norm.beta.to(g.dtype)])
                if before:
                    assert sums is not None
                    assert dx is not None
                    flow, norm = dx, _through(before, *sums)
            grads.append(None if dx is None else dx.permute(0, 3, 1, 2))
            flat = [w for stage in reversed(found) for w in stage] if learn else []
            learnt += flat or [None] * count
        shapes = [t.shape for t in ctx.saved_tensors[len(ran) :]]
        return (
            None,
            None,
            None,
            *grads,
            *[None if w is None else w.view(s) for w, s in zip(learnt, shapes, strict=True)],
        )


def _last_norms(ran: list[list[_Ran]], f: Tensor | None, g: Tensor) -> dict[int, _Norm]:
    """The batch norms before the sum, by the number of their term."""
    numbers = [t for t, steps in enumerate(ran) if steps]
    ends = [ran[t][-1] for t in numbers]
    pivot = torch.stack([end.mean for end in ends]).to(g.dtype) if ends else g.new_empty(0)
    sums = torch.zeros(len(ends), 2, g.shape[-1], dtype=torch.float64)
    node = CNode(len(g), g.shape[1] * g.shape[2], g.shape[-1], len(ends), torch.get_num_threads())
    if ends:
        invoke(
            "join_dots",
            g.dtype,
            node,
            [end.y for end in ends],
            pivot,
            None if f is None else f[numbers].contiguous(),
            g,
            sums,
        )
    return {t: _through(end, s[1], s[0]) for t, end, s in zip(numbers, ends, sums, strict=True)}
