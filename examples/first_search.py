"""A first search, on scikit-learn's digits: what was found, and whether it beats cells that took no search.

python examples/first_search.py      # writes runs/example-first
"""

import oche

found = oche.search(
    "rf_darts", space="toy", data="digits", budget="smoke", compare=2, compare_seeds=2, rivals="none",
    out="runs/example-first", settings={"space.channels": 8},
)  # fmt: skip
print("found:", found.genotype.summary())
assert found.comparison is not None
for cell, accuracies in found.comparison.accuracies.items():
    print(f"{cell:10s}", " ".join(f"{accuracy:.1%}" for accuracy in accuracies))
print("report:", found.run.path / "report.html")
