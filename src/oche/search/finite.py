"""Numbers that are no longer finite: found at the step, rolled back to the last good state, tried again more slowly, or given up.

Our choice; the field's code goes on with NaN to the end. A search goes back at most `problem.rollbacks` times (never under `--budget
paper`, which stops at once), each time at half the rates of weights and alpha from then on. The log has a "rolled_back" record for each.
"""

from __future__ import annotations

from oche.errors import RunFailed
from oche.optim import NotFinite, set_rate
from oche.search.begin import begin
from oche.search.checkpoint import table, take
from oche.search.keeping import copied
from oche.search.method import Method
from oche.search.state import SearchState


def roll_back(state: SearchState, method: Method, fault: NotFinite) -> None:
    """Takes the search back to its last checkpoint, or its start, at half its rates. Raises RunFailed after `rollbacks` times."""
    problem, run = state.problem, state.problem.run
    at, slower = state.steps_before + state.step, state.slower + 1
    begun = state.keeping.table
    if slower > problem.rollbacks or (state.stage and begun is None):
        raise RunFailed(_sentence(state, fault))
    take(state, copied(begun or table(begin(problem, method))))
    for group in state.arch_optimizer.param_groups:
        set_rate(state.arch_optimizer, float(group["lr"]) * 0.5 ** (slower - state.slower))
    state.slower = slower
    to, rates = state.steps_before + state.step, 0.5**slower
    note = f"{fault} was not finite at step {at}: the search goes on from step {to}, at {rates:g} of the rates"
    record = {"kind": "rolled_back", "what": str(fault), "step": at, "to_step": to, "rates": rates, "note": note}
    if run and problem.fabric.is_global_zero:
        run.rewind(state.lines)
        run.log(record)
        state.lines = run.lines()
    problem.listener("rolled_back", record)


def _sentence(state: SearchState, fault: NotFinite) -> str:
    tried = f" after {state.slower} attempts at smaller rates" if state.slower else ""
    kept = f" What came before is kept in {str(state.problem.run.path)!r}." if state.problem.run else ""
    return (
        f"The search stopped at step {state.steps_before + state.step} (epoch {state.epochs_before + state.epoch}), because "
        f"{fault} was not finite{tried}: try a smaller rate (`--set weight_lr.start=0.01`, `--set arch_optimizer.lr=1e-4`), "
        f"`--precision 32`, or look at the images with `oche check`.{kept}"
    )
