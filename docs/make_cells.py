"""Writes docs/published_cells.md: the cells of the zoo, their costs as oche counts them, and what their sources say.

python docs/make_cells.py
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from oche.genotype import Genotype, published
from oche.genotype.zoo import Published
from oche.spaces import SPACES, Space
from oche.spaces.cost import Cost, cost, parameters

SIZES: dict[str, Space] = {
    "cifar": SPACES["darts"](size=(32, 32), channels=36, cells=20),
    "imagenet": SPACES["darts"](outputs=1000, size=(224, 224), channels=48, cells=14, stem_multiplier=1),
    "nb201": SPACES["nb201"](size=(32, 32), channels=16, cells=5),
}
"""The networks that papers train."""

PAGE = Path(__file__).parent / "published_cells.md"

TEXT = """# Published cells

<!-- run small -->
```sh
oche list genotypes                       # names, sources, costs
oche train PC-DARTS --data cifar10.npz --protocol darts_cifar
oche train nb201:9930 --data cifar10.npz  # an index of NAS-Bench-201 (or NATS-9930)
oche draw NASNet --out nasnet.svg
```

Wherever a genotype is asked for, a name, a file, a run's folder or the text itself will do. Names are compared without case, hyphens,
underscores and spaces. Texts may be what repositories and logs have:

| form | example |
| --- | --- |
| assignment, log line | `2021-03-01 12:00:00,123 genotype = Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), ...)` |
| numpy and torch | `np.int64(1)`, `array([2, 3, 4, 5])`, `tensor(0.25)`; both quotes; comments; a trailing comma |
| nested pairs (GDAS) | `normal=[(('skip_connect', 0), ('sep_conv_5x5', 2)), ...]`, a node may have any number of inputs |
| pairs with weights | `('skip_connect', 0, 0.1302)`: the weight says how strongly it was chosen, and is no part of the cell |
| triples (FairDARTS) | `('sep_conv_3x3', 2, 0)`: operation, node, input |
| all edges (SNAS) | a pair for every edge, those left out as `none` |
| JSON | `{"normal": [["sep_conv_3x3", 0], ...], "normal_concat": [2, 3, 4, 5], ...}` |
| `Structure` | `Structure([(('nor_conv_3x3', 0),), ...])`; edges that are not listed are `none` |
| NAS-Bench-201 | `\\|nor_conv_3x3~0\\|+\\|nor_conv_3x3~0\\|skip_connect~1\\|`, with or without spaces, in a line or alone |
| index | `nb201:9930`, `NATS-9930`, `NAS-Bench-201 #9930` |

Nothing is evaluated as code, and size and depth are bounded. A text with two different genotypes is refused.

**What a network is.** `normal_concat` may name some of the nodes: the others are read by nodes alone (NASNet, AmoebaNet). A node
without input is absent: it is not concatenated, and edges out of it carry nothing (FairDARTS a, c, e, g). A cell may have up to ten
nodes, two operations between the same nodes, and besides the space's operations `sep_conv_7x7`, `conv_7x1_1x7`, `conv_3x1_1x3`,
`max_pool_5x5` and `avg_pool_5x5`. Drop path loses single operations, as in DARTS's code; FairDARTS's code loses whole nodes.

## Costs

Counted by `oche.spaces.cost`: parameters without the auxiliary head, multiply-adds of convolutions and linear layers of one image.
`cifar` is 20 cells of 36 channels at 32x32 and 10 classes, `imagenet` 14 of 48 at 224x224 and 1,000 classes, `nb201` three stages of 5
cells from 16 channels on. Where a source gives figures, ours stand beside them; a test holds them within 1.5 %, or to the difference
shown.

"""

NOTES = """
Where ours differ by more than 1.5 %: papers print 3.3 M for both DARTS cells, of which the first has 3.17. The field's counter of
ImageNet networks adds about 2.6 % for batch norm and pools; DARTS_V2's 574 M is 8 % above ours, for a reason that is not known here.
FairDARTS counts the auxiliary head's 0.48 M parameters, except for c.

## Not here

- **Beta-DARTS**: the one cell in its repository (Sunshine-Ye/Beta-DARTS @ f307704, sota/cnn/genotypes.py, `genotype`) has 2.57 M
  parameters, where the paper reports 3.75: it is not the published one. On NAS-Bench-201 it reports the accuracies of NB201_9930.
- **GDAS_F1**: its reduction cell is a block of its own, which is no cell of the space. GDAS_V1 is D-X-Y's; the copy in
  xiaomi-automl/FairDARTS reads another node in its last pair.
- **DARTS- on ImageNet** and other cells of spaces that oche does not have.
"""


@cache
def counted(name: str, size: str) -> Cost:
    """The cost of the network that papers train with a cell."""
    return cost(SIZES[size], Genotype.parse(name))


def figures(entry: Published) -> Iterator[tuple[str, str, str, str]]:
    """(network and quantity, ours, the source's, how far apart), as text."""
    told = entry.told or {}
    for key, figure in told.items():
        size, _, what = key.partition("_")
        if size not in SIZES:
            continue
        ours = getattr(counted(entry.name, size), what) / 1e6
        unit = "M parameters" if what == "parameters" else "M multiply-adds"
        if what == "parameters" and told.get("auxiliary"):
            with torch.device("meta"):
                ours = parameters(SIZES[size].network(Genotype.parse(entry.name), auxiliary=True)) / 1e6
            unit += " with the auxiliary head"
        theirs = float(str(figure))
        yield (
            f"{size}, {unit}",
            f"{ours:.{2 if ours < 50 else 1}f}",
            f"{theirs:g}",
            f"{100 * (ours - theirs) / theirs:+.1f} %",
        )


def listed() -> Iterator[str]:
    """The first table's lines: what each cell is."""
    yield "| name | network | parameters | multiply-adds | paper | source |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, entry in published().items():
        costs = f"{entry.parameters:,} | {entry.multiply_adds / 1e6:.1f} M"
        yield f"| {name} | {entry.size} | {costs} | {entry.paper} | {entry.source} |"


def page() -> str:
    """The page's text."""
    lines = [*listed(), "", "| name | | ours | its source | apart | where |", "| --- | --- | --- | --- | --- | --- |"]
    for name, entry in published().items():
        for what, ours, theirs, apart in figures(entry):
            lines.append(f"| {name} | {what} | {ours} | {theirs} | {apart} | {(entry.told or {})['by']} |")
    return TEXT + "\n".join(lines) + "\n" + NOTES


if __name__ == "__main__":
    PAGE.write_text(page())
