"""A method of your own: DARTS whose alpha waits, and whose convolutions stay frozen at random; checked, then searched with.

python examples/own_method.py      # writes runs/example-method
"""

from dataclasses import replace

import oche
from oche.methods.darts import darts
from oche.testing import check_method


def patient(start: float = 0.5) -> oche.Method:
    """First-order DARTS whose alpha is held for the first half of the search."""
    return replace(darts(), name="patient", arch_start=start)


check_method(patient())
found = oche.search(
    oche.random_features(patient()), space="toy", data="digits", budget="smoke", compare=0, out="runs/example-method"
)
for epoch in found.history:
    print(epoch["epoch"], epoch["phase"], f"entropy {epoch['entropy']:.3f}")
print("found:", found.genotype.summary())
