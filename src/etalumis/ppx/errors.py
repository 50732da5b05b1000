"""What can go wrong between an engine and a simulator."""

from __future__ import annotations


class ProtocolError(ValueError):
    """A message is malformed, or is not what the protocol allows now."""


class SimulatorError(RuntimeError):
    """A simulator died, hung, gave up or can't be reached; the message tells its last words.

    Attributes:
        trace_index: of the execution that it did not bring to its end, where one is to blame.
    """

    def __init__(self, message: str, trace_index: int | None = None) -> None:
        super().__init__(message)
        self.trace_index = trace_index
