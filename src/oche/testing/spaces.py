"""Checks of a search space."""

from __future__ import annotations

from dataclasses import replace

import torch

from oche import config
from oche.base import Draw, counted
from oche.genotype import Genotype
from oche.methods.random_search_ws import one_hot
from oche.spaces import Space
from oche.spaces.cost import cost
from oche.spaces.edges import WeightedSum
from oche.spaces.neighbours import neighbours
from oche.spaces.sampling import sample
from oche.testing.noise import assert_true


def check_space(space: Space) -> None:
    """Checks a space: its genotypes, its supernet and its networks, on noise images of several sizes.

    Sampled genotypes and their neighbours belong to it and survive JSON; supernet and network return one row per image for any size and
    number of channels; a forward pass of the supernet leaves no trace; gradients reach the op weights; a network without pools that
    inherits the supernet's weights computes what the supernet computes with one operation per edge.
    """
    name, found = space.name, [sample(space, counted(seed, "check space")) for seed in range(4)]
    assert_true(space.cardinality() >= len({g.hash for g in found}), f"{name} has fewer genotypes than can be drawn.")
    for genotype in found:
        space.check(genotype)
        assert_true(
            Genotype.from_json(genotype.to_json()) == genotype, f"{name}: a genotype changes when written as JSON."
        )
        for other in list(neighbours(space, genotype))[:5]:
            space.check(other)
            near = any(g.hash == genotype.hash for g in neighbours(space, other))
            assert_true(near, f"{name}: a genotype is no neighbour of its neighbour.")
    restored = config.restore(space, config.loads(config.dumps(config.describe(space)), name), name)
    assert_true(restored == space, f"{name} is another space once it was written to run.toml and read again.")
    for inputs, size, outputs in ((1, (8, 8), 2), (3, (9, 12), 5)):
        _check_networks(replace(space, inputs=inputs, size=size, outputs=outputs), found[0])
    assert_true(cost(space, found[0]).parameters > 0, f"{name}: a network has no weights.")


def _check_networks(space: Space, genotype: Genotype) -> None:
    x = torch.randn(4, space.inputs, *space.size, generator=torch.Generator().manual_seed(0))
    shape = (4, space.outputs, *(space.size if space.task == "segment" else ()))
    where = f"{space.name} on {space.inputs}x{space.size[0]}x{space.size[1]}"
    supernet, draw = space.supernet(WeightedSum(), affine=True), Draw(3)
    held = set(supernet.body.cells)
    missing = [cell for cell in space.cell_groups() if cell not in held]
    assert_true(not missing, f"{where}: the body has no cell {', '.join(missing[:3])}, which a group names.")
    w = {g.name: (torch.ones(len(g.edges), g.width) * g.valid() / g.width).requires_grad_() for g in space.groups}
    before = {key: t.clone() for key, t in supernet.state_dict().items()}
    out, _ = supernet(x, space.spread(w), draw)
    assert_true(out.shape == shape, f"{where}: the supernet returns {tuple(out.shape)}, not {shape}.")
    again, _ = supernet(x, space.spread(w), draw)
    changed = [key for key, t in supernet.state_dict().items() if not torch.equal(t, before[key])]
    assert_true(
        bool(torch.equal(out, again)) and not changed, f"{where}: a forward pass of the supernet leaves a trace."
    )
    used = [g.name for g in space.groups if g.cells]
    grads = torch.autograd.grad(out.square().sum(), [w[key] for key in used], materialize_grads=True)
    idle = [key for key, g in zip(used, grads, strict=True) if not g.any()]
    assert_true(
        not idle, f"{where}: no gradient reaches the op weights of {', '.join(idle)}: does `forward` run every cell?"
    )
    network = space.network(genotype)
    assert_true(network(x).shape == shape, f"{where}: the network returns {tuple(network(x).shape)}, not {shape}.")
    if any("pool" in c.op or c.op == "noise" for choices in genotype.groups.values() for c in choices):
        return  # a supernet's pool may have a batch norm that a network has not
    space.inherit(network, dict(supernet.named_parameters()), [])
    corner = {g.name: one_hot(g, genotype.groups[g.name]) for g in space.groups}
    with torch.no_grad():
        expected, _ = supernet(x, space.spread(corner), draw)
        close = torch.allclose(network.train()(x), expected, rtol=1e-3, atol=1e-4)
    assert_true(close, f"{where}: a network with the supernet's weights does not compute what the supernet computes.")
