"""An option as a field of a request, with its help and its flags; and the options of limits, which several requests have."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True)
class Words:
    """How an option is told on the command line: its help, its flags (none: Python only), and whether run.toml records it."""

    help: str
    flags: tuple[str, ...] = ()
    recorded: bool = True


def option(default: T, help: str, *flags: str, recorded: bool = True) -> T:
    """A field of a request: an option with its default, its help and its flags, `--name` by custom, none for Python alone."""
    words = {"words": Words(help, flags, recorded)}
    made: object = (
        field(default_factory=dict, metadata=words) if default == {} else field(default=default, metadata=words)
    )
    return cast(T, made)


def words(of: Field[object]) -> Words:
    """The words of an option."""
    return cast(Words, of.metadata["words"])


@dataclass(frozen=True, kw_only=True)
class Limited:
    """Limits of what a network may cost, which a search, a training and a bench are asked for in the same words."""

    max_params: str | int | None = option(
        None,
        "The most weights that the network may have: 80k. It is made to fit; docs/limits.md. A training takes over its search's limits; "
        "none lifts one.",
        "--max-params",
    )
    max_macs: str | int | None = option(None, "The most multiply-adds per image: 12.7M.", "--max-macs")
    max_memory: str | int | None = option(
        None, "The peak memory of its activations, one image in float32: 64KB or 64KiB.", "--max-memory"
    )
    max_size: str | int | None = option(None, "The most that its ONNX file may take: 100KB.", "--max-size")
    max_int8_size: str | int | None = option(
        None, "The most that its ONNX file may take after `oche export --format int8`: 30KB.", "--max-int8-size"
    )
    max_latency: str | float | None = option(
        None,
        "The most milliseconds per image on one thread: 3ms. Measured here, or foretold by --latency-table.",
        "--max-latency",
    )
    latency_table: str | Path | None = option(
        None, "The latencies of another device, as `oche latency` writes them there.", "--latency-table"
    )

    @property
    def limited(self) -> dict[str, Any]:
        """The options of this list by name."""
        return {f.name: getattr(self, f.name) for f in fields(Limited)}
