"""The compiled cells in plain torch, differentiable any number of times, from the same packed arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from oche.fast.kernels.layout import AVGPOOL, DIL, HALVE, MAXPOOL, SEP, SKIP
from oche.fast.kernels.packed import Arguments


def plain_packed(cell: Arguments) -> Tensor:
    """The nodes side by side (n, H', W', nodes * lanes), or the last one where they are not concatenated."""
    states = plain_states(cell, node=lambda total, _: total)
    shown = states[cell.plan.inputs :] if cell.plan.concat else states[-1:]
    return torch.cat([t.permute(0, 2, 3, 1) for t in shown], dim=3)


def plain_states(cell: Arguments, node: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    """The states (n, lanes, H, W); `node` makes one of the sum of its candidates and its number."""
    depth, point, gamma, beta, plan, place = cell.depth, cell.point, cell.gamma, cell.beta, cell.plan, cell.plan.place
    flat = cell.w.flatten()
    states = [t.permute(0, 3, 1, 2) for t in cell.states]

    def normed(x: Tensor, norm: int) -> Tensor:
        images = x[:, : place.fold * place.channels].reshape(len(x), place.fold, place.channels, *x.shape[2:])
        variance, mean = torch.var_mean(images, (0, 1, 3, 4), correction=0)
        x = (x - place.vector(mean)[:, None, None]) * place.vector((variance + cell.eps).rsqrt())[:, None, None]
        if gamma is None or beta is None:
            return x
        return x * gamma[norm][:, None, None] + beta[norm][:, None, None]

    def convolved(x: Tensor, taps: int, matrix: int, k: int, stride: int, dilation: int) -> Tensor:
        kernel = depth[taps : taps + k * k * plan.lanes].view(k, k, plan.lanes).permute(2, 0, 1).unsqueeze(1)
        z = F.conv2d(x.relu(), kernel, None, stride, dilation * (k // 2), dilation, plan.lanes)
        return F.conv2d(z, point[matrix].t()[:, :, None, None])

    for target in range(plan.inputs, plan.inputs + plan.nodes):
        total = None
        for row in cell.table.tolist():
            kind, k, source, into, weight, d1, p1, d2, p2, norm1, norm2, *_, term, _ = row
            if into != target:
                continue
            h, stride = states[source], plan.stride if source < plan.inputs else 1
            if kind == SEP:
                value = convolved(normed(convolved(h, d1, p1, k, stride, 1), norm1), d2, p2, k, 1, 1)
            elif kind == DIL:
                value = convolved(h, d1, p1, k, stride, 2)
            elif kind == MAXPOOL:
                value = F.max_pool2d(h, 3, stride, 1)
            elif kind == AVGPOOL:
                value = F.avg_pool2d(h, 3, stride, 1, count_include_pad=False)
            elif kind == HALVE:
                x = h.relu()
                shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
                even, odd = point[p1].t()[:, :, None, None], point[p2].t()[:, :, None, None]
                value = F.conv2d(x, even, None, 2) + F.conv2d(shifted, odd, None, 2)
            else:
                value = h if kind == SKIP else cell.extra[term].permute(0, 3, 1, 2)
            value = flat[weight] * (normed(value, norm2) if norm2 >= 0 else value)
            total = value if total is None else total + value
        if total is None:
            s = plan.stride
            total = torch.zeros_like(states[0][:, :, ::s, ::s] if target == plan.inputs else states[-1])
        states.append(node(total, target))
    return states
