"""Numbers about a search as it stands: how flat, how decided, how far from the network it promises. Nothing here changes the state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from oche.base import WHOLE, Alpha, Batch, Draw, OpWeights, Params, counted
from oche.data import ImageSet, batches, none
from oche.errors import UserError
from oche.genotype import FREE, Choice, Genotype
from oche.search.bilevel import Loss, detached, required
from oche.search.relaxations import gated, openings
from oche.search.state import Problem, SearchState
from oche.spaces import GridSpace, Space
from oche.spaces.cost import parameters
from oche.tables import Table
from oche.tasks import Task

IMAGES = 1000
"""How many validation images an accuracy is measured on unless told otherwise: its standard error is then 1.6 points at most."""


# ------------------------------------------------------------------ of a genotype


def parameter_free(genotype: Genotype) -> float:
    """Share of the chosen operations that have no weights: skips, pools, `none`. A grid's gates are no operations.

    >>> parameter_free(Genotype.parse("|skip_connect~0|+|none~0|nor_conv_1x1~1|"))
    0.6666666666666666
    """
    ops = [op for choices in genotype.groups.values() for op in operations(choices)]
    return sum(op in FREE for op in ops) / max(len(ops), 1)


def skip_share(genotype: Genotype) -> float:
    """The largest share of skip connections among the chosen operations of a cell."""
    return max(count / max(len(operations(genotype.groups[name])), 1) for name, count in genotype.skips().items())


def operations(choices: Iterable[Choice]) -> list[str]:
    """What was chosen, without the gates of a grid."""
    return [c.op for c in choices if c.op != "connect"]


def active_depth(space: Space, genotype: Genotype) -> int:
    """The most operations with weights on one way, of the deepest cell; in a grid on a way from its stem to its last layer."""
    if not isinstance(space, GridSpace):
        return max(_longest(choices) for choices in genotype.groups.values())
    used = _used(space, genotype)
    return _longest([c for c in genotype.groups["grid"] if (c.target + 1) // 2 in used])


def _longest(choices: Sequence[Choice]) -> int:
    targets = {c.target for c in choices}
    depth = {c.source: 0 for c in choices if c.source not in targets}
    for target in sorted(targets):
        ways = [
            depth[c.source] + _weighs(c.op)
            for c in choices
            if c.target == target and c.source in depth and c.op != "none"
        ]
        if ways:
            depth[target] = max(ways)
    return max(depth.values(), default=0)


def _weighs(op: str) -> bool:
    return op not in FREE and op != "connect"


def active_strides(space: Space, genotype: Genotype) -> int:
    """How many strides of a grid something flows through, from its stem to its last layer; 1 in any other space."""
    if not isinstance(space, GridSpace):
        return 1
    return len({space.nodes()[n - 1].level for n in _used(space, genotype)})


def _used(space: GridSpace, genotype: Genotype) -> set[int]:
    return space.used({(c.source, c.target) for c in genotype.groups["grid"] if c.op != "none"})


def decoded_parameters(space: Space, genotype: Genotype) -> int:
    """Of the genotype's network; 0 where it is none, since a node or all of it is cut off."""
    try:
        with torch.device("meta"):
            return parameters(space.network(genotype))
    except UserError:
        return 0


def closed_gates(state: SearchState, below: float = 0.1) -> float:
    """Share of the gates that are less open than that; 0 where there are none."""
    opened = torch.cat([openings(w, group)[gated(group)] for group, w in state.strengths()])
    return float((opened < below).double().mean()) if len(opened) else 0.0


# ------------------------------------------------------------------ of the loss


def validation_loss(state: SearchState, problem: Problem) -> Loss:
    """The task's loss as a pure function of (theta, alpha): the outer loss without what a method adds to it."""

    def loss(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = replace(state.draw("alpha"), part=WHOLE)  # all processes see the same images
        return problem.task.loss(
            _outputs(state, problem, theta, state.op_weights(alpha, draw), batch, draw), batch.targets
        )

    return loss


def hessian_eigenvalue(state: SearchState, loss: Loss, batch: Batch) -> float:
    """The largest signed eigenvalue of d2 loss / d alpha2 at the present (theta, alpha), all of alpha as one vector.

    `loss` is `validation_loss`'s, or a search's own outer loss. Lanczos on Hessian-vector products, each one backward pass through the
    gradient's graph. Not through curvlinops: its release 3.0.1 gives the same number where no cell is fused, but takes products by
    functorch's vmap of jvp of jacrev, which a fused autograd function refuses, and its backpack requires torchvision.
    R-DARTS adds alpha's weight decay to the loss, hence 1e-3 to every eigenvalue.
    """
    meters, state.meters = state.meters, {}
    try:
        leaves = required(state.alpha)
        values = list(leaves.values())
        with torch.compiler.set_stance("force_eager"):  # programs of torch.compile have no second derivative
            outer = loss(detached(state.theta), leaves, batch)
        grads = torch.autograd.grad(outer, values, create_graph=True, materialize_grads=True)
    finally:
        state.meters = meters  # what a search's own loss has counted
    flat = torch.cat([grad.flatten() for grad in grads])
    if not flat.requires_grad:
        return 0.0  # linear in alpha

    def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
        direction = torch.as_tensor(v.ravel(), dtype=flat.dtype, device=flat.device)
        columns = torch.autograd.grad(flat, values, direction, retain_graph=True, materialize_grads=True)
        return torch.cat([column.flatten() for column in columns]).double().cpu().numpy()

    start = torch.randn(len(flat), generator=counted("eigenvalue"), dtype=torch.float64).numpy()
    shift = float(np.linalg.norm(product(start)) / np.linalg.norm(start))
    if shift == 0:
        return 0.0  # Lanczos cannot start on a zero matrix
    shifted = LinearOperator((len(flat), len(flat)), matvec=lambda v: product(v) + shift * v.ravel(), dtype=np.float64)
    accuracy = (
        0.0 if flat.dtype == torch.float64 else 1e-4
    )  # of H + shift, whose eigenvalue is not near 0; 0 is machine precision
    (value,) = eigsh(shifted, k=1, which="LA", v0=start, tol=accuracy, return_eigenvectors=False)
    return float(value) - shift


# ------------------------------------------------------------------ of the supernet as a judge


def discretisation_gap(state: SearchState, problem: Problem, genotype: Genotype, images: int = IMAGES) -> float:
    """Accuracy of the supernet minus that of the network `genotype` with the supernet's weights, both on validation images.

    The network's batch-norm statistics are re-estimated on as many training images. A partial-channel supernet's operations are
    narrower than the network's; there the network is the supernet itself with one-hot op weights and batch statistics.
    """
    shown = sample(problem.data.val, images, problem.seed)
    whole = supernet_accuracy(state, problem, state.op_weights(detached(state.alpha), state.draw("eval")), shown)
    with torch.random.fork_rng(devices=[]):  # a fresh network draws weights, which are then replaced
        network = problem.space.network(genotype).to(next(iter(state.alpha.values())))
    seen = sample(problem.data.train, images, problem.seed)
    try:
        problem.space.inherit(network, _weights(state.supernet), _plain(state, problem, seen))
    except UserError:
        return whole - supernet_accuracy(state, problem, one_hot(problem.space, genotype), shown)
    return whole - _network_accuracy(network, problem.task, _plain(state, problem, shown))


def kendall_tau(
    state: SearchState,
    problem: Problem,
    table: Table,
    cells: Sequence[Genotype],
    metric: str = "cifar10/test",
    images: int = IMAGES,
) -> float:
    """Rank correlation (tau-b) over `cells` between the supernet's accuracy with one-hot op weights and the table's metric.

    In [-1, 1]; 0 where either cannot tell any two cells apart. Isomorphic cells would count twice: `table.sample` has none.
    """
    shown = sample(problem.data.val, images, problem.seed)
    scores = [supernet_accuracy(state, problem, one_hot(problem.space, cell), shown) for cell in cells]
    truth = [table.value(cell, metric) for cell in cells]
    if len(set(scores)) < 2 or len(set(truth)) < 2:
        return 0.0
    return float(kendalltau(scores, truth).statistic)


@torch.no_grad()
def supernet_accuracy(state: SearchState, problem: Problem, weights: OpWeights, images: ImageSet) -> float:
    """The task's score (accuracy, mean IoU) of the supernet with these op weights, batch by batch, by batch statistics."""
    like = next(iter(state.alpha.values()))
    placed = {cell: w.to(like) for cell, w in weights.items()}
    draw = state.draw("eval")
    counts = [
        problem.task.confusion(_outputs(state, problem, None, placed, batch, draw), batch.targets)
        for batch in _plain(state, problem, images)
        if len(batch.targets) > 1  # batch statistics of one image are no statistics
    ]
    return problem.task.score(sum(counts[1:], counts[0])) if counts else 0.0


def one_hot(space: Space, genotype: Genotype) -> OpWeights:
    """Op weights that are a genotype: the coefficient (1) where it chose, 0 elsewhere. Raises UserError for a foreign genotype."""
    space.check(genotype)
    by_group = {}
    for group in space.groups:
        w = torch.zeros(len(group.edges), group.width)
        for c in genotype.groups[group.name]:
            w[group.entry(c.source, c.target, c.op)] = c.coefficient
        by_group[group.name] = w
    return space.spread(by_group)


def sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    """At most `count` of the images, always the same ones, in their order."""
    chosen = torch.randperm(len(images), generator=counted(seed, "probe"))[:count]
    return images.subset(chosen.sort().values)


# ------------------------------------------------------------------ helpers


def _outputs(
    state: SearchState, problem: Problem, theta: Params | None, weights: OpWeights, batch: Batch, draw: Draw
) -> Tensor:
    """What the supernet says to a batch; `theta` replaces its weights, None leaves them."""
    images = batch.images.to(next(iter(state.alpha.values())).dtype)
    with problem.fabric.autocast():
        outputs, _ = torch.func.functional_call(state.supernet, theta or {}, (images, weights, draw))
    assert isinstance(outputs, Tensor)
    return outputs.to(images.dtype)


def _plain(state: SearchState, problem: Problem, images: ImageSet) -> Iterator[Batch]:
    """One pass over the images, not augmented, in alpha's precision."""
    dtype = next(iter(state.alpha.values())).dtype
    for batch in batches(images, problem.batch, none(problem.data), problem.fabric.device):
        yield Batch(batch.images.to(dtype), batch.targets)


@torch.no_grad()
def _weights(supernet: nn.Module) -> Params:
    """Every weight by its own name, those too that are made of others (`WeightSubset`)."""
    made = {
        f"{path}.{name}": getattr(module, name)
        for path, module in supernet.named_modules()
        if is_parametrized(module)
        for name in module.parametrizations
    }
    return dict(supernet.named_parameters()) | made


@torch.no_grad()
def _network_accuracy(network: nn.Module, task: Task, shown: Iterable[Batch]) -> float:
    network.eval()
    counts = [task.confusion(network(batch.images), batch.targets) for batch in shown]
    return task.score(sum(counts[1:], counts[0])) if counts else 0.0
