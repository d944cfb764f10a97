"""What was typed of a command, and where it speaks."""

from __future__ import annotations

import typer

from oche.api.terminal import console
from oche.errors import UserError


def speak_aside(context: typer.Context, as_json: bool) -> None:
    """Sends all that the command says but its result to stderr, until it ends."""
    console.stderr = as_json
    context.call_on_close(lambda: setattr(console, "stderr", False))


def is_given(context: typer.Context, name: str) -> bool:
    """True if the option was typed."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def goes_alone(context: typer.Context, option: str, *beside: str, longer: str = "") -> None:
    """Raises UserError for options that would be ignored, since the recorded run has settled them; `longer` is what to do about epochs."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if is_given(context, name) and name not in (option, *beside):
            given = max(parameter.opts, key=len)
            raise UserError(
                f"{given} cannot be given with --{option}, which takes everything from that run: leave it out"
                f"{longer if name in ('epochs', 'more') else ''}."
            )
