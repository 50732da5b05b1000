"""Executions that did not come to their end, and what is done about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

_SPARED = 10  # failures of a chunk that never stop a run which skips them
_MESSAGES = 100  # different messages that a manifest keeps
_LENGTH = 300  # characters of a message


class FailedTrace(NamedTuple):
    """The trace index of an execution that failed, and why."""

    trace_index: int
    message: str

    @classmethod
    def by(cls, index: int, error: BaseException) -> FailedTrace:
        """One that raised."""
        return cls(index, f"{type(error).__name__}: {error}"[:_LENGTH])


@dataclass(frozen=True)
class FailurePolicy:
    """What a failed execution means: one that raises, has a density that is not a number, dies or hangs.

    Attributes:
        action: ``"stop"`` ends the run, naming the trace; ``"skip"`` leaves it out and records it, which conditions
            the dataset on executions that come to their end.
        max_share: where more than this share of the traces of one storage chunk fail (and more than ten), the run
            stops even so: then something else is wrong.
        timeout: seconds after which an execution in a worker process counts as hanging; None waits forever.
    """

    action: Literal["stop", "skip"] = "stop"
    max_share: float = 0.1
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.action not in ("stop", "skip"):
            raise ValueError(f'failures is "stop" or "skip"; got {self.action!r}')
        if not 0.0 <= self.max_share <= 1.0:
            raise ValueError(f"max_failures is a share between 0 and 1; got {self.max_share}")
        if self.timeout is not None and not self.timeout > 0.0:
            raise ValueError(f"timeout must be positive seconds, or none; got {self.timeout}")

    @property
    def skips(self) -> bool:
        return self.action == "skip"

    def allowed(self, traces: int) -> int:
        """How many of a chunk's traces may fail."""
        return max(_SPARED, int(self.max_share * traces))


def summarise(failures: Iterable[FailedTrace]) -> dict[str, Any]:
    """What a manifest says of failed executions; empty where there are none.

    Returns:
        ``count``; ``indices`` of all; ``messages``, the hundred most frequent with their counts and first indices.
    """
    found = sorted(failures)
    if not found:
        return {}
    indices = [index for index, _ in found]
    return {"count": len(found), "indices": indices, "messages": _frequent((m, 1, i) for i, m in found)}


def join(parts: Iterable[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """Several of :func:`summarise` as one, each given with what is added to its trace indices."""
    some = [(part, shift) for part, shift in parts if part]
    if not some:
        return {}
    indices = sorted(index + shift for part, shift in some for index in part["indices"])
    said = ((m["message"], m["count"], m["first"] + shift) for part, shift in some for m in part["messages"])
    return {"count": len(indices), "indices": indices, "messages": _frequent(said)}


def _frequent(said: Iterable[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """The most frequent messages of all: how often each came and in which trace first."""
    messages: dict[str, tuple[int, int]] = {}
    for text, count, first in said:
        before, earliest = messages.get(text, (0, first))
        messages[text] = before + count, min(earliest, first)
    frequent = sorted(messages.items(), key=lambda item: (-item[1][0], item[1][1]))[:_MESSAGES]
    return [{"message": text, "count": count, "first": first} for text, (count, first) in frequent]
