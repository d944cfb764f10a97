"""Fault diagnosis: the cost's term and its derivative by hand, the pruning against its rule written out, and a search on signals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracts.same import problem_of
from contracts.test_resume import content, run_with_kills
from oche.base import Batch, counted
from oche.data import none
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.methods.fault_darts import Complexity, PruneOperations, fault_darts, shares
from oche.run import Run
from oche.schedule import Ramp
from oche.search.begin import begin
from oche.search.loop import search
from oche.search.state import Problem, SearchState
from oche.search.terms import Entropy, discretisation
from oche.spaces import SignalSpace
from oche.spaces.cost import cost, each_candidate
from oche.spaces.signals import DIAGNOSIS_OPS
from oche.tasks import Classify
from reference.tiny import tiny_data

pytestmark = pytest.mark.usefixtures("float64")

NOTHING = Batch(torch.zeros(1), torch.zeros(1))
SMALL = SignalSpace(
    channels=3, layers=(2, 1), widths=(1.0, 2.0), strides=(1, 2), size=(1, 24), inputs=2, outputs=3, ops=DIAGNOSIS_OPS
)


def spread(space: str) -> SearchState:
    """A fresh state with alpha far from its start."""
    state = begin(problem_of(space), fault_darts())
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for t in state.alpha.values():
            t += torch.randn(t.shape, generator=rng, dtype=t.dtype)
    return state


def test_the_constants_are_those_of_the_docstring() -> None:
    method = fault_darts()
    assert method.outer_terms == (
        Complexity(0.1, "multiply_adds"),
        Entropy(ops=Ramp(0.5, 0.0, 1.0), measure=discretisation),
    )
    assert method.callbacks == (PruneOperations(0.1, 0.2, 1),) == (PruneOperations(),)
    assert method.space == {"signal.ops": DIAGNOSIS_OPS}
    kernels = {f"{kind}_conv_{k}" for kind in ("sep", "dil") for k in (3, 5, 7, 15)}
    assert set(DIAGNOSIS_OPS) == kernels | {"skip_connect", "max_pool_3", "avg_pool_3"}


@pytest.mark.parametrize(
    ("space", "of"),
    [("toy", "multiply_adds"), ("signal", "multiply_adds"), ("signal", "parameters"), ("darts", "parameters")],
)
def test_the_term_and_its_derivative(space: str, of: str) -> None:
    """d sum_o p_o c_o / d a_o = p_o (c_o - sum p c), with each candidate's cost counted on the module itself."""
    state = spread(space)
    found = Complexity(2.0, of)(state, {}, state.alpha, NOTHING)  # type: ignore[arg-type]
    grads = dict(zip(state.alpha, torch.autograd.grad(found, list(state.alpha.values())), strict=True))
    costs = {g.name: torch.zeros(len(g.edges), g.width) for g in state.space.groups}
    for c in each_candidate(state.space, True)[0]:
        module = getattr(c.module, "pool", c.module)  # the batch norm behind a supernet's pool is no part of a network
        weights = sum(p.numel() for p in module.parameters())
        adds = sum(conv_adds(module, c.shape)) / c.shape[0]
        costs[c.group][c.edge, c.number] += adds if of == "multiply_adds" else weights
    most = sum(float(t.max(1).values.sum()) for t in costs.values())
    total = 0.0
    for group in state.space.groups:
        p = state.alpha[f"{group.name}/alpha"].detach().masked_fill(~group.valid(), -math.inf).softmax(1)
        mean = (p * costs[group.name]).sum(1, keepdim=True)
        total += 2.0 * float(mean.sum()) / most
        torch.testing.assert_close(grads[f"{group.name}/alpha"], 2.0 * p * (costs[group.name] - mean) / most)
    assert float(found.detach()) == pytest.approx(total)
    assert 0 < total < 2


def conv_adds(module: torch.nn.Module, shape: torch.Size) -> list[float]:
    """The multiply-adds of every convolution, from the sizes of what it gives."""
    found: list[float] = []

    def seen(conv: torch.nn.Module, _: object, out: torch.Tensor) -> None:
        assert isinstance(conv, torch.nn.Conv2d)
        found.append(out.numel() * conv.weight[0].numel() + (out.numel() if conv.bias is not None else 0))

    hooks = [m.register_forward_hook(seen) for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        module(torch.zeros(shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return found


def test_what_is_free_costs_nothing() -> None:
    space = replace(SMALL, layers=(2,), widths=(1.0,), strides=(1,), ops=("skip_connect", "max_pool_3"))
    assert [t.tolist() for t in shares(space, "multiply_adds")] == [[[0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("seed", range(5))
def test_pruning_is_its_rule_written_out(seed: int) -> None:
    rng = counted(seed, "pruning")
    strength = torch.rand(6, 7, generator=rng).pow(4)
    alive = torch.rand(6, 7, generator=rng) < 0.7
    alive[:, 2] = True
    prune = PruneOperations(share=0.5, left=2)
    most = torch.randint(1, 8, (6,), generator=rng).tolist()
    found = prune.pruned(strength, alive, most)
    for e in range(6):
        there = [o for o in range(7) if alive[e, o]]
        total = sum(float(strength[e, o]) for o in there)
        ranked = sorted(there, key=lambda o: -float(strength[e, o]))
        kept = [o for o in ranked if float(strength[e, o]) / total >= 0.5 / len(there)][: most[e]] or ranked[:1]
        assert found[e].nonzero().flatten().tolist() == sorted(kept)


def test_the_steps_go_from_all_to_those_left() -> None:
    prune = PruneOperations(start=0.2, left=1)
    assert [prune.most(11, t) for t in (0.0, 0.2, 0.28, 0.6, 0.92, 0.93, 1.0)] == [11, 11, 10, 6, 2, 2, 1]
    assert [PruneOperations(start=0.0, left=3).most(5, t / 4) for t in range(5)] == [5, 5, 4, 4, 3]
    assert PruneOperations(left=3).most(2, 1.0) == 2  # an edge that has fewer keeps them
    for bad in ({"share": 1.5}, {"start": 1.0}, {"left": 0}):
        with pytest.raises(UserError, match="at least one operation"):
            PruneOperations(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(("space", "left"), [("darts", 2), ("nb201", 1)])
def test_an_edge_that_a_node_may_keep_has_an_operation(space: str, left: int) -> None:
    """At the end each edge has one left, `none` where it is the strongest; where nodes keep some of their edges an operation beside it."""
    state = spread(space)
    for group in state.space.groups:
        with torch.no_grad():
            state.alpha[f"{group.name}/alpha"][group.named("none")] = 9.0
    record: dict[str, object] = {}
    PruneOperations().on_epoch_end(state, record)
    assert record == {"operations_left": max(map(len, state.space.groups[0].ops))}, "nothing goes before the start"
    assert state.mask == {}
    state.step = state.steps
    PruneOperations().on_epoch_end(state, record)
    assert record == {"operations_left": left}
    for group, strength in state.strengths():
        for e, ops in enumerate(group.ops):
            ranked = sorted(range(len(ops)), key=lambda o, row=strength[e]: -float(row[o]))
            assert ops[ranked[0]] == "none"
            assert state.mask[group.name][e].nonzero().flatten().tolist() == sorted(ranked[:left])


def test_a_search_on_signals_decides_and_is_cheaper_for_it(tmp_path: Path) -> None:
    """Operations go by the steps, one is left for each layer, that one is handed out, and a high price is a smaller network."""
    data = tiny_data(8, (1, 24))
    problem = Problem(SMALL, data, Classify(), none(data), epochs=5, batch=4)
    seen, found = [], []
    for weight in (0.0, 100.0):
        run = Run.create(tmp_path / str(weight))
        result = search(replace(problem, run=run), fault_darts(complexity=weight))
        seen.append([row["operations_left"] for row in result.history if "operations_left" in row])
        found.append(cost(SMALL, result.genotype).multiply_adds)
        alive = result.state.alive(SMALL.groups[0])
        assert alive.sum(1).tolist() == [1, 1, 1]
        ops = [SMALL.groups[0].ops[e][int(row.nonzero())] for e, row in enumerate(alive)]
        assert result.genotype == Genotype("signal", {"chain": tuple(Choice(e, e + 1, op) for e, op in enumerate(ops))})
    assert seen[0] == [11, 9, 6, 4, 1]  # of 11: ceil(11 - 10 (t - 0.2) / 0.8)
    assert found[1] < found[0]


def test_a_search_on_signals_is_killed_and_resumed_to_the_bit(tmp_path: Path) -> None:
    """After every third step, while operations are dropped: all that a run keeps is that of an unbroken search."""
    data = tiny_data(12, (1, 24))
    contents = []
    for folder, every in (("whole", None), ("broken", 4)):
        run = Run.create(tmp_path / folder)
        run.write(Run.CONFIG, b"")
        problem = Problem(SMALL, data, Classify(), none(data), epochs=4, batch=4, run=run, checkpoint_every=1)
        assert (run_with_kills(fault_darts(), problem, every) > 0) == (every is not None)
        contents.append(content(run))
    assert [row["operations_left"] for row in contents[0]["log"] if "operations_left" in row] == [11, 8, 5, 1]
    assert contents[0].keys() == contents[1].keys()
    assert [key for key in contents[0] if contents[0][key] != contents[1][key]] == []
