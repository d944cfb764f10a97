"""A network with limits, exported, and built again in plain PyTorch without oche.

python examples/limits_and_reuse.py      # writes runs/example-limits
"""

import sys

import torch

import oche

found = oche.search(
    "darts", space="chain", data="digits", budget="smoke", max_params="20k", compare=1, compare_seeds=1, rivals="none",
    out="runs/example-limits",
    settings={"space.layers": (1, 1), "space.widths": (1.0, 2.0), "space.strides": (1, 2), "space.channels": 4},
)  # fmt: skip
kept = oche.load("runs/example-limits")
print("classes:", ", ".join(kept.classes), "- images of", kept.contract.size)
print("weights:", sum(p.numel() for p in kept.network().parameters()), "of at most 20,000")

sys.path.insert(0, "runs/example-limits/network")
import network  # noqa: E402 - the file that oche has just written; it needs torch and safetensors alone

images = torch.rand(4, 1, 8, 8)
with torch.no_grad():
    gap = (network.load()(images) - kept.network()(images)).abs().max()
print(f"network.py and oche differ by {gap:.1e}")
assert gap < 1e-6
