"""Two processes on the CPU: both end with the same alpha and weights, and every gradient was the mean of the two."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from oche.base import counted
from oche.data import SPLITS, Stream
from oche.methods import METHODS
from oche.methods.single_stage import single_stage
from oche.optim import SGD, average
from oche.run import Run
from oche.schedule import Constant
from oche.search import loop
from oche.search.method import Method
from oche.search.state import Problem
from oche.spaces.sampling import sample
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.tiny import tiny_data, tiny_problem, tiny_space

pytestmark = pytest.mark.slow


def fabric(devices: int) -> Fabric:
    return Fabric(accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto")


def problem(f: Fabric, epochs: int = 2, run: Run | None = None) -> Problem:
    return replace(tiny_problem("toy", epochs=epochs, count=24, batch=6), fabric=f, run=run)


def method(name: str) -> Method:
    built = METHODS[name]()
    assert isinstance(built, Method)
    return built


def searching(f: Fabric, folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    run = Run(folder / "run")
    result = loop.search(problem(f, run=run), method(name))
    state = result.state
    torch.save(
        {
            "alpha": dict(state.alpha),
            "theta": state.theta,
            "genotype": str(result.genotype),
            "world": f.world_size,
            "pid": os.getpid(),
        },
        folder / f"rank{f.global_rank}.pt",
    )


@pytest.mark.parametrize("name", ["darts", "darts_2nd", "rf_pcdarts"])
def test_both_processes_hold_the_same_search(name: str, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    fabric(2).launch(searching, tmp_path, name)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["world"] == other["world"] == 2
    assert one["pid"] != other["pid"]
    assert one["genotype"] == other["genotype"]
    for part in ("alpha", "theta"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
    assert [r["kind"] for r in run.records()] == ["epoch", "epoch", "supernet"], "one process writes, once"
    alone = loop.search(problem(fabric(1)), method(name)).state
    assert any(not torch.equal(one["alpha"][key], alone.alpha[key]) for key in alone.alpha), (
        "the other process changed nothing"
    )


def stepping(f: Fabric, folder: Path) -> None:
    """One architecture step and one weight step, of plain gradient descent, so that alpha shows its gradient."""
    torch.set_num_threads(1)
    p, m = problem(f), replace(method("darts"), weight_optimizer=SGD(0.0, 0.0), weight_lr=Constant(0.1), clip=None)
    state = loop.begin(p, m)
    loop.set_learning_rate(state, m, 1)
    now = loop.StepBatches(*loop.streams(p, m), 0)
    losses = loop.bilevel(state, m)
    _, own = m.arch_gradient(losses, state.theta, state.alpha, now)
    state.meters = {}
    before = {name: t.detach().clone() for name, t in state.theta.items()}
    loop.arch_step(state, m, losses, now)
    used = {name: t.grad for name, t in state.alpha.items()}
    alpha = {name: t.detach().clone() for name, t in state.alpha.items()}
    loss, _ = state.task_loss(state.op_weights(alpha, state.draw("weight")), now.inner(), state.draw("weight"))
    grads = torch.autograd.grad(loss, list(state.theta.values()), allow_unused=True)
    loop.weight_step(state, m, losses, now)
    torch.save(
        {
            "own": own,
            "used": used,
            "before": before,
            "own weight": {
                n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(state.theta.items(), grads, strict=True)
            },
            "after": {name: t.detach() for name, t in state.theta.items()},
            "images": now.inner().images,
        },
        folder / f"rank{f.global_rank}.pt",
    )


def test_gradients_are_the_mean_of_both_processes(tmp_path: Path) -> None:
    """Alpha's gradient and the weights' are (g0 + g1) / 2, each g taken by hand from the process's own batch."""
    fabric(2).launch(stepping, tmp_path)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(one["images"], other["images"]), "both saw the same batch"
    for name in one["own"]:
        assert not torch.equal(one["own"][name], other["own"][name])
        mean = (one["own"][name] + other["own"][name]) / 2
        torch.testing.assert_close(one["used"][name], mean, atol=1e-8, rtol=1e-6)
        assert torch.equal(one["used"][name], other["used"][name])
    for name in one["before"]:
        assert torch.equal(one["before"][name], other["before"][name])
        mean = (one["own weight"][name] + other["own weight"][name]) / 2
        torch.testing.assert_close(one["after"][name], one["before"][name] - 0.1 * mean, atol=1e-7, rtol=1e-5)
        assert torch.equal(one["after"][name], other["after"][name])


def training(f: Fabric, folder: Path) -> None:
    torch.set_num_threads(1)
    data = tiny_data(24)
    space = tiny_space("toy", data)
    protocol = replace(PROTOCOLS["smoke"], epochs=2, batch=8)
    network = retrain(Training(space, sample(space, counted(1)), data, protocol, 0, f, Run(folder / "run")))
    torch.save({name: p.detach() for name, p in network.named_parameters()}, folder / f"rank{f.global_rank}.pt")
    torch.save(dict(network.named_buffers()), folder / f"buffers{f.global_rank}.pt")


def test_both_processes_train_one_network(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    fabric(2).launch(training, tmp_path)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (torch.load(tmp_path / f"buffers{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one), "running statistics are the mean of both"
    assert [r["kind"] for r in run.records()] == ["train_epoch"] * 2


def splitting(f: Fabric, folder: Path, name: str) -> None:
    """A whole single-stage search; what both streams showed, by what they are called and the epoch."""
    torch.set_num_threads(1)
    shown: dict[str, list[int]] = {}
    at = Stream.at

    def look(self: Stream, i: int) -> object:
        shown.setdefault(self.purpose, []).extend(self.images.index[self.positions(i)].tolist())
        return at(self, i)

    Stream.at = look  # type: ignore[assignment,method-assign]  # in a forked process of its own
    searcher = single_stage()
    searcher = replace(searcher, method=replace(searcher.method, split=SPLITS[name]))
    state = searcher.search(replace(tiny_problem("toy", epochs=5, count=25, batch=6), fabric=f)).state
    ended = {n: t.detach() for n, t in (*state.theta.items(), *state.alpha.items())}
    torch.save({"ended": ended, "shown": shown}, folder / f"rank{f.global_rank}.pt")


@pytest.mark.parametrize("name", ["redrawn", "swap", "until_freeze", "one_level"])
def test_split_arms_in_two_processes(name: str, tmp_path: Path) -> None:
    """25 images: parts are disjoint over both processes together, every image of a part is shown, and both end with one network."""
    fabric(2).launch(splitting, tmp_path, name)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(t, other["ended"][n]) for n, t in one["ended"].items())
    assert one["shown"].keys() == other["shown"].keys()
    shown = {key: set(one["shown"][key]) | set(other["shown"][key]) for key in one["shown"]}
    everything = set(range(25))
    if name == "one_level":
        assert shown == {"weights": everything}
    elif name == "until_freeze":
        assert not shown["weights"] & shown["arch"]
        assert shown["weights"] | shown["arch"] == shown["weights/3"] == shown["weights/4"] == everything
    else:
        assert all(shown[f"weights/{e}"] | shown[f"arch/{e}"] == everything for e in (1, 2))
        assert not any(shown[f"weights/{e}"] & shown[f"arch/{e}"] for e in (1, 2))


def averaging(f: Fabric, folder: Path) -> None:
    tensors = [torch.full((2, 3), float(f.global_rank)), torch.tensor(10.0 * f.global_rank)]
    got = average(f, tensors)
    torch.save(got, folder / f"rank{f.global_rank}.pt")


def test_average_is_the_mean_of_each_tensor(tmp_path: Path) -> None:
    fabric(2).launch(averaging, tmp_path)
    for rank in (0, 1):
        first, second = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert torch.equal(first, torch.full((2, 3), 0.5))
        assert second.shape == ()
        assert float(second) == 5.0


def test_the_command_in_two_processes_makes_one_run(tmp_path: Path) -> None:
    """Search, then training: one folder each, every record once, and one process speaks."""
    oche = Path(sys.executable).parent / "oche"
    options = ["--devices", "2", "--device", "cpu", "--protocol", "smoke"]
    commands = [
        [
            "search",
            "darts",
            "--space",
            "toy",
            "--budget",
            "smoke",
            "--compare",
            "1",
            "--compare-seeds",
            "1",
            "--out",
            "found",
            *options,
        ],
        ["train", "found", "--epochs", "1", "--out", "trained", *options],
    ]
    for command in commands:
        done = subprocess.run(
            [oche, *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Everything lies in") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found", "trained"]
    kinds = [[r["kind"] for r in Run.open(tmp_path / name).records()] for name in ("found", "trained")]
    assert kinds == [
        ["epoch", "epoch", "supernet", "test", "confusion", *["trained"] * 3, "comparison"],
        ["train_epoch", "test", "confusion"],
    ]
