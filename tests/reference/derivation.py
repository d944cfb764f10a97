"""The authors' derivation of a genotype and normalisation of edges, written out on nested lists. No oche, no torch."""

from __future__ import annotations

import math

Row = list[float]
Gene = list[tuple[str, int]]


def softmax(row: Row) -> Row:
    top = max(row)
    e = [math.exp(v - top) for v in row]
    return [v / sum(e) for v in e]


def parse(weights: list[Row], primitives: list[str], steps: int = 4) -> Gene:
    """`_parse` in Network.genotype of quark0/darts, for strengths after the softmax; (op, input) of two edges a node.

    Where the operations have no `none`, as in S1 and S2, automl/RobustDARTS compares all of them.
    """
    none = primitives.index("none") if "none" in primitives else -1
    gene: Gene = []
    n = 2
    start = 0
    for i in range(steps):
        end = start + n
        w = [list(row) for row in weights[start:end]]
        edges = sorted(range(i + 2), key=lambda x: -max(w[x][k] for k in range(len(w[x])) if k != none))[:2]
        for j in edges:
            k_best = None
            for k in range(len(w[j])):
                if k != none and (k_best is None or w[j][k] > w[j][k_best]):
                    k_best = k
            assert k_best is not None
            gene.append((primitives[k_best], j))
        start = end
        n += 1
    return gene


def shares(beta: Row, steps: int = 4) -> Row:
    """The softmax over the edges into each node, concatenated: yuhuixu1993/PC-DARTS, model_search.py."""
    n = 3
    start = 2
    out = softmax(beta[0:2])
    for _ in range(steps - 1):
        end = start + n
        out = out + softmax(beta[start:end])
        start = end
        n += 1
    return out


def parse_partial(alpha: list[Row], beta: Row, primitives: list[str], steps: int = 4) -> Gene:
    """PC-DARTS: each row's softmax times its edge's share, then as in DARTS."""
    weights = [[w * share for w in softmax(row)] for row, share in zip(alpha, shares(beta, steps), strict=True)]
    return parse(weights, primitives, steps)


def nb201_genotype(alpha: list[Row], ops: list[str]) -> str:
    """TinyNetwork.genotype of D-X-Y/AutoDL-Projects: the argmax of every edge, `none` included, as a string."""
    numbers = {(i, j): e for e, (i, j) in enumerate((i, j) for i in range(1, 4) for j in range(i))}
    genotypes = []
    for i in range(1, 4):
        items = []
        for j in range(i):
            row = alpha[numbers[i, j]]
            items.append(f"{ops[row.index(max(row))]}~{j}")
        genotypes.append("|" + "|".join(items) + "|")
    return "+".join(genotypes)
