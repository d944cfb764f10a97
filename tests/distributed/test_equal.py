"""Two processes with batch norm over both compute what one process computes on the same batch, for every part that is differentiated."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from contracts import registry
from oche.base import Draw, Part, counted
from oche.data import SPLITS, none
from oche.methods import METHODS, method_named
from oche.methods.darts import darts
from oche.methods.fault_darts import fault_darts
from oche.optim import Descent
from oche.search.bilevel import FirstOrder, Unrolled
from oche.search.method import Method
from oche.search.searcher import as_searcher
from oche.search.state import Problem
from oche.spaces.attention import Chooser, choose_together
from oche.spaces.edges import SampledOps
from oche.spaces.sampling import sample
from oche.spaces.signals import DIAGNOSIS_OPS
from oche.spaces.synchronised import SynchronisedBatchNorm, alone_again, synchronise
from oche.tasks import Classify
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.tiny import tiny_data, tiny_space
from reference.together import dropped, fabric_of, in_two, parts, searched

CLOSE = 1e-9
"""What the issue asks for after 20 steps in double precision; found: below 1e-15, and 1e-12 for the differences of Lambda-DARTS."""

STEP = method_named("darts", {})


def methods() -> tuple[Method, ...]:
    """Every architecture gradient of the registry, in DARTS."""
    assert isinstance(STEP, Method)
    gradients = [replace(STEP, arch_gradient=g) for g in registry.ARCH_GRADIENTS]
    return (*gradients, *(replace(STEP, arch_gradient=g, arch_optimizer=Descent(1.0)) for g in registry.TRIED))


def drawn() -> tuple[Method, ...]:
    """Every relaxation, edge and choice of weights of the registry, in DARTS: what is sampled, dropped or frozen."""
    assert isinstance(STEP, Method)
    # hard samples on edges that compute only what is drawn, as in GDAS; docs/scale.md says what others do
    on = {True: SampledOps()}
    relaxed = [
        replace(STEP, relaxation=r, edge=on.get(getattr(r, "hard", False), STEP.edge)) for r in registry.RELAXATIONS
    ]
    edges = [replace(STEP, edge=e) for e in registry.EDGE_TYPES]
    return (*relaxed, *edges, *(replace(STEP, trainable=t) for t in (*registry.TRAINABLES, *registry.CONTROLS)))


def assert_same(one: dict[str, Any], other: dict[str, Any], within: float) -> None:
    for part in ("alpha", "theta"):
        assert one[part].keys() == other[part].keys()
        for name, t in one[part].items():
            torch.testing.assert_close(t, other[part][name], atol=within, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert_alike(one["epochs"], other["epochs"], within)


def assert_alike(one: Any, other: Any, within: float = CLOSE) -> None:
    """The same but for the last digits of floats, in lists and tables."""
    if isinstance(one, dict | list):
        keys = list(one) if isinstance(one, dict) else range(len(one))
        assert keys == (list(other) if isinstance(other, dict) else range(len(other)))
        for key in keys:
            assert_alike(one[key], other[key], within)
    else:
        both = isinstance(one, float) and isinstance(other, float)
        assert one == other or (both and math.isclose(one, other, abs_tol=within, rel_tol=within)), (one, other)


def assert_equal(together: tuple[Any, Any], alone: list[dict[str, Any]]) -> None:
    for first, second, one in zip(*together, alone, strict=True):
        assert_same(first, second, within=0.0)
        assert first["genotype"] == second["genotype"]
        assert_same(first, one, CLOSE)


@pytest.mark.usefixtures("float64")
def test_gradients_in_short(tmp_path: Path) -> None:
    """Three steps of the first and of the second order; all gradients and the 21 steps of the next test take longer."""
    chosen, epochs = [m for m in methods() if m.arch_gradient in (FirstOrder(), Unrolled())], [1, 1]
    assert_equal(in_two(tmp_path, searched, chosen, epochs), searched(fabric_of(1), chosen, epochs))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("number", range(len(methods())))
def test_gradients(number: int, tmp_path: Path) -> None:
    chosen = [methods()[number]]
    alone = searched(fabric_of(1), chosen, [7])
    assert alone[0]["steps"] > 20
    assert_equal(in_two(tmp_path, searched, chosen, [7]), alone)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "order", [{"arch_first": False}, {"arch_every": 2}, {"single_level": True, "split": SPLITS["redrawn"]}]
)
def test_orders_of_steps(order: dict[str, Any], tmp_path: Path) -> None:
    chosen = [replace(darts(), **order)]
    assert_equal(in_two(tmp_path, searched, chosen, [7]), searched(fabric_of(1), chosen, [7]))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("number", range(len(drawn())))
def test_what_is_drawn_or_frozen(number: int, tmp_path: Path) -> None:
    chosen = [drawn()[number]]
    assert_equal(in_two(tmp_path, searched, chosen, [2]), searched(fabric_of(1), chosen, [2]))


SINGLE = ("ddpnas", "rdarts_pick")
"""Methods that train whole networks inside, which take images in single precision."""


PRUNING = ("fault_darts",)
"""Methods that drop operations: fused cells leave the weights of what is dropped as they are, plain ones let them decay."""


def without_dropped(found: list[dict[str, Any]]) -> set[str]:
    """Takes the weights of dropped operations out of searches; their names."""
    lost = {name for one in found for name in one.pop("dropped")}
    for one in found:
        one["theta"] = {name: t for name, t in one["theta"].items() if name not in lost}
    return lost


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [name for name in METHODS if name not in SINGLE])
def test_methods(name: str, tmp_path: Path) -> None:
    """Callbacks, terms and stages of every method, too. A method that asks for cells finds the same one."""
    epochs = [max(7, registry.epochs(name, "toy"))]
    alone = searched(fabric_of(1), [registry.small(name)], epochs)
    one, other = in_two(tmp_path, searched, [registry.small(name)], epochs)
    if name in PRUNING:
        assert without_dropped(alone) == without_dropped(one) == without_dropped(other) != set()
    if "alpha" in alone[0]:
        assert_equal((one, other), alone)
    else:
        assert one == other
        assert_alike(one, alone)


def pruned(fabric: Fabric) -> list[dict[str, Any]]:
    """A search on signals that drops operations at the end of every epoch, and what it has left after each."""
    data, left = tiny_data(24, (1, 24)), list[object]()
    sizes = {"channels": 4, "layers": (2, 1), "widths": (1.0, 2.0), "strides": (1, 2), "ops": DIAGNOSIS_OPS}

    def listen(event: str, record: Any) -> None:
        if event == "epoch":
            left.append({name: record[name] for name in ("operations_left", "weight_loss", "arch_loss", "entropy")})

    space = tiny_space("signal", data, **sizes)
    problem = Problem(space, data, Classify(), none(data), 5, 4, fabric=fabric, sync=True, listener=listen)
    genotype, state = as_searcher(fault_darts()).run(problem)
    return [{**parts(state), "genotype": str(genotype), "epochs": left, "dropped": dropped(state)}]


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_operations_of_signals_are_pruned_alike(tmp_path: Path) -> None:
    """Eleven candidates per layer, of which one is left; fifteen steps."""
    alone = pruned(fabric_of(1))
    one, other = in_two(tmp_path, pruned)
    assert [row["operations_left"] for row in alone[0]["epochs"]] == [11, 9, 6, 4, 1]
    assert without_dropped(alone) == without_dropped(one) == without_dropped(other) != set()
    assert any(".ops." in name for name in alone[0]["theta"]), "what is left is compared"
    assert_equal((one, other), alone)


# ------------------------------------------------------------------ batch norm


def normed(fabric: Fabric, *, whole: bool = False) -> dict[str, Tensor]:
    """Outputs, gradients, gradients of a gradient, and running statistics of a batch norm over both processes, or over all images."""
    torch.manual_seed(5)
    x, w = torch.randn(6, 3, 4, 4) * 3 + 100, torch.randn(6, 3, 4, 4)
    norm = nn.BatchNorm2d(3, momentum=0.3)
    nn.init.uniform_(norm.weight)
    if not whole:
        synchronise(norm, fabric)
        x, w = (t.chunk(2)[fabric.global_rank] for t in (x, w))
    x = x.clone().requires_grad_()
    out = norm(x)
    loss = (out.square() * w).sum() + (out * w).sin().sum()
    first = torch.autograd.grad(loss, [x, norm.weight, norm.bias], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, norm.weight])
    found = {"out": out, "dx": first[0], "dw": first[1], "db": first[2], "ddx": second[0], "ddw": second[1]}
    running = {name: t.clone() for name, t in norm.named_buffers()}
    evaluated = norm.eval()(x)
    return {name: t.detach() for name, t in {**found, **running, "evaluated": evaluated}.items()}


@pytest.mark.usefixtures("float64")
def test_batch_norm_over_processes(tmp_path: Path) -> None:
    """Each process has the gradients of the sum of both losses; a gradient in the weights is that of its own images."""
    whole = normed(fabric_of(1), whole=True)
    one, other = in_two(tmp_path, normed)
    for name in ("out", "dx", "evaluated"):
        torch.testing.assert_close(torch.cat([one[name], other[name]]), whole[name], atol=1e-12, rtol=1e-12)
    for name in ("dw", "db"):
        torch.testing.assert_close(one[name] + other[name], whole[name], atol=1e-11, rtol=1e-12)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(one[name], whole[name], atol=1e-12, rtol=1e-12)
        assert torch.equal(one[name], other[name])


def test_synchronising_is_undone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    synchronise(net, fabric_of(1))
    assert isinstance(net[1], SynchronisedBatchNorm)
    alone_again(net)
    assert type(net[1]) is nn.BatchNorm2d
    assert "fabric" not in vars(net[1])


# ------------------------------------------------------------------ channels by attention


def channels(fabric: Fabric) -> dict[str, Tensor]:
    """The channels that a process searches whose own image asks for others than the whole batch does."""
    part = Part(fabric.global_rank, fabric.world_size)
    attention = torch.tensor([[9.0, 0.0, 5.0, 4.0], [0.0, 9.0, 5.0, 6.0]])[:, :, None, None]
    choose = Chooser(2)
    choose_together(nn.Sequential(choose), fabric)
    own = attention.chunk(fabric.world_size)[fabric.global_rank]
    return {
        "shared": choose(own, Draw(0, phase="weight", part=part)),
        "alone": choose(own, Draw(0)),
    }


def test_channels_are_chosen_by_all_images(tmp_path: Path) -> None:
    """Sums 9, 9, 10, 10: the last two in any number of processes. Where a draw shares nothing, none waits for another."""
    one, other = in_two(tmp_path, channels)
    for found in (one, other, channels(fabric_of(1))):
        assert sorted(found["shared"].tolist()) == [2, 3]
    assert [one["alone"].tolist(), other["alone"].tolist()] == [[0, 2], [1, 3]]


# ------------------------------------------------------------------ training


def trained(fabric: Fabric, sync: bool = True) -> dict[str, Tensor]:
    data = tiny_data(24)
    space = tiny_space("toy", data)
    protocol = replace(PROTOCOLS["smoke"], epochs=2, batch=8, drop_path=0.3, cutout=16)
    network = retrain(Training(space, sample(space, counted(1)), data, protocol, 0, fabric, sync=sync))
    assert not any(isinstance(m, SynchronisedBatchNorm) for m in network.modules())
    return {name: t.detach().clone() for name, t in network.state_dict().items()}


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    """In single precision, for training takes no other. Without batch norm over both, the two still hold one network, of other weights."""
    alone = trained(fabric_of(1))
    one, other = in_two(tmp_path, trained)
    apart, _ = in_two(tmp_path, trained, False)
    for name, t in alone.items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], t, atol=2e-5, rtol=1e-4)
    assert any(not torch.allclose(apart[name], t, atol=1e-3) for name, t in alone.items())
