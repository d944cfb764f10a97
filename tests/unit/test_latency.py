"""Latency: the kernels of a network, tables, the limit, and what is measured. Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from contracts.registry import SMALL
from oche.base import counted
from oche.cli.main import app
from oche.errors import UserError
from oche.methods.darts import darts
from oche.plan.parts import limits_for
from oche.plan.request import Request
from oche.run import Run
from oche.search import limits as limiting
from oche.search.begin import begin
from oche.search.limits import ExpectedCost, fixed_costs, hand_out
from oche.spaces import SPACES
from oche.spaces.cost import candidate_latencies, cost, priced
from oche.spaces.deployed import as_deployed
from oche.spaces.fit import check, fit
from oche.spaces.kernels import Kernel, kernels
from oche.spaces.latency import FORMAT, Latencies, read_table
from oche.spaces.limits import Limits
from oche.spaces.rivals import RIVALS
from oche.spaces.sampling import sample
from oche.spaces.smallest import smallest
from oche.training import latencies, timing
from oche.training.export import CARD, export_network, over_latency, save_network
from oche.training.timing import Latency
from reference.tiny import tiny_data, tiny_problem, tiny_space

NEEDS_ONNX = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))), reason="needs the extra onnx"
)
ALL_SPACES = ("toy", "nb201", "darts", "s4", "chain", "signal", "grid")


def by_work(source: str = "") -> Latencies:
    """A device on which each kernel takes a microsecond, and one more per thousand units of work."""

    def measure(kernel: Kernel) -> float:
        return 1e-3 + 1e-6 * kernel.work()

    return Latencies("calculator", "none", 0.01, {}, None if source else measure, source)


def network_of(name: str, number: int):  # type: ignore[no-untyped-def]
    problem = tiny_problem(name, epochs=1, **SMALL.get(name, {}))  # type: ignore[arg-type]
    space = problem.space
    return space, sample(space, counted(number, "latency"))


# ------------------------------------------------------------------ kernels


@pytest.mark.parametrize("name", ALL_SPACES)
def test_the_kernels_have_all_multiply_adds(name: str) -> None:
    """Those of convolutions and matrix products are what `cost` counts, unless `none` leaves a part of the network without a use."""
    for number in range(4):
        space, genotype = network_of(name, number)
        with torch.device("meta"):
            found = kernels(space.network(genotype), space.inputs, space.size)
        adds = 0.0
        for kernel in found:
            if kernel.kind == "conv":
                values = sum(torch.Size(shape).numel() for shape in (kernel.output, *kernel.inputs))
                adds += kernel.work() - values
            elif kernel.kind == "gemm":
                adds += kernel.work() + kernel.output[0]
        wanted = cost(space, genotype).multiply_adds
        assert adds == wanted or (adds < wanted and "none" in str(genotype))
        assert [k.kind for k in found[:2]] == ["sub", "div"]
        assert all(str(Kernel.parse(str(kernel))) == str(kernel) for kernel in found)
        assert all(kernel.work() > 0 for kernel in found)


def test_what_is_folded() -> None:
    """ResNet-8: nine convolutions, of which three take a sum in; nothing else but the image, the mean and the classifier."""
    space, genotype = RIVALS["resnet8"].network(SPACES["chain"]())
    with torch.device("meta"):
        found = kernels(space.network(genotype), 3, (32, 32))
    kinds = [kernel.kind for kernel in found]
    assert (kinds.count("conv"), kinds.count("mean"), kinds.count("gemm"), len(kinds)) == (9, 1, 1, 13)
    assert sum("add" in kernel.then for kernel in found) == 3
    assert sum("relu" in kernel.then for kernel in found) == 7
    assert [kernel.of_image for kernel in found[:3]] == [True, False, False]


@pytest.mark.parametrize("name", ALL_SPACES)
def test_a_deployed_network_computes_the_same(name: str) -> None:
    space, genotype = network_of(name, 1)
    torch.manual_seed(0)
    network = space.network(genotype).eval()
    images = torch.rand(2, space.inputs, *space.size)
    with torch.no_grad():
        wanted = network(images)
        with as_deployed():
            got = network(images)
    torch.testing.assert_close(got, wanted)


# ------------------------------------------------------------------ tables


def test_a_table_comes_back(tmp_path: Path) -> None:
    table = by_work()
    space, genotype = network_of("toy", 1)
    wanted, path = table.of_network(space, genotype), tmp_path / "table.json"
    path.write_text(json.dumps(table.plain()))
    again = read_table(path)
    assert not again.here
    assert again.of_network(space, genotype) == pytest.approx(wanted, abs=1e-5)
    relu = Kernel("relu", ((7, 5, 5),), (7, 5, 5))
    known = {k: ms for k, ms in again.kernels.items() if k.startswith("relu ")}
    nearest = min(known, key=lambda k: abs(torch.log(torch.tensor(Kernel.parse(k).work() / relu.work()))))
    assert again.of(relu) == pytest.approx(known[nearest] * relu.work() / Kernel.parse(nearest).work())
    with pytest.raises(UserError, match="nothing like the operation 'conv"):
        again.of(Kernel.parse("conv 8x9x9 8x9x9 k11x11 s1x1 d1x1 g1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ("[]", "no latency table"),
        ('{"format": "other"}', "no latency table"),
        (f'{{"format": "{FORMAT}"}}', "no kernels_ms"),
        (f'{{"format": "{FORMAT}", "kernels_ms": {{}}}}', "no kernels_ms"),
        (f'{{"format": "{FORMAT}", "kernels_ms": {{"relu 1x2x2 1x2x2": -1}}}}', "-1 as kernels_ms"),
        (f'{{"format": "{FORMAT}", "kernels_ms": {{"relu 1x2x2 1x2x2": NaN}}}}', "nan as kernels_ms"),
        (f'{{"format": "{FORMAT}", "kernels_ms": {{"relu 1x2x2 1x2x2": true}}}}', "True as kernels_ms"),
        (f'{{"format": "{FORMAT}", "call_ms": "1", "kernels_ms": {{"relu 1x2x2 1x2x2": 1}}}}', "'1' as call_ms"),
        (f'{{"format": "{FORMAT}", "kernels_ms": {{"relu": 1}}}}', "the kernel 'relu'"),
        (f'{{"format": "{FORMAT}", "kernels_ms": {{"conv 1x2x2 1x2x2 kx s1 d1 g1": 1}}}}', "the kernel 'conv"),
    ],
)
def test_what_is_no_table(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_table(path)


def test_a_table_that_is_missing_or_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "none.json")
    monkeypatch.setattr("oche.spaces.latency.LARGEST", 10)
    (tmp_path / "large.json").write_text("x" * 11)
    with pytest.raises(UserError, match="takes more than"):
        read_table(tmp_path / "large.json")


# ------------------------------------------------------------------ the limit


def test_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--latency-table is for a limit"):
        limits_for(Request(latency_table="table.json"), False)
    table, path = by_work(), tmp_path / "table.json"
    table.of(Kernel("relu", ((1, 2, 2),), (1, 2, 2)))
    path.write_text(json.dumps(table.plain()))
    found = limits_for(Request(max_latency="250us", latency_table=path), False)
    assert found.latency == 0.25
    assert found.latencies is not None
    assert found.latencies.device == "calculator"
    monkeypatch.setattr(timing, "can_measure", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'oche\[onnx\]'"):
        limits_for(Request(max_latency="3ms"), False)


FITS = [
    pytest.param(name, fixed, marks=() if name != "grid" and fixed == (number % 2 == 0) else pytest.mark.slow)
    for number, name in enumerate(("toy", "nb201", "darts", "chain", "signal", "grid"))
    for fixed in (False, True)
]
"""In the short run, each space once, with a width that is fixed or not in turn."""


@pytest.mark.parametrize(("name", "fixed"), FITS)
def test_networks_are_made_to_fit(name: str, fixed: bool) -> None:
    space, genotype = network_of(name, 2)
    table = by_work()
    low = table.of_network(space, smallest(space, Limits(latency=1e-9, latencies=table)))
    high = table.of_network(space, genotype)
    limits = Limits(latency=low + 0.3 * max(0.0, high - low), fixed=fixed, latencies=table)
    check(space, limits)
    found = fit(space, genotype, limits)
    assert limits.kept(found.prices)
    assert priced(limits)(found.space, found.genotype) == found.prices
    assert table.of_network(found.space, found.genotype) <= limits.latency  # type: ignore[operator]
    assert found.space == space or not fixed
    with pytest.raises(UserError, match="--max-latency allows"):
        check(space, replace(limits, latency=1e-6))


@pytest.mark.usefixtures("float64")
def test_the_term_of_latency() -> None:
    """Its gradient is the finite difference, and its expectation at one-hot alpha about what the network takes."""
    table = by_work()
    problem = replace(tiny_problem("toy", epochs=1, **SMALL["toy"]), limits=Limits(latency=1e-3, latencies=table))  # type: ignore[arg-type]
    state = begin(problem, darts())
    state.step = 1
    term = ExpectedCost()

    def value() -> torch.Tensor:
        return term(state, {}, state.alpha, None)  # type: ignore[arg-type]

    (alpha,) = state.alpha.values()
    (grad,) = torch.autograd.grad(value(), [alpha])
    assert float(grad.abs().max()) > 1e-6
    flat, by = alpha.detach().view(-1), 1e-5
    for i in range(len(flat)):
        before = float(flat[i])
        flat[i] = before + by
        up = float(value().detach())
        flat[i] = before - by
        down = float(value().detach())
        flat[i] = before
        assert float(grad.view(-1)[i]) == pytest.approx((up - down) / (2 * by), rel=1e-5, abs=1e-6)
    space, genotype = state.space, smallest(state.space, Limits())
    own = sum(
        float(candidate_latencies(space, table)[g.name][g.entry(c.source, c.target, c.op)])
        for g in space.groups
        for c in genotype.groups[g.name]
    )
    assert fixed_costs(space, table)["latency"] + own == pytest.approx(table.of_network(space, genotype))


@pytest.mark.parametrize("better", [True, False])
def test_what_is_handed_out_is_measured(better: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that takes longer than foretold is made to fit anew; where that does not help, a warning says so."""
    table = by_work()
    problem = tiny_problem("toy", epochs=1, **SMALL["toy"])  # type: ignore[arg-type]
    genotype = sample(problem.space, counted(3, "latency"))
    own = table.of_network(problem.space, genotype)
    limits, run = Limits(latency=1.5 * own, latencies=table), Run.create(tmp_path / "run")
    foretold: list[float] = []

    def measured(space: object, cell: object) -> Latency:
        foretold.append(table.of_network(space, cell))  # type: ignore[arg-type]
        ms = foretold[-1] * 1.25 if better else 10.0
        return Latency(ms, ms, ms, 5)

    monkeypatch.setattr(limiting, "measured_latency", measured)
    monkeypatch.setattr(limiting, "available_formats", lambda: ("onnx",))
    hand_out(replace(problem, limits=limits, run=run, built=problem.space), genotype)
    (record,) = [r for r in run.records() if r["kind"] == "fitted"]
    median = record["latency"]["median_ms"]  # type: ignore[index]
    assert min(foretold[1:]) < foretold[0] <= 1.5 * own
    assert (median <= 1.5 * own) == better
    assert ("more than --max-latency" in str(record.get("warning"))) != better
    assert json.loads(run.read(Run.GENOTYPE))["fitted"]["latency"]["median_ms"] == median
    assert "measured" in str(record["words"])


# ------------------------------------------------------------------ this machine


@pytest.fixture
def calculated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measuring replaced by a formula, and the cache's folder by one of its own; the kernels that were measured."""
    asked: list[str] = []

    def of_kernel(kernel: Kernel) -> float:
        asked.append(str(kernel))
        return 1e-6 * kernel.work()

    monkeypatch.setenv("OCHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(timing, "of_kernel", of_kernel)
    monkeypatch.setattr(timing, "of_call", lambda: 0.005)
    monkeypatch.setattr(timing, "can_measure", lambda: True)
    monkeypatch.setattr(timing, "runtime", lambda: "onnxruntime 0")
    return asked


def test_a_kernel_is_measured_once(calculated: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, genotype = network_of("toy", 1)
    first = latencies.this_machine().of_network(space, genotype)
    count = len(calculated)
    assert count == len(set(calculated)) > 3
    assert latencies.this_machine().of_network(space, genotype) == pytest.approx(first)
    assert len(calculated) == count
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text("damaged")
    assert latencies.this_machine().of_network(space, genotype) == pytest.approx(first)
    assert len(calculated) == 2 * count
    monkeypatch.setattr(timing, "runtime", lambda: "onnxruntime 1")
    assert not latencies.this_machine().kernels


@pytest.mark.usefixtures("calculated")
def test_the_command_writes_a_table(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    given = ["latency", str(out), "--space", "toy", "--set", "space.channels=4"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    table = read_table(out)
    assert not table.here
    for width in (4, 8, 13, 16):
        space = tiny_space("toy", tiny_data(), channels=width)
        assert table.of_network(space, sample(space, counted(width))) > 0.005
    assert isinstance(CliRunner().invoke(app, given).exception, UserError)


@NEEDS_ONNX
@pytest.mark.parametrize(
    "text",
    [
        "conv 4x8x8 8x4x4 k3x3 s2x2 d1x1 g1 add relu",
        "conv 8x8x8 8x8x8 k3x3 s1x1 d2x2 depthwise clip",
        "relu 8x8x8 8x8x8",
        "bn 8x8x8 8x8x8 relu",
        "add 8x8x8+8x8x8 8x8x8",
        "avg_pool 8x8x8 8x4x4 k2x2 s2x2 p0x0 ceil",
        "max_pool 8x8x8 8x8x8 k3x3 s1x1 p1x1",
        "slice 8x8x8 8x4x4",
        "slice 8x8x8 4x8x8",
        "cat 4x8x8+4x8x8 8x8x8",
        "pad 8x8x8 8x9x9",
        "resize 8x4x4 8x8x8",
        "zeros 8x8x8 8x8x8",
        "mean 8x8x8 8",
        "mean 8x8x8 8x1x1",
        "mul 8x8x8 8x8x8",
        "mul 8x8x8+8x1x1 8x8x8",
        "gemm 8 3",
        "copy 8x8x8 8x8x8",
    ],
)
def test_every_kind_of_kernel_is_built_and_run(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    assert timing.of_kernel(Kernel.parse(text)) >= 0


@NEEDS_ONNX
@pytest.mark.slow
def test_the_card_of_an_exported_network_says_its_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)
    run, data = Run.create(tmp_path / "run"), tiny_data()
    run.write(Run.CONFIG, b"")
    space = tiny_space("toy", data)
    genotype = sample(space, counted(1))
    limits = Limits(latency=1e-9, latencies=by_work())
    save_network(run, space.network(genotype).eval(), space, genotype, data, {}, limits=limits)
    before = json.loads(run.read(CARD))["latency"]
    assert before["foretold_ms"] == pytest.approx(by_work().of_network(space, genotype))
    assert "oche export" in before["measured"]
    export_network(run, ["onnx"])
    card = json.loads(run.read(CARD))
    told = card["latency"]["measured"]
    assert 0 < told["low_ms"] <= told["median_ms"] <= told["high_ms"] or told["median_ms"] > 0
    assert (told["threads"], told["batch"], told["runs"] >= 10) == (1, 1, True)
    assert told["runtime"].startswith("onnxruntime")
    assert "more than --max-latency" in over_latency(card)


def test_without_onnxruntime_the_card_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oche.training.export.can_measure", lambda: False)
    run, data = Run.create(tmp_path / "run"), tiny_data()
    space = tiny_space("toy", data)
    genotype = sample(space, counted(1))
    save_network(run, space.network(genotype).eval(), space, genotype, data, {})
    assert json.loads(run.read(CARD))["latency"] == {"measured": "not measured: pip install 'oche[onnx]'"}
