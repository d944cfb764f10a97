"""What `--patience` may be asked of: a single search by gradients whose cell is read off alpha after each epoch."""

from __future__ import annotations

from oche.errors import UserError
from oche.plan.request import Request
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.patience import Patience
from oche.search.searcher import SearcherLike


def patience_of(request: Request, searcher: SearcherLike) -> tuple[Callback, ...]:
    """The callback that ends the search, if one was asked for. Raises UserError where the rule has no meaning or is not allowed."""
    if request.patience is None:
        return ()
    if request.patience < 1:
        raise UserError(f"--patience is a number of epochs, at least 1; given {request.patience}.")
    if request.budget == "paper":
        raise UserError(
            "--patience ends a search before its published number of epochs: leave it out, or take --budget quick."
        )
    if not isinstance(searcher, Method) or searcher.arch_start >= 1:
        raise UserError(
            f"--patience compares the cells that alpha gives after each epoch, and {searcher.name} searches in another way: leave it out."
        )
    return (Patience(request.patience),)
