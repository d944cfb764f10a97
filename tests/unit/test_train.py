"""Training from scratch: the published protocols, one step against a literal one, drop path, the auxiliary head, what is kept."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from oche.base import Draw, counted
from oche.data import Data, Stream, for_training, none
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.optim import SGD
from oche.plan.machine import fabric_for
from oche.run import Run
from oche.schedule import Constant, Cosine
from oche.spaces import SPACES, Network
from oche.spaces.sampling import sample
from oche.tasks import Classify
from oche.training.evaluate import evaluate
from oche.training.protocols import PROTOCOLS, Protocol
from oche.training.train import BEST, LAST, Training, begin, retrain, stream_of, train_epoch
from reference.inputs import checkpoint_cut_in_a_number
from reference.tiny import tiny_data, tiny_space

CPU = fabric_for("cpu")
PLAIN = Protocol(2, 8, Constant(0.05), SGD(0.9, 1e-3), drop_path=0.0, auxiliary=0.4)


def training(
    protocol: Protocol = PLAIN, space: str = "darts", data: Data | None = None, **settings: object
) -> Training:
    data = data or tiny_data(24)
    if space == "darts":
        settings = {"cells": 3, "channels": 4, **settings}
    bound = tiny_space(space, data, **settings)
    return Training(bound, sample(bound, counted(3)), data, protocol, 1, CPU)


# ---------------------------------------------------------------------- published protocols (notes on RF-DARTS, section 2.5)


@pytest.mark.parametrize(
    ("name", "cells", "channels", "epochs", "batch", "decay", "aux", "drop", "cutout", "smoothing", "keep"),
    [
        ("darts_cifar", 20, 36, 600, 96, 3e-4, 0.4, 0.2, 16, 0.0, "last"),
        ("pcdarts_cifar", 20, 36, 600, 96, 3e-4, 0.4, 0.3, 16, 0.0, "last"),
        ("robust_small", 8, 16, 600, 96, 3e-4, 0.4, 0.2, 16, 0.0, "last"),
        ("darts_imagenet", 14, 48, 250, 128, 3e-5, 0.4, 0.0, 0, 0.1, "best"),
        ("pcdarts_imagenet", 14, 48, 250, 1024, 3e-5, 0.4, 0.0, 0, 0.1, "best"),
    ],
)
def test_published_protocols(
    name: str, cells: int, channels: int, epochs: int, batch: int, decay: float, aux: float, drop: float, cutout: int,
    smoothing: float, keep: str,
) -> None:  # fmt: skip
    p = PROTOCOLS[name]
    assert (p.cells, p.channels, p.epochs, p.batch) == (cells, channels, epochs, batch)
    assert p.optimizer == SGD(momentum=0.9, weight_decay=decay, nesterov=False)
    assert (p.clip, p.auxiliary, p.drop_path, p.cutout, p.label_smoothing, p.keep) == (
        5.0,
        aux,
        drop,
        cutout,
        smoothing,
        keep,
    )


@pytest.mark.parametrize(
    ("name", "before", "trick"),
    [
        ("auxiliary", "base", {"auxiliary": 0.4}),
        ("drop_path", "base", {"drop_path": 0.2}),
        ("cutout", "base", {"cutout": 16}),
        ("cutout_drop_path", "cutout", {"drop_path": 0.2}),
        ("darts_cifar", "cutout_drop_path", {"auxiliary": 0.4}),
        ("wide", "darts_cifar", {"channels": 50}),
        ("autoaugment", "darts_cifar", {"policy": True}),
        ("long", "autoaugment", {"epochs": 1500}),
        ("long_wide", "long", {"channels": 50}),
    ],
)
def test_a_rung_of_the_ladder_is_one_trick_away(name: str, before: str, trick: dict[str, object]) -> None:
    rung, below = asdict(PROTOCOLS[name]), asdict(PROTOCOLS[before])
    assert rung.pop("source") != below.pop("source")
    assert {key: value for key, value in rung.items() if value != below[key]} == trick


def test_the_foot_of_the_ladder_has_no_trick() -> None:
    p = PROTOCOLS["base"]
    assert (p.auxiliary, p.drop_path, p.cutout, p.policy, p.label_smoothing) == (0.0, 0.0, 0, False, 0.0)
    assert (p.epochs, p.batch, p.cells, p.channels, p.clip, p.keep) == (600, 96, 20, 36, 5.0, "last")
    assert p.lr(0.0) == 0.025


def test_autoaugment_reaches_the_training() -> None:
    stream = stream_of(training(replace(PROTOCOLS["autoaugment"], epochs=1)))
    assert stream.augment.policy
    assert not stream_of(training(replace(PROTOCOLS["wide"], epochs=1))).augment.policy


def test_the_benchmark_protocol() -> None:
    """NAS-Bench-201's own 200 epochs (section 2.4): SGD 0.1 cosine to 0, Nesterov, 5e-4, batch 256, no cutout."""
    p = PROTOCOLS["nb201"]
    assert (p.epochs, p.batch, p.optimizer, p.cutout, p.drop_path, p.auxiliary) == (
        200,
        256,
        SGD(0.9, 5e-4, True),
        0,
        0.0,
        0.0,
    )
    assert (p.cells, p.channels) == (5, 16)
    assert p.lr(0.0) == 0.1
    assert p.lr(1.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("epoch", [0, 1, 2, 3, 4, 5, 100, 243, 244, 245, 246, 249])
def test_published_learning_rates(epoch: int) -> None:
    """By epoch, each from its own code: cosine; x0.97 an epoch; linear with a warm-up of 5 and a gentler tail of 5."""
    assert PROTOCOLS["darts_cifar"].lr(epoch / 600) == pytest.approx(0.025 * (1 + math.cos(math.pi * epoch / 600)) / 2)
    assert PROTOCOLS["darts_imagenet"].lr(epoch / 250) == pytest.approx(0.1 * 0.97**epoch)
    lr = 0.5 * ((245 - epoch) / 245 if 250 - epoch > 5 else (250 - epoch) / (245 * 5))
    if epoch < 5:
        lr *= (epoch + 1) / 5
    assert PROTOCOLS["pcdarts_imagenet"].lr(epoch / 250) == pytest.approx(lr)


def test_the_published_network_of_darts() -> None:
    """DARTS_V2 at C=36, L=20 without the auxiliary head has 3,349,342 parameters."""
    p = PROTOCOLS["darts_cifar"]
    space = SPACES["darts"](inputs=3, outputs=10, size=(32, 32), channels=p.channels, cells=p.cells)
    with torch.device("meta"):
        network = space.network(Genotype.parse("DARTS_V2"))
    assert sum(t.numel() for t in network.parameters()) == 3_349_342


# ---------------------------------------------------------------------- one step


def literal_epoch(network: Network, t: Training, lr: float, ramp: float) -> dict[str, Tensor]:
    """One epoch written out: SGD with momentum by hand, clip, auxiliary loss, label smoothing. Parameters after it."""
    p, velocity = t.protocol, dict[str, Tensor]()
    stream = Stream(t.data.train, p.batch, t.seed, "train", for_training(t.data, p.cutout), "cpu")
    network.train()
    for i in range(stream.steps_per_epoch):
        batch = stream.at(i)
        outputs, side = network.heads(batch.images, Draw(t.seed, i, "train"), ramp)

        def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
            classes = logits.shape[1]
            smooth = torch.full_like(logits, p.label_smoothing / classes)
            smooth[torch.arange(len(targets)), targets] += 1 - p.label_smoothing
            return -(smooth * logits.log_softmax(1)).sum(1).mean()

        loss = loss_of(outputs, batch.targets)
        if side is not None:
            loss = loss + p.auxiliary * loss_of(side, batch.targets)
        named = dict(network.named_parameters())
        grads = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values() if g is not None))
        scale = 1.0 if p.clip is None else min(1.0, p.clip / (norm + 1e-6))
        with torch.no_grad():
            for name, parameter in named.items():
                g = grads[name]
                if g is None:
                    continue
                step = g * scale + p.optimizer.weight_decay * parameter
                velocity[name] = step if name not in velocity else p.optimizer.momentum * velocity[name] + step
                parameter -= lr * (
                    step + p.optimizer.momentum * velocity[name] if p.optimizer.nesterov else velocity[name]
                )
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("clip", [0.5, None])
@pytest.mark.parametrize(("nesterov", "smoothing"), [(False, 0.1), (True, 0.0)])
def test_an_epoch_equals_a_literal_one(clip: float | None, nesterov: bool, smoothing: float) -> None:
    protocol = replace(
        PLAIN,
        lr=Constant(0.02),  # at 0.05 a ReLU may change sides by rounding alone
        clip=clip,
        label_smoothing=smoothing,
        drop_path=0.0,
        optimizer=SGD(0.9, 1e-3, nesterov),
        cutout=8,
    )
    t = training(protocol, data=tiny_data(24, (16, 16)))
    state, other = begin(t), begin(t)
    assert state.network.auxiliary is not None
    stream = Stream(t.data.train, protocol.batch, t.seed, "train", for_training(t.data, protocol.cutout), "cpu")
    before = {name: p.detach().clone() for name, p in state.network.named_parameters()}
    loss, accuracy = train_epoch(state, t, stream)
    wanted = literal_epoch(other.network, t, 0.02, 0.0)
    for name, p in state.network.named_parameters():
        torch.testing.assert_close(p.detach(), wanted[name], atol=5e-6, rtol=2e-5, msg=name)
    assert any(not torch.equal(before[name], p) for name, p in state.network.named_parameters())
    assert 0 <= accuracy <= 1
    assert loss > 0


def test_label_smoothing_in_closed_form() -> None:
    logits, targets = (
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.arange(6) % 4,
    )
    log_p = logits.log_softmax(1)
    wanted = -(0.9 * log_p[torch.arange(6), targets] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(Classify(0.1).loss(logits, targets), wanted)
    torch.testing.assert_close(Classify().loss(logits, targets), F.nll_loss(log_p, targets))


# ---------------------------------------------------------------------- drop path


def test_drop_path_drops_as_often_as_asked_and_keeps_the_mean() -> None:
    """One edge with a convolution between skip connections: an image loses it with probability p, else it is scaled by 1/(1-p)."""
    data = tiny_data(24)
    space = tiny_space("toy", data, stages=1)
    cell = (Choice(0, 1, "nor_conv_3x3"), Choice(0, 2, "none"), Choice(1, 2, "skip_connect"))
    network = space.network(Genotype("toy", {"cell": cell})).eval()  # eval: batch norm lets images be compared
    seen: list[Tensor] = []
    network.body.last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(1, data.channels, 8, 8).expand(4000, -1, -1, -1)
    with torch.no_grad():
        network(images[:1])
        network.heads(images, Draw(0, 5, "train"), 0.3)
    full, dropped = seen
    sizes = dropped.abs().sum((1, 2, 3))
    lost = sizes == 0
    assert abs(float(lost.float().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    torch.testing.assert_close(dropped[~lost], (full / 0.7).expand_as(dropped[~lost]))


def test_drop_path_never_touches_an_identity() -> None:
    data = tiny_data(24)
    space = tiny_space("toy", data)
    cell = tuple(Choice(s, t, "skip_connect") for s, t in space.groups[0].edges)
    network = space.network(Genotype("toy", {"cell": cell})).eval()
    images = torch.rand(8, data.channels, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.heads(images, Draw(0, 0, "train"), 0.9)[0], network(images), atol=0, rtol=0)


def test_drop_path_is_counted_and_differs_by_step_and_edge() -> None:
    t = training()
    network = t.space.network(Genotype.parse(str(t.genotype), "darts")).train()
    images = torch.rand(16, t.data.channels, 8, 8)
    with torch.no_grad():
        one, same, other = (network.heads(images, Draw(0, step, "train"), 0.5)[0] for step in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_drop_path_grows_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """In epoch e of E it is p e / E, as in the DARTS code."""
    seen: list[float] = []
    drops = Network.drops

    def spy(self: Network, x: Tensor, draw: Draw | None, drop_path: float) -> dict[str, Tensor]:
        if draw:
            seen.append(drop_path)
        return drops(self, x, draw, drop_path)

    monkeypatch.setattr(Network, "drops", spy)
    retrain(training(replace(PLAIN, epochs=4, batch=24, drop_path=0.2)))
    assert seen == pytest.approx([0.0, 0.05, 0.1, 0.15])


# ---------------------------------------------------------------------- the auxiliary head


@pytest.mark.parametrize(
    ("size", "stem", "features"),
    [((32, 32), "cifar", 8), ((224, 224), "imagenet", 7), ((16, 16), "cifar", 4), ((64, 64), "cifar", 16)],
)
def test_the_auxiliary_head(size: tuple[int, int], stem: str, features: int) -> None:
    """It reads the second reduction cell; at 32 and at 224 pixels with the published pools, and 2x2 before its last convolution."""
    space = SPACES["darts"](inputs=3, outputs=5, size=size, cells=6, channels=4, stem=stem)
    where, head = space.auxiliary() or ("", nn.Identity())
    assert where == "cell_4"
    channels = 4 * 4 * 4
    shapes: list[tuple[int, ...]] = []
    hooks = [
        m.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
        for m in head.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert head.eval()(torch.rand(2, channels, features, features)).shape == (2, 5)
    assert shapes == [(2, 128, 2, 2), (2, 768, 1, 1)]
    assert len(hooks) == 2
    pools = [m for m in head.modules() if isinstance(m, nn.AvgPool2d)]
    if features in (7, 8):
        assert [(p.kernel_size, p.stride) for p in pools] == [(5, 3 if features == 8 else 2)]
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in head.modules())
    assert norms == (1 if stem == "imagenet" else 2), "the ImageNet code leaves the second batch norm out on purpose"


def test_the_auxiliary_head_is_off_for_small_images_and_says_so() -> None:
    space = SPACES["darts"](inputs=1, outputs=10, size=(8, 8), cells=6, channels=4)
    assert space.auxiliary() is None
    assert any("auxiliary head is off" in note for note in space.notes())
    assert not any("auxiliary" in note for note in SPACES["darts"](size=(16, 16), cells=6).notes())


def test_the_auxiliary_head_is_used_in_training_only() -> None:
    t = training(data=tiny_data(24, (16, 16)))
    network = begin(t).network
    images = torch.rand(4, 2, 16, 16)
    assert network.train().heads(images)[1] is not None
    assert network.eval().heads(images)[1] is None
    without = begin(replace(t, protocol=replace(PLAIN, auxiliary=0.0))).network
    assert without.train().heads(images)[1] is None


# ---------------------------------------------------------------------- compiled, in bf16, channels last


def test_weights_and_batches_are_channels_last() -> None:
    t = training()
    state = begin(t)
    kernels = [m.weight for m in state.network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert kernels
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)
    batch = Stream(t.data.train, 4, 0, "train", none(t.data)).at(0)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_compiling_takes_the_whole_step_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph without a break, drop path and auxiliary head in it; by a backend that needs no minutes."""
    compiled: list[object] = []
    plain = torch.compile

    def quick(function: object, **options: object) -> object:
        compiled.append(function)
        return plain(function, backend="aot_eager", fullgraph=True, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", quick)
    protocol = replace(PLAIN, epochs=2, drop_path=0.3)
    wanted = retrain(training(protocol)).state_dict()
    assert not compiled
    got = retrain(training(replace(protocol, compile=True))).state_dict()
    assert len(compiled) == 1
    assert list(got) == list(wanted)
    for name, t in wanted.items():
        torch.testing.assert_close(got[name], t, rtol=1e-3, atol=1e-4)


def test_bf16_trains_like_fp32() -> None:
    """Weights stay in single precision, products are rounded: the loss is close and not the same."""
    single, half = training(), replace(training(), fabric=fabric_for("cpu", precision="bf16"))
    losses = []
    for t in (single, half):
        state = begin(t)
        losses.append(train_epoch(state, t, Stream(t.data.train, 8, 1, "train", none(t.data)))[0])
        assert {p.dtype for p in state.network.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


# ---------------------------------------------------------------------- evaluation


def test_evaluation_counts_by_hand() -> None:
    t = training()
    state = begin(t)
    state.network.train()
    score = evaluate(state.network, t.data.test, none(t.data), CPU, batch=7)
    assert state.network.training, "the mode was not put back"
    images, targets = t.data.test.take(torch.arange(len(t.data.test)))
    with torch.no_grad():
        logits = torch.cat([state.network.eval()(x[None]) for x in none(t.data).normalise(images)])
    confusion = [[0] * 3 for _ in range(3)]
    for truth, told in zip(targets.tolist(), logits.argmax(1).tolist(), strict=True):
        confusion[truth][told] += 1
    assert [list(row) for row in score.confusion] == confusion
    assert score.accuracy == pytest.approx(sum(confusion[c][c] for c in range(3)) / len(targets))
    assert score.loss == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)


def test_evaluation_leaves_no_trace() -> None:
    t = training()
    network = begin(t).network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(network, t.data.test, none(t.data), CPU)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# ---------------------------------------------------------------------- checkpoints


def run_of(path: Path) -> Run:
    run = Run.create(path)
    run.write(Run.CONFIG, b"")
    return run


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_best_and_the_last_weights_are_kept(keep: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    protocol = replace(PLAIN, epochs=5, lr=Constant(0.3), keep="best" if keep == "best" else "last")
    t = replace(training(protocol), run=run)
    network = retrain(t)
    assert not network.training
    accuracies = [float(str(r["val_accuracy"])) for r in run.records()]
    assert len(accuracies) == 5
    bound = t.space.network(t.genotype, auxiliary=True)
    for name, wanted in ((LAST, accuracies[-1]), (BEST, max(accuracies))):
        bound.load_state_dict(load_file(run.file(name)))
        assert evaluate(bound, t.data.val, none(t.data), CPU).accuracy == pytest.approx(wanted)
    kept = load_file(run.file(LAST if keep == "last" else BEST))
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def test_a_training_is_resumed_exactly(tmp_path: Path) -> None:
    """Three epochs, and three of six that were interrupted after the third by an exception."""
    protocol = replace(PLAIN, epochs=6, lr=PROTOCOLS["quick"].lr, drop_path=0.2, cutout=8)
    whole = replace(training(protocol), run=run_of(tmp_path / "whole"))
    wanted = retrain(whole).state_dict()

    class Interrupted(Exception):
        pass

    def stop(event: str, record: object) -> None:
        if event == "train_epoch" and isinstance(record, dict) and record["epoch"] == 2:
            raise Interrupted

    broken = replace(training(protocol), run=run_of(tmp_path / "broken"))
    with pytest.raises(Interrupted):
        retrain(replace(broken, listener=stop))
    got = retrain(broken).state_dict()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert whole.run
    assert broken.run

    def log(run: Run) -> list[dict[str, object]]:
        return [{k: v for k, v in record.items() if k != "seconds"} for record in run.records()]

    assert log(whole.run) == log(broken.run)


@pytest.mark.parametrize("by_step", [False, True])
def test_the_rate_moves_once_per_epoch_or_at_every_step(by_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs of five steps; the rate of each of the 15 is the cosine's at its share of the whole."""
    rates: list[float] = []
    monkeypatch.setattr("oche.training.train.set_rate", lambda optimizer, rate: rates.append(rate))
    data = tiny_data(40)
    protocol = replace(PLAIN, epochs=3, batch=8, lr=Cosine(0.1), lr_by_step=by_step)
    retrain(training(protocol, "toy", replace(data, train=data.train.subset(torch.arange(40)))))
    shares = [step / 15 if by_step else step // 5 / 3 for step in range(15)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * share)) for share in shares])


@pytest.mark.parametrize("content", [b"\x00\x01 no torch file", checkpoint_cut_in_a_number()], ids=["none", "cut"])
def test_a_damaged_checkpoint_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    run.write(Run.STATE, content)
    with pytest.raises(UserError, match="truncated or damaged"):
        retrain(replace(training(), run=run))


def test_the_seed_settles_everything() -> None:
    one, same, other = (retrain(replace(training(), seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_patterns_are_learned() -> None:
    """Two classes told apart by brightness: a few epochs are enough."""
    data = tiny_data(48, classes=2)
    bright = [replace(part, source=part.source) for part in (data.train, data.val, data.test)]
    for part in bright:
        images, targets = part.take(torch.arange(48))
        part.source.images.copy_(images * 0.3 + 0.6 * targets[:, None, None, None])  # type: ignore[attr-defined]
    t = training(replace(PROTOCOLS["smoke"], epochs=4, batch=16), space="toy", data=data)
    connected = Genotype("toy", {"cell": tuple(Choice(s, e, "nor_conv_3x3") for s, e in t.space.groups[0].edges)})
    network = retrain(replace(t, genotype=connected))
    assert evaluate(network, data.test, none(data), CPU).accuracy > 0.9
