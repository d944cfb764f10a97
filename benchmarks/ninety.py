"""Times a training on CIFAR-10 to 90 % on the test images: NAS-Bench-201's best cell by the protocol `fast`, all threads.

    OCHE_DATA=FOLDER python benchmarks/ninety.py --json          # a quarter of an hour on two quiet cores; FOLDER as for cifar_npz.py

The number of epochs is chosen beforehand: the schedule ends with them, and the test images are scored once, after the last. 98 % of the
50,000 train images are learned from. `minutes` are those of the whole command, from its start to the score; where the score is below 90 %
there are none. One seed, one network, one recipe: it says what is possible here, and not that no other is quicker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cifar_npz
import numpy as np

BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
ENOUGH = 0.9


def main() -> None:
    """Prints minutes and accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    if not os.environ.get("OCHE_DATA"):
        parser.error("OCHE_DATA is not set: name the folder that holds cifar10/, as for cifar_npz.py")
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "cifar10.npz", Path(folder) / "run"
        np.savez(data, **cifar_npz.cifar10(Path(os.environ["OCHE_DATA"]) / "cifar10", "both"))  # type: ignore[arg-type]
        size = ("--set", "space.cells=1", "--set", f"space.channels={a.channels}", "--set", "data.val=0.02")
        length = ("--protocol", "fast", "--epochs", str(a.epochs), "--threads", str(a.threads), "--seed", str(a.seed))
        command = ["train", BEST, "--space", "nb201", "--data", str(data), *size, *length, "--out", str(run), "--quiet"]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "oche", *command], check=True, stdout=subprocess.DEVNULL)
        minutes = (time.perf_counter() - began) / 60
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
        (accuracy,) = (r["accuracy"] for r in map(json.loads, lines) if r.get("kind") == "test")
    told = {"minutes": minutes if accuracy >= ENOUGH else None, "took": minutes, "accuracy": accuracy, **vars(a)}
    print(json.dumps(told) if a.json else f"{100 * accuracy:.2f} % on test images after {minutes:.1f} min")


if __name__ == "__main__":
    main()
