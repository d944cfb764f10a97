"""Times `import oche` beyond torch. The goal is under 0.2 s.

    python benchmarks/start.py --json

In fresh processes, in turn: seconds of `import torch`, then of `import oche` after it, and of `oche.api.search` (all that a search needs).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CODE = """
import time
stamps = [time.perf_counter()]
import torch; stamps.append(time.perf_counter())
import oche; stamps.append(time.perf_counter())
import oche.api.search; stamps.append(time.perf_counter())
print([b - a for a, b in zip(stamps, stamps[1:])])
"""


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    runs = []
    for _ in range(a.repeats + 1):  # the first one reads the files from the disk
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    torch, oche, api = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    told = {"seconds": oche, "torch_seconds": torch, "api_seconds": api, "repeats": a.repeats}
    print(
        json.dumps(told) if a.json else f"torch {torch:.2f} s, then oche {oche:.3f} s, then oche.api.search {api:.2f} s"
    )


if __name__ == "__main__":
    main()
