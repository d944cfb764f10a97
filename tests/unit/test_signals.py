"""The space of signals against literal one-dimensional networks, its costs by hand, and its data, augmentation and files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oche
from oche.api.train import TrainRequest, plan_training, train
from oche.base import Draw, Part, counted
from oche.cli.check import ledger_rows
from oche.data import AugmentSignals, for_search, for_training, load
from oche.data.overlay import colours, plotted
from oche.errors import UserError
from oche.fast.cell import accelerate
from oche.genotype import Choice, Genotype
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.relaxations import Softmax
from oche.spaces import ChainSpace, NB201Space, SignalSpace
from oche.spaces.blocks import SIGNAL_BLOCKS
from oche.spaces.cost import cost, parameters
from oche.spaces.edges import AuxiliarySkip, PartialChannels, WeightedSum
from oche.spaces.limits import Limits
from oche.spaces.rivals import RIVALS, contenders
from oche.spaces.sampling import sample
from oche.spaces.signals import SIGNAL_OPS
from oche.training.samples import augmented
from reference.costs import hooked_multiply_adds, literal_peak
from reference.tiny import tiny_data

SMALL = SignalSpace(channels=4, layers=(2, 2), widths=(1.0, 1.5), strides=(1, 2), size=(1, 21), inputs=2, outputs=3)


def chosen(*ops: str) -> Genotype:
    return Genotype("signal", {"chain": tuple(Choice(i, i + 1, op) for i, op in enumerate(ops))})


# ---------------------------------------------------------------------- literal one-dimensional layers


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm1d(outputs),
    ]


def separable(a: int, b: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    spread = nn.Conv1d(a, a, kernel, stride, dilation * (kernel // 2), dilation, groups=a, bias=False)
    return [nn.ReLU(), spread, nn.Conv1d(a, b, 1, bias=False), nn.BatchNorm1d(b)]


class Residual1d(nn.Module):
    def __init__(self, a: int, b: int, kernel: int, stride: int, inner: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(*conv(a, inner, kernel, stride), nn.ReLU(), *conv(inner, b, kernel))
        self.short = nn.Sequential(*conv(a, b, 1, stride)) if stride > 1 or a != b else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.deep(x) + self.short(x))


class Squeeze1d(nn.Module):
    def __init__(self, wide: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv1d(wide, inner, 1), nn.Conv1d(inner, wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean(2, keepdim=True)))).sigmoid()


class Inverted1d(nn.Module):
    def __init__(self, a: int, b: int, kernel: int, stride: int, e: int, se: bool) -> None:
        super().__init__()
        wide = a * e
        layers = [*conv(a, wide, 1), nn.ReLU6()] if e > 1 else []
        layers += [*conv(wide, wide, kernel, stride, wide), nn.ReLU6()]
        layers += [Squeeze1d(wide, max(1, a // 4))] if se else []
        self.layers, self.add = nn.Sequential(*layers, *conv(wide, b, 1)), stride == 1 and a == b

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + (x if self.add else 0)


def literal(op: str, a: int, b: int, stride: int) -> nn.Module:
    kind, *words = op.split("_")
    if kind == "skip":
        return nn.Identity()
    if kind == "residual":
        share = int(words[1][1:]) / 100 if words[1:] else 1.0
        return Residual1d(a, b, int(words[0]), stride, max(1, round(share * b)))
    if kind == "ds":
        return nn.Sequential(*conv(a, a, int(words[1]), stride, a), nn.ReLU(), *conv(a, b, 1), nn.ReLU())
    if kind == "plain":
        return nn.Sequential(*conv(a, b, int(words[0]), stride), nn.ReLU())
    if kind in ("sep", "dil"):
        times, dilation = (2, 1) if kind == "sep" else (1, 2)
        return nn.Sequential(*[
            layer
            for n in range(times)
            for layer in separable(a, b if n == times - 1 else a, int(words[1]), stride if n == 0 else 1, dilation)
        ])  # fmt: skip
    if kind in ("max", "avg"):
        k = int(words[1])
        pool = (
            nn.MaxPool1d(k, stride, k // 2)
            if kind == "max"
            else nn.AvgPool1d(k, stride, k // 2, count_include_pad=False)
        )
        return nn.Sequential(pool, *(conv(a, b, 1) if a != b else [nn.BatchNorm1d(b)]))
    assert kind == "mbconv"
    return Inverted1d(a, b, int(words[0][1:]), stride, int(words[1][1:]), words[-1] == "se")


class Literal(nn.Module):
    """Stem of kernel 7, layers, mean over time, classifier."""

    def __init__(self, ops: tuple[str, ...]) -> None:
        super().__init__()
        widths = [(4, 4, 1), (4, 4, 1), (4, 6, 2), (6, 6, 1)]
        layers = [literal(op, *width) for op, width in zip(ops, widths, strict=True)]
        self.body = nn.Sequential(*conv(2, 4, 7), nn.ReLU(), *layers)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).mean(2))


@pytest.mark.parametrize(
    "ops",
    [
        ("residual_3", "skip_connect", "residual_9", "residual_3_w50"),
        ("ds_conv_3", "ds_conv_9", "mbconv_k3_e3", "mbconv_k15_e3"),
        ("mbconv_k5_e6", "skip_connect", "mbconv_k5_e1_se", "mbconv_k31_e2_se"),
        ("plain_15", "residual_5_w25", "plain_31", "residual_7"),
        ("sep_conv_3", "dil_conv_15", "sep_conv_15", "max_pool_3"),
        ("avg_pool_3", "max_pool_5", "dil_conv_7", "sep_conv_7"),
        ("dil_conv_3", "sep_conv_5", "max_pool_3", "avg_pool_9"),
    ],
    ids=str,
)
def test_a_network_is_the_literal_one(ops: tuple[str, ...]) -> None:
    """With the same weights in the same order: outputs in training and at work, and the number of weights."""
    space = replace(SMALL, ops=tuple(dict.fromkeys(ops)))
    network, other = space.network(chosen(*ops)).double(), Literal(ops).double()
    assert parameters(network) == parameters(other) == cost(space, chosen(*ops)).parameters
    with torch.no_grad():
        for own, theirs in zip(network.parameters(), other.parameters(), strict=True):
            theirs.copy_(own.squeeze(2) if own.dim() == 4 else own)
    x = torch.randn(5, 2, 21, dtype=torch.float64)
    for training in (True, False):
        network.train(training), other.train(training)
        torch.testing.assert_close(network(x[:, :, None]), other(x), rtol=1e-9, atol=1e-9)


def test_costs_by_hand() -> None:
    """21 values: the first stage keeps them, the second has 11."""
    found = cost(replace(SMALL, ops=("skip_connect", "residual_3", "ds_conv_9", "mbconv_k5_e2")), chosen(
        "residual_3", "skip_connect", "ds_conv_9", "mbconv_k5_e2"
    ))  # fmt: skip
    stem, norm = 2 * 4 * 7, 2 * 4
    residual = 2 * (4 * 4 * 3)
    separable = 4 * 9 + 4 * 6
    inverted = 6 * 12 + 12 * 5 + 12 * 6
    norms = norm + 2 * norm + (2 * 4 + 2 * 6) + (2 * 12 + 2 * 12 + 2 * 6)
    assert found.parameters == stem + residual + separable + inverted + norms + 6 * 3 + 3
    assert found.multiply_adds == 21 * (stem + residual) + 11 * (separable + inverted) + 6 * 3 + 3
    assert found.memory == 4 * 11 * (6 + 12 + 12)  # the bottleneck: its input, which is added, and two wide maps


@pytest.mark.parametrize("seed", range(2))
def test_costs_of_random_networks(seed: int) -> None:
    check_costs(seed)


@pytest.mark.slow
def test_costs_of_two_hundred_random_networks() -> None:
    for seed in range(200):
        check_costs(seed)


def check_costs(seed: int) -> None:
    """The counted costs are those of hooks on layers and of a run that frees what nothing reads any more."""
    space = replace(SignalSpace(channels=3 + seed % 5), inputs=1 + seed % 4, outputs=2 + seed % 3, size=(1, 8 + seed))
    genotype = sample(space, counted(seed, "signals"))
    network, x = space.network(genotype).eval(), torch.rand(1, space.inputs, *space.size)
    found = cost(space, genotype)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.multiply_adds == hooked_multiply_adds(network, x)
    assert found.memory == literal_peak(network, x)


@pytest.mark.parametrize("edge", [WeightedSum(), PartialChannels(2), AuxiliarySkip()])
def test_fast_and_plain_cells_compute_the_same(edge: object) -> None:
    supernet = SMALL.supernet(edge, affine=True).double()  # type: ignore[arg-type]
    x = torch.randn(3, 2, 1, 21, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group, found = SMALL.groups[0], []
    for fast in (False, True):
        if fast:
            accelerate(supernet)
        w = Softmax(1.0).init(group, counted(1))["chain/alpha"].double().mul(group.valid()).requires_grad_()
        out, _ = supernet(x, SMALL.spread({"chain": w}), Draw(1))
        grads = torch.autograd.grad(out.square().sum(), [w, *supernet.parameters()], materialize_grads=True)
        found.append((out, *grads))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-9, atol=1e-9)


def test_a_stem_reads_long_signals_at_a_lower_resolution() -> None:
    for length, stride in ((128, 1), (256, 2), (512, 4)):
        space = replace(SMALL, size=(1, length))
        network = space.network(sample(space, counted(1, "stem")))
        assert network.body.stem(torch.randn(1, 2, 1, length)).shape[2:] == (1, length // stride)
        assert bool(space.notes()) == (stride > 1)
        assert all(f"keeps all of {length} values" in note for note in space.notes())


def test_operations_stay_where_they_belong() -> None:
    for space, op, theirs in (
        (SMALL, "residual_3x3", "images"),
        (SMALL, "sep_conv_3x3", "images"),
        (ChainSpace(), "mbconv_k15_e3", "signals"),
        (NB201Space(), "residual_3", "signals"),
    ):
        fields = {"ops": (op, "mbconv_k3_e1") if isinstance(space, ChainSpace) else (op,)}
        with pytest.raises(UserError, match=f"{op} is an operation for {theirs}"):
            replace(space, **fields)  # type: ignore[arg-type]
    assert set(SIGNAL_OPS) - {"skip_connect"} <= set(SIGNAL_BLOCKS) | {"mbconv_k3_e3", "mbconv_k5_e6"}
    with pytest.raises(UserError, match="no centre"):
        replace(SMALL, stem_kernel=4)
    with pytest.raises(UserError, match="Signals have 7 values"):
        replace(SMALL, size=(1, 7))


# ---------------------------------------------------------------------- rivals


def test_rivals_by_hand() -> None:
    """ResNet-8 and the plain CNN with kernels of 3, biases and shortcuts as in their two-dimensional forms."""
    like = SignalSpace(inputs=3, outputs=10, size=(1, 64))
    convs = 3 * 16 * 3 + 2 * 16 * 16 * 3 + (16 * 32 + 32 * 32) * 3 + (32 * 64 + 64 * 64) * 3 + 16 * 32 + 32 * 64
    others = 3 * 16 + 3 * 32 + 3 * 64 + 2 * (3 * 16 + 2 * 32 + 2 * 64) + 650
    assert cost(*RIVALS["resnet8"].network(like)).parameters == convs + others
    plain = (
        3 * 16 * 3 + (16 * 16 * 2 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) * 3 + 2 * (16 * 3 + 32 * 2 + 64 * 2) + 650
    )
    assert cost(*RIVALS["plain_cnn"].network(like)).parameters == plain
    for name in ("resnet20", "mobilenetv2", "shufflenetv2", "ds_cnn"):
        space, genotype = RIVALS[name].network(like)
        x = torch.rand(2, 3, 1, 64)
        assert space.network(genotype)(x).shape == (2, 10)
    with pytest.raises(UserError, match="U-Net is not for signals: choose among resnet8"):
        RIVALS["unet"].network(like)


def test_the_rival_that_fits_is_one_dimensional() -> None:
    found = contenders(("auto",), SignalSpace(size=(1, 64)), Limits(parameters=9_000)).networks
    (space, genotype) = found["resnet8"]
    assert space.flat
    assert genotype.space == "signal"
    assert 0.9 * 9_000 < cost(space, genotype).parameters <= 9_000


def test_a_rival_takes_the_form_that_the_data_ask_for(tmp_path: Path) -> None:
    plan = plan_training(TrainRequest("resnet8", data=saved(tmp_path), protocol="smoke", max_params="4k"))
    assert plan.name == "resnet8-train"
    assert plan.request.space == "signal"
    assert plan.training.space.flat
    assert cost(plan.training.space, plan.training.genotype).parameters <= 4_000
    assert plan_training(TrainRequest("resnet8", data=saved(tmp_path), space="signal")).training.space.flat
    assert not plan_training(TrainRequest("resnet8", data=tiny_data(12))).training.space.flat


# ---------------------------------------------------------------------- data


def waves(count: int = 36, channels: int = 2, length: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Sines of three frequencies, the first channel in thousands."""
    rng, y = np.random.default_rng(0), np.arange(count) % 3
    phase = rng.uniform(0, 6, (count, 1, 1))
    x = np.sin((1 + y)[:, None, None] * 0.4 * np.arange(length) + phase) + 0.1 * rng.normal(
        size=(count, channels, length)
    )
    x[:, 0] = 1000 * x[:, 0] + 5000
    return x, y


def saved(folder: Path, **more: object) -> Path:
    x, y = waves()
    np.savez(folder / "waves.npz", **{"x": x, "y": y, "classes": np.array(["low", "mid", "high"]), **more})  # type: ignore[arg-type]
    return folder / "waves.npz"


def test_signals_are_read_as_they_are(tmp_path: Path) -> None:
    data = load(saved(tmp_path))
    x, y = waves()
    assert (data.things, data.size, data.channels, data.flip) == ("signals", (1, 24), 2, False)
    whole = [(part.take(torch.arange(len(part)))) for part in (data.train, data.val, data.test)]
    rows = torch.cat([images for images, _ in whole])
    assert rows.shape == (36, 1, 24, 2)
    given = {x[i].astype(np.float32).tobytes(): y[i] for i in range(36)}
    for images, targets in whole:
        for image, target in zip(images, targets, strict=True):
            assert given[np.ascontiguousarray(image[0].T.numpy()).tobytes()] == target
    train = torch.cat([data.train.take(torch.arange(len(data.train)))[0]])
    assert data.mean == pytest.approx(train.double().mean((0, 1, 2)).tolist())
    assert data.std == pytest.approx(train.double().std((0, 1, 2), correction=0).tolist())
    assert data.contract.signal
    assert "as they are" in dict(ledger_rows(data))["values"]
    assert dict(ledger_rows(data))["found"] == "36 of 2x24 float64"
    assert replace(data.contract) == type(data.contract).of(json.loads(json.dumps(data.contract.plain())))


def test_what_tells_signals_from_images(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(24, 9, 32)), np.arange(24) % 2
    np.savez(tmp_path / "nine.npz", x=x, y=y)
    assert load(tmp_path / "nine.npz").things == "images"  # grey ones of 9x32: nine channels have to be said
    assert load(tmp_path / "nine.npz", signals=True).channels == 9
    assert resolve(Request("rf_darts", space="signal", data=tmp_path / "nine.npz", budget="smoke")).data.channels == 9
    np.savez(tmp_path / "one.npz", x=x[:, 0], y=y)
    assert load(tmp_path / "one.npz", signals=True).size == (1, 32)
    with pytest.raises(UserError, match=r"images need \(N, H, W\)"):
        load(tmp_path / "one.npz")
    np.savez(tmp_path / "keras.npz", x=np.moveaxis(x, 1, 2), y=y)
    assert any(
        "Signals of 32 channels and 9 values" in note for note in load(tmp_path / "keras.npz", signals=True).notes
    )


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"x": np.zeros((36, 2, 7))}, {"signals": True}, "at least 8 values"),
        ({"x": np.zeros((36, 2, 3, 24))}, {"signals": True}, r"signals need \(N, channels, length\)"),
        ({"x": np.full((36, 2, 24), np.nan)}, {}, "NaN or infinity in signal 0"),
        ({"x_test": np.zeros((3, 2, 30)), "y_test": np.arange(3)}, {}, "cut or resample them to one shape"),
        ({}, {"size": 16}, "leave data.size and data.channels out"),
        ({}, {"channels": 1}, "leave data.size and data.channels out"),
    ],
)
def test_signals_that_do_not_fit_are_refused(
    change: dict[str, object], options: dict[str, object], words: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    with np.load(path) as held:
        arrays = {**held, **change}
    if "x_test" in arrays:
        arrays |= {"x_train": arrays.pop("x"), "y_train": arrays.pop("y")}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=words):
        load(path, **options)  # type: ignore[arg-type]


def test_spaces_and_data_have_to_agree(tmp_path: Path) -> None:
    assert resolve(Request("rf_darts", data=saved(tmp_path), budget="smoke")).space.name == "signal"
    with pytest.raises(UserError, match=r"has signals, which the space nb201 is not for; choose `--space signal`\."):
        resolve(Request("rf_darts", space="nb201", data=saved(tmp_path), budget="smoke"))
    with pytest.raises(UserError, match=r"Signals are read from \.npz files"):
        resolve(Request("rf_darts", space="signal", data="digits", budget="smoke"))
    with pytest.raises(UserError, match="has images, which the space signal is not for; choose `--space nb201`"):
        resolve(Request("rf_darts", space="signal", data=tiny_data(12), budget="smoke"))


def test_the_ledger_speaks_of_signals(tmp_path: Path) -> None:
    x, y = waves()
    x[4], x[7], y[7] = 3.0, x[1], (y[1] + 1) % 3
    notes = " ".join(load(saved(tmp_path, x=x, y=y)).notes)
    assert "1 train signal of one value." in notes
    assert "1 signal has several classes, value for value." in notes
    assert "image" not in notes
    assert "nearly all values" not in " ".join(load(saved(tmp_path, x=np.sign(x) * (np.abs(x) > 1e9), y=y)).notes)


# ---------------------------------------------------------------------- augmentation

DATA = replace(tiny_data(12, (1, 16)), mean=(0.4, 0.6), std=(0.2, 0.5))


def test_augmentation_against_a_loop() -> None:
    """Every signal by itself, from the same noise."""
    augment = AugmentSignals(DATA.mean, DATA.std, shift=1, flip=True, scale=0.1, noise=0.05, cutout=5)
    images, targets = DATA.train.take(torch.arange(12))
    got = augment.batch(images, targets, counted(3)).images
    rng = counted(3)
    place, factor = torch.rand((3, 12), generator=rng), torch.randn((12, 2, 1, 1), generator=rng)
    added = torch.randn((12, 2, 1, 16), generator=rng)
    moved, reversed_, cut = set(), 0, 0
    for n in range(12):
        by = int(place[0, n] * 3) - 1
        moved.add(by)
        backwards = bool(place[1, n] < 0.5)
        reversed_ += backwards
        middle = int(place[2, n] * 16)
        for c in range(2):
            for t in range(16):
                source = min(max(t + by, 0), 15)
                value = images[n, 0, 15 - source if backwards else source, c]
                wanted = (value - DATA.mean[c]) / DATA.std[c] * (1 + 0.1 * factor[n, c, 0, 0]) + 0.05 * added[
                    n, c, 0, t
                ]
                if middle - 2 <= t < middle + 3:
                    wanted, cut = torch.tensor(0.0), cut + 1
                torch.testing.assert_close(got[n, c, 0, t], wanted, rtol=1e-5, atol=1e-5)
    assert moved == {-1, 0, 1}
    assert 0 < reversed_ < 12
    assert cut > 0


def test_two_processes_share_the_noise_of_one() -> None:
    augment = AugmentSignals(DATA.mean, DATA.std, shift=3)
    images, targets = DATA.train.take(torch.arange(12))
    whole = augment.batch(images, targets, counted(3)).images
    halves = [
        augment.batch(images[6 * r : 6 * r + 6], targets[6 * r : 6 * r + 6], counted(3), Part(r, 2)).images
        for r in (0, 1)
    ]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=0)


def test_recipes_of_signals() -> None:
    assert for_search(DATA) == AugmentSignals(DATA.mean, DATA.std, shift=2)
    assert for_training(DATA, 16) == AugmentSignals(DATA.mean, DATA.std, shift=2, cutout=4)  # a quarter, as of a square
    with pytest.raises(UserError, match="AutoAugment"):
        for_training(DATA, 0, policy=True)


def test_a_report_shows_curves() -> None:
    """A ramp from -3 to 3 spreads runs from the lower left to the upper right corner; a line in the middle is the mean."""
    ramp = torch.stack([torch.linspace(-3, 3, 40), torch.zeros(40)], 1)
    picture = plotted(ramp)
    first, second = (colour.tolist() for colour in colours(2))
    assert picture[-1, 0].tolist() == picture[0, -1].tolist() == first
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert second in (picture[27, 3].tolist(), picture[28, 3].tolist())
    table = json.loads(augmented(DATA, for_search(DATA), 0))
    assert len(table["entries"]) == 4
    assert all(len(entry["varied"]) == 5 for entry in table["entries"])


# ---------------------------------------------------------------------- the whole way


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> oche.Trained:
    folder = tmp_path_factory.mktemp("signals")
    cell = chosen("residual_3", "mbconv_k5_e6", "ds_conv_9", "skip_connect")
    sizes = {"space.channels": 4, "space.layers": (2, 2), "space.widths": (1.0, 2.0), "space.strides": (1, 2)}
    return train(
        str(cell), space="signal", data=saved(folder), protocol="smoke", epochs=1, batch=6, threads=1, settings=sizes, out=folder / "run"
    )  # fmt: skip


def test_predictions_of_files_and_arrays(trained: oche.Trained, tmp_path: Path) -> None:
    x, _ = waves()
    np.save(tmp_path / "a.npy", x[0])
    kept = oche.load(trained.run.path)
    with torch.no_grad():
        scores = kept.network()(torch.tensor(x[:2, :, None]).float()).softmax(1).amax(1)
    of_file, of_array, of_both = kept.predict(tmp_path / "a.npy"), kept.predict(x[0]), kept.predict(x[:2])
    for found in (of_file[0], of_array[0], of_both[0]):
        assert found.probability == pytest.approx(float(scores[0]), abs=1e-5)  # type: ignore[union-attr]
    assert of_both[1].probability == pytest.approx(float(scores[1]), abs=1e-5)  # type: ignore[union-attr]
    np.save(tmp_path / "b.npy", x[0][:, :20])
    for wrong, words in (
        (tmp_path / "b.npy", "2 channels of 20 values, and the network takes 2 of 24"),
        (x[0, 0], "1 channels"),
    ):
        with pytest.raises(UserError, match=words):
            kept.predict(wrong)
    (tmp_path / "c.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"expected a \.npy file"):
        kept.predict(tmp_path / "c.csv")


def test_evaluation_reads_the_same_signals(trained: oche.Trained) -> None:
    assert oche.evaluate_run(trained.run.path).metrics == trained.test.metrics


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra onnx")
def test_the_shipped_script_predicts_what_oche_predicts(trained: oche.Trained, tmp_path: Path) -> None:
    x, _ = waves()
    np.save(tmp_path / "a.npy", x[0])
    np.save(tmp_path / "b.npy", x[0][:, :20])
    trained.export(["onnx"])
    script = trained.run.path / "network" / "predict.py"
    said = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "a.npy")], capture_output=True, text=True, check=True
    ).stdout
    (wanted,) = oche.load(trained.run.path).predict(tmp_path / "a.npy")
    *_, label, probability = said.split()
    assert label == wanted.label  # type: ignore[union-attr]
    assert float(probability) == pytest.approx(wanted.probability, abs=1e-5)  # type: ignore[union-attr]
    ended = subprocess.run([sys.executable, str(script), str(tmp_path / "b.npy")], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "the network takes (2, 24)" in ended.stderr
