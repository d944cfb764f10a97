"""OLES: what freezes, when, and that it rests bit for bit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oche.methods.oles import (
    BestEpoch,
    FreezeOverfitted,
    RememberAccuracy,
    clipping,
    oles,
    operations,
    similarity,
)
from oche.search.begin import begin
from oche.search.callbacks import OuterStep
from oche.search.loop import search
from oche.search.record import score
from oche.search.selection import TopK
from oche.search.state import SearchState
from reference.real import cifar, digits, epochs_of, real_problem
from reference.tiny import tiny_problem


def fed(state: SearchState, rule: FreezeOverfitted, sign: float, steps: int) -> None:
    """The same gradient again and again in training, `sign` times it in validation."""
    for _ in range(steps):
        grads = {name: torch.ones_like(t) for name, t in state.theta.items()}
        rule.after_inner_backward(state, grads, None)  # type: ignore[arg-type]
        outer = OuterStep(torch.zeros(()), {name: sign * g for name, g in grads.items()})
        rule.after_outer_backward(state, {}, outer)


def test_agreeing_gradients_never_freeze() -> None:
    state = begin(tiny_problem("nb201", channels=4, cells=1), oles())
    learns = state.learns
    fed(state, FreezeOverfitted(), 1.0, 63)
    assert state.learns == learns


def test_opposed_gradients_freeze_operations_after_exactly_a_window() -> None:
    state = begin(tiny_problem("nb201", channels=4, cells=1), oles())
    learns = state.learns
    fed(state, FreezeOverfitted(), -2.0, 20)
    assert state.learns == learns
    fed(state, FreezeOverfitted(), -2.0, 1)
    inside = {name for names in operations(learns).values() for name in names}
    assert inside
    assert state.learns == learns - inside
    assert all("edges" in name for name in inside)


def test_frozen_weights_rest_bit_for_bit_and_the_others_learn() -> None:
    """A threshold above every cosine freezes all operations after two steps of the six."""
    problem = tiny_problem("nb201", epochs=1, channels=4, cells=1)
    method = replace(oles(), callbacks=(FreezeOverfitted(1, 2.0, "paper"),))
    early = search(problem, method).state
    late = search(replace(problem, epochs=3), replace(method, weight_lr=method.weight_lr)).state
    assert early.learns == late.learns < frozenset(dict(early.supernet.named_parameters()))
    own, other = dict(early.supernet.named_parameters()), dict(late.supernet.named_parameters())
    for name in own.keys() - early.learns:
        assert torch.equal(own[name], other[name]), name
    assert any(not torch.equal(own[name], other[name]) for name in early.learns)


def test_similarity_is_the_mean_cosine_of_the_columns() -> None:
    a, b = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    columns = [(x @ y) / (x.norm() * y.norm()) for x, y in zip(a.flatten(1).T, b.flatten(1).T, strict=True)]
    assert float(similarity(a, b)) == pytest.approx(float(torch.stack(columns).mean()))


def test_the_genotype_is_that_from_which_the_best_epoch_began() -> None:
    state = search(tiny_problem("toy", epochs=4), oles()).state
    state.memory["accuracies"] = torch.tensor([0.1, 0.7, 0.7, 0.2])
    for at_end in (False, True):
        wanted = TopK()(state.at(1 + at_end), state.problem)
        assert BestEpoch(at_end=at_end)(state, state.problem) == wanted


def test_the_codes_quantity_is_the_sum_with_the_clipped_training_gradient() -> None:
    """21 similarities of (c g, c g + h) over 20, c the clip's factor; the paper's is the mean of 20 of (g, h)."""
    g, h = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    state = begin(tiny_problem("nb201", channels=4, cells=1), oles())
    op = next(op for op in operations(state.learns) if "nor_conv_1x1" in op)
    (name,) = operations(state.learns)[op]
    for rule, expected in (
        ("code", 21 / 20 * (0.6 / (0.6**2 + 2**2) ** 0.5 + 0.8 / (0.8**2 + 1**2) ** 0.5) / 2),
        ("paper", 0.0),
    ):
        for shift, freezes in ((-1e-6, False), (1e-6, True)):
            fresh = replace(state, memory={})
            part = FreezeOverfitted(20, expected + shift, rule, clip=1.0)  # type: ignore[arg-type]
            for _ in range(21 if rule == "code" else 20):
                part.after_inner_backward(fresh, {name: g}, None)  # type: ignore[arg-type]
                assert name in fresh.learns
                part.after_outer_backward(fresh, {}, OuterStep(torch.zeros(()), {name: h}))
            assert (name not in fresh.learns) == freezes, (rule, shift)
            fresh.learn(state.learns | {name})


def test_the_published_rule() -> None:
    (freeze, remember), selection = oles().callbacks, oles().selection
    assert freeze == FreezeOverfitted(20, 0.4, "code", 5.0)
    assert freeze == FreezeOverfitted()
    assert (remember, selection) == (RememberAccuracy("arch"), BestEpoch(at_end=False))
    assert (RememberAccuracy(), BestEpoch()) == (remember, selection)


def test_factorised_reductions_are_not_watched() -> None:
    state = begin(tiny_problem("darts", channels=4, cells=3, nodes=2), oles())
    own, all_ops = FreezeOverfitted().watched(state.learns), operations(state.learns)
    reductions = {op for op in all_ops if op.endswith("skip_connect")}
    assert reductions
    assert own.keys() == all_ops.keys() - reductions
    assert FreezeOverfitted(rule="paper").watched(state.learns) == all_ops


def test_accuracy_is_that_of_alphas_images() -> None:
    told: list[dict[str, object]] = []
    problem = replace(tiny_problem("nb201", epochs=2, channels=4, cells=1), listener=epochs_of(told))
    state = search(problem, oles()).state
    assert told[-1]["supernet_arch_accuracy"] == score(state, problem, state.arch_images)[0]
    assert float(state.memory["accuracies"][-1]) == told[-1]["supernet_arch_accuracy"]


@pytest.mark.parametrize(("images", "size"), [("arch", 12), ("val", 24)])
def test_accuracy_is_measured_on_the_images_it_is_named_for(
    images: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On half of the 24 training images, which alpha learns from, or on all 24 validation images."""
    asked: list[int] = []
    monkeypatch.setattr(
        sys.modules[BestEpoch.__module__], "score", lambda state, problem, part: (asked.append(len(part)) or 0.5, 0.0)
    )
    state = begin(tiny_problem("nb201", channels=4, cells=1), oles())
    record: dict[str, object] = {}
    for _ in range(2):
        RememberAccuracy(images).on_epoch_end(state, record)
    assert asked == [size, size]
    assert record == {"supernet_arch_accuracy" if images == "arch" else "val_accuracy": 0.5}
    assert state.memory["accuracies"].tolist() == [0.5, 0.5]


def test_the_clip_s_factor_is_what_torch_does_to_a_gradient() -> None:
    for bound in (0.5, 5.0, 1e-5):
        grads = {"a": torch.tensor([3.0, 0.0]) * 1e-5 * bound, "b": torch.tensor([4.0]) * bound}
        own = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads.values()]
        for p, g in zip(own, grads.values(), strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(own, bound)
        for p, g in zip(own, grads.values(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(g * clipping(grads, bound), p.grad, rtol=1e-6, atol=0)
    small = {"a": torch.tensor([0.3])}
    assert float(clipping(small, 5.0)) == 1.0
    tiny = {"a": torch.tensor([1e-6])}
    assert float(clipping(tiny, 1e-6)) == pytest.approx(0.5), "a norm of 1e-6 and torch's own 1e-6 beside it"


def test_the_paper_s_rule_takes_the_training_gradient_as_it_is() -> None:
    state = begin(tiny_problem("nb201", channels=4, cells=1), oles())
    grads = {name: torch.full_like(t, 3.0) for name, t in state.theta.items()}
    FreezeOverfitted(rule="paper").after_inner_backward(state, grads, None)  # type: ignore[arg-type]
    kept = [t for name, t in state.memory.items() if name.startswith("oles/grad")]
    assert kept
    assert all(torch.equal(t, torch.full_like(t, 3.0)) for t in kept)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["nb201", "darts"])
@pytest.mark.parametrize("source", ["digits", "cifar"])
def test_nothing_freezes_in_the_first_window_of_real_images(
    space: str, source: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """And the paper's quantity, to which the threshold does not fit, freezes every operation there."""
    data = digits() if source == "digits" else cifar(request.getfixturevalue("data_folder"), tmp_path)
    for rule, share in (("code", 0.0), ("paper", 1.0)):
        told: list[dict[str, Any]] = []
        problem = real_problem(space, data, 3, 64 if source == "digits" else 48, listener=epochs_of(told))
        search(problem, oles(rule=rule))  # type: ignore[arg-type]
        assert 22 <= told[-1]["step"] < 42, "one window and not two"
        assert told[-1]["watched_operations"] >= 36
        assert told[-1]["frozen_operations"] == share * told[-1]["watched_operations"]
