"""Published cells: found by any spelling of their names, of the published size, and built as their authors build them."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oche.base import Draw
from oche.errors import UserError
from oche.genotype import Choice, Genotype, published
from oche.genotype.zoo import CELLS, indexed
from oche.spaces import SPACES, Space
from oche.spaces.cost import cost, parameters
from oche.spaces.darts import DartsSpace
from oche.spaces.networks import Cell, Network
from oche.spaces.robust import S2

SIZES: dict[str, Space] = {
    "cifar": SPACES["darts"](size=(32, 32), channels=36, cells=20),
    "imagenet": SPACES["darts"](outputs=1000, size=(224, 224), channels=48, cells=14, stem_multiplier=1),
    "nb201": SPACES["nb201"](size=(32, 32), channels=16, cells=5),
}
"""The published networks."""

APART = {
    ("DARTS_V1", "cifar_parameters"): 0.04,
    ("DARTS_V2", "imagenet_multiply_adds"): 0.08,
    ("PCDARTS_CIFAR", "imagenet_multiply_adds"): 0.03,
    ("PCDARTS_IMAGENET", "imagenet_multiply_adds"): 0.03,
}
"""Where a published figure is further from ours than 1.5 %: how far."""


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("darts_v2", "DARTS_V2"),
        ("DARTS", "DARTS_V2"),
        ("Darts-V1", "DARTS_V1"),
        ("DARTS-", "DARTS_MINUS"),
        ("P-DARTS", "PDARTS"),
        ("pc-darts", "PCDARTS_CIFAR"),
        ("PC_DARTS_image", "PCDARTS_IMAGENET"),
        ("DrNAS", "DRNAS_CIFAR"),
        ("gdas", "GDAS_V1"),
        ("FairDARTS-c", "FAIRDARTS_C"),
        ("fairdarts g", "FAIRDARTS_G"),
        ("α-ADARTS", "ALPHA_ADARTS"),
        ("NASNet", "NASNET_A"),
        ("nb201_9930", "NB201_9930"),
        ("NATS-9930", "NB201_9930"),
        ("nb201:9930", "NB201_9930"),
        ("NAS-Bench-201 #9930", "NB201_9930"),
        ("nb201:009930", "NB201_9930"),
    ],
)
def test_names_in_any_spelling(spelling: str, name: str) -> None:
    assert Genotype.parse(spelling) == Genotype.parse(name) == Genotype.parse(published()[name].cell)


def test_every_name_and_alias_is_of_one_cell() -> None:
    for name, entry in published().items():
        for alias in (name, *entry.aliases, name.lower(), name.replace("_", "-")):
            assert str(Genotype.parse(alias)) == entry.cell, alias
            assert Genotype.parse(alias).space == entry.space
        assert Genotype.parse(name, "s5").space == "s5"
        assert re.search(r"@ [0-9a-f]{7}, \S+\.py$|NAS-Bench-201, index \d+$", entry.source), entry.source


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pdart", "did you mean 'PDARTS'"),
        ("fairdarts_h", "did you mean 'FAIRDARTS_"),
        ("nb201:15625", "no cell 15625 in NAS-Bench-201; cells are numbered 0 to 15624"),
        ("quite another thing", r"that `oche list genotypes` or `oche list rivals` knows\.$"),
    ],
)
def test_unknown_names(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Genotype.parse(name)


def test_indexes_are_those_of_the_table(data_folder: Path) -> None:
    """All 15,625: the enumeration is counted and shuffled here, the table comes from the benchmark's files."""
    with gzip.open(data_folder / "nasbench201" / "nb201.csv.gz", "rt") as file:
        rows = {int(row["index"]): row["arch_str"] for row in csv.DictReader(file)}
    assert rows == {index: indexed(index) for index in range(CELLS)}


def test_indexes_of_the_benchmark_s_own_assertions() -> None:
    """exps/NATS-Bench/main-tss.py of AutoDL-Projects f46486e checks its first cell; 1462 has convolutions alone."""
    first = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert str(Genotype.parse("nb201:0")) == first
    assert Genotype.parse("nats-1462").count("nor_conv_3x3") == 6


# ---------------------------------------------------------------------- costs


@pytest.mark.slow
@pytest.mark.parametrize("name", published())
def test_costs_are_counted_and_are_the_published_ones(name: str) -> None:
    """Within 1.5 %, or as far apart as APART says; FairDARTS counts the auxiliary head, all but once."""
    entry, genotype = published()[name], Genotype.parse(name)
    told = {key: value for key, value in (entry.told or {}).items() if key not in ("by", "auxiliary")}
    counted = {size: cost(SIZES[size], genotype) for size in {entry.size, *(key.partition("_")[0] for key in told)}}
    assert (counted[entry.size].parameters, counted[entry.size].multiply_adds) == (
        entry.parameters,
        entry.multiply_adds,
    )
    for key, figure in told.items():
        size, _, what = key.partition("_")
        ours = getattr(counted[size], what)
        if what == "parameters" and (entry.told or {}).get("auxiliary"):
            with torch.device("meta"):
                ours = parameters(SIZES[size].network(genotype, auxiliary=True))
        theirs = float(str(figure))
        apart, limit = abs(ours / 1e6 - theirs) / theirs, APART.get((name, key), 0.015)
        assert (limit / 2 if (name, key) in APART else 0) <= apart < limit


def test_parameters_by_hand() -> None:
    """AmoebaNet in three cells of four channels, from formulas of its operations."""
    space = DartsSpace(channels=4, cells=3, size=(16, 16), stem="cifar")
    c0, c1, c2 = 4, 8, 16  # cells of 4, 8 and 16 channels; reductions are the second and third

    def sep(c: int, k: int) -> int:
        return 2 * (c * k * k + c * c + 2 * c)

    def entries(before: int, last: int, c: int) -> int:
        return before * c + 2 * c + last * c + 2 * c

    normal = 3 * sep(c0, 3) + sep(c0, 5)
    expected = 3 * 12 * 9 + 2 * 12 + entries(12, 12, c0) + normal
    for before, last, c in ((12, 3 * c0, c1), (3 * c0, 3 * c1, c2)):
        reduce = sep(c, 3) + 2 * sep(c, 7) + (2 * 7 * c * c + 2 * c) + sep(c, 3)
        expected += entries(before, last, c) + reduce
    expected += 3 * c2 * 10 + 10
    assert parameters(space.network(Genotype.parse("AmoebaNet"))) == expected


# ---------------------------------------------------------------------- networks

RAW = {
    "AMOEBANET_A": (
        "avg_pool_3x3 0 max_pool_3x3 1 sep_conv_3x3 0 sep_conv_5x5 2 sep_conv_3x3 0 "
        "avg_pool_3x3 3 sep_conv_3x3 1 skip_connect 1 skip_connect 0 avg_pool_3x3 1",
        (4, 5, 6),
        "avg_pool_3x3 0 sep_conv_3x3 1 max_pool_3x3 0 sep_conv_7x7 2 sep_conv_7x7 0 "
        "avg_pool_3x3 1 max_pool_3x3 0 max_pool_3x3 1 conv_7x1_1x7 0 sep_conv_3x3 5",
        (3, 4, 6),
    ),
    "NASNET_A": (
        "sep_conv_5x5 1 sep_conv_3x3 0 sep_conv_5x5 0 sep_conv_3x3 0 avg_pool_3x3 1 "
        "skip_connect 0 avg_pool_3x3 0 avg_pool_3x3 0 sep_conv_3x3 1 skip_connect 1",
        (2, 3, 4, 5, 6),
        "sep_conv_5x5 1 sep_conv_7x7 0 max_pool_3x3 1 sep_conv_7x7 0 avg_pool_3x3 1 "
        "sep_conv_5x5 0 skip_connect 3 avg_pool_3x3 2 sep_conv_3x3 2 max_pool_3x3 1",
        (4, 5, 6),
    ),
}
"""quark0/darts f276dd3, cnn/genotypes.py."""


def as_published(cell: Cell, written: str, concat: tuple[int, ...], inputs: list[Tensor]) -> Tensor:
    """The forward pass of DARTS's evaluation network: two operations per node in the order written, summed; then the concatenation."""
    words = written.split()
    pairs = [(op, int(source)) for op, source in zip(words[::2], words[1::2], strict=True)]
    states = [entry(x) for entry, x in zip(cell.entries, inputs, strict=True)]
    used: dict[str, int] = {}
    for node in range(2, 2 + len(pairs) // 2):
        total = torch.zeros(())
        for op, source in pairs[2 * node - 4 : 2 * node - 2]:
            key = f"{source}-{node}"
            key += f"-{used[key]}" if used.setdefault(key, 0) else ""
            used[f"{source}-{node}"] += 1
            edge = cell.edges[key]
            assert list(edge.ops) == [op]  # type: ignore[arg-type]
            total = total + edge(states[source], None)
        states.append(total)
    return torch.cat([states[node] for node in concat], dim=1)


@pytest.mark.parametrize("name", RAW)
def test_networks_with_partial_outputs_and_two_operations_between_the_same_nodes(name: str, float64: None) -> None:
    torch.manual_seed(0)
    normal, outputs, reduce, outputs_reduce = RAW[name]
    network = DartsSpace(channels=4, cells=4, size=(16, 16), stem="cifar").network(Genotype.parse(name)).eval()
    x = torch.randn(2, 3, 16, 16)
    before = last = network.body.stem(x)  # type: ignore[operator]
    for i, cell in enumerate(network.body.cells.values()):
        assert isinstance(cell, Cell)
        parts = (reduce, outputs_reduce) if i in (1, 2) else (normal, outputs)
        before, last = last, as_published(cell, *parts, [before, last])
    expected = F.linear(last.mean((2, 3)), *network.body.classifier.parameters())  # type: ignore[operator]
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_fair_darts_c_without_its_node_3(float64: None) -> None:
    """Nodes 2, 4 and 5 alone are concatenated; the skip connection out of node 3 carries nothing (fairdarts/model.py, DCOCell)."""
    torch.manual_seed(0)
    genotype = Genotype.parse("FAIRDARTS_C")
    assert genotype.concat == {"normal": (2, 4, 5)}
    assert Choice(3, 5, "skip_connect") not in genotype.groups["normal"]
    network = DartsSpace(channels=4, cells=1, size=(8, 8), stem="cifar").network(genotype).eval()
    assert network.body.cells["cell_0"].entries[0][1].out_channels == 8, "one cell is a reduction"  # type: ignore[index, union-attr]
    network = DartsSpace(channels=4, cells=4, size=(8, 8), stem="cifar").network(genotype).eval()
    cell = network.body.cells["cell_0"]
    assert isinstance(cell, Cell)
    assert sorted(cell.edges) == ["0-2", "0-4", "0-5", "1-2", "2-4"]
    x = torch.randn(2, 12, 8, 8)
    s0, s1 = (entry(x) for entry in cell.entries)

    def at(key: str, h: Tensor) -> Tensor:
        out: Tensor = cell.edges[key](h, None)
        return out

    n2 = at("0-2", s0) + at("1-2", s1)
    expected = torch.cat([n2, at("0-4", s0) + at("2-4", n2), at("0-5", s0)], dim=1)
    torch.testing.assert_close(cell([x, x], lambda e, edge, h: edge(h, None)), expected)


@pytest.mark.parametrize("name", [name for name, entry in published().items() if entry.space == "darts"])
def test_every_published_cell_trains(name: str) -> None:
    """A step with the auxiliary head and drop path reaches every weight; SNAS's aggressive cells cut their network with `none`."""
    space, genotype = DartsSpace(channels=4, cells=3, size=(32, 32), stem="cifar"), Genotype.parse(name)
    network = space.network(genotype, auxiliary=True)
    outputs, auxiliary = network.heads(torch.randn(2, 3, 32, 32), Draw(0), 0.2)
    assert auxiliary is not None
    assert outputs.shape == auxiliary.shape == (2, 10)
    (outputs.square().sum() + auxiliary.square().sum()).backward()
    assert all(p.grad is not None for p in network.parameters()) or genotype.count("none")


def test_an_identity_beside_a_convolution_is_not_dropped() -> None:
    """AmoebaNet's node 5 has both on one edge: drop path loses the convolution's output alone."""
    network = DartsSpace(channels=4, cells=4, size=(8, 8), stem="cifar").network(Genotype.parse("AmoebaNet"))
    cell = network.body.cells["cell_0"]
    assert isinstance(cell, Cell)
    x = torch.randn(2, 4, 8, 8)
    assert cell.edges["1-5-1"](x, None) is x
    assert cell.edges["1-5"](x, None) is not x
    assert len(cell.numbers()) == 10


# ---------------------------------------------------------------------- what a space refuses

PAIRS = (
    Choice(0, 2, "sep_conv_3x3"),
    Choice(1, 2, "skip_connect"),
    Choice(0, 3, "skip_connect"),
    Choice(1, 3, "sep_conv_3x3"),
)


def cells(choices: tuple[Choice, ...], **concat: tuple[int, ...]) -> Genotype:
    return Genotype("darts", {"normal": choices, "reduce": PAIRS}, concat=concat)


@pytest.mark.parametrize(
    ("genotype", "sentence"),
    [
        (cells(PAIRS[:2]), "leaves a node without input"),
        (cells(PAIRS[:2], normal=(2, 3)), r"leaves a node without input \(3\)"),
        (cells((*PAIRS[:2], Choice(3, 4, "skip_connect")), normal=(2, 4)), r"leaves a node without input \(3\)"),
        (cells(PAIRS, normal=(2, 7)), r"leaves a node without input \(7\)"),
        (cells(PAIRS, normal=()), "leaves a node without input"),
        (cells((*PAIRS, Choice(0, 3, "nor_conv_3x3"))), "'nor_conv_3x3' on the edge 0->3 .* no candidate"),
        (cells((*PAIRS, Choice(0, 100, "skip_connect"))), "edge 0->100 .*no such edge"),
        (
            Genotype("nb201", {"cell": (Choice(0, 1, "none"),)}, concat={"cell": (1,)}),
            "which nodes its cells concatenate",
        ),
    ],
)
def test_cells_that_cannot_be_built(genotype: Genotype, sentence: str) -> None:
    space = (
        DartsSpace(channels=4, cells=3) if genotype.space == "darts" else SPACES["nb201"](channels=4, cells=1, nodes=2)
    )
    with pytest.raises(UserError, match=sentence):
        space.network(genotype)


def test_a_sub_space_takes_absent_nodes_and_no_foreign_operations() -> None:
    space = S2(channels=4, cells=3)
    pairs = tuple(Choice(s, t, "skip_connect") for t in (2, 4, 5) for s in (0, 1))
    genotype = Genotype("s2", {"normal": pairs, "reduce": pairs}, concat=dict.fromkeys(("normal", "reduce"), (2, 4, 5)))
    network = space.network(genotype)
    assert isinstance(network, Network)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match="no candidate"):
        space.network(Genotype.parse("NASNet", "s2"))


def test_a_searched_cell_is_of_the_space_itself() -> None:
    space = DartsSpace()
    assert space.fitted(Genotype.parse("DARTS_V2")) is space
    assert space.fitted(Genotype.parse("NASNet")) != space


# ---------------------------------------------------------------------- the page


def test_the_page_lists_what_the_zoo_holds() -> None:
    """Run `python docs/make_cells.py` after changing the zoo; the costs of the second table are the slow test's above."""
    docs = Path(__file__).parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("make_cells", docs / "make_cells.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text()
    assert "\n".join(script.listed()) in page
    assert page.startswith(script.TEXT)
    assert page.endswith(script.NOTES)
    for name, entry in published().items():
        told = [key for key in entry.told or {} if key not in ("by", "auxiliary")]
        assert len(re.findall(rf"^\| {name} \| \w+, M [^|]+\|", page, flags=re.M)) == len(told)
