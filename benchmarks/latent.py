"""Measures SVGe's embedding of NAS-Bench-201 without a search: reconstruction, validity, uniqueness, novelty, prediction.

    OCHE_DATA=FOLDER python benchmarks/latent.py --out docs/results/latent_svge.jsonl

The searches are measured by latent_searches.py, which writes the page of both.

Fixed before the first run: the defaults of `oche search svge`; 1,000 cells of the table that the embedding did not learn from, 10 decodings
of each, a reconstruction counts if it is the cell itself; 1,000 points of N(mean, deviation) of the train cells' means, 10 decodings of
each: valid if they are cells of the space, unique among the valid ones, new if the embedding did not learn from them. Prediction:
1,000 other cells with their CIFAR-10 validation accuracy, 20 epochs of further training; the rank correlation over the held-out 1,000,
beside that of a Gaussian process of the operations with the same 1,000 cells. No test accuracy is read.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from oche.base import counted
from oche.methods.predictors import one_hot
from oche.methods.svge import Training, embedding, predictor
from oche.spaces import SPACES
from oche.tables import table_named

COUNT, TIMES, EPOCHS = 1000, 10, 20


def main() -> None:
    """Writes one JSON object per line and prints it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    lines: list[str] = []

    def note(what: str, **values: float) -> None:
        lines.append(json.dumps({"what": what, **{name: round(float(v), 4) for name, v in values.items()}}))
        print(lines[-1], flush=True)
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    space, table = SPACES["nb201"](), table_named("nb201")
    began = time.process_time()
    found = embedding(space, Training())
    note("learning", cells=len(found.cells), cpu_seconds=time.process_time() - began)
    learned = {cell.hash for cell in found.cells}
    order = torch.randperm(15625, generator=counted(0, "latent")).tolist()
    others = [cell for cell in map(table.genotype, order) if cell.hash not in learned]
    held_out, labelled = others[:COUNT], others[COUNT : 2 * COUNT]

    rng = counted(0, "latent", "decode")
    types, edges = found.graphs.encode(held_out)
    again, first = [], []
    means = found.encode(held_out)
    for _ in range(TIMES):
        t, e = found.model.draw(means, rng)
        again.append(((t == types).all(1) & (e == edges).all((1, 2))).double())
    first = [cells[0].hash if cells else "" for cells in found.decode(means, TIMES, rng)]
    exact = np.mean([name == cell.hash for name, cell in zip(first, held_out, strict=True)])
    note("reconstruction", held_out=COUNT, exact=torch.stack(again).mean(), most_frequent_exact=exact)

    mean, deviation = found.means.mean(0), found.means.std(0)
    points = mean + deviation * torch.randn(COUNT, len(mean), generator=rng)
    drawn = [
        found.graphs.decode(*graph)
        for graph in zip(*found.model.draw(points.repeat_interleave(TIMES, 0), rng), strict=True)
    ]
    valid = [cell.hash for cell in drawn if cell is not None]
    note(
        "prior",
        drawn=len(drawn),
        validity=len(valid) / len(drawn),
        uniqueness=len(set(valid)) / len(valid),
        novelty=np.mean([name not in learned for name in valid]),
        share_of_table_unseen=1 - len(learned) / 15625,
    )

    scores = [np.array([table.value(c, "cifar10/valid") for c in cells]) for cells in (labelled, held_out)]
    standard = torch.tensor((scores[0] - scores[0].mean()) / scores[0].std(), dtype=torch.float32)
    began = time.process_time()
    tuned = predictor(found, labelled, standard, EPOCHS, 0)
    with torch.no_grad():
        predicted = tuned.model.score(tuned.encode(held_out)).numpy()
    note(
        "prediction: SVGe",
        spearman=spearmanr(predicted, scores[1]).statistic,
        kendall=kendalltau(predicted, scores[1]).statistic,
        cpu_seconds=time.process_time() - began,
    )
    x = [np.stack([one_hot(space, cell) for cell in cells]) for cells in (labelled, held_out)]
    kernel = ConstantKernel(1.0) * Matern(2.0, (0.1, 100.0), nu=2.5) + WhiteKernel(0.1, (1e-4, 10.0))
    began = time.process_time()
    process = GaussianProcessRegressor(kernel, random_state=0).fit(x[0], standard.numpy())
    predicted = process.predict(x[1])
    note(
        "prediction: Gaussian process of the operations",
        spearman=spearmanr(predicted, scores[1]).statistic,
        kendall=kendalltau(predicted, scores[1]).statistic,
        cpu_seconds=time.process_time() - began,
    )


if __name__ == "__main__":
    main()
