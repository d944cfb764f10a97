"""Sums what leads into a node of a supernet whose candidates are chains of stages, such as inverted bottlenecks.

    out = sum_t w_t (g_t (y_t - m_t) r_t + s_t) + sum_u w_u x_u

over chains t, of which y_t is what the last convolution leaves and m_t, r_t, g_t, s_t its batch norm, and tensors u; w are op weights. The
formulas of a chain are in `stages`, those of the sum in `portable.combine`. Per chain one tensor is kept for each of its convolutions, and
what it reads once for all chains: no batch norm's or activation's result.

Twice differentiable: under `create_graph` the backward is that of the plain formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oche.fast.backends import rows
from oche.fast.backends.buffers import shared
from oche.fast.backends.native import kernels
from oche.fast.kernels.chains import Chain, Stage, several
from oche.fast.kernels.stages import Ran, run_stage, stage_back, through
from oche.spaces.ops import batch_norm


class Part(NamedTuple):
    """What is summed: a chain on its source, or without one the source itself; `weight` () multiplies it."""

    source: Tensor
    weight: Tensor
    chain: Chain = ()


class _How(NamedTuple):
    """A part without its tensors: the number of its source, its chain, and where its parameters are among all."""

    source: int
    chain: Chain
    first: int

    @property
    def last(self) -> int:
        return self.first + sum(len(stage.convs) + 2 for stage in self.chain)

    def of(self, given: Sequence[Tensor | None]) -> Iterator[tuple[Stage, list[Tensor], Tensor | None, Tensor | None]]:
        """Each stage with its convolutions' weights, its scale and its shift."""
        rest = list(given[self.first : self.last])
        for stage in self.chain:
            convs, rest = rest[: len(stage.convs)], rest[len(stage.convs) :]
            gamma, beta, *rest = rest
            yield stage, [_there(w) for w in convs], gamma, beta


def takes(chain: Chain, x: Tensor) -> bool:
    """True if the kernels can take the chain on x in a supernet."""
    exact = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    weights = (w for stage in chain for w in _parameters(stage) if w is not None)
    return exact and all(w.dtype == x.dtype for w in weights) and several(chain, x)


def weighted_sum(parts: Sequence[Part]) -> Tensor:
    """The sum (B, C, H, W), channels last, of at least one part."""
    sources: list[Tensor] = []
    numbers: dict[int, int] = {}
    how: list[_How] = []
    given: list[Tensor | None] = []
    for part in parts:
        if id(part.source) not in numbers:
            numbers[id(part.source)] = len(sources)
            sources.append(part.source)
        own = [w for stage in part.chain for w in _parameters(stage)]
        how.append(_How(numbers[id(part.source)], part.chain, len(given)))
        given += own
    weights = torch.stack([part.weight for part in parts])
    out: Tensor = _Mixture.apply(how, len(sources), weights, *sources, *given)  # type: ignore[no-untyped-call]
    return out


class _Mixture(torch.autograd.Function):
    """Arguments: how, the number of sources, op weights (n,), sources, parameters or None."""

    @staticmethod
    def forward(ctx: Any, how: list[_How], count: int, weights: Tensor, *given: Tensor | None) -> Tensor:
        sources, parameters = [_there(t) for t in given[:count]], given[count:]
        pixels = [source.permute(0, 2, 3, 1).contiguous() for source in sources]
        runs = [_run(part, pixels[part.source], parameters) for part in how]
        ends = [_end(steps, pixels[part.source]) for part, steps in zip(how, runs, strict=True)]
        w = weights.detach().double()[:, None]
        one = torch.ones(ends[0].shape[-1], dtype=torch.float64)
        a = w * torch.stack([steps[-1].slope if steps else one for steps in runs])
        b = (w * torch.stack([steps[-1].shift if steps else 0 * one for steps in runs])).sum(0)
        backend = kernels()
        assert backend is not None
        dtype = ends[0].dtype
        out = rows.weighted(backend, [end.permute(0, 3, 1, 2) for end in ends], a.to(dtype), b.to(dtype))
        ctx.how, ctx.count, ctx.many = how, count, len(given)
        ctx.runs = [[step._replace(x=one, y=one) for step in steps] for steps in runs]
        ctx.save_for_backward(weights, *given, *pixels, *[step.y for steps in runs for step in steps])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *saved = ctx.saved_tensors
        given, kept = saved[: ctx.many], saved[ctx.many :]
        if torch.is_grad_enabled():
            return (None, None, *_differentiable(ctx, grad, weights, given))
        pixels, ys = kept[: ctx.count], iter(kept[ctx.count :])
        runs: list[list[Ran]] = []
        for part, steps in zip(ctx.how, ctx.runs, strict=True):
            x, whole = pixels[part.source], []
            for step in steps:
                ran = step._replace(x=x, y=next(ys))
                whole.append(ran)
                x = _left(ran)
            runs.append(whole)
        return (None, None, *_compiled(ctx, grad, weights, given, pixels, runs))


def _compiled(
    ctx: Any,
    grad: Tensor,
    weights: Tensor,
    given: Sequence[Tensor | None],
    pixels: Sequence[Tensor],
    runs: Sequence[list[Ran]],
) -> list[Tensor | None]:
    """Gradients of the op weights, the sources and the parameters, on the kernels."""
    how: list[_How] = ctx.how
    count, needs = ctx.count, ctx.needs_input_grad[3:]
    g = grad.permute(0, 2, 3, 1).contiguous()
    ends = [_end(steps, pixels[part.source]) for part, steps in zip(how, runs, strict=True)]
    pivot = torch.stack([s[-1].mean if s else torch.zeros(g.shape[-1], dtype=torch.float64) for s in runs]).to(g.dtype)
    backend = kernels()
    assert backend is not None
    sums = rows.dots(backend, [end.permute(0, 3, 1, 2) for end in ends], pivot, g.permute(0, 3, 1, 2))
    dw = torch.empty(len(how), dtype=torch.float64)
    back = _Back(g, needs, count, given[count:], {}, [None] * len(given))
    for n, (part, steps) in enumerate(zip(how, runs, strict=True)):  # tensors first: a chain adds to what is there
        if not steps:
            dw[n] = sums[n].sum()
            back.tensor(part.source, weights[n])
    for n, (part, steps) in enumerate(zip(how, runs, strict=True)):
        if steps:
            dw[n] = back.chain(part, steps, weights[n].double(), sums[n], sums[-1])
    for source, dx in back.into.items():
        back.found[source] = dx.permute(0, 3, 1, 2)
    return [dw.to(weights.dtype), *back.found]


@dataclass(frozen=True)
class _Back:
    """The gradients of sources and parameters while they are `found`; `into`: by the number of a source, (B, H, W, C).

    `g` is that of the sum, `needs` tells what needs one, `count` sources and then `parameters`.
    """

    g: Tensor
    needs: Sequence[bool]
    count: int
    parameters: Sequence[Tensor | None]
    into: dict[int, Tensor]
    found: list[Tensor | None]

    def tensor(self, source: int, w: Tensor) -> None:
        """That of a source which is summed as it is."""
        if self.needs[source]:
            scaled = self.g * w
            self.into[source] = self.into[source].add_(scaled) if source in self.into else scaled

    def chain(self, part: _How, steps: list[Ran], w: Tensor, r2: Tensor, r1: Tensor) -> Tensor:
        """Those of a chain's parameters and of its source; returns that of its op weight, from the sums of g (y - pivot) and g."""
        stages = list(part.of(self.parameters))
        *_, gamma, beta = stages[-1]
        plain = through(steps[-1], r1, r2)
        dw = (plain.gamma if gamma is None else plain.gamma * gamma.double()).sum()
        dw = dw if beta is None else dw + (plain.beta * beta.double()).sum()
        norm = through(steps[-1], w * r1, w * r2)
        norm.map[0] *= w.to(norm.map.dtype)
        flow, last = self.g, self.count + part.last
        for j in reversed(range(len(steps))):
            step, before, convs = steps[j], steps[j - 1] if j else None, stages[j][1]
            first = last - len(convs) - 2
            for place, value in ((last - 2, norm.gamma), (last - 1, norm.beta)):
                self.found[place] = value.to(flow.dtype) if self.needs[place] else None
            learn = any(self.needs[first : first + len(convs)])
            to, also = (
                self._to(part.source, step) if before is None else (shared().scratch(step.x.numel(), flow.dtype), None)
            )
            if to is None and not learn:
                break
            pivot = before.mean.to(flow.dtype) if before else None
            back, learnt = stage_back(step, flow, norm.map, None, pivot, to, also, learn)
            for place, value, weight in zip(range(first, first + len(convs)), learnt, convs, strict=False):
                self.found[place] = value.reshape(weight.shape) if self.needs[place] else None
            last = first
            if before is not None:
                assert back is not None
                assert to is not None
                flow, norm = to, through(before, *back)
        return dw

    def _to(self, source: int, step: Ran) -> tuple[Tensor | None, Tensor | None]:
        """Where the gradient of a source goes, if it needs one, and what is there already."""
        if not self.needs[source]:
            return None, None
        there = self.into.get(source)
        if there is None:
            self.into[source] = shared().lasting(step.x.shape, self.g.dtype)
        return self.into[source], there


def plain_sum(
    how: Sequence[_How], weights: Tensor, sources: Sequence[Tensor], parameters: Sequence[Tensor | None]
) -> Tensor:
    """The same sum by torch, part by part: differentiable any number of times."""
    terms = []
    for weight, part in zip(weights.unbind(), how, strict=True):
        x = sources[part.source]
        for stage, convs, gamma, beta in part.of(parameters):
            x = F.relu(x) if stage.activation == 1 else F.relu6(x) if stage.activation == 2 else x
            for conv, kernel in zip(stage.convs, convs, strict=True):
                x = F.conv2d(x, kernel, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            x = batch_norm(x, gamma, beta, stage.norm.eps)
        terms.append(weight * x)
    return sum(terms[1:], terms[0])


def _differentiable(ctx: Any, grad: Tensor, weights: Tensor, given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients that carry a graph: those of the plain formula at aliases of the inputs, so that no input is upstream of another."""
    inputs = [None if t is None else t.view_as(t) for t in (weights, *given)]
    sources = [_there(t) for t in inputs[1 : 1 + ctx.count]]
    out = plain_sum(ctx.how, _there(inputs[0]), sources, inputs[1 + ctx.count :])
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[2:]) if need]
    made = torch.autograd.grad(out, [_there(inputs[i]) for i in wanted], grad, create_graph=True)
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, one in zip(wanted, made, strict=True):
        grads[i] = one
    return grads


# ------------------------------------------------------------------ helpers


def _parameters(stage: Stage) -> list[Tensor | None]:
    """Its convolutions' weights, and its batch norm's scale and shift or None."""
    return [*(conv.weight for conv in stage.convs), stage.norm.weight, stage.norm.bias]


def _run(part: _How, x: Tensor, parameters: Sequence[Tensor | None]) -> list[Ran]:
    """The stages of a part's chain on x (B, H, W, C)."""
    steps: list[Ran] = []
    before = None
    for stage, convs, gamma, beta in part.of(parameters):
        width = stage.norm.num_features
        scale = x.new_ones(width) if gamma is None else gamma
        shift = x.new_zeros(width) if beta is None else beta
        step, _ = run_stage(stage, x, before, [*convs, scale, shift])
        steps.append(step)
        x, before = _left(step), (step.slope.to(x.dtype), step.shift.to(x.dtype))
    return steps


def _left(step: Ran) -> Tensor:
    """What a stage left (B, H, W, C)."""
    return step.y.view(step.structure.n, *step.sides(), -1)


def _end(steps: Sequence[Ran], x: Tensor) -> Tensor:
    """What is summed (B, H, W, C), before the last batch norm."""
    return _left(steps[-1]) if steps else x


def _there(t: Tensor | None) -> Tensor:
    assert t is not None
    return t
