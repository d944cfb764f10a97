"""A training whose numbers are no longer finite: back to the last epoch's end at half the rate, tried again, or given up.

Our choice. It goes back at most `ROLLBACKS` times, each time at half the rates from then on; under a published protocol it stops at once.
The log has a "rolled_back" record for each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from oche.errors import RunFailed
from oche.optim import check_finite
from oche.run import Run
from oche.training.protocols import Protocol

ROLLBACKS = 3
"""Times that a training goes back."""

OURS = "our choice"
"""The source of protocols that no paper has."""


def check_weights(network: nn.Module) -> None:
    """Raises NotFinite where a weight or a statistic of a batch norm is NaN or infinite."""
    held = [t.detach() for t in network.state_dict().values() if t.is_floating_point()]
    check_finite("a weight", float(torch.nn.utils.get_total_norm(held)) if held else 0.0)


def stepped_back(
    protocol: Protocol, run: Run | None, before: int, fault: ArithmeticError, epoch: int
) -> Mapping[str, object]:
    """The record of a training that goes back to the end of an epoch for the (before + 1)-th time. Raises RunFailed after the last one."""
    if before >= (ROLLBACKS if protocol.source == OURS else 0):
        raise RunFailed(_sentence(protocol, run, before, fault, epoch))
    rates = 0.5 ** (before + 1)
    note = f"{fault} was not finite in epoch {epoch}: it begins again, at {rates:g} of the rates"
    return {"kind": "rolled_back", "what": str(fault), "to_epoch": epoch, "rates": rates, "note": note}


def _sentence(protocol: Protocol, run: Run | None, before: int, fault: ArithmeticError, epoch: int) -> str:
    tried = f" after {before} attempts at smaller rates" if before else ""
    kept = f" What came before is kept in {str(run.path)!r}." if run else ""
    rate = getattr(protocol.lr, "start", 0.1) / 10
    return (
        f"The training stopped in epoch {epoch} of {protocol.epochs}, because {fault} was not finite{tried}: try a smaller rate "
        f"(`--set train.lr.start={rate:.2g}`), `--precision 32`, or look at the images with `oche check`.{kept}"
    )
