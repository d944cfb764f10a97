"""The sparse code of a node, the relaxation of ISTA-NAS (`ista_nas`), and the LASSO behind it, solved to its optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.base import Alpha, Count, Draw, Group, NonNegative
from oche.search.relaxations import Relaxation


class Measurement(Protocol):
    """Draws A (m, n)."""

    def __call__(self, m: int, n: int, rng: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Uniform:
    """Entries from U(0, 1)."""

    def __call__(self, m: int, n: int, rng: torch.Generator) -> Tensor:
        return torch.rand(m, n, generator=rng)


@dataclass(frozen=True)
class Gaussian:
    """Entries from N(0, 1/m): columns of unit length in the mean."""

    def __call__(self, m: int, n: int, rng: torch.Generator) -> Tensor:
        return torch.randn(m, n, generator=rng) / math.sqrt(m)


MEASUREMENTS: dict[str, Measurement] = {"uniform": Uniform(), "gaussian": Gaussian()}


@dataclass(frozen=True)
class SparseCode(Relaxation):
    """p = x + A^T (b - A x) on the support of x, 0 elsewhere, node by node; see `ista_nas`.

    Alpha of a group: `group/bJ` (m,) of each node J, which is trained; `group/A` (m E O,) and `group/z` (E O,), which are not. `Recover`
    holds those, and replaces z at each epoch's start. Strength is |z| of the present b.
    """

    measurement: Measurement = Uniform()
    m: Count = 7
    penalty: NonNegative = 1e-5
    scale: NonNegative = 1e-3
    distinct: bool = False

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        alpha = {f"{group.name}/b{node}": self.scale * torch.randn(self.m, generator=rng) for node in group.into()}
        alpha[f"{group.name}/A"] = self.measurement(self.m, len(group.edges) * group.width, rng).flatten()
        return {**alpha, f"{group.name}/z": self.recover(alpha, group, Draw(0)).flatten()}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        z = alpha[f"{group.name}/z"].detach().view(len(group.edges), group.width)
        A = alpha[f"{group.name}/A"].detach().view(self.m, *z.shape)
        support = support_of(z, group, candidates(group, draw.alive(group)), self.distinct).to(z)
        x = z * support
        targets = torch.tensor([target for _, target in group.edges], device=z.device)
        explained = (targets[:, None] == targets).to(z) @ torch.einsum("meo,eo->em", A, x)
        b = torch.stack([alpha[f"{group.name}/b{target}"] for _, target in group.edges])
        p: Tensor = support * (x + torch.einsum("meo,em->eo", A, b - explained))
        return p

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self.recover(alpha, group, draw).abs()

    @torch.no_grad()
    def recover(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        """(E, O): every node's LASSO solution at the present b; 0 where there is no candidate."""
        key = f"{group.name}/A"
        z = torch.zeros(len(group.edges), group.width, dtype=torch.float64)
        A = alpha[key].detach().double().cpu().view(self.m, *z.shape)
        there = candidates(group, draw.alive(group))
        for node, numbers in group.into().items():
            own = torch.zeros_like(there)
            own[numbers] = there[numbers]
            b = alpha[f"{group.name}/b{node}"].detach().double().cpu()
            z[own] = torch.from_numpy(lasso(A[:, own].numpy(), b.numpy(), self.penalty))
        return z.to(alpha[key])


def candidates(group: Group, alive: Tensor) -> Tensor:
    """(E, O) bool: those alive; in cells whose nodes keep some of their edges, `none` is not one of them."""
    if group.keep is None:
        return alive
    return alive & group.valid() & ~group.named("none")


def support_of(z: Tensor, group: Group, there: Tensor, distinct: bool = False) -> Tensor:
    """(E, O) bool on the CPU: each node's `keep` largest entries of |z| that are not 0, or each edge's; on `distinct` edges if so told."""
    size = (z.detach().abs().cpu() * there).tolist()
    found = torch.zeros_like(there)
    for numbers in [[e] for e in range(len(group.edges))] if group.keep is None else group.into().values():
        entries = [(e, o) for e in numbers for o in range(group.width) if size[e][o] > 0]
        chosen: list[tuple[int, int]] = []
        for e, o in sorted(entries, key=lambda entry: -size[entry[0]][entry[1]]):
            if len(chosen) < (group.keep or 1) and not (distinct and e in {taken for taken, _ in chosen}):
                chosen.append((e, o))
                found[e, o] = True
    return found


def lasso(A: NDArray[np.float64], b: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """argmin_z 1/2 |A z - b|^2 + penalty |z|_1, exactly, for A (m, n) in general position.

    z is piecewise linear in the penalty (Osborne et al., 2000): from the penalty at which it is 0, each step goes down to where an entry
    joins with q = A^T (b - A z) at +- the penalty, or leaves at 0. About 3 m steps; coordinate descent needs more than 20,000 sweeps where
    |b| is far above the penalty, because uniform columns are nearly parallel.
    """
    gram, projected = A.T @ A, A.T @ b
    z, q = np.zeros(len(projected)), projected.copy()
    level = float(np.abs(q).max(initial=0.0))
    if level <= penalty:
        return z
    active = [int(np.abs(q).argmax())]
    sign = np.sign(q)
    left: int | None = None
    while True:
        slope = np.linalg.solve(gram[np.ix_(active, active)], sign[active])
        rate = gram[:, active] @ slope
        with np.errstate(divide="ignore", invalid="ignore"):
            up, down, zero = (level - q) / (1 - rate), (level + q) / (1 + rate), -z[active] / slope
        up[active] = down[active] = np.inf
        if left is not None:  # it is on its bound, going inside
            (up if sign[left] > 0 else down)[left] = np.inf
        for steps in (up, down, zero):
            steps[~(steps > 1e-12 * level)] = np.inf
        join = np.minimum(up, down)
        step = min(join.min(), zero.min(), level - penalty)
        z[active] += step * slope
        if step == level - penalty:
            return z
        q, level, left = projected - gram @ z, level - step, None
        if step == zero.min():
            left = active.pop(int(zero.argmin()))
            z[left] = 0.0
        else:
            new = int(join.argmin())
            active.append(new)
            sign[new] = 1.0 if up[new] <= down[new] else -1.0
