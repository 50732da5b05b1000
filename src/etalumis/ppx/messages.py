"""The messages of the protocol as plain tuples."""

from __future__ import annotations

from typing import Any, NamedTuple

from etalumis.distributions import Distribution

Tensor = Any  # a float, or a float64 array

VERSION = "1.1.0"
SCRIPT = "script"
ERROR = "error"
FAMILIES = "families"


class Handshake(NamedTuple):
    system_name: str
    capabilities: tuple[str, ...] = ()
    version: str = ""


class HandshakeResult(NamedTuple):
    system_name: str
    model_name: str
    capabilities: tuple[str, ...] = ()
    version: str = ""


class Run(NamedTuple):
    """Start an execution, or those of a scripted request (the fields of its table, in order)."""

    request: tuple[Any, ...] | None = None


class RunResult(NamedTuple):
    """What the model returned, or the columns of scripted executions (the fields of their table, in order)."""

    result: Tensor | None = None
    columns: tuple[Any, ...] | None = None


class Sample(NamedTuple):
    """A draw; a scripted execution says which instance of the address (from 1) and which statement (from 0) it is."""

    address: str
    name: str
    distribution: Distribution
    control: bool = True
    instance: int = 0
    ordinal: int = 0


class SampleResult(NamedTuple):
    result: Tensor


class Observe(NamedTuple):
    address: str
    name: str
    distribution: Distribution
    value: Tensor | None = None


class ObserveResult(NamedTuple):
    pass


class Tag(NamedTuple):
    address: str
    name: str
    value: Tensor


class TagResult(NamedTuple):
    pass


class Reset(NamedTuple):
    pass


class Error(NamedTuple):
    text: str


Message = (
    Handshake
    | HandshakeResult
    | Run
    | RunResult
    | Sample
    | SampleResult
    | Observe
    | ObserveResult
    | Tag
    | TagResult
    | Reset
    | Error
)
