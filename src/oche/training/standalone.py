"""`network.py` beside an exported network: one readable file that builds it in plain PyTorch, without oche.

The classes are those of `oche.training.plain`, the operations those of `oche.spaces`, copied with all that they use and nothing else; the
sizes and the genotype are tables in the file. The file knows the digest of its weights and refuses others.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from oche.data.contract import Contract
from oche.genotype import Genotype
from oche.spaces import ChainSpace, DartsSpace, GridSpace, NB201Space, Network, SaseSpace, Space, StagesSpace
from oche.spaces.blocks import BLOCKS
from oche.spaces.edges import EDGES, KEPT_NORMED, TRAINED
from oche.spaces.grid import GridBody, GridCell
from oche.spaces.heads import Density, Pooled
from oche.spaces.networks import Cell, Chosen, Kept
from oche.spaces.ops import OPS
from oche.spaces.slots import SLOT_OPS
from oche.training.source import Gathered, module, names_in, sorted_imports

NETWORK_NAME = "network.py"

HOMES = ("oche.spaces.ops", "oche.spaces.blocks", "oche.spaces.segmentation", "oche.spaces.heads", "oche.spaces.slots")
"""Modules that have what operations and heads are made of."""

Rows = Sequence[tuple[object, ...]]
"""The edges of a cell: (from, to, operation), with a coefficient where the edge keeps several."""


def refusal(space: Space, genotype: Genotype) -> str:
    """Why no such file can be written, in one sentence, or "" if it can: parts of the user's own are not ours to copy."""
    fitted = space.fitted(genotype)
    known = (ChainSpace, DartsSpace, GridSpace, NB201Space, SaseSpace)
    if not isinstance(fitted, known) or not type(fitted).__module__.startswith("oche."):
        return f"network.py is written for the spaces of oche; {space.name!r} is not one of them."
    for op in sorted({c.op for choices in genotype.groups.values() for c in choices}):
        if op not in BUILT_IN:
            return f"network.py is written for the operations of oche; {op!r} is not one of them."
    if genotype.edge not in ("weighted_sum", *TRAINED) or genotype.edge not in EDGES:
        return f"network.py is written for edges that are sums; this genotype has {genotype.edge!r}."
    return ""


BUILT_IN = frozenset((*OPS, *SLOT_OPS))
"""Operations of oche's own, before any of a user's are registered."""


def script(network: Network, space: Space, genotype: Genotype, contract: Contract, digest: str) -> str:
    """The text of `network.py`; `digest` is the SHA-256 of the weights' file, in hexadecimal."""
    fitted = space.fitted(genotype)
    parts = _parts(network, fitted, genotype)
    gathered = Gathered(given=frozenset({"OPS", "BLOCKS"}))
    gathered.add("oche.training.plain.cells", "Network")
    gathered.add(f"oche.training.plain.{parts.module}", parts.network)
    chosen = {op: _expression(op, parts.module == "chain") for op in _operations(network)}
    for code in (*chosen.values(), parts.build, *parts.arguments.values()):
        names = names_in(ast.parse(code))
        for where in HOMES:
            gathered.use(where, [name for name in names if name in module(where).definitions])
    operations = "\n".join(f"    {op!r}: {code}," for op, code in chosen.items()).replace("'", '"')
    arguments = "".join(f"        {name}={value},\n" for name, value in parts.arguments.items())
    return FILE.format(
        version=version("oche"),
        space=space.name,
        imports="\n".join(sorted_imports(gathered.imports)),
        definitions="\n\n\n".join(gathered.definitions.values()),
        table="BLOCKS" if parts.module == "chain" else "OPS",
        operations=operations,
        build=parts.build,
        genotype="\n\n".join(f"{name} = {table}" for name, table in parts.tables.items()),
        network=parts.network,
        arguments=arguments,
        things="signals)      # signals (B, C, 1, L) as they are"
        if contract.signal
        else "images)      # images (B, C, H, W) in [0, 1]",
        classes=tuple(contract.classes),
        size=(contract.channels, *contract.size),
        mean=tuple(contract.mean),
        std=tuple(contract.std),
        digest=digest,
    )


@torch.no_grad()
def built(path: Path) -> nn.Module:
    """What the `load()` of a written file gives, with the weights beside it."""
    spec = importlib.util.spec_from_file_location("oche_written_network", path)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(made)
        network: nn.Module = made.load()
    finally:
        del sys.modules[spec.name]
    return network


# ------------------------------------------------------------------ what a space's network is made of


@dataclass(frozen=True)
class Parts:
    """The class of a network (`network`, in `plain.module`), its arguments as code, the tables that they name, and `operation`'s code."""

    module: str
    network: str
    arguments: Mapping[str, str]
    tables: Mapping[str, str]
    build: str


def _parts(network: Network, space: Space, genotype: Genotype) -> Parts:
    build = _build(network, space, genotype)
    classifier = _classifier(network)
    if isinstance(space, NB201Space):
        sizes = _sizes(space, "inputs", "channels", "cells", "stages")
        arguments = {**sizes, "genotype": "GENOTYPE", "build": "operation", "classifier": classifier}
        return Parts("nb201", "NB201Network", arguments, {"GENOTYPE": _groups(network, space)}, build)
    if isinstance(space, DartsSpace):
        sizes = _sizes(space, "inputs", "channels", "cells")
        sizes |= {"stem": str(space.stem_multiplier * space.channels), "imagenet": str(space.imagenet_stem)}
        arguments = {**sizes, "genotype": "GENOTYPE", "concat": "CONCAT", "build": "operation"}
        arguments["classifier"] = classifier
        concat = {name: cell._outputs for name, cell in _first_cells(network, space).items()}
        tables = {"GENOTYPE": _groups(network, space), "CONCAT": repr(concat).replace("'", '"')}
        return Parts("darts", "DartsNetwork", arguments, tables, build)
    if isinstance(space, ChainSpace):
        arguments = {
            **_sizes(space, "inputs"),
            "stem": str(space.width(space.stem)),
            "stem_kernel": str(space.stem_kernel),
            "stem_stride": str(space.reduction),
            "layers": "LAYERS",
            "head": str(space.width(space.head) if space.head else 0),
            "bias": str(space.bias),
            "flat": str(space.flat),
            "build": "operation",
            "classifier": classifier,
        }
        layers = {
            place.name: f"({place.inputs}, {place.outputs}, {place.stride}, {_line(_rows(_cell(network, place.name)))})"
            for place in space.places()
        }
        return Parts("chain", "ChainNetwork", arguments, {"LAYERS": _table(layers)}, build)
    if isinstance(space, SaseSpace):
        return _sase(network, space, build, classifier)
    assert isinstance(space, GridSpace)
    return _grid(network, space, build)


def _grid(network: Network, space: GridSpace, build: str) -> Parts:
    body, nodes = network.body, {}
    assert isinstance(body, GridBody)
    levels = {0: 0} | {n: node.level for n, node in enumerate(space.nodes(), start=1)}
    for name, cell in body.cells.items():
        assert isinstance(cell, GridCell)
        reads = dict(zip(cell.kept, cell.sources, strict=True))
        nodes[name] = f"({cell.number}, {levels[cell.number]}, {reads}, {_line(_rows(cell))})"
    widths = {level: space.width(level) for level in body.last}
    heads = {
        "fine": f"Fine({widths}, {space.inputs}, {space.channels}, {space.outputs})",
        "topdown": f"TopDown({widths}, {2 * space.channels}, {space.outputs})",
        "aspp": f"Aspp({widths}, {space.outputs})",
    }
    arguments = {
        "stem": f"stem({space.inputs}, {space.channels}, separable={space.stem == 'separable'})",
        "head": heads[space.head],
        "channels": str(space.channels),
        "nodes": "NODES",
        "last": repr(body.last),
        "multiple": str(body.multiple),
        "build": "operation",
    }
    return Parts("grid", "GridNetwork", arguments, {"NODES": _table(nodes)}, build)


def _sase(network: Network, space: SaseSpace, build: str, classifier: str) -> Parts:
    blocks = {
        layer.name: f"({layer.inputs}, {layer.outputs}, {layer.stride}, {_line(_rows(_cell(network, layer.name)))})"
        for layer in space.blocks()
    }
    arguments = {
        **_sizes(space, "inputs", "channels"),
        "stem_stride": str(space.reduction),
        "blocks": "BLOCKS",
        "mobile": str(space.backbone == "mobile"),
        "build": "operation",
        "classifier": classifier,
    }
    return Parts("sase", "SaseNetwork", arguments, {"BLOCKS": _table(blocks)}, build)


def _classifier(network: Network) -> str:
    """The code that makes what reads the features; "" in a grid, whose heads are others."""
    found = network.body.classifier if hasattr(network.body, "classifier") else None
    if isinstance(found, Density):
        return f"Density({found.in_channels}, {found.grid})"
    return f"Pooled({found.in_features}, {found.out_features})" if isinstance(found, Pooled) else ""


def _sizes(space: Space, *names: str) -> dict[str, str]:
    return {name: repr(getattr(space, name)) for name in names}


def _build(network: Network, space: Space, genotype: Genotype) -> str:
    """The function of the file that makes an operation, with the batch norms that a supernet has behind pools where these stay."""
    if isinstance(space, ChainSpace):
        head = "def operation(op: str, place: Place) -> nn.Module:"
        made, channels = "BLOCKS[op](place)", "place.outputs"
    elif isinstance(space, SaseSpace):
        head = "def operation(op: str, channels: int) -> nn.Module:"
        made, channels = "OPS[op](channels)", "channels"
    else:
        head = "def operation(op: str, channels: int, stride: int) -> nn.Module:"
        made, channels = "OPS[op](channels, stride, True)", "channels"
    said = '    """An operation of the network."""'
    soft = any(isinstance(module, Kept) for module in network.modules())
    if soft and genotype.edge == KEPT_NORMED and not isinstance(space, SaseSpace):  # an attention's slots have none
        bare = 'isinstance(made, nn.Identity | nn.AvgPool2d | nn.MaxPool2d) and op != "connect"'
    elif soft and isinstance(space, DartsSpace):
        bare = '"pool" in op'
    else:
        return f"{head}\n{said}\n    return {made}"
    return f"{head}\n{said}\n    made = {made}\n    return PoolBN(made, {channels}, True) if {bare} else made"


# ------------------------------------------------------------------ operations and cells as text


def _expression(op: str, chain: bool) -> str:
    """The code that makes an operation's factory."""
    if chain and op in BLOCKS:
        return _call(BLOCKS[op])
    if chain and op == "skip_connect":
        return "lambda place: place.shortcut()"
    if op in SLOT_OPS:
        return _listed(op, "oche.spaces.slots", *SLOT_TABLES)
    zero = "lambda channels, stride, affine: Zero(stride)"  # a network at work draws no noise: its mean is left
    code = zero if op == "noise" else _listed(op, "oche.spaces.ops", "OPS") or _call(OPS[op])
    return f"lambda place: ({code})(place.outputs, place.stride, True)" if chain else code


SLOT_TABLES = ("CHANNEL_SQUEEZE", "CHANNEL_EXCITE", "SPATIAL_SQUEEZE", "SPATIAL_EXCITE")


def _listed(op: str, where: str, *tables: str) -> str:
    """The code that stands beside an operation's name in these tables of a module, "" if the name is made by a comprehension."""
    for table in tables:
        node = module(where).definitions[table]
        assert isinstance(node, ast.AnnAssign)
        assert isinstance(node.value, ast.Dict)
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == op:
                return ast.unparse(value)
    return ""


def _call(factory: Callable[..., object]) -> str:
    """The call that made a factory, from its name and what it holds: `mbconv(kernel=3, expansion=6, se=False)`."""
    held = inspect.getclosurevars(factory).nonlocals
    name = factory.__qualname__.partition(".")[0]
    if not held:
        return name
    return f"{name}({', '.join(f'{k}={_call(v) if callable(v) else repr(v)}' for k, v in held.items())})"


def _operations(network: Network) -> list[str]:
    """The operations that a network has, in the order of `OPS`."""
    used = {row[2] for cell in network.body.cells.values() if isinstance(cell, Cell) for row in _rows(cell)}
    return [op for op in (*OPS, *SLOT_OPS) if op in used]


def _rows(cell: Cell) -> Rows:
    """The edges of a cell."""
    rows: list[tuple[object, ...]] = []
    for key, edge in cell.edges.items():
        source, target = map(int, key.split("-")[:2])
        if isinstance(edge, Chosen):
            rows += [(source, target, op) for op in edge.ops]
        else:
            assert isinstance(edge, Kept)
            ops = edge.mixed.ops
            assert isinstance(ops, nn.ModuleDict)
            rows += [(source, target, op, c) for op, c in zip(ops, edge.coefficients.tolist(), strict=True)]
    return rows


def _cell(network: Network, name: str) -> Cell:
    cell = network.body.cells[name]
    assert isinstance(cell, Cell)
    return cell


def _first_cells(network: Network, space: Space) -> dict[str, Cell]:
    """Group's name -> the first of its cells; groups of no cell are left out. In the stages space, cell's name -> cell."""
    if isinstance(space, StagesSpace):
        return {name: _cell(network, name) for name in space.cell_groups()}
    return {group.name: _cell(network, group.cells[0]) for group in space.groups if group.cells}


def _groups(network: Network, space: Space) -> str:
    return _table({name: _block(_rows(cell)) for name, cell in _first_cells(network, space).items()})


def _table(rows: Mapping[str, str]) -> str:
    return "{\n" + "".join(f'    "{name}": {value},\n' for name, value in rows.items()) + "}"


def _block(rows: Rows) -> str:
    return "[\n" + "".join(f"        {_row(row)},\n" for row in rows) + "    ]"


def _line(rows: Rows) -> str:
    return f"[{', '.join(map(_row, rows))}]"


def _row(row: tuple[object, ...]) -> str:
    return repr(row).replace("'", '"')


FILE = '''\
"""A network that oche {version} found in the space {space}, in plain PyTorch: needs torch and safetensors alone.

    from network import load
    scores = load()({things}; they are normalised inside

`load` reads weights.safetensors, which lies beside this file; `build` makes the network with fresh weights, to train it anew.
Its code is oche's, under the Apache License 2.0.
"""

from __future__ import annotations

{imports}

CLASSES = {classes!r}
SIZE = {size!r}  # channels, height, width
MEAN, STD = {mean!r}, {std!r}
DIGEST = "{digest}"
"""SHA-256 of the weights that belong to this file."""

# ---------------------------------------------------------------------- parts


{definitions}


# ---------------------------------------------------------------------- the network that was found

{table} = {{
{operations}
}}

{genotype}


{build}


def build() -> Network:
    """The network with fresh weights."""
    body = {network}(
{arguments}    )
    return Network(body, MEAN, STD)


def load(path: str | Path = Path(__file__).with_name("weights.safetensors")) -> Network:
    """The network with its weights, in eval mode. Raises ValueError where the file holds other weights than those of this network."""
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != DIGEST:
        raise ValueError(
            f"{{path}} does not hold the weights that belong to this file: take both from one export, or use build() and load_state_dict()."
        )
    network = build()
    network.load_state_dict(weights_in(data))
    return network.eval()
'''
