"""The NAS-Bench-201 table: published numbers, every cell, wrong files, and the conversion of synthetic official downloads."""

from __future__ import annotations

import bz2
import gzip
import json
import pickle
import shutil
import tracemalloc
from collections import OrderedDict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from oche.errors import UserError
from oche.genotype import Genotype
from oche.spaces.cost import cost
from oche.spaces.nb201 import NB201_OPS, NB201Space
from oche.tables import CONVERTERS, TABLES, Table
from oche.tables.nb201 import LATENCY, MAIN, ZEROCOST, convert, read, unique
from oche.tables.official import cells
from reference.inputs import checkpoint_cut_in_a_number

TEST = ("cifar10/test", "cifar100/test", "imagenet16-120/test")
SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"


@pytest.fixture(scope="module")
def table(data_folder: Path) -> Table:
    return TABLES["nb201"](data_folder)


# ---------------------------------------------------------------------- what it says


def test_the_collapsed_cell(table: Table) -> None:
    assert [round(table.value(Genotype.parse(SKIPS), m), 2) for m in TEST] == [54.30, 15.61, 16.32]
    assert table.index(Genotype.parse(SKIPS)) == 1835


def test_the_cell_of_rf_darts(table: Table) -> None:
    genotype = Genotype.parse("NB201_9930")
    assert table.index(genotype) == 9930
    assert [round(table.value(genotype, m), 2) for m in TEST] == [94.36, 73.51, 46.34]
    assert table.regret(genotype, "cifar10/test") == pytest.approx(0.01, abs=1e-6)


def test_the_optimum(table: Table) -> None:
    assert [round(table.best(m), 2) for m in TEST] == [94.37, 73.51, 47.31]
    assert [table.best_index(m) for m in TEST] == [6111, 9930, 857]
    assert round(table.best("cifar10/valid"), 2) == 91.61


def test_every_string_goes_through_a_genotype_and_back(table: Table) -> None:
    assert len(set(table.cells)) == len(table) == 15_625
    for i, cell in enumerate(table.cells):
        genotype = Genotype.parse(cell)
        assert str(genotype) == cell
        assert table.index(genotype) == i


def test_the_metrics(table: Table) -> None:
    assert sum(m.startswith("latency/") for m in table.metrics) == 27
    assert sum(m.startswith("zerocost/") for m in table.metrics) == 11
    assert {m for m in table.metrics if not table.selectable(m)} == {f"{m}{e}" for m in TEST for e in ("", "/12")}
    for metric in table.metrics:
        column = table.column(metric)
        assert column.shape == (15_625,)
        assert np.isfinite(column).all() or metric.endswith("naswot")
    with pytest.raises(ValueError, match="read-only"):
        table.column("cifar10/test")[0] = 100
    assert table.value(table.genotype(0), "latency/pixel3") == 3.60585
    assert table.value(table.genotype(0), "zerocost/cifar10/naswot") == 740.8457


def test_costs_are_those_that_oche_counts(table: Table) -> None:
    data = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet16-120": (120, 16)}
    for index, (name, (classes, size)) in zip((1, 1835, 9930), data.items(), strict=True):
        genotype = table.genotype(index)
        counted = cost(NB201Space(inputs=3, outputs=classes, size=(size, size)), genotype)
        assert table.value(genotype, f"{name}/parameters") == counted.parameters
        assert table.value(genotype, f"{name}/multiply_adds") == counted.multiply_adds


def test_an_answer(table: Table) -> None:
    told = table.answer(Genotype.parse("NB201_9930"))
    assert set(told) == {"cifar10", "cifar100", "imagenet16-120"}
    assert (told["cifar10"]["valid"], told["cifar10"]["test"]) == (91.5533, 94.3633)
    json.dumps(told, allow_nan=False)


def test_isomorphic_cells_are_those_of_the_paper(table: Table) -> None:
    groups: dict[str, int] = {}
    first = [groups.setdefault(unique(cell), i) for i, cell in enumerate(table.cells)]
    assert len(groups) == 6466
    assert table.first.tolist() == first
    assert 9930 in table.isomorphs(Genotype.parse("NB201_9930"))


# ---------------------------------------------------------------------- where it is, and what may be wrong


def test_the_folder_comes_from_the_environment(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OCHE_DATA", str(data_folder / "nasbench201"))
    assert len(read()) == 15_625
    monkeypatch.setenv("OCHE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"There is no nb201\.csv\.gz in .* nor in its nasbench201"):
        read()
    monkeypatch.delenv("OCHE_DATA")
    with pytest.raises(UserError, match="OCHE_DATA"):
        read()


def test_latencies_and_scores_are_read_when_asked_for(data_folder: Path, tmp_path: Path) -> None:
    shutil.copy(data_folder / "nasbench201" / MAIN, tmp_path / MAIN)
    alone = read(tmp_path)
    assert alone.best("cifar10/test") == 94.3733
    for metric, file in (("latency/fpga", LATENCY), ("zerocost/cifar10/naswot", ZEROCOST)):
        with pytest.raises(UserError, match=f"There is no file .*{file}"):
            alone.column(metric)


def damage(data_folder: Path, folder: Path, change: object) -> None:
    content = gzip.decompress((data_folder / "nasbench201" / MAIN).read_bytes()).decode()
    (folder / MAIN).write_bytes(gzip.compress(change(content).encode(), 1))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("c10_test_200,", "c10_tset_200,", 1), "has no column 'c10_test_200'"),
        (lambda text: text.rsplit("\n", 2)[0], "has 15624 rows"),
        (lambda text: text.replace("85.8633", "what", 1), "no number"),
        (lambda text: text.replace("skip_connect~2|,0,", "skip_connect~2|,1,", 1), "not sorted by the column 'index'"),
        (lambda text: "", "has no column"),
    ],
)
def test_a_wrong_file_is_one_sentence(data_folder: Path, tmp_path: Path, change: object, says: str) -> None:
    damage(data_folder, tmp_path, change)
    with pytest.raises(UserError, match=says):
        read(tmp_path)


def test_a_truncated_file_is_one_sentence(data_folder: Path, tmp_path: Path) -> None:
    whole = (data_folder / "nasbench201" / MAIN).read_bytes()
    for part in (whole[:-1000], whole[:5], b"", b"no gzip", whole[:5000] + b"xxxx" + whole[5004:]):
        (tmp_path / MAIN).write_bytes(part)
        with pytest.raises(UserError, match=r"truncated or damaged|has no column"):
            read(tmp_path)


# ---------------------------------------------------------------------- official downloads, synthetic


def all_cells() -> list[str]:
    form = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
    return [form.format(*ops) for ops in product(NB201_OPS, repeat=6)]


def results(epochs: int, level: float) -> dict[str, object]:
    """An architecture's state in the layout of nats_bench.ArchResults: two seeds on CIFAR-10, one elsewhere."""
    parts = {
        "cifar10-valid": ["x-valid", "ori-test"],
        "cifar10": ["ori-test"],
        "cifar100": ["x-valid", "x-test", "ori-test"],
        "ImageNet16-120": ["x-valid", "x-test", "ori-test"],
    }
    seeds = {data: [777, 888] if data == "cifar10" else [777] for data in parts}
    runs = {}
    for n, data in enumerate(parts):
        for seed in seeds[data]:
            last = {f"{part}@{epochs - 1}": level + n + k / 4 + (seed == 888) for k, part in enumerate(parts[data])}
            runs[data, seed] = {
                "name": "infer.tiny",
                "net_state_dict": None,
                "eval_names": parts[data],
                "eval_acc1es": {f"{part}@0": 10.0 for part in parts[data]} | last,
                "train_times": OrderedDict([(0, 1.5)]),
                "params": 1.25,
                "flop": 100.5,
                "seed": seed,
                "epochs": epochs,
                "latency": [0.01],
            }
    return {"arch_index": 0, "arch_str": "", "all_results": runs, "dataset_seed": seeds, "clear_net_done": True}


NATS = {"12": results(12, 50.0), "200": results(200, 80.0)}
EXPECTED = {
    "cifar10/valid": 80.0,
    "cifar10/test": 81.5,  # mean of 81 and 82
    "cifar10/valid/12": 50.0,
    "cifar10/test/12": 51.5,
    "cifar100/valid": 82.0,
    "cifar100/test": 82.25,
    "imagenet16-120/test/12": 53.25,
    "cifar10/parameters": 1.25,
    "cifar100/multiply_adds": 100.5,
}


def pack(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with bz2.open(path, "wb", compresslevel=1) as stream:
        pickle.dump(content, stream, protocol=4)


def nats_folder(folder: Path, names: list[str]) -> Path:
    pack(folder / "meta.pickle.pbz2", {"meta_archs": names})
    for i in range(len(names)):
        pack(folder / (f"{i:06d}.pickle.pbz2" if i else "0.pickle.pbz2"), NATS)  # the API reads both spellings
    return folder


def one_file(names: list[str], keys: tuple[str, str]) -> dict[str, object]:
    infos = {i: {keys[0]: NATS["12"], keys[1]: NATS["200"]} for i in range(len(names))}
    return {"meta_archs": names, "arch2infos": infos, "evaluated_indexes": set(infos), "total_archs": len(names)}


def test_the_three_official_forms_give_the_same(tmp_path: Path) -> None:
    names = all_cells()[:3]
    pack(tmp_path / "NATS-tss.pickle.pbz2", one_file(names, ("12", "200")))
    torch.save(one_file(names, ("less", "full")), tmp_path / "NAS-Bench-201.pth")
    forms = (nats_folder(tmp_path / "simple", names), tmp_path / "NATS-tss.pickle.pbz2", tmp_path / "NAS-Bench-201.pth")
    for form in forms:
        found = list(cells(form))
        assert [cell for cell, _ in found] == names
        for _, values in found:
            assert {metric: values[metric] for metric in EXPECTED} == EXPECTED


def test_numbers_of_numpy_are_read_and_arrays_are_not(tmp_path: Path) -> None:
    runs = dict(NATS["200"]["all_results"])  # type: ignore[call-overload]
    numbers = {"params": np.float64(1.25), "flop": np.float32(100.5), "epochs": np.int64(200)}
    unread = {"train_times": np.ones(3), "latency": np.array([0.01])}
    table = {
        "12": NATS["12"],
        "200": {**NATS["200"], "all_results": {k: {**run, **numbers, **unread} for k, run in runs.items()}},
    }
    pack(tmp_path / "meta.pickle.pbz2", {"meta_archs": all_cells()[:1]})
    pack(tmp_path / "000000.pickle.pbz2", table)
    ((_, values),) = cells(tmp_path)
    assert {metric: values[metric] for metric in EXPECTED} == EXPECTED

    def saved(more: dict[str, object]) -> Path:
        full = {**NATS["200"], "all_results": {k: {**run, **more} for k, run in runs.items()}}
        torch.save(
            {"meta_archs": all_cells()[:1], "arch2infos": {0: {"less": NATS["12"], "full": full}}}, tmp_path / "x.pth"
        )
        return tmp_path / "x.pth"

    ((_, values),) = cells(saved(numbers))
    assert {metric: values[metric] for metric in EXPECTED} == EXPECTED
    with pytest.raises(UserError, match=r"asks for numpy.*which is no plain value"):
        list(cells(saved(unread)))


class Malice:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("touched"),)


def test_nothing_in_a_download_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "evil.pickle.pbz2", {"meta_archs": Malice()})
    torch.save({"meta_archs": Malice()}, tmp_path / "evil.pth")
    for name, says in (("evil.pickle.pbz2", "is no plain value"), ("evil.pth", "asks for .*which is no plain value")):
        with pytest.raises(UserError, match=says):
            list(cells(tmp_path / name))
    assert not (tmp_path / "touched").exists()


@pytest.mark.slow
def test_convert_writes_a_table_that_can_be_read(tmp_path: Path) -> None:
    names = all_cells()
    pack(tmp_path / "NATS-tss.pickle.pbz2", one_file(names, ("12", "200")))
    assert CONVERTERS["nb201"](tmp_path / "NATS-tss.pickle.pbz2", tmp_path / "out") == tmp_path / "out" / MAIN
    table = read(tmp_path / "out")
    assert table.cells == tuple(names)
    assert len(set(table.first.tolist())) == 6466
    genotype = Genotype.parse(SKIPS)
    assert table.value(genotype, "cifar10/test") == 81.5
    assert table.value(genotype, "imagenet16-120/test/12") == 53.25
    assert table.value(genotype, "cifar10/parameters") == 1_250_000


def test_what_is_no_download_is_one_sentence(tmp_path: Path) -> None:
    few = nats_folder(tmp_path / "few", all_cells()[:2])
    pack(tmp_path / "size.pickle.pbz2", {"meta_archs": ["8:8:8:8:8"], "arch2infos": {}})
    pack(tmp_path / "list.pickle.pbz2", [1, 2])
    (tmp_path / "cut.pickle.pbz2").write_bytes((few / "000001.pickle.pbz2").read_bytes()[:-20])
    torch.save(one_file(all_cells()[:1], ("less", "full")), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-500])
    (tmp_path / "number.pth").write_bytes(checkpoint_cut_in_a_number())
    lacking = nats_folder(tmp_path / "lacking", all_cells()[:1])
    pack(lacking / "0.pickle.pbz2", {"200": NATS["200"]})
    untrained = nats_folder(tmp_path / "untrained", all_cells()[:1])
    pack(untrained / "0.pickle.pbz2", {**NATS, "200": {**NATS["200"], "dataset_seed": {}}})
    gone = nats_folder(tmp_path / "gone", all_cells()[:2])
    (gone / "000001.pickle.pbz2").unlink()
    for path, says in {
        few: "holds 2 cells, not the 15625",
        tmp_path / "size.pickle.pbz2": "the size space is none",
        tmp_path / "list.pickle.pbz2": "holds no table",
        tmp_path / "cut.pickle.pbz2": "truncated or damaged",
        tmp_path / "cut.pth": "truncated or damaged",
        tmp_path / "number.pth": "truncated or damaged",
        lacking: "cell 0 has no table '12'",
        untrained: "no training on cifar10-valid",
        gone: "There is no file .*1.pickle.pbz2",
        tmp_path / "nowhere.pth": "There is no file",
        tmp_path / "nowhere.pbz2": "There is no file",
    }.items():
        with pytest.raises(UserError, match=says):
            convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_table_is_small(data_folder: Path) -> None:
    tracemalloc.start()
    loaded = read(data_folder)
    loaded.column("cifar10/test")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
