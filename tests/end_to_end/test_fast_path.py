"""Whole searches on the fused and on the plain path: the same genotype, nothing that grows, nothing that depends on company."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oche.base import Draw
from oche.fast import FusedCell, coverage
from oche.fast.backends import native
from oche.methods import method_named
from oche.optim import Adam
from oche.search.begin import begin
from oche.search.callbacks import Callback
from oche.search.loop import search
from oche.search.method import Method
from oche.search.record import SearchResult
from oche.search.state import SearchState
from reference.tiny import tiny_problem

TIERS = {"fast": {}, "portable": {"OCHE_KERNELS": "off"}, "plain": {"OCHE_FAST": "off"}}
SIZES: dict[str, dict[str, object]] = {"darts": {"cells": 3, "channels": 4}, "nb201": {"cells": 1, "channels": 4}}


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OCHE_FAST", "OCHE_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


def searched(tier: str, method: Method, space: str, monkeypatch: pytest.MonkeyPatch) -> SearchResult:
    with monkeypatch.context() as patch:
        for name, value in TIERS[tier].items():
            patch.setenv(name, value)
        native.kernels.cache_clear()
        result = search(tiny_problem(space, epochs=2, **SIZES[space]), method)
        native.kernels.cache_clear()
    return result


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("space", [pytest.param("darts", marks=pytest.mark.slow), "nb201"])
@pytest.mark.parametrize("name", ["darts", "rf_darts", "pcdarts", "darts_2nd"])
def test_the_same_genotype_on_every_path(name: str, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_named(name)
    assert isinstance(method, Method)
    method = replace(method, arch_start=0.0, arch_optimizer=Adam(lr=0.1))
    plain, *others = (searched(tier, method, space, monkeypatch) for tier in reversed(TIERS))
    assert {c.split(":")[0] for c in coverage(plain.state.supernet).values()} == {"plain"}
    start = {key: rows[0] for key, rows in plain.state.trajectory.items()}
    moved = max(float((t.detach() - start[key]).abs().max()) for key, t in plain.state.alpha.items())
    assert moved > 0.1, "nothing was searched, so nothing was compared"
    for result in others:
        assert "plain" not in {c.split(":")[0] for c in coverage(result.state.supernet).values()}
        assert str(result.genotype) == str(plain.genotype)
        for key, t in plain.state.alpha.items():
            torch.testing.assert_close(result.state.alpha[key], t, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", ["darts", "rf_pcdarts", "darts_2nd"])
def test_recomputed_cells_give_the_same(name: str, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in TIERS[tier].items():
        monkeypatch.setenv(variable, value)
    method = method_named(name)
    assert isinstance(method, Method)
    method = replace(method, arch_start=0.0, arch_optimizer=Adam(lr=0.1))
    problem = tiny_problem("darts", count=12, cells=1, channels=4, nodes=2)
    kept, again = (search(replace(problem, recompute=r), method).state for r in (False, True))
    for one, other in ((kept.alpha, again.alpha), (kept.theta, again.theta)):
        for key, t in one.items():
            torch.testing.assert_close(other[key], t, rtol=1e-8, atol=1e-10)


def test_recomputed_cells_keep_less() -> None:
    """Bytes that autograd still holds after a forward pass, outside the cells' own bookkeeping: every storage once."""
    sizes = {}
    for recompute in (False, True):
        state = begin(replace(tiny_problem("darts", cells=3, channels=8), recompute=recompute), Method())
        images = torch.rand(8, 2, 16, 16)
        alive: list[weakref.ref[Tensor]] = []

        def note(t: Tensor, alive: list[weakref.ref[Tensor]] = alive) -> Tensor:
            alive.append(weakref.ref(t))
            return t

        runs: list[str] = []
        for cell in state.supernet.body.cells.values():
            cell.entries[0].register_forward_hook(lambda *_, runs=runs: runs.append("cell"))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            outputs, _ = state.supernet(images, state.op_weights(state.alpha, Draw(0)), Draw(0))
        sizes[recompute] = sum(t.numel() for ref in alive if (t := ref()) is not None)
        outputs.sum().backward()
        assert len(runs) == (6 if recompute else 3)
    assert sizes[True] < sizes[False] / 2


class Growth(Callback):
    """Memory of the process and of the pool of buffers, at chosen steps."""

    def __init__(self) -> None:
        self.state: SearchState | None = None
        self.seen: dict[int, tuple[float, int, int]] = {}

    def on_epoch_start(self, state: SearchState) -> None:
        self.state = state

    def listen(self, event: str, record: object) -> None:
        if event == "step" and isinstance(record, dict) and record["step"] in (200, 600, 1000):
            assert self.state is not None
            pools = {id(c.pool): c.pool for c in self.state.supernet.body.cells.values() if isinstance(c, FusedCell)}
            kept = [t for pool in pools.values() for free in pool.free.values() for t in free]
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            size = sum(t.numel() * t.element_size() for t in kept)
            self.seen[record["step"]] = (pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(kept), size)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads this process's memory from /proc")
@pytest.mark.parametrize("tier", ["fast", "portable"])
@pytest.mark.parametrize("space", SIZES)
def test_nothing_grows_over_a_thousand_iterations(tier: str, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TIERS[tier].items():
        monkeypatch.setenv(name, value)
    sizes = {"darts": {"cells": 1, "channels": 2, "nodes": 2}, "nb201": {"cells": 1, "stages": 1, "channels": 2}}
    growth = Growth()
    method = method_named("darts")
    assert isinstance(method, Method)
    problem = tiny_problem(space, batch=2, count=4000, **sizes[space])
    search(replace(problem, listener=growth.listen), replace(method, callbacks=(growth,)))
    assert set(growth.seen) == {200, 600, 1000}
    first, _, last = growth.seen.values()
    assert last[0] - first[0] < 3.0, f"MiB of the process, buffers, their bytes: {growth.seen}"
    assert last[1] <= first[1], "more buffers than at first"
    assert last[2] <= first[2], "larger buffers than at first"


def outputs_and_gradients(space: str, threads: int, dtype: torch.dtype) -> list[Tensor]:
    """The gradients of one loss on a fused supernet; threads are those of torch and of the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        state = begin(tiny_problem(space, **SIZES[space]), Method())
        supernet = state.supernet.to(dtype)
        alpha = {key: t.detach().to(dtype).requires_grad_() for key, t in state.alpha.items()}
        images = torch.rand(8, 2, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
        outputs, _ = supernet(images, state.op_weights(alpha, Draw(0)), Draw(0))
        leaves = [*alpha.values(), *supernet.parameters()]
        return [outputs.detach(), *torch.autograd.grad(outputs.sin().sum(), leaves, materialize_grads=True)]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("space", SIZES)
def test_results_do_not_depend_on_the_number_of_threads(space: str) -> None:
    one, three = (outputs_and_gradients(space, threads, torch.float64) for threads in (1, 3))
    scale = max(float(t.abs().max()) for t in one)
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * scale)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from oche.search.loop import search
from oche.search.method import Method
from reference.tiny import tiny_problem
state = search(tiny_problem("darts", cells=3, channels=4), Method()).state
print([t.double().sum().item().hex() for t in (*state.alpha.values(), *state.supernet.parameters())])
"""


@pytest.mark.slow
def test_a_second_process_does_no_harm() -> None:
    """Two searches side by side, and one alone: the same bits."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*sys.path])), "OMP_NUM_THREADS": "1"}

    def begun() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True)

    beside = [begun(), begun()]
    told = [child.communicate(timeout=100)[0] for child in beside]
    alone = begun().communicate(timeout=100)[0]
    assert alone.startswith("['")
    assert told == [alone, alone]


def test_two_processes_may_compile_at_once(tmp_path: Path) -> None:
    """With a compiler that takes its time: both get the library, and nothing half-made is left."""
    compiler = tmp_path / "slow-c++"
    compiler.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo 1; exit 0; fi\n'
        "sleep 0.2\n"
        'while [ "$1" != -o ]; do shift; done\n'
        'echo whole > "$2"\n'
    )
    compiler.chmod(0o755)
    cache, made = tmp_path / "cache", []
    threads = [
        threading.Thread(target=lambda: made.append(native.build(str(compiler), "DEFAULT", cache))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]
    assert made[0].read_bytes().startswith(b"whole\n" + native.SEAL)
    assert list(cache.iterdir()) == [made[0]]


HEAVY = {
    *("torch", "numpy", "scipy", "sklearn", "PIL", "pydantic", "typer", "rich", "jinja2", "plotly", "matplotlib"),
    *("kornia", "lightning_fabric", "torchmetrics", "safetensors", "tomli_w", "subprocess", "ctypes"),
}


def test_importing_oche_imports_nothing_heavy() -> None:
    """Names are resolved when first used: that is what keeps the import a matter of milliseconds."""
    code = f"import sys; import oche; found = set(sys.modules) & {HEAVY!r}; assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
