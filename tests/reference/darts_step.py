"""One search step written out: supernet forward, hypergradient, SGD, clipping, Adam. Slow, literal, and blind to oche.

Nothing here imports oche. A supernet is a dict of tensors by name; an operation looks its own up by prefix. Sources: quark0/darts
(model_search.py, architect.py), yuhuixu1993/PC-DARTS (model_search.py) and D-X-Y/AutoDL-Projects (the cell of NAS-Bench-201).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]

PRIMITIVES = [
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
]
TOY = ["none", "skip_connect", "nor_conv_3x3"]


# ---------------------------------------------------------------------- operations


def norm(p: Tensors, name: str, x: Tensor) -> Tensor:
    """Batch norm by batch statistics, affine where the supernet has a weight and bias of that name."""
    mean = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    out = (x - mean) / (var + 1e-5) ** 0.5
    if name + ".weight" in p:
        out = out * p[name + ".weight"].view(1, -1, 1, 1) + p[name + ".bias"].view(1, -1, 1, 1)
    return out


def relu_conv_norm(p: Tensors, name: str, x: Tensor, kernel: int, stride: int = 1) -> Tensor:
    x = F.conv2d(F.relu(x), p[f"{name}.1.weight"], stride=stride, padding=kernel // 2)
    return norm(p, f"{name}.2", x)


def separable(p: Tensors, name: str, first: int, x: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """ReLU, depthwise, pointwise, norm, as entries first, first + 1, ... of a Sequential."""
    depthwise, pointwise = p[f"{name}.{first + 1}.weight"], p[f"{name}.{first + 2}.weight"]
    padding = dilation * (kernel // 2)
    x = F.conv2d(F.relu(x), depthwise, None, stride, padding, dilation, groups=x.shape[1])
    return norm(p, f"{name}.{first + 3}", F.conv2d(x, pointwise))


def factorized_reduce(p: Tensors, name: str, x: Tensor) -> Tensor:
    """The published form, for even sizes."""
    x = F.relu(x)
    even = F.conv2d(x, p[f"{name}.even.weight"], stride=2)
    odd = F.conv2d(x[:, :, 1:, 1:], p[f"{name}.odd.weight"], stride=2)
    return norm(p, f"{name}.norm", torch.cat([even, odd], 1))


def operation(p: Tensors, name: str, op: str, x: Tensor, stride: int) -> Tensor:
    if op == "none":
        return x[:, :, ::stride, ::stride] * 0.0
    if op == "skip_connect":
        return x if stride == 1 else factorized_reduce(p, name, x)
    if op == "max_pool_3x3":
        return norm(p, f"{name}.norm", F.max_pool2d(x, 3, stride, 1))
    if op == "avg_pool_3x3":
        return norm(p, f"{name}.norm", F.avg_pool2d(x, 3, stride, 1, count_include_pad=False))
    if op == "nor_conv_3x3":
        return relu_conv_norm(p, name, x, 3, stride)
    kernel = int(op[-1])
    if op.startswith("dil"):
        return separable(p, name, 0, x, kernel, stride, 2)
    return separable(p, name, 4, separable(p, name, 0, x, kernel, stride, 1), kernel, 1, 1)


# ---------------------------------------------------------------------- edges


def mixed(p: Tensors, name: str, ops: list[str], x: Tensor, weights: Tensor, stride: int) -> Tensor:
    """MixedOp of DARTS."""
    return sum(w * operation(p, f"{name}.ops.{op}", op, x, stride) for w, op in zip(weights, ops, strict=True))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


def mixed_partial(p: Tensors, name: str, ops: list[str], x: Tensor, weights: Tensor, stride: int, k: int) -> Tensor:
    """MixedOp of PC-DARTS."""
    through, aside = x[:, : x.shape[1] // k], x[:, x.shape[1] // k :]
    temp = mixed(p, name, ops, through, weights, stride)
    if temp.shape[2] != x.shape[2]:
        aside = F.max_pool2d(aside, 2, 2)
    return channel_shuffle(torch.cat([temp, aside], dim=1), k)


def softmax(t: Tensor) -> Tensor:
    e = torch.exp(t)
    return e / e.sum(-1, keepdim=True)


def beta_shares(beta: Tensor, steps: int, first: int) -> Tensor:
    """PC-DARTS's loop over nodes: `first` edges lead into the first node, one more into each of the next."""
    n, start = first + 1, first
    shares = softmax(beta[0:first])
    for _ in range(steps - 1):
        end = start + n
        shares = torch.cat([shares, softmax(beta[start:end])], dim=0)
        start = end
        n += 1
    return shares


# ---------------------------------------------------------------------- supernets


@dataclass
class Reference:
    """A supernet and its optimisers as plain tensors.

    `p` holds all weights, `learns` the names of those that are trained, `k` is 0 for DARTS and K for PC-DARTS.
    """

    p: Tensors
    learns: list[str]
    alpha: Tensors
    k: int = 0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    nesterov: bool = False
    clip: float = 5.0
    arch_lr: float = 3e-4
    arch_decay: float = 1e-3
    buffers: Tensors = field(default_factory=dict)
    m: Tensors = field(default_factory=dict)
    v: Tensors = field(default_factory=dict)
    t: int = 0

    def forward(self, p: Tensors, alpha: Tensors, x: Tensor) -> Tensor:
        raise NotImplementedError

    # ------------------------------------------------------------------ the two gradients

    def loss(self, theta: Tensors, alpha: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.forward({**self.p, **theta}, alpha, batch[0])
        shifted = logits - logits.max(1, keepdim=True).values
        log_p = shifted - torch.log(torch.exp(shifted).sum(1, keepdim=True))
        return -log_p[torch.arange(len(logits)), batch[1]].mean()

    def theta(self) -> Tensors:
        return {name: self.p[name].detach().clone().requires_grad_() for name in self.learns}

    def leaves(self) -> Tensors:
        return {name: t.detach().clone().requires_grad_() for name, t in self.alpha.items()}

    def first_order(self, outer: tuple[Tensor, Tensor]) -> Tensors:
        alpha = self.leaves()
        return gradients(self.loss(self.theta(), alpha, outer), alpha)

    def unrolled(self, inner: tuple[Tensor, Tensor], outer: tuple[Tensor, Tensor], lr: float) -> Tensors:
        """Straight through the step: autograd sees theta' as a function of alpha."""
        theta, alpha = self.theta(), self.leaves()
        g = torch.autograd.grad(
            self.loss(theta, alpha, inner), list(theta.values()), create_graph=True, materialize_grads=True
        )
        ahead = {n: theta[n] - lr * self.direction(n, theta[n], grad) for n, grad in zip(theta, g, strict=True)}
        return gradients(self.loss(ahead, alpha, outer), alpha)

    def architect(self, inner: tuple[Tensor, Tensor], outer: tuple[Tensor, Tensor], lr: float) -> Tensors:
        """_backward_step_unrolled and _hessian_vector_product of quark0/darts, architect.py."""
        theta, alpha = self.theta(), self.leaves()
        g = gradients(self.loss(theta, alpha, inner), theta)
        unrolled = {n: (theta[n] - lr * self.direction(n, theta[n], g[n])).detach().requires_grad_() for n in theta}
        loss = self.loss(unrolled, alpha, outer)
        dalpha, vector = gradients(loss, alpha), gradients(self.loss(unrolled, alpha, outer), unrolled)
        r = 0.01 / math.sqrt(sum(float((t**2).sum()) for t in vector.values()))
        plus = {n: (theta[n] + r * vector[n]).detach() for n in theta}
        grads_p = gradients(self.loss(plus, alpha, inner), alpha)
        minus = {n: (theta[n] - r * vector[n]).detach() for n in theta}
        grads_n = gradients(self.loss(minus, alpha, inner), alpha)
        return {n: dalpha[n] - lr * (grads_p[n] - grads_n[n]) / (2 * r) for n in alpha}

    def direction(self, name: str, t: Tensor, grad: Tensor) -> Tensor:
        """The direction that SGD would multiply by the learning rate."""
        step = grad + self.weight_decay * t
        velocity = self.momentum * self.buffers[name] + step if name in self.buffers else step
        return step + self.momentum * velocity if self.nesterov else velocity

    # ------------------------------------------------------------------ the two steps

    def arch_step(self, grads: Tensors) -> None:
        """Adam with betas 0.5 and 0.999; weight decay is added to the gradient."""
        self.t += 1
        for name, grad in grads.items():
            grad = grad + self.arch_decay * self.alpha[name]
            self.m[name] = 0.5 * self.m.get(name, torch.zeros_like(grad)) + 0.5 * grad
            self.v[name] = 0.999 * self.v.get(name, torch.zeros_like(grad)) + 0.001 * grad * grad
            m_hat = self.m[name] / (1 - 0.5**self.t)
            v_hat = self.v[name] / (1 - 0.999**self.t)
            self.alpha[name] = self.alpha[name] - self.arch_lr * m_hat / (torch.sqrt(v_hat) + 1e-8)

    def weight_step(self, batch: tuple[Tensor, Tensor], lr: float) -> float:
        """Clipped by the norm over all weights together, then SGD; returns the norm before clipping."""
        theta = self.theta()
        grads = gradients(self.loss(theta, self.alpha, batch), theta)
        total = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        scale = min(1.0, self.clip / (total + 1e-6))
        for name in theta:
            step = scale * grads[name] + self.weight_decay * self.p[name]
            self.buffers[name] = self.momentum * self.buffers[name] + step if name in self.buffers else step
            change = step + self.momentum * self.buffers[name] if self.nesterov else self.buffers[name]
            self.p[name] = self.p[name] - lr * change
        return total


def gradients(loss: Tensor, tree: Tensors) -> Tensors:
    grads = torch.autograd.grad(loss, list(tree.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(tree.items(), grads, strict=True)}


class ToyReference(Reference):
    """Stem, a cell at C channels, a residual reduction, a cell at 2C, head; three nodes and edges 0-1, 0-2, 1-2."""

    def forward(self, p: Tensors, alpha: Tensors, x: Tensor) -> Tensor:
        w = softmax(alpha["cell/alpha"])
        b = beta_shares(alpha["cell/beta"], steps=2, first=1) if self.k else torch.ones(3)

        def edge(cell: str, name: str, e: int, h: Tensor) -> Tensor:
            prefix = f"body.cells.{cell}.edges.{name}"
            if self.k:
                return b[e] * mixed_partial(p, prefix, TOY, h, w[e], 1, self.k)
            return mixed(p, prefix, TOY, h, w[e], 1)

        def cell(name: str, node0: Tensor) -> Tensor:
            node1 = edge(name, "0-1", 0, node0)
            return edge(name, "0-2", 1, node0) + edge(name, "1-2", 2, node1)

        x = norm(p, "body.stem.1", F.conv2d(x, p["body.stem.0.weight"], padding=1))
        x = cell("cell_0", x)
        block = "body.reductions.cell_1"
        deep = relu_conv_norm(p, f"{block}.deep.1", relu_conv_norm(p, f"{block}.deep.0", x, 3, 2), 3)
        x = deep + F.conv2d(F.avg_pool2d(x, 2, 2), p[f"{block}.short.1.weight"])
        x = cell("cell_1", x)
        x = F.relu(norm(p, "body.last.0", x)).mean((2, 3))
        return x @ p["body.classifier.weight"].T + p["body.classifier.bias"]


@dataclass
class DartsReference(Reference):
    """Network of quark0/darts: reduction cells at layers // 3 and 2 * layers // 3."""

    layers: int = 3
    steps: int = 2

    def forward(self, p: Tensors, alpha: Tensors, x: Tensor) -> Tensor:
        s0 = s1 = norm(p, "body.stem.1", F.conv2d(x, p["body.stem.0.weight"], padding=1))
        reduction_prev = False
        for i in range(self.layers):
            reduction = i in [self.layers // 3, 2 * self.layers // 3]
            kind = "reduce" if reduction else "normal"
            weights = softmax(alpha[f"{kind}/alpha"])
            weights2 = beta_shares(alpha[f"{kind}/beta"], self.steps, 2) if self.k else None
            s0, s1 = s1, self.cell(p, f"body.cells.cell_{i}", s0, s1, weights, weights2, reduction, reduction_prev)
            reduction_prev = reduction
        out = F.adaptive_avg_pool2d(s1, 1)
        return F.linear(out.view(out.size(0), -1), p["body.classifier.weight"], p["body.classifier.bias"])

    def cell(
        self,
        p: Tensors,
        name: str,
        s0: Tensor,
        s1: Tensor,
        weights: Tensor,
        weights2: Tensor | None,
        reduction: bool,
        reduction_prev: bool,
    ) -> Tensor:
        s0 = (
            factorized_reduce(p, f"{name}.entries.0", s0)
            if reduction_prev
            else relu_conv_norm(p, f"{name}.entries.0", s0, 1)
        )
        s1 = relu_conv_norm(p, f"{name}.entries.1", s1, 1)
        states = [s0, s1]
        offset = 0
        for i in range(self.steps):
            s: Tensor | float = 0.0
            for j, h in enumerate(states):
                edge = f"{name}.edges.{j}-{2 + i}"
                stride = 2 if reduction and j < 2 else 1
                if weights2 is None:
                    s = s + mixed(p, edge, PRIMITIVES, h, weights[offset + j], stride)
                else:
                    out = mixed_partial(p, edge, PRIMITIVES, h, weights[offset + j], stride, self.k)
                    s = s + weights2[offset + j] * out
            offset += len(states)
            assert isinstance(s, Tensor)
            states.append(s)
        return torch.cat(states[-self.steps :], dim=1)


Gradient = Callable[[Reference, tuple[Tensor, Tensor], tuple[Tensor, Tensor], float], Tensors]

GRADIENTS: dict[str, Gradient] = {
    "first": lambda net, inner, outer, lr: net.first_order(outer),
    "unrolled": lambda net, inner, outer, lr: net.unrolled(inner, outer, lr),
    "difference": lambda net, inner, outer, lr: net.architect(inner, outer, lr),
}
