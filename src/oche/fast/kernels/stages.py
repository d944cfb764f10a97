"""Runs stages of a network that learns, and chains of them: convolutions with batch norms.

A stage is an activation phi, a depthwise convolution D, a 1x1 convolution P (one of the two may be missing) and a batch norm, whose
normalisation is left to the next stage's load or to the sum; or a dense convolution in the place of D and P. Notation: x what a stage
reads, y what it leaves, g and s the batch norm's scale and shift, m and r = 1/sqrt(var + eps) over the M images and pixels, f a number
per image (drop path). Forward:

    y = P (D * phi(a x + b))            a = g r, b = s - a m of the batch norm before; 1 and 0 in a chain's first stage
    out = sum_t f_t (a_t y_t + b_t)     the node's terms: chains' last y, or tensors as they are (a = 1, b = 0); perhaps activated

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
from typing import NamedTuple

import torch
from torch import Tensor

from oche.fast.backends.buffers import shared
from oche.fast.backends.library import invoke
from oche.fast.kernels.chains import Chain, Stage

# ------------------------------------------------------------------ the calls


class CStage(ctypes.Structure):
    """`struct Stage` of stages/stage.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("n", "height", "width", "ci", "co", "k", "stride", "dilation", "point", "activation", "threads")
    ]


class Ran(NamedTuple):
    """A stage that ran: what it read, the map before its activation, what it left, and its batch norm's moments."""

    structure: CStage
    x: Tensor  # (B, H, W, C)
    before: tuple[Tensor, Tensor] | None
    wide: Tensor | None  # (k k C, C')
    taps: Tensor | None  # (k k, C)
    matrix: Tensor | None  # (C, C')
    y: Tensor  # (B, H', W', C'), flat
    mean: Tensor  # (C',) in fp64, as are the others
    rstd: Tensor
    slope: Tensor
    shift: Tensor

    def sides(self) -> tuple[int, int]:
        """Rows and columns of what it left."""
        stride = self.structure.stride
        return -(-self.structure.height // stride), -(-self.structure.width // stride)

    @property
    def values(self) -> int:
        """Values per channel."""
        return self.y.numel() // len(self.mean)

    def given(self) -> tuple[object, ...]:
        """The kernels' arguments between x and the results."""
        return *(self.before or (None, None)), *self.convs()

    def convs(self) -> tuple[Tensor | None, ...]:
        """The convolutions' weights as the kernels take them."""
        return (self.taps, self.matrix) if self.wide is None else (self.wide,)

    @property
    def kernel(self) -> str:
        """The name of its kernels."""
        return "stage" if self.wide is None else "wide"


class Norm(NamedTuple):
    """The gradients of a batch norm's scale and shift, and the map that takes the gradient through it: slope, level, tilt (3, C)."""

    gamma: Tensor
    beta: Tensor
    map: Tensor


def run_stage(
    stage: Stage, x: Tensor, before: tuple[Tensor, Tensor] | None, weights: Sequence[Tensor]
) -> tuple[Ran, Tensor]:
    """The stage on x (B, H, W, C), and the variance (C',) of what it leaves."""
    n, height, width, ci = x.shape
    count = len(stage.convs)
    convs, (gamma, beta) = list(weights[:count]), weights[-2:]
    wide = None if stage.wide is None else convs.pop(0).permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    taps = None if stage.depthwise is None else convs.pop(0).flatten(1).t().contiguous()
    matrix = None if stage.pointwise is None else convs.pop(0).flatten(1).t().contiguous()
    conv, co = stage.wide or stage.depthwise, stage.norm.num_features
    shape = (0, 1, 1) if conv is None else (conv.kernel_size[0], conv.stride[0], conv.dilation[0])
    structure = CStage(
        *(n, height, width, ci, co), *shape, int(matrix is not None), stage.activation, torch.get_num_threads()
    )
    h, w = stage.size(height, width)
    y = shared().take(n * h * w * co, x.dtype)
    mean, variance = (x.new_empty(co, dtype=torch.float64) for _ in range(2))
    none = mean
    ran = Ran(structure, x, before, wide, taps, matrix, y, mean, none, none, none)
    invoke(f"{ran.kernel}_forward", x.dtype, structure, x, *ran.given(), y, mean, variance)
    rstd = (variance + stage.norm.eps).rsqrt()
    slope = gamma.double() * rstd
    return ran._replace(rstd=rstd, slope=slope, shift=beta.double() - slope * mean), variance


def through(ran: Ran, r1: Tensor, r2: Tensor) -> Norm:
    """From the sums of G and of G (y - pivot), where the pivot is the mean as y's type holds it."""
    q = (r2 - (ran.mean - ran.mean.to(ran.y.dtype).double()) * r1) * ran.rstd
    tilt = -ran.slope * q * ran.rstd / ran.values
    level = -ran.slope * r1 / ran.values - tilt * ran.mean
    return Norm(q, r1, torch.stack([ran.slope, level, tilt]).to(ran.y.dtype))


def stage_back(
    ran: Ran,
    g: Tensor,
    through: Tensor,
    factor: Tensor | None,
    pivot: Tensor | None,
    dx: Tensor | None,
    also: Tensor | None,
    learn: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """The sums (2, C) for the batch norm before, if there is a pivot, and the convolutions' gradients, if they learn.

    dx is filled, with `also` added where there is no pivot.
    """
    dtype = ran.y.dtype
    sums = None if pivot is None else torch.zeros(2, ran.structure.ci, dtype=torch.float64)
    found = [None if t is None or not learn else torch.zeros_like(t) for t in ran.convs()]
    given = (*ran.given(), g, ran.y, through, factor, pivot, also, dx, sums, *found)
    invoke(f"{ran.kernel}_backward", dtype, ran.structure, ran.x, *given)
    return sums, [_as_weight(ran, t) for t in found if t is not None]


def _as_weight(ran: Ran, grad: Tensor) -> Tensor:
    """A convolution's gradient as the module has its weight, but for sides of 1."""
    if ran.wide is None:
        return grad.t().contiguous()
    k, (ci, co) = ran.structure.k, (ran.structure.ci, ran.structure.co)
    return grad.view(k, k, ci, co).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


class Passed(NamedTuple):
    """A chain's run: its stages, and for each batch norm what its running statistics move by: mean, biased variance, count."""

    steps: list[Ran]
    moments: list[tuple[Tensor, Tensor, int]]


def run_chain(chain: Chain, x: Tensor, weights: Sequence[Tensor]) -> Passed:
    """The chain on x (B, H, W, C)."""
    steps: list[Ran] = []
    moments: list[tuple[Tensor, Tensor, int]] = []
    rest, before = list(weights), None
    for stage in chain:
        count = len(stage.weights())
        mine, rest = rest[:count], rest[count:]
        step, variance = run_stage(stage, x, before, mine)
        shifted = step.mean if stage.bias is None else step.mean + stage.bias.detach()
        moments.append((shifted, variance, step.values))
        steps.append(step)
        size = stage.size(*x.shape[1:3])
        x, before = step.y.view(len(x), *size, -1), (step.slope.to(x.dtype), step.shift.to(x.dtype))
    return Passed(steps, moments)


def chain_back(
    chain: Chain,
    steps: list[Ran],
    flow: Tensor,
    norm: Norm,
    factor: Tensor | None,
    dx: Tensor | None,
    also: Tensor | None,
    learn: bool,
) -> list[Tensor]:
    """The weights' gradients, if they learn, from the gradient of the chain's output and its last batch norm; dx is filled."""
    found: list[list[Tensor]] = []
    for j in reversed(range(len(steps))):
        step, before = steps[j], steps[j - 1] if j else None
        if before is None and dx is None and not learn:
            break
        pivot = before.mean.to(flow.dtype) if before else None
        to = shared().scratch(step.x.numel(), flow.dtype) if before else dx
        times = factor if j == len(steps) - 1 else None
        sums, convs = stage_back(step, flow, norm.map, times, pivot, to, None if before else also, learn)
        bias = chain[j].bias  # a batch norm takes it away again
        none = [] if bias is None else [torch.zeros_like(bias)]
        found.append([*convs, *none, norm.gamma.to(flow.dtype), norm.beta.to(flow.dtype)])
        if before:
            assert sums is not None
            assert to is not None
            flow, norm = to, through(before, *sums)
    return [w for stage in reversed(found) for w in stage] if learn else []
