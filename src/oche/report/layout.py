"""The layout of a cell's drawing: layered, left to right, in which nothing can overlap.

Every operation is a box of its own, in a layer of its own between the layers of the nodes, and an edge that passes a
layer passes it through a bend that keeps a lane free. Lines are curved only in the gaps between layers, so they cross
each other there and never a box. Sizes are in inches, y grows upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from oche.genotype import Choice

NODE_HEIGHT, OP_HEIGHT, LANE, PORT = 0.38, 0.24, 0.10, 0.11
SPACE = 0.10
"""Between neighbours of a layer."""
GAP = 0.42
"""Between layers: room for the curves."""


@dataclass(eq=False)
class Box:
    """A node, an operation (`choice` is set) or a bend (`text` is empty); `x`, `y` is its centre."""

    text: str
    layer: int
    width: float = 0.0
    height: float = LANE
    choice: Choice | None = None
    role: str = ""
    x: float = 0.0
    y: float = 0.0
    before: list[Box] = field(default_factory=list)
    after: list[Box] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """A cell laid out: its boxes, the chains of boxes that its edges run through, and each layer's left and right."""

    boxes: list[Box]
    chains: list[list[Box]]
    spans: list[tuple[float, float]]
    width: float
    height: float


def lay_out(choices: Sequence[Choice], char: float, outputs: Sequence[int] | None = None) -> Layout:
    """Places a cell's boxes; `char` is the width of a character of the labels.

    Cells whose first computed node is 2 are read as in DARTS: two inputs, and an output that concatenates the rest, or `outputs` alone.
    """
    layers, chains = _layers(choices, char, outputs)
    _order(layers)
    _place(layers)
    x, spans = 0.0, []
    for layer in layers:
        width = max(box.width for box in layer)
        for box in layer:
            box.x = x + width / 2
        spans.append((x, x + width))
        x += width + GAP
    boxes = [box for layer in layers for box in layer]
    low = min(box.y - box.height / 2 for box in boxes)
    high = max(box.y + box.height / 2 for box in boxes)
    for box in boxes:
        box.y -= low
    return Layout(boxes, chains, spans, x - GAP, high - low)


def node_names(choices: Sequence[Choice]) -> dict[int, str]:
    """Node number -> how the field calls it: c with an index for what comes from outside the cell, else its number."""
    last = max(c.target for c in choices)
    names = {node: str(node) for node in range(last + 1)}
    if concatenates(choices):
        fed = {c.target for c in choices}
        names = {node: name for node, name in names.items() if node < 2 or node in fed}
        return names | {0: "cₖ₋₂", 1: "cₖ₋₁"}
    return names | {0: "input 0", last: f"output {last}"}


def concatenates(choices: Sequence[Choice]) -> bool:
    """True for cells as in DARTS: nodes 0 and 1 are the two cells before, all others together (or some of them) are the output."""
    return min(c.target for c in choices) >= 2


def _layers(
    choices: Sequence[Choice], char: float, outputs: Sequence[int] | None
) -> tuple[list[list[Box]], list[list[Box]]]:
    names = node_names(choices)
    depth = dict.fromkeys(names, 0)
    for node in names:
        depth[node] = max((depth[c.source] + 1 for c in choices if c.target == node), default=0)
    inputs = {0, 1} if concatenates(choices) else {0}
    last = max(names)
    nodes = {node: Box(text, 2 * depth[node]) for node, text in names.items()}
    for node, box in nodes.items():
        box.role = "input" if node in inputs else "output" if node == last and not concatenates(choices) else "node"
    layers: list[list[Box]] = [[] for _ in range(2 * max(depth.values()) + (2 if concatenates(choices) else 1))]

    for box in nodes.values():
        layers[box.layer].append(box)
    chains = []
    for choice in sorted(choices, key=lambda c: depth[c.target] - depth[c.source]):
        start, end = nodes[choice.source], nodes[choice.target]
        odd = range(end.layer - 1, start.layer, -2)
        at = min(odd, key=lambda i: sum(box.choice is not None for box in layers[i]))
        text = choice.op if choice.coefficient == 1 else f"{choice.op} ×{choice.coefficient:.2g}"
        op = Box(text, at, char * len(text) + 0.2, OP_HEIGHT, choice, "op")
        chains.append(_chain(start, end, layers, op))
    if concatenates(choices):
        output = Box("cₖ", len(layers) - 1, role="output")
        layers[-1].append(output)
        chains += [
            _chain(box, output, layers) for node, box in nodes.items() if node in (outputs or set(nodes) - inputs)
        ]
    for layer in layers:
        for box in layer:
            if box.role in ("input", "node", "output"):
                box.width = max(NODE_HEIGHT, char * len(box.text) + 0.22)
                box.height = max(NODE_HEIGHT, PORT * (len(box.before) + 1))
    return layers, chains


def _chain(start: Box, end: Box, layers: list[list[Box]], op: Box | None = None) -> list[Box]:
    """Links start to end through one box a layer, `op` in its own and bends in the others."""
    chain = [start]
    for i in range(start.layer + 1, end.layer):
        box = op if op is not None and op.layer == i else Box("", i)
        layers[i].append(box)
        chain.append(box)
    chain.append(end)
    for a, b in pairwise(chain):
        a.after.append(b)
        b.before.append(a)
    return chain


def _order(layers: list[list[Box]]) -> None:
    """Sorts each layer for few crossings: barycentre sweeps there and back, the best order seen is kept."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(24):
        forward = sweep % 2 == 0
        for layer in layers[1:] if forward else layers[-2::-1]:
            rank = {id(box): i for other in layers for i, box in enumerate(other)}
            centre = {}
            for box in layer:
                neighbours = box.before if forward else box.after
                centre[id(box)] = _mean([rank[id(b)] for b in neighbours], rank[id(box)])
            layer.sort(key=lambda box: centre[id(box)])
        crossings = _crossings(layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    for layer, order in zip(layers, best, strict=True):
        layer[:] = order


def _crossings(layers: list[list[Box]]) -> int:
    total = 0
    for layer, following in pairwise(layers):
        rank = {id(box): i for i, box in enumerate(following)}
        ends = [sorted(rank[id(b)] for b in box.after) for box in layer]
        total += sum(b < a for i, above in enumerate(ends) for below in ends[i + 1 :] for a in above for b in below)
    return total


def _place(layers: list[list[Box]]) -> None:
    """Moves each box towards its neighbours' mean height, as near as order and spacing allow."""
    for layer in layers:
        _spread(layer, [-float(i) for i in range(len(layer))])
    for sweep in range(60):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            _spread(layer, [_wanted(box) for box in layer])


def _wanted(box: Box) -> float:
    """The neighbours' mean height; bends of the same line pull hardest, so that it runs straight."""
    pulls = [((1, 3, 12)[(not box.text) + (not other.text)], other.y) for other in box.before + box.after]
    return sum(pull * y for pull, y in pulls) / sum(pull for pull, _ in pulls) if pulls else box.y


def _spread(layer: list[Box], wanted: list[float]) -> None:
    """The heights nearest to the wanted ones, by least squares, that keep order and spacing.

    Pools adjacent violators: neighbours that would come too close move as one.
    """
    offset, offsets = 0.0, []
    for i, box in enumerate(layer):
        if i:
            offset -= (layer[i - 1].height + box.height) / 2 + SPACE
        offsets.append(offset)
    pools: list[list[float]] = []
    for want, shift in zip(wanted, offsets, strict=True):
        pools.append([want - shift])
        while len(pools) > 1 and _mean(pools[-1]) > _mean(pools[-2]):
            last = pools.pop()
            pools[-1] += last
    free = [_mean(pool) for pool in pools for _ in pool]
    for box, y, shift in zip(layer, free, offsets, strict=True):
        box.y = y + shift


def _mean(values: Sequence[float], default: float = 0.0) -> float:
    return sum(values) / len(values) if values else default
