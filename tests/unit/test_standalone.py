"""`network.py` beside an export: for every space, plain PyTorch gives the network's outputs, in a process that has no oche."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracts.registry import SMALL
from oche.base import counted
from oche.data import Data
from oche.errors import UserError
from oche.genotype import Choice, Genotype, published
from oche.run import Run
from oche.spaces import SPACES, ChainSpace, Space
from oche.spaces.blocks import BLOCKS, SIGNAL_BLOCKS
from oche.spaces.edges import KEPT, KEPT_NORMED
from oche.spaces.ops import OPS
from oche.spaces.rivals import RIVALS
from oche.spaces.sampling import sample
from oche.training.export import WEIGHTS, Deployed, export_network, load_network, save_network
from oche.training.standalone import refusal
from reference.tiny import tiny_data, tiny_masks, tiny_space

ASIDE = """
import importlib.abc, sys
class No(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "oche": raise ImportError("this process has no oche")
sys.meta_path.insert(0, No())
sys.path.insert(0, sys.argv[1])
import torch, network
torch.set_num_threads(1)
images = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(network.load()(images), sys.argv[2])
"""


def kept(space: Space, genotype: Genotype, edge: str = KEPT) -> Genotype:
    """The genotype with two operations on every edge that has several candidates, weighted."""
    groups = {}
    for group in space.groups:
        allowed = dict(zip(group.edges, group.ops, strict=True))
        rows = []
        for c in genotype.groups[group.name]:
            other = next((op for op in allowed[c.source, c.target] if op != c.op), None)
            ops = [(c.op, 0.75)] + ([(other, 0.125)] if other else [])
            in_order = sorted(ops, key=lambda pair: allowed[c.source, c.target].index(pair[0]))
            rows += [Choice(c.source, c.target, op, w) for op, w in in_order]
        groups[group.name] = tuple(rows)
    return replace(genotype, groups=groups, edge=edge)


def exported(folder: Path, space: Space, genotype: Genotype, data: Data) -> Run:
    """A run with a network whose weights and running statistics are not the initial ones, and its network.py."""
    torch.manual_seed(3)
    network = space.network(genotype).train()
    for _ in range(2):
        network(torch.rand(6, space.inputs, *space.size))
    run = Run.create(folder)
    run.write(Run.CONFIG, b"")
    save_network(run, network.eval(), space, genotype, data, {})
    export_network(run, ())
    return run


def outputs_aside(run: Run, images: torch.Tensor, tmp_path: Path) -> torch.Tensor:
    """What network.py gives in a process in which oche cannot be imported."""
    torch.save(images, tmp_path / "tensor.pt")
    command = [sys.executable, "-c", ASIDE, str(run.file(Run.NETWORK)), str(tmp_path / "tensor.pt")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return torch.load(tmp_path / "tensor.pt")


def in_full(run: Run, images: torch.Tensor) -> torch.Tensor:
    loaded = load_network(run)
    with torch.no_grad():
        out: torch.Tensor = Deployed(loaded.network, loaded.augment.mean, loaded.augment.std).eval()(images)
    return out


def in_process(run: Run, images: torch.Tensor) -> torch.Tensor:
    """The same without a process: the file itself does not import oche."""
    from oche.training.standalone import built

    text = run.read("network/network.py").decode()
    assert "import oche" not in text
    assert "from oche" not in text
    with torch.no_grad():
        out: torch.Tensor = built(run.file("network/network.py"))(images)
    return out


SIZES: Mapping[str, tuple[int, int]] = {"chain": (9, 13), "signal": (1, 13), "grid": (20, 27), "darts": (9, 13)}


def of_space(name: str, how: str, folder: Path) -> tuple[Run, torch.Tensor]:
    size = SIZES.get(name, (8, 8))
    data = tiny_masks(12, size) if SPACES[name].task == "segment" else tiny_data(12, size)
    sharing = {"sharing": "cell"} if how == "cell" else {}
    space = tiny_space(name, data, **{**SMALL[name], **sharing})
    genotype = sample(space, counted(4))
    if how in (KEPT, KEPT_NORMED):
        genotype = kept(space, genotype, how)
    return exported(folder, space, genotype, data), torch.rand(3, 2, *size)


@pytest.mark.parametrize("how", ["discrete", "cell", KEPT, KEPT_NORMED])
@pytest.mark.parametrize("name", sorted(SPACES))
def test_every_space_in_every_form(name: str, how: str, tmp_path: Path) -> None:
    if name == "grid" and how == "cell":
        pytest.skip("the nodes of a grid have alphas of their own already")
    run, images = of_space(name, how, tmp_path / "run")
    assert torch.equal(in_process(run, images), in_full(run, images))


@pytest.mark.parametrize("backbone", ["resnet", "mobile"])
def test_every_operation_of_attention_blocks(backbone: str, tmp_path: Path) -> None:
    data, size = tiny_data(12, (64, 68)), (64, 68)
    space = tiny_space("sase", data, channels=4, layers=(1,) * 5, backbone=backbone, sharing="cell")
    groups = {
        group.name: tuple(Choice(*edge, ops[n % len(ops)]) for edge, ops in zip(group.edges, group.ops, strict=True))
        for n, group in enumerate(space.groups)
    }
    run = exported(tmp_path / "run", space, Genotype("sase", groups, "cell"), data)
    images = torch.rand(2, 2, *size)
    assert torch.equal(in_process(run, images), in_full(run, images))


@pytest.mark.parametrize("name", ["toy", "stages", "chain", "sase"])
def test_networks_that_count(name: str, tmp_path: Path) -> None:
    """The density of 3x4 places, of features of another size."""
    data = tiny_data(12, (9, 13))
    space = replace(tiny_space(name, data, **SMALL[name]), outputs=12, density=(3, 4))
    run = exported(tmp_path / "run", space, sample(space, counted(4)), data)
    images = torch.rand(2, 2, 9, 13)
    assert in_process(run, images).shape == (2, 12)
    assert torch.equal(in_process(run, images), in_full(run, images))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SPACES))
def test_every_space_without_oche(name: str, tmp_path: Path) -> None:
    run, images = of_space(name, "discrete", tmp_path / "run")
    torch.testing.assert_close(outputs_aside(run, images, tmp_path), in_full(run, images), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(RIVALS))
def test_every_rival(name: str, tmp_path: Path) -> None:
    data = tiny_data(12, (9, 13))
    space, genotype = RIVALS[name].network(tiny_space("chain", data), 20)
    run, images = exported(tmp_path / "run", space, genotype, data), torch.rand(2, 2, 9, 13)
    assert torch.equal(in_process(run, images), in_full(run, images))
    if RIVALS[name].signals:
        data = tiny_data(12, (1, 13))
        space, genotype = RIVALS[name].network(tiny_space("signal", data), 20)
        run, images = exported(tmp_path / "flat", space, genotype, data), torch.rand(2, 2, 1, 13)
        assert torch.equal(in_process(run, images), in_full(run, images))


@pytest.mark.parametrize("name", ["NASNET_A", "AMOEBANET_A", "FAIRDARTS_A", "SETN"])
def test_published_cells(name: str, tmp_path: Path) -> None:
    """Five nodes, nodes left out, partial concatenation, two operations between the same nodes."""
    data = tiny_data(12, (9, 13))
    genotype = Genotype.parse(published()[name].cell)
    space = tiny_space("darts", data, channels=4, cells=3)
    run, images = exported(tmp_path / "run", space, genotype, data), torch.rand(2, 2, 9, 13)
    assert torch.equal(in_process(run, images), in_full(run, images))


def test_large_images_have_the_large_stem(tmp_path: Path) -> None:
    for name, size in (("darts", (128, 130)), ("chain", (128, 130)), ("signal", (1, 520))):
        data = tiny_data(4, size)
        space = tiny_space(name, data, **SMALL[name])
        run, images = exported(tmp_path / name, space, sample(space, counted(4)), data), torch.rand(1, 2, *size)
        assert torch.equal(in_process(run, images), in_full(run, images))


@pytest.mark.parametrize(("stem", "head"), [("separable", "aspp"), ("plain", "topdown"), ("plain", "fine")])
def test_stems_and_heads_of_a_grid(stem: str, head: str, tmp_path: Path) -> None:
    data = tiny_masks(6, (20, 27))
    space = tiny_space("grid", data, channels=4, layers=3, levels=3, stem=stem, head=head, reach=2)
    run = exported(tmp_path / "run", space, sample(space, counted(5)), data)
    for size in ((20, 27), (33, 41)):
        images = torch.rand(2, 2, *size)
        assert torch.equal(in_process(run, images), in_full(run, images))


@pytest.mark.slow
def test_every_operation(tmp_path: Path) -> None:
    """Each on an edge of one cell, and each in a layer of one chain."""
    data, ops, images = (
        tiny_data(6, (9, 13)),
        tuple(sorted(set(OPS) - {"connect"} - set(SIGNAL_BLOCKS))),
        torch.rand(2, 2, 9, 13),
    )
    space = tiny_space("toy", data, ops=ops, channels=4, stages=1, nodes=13)
    edges = space.groups[0].edges
    assert len(edges) >= len(ops)
    cell = tuple(Choice(s, t, ops[i % len(ops)]) for i, (s, t) in enumerate(edges))
    run = exported(tmp_path / "cell", space, Genotype("toy", {"cell": cell}), data)
    assert torch.equal(in_process(run, images), in_full(run, images))
    layers = tiny_space("chain", data, channels=4, layers=(len(ops),), widths=(1.0,), strides=(1,), ops=ops)
    chain = Genotype("chain", {"chain": tuple(Choice(i, i + 1, op) for i, op in enumerate(ops))})
    run = exported(tmp_path / "chain", layers, chain, data)
    assert torch.equal(in_process(run, images), in_full(run, images))
    flat, of_signals = tiny_data(6, (1, 40)), tuple(op for op in BLOCKS if "x" not in op)
    layers = tiny_space(
        "signal", flat, channels=4, layers=(len(of_signals),), widths=(1.0,), strides=(1,), ops=of_signals
    )
    chain = Genotype("signal", {"chain": tuple(Choice(i, i + 1, op) for i, op in enumerate(of_signals))})
    run, images = exported(tmp_path / "signal", layers, chain, flat), torch.rand(2, 2, 1, 40)
    assert torch.equal(in_process(run, images), in_full(run, images))


# ---------------------------------------------------------------------- what is refused


def test_weights_of_another_training_are_refused(tmp_path: Path) -> None:
    from oche.training.standalone import built

    run, _ = of_space("toy", "discrete", tmp_path / "run")
    weights = bytearray(run.read(WEIGHTS))
    weights[-1] ^= 1
    run.file(WEIGHTS).write_bytes(bytes(weights))
    with pytest.raises(ValueError, match="does not hold the weights that belong to this file") as raised:
        built(run.file("network/network.py"))
    assert str(raised.value).count(".") <= 3  # one sentence, besides the names of files


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oche.training import export, standalone

    monkeypatch.setattr(standalone, "FILE", standalone.FILE.replace("MEAN, STD)", "STD, MEAN)"))
    with pytest.raises(UserError, match=r"network\.py's scores differ"):
        of_space("toy", "discrete", tmp_path / "run")
    assert not (tmp_path / "run/network/network.py").exists()
    assert export.SAME == 1e-6


def test_parts_of_ones_own_are_not_copied() -> None:
    class Mine(ChainSpace):
        pass

    genotype = sample(ChainSpace(), counted(1))
    assert "'chain' is not one of them" in refusal(Mine(), genotype)
    assert refusal(ChainSpace(), genotype) == ""


def test_names_of_classes_are_literals(tmp_path: Path) -> None:
    """A name that looks like code stays a string."""
    data = replace(tiny_data(12), classes=('"""', "'); import os  #", "{}\\"))
    space = tiny_space("toy", data)
    run = exported(tmp_path / "run", space, sample(space, counted(4)), data)
    images = torch.rand(2, 2, 8, 8)
    assert torch.equal(in_process(run, images), in_full(run, images))
